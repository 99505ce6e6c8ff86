"""Tables as CSV, and maps of the scan as TIFF."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def write_tiff(path: Path, labels: NDArray[Any], step: tuple[float, str]) -> None:
    """Write labels + 1 of a map (Rx, Ry) or of several (T, Rx, Ry), as ImageJ reads them.

    ImageJ knows the number of pixels for each unit, and the unit by its name.
    """
    from tifffile import imwrite

    kind = np.uint16 if labels.max(initial=0) < 2**16 - 1 else np.float32
    each = 1 / step[0]
    unit = {"A": "Å"}.get(step[1], step[1])
    unit = unit.encode("ascii", "backslashreplace").decode()  # as ImageJ itself writes it
    known = step[1] != "pixels"
    axes = {"axes": "TYX"} if labels.ndim == 3 else {}
    imwrite(
        path,
        (labels + 1).astype(kind),
        imagej=True,
        resolution=(each, each) if known else None,
        metadata=axes | ({"unit": unit} if known else {}),
    )


def write_table(path: Path, rows: NDArray[Any], units: Mapping[str, str]) -> None:
    """Write a structured array; the names of columns hold their units."""
    names = rows.dtype.names or ()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([f"{name} / {units[name]}" if name in units else name for name in names])
        writer.writerows([row[name].item() for name in names] for row in rows)
