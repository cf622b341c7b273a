"""Run a package as its authors wrote it, and again with dsmfor, and compare what comes out.

    python examples/embedding/compare.py --workers 2

`before/anneal` is plain NumPy, `after/anneal` the same with dsmfor. `diff -ru before after` shows
what was changed; docs/embedding.md tells why. The tests of both are the same.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

HERE = Path(__file__).resolve().parent

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--workers", type=int, help="default: one for each core")
parser.add_argument("--size", type=int, default=300, help="cells along each side")
parser.add_argument("--pulses", type=int, default=2000)
parser.add_argument("--steps", type=int, default=1500)
options = parser.parse_args()


def anneal(version, workers, out):
    """Temperature and seconds that `python -m anneal` of one version saves."""
    arguments = [f"--size={options.size}", f"--pulses={options.pulses}", f"--steps={options.steps}"]
    chosen = {"DSM_WORKERS": str(workers)} if workers else {}
    subprocess.run(
        [sys.executable, "-m", "anneal", *arguments, f"--out={out}"],
        cwd=HERE / version,
        env={**os.environ, **chosen, "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
    )
    with np.load(out) as saved:
        pulses, steps = saved["seconds"]
        cores = f"{workers or 'all'} core{'' if workers == 1 else 's'}"
        print(f"{version + ', ' + cores:24} {pulses:8.2f} {steps:8.2f}")
        return saved["T"], pulses + steps


print(f"{'seconds':24} {'pulses':>8} {'steps':>8}")
with TemporaryDirectory() as folder:
    expected, serial = anneal("before", 1, f"{folder}/before.npz")
    anneal("after", 1, f"{folder}/one.npz")
    T, parallel = anneal("after", options.workers, f"{folder}/after.npz")
print(
    f"anneal: serial {serial:.2f} s, parallel {parallel:.2f} s, speed-up {serial / parallel:.1f}, "
    f"largest difference {abs(T - expected).max()} K"
)
np.testing.assert_array_equal(T, expected)
