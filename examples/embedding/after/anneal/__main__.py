"""Anneal a plate along a spiral and save what became of it: python -m anneal --help."""

import argparse
from time import perf_counter

import numpy as np

from . import Plate, config

parser = argparse.ArgumentParser(prog="anneal", description=__doc__.partition(":")[0])
parser.add_argument("--size", type=int, default=config.nx, help="cells along each side")
parser.add_argument("--pulses", type=int, default=2000)
parser.add_argument("--steps", type=int, default=1500)
parser.add_argument("--out", default="plate.npz", help="file for the result")
options = parser.parse_args()

config.ny = config.nx = options.size
turn = np.linspace(0, 12 * np.pi, options.pulses)
radius = 0.45 * options.size * config.spacing * turn / turn.max()
centre = 0.5 * options.size * config.spacing
spots = np.column_stack([centre + radius * np.cos(turn), centre + radius * np.sin(turn)])

plate = Plate()
began = perf_counter()
plate.shoot(spots)
shot = perf_counter()
plate.run(options.steps)
ended = perf_counter()
np.savez(options.out, T=plate.T, history=plate.history, seconds=[shot - began, ended - shot])
