"""Orientation maps as .ang, the text format of EDAX that MTEX, orix and Dream.3D read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..diffraction.misorientation import get_symmetry, has_orientation

_MICROMETRES = {"pm": 1e-6, "A": 1e-4, "nm": 1e-3, "um": 1.0, "mm": 1e3, "m": 1e6}
"""Units of the scan step in micrometres, the unit of .ang files."""

_TO_PICTURE = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""Axes of the picture in those of py4DSTEM: x to the right is Ry, y downwards is Rx, and z points
into the picture."""


def euler_angles(matrices: NDArray[Any]) -> NDArray[np.float64]:
    """Bunge's angles phi1, Phi, phi2 (..., 3) in radians, of matrices from specimen to crystal.

    The angles are those of ``g = Z(phi2) X(Phi) Z(phi1)``, each a rotation of the axes. Where Phi
    is 0 or pi, phi2 is 0.
    """
    g = np.asarray(matrices, dtype=np.float64)
    middle = np.arccos(np.clip(g[..., 2, 2], -1, 1))
    flat = np.hypot(g[..., 2, 0], g[..., 2, 1]) < 1e-9
    first = np.arctan2(g[..., 2, 0], -g[..., 2, 1])
    last = np.arctan2(g[..., 0, 2], g[..., 1, 2])
    first = np.where(flat, np.arctan2(g[..., 0, 1], g[..., 0, 0]), first)
    last = np.where(flat, 0.0, last)
    return np.stack([first % (2 * np.pi), middle, last % (2 * np.pi)], axis=-1)


def _symmetry_code(crystal: Any) -> int:
    """The number of a Laue group in .ang files."""
    rotations = get_symmetry(crystal)
    turns = np.degrees(np.arccos(np.clip((np.trace(rotations, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    sixfold = bool(np.isclose(turns, 60).any())
    codes = {1: 1, 2: 20, 3: 3, 4: 22, 6: 6 if sixfold else 32, 8: 42, 24: 43}
    return {**codes, 12: 62 if sixfold else 23}.get(len(rotations), 1)


def write_ang(path: Path, orientation: Any, step: tuple[float, str], crystal: Any) -> None:
    """Write the best match of an OrientationMap (Rx, Ry).

    x runs along Ry and y along Rx, and the specimen axes of the angles are the same: x to the
    right, y downwards, z into the picture. Positions without an orientation have angles of 4 pi
    and a confidence of -1. Image quality is 0, confidence the correlation.
    """
    matrices = orientation.matrix[:, :, 0]
    known = has_orientation(matrices)
    angles = np.full((*known.shape, 3), 4 * np.pi)
    angles[known] = euler_angles(matrices[known] @ _TO_PICTURE)
    size = step[0] * _MICROMETRES.get(step[1], 1.0)
    rows, columns = known.shape
    symmetry = 1 if crystal is None else _symmetry_code(crystal)
    cell = "" if crystal is None else " ".join(f"{value:.4f}" for value in crystal.cell)
    unit = "um" if step[1] in _MICROMETRES else "scan positions, because the step is not known"
    head = [
        "# written by py4dstem_clustering",
        f"# x along Ry, y along Rx, in {unit}; specimen axes: x right, y down, z into the picture",
        "# Phase 1",
        "# MaterialName  \tunknown",
        "# Formula     \t",
        "# Info",
        f"# Symmetry              {symmetry}",
        *([f"# LatticeConstants      {cell}"] if cell else []),
        "# NumberFamilies        0",
        "#",
        "# GRID: SqrGrid",
        f"# XSTEP: {size:.6g}",
        f"# YSTEP: {size:.6g}",
        f"# NCOLS_ODD: {columns}",
        f"# NCOLS_EVEN: {columns}",
        f"# NROWS: {rows}",
        "#",
        "# OPERATOR: \t",
        "# SAMPLEID: \t",
        "# SCANID: \t",
        "#",
    ]
    y, x = np.indices(known.shape) * size
    quality = np.where(known, np.nan_to_num(orientation.corr[:, :, 0]), -1.0)
    table = np.column_stack([angles.reshape(-1, 3), x.ravel(), y.ravel(), quality.ravel()])
    lines = [
        f"{a:9.5f} {b:9.5f} {c:9.5f} {px:12.5f} {py:12.5f} {0.0:6.1f} {ci:6.3f} "
        f"{1 if ci >= 0 else 0:2d} {0:6d} {0.0:6.3f}"
        for a, b, c, px, py, ci in table
    ]
    path.write_text("\n".join([*head, *lines, ""]), encoding="utf-8")
