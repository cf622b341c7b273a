"""The numerics, on plain arrays."""

import numpy as np


def deposit(spots, energy, width, spacing, heat):
    """Energy density [J/m2] that laser pulses leave on the cells of a plate.

    spots : (n, 2) centres of the pulses, in m
    heat : (ny, nx) result
    """
    x = (np.arange(heat.shape[1]) + 0.5) * spacing
    for row in range(len(heat)):
        y = (row + 0.5) * spacing
        distance2 = (x - spots[:, :1]) ** 2 + (y - spots[:, 1:]) ** 2
        heat[row] = np.exp(-distance2 / width**2).sum(axis=0)
        heat[row] *= energy / (np.pi * width**2)


def conductivity(T, k_at, k_table, k):
    """Conductivity of each cell at its temperature."""
    k[:] = np.interp(T, k_at, k_table)


def fluxes(T, k, spacing, qx, qy):
    """Heat flux [W/m2] through the faces between cells; no heat leaves the plate."""
    qx[:, 1:-1] = (k[:, 1:] + k[:, :-1]) * (T[:, :-1] - T[:, 1:]) / (2 * spacing)
    qy[1:-1] = (k[1:] + k[:-1]) * (T[:-1] - T[1:]) / (2 * spacing)


def update(T, qx, qy, factor):
    """Add to each cell what flows in through its faces."""
    T += factor * (qx[:, :-1] - qx[:, 1:])
    T += factor * (qy[:-1] - qy[1:])
