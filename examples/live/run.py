"""Heat on a plate, as a live run: another program looks at it and steers it meanwhile.

$ python examples/live/run.py --steps 100_000 &
$ python examples/live/watch.py --heat 80
"""

import argparse

import numpy as np

import dsmfor as dsm

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--size", type=int, default=200, help="points along a side of the plate")
parser.add_argument("--steps", type=int, default=100_000, help="end after so many")
parser.add_argument("--name", default="heat", help="what the names of the arrays begin with")
parser.add_argument("--workers", type=int, help="default: one for each core")
options = parser.parse_args()


@dsm.parallel(workers=options.workers, shared=["plate", "new", "panel"])
def advance(plate, new, panel, steps):
    old = plate
    for _ in range(steps):
        for rows in dsm.pslices(1, len(old) - 1):  # ends in a barrier
            above, below = old[rows.start - 1 : rows.stop - 1], old[rows.start + 1 : rows.stop + 1]
            middle = old[rows]
            new[rows, 1:-1] = (above[:, 1:-1] + below[:, 1:-1] + middle[:, :-2] + middle[:, 2:]) / 4
        old, new = new, old
        if dsm.rank() == 0:
            old[:, 0] = panel[1]  # the left edge is as hot as the panel says at this moment
            panel[0] += 1
        dsm.barrier()


# The names are all that the other program needs; they are gone when this one ends, however it ends.
plate = dsm.zeros((options.size, options.size), name=f"{options.name}-plate")
panel = dsm.array(
    [0.0, 100.0, 0.0], name=f"{options.name}-panel"
)  # steps done, heat of the edge, stop
new = dsm.zeros_like(plate)
while panel[0] < options.steps and not panel[2]:
    advance(plate, new, panel, 20)  # an even number: the newest state is in `plate`
why = "it was told to stop" if panel[2] else "all steps are done"
print(f"run: {panel[0]:,.0f} steps, the hottest point has {plate[:, 1:].max():.1f} degrees; {why}")
assert np.all((plate >= -0.1) & (plate <= max(100.0, panel[1]) + 0.1))
