"""Scans and series with known truth."""

from .scan import SimulatedScan, simulate_scan
from .scattering import crystal_of_gold
from .series import SimulatedSeries, simulate_series

__all__ = [
    "SimulatedScan",
    "SimulatedSeries",
    "crystal_of_gold",
    "simulate_scan",
    "simulate_series",
]
