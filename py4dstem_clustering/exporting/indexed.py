"""Orientations of a scan in the axes of the picture, with the phase of each position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..diffraction.misorientation import get_symmetry, has_orientation
from ..diffraction.orientation import expand_orientation_map
from ..diffraction.phases import PhaseMap, check_crystals, crystal_of_each
from ..diffraction.scores import NOT_INDEXED, has_scores

TO_PICTURE = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""Axes of the picture in those of py4DSTEM: x to the right is Ry, y downwards is Rx, and z points
into the picture."""


class PhaseOfMap(NamedTuple):
    """A crystal, as other programs describe it."""

    name: str
    formula: str
    laue_class: str
    """As in "m-3m"."""
    cell: tuple[float, ...]
    """a, b, c in Angstrom, alpha, beta, gamma in degrees; empty if it is not known."""
    crystal: Any
    """The Crystal of py4DSTEM, or None."""


class Indexed(NamedTuple):
    """Orientations of a scan."""

    matrices: NDArray[np.float64]
    """``(Rx, Ry, 3, 3)``, from the axes of the picture (`TO_PICTURE`) to those of the crystal."""
    score: NDArray[np.float64]
    """``(Rx, Ry)``, score or correlation."""
    phase: NDArray[np.int64]
    """``(Rx, Ry)``, number in `phases`; -1 where there is no cluster or no lattice."""
    phases: tuple[PhaseOfMap, ...]


def index_map(orientation: Any, crystal: Any) -> Indexed:
    """Orientations of an OrientationMap of the scan, or of a PhaseMap.

    `crystal` is a Crystal, or a dictionary of names and Crystals; None if it is not known.
    """
    if isinstance(orientation, PhaseMap):
        crystals = dict.fromkeys(orientation.names)
        if crystal is not None:
            crystals = crystal_of_each(crystal, orientation)
        phase = orientation.expand()
        phases = tuple(_describe(name, crystals[name]) for name in orientation.names)
        orientation = expand_orientation_map(orientation.labels, orientation.orientation)
    else:
        if isinstance(crystal, Mapping):
            if len(check_crystals(crystal)) != 1:
                raise ValueError(
                    f"{len(crystal)} crystals for a map of one crystal; give one crystal, or "
                    "phases from clusters.map_phases()"
                )
            name, crystal = next(iter(crystal.items()))
        else:
            name = "unknown" if crystal is None else _formula(crystal)
        phases = (_describe(name, crystal),)
        phase = np.zeros(orientation.matrix.shape[:2], dtype=np.int64)
    matrices = np.asarray(orientation.matrix[:, :, 0], dtype=float)
    corr = np.nan_to_num(orientation.corr[:, :, 0])
    # Where there is no match, expand_orientation_map leaves the identity and the correlation 0.
    known = has_orientation(matrices) & (corr > 0)
    if has_scores(orientation):
        known &= orientation.verdict != NOT_INDEXED
        corr = orientation.score
    return Indexed(
        np.where(known[..., None, None], matrices @ TO_PICTURE, np.eye(3)),
        np.where(known, corr, 0),
        np.where(known, phase, -1),
        phases,
    )


def _describe(name: str, crystal: Any) -> PhaseOfMap:
    if crystal is None:
        return PhaseOfMap(name, "", "-1", (), None)
    cell = tuple(float(value) for value in crystal.cell)
    return PhaseOfMap(name, _formula(crystal), laue_class(crystal), cell, crystal)


def _formula(crystal: Any) -> str:
    from py4DSTEM.process.diffraction.utils import element_symbols

    numbers, counts = np.unique(np.asarray(crystal.numbers, dtype=int), return_counts=True)
    counts = counts // np.gcd.reduce(counts)
    return "".join(
        element_symbols[number - 1] + (str(count) if count > 1 else "")
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
    )


def laue_class(crystal: Any) -> str:
    """Laue class of a crystal, as in "m-3m", from its rotations."""
    rotations = get_symmetry(crystal)
    turns = np.degrees(np.arccos(np.clip((np.trace(rotations, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    largest = max((fold for fold in (2, 3, 4, 6) if np.isclose(turns, 360 / fold).any()), default=1)
    known = {
        (1, 1): "-1", (2, 2): "2/m", (4, 2): "mmm", (4, 4): "4/m", (8, 4): "4/mmm", (3, 3): "-3",
        (6, 3): "-3m", (6, 6): "6/m", (12, 6): "6/mmm", (12, 3): "m-3", (24, 4): "m-3m",
    }  # fmt: skip
    return known.get((len(rotations), largest), "-1")
