"""The numerics, on plain arrays."""

import dsmfor as dsm
import numpy as np


@dsm.parallel(shared={"heat": "out"})
def deposit(spots, energy, width, spacing, heat):
    """Energy density [J/m2] that laser pulses leave on the cells of a plate.

    spots : (n, 2) centres of the pulses, in m
    heat : (ny, nx) result
    """
    x = (np.arange(heat.shape[1]) + 0.5) * spacing
    for row in dsm.prange(len(heat)):
        y = (row + 0.5) * spacing
        distance2 = (x - spots[:, :1]) ** 2 + (y - spots[:, 1:]) ** 2
        heat[row] = np.exp(-distance2 / width**2).sum(axis=0)
        heat[row] *= energy / (np.pi * width**2)


def conductivity(T, k_at, k_table, k):
    """Conductivity of each cell at its temperature."""
    for rows in dsm.pslices(len(T)):
        k[rows] = np.interp(T[rows], k_at, k_table)


def fluxes(T, k, spacing, qx, qy):
    """Heat flux [W/m2] through the faces between cells; no heat leaves the plate."""
    for rows in dsm.pslices(len(T)):
        k_, T_ = k[rows], T[rows]
        qx[rows, 1:-1] = (k_[:, 1:] + k_[:, :-1]) * (T_[:, :-1] - T_[:, 1:]) / (2 * spacing)
    for rows in dsm.pslices(1, len(T)):
        above = slice(rows.start - 1, rows.stop - 1)
        qy[rows] = (k[rows] + k[above]) * (T[above] - T[rows]) / (2 * spacing)


def update(T, qx, qy, factor):
    """Add to each cell what flows in through its faces."""
    for rows in dsm.pslices(len(T)):
        below = slice(rows.start + 1, rows.stop + 1)
        T[rows] += factor * (qx[rows, :-1] - qx[rows, 1:])
        T[rows] += factor * (qy[rows] - qy[below])
