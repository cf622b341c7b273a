"""All numbers of a run, in SI units. Change them before the plate is made."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Config:
    ny: int = 300  # cells
    nx: int = 300
    spacing: float = 1e-4  # m
    ambient: float = 293.0  # K
    capacity: float = 3.9e6  # J/(m3 K)
    thickness: float = 1e-3  # m
    pulse: float = 0.1  # J, energy of one laser pulse
    width: float = 6e-4  # m, radius of the beam
    # Conductivity of steel, W/(m K), at these temperatures; linear between them.
    k_at: np.ndarray = field(default_factory=lambda: np.array([200.0, 400, 600, 800, 1000, 1800]))
    k: np.ndarray = field(default_factory=lambda: np.array([15.2, 16.6, 19.8, 22.6, 25.4, 33.0]))


config = Config()
