"""Grain: one cluster of a scan, as ``clusters[k]`` and ``for grain in clusters`` give it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..plotting.html import card, figure_png
from ..scan.axes import unit_sign
from .measuring import find_outlines, measure_properties


@dataclass(frozen=True, eq=False, repr=False)
class Grain:
    """One cluster; from ``clusters[k]``. It never changes.

    Where a label is asked for, a grain can be given: ``clusters.members(grain)``.

    Attributes
    ----------
    clusters : Clusters
        The clusters that it is one of.
    label : int
        Its label.

    Examples
    --------
    >>> clusters = datacube.cluster(threshold=0.995, min_size=5, progress_bar=False)
    >>> grain = clusters[1]
    >>> grain
    Grain(1, 10 positions, 40 nm², equivalent diameter 7.14 nm)
    >>> grain.members[0].tolist()
    [3, 7]
    >>> [grain.label for grain in clusters if not grain.properties["touches_border"]]
    []
    """

    clusters: Any
    label: int

    def __reduce__(self) -> tuple[Any, ...]:
        return Grain, (self.clusters, self.label)  # what is cached is made again

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Map of the scan, True where the grain is, (Rx, Ry)."""
        return _read_only(self.clusters.labels == self.label)

    @cached_property
    def members(self) -> NDArray[np.int64]:
        """Scan positions (rx, ry), (n, 2), row by row."""
        return _read_only(np.argwhere(self.mask))

    @cached_property
    def contours(self) -> tuple[NDArray[np.float64], ...]:
        """Closed contours, each (n, 2), in scan positions; see `Clusters.contours`."""
        return tuple(_read_only(points) for points in find_outlines(self.mask))

    @cached_property
    def properties(self) -> Mapping[str, Any]:
        """Size, shape and place, by the names of the fields of `Clusters.properties`."""
        clusters = self.clusters
        (row,) = measure_properties(
            np.where(self.mask, 0, -1),
            clusters.seeds[self.label : self.label + 1],
            clusters.similarity_mean,
            clusters.pixel_size,
        )
        values = {name: row[name].item() for name in row.dtype.names}
        return MappingProxyType({**values, "label": self.label})

    @property
    def seed(self) -> tuple[int, int]:
        """Scan position (rx, ry) of the seed."""
        rx, ry = self.clusters.seeds[self.label].tolist()
        return rx, ry

    @property
    def size(self) -> int:
        """Number of scan positions."""
        return len(self.members)

    @property
    def area(self) -> float:
        """Area, in the square of ``clusters.pixel_units``."""
        return self.size * self.clusters.pixel_size**2

    @property
    def is_background(self) -> bool:
        """Whether it is a region without Bragg peaks that was kept as a cluster."""
        return self.label in self.clusters.background

    @property
    def average(self) -> NDArray[np.float32] | None:
        """Its average pattern, (Qx, Qy); None if ``clusters.averages`` is None."""
        averages = self.clusters.averages
        return None if averages is None else averages[self.label]

    def __repr__(self) -> str:
        size, *rest = self._facts().items()
        parts = [str(self.label), size[1]]
        parts += [value if key == "area" else f"{key} {value}" for key, value in rest]
        return f"Grain({', '.join(parts)}{', background' if self.is_background else ''})"

    def _facts(self) -> dict[str, str]:
        """Its main numbers with their units."""
        facts = {"size": f"{self.size} position{'s' * (self.size != 1)}"}
        units = self.clusters.pixel_units
        if units != "pixels":
            scale, unit = (0.1, "nm") if units == "A" else (1.0, unit_sign(units))
            diameter = self.properties["equivalent_diameter"] * scale
            facts["area"] = f"{self.area * scale**2:.3g} {unit}²"
            facts["equivalent diameter"] = f"{diameter:.3g} {unit}"
        return facts

    def _repr_html_(self) -> str:
        facts = self._facts()
        facts["seed"] = "{}, {}".format(*self.seed)
        facts["touches the border"] = "yes" if self.properties["touches_border"] else "no"
        png = figure_png(self._draw, (4.4 if self.average is not None else 2.2, 2.2))
        return card(f"Grain {self.label}", facts, png)

    def _draw(self, figure: Any) -> None:
        """Draw where the grain lies, and its average pattern if there is one."""
        from ..plotting.maps import plot_clusters
        from ..plotting.style import bare_frame

        average = self.average
        axes = figure.subplots(1, 1 if average is None else 2, squeeze=False)[0]
        one = self.clusters.remove([k for k in range(self.clusters.n_clusters) if k != self.label])
        plot_clusters(one, axes[0], numbers=False)
        if average is not None:
            axes[1].imshow(np.clip(average, 0, None) ** 0.25, cmap="inferno")
            bare_frame(axes[1], None)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
