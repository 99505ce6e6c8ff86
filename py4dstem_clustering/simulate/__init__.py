"""Scans and series with known truth."""

from .crystals import crystal_of_gold
from .samples import SAMPLE_KINDS, SimulatedSample, simulate_sample
from .scan import SimulatedScan, simulate_scan
from .series import SimulatedSeries, simulate_series

__all__ = [
    "SAMPLE_KINDS",
    "SimulatedSample",
    "SimulatedScan",
    "SimulatedSeries",
    "crystal_of_gold",
    "simulate_sample",
    "simulate_scan",
    "simulate_series",
]
