"""Looks at a live run of run.py and steers it; it needs NumPy and SharedArray, and no dsmfor.

$ python examples/live/watch.py --heat 80 --looks 5
"""

import argparse
import os
import time

import numpy as np
import SharedArray

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--looks", type=int, default=5, help="pictures to draw")
parser.add_argument("--pause", type=float, default=1.0, help="seconds between them")
parser.add_argument("--heat", type=float, help="from now on, degrees of the left edge")
parser.add_argument("--name", default="heat", help="as run.py was told")
options = parser.parse_args()

# The very memory of the run: nothing is copied, and what is written here is read there.
plate = SharedArray.attach(f"shm://{options.name}-plate")
panel = SharedArray.attach(f"shm://{options.name}-panel")

if options.heat is not None:
    panel[1] = options.heat

for _ in range(options.looks):
    done = panel[0]
    while panel[0] == done:  # until the run has gone on
        if not os.path.exists(f"/dev/shm/{options.name}-panel"):  # noqa: S108  # where names are
            raise SystemExit("the run is over, and so are its names")
        time.sleep(0.001)
    rows = np.linspace(0, len(plate) - 1, 8).astype(int)
    columns = np.linspace(0, len(plate) - 1, 60).astype(int)
    hot = plate[np.ix_(rows, columns)] / max(panel[1], 1.0)
    print(f"step {panel[0]:,.0f}, the edge at {panel[1]:g} degrees")
    for row in hot:
        print("    " + "".join(" .:-=+*#%@"[int(np.clip(9 * value, 0, 9))] for value in row))
    time.sleep(options.pause)

panel[2] = 1  # and now stop
