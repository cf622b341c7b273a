"""Laser annealing of a metal plate: heat conduction with a temperature-dependent conductivity."""

from .config import Config, config
from .plate import Plate

__all__ = ["Config", "Plate", "config"]
