"""The plate: its state, and how it changes."""

import dsmfor as dsm
import numpy as np

from . import kernels
from .config import config


class Plate:
    """A plate of steel that a laser heats and that conducts the heat away.

    T : (ny, nx) temperature, K
    history : list of (time, hottest, mean)
    """

    def __init__(self):
        ny, nx = config.ny, config.nx
        self.T = np.full((ny, nx), config.ambient)
        self.k = np.zeros((ny, nx))
        self.qx = np.zeros((ny, nx + 1))
        self.qy = np.zeros((ny + 1, nx))
        self.step = 0.2 * config.capacity * config.spacing**2 / config.k.max()
        self.time = 0.0
        self.history = []

    def shoot(self, spots):
        """Fire one laser pulse at each of the spots, all at once."""
        heat = np.zeros_like(self.T)
        kernels.deposit(spots, config.pulse, config.width, config.spacing, heat)
        self.T += heat / (config.capacity * config.thickness)

    def run(self, steps, every=50):
        """Let the heat spread for some time steps; every so many, note how hot it is."""
        self.record()
        while steps > 0:
            count = min(steps, every)
            self._march(count)
            self.time += count * self.step
            self.record()
            steps -= count

    def record(self):
        self.history.append((self.time, self.T.max(), self.T.mean()))

    @dsm.parallel(shared=["self.T", "self.k", "self.qx", "self.qy"])
    def _march(self, steps):
        factor = self.step / (config.capacity * config.spacing)
        for _ in range(steps):
            kernels.conductivity(self.T, config.k_at, config.k, self.k)
            kernels.fluxes(self.T, self.k, config.spacing, self.qx, self.qy)
            kernels.update(self.T, self.qx, self.qy, factor)
