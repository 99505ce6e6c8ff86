"""A table of clusters that prints itself, with units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.frozen import Frozen
from ..scan.axes import unit_sign

_SHOWN = ("label", "size", "area", "equivalent_diameter", "centroid_rx", "centroid_ry",
          "major_axis", "minor_axis", "similarity", "alone_part", "mean_share",
          "touches_border")  # fmt: skip
"""Columns of the text; the notebook shows all."""

_N_PRINTED = 40
"""Rows that are printed."""


def property_units(pixel_units: str) -> dict[str, str]:
    """Units of the fields of `Clusters.properties`."""
    lengths = ("equivalent_diameter", "major_axis", "minor_axis", "perimeter")
    units = {"area": f"{pixel_units}^2", "orientation": "rad"}
    return units | dict.fromkeys(lengths, pixel_units)


@dataclass(frozen=True, eq=False, repr=False)
class ClusterTable(Frozen):
    """The properties of all clusters as a table; from ``clusters.table()``.

    ``print(table)`` writes it with units, a notebook shows it, ``table["area"]`` is a column and
    ``table[3]`` a row. For pandas: ``pandas.DataFrame(numpy.asarray(table))``.

    Attributes
    ----------
    rows : structured ndarray, (N,)
        The fields of `Clusters.properties`.
    units : dict
        Units of the fields that have one.
    """

    rows: NDArray[Any]
    units: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)

    def __getitem__(self, key: Any) -> Any:
        return self.rows[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if dtype is not None and np.dtype(dtype) != self.rows.dtype:
            raise TypeError(f"a table is no array of {np.dtype(dtype)}; take a column of it")
        return self.rows.copy() if copy else self.rows

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return self.rows.dtype.names or ()

    def _heads(self, names: tuple[str, ...]) -> list[str]:
        heads = []
        for name in names:
            unit = self.units.get(name, "")
            unit = unit_sign(unit.removesuffix("^2")) + "²" * unit.endswith("^2")
            heads.append(f"{name.replace('_', ' ')} ({unit})" if unit else name.replace("_", " "))
        return heads

    def _cells(self, names: tuple[str, ...], n: int) -> list[list[str]]:
        return [[_text(row[name].item()) for name in names] for row in self.rows[:n]]

    def __repr__(self) -> str:
        names = tuple(name for name in _SHOWN if name in self.names)
        lines = [self._heads(names), *self._cells(names, _N_PRINTED)]
        widths = [max(len(line[k]) for line in lines) for k in range(len(names))]
        text = "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        )
        return text + _rest(len(self), "\n")

    def _repr_html_(self) -> str:
        return f'<div style="overflow-x:auto">{self.to_html()}{_rest(len(self), "")}</div>'

    def to_html(self, n: int = _N_PRINTED) -> str:
        """The first `n` rows as an HTML table."""
        head = "".join(f"<th>{escape(name)}</th>" for name in self._heads(self.names))
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
            for cells in self._cells(self.names, n)
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: Any) -> str:
    """A value as text: yes or no, or a number with four digits or all before the point."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def _rest(n: int, before: str) -> str:
    """How many rows are not shown."""
    return f"{before}... and {n - _N_PRINTED} more" if n > _N_PRINTED else ""
