"""Crystals for simulated scans: presets by name, or any Crystal of py4DSTEM."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_number

ACCELERATING_VOLTAGE = 300e3
"""Acceleration voltage of the electrons, volt, as in the paper."""

_FCC = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
_HCP = np.array([[1 / 3, 2 / 3, 1 / 4], [2 / 3, 1 / 3, 3 / 4]])
_DIAMOND = np.concatenate([_FCC, _FCC + 0.25])
_ROCK_SALT = np.concatenate([_FCC, _FCC + np.array([0.5, 0, 0])])


class _Preset(NamedTuple):
    """Positions and atomic numbers of the atoms of a cell, the cell, and how far atoms vibrate."""

    positions: NDArray[np.float64]
    numbers: list[int]
    cell: list[float]
    """Edges in Angstrom (and angles in degrees)."""
    displacements: dict[int, float]
    """Root mean square displacement along one axis at room temperature, Angstrom."""


PRESETS = {
    "gold": _Preset(_FCC, [79] * 4, [4.0782], {79: 0.089}),
    "aluminium": _Preset(_FCC, [13] * 4, [4.0496], {13: 0.104}),
    "silicon": _Preset(_DIAMOND, [14] * 8, [5.4310], {14: 0.076}),
    "NaCl": _Preset(_ROCK_SALT, [11] * 4 + [17] * 4, [5.6402], {11: 0.142, 17: 0.130}),
    "magnesium": _Preset(_HCP, [12] * 2, [3.2094, 3.2094, 5.2107, 90, 90, 120], {12: 0.149}),
    "titanium": _Preset(_HCP, [22] * 2, [2.9508, 2.9508, 4.6855, 90, 90, 120], {22: 0.080}),
}
"""Materials that have a name: room temperature, displacements from Debye-Waller factors."""


class Material(NamedTuple):
    """A crystal, and how far its atoms vibrate."""

    crystal: Any
    """A Crystal of py4DSTEM; nothing is written to it."""
    displacements: dict[int, float]
    """Root mean square displacement along one axis, Angstrom, of each atomic number."""

    @property
    def cubic(self) -> bool:
        """Whether the cell is a cube."""
        vectors = np.asarray(self.crystal.lat_real)
        metric = vectors @ vectors.T
        return bool(np.allclose(metric, metric[0, 0] * np.eye(3), rtol=0, atol=1e-3 * metric[0, 0]))

    def kinematical(self, k_max: float, accelerating_voltage: float = ACCELERATING_VOLTAGE) -> Any:
        """A copy of the crystal with structure factors out to `k_max`, 1/Angstrom, and voltage."""
        crystal = deepcopy(self.crystal)
        crystal.calculate_structure_factors(k_max)
        crystal.setup_diffraction(accelerating_voltage)
        return crystal

    def dynamical(self, k_max: float, accelerating_voltage: float) -> Any:
        """A copy with the structure factors that Bloch waves need, absorption included.

        `k_max` is the length of the longest difference of two beams, 1/Angstrom.
        """
        crystal = deepcopy(self.crystal)
        with contextlib.redirect_stdout(io.StringIO()):
            crystal.calculate_dynamical_structure_factors(
                accelerating_voltage,
                method="WK-CP",
                k_max=k_max,
                thermal_sigma=self.displacements,
                recompute_kinematic_structure_factors=False,
                g_vec_precision=4,
            )
        return crystal


def named_material(name: str) -> Material:
    """One of `PRESETS`."""
    from py4DSTEM.process.diffraction import Crystal

    preset = PRESETS[name]
    cell = preset.cell[0] if len(preset.cell) == 1 else np.array(preset.cell)
    crystal = Crystal(preset.positions, np.array(preset.numbers), cell)
    return Material(crystal, dict(preset.displacements))


def crystal_of_gold(k_max: float) -> Any:
    """py4DSTEM's Crystal of gold, with structure factors out to `k_max`, 1/Angstrom."""
    return named_material("gold").kinematical(k_max)


def check_materials(materials: Any, displacement: Any) -> tuple[Material, ...]:
    """Return the materials of a name, of a Crystal, or of a sequence of these.

    `displacement` is that of the atoms of Crystals: Angstrom, or a dictionary from atomic numbers.
    """
    if isinstance(materials, str) or not isinstance(materials, (tuple, list)):
        materials = (materials,)
    if not materials:
        raise ValueError(f"{materials=} must have at least one material")
    return tuple(_material(item, displacement) for item in materials)


def _material(item: Any, displacement: Any) -> Material:
    from py4DSTEM.process.diffraction import Crystal

    names = ", ".join(map(repr, PRESETS))
    if isinstance(item, str):
        if item not in PRESETS:
            raise ValueError(f"materials={item!r} must be one of {names}, or a py4DSTEM Crystal")
        return named_material(item)
    if not isinstance(item, Crystal):
        raise TypeError(
            f"materials={item!r} must be one of {names}, or a py4DSTEM Crystal, "
            f"not {type(item).__name__}"
        )
    elements = [int(z) for z in np.unique(item.numbers)]
    if isinstance(displacement, Mapping):
        missing = [z for z in elements if z not in displacement]
        if missing:
            raise ValueError(
                f"thermal_displacement={displacement!r} must have a value for each atomic number "
                f"of the crystal; add {missing}"
            )
        found = {z: displacement[z] for z in elements}
    else:
        found = dict.fromkeys(elements, displacement)
    return Material(
        item, {z: check_number("thermal_displacement", u, 0.01, 1) for z, u in found.items()}
    )
