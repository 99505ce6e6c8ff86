"""Colours of the label map: by cluster, size, phase, orientation or purity."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from ..grains.clusters import Clusters
from ..plotting.style import nth_color
from .shown import lasting_colors
from .source import Source

COLORINGS = ("cluster", "size", "phase", "orientation", "purity")
"""What the colours of the label map can show."""

CORNERS = ((1.0, 0.0, 0.0), (0.0, 0.7, 0.0), (0.0, 0.3, 1.0))
"""Colours of the three corners of the orientation triangle, as in py4DSTEM."""

UNKNOWN = 0.45
"""Grey of positions in clusters of which the value is not known."""


def size_colors(sizes: NDArray[Any]) -> NDArray[np.float64]:
    """RGB of each cluster by the logarithm of its size, (N, 3); the largest is the brightest."""
    logs = np.log(np.maximum(sizes, 1))
    low, high = logs.min(initial=np.inf), logs.max(initial=0)
    share = (logs - low) / (high - low) if high > low else np.ones(len(logs))
    return plt.get_cmap("viridis")(share)[:, :3]


def phase_colors(phase: NDArray[Any]) -> NDArray[np.float64]:
    """RGB of each scan position, (Rx, Ry, 3), from numbers of phases; negative or NaN is grey."""
    known = np.nan_to_num(phase, nan=-1).astype(int)
    table = [nth_color(k) for k in range(int(known.max(initial=0)) + 1)]
    return np.array([*table, [UNKNOWN] * 3])[np.where(known < 0, -1, known)]


def orientation_colors(orientation: Any, crystal: Any) -> NDArray[np.float64]:
    """RGB of each scan position, (Rx, Ry, 3), by the zone axis of its first match.

    The colours are those of ``crystal.plot_orientation_maps``, of out-of-plane directions; where
    there is no match (a correlation of 0) it is grey.
    """
    corners = np.asarray(crystal.orientation_zone_axis_range, dtype=np.float64)
    axes = (
        orientation.family
        if getattr(crystal, "pymatgen_available", False)
        else (orientation.matrix)
    )
    axis = np.asarray(axes)[:, :, 0, :, 2]
    share = np.clip(axis @ np.linalg.inv(corners), 0, 1)
    largest = share.max(axis=2, keepdims=True)
    share = np.divide(share, largest, out=np.zeros_like(share), where=largest > 0)
    rgb = np.clip(share @ np.array(CORNERS), 0, 1)
    rgb[~(np.asarray(orientation.corr)[:, :, 0] > 0)] = UNKNOWN
    return rgb


def purity_colors(purity: NDArray[Any]) -> NDArray[np.float64]:
    """RGB of each scan position, (Rx, Ry, 3), from purities of 0.5 (dark) to 1 (bright)."""
    rgb = plt.get_cmap("magma")(np.clip((purity - 0.5) / 0.5, 0, 1))[..., :3]
    rgb[~np.isfinite(purity)] = UNKNOWN
    return rgb


class Coloring:
    """Colours of the label map in a window.

    Parameters
    ----------
    source : Source

    Attributes
    ----------
    what : str
        What the colours show, one of `COLORINGS`.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.what = "cluster"
        self._numbers = np.full(source.shape, -1)
        self._purity: tuple[bytes, NDArray[Any]] | None = None

    def measure_purity(self, clusters: Clusters) -> None:
        """Measure the purity of clusters, which reads the scan."""
        self._purity = clusters.labels.tobytes(), purity_colors(self._source.purity(clusters))

    def colors_of(self, clusters: Clusters) -> tuple[NDArray[Any], str]:
        """Colours of each scan position, (Rx, Ry, 3), and a note on them for a title."""
        labels, note = clusters.labels, ""
        if self.what in self._source.colors:
            return self._source.colors[self.what], note
        if self.what == "purity":
            if self._purity is not None and self._purity[0] == labels.tobytes():
                return self._purity[1], "; purity 0.5 to 1"
            return np.full((*labels.shape, 3), UNKNOWN), "; press purity again"
        if self.what == "size":
            sizes = clusters.sizes
            if len(sizes):
                note = f"; sizes {sizes.min()} to {sizes.max()}"
            table = size_colors(sizes)
        else:
            number = lasting_colors(labels, clusters.n_clusters, self._numbers)
            self._numbers = np.append(number, -1)[labels]
            every = [nth_color(c) for c in range(int(number.max(initial=0)) + 1)]
            table = np.array(every)[number]
        return np.vstack([table, np.zeros(3)]).astype(np.float32)[labels], note
