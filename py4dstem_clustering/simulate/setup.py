"""The options that simulated scans and series share, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..base.checks import check_choice, check_flag, check_integer, check_number
from .crystals import ACCELERATING_VOLTAGE, Material, check_materials

THICKNESS_PROFILES = ("wedge", "flat", "sphere")
SURROUNDINGS = ("liquid", "vacuum")

DYNAMICAL_DEFAULTS = {
    "materials": "gold",
    "thickness": (5.0, 40.0),
    "thickness_profile": "wedge",
    "bending_per_position": 0.0,
    "accelerating_voltage": ACCELERATING_VOLTAGE,
    "even_disks": False,
    "surroundings": "liquid",
    "thermal_displacement": 0.08,
}
"""Defaults of the options that only dynamical scattering has."""


class Setup(NamedTuple):
    """The checked options that simulated scans and series share; see `simulate_scan`."""

    scan_shape: tuple[int, int]
    detector_shape: tuple[int, int]
    electrons: float
    speckle: float
    k_max: float
    disk_radius: float
    scan_step: float
    probe_blur: float
    seed: int


def check_setup(
    scan: tuple[Any, Any, Any],
    detector: tuple[Any, Any, Any],
    electrons: Any,
    speckle: Any,
    seed: Any,
) -> Setup:
    """Check the options that simulated scans and series share.

    `scan` are shape, step and blur of the probe; `detector` are shape, `k_max` and radius of disks.
    """
    (scan_shape, scan_step, probe_blur), (detector_shape, k_max, disk_radius) = scan, detector
    scan_shape = _check_shape("scan_shape", scan_shape, 1)
    detector_shape = _check_shape("detector_shape", detector_shape, 16)
    return Setup(
        scan_shape,
        detector_shape,
        check_number("electrons", electrons, 0, 1e9),
        check_number("speckle", speckle, 0),
        check_number("k_max", k_max, 1e-3),
        check_number("disk_radius", disk_radius, 0.5, min(detector_shape) / 8),
        check_number("scan_step", scan_step, 1e-12),
        check_number("probe_blur", probe_blur, 0, min(scan_shape)),
        check_integer("seed", seed, 0),
    )


def _check_shape(name: str, shape: Any, lowest: int) -> tuple[int, int]:
    try:
        first, second = shape
    except (TypeError, ValueError):
        raise TypeError(f"{name}={shape!r} must be two whole numbers") from None
    return check_integer(name, first, lowest), check_integer(name, second, lowest)


class DynamicalSetup(NamedTuple):
    """The checked options of dynamical scattering; see `simulate_scan`."""

    materials: tuple[Material, ...]
    thickness: tuple[float, float]
    profile: str
    bending_per_position: float
    accelerating_voltage: float
    even_disks: bool
    vacuum: bool


def check_dynamical(scattering: Any, options: dict[str, Any]) -> DynamicalSetup | None:
    """Check the options of dynamical scattering; None for kinematical scattering.

    An option that is None has its default.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if check_choice("scattering", scattering, ("kinematical", "dynamical")) == "kinematical":
        for name, value in given.items():
            raise ValueError(
                f"{name}={value!r} needs scattering='dynamical'; add that, or leave out {name}"
            )
        return None
    options = {**DYNAMICAL_DEFAULTS, **given}
    thickness = options["thickness"]
    try:
        low, high = thickness if np.ndim(thickness) else (thickness, thickness)
    except (TypeError, ValueError):
        raise TypeError(f"{thickness=} must be a number, or two numbers (low, high), nm") from None
    low, high = (check_number("thickness", value, 2, 150) for value in (low, high))
    if low > high:
        raise ValueError(f"{thickness=} must not fall: give (low, high), nm")
    voltage = check_number("accelerating_voltage", options["accelerating_voltage"], 60e3, 300e3)
    return DynamicalSetup(
        check_materials(options["materials"], options["thermal_displacement"]),
        (low, high),
        check_choice("thickness_profile", options["thickness_profile"], THICKNESS_PROFILES),
        check_number("bending_per_position", options["bending_per_position"], 0, 30),
        voltage,
        check_flag("even_disks", options["even_disks"]),
        check_choice("surroundings", options["surroundings"], SURROUNDINGS) == "vacuum",
    )


def check_together(
    dynamical: DynamicalSetup, twins: float, small_angles: float, bending: float
) -> None:
    """Raise an error where options do not go together."""
    for name, chance in (("twins", twins), ("small_angles", small_angles)):
        if chance > 0 and len(dynamical.materials) > 1:
            raise ValueError(
                f"{name}={chance} relates grains of one material, but there are "
                f"{len(dynamical.materials)} materials; give one, or {name}=0"
            )
    if twins > 0 and not dynamical.materials[0].cubic:
        raise ValueError(f"{twins=} needs a cubic material; give another one, or twins=0")
    if bending > 0 and dynamical.bending_per_position > 0:
        raise ValueError(
            f"{bending=} and bending_per_position={dynamical.bending_per_position} both bend the "
            "grains; give one of them"
        )


def check_turns(bending_per_position: float, turns: Sequence[float]) -> None:
    """Raise an error where this bend turns a grain by more than 15 degrees to either side."""
    if max(turns, default=0) > 15:
        raise ValueError(
            f"{bending_per_position=} bends a grain by {2 * max(turns):.1f} degrees; give at most "
            f"{bending_per_position * 15 / max(turns):.3g}, so that it bends by 30"
        )
