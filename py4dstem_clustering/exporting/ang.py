"""Orientation maps as .ang, the text format of EDAX that MTEX, orix and Dream.3D read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .indexed import Indexed, PhaseOfMap

_MICROMETRES = {"pm": 1e-6, "A": 1e-4, "nm": 1e-3, "um": 1.0, "mm": 1e3, "m": 1e6}
"""Units of the scan step in micrometres, the unit of .ang files."""

_CODES = {
    "-1": 1, "2/m": 20, "mmm": 22, "4/m": 4, "4/mmm": 42, "-3": 3, "-3m": 32, "6/m": 6,
    "6/mmm": 62, "m-3": 23, "m-3m": 43,
}  # fmt: skip
"""Numbers of the Laue classes in .ang files."""


def euler_angles(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
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


def write_ang(path: Path, indexed: Indexed, step: tuple[float, str]) -> None:
    """Write the orientations of a scan.

    x runs along Ry and y along Rx, and the specimen axes of the angles are the same: x to the
    right, y downwards, z into the picture. Positions that are not indexed have angles of 4 pi,
    phase 0 and a confidence of -1. Image quality is 0, confidence the score.
    """
    known = indexed.phase >= 0
    angles = np.full((*known.shape, 3), 4 * np.pi)
    angles[known] = euler_angles(indexed.matrices[known])
    size = step[0] * _MICROMETRES.get(step[1], 1.0)
    rows, columns = known.shape
    unit = "um" if step[1] in _MICROMETRES else "scan positions, because the step is not known"
    head = [
        "# written by py4dstem_clustering",
        f"# x along Ry, y along Rx, in {unit}; specimen axes: x right, y down, z into the picture",
    ]
    # The last phase first, as EDAX does.
    for number, phase in reversed(list(enumerate(indexed.phases, 1))):
        head += _phase_head(number, phase)
    head += [
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
    quality = np.where(known, indexed.score, -1.0)
    columns_of_file = (x, y, quality, np.where(known, indexed.phase + 1, 0))
    table = np.column_stack([angles.reshape(-1, 3), *(part.ravel() for part in columns_of_file)])
    lines = [
        f"{a:9.5f} {b:9.5f} {c:9.5f} {px:12.5f} {py:12.5f} {0.0:6.1f} {ci:6.3f} "
        f"{int(phase):2d} {0:6d} {0.0:6.3f}"
        for a, b, c, px, py, ci, phase in table
    ]
    path.write_text("\n".join([*head, *lines, ""]), encoding="utf-8")


def _phase_head(number: int, phase: PhaseOfMap) -> list[str]:
    """Lines of the head of the file that describe a phase."""
    cell = " ".join(f"{value:.4f}" for value in phase.cell)
    return [
        f"# Phase {number}",
        f"# MaterialName  \t{phase.name}",
        f"# Formula     \t{phase.formula}",
        "# Info",
        f"# Symmetry              {_CODES[phase.laue_class]}",
        *([f"# LatticeConstants      {cell}"] if cell else []),
        "# NumberFamilies        0",
        "#",
    ]
