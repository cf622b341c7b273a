"""Paint the Mandelbrot set in plain Python; some rows take a hundred times longer than others.

$ python examples/mandelbrot.py --width 600 --workers 2 --out out/mandelbrot.png
"""

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np
from matplotlib.image import imsave

import dsmfor as dsm

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--width", type=int, default=600, help="pixels; the height is two thirds")
parser.add_argument("--workers", type=int, help="default: one for each core")
parser.add_argument("--out", type=Path, default="out/mandelbrot.png", help="the picture")
options = parser.parse_args()


@dsm.parallel(workers=options.workers, shared=["image"])
def paint(image, real, imag):
    for row in dsm.prange(len(imag), schedule="dynamic"):  # whoever is free takes the next row
        for column in range(len(real)):
            image[row, column] = steps_to_escape(real[column], imag[row])


def steps_to_escape(x0, y0, most=100):
    x = y = 0.0  # z = x + iy, and a step is z = z² + c
    for step in range(most):
        if x * x + y * y > 4.0:
            return step
        x, y = x * x - y * y + x0, 2.0 * x * y + y0
    return most


def seconds(func, *args):
    start = perf_counter()
    func(*args)
    return perf_counter() - start


real = np.linspace(-2.25, 1.05, options.width)
imag = np.linspace(1.1, -1.1, options.width * 2 // 3)
image = np.zeros((len(imag), len(real)), dtype=int)

paint(image, [0.0], [0.0])  # the first call starts the workers; they stay
serial = seconds(paint.serial, np.zeros_like(image), real.tolist(), imag.tolist())
parallel = seconds(paint, image, real.tolist(), imag.tolist())

np.testing.assert_array_equal(image, np.vectorize(steps_to_escape)(real, imag[:, np.newaxis]))
options.out.parent.mkdir(parents=True, exist_ok=True)
imsave(options.out, np.log1p(image), cmap="twilight_shifted")
print(
    f"mandelbrot, {image.shape[1]} x {image.shape[0]} pixels in {options.out}: "
    f"serial {serial:.2f} s, parallel {parallel:.2f} s, speed-up {serial / parallel:.1f}"
)
