"""Figures of diffraction patterns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from ..base.checks import check_integer, check_number, values_of
from ..kernels.blocks import read_window
from ..scan.calibration import detector_step
from .style import OUTLINE, axes_or_new, bare_frame, cluster_colors, draw_scale_bar


def plot_averages(
    averages: Any,
    ax: Axes | None = None,
    *,
    labels: Sequence[int] | None = None,
    columns: int | None = None,
    power: float = 0.25,
    bragg: Any = None,
    scale_bar: bool | Mapping[str, Any] = True,
) -> Axes:
    """Draw cluster averages as a grid of diffraction patterns.

    Parameters
    ----------
    averages : DataCube (N, 1, Qx, Qy)
        Result of ``datacube.get_clustered_datacube()``.
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure.
    labels : sequence of int, optional
        Clusters to draw, in this order; by default the first 30.
    columns : int, optional
        Patterns side by side; by default such that the grid is about as wide as high.
    power : float
        Exponent of the intensities that are drawn. A power below 1 makes weak disks visible beside
        the direct beam. Colours cover the 1st to the 99.9th percentile of each pattern.
    bragg : BraggVectors, (N, 1), optional
        Disks of the averages, drawn as rings; each name then has their number, the direct beam
        counted.
    scale_bar : bool or dict
        As in `plot_clusters`; "length" is in the unit of the detector pixels.

    Returns
    -------
    matplotlib Axes
        Frames have the colours of `plot_clusters` when the averages carry their clusters.

    Examples
    --------
    >>> clusters = datacube.cluster(threshold=0.98, min_size=5, progress_bar=False)
    >>> ax = plot_averages(datacube.get_clustered_datacube(progress_bar=False))
    """
    data = _check_patterns("averages", averages)
    if data.shape[1] != 1:
        raise ValueError(
            f"averages of shape {data.shape} must be (N, 1, Qx, Qy); plot_patterns draws a scan"
        )
    chosen = list(range(min(len(data), 30))) if labels is None else list(labels)
    for label in chosen:
        if check_integer("label", label, 0) >= len(data):
            raise ValueError(f"label {label} does not exist; there are {len(data)} averages")
    colors = None
    clusters = getattr(averages, "clusters", None)
    if clusters is not None and clusters.n_clusters == len(data):
        colors = cluster_colors(clusters.labels, len(data))[chosen]
    positions = [(label, 0) for label in chosen]
    names = [str(label) for label in chosen]
    disks = None
    if bragg is not None:
        if tuple(getattr(bragg, "shape", ())) != data.shape[:2]:
            raise ValueError(
                f"bragg must hold the disks of the averages, of shape {data.shape[:2]}, not "
                f"{getattr(bragg, 'shape', type(bragg).__name__)}"
            )
        found = [bragg.raw[label, 0].data for label in chosen]
        disks = [np.stack([one["qx"], one["qy"]], axis=1) for one in found]
        names = [f"{n}: {len(one)} disks" for n, one in zip(names, disks, strict=True)]
    return _draw_patterns(
        averages, data, positions, names, colors, ax, columns, power, scale_bar, disks
    )


def plot_patterns(
    datacube: Any,
    positions: ArrayLike,
    ax: Axes | None = None,
    *,
    columns: int | None = None,
    power: float = 0.25,
    scale_bar: bool | Mapping[str, Any] = True,
) -> Axes:
    """Draw the diffraction patterns of some scan positions as a grid.

    Parameters
    ----------
    datacube : DataCube (Rx, Ry, Qx, Qy)
    positions : array-like of int, (n, 2)
        Scan positions (rx, ry), such as ``clusters.seeds`` for a comparison with the averages, or
        the first positions of ``clusters.growth_order(0)``.
    ax, columns, power, scale_bar
        As in `plot_averages`.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> clusters = datacube.cluster(threshold=0.98, progress_bar=False)
    >>> ax = plot_patterns(datacube, clusters.growth_order(0)[:6])
    """
    data = _check_patterns("datacube", datacube)
    places = np.asarray(positions)
    if places.ndim != 2 or places.shape[1] != 2 or places.dtype.kind not in "iu":
        raise ValueError("positions must be scan positions (rx, ry): whole numbers, (n, 2)")
    if ((places < 0) | (places >= data.shape[:2])).any():
        raise ValueError(f"positions must lie inside the scan of {tuple(data.shape[:2])}")
    chosen = [(rx, ry) for rx, ry in places.tolist()]
    names = [f"{rx}, {ry}" for rx, ry in chosen]
    return _draw_patterns(datacube, data, chosen, names, None, ax, columns, power, scale_bar)


def _check_patterns(name: str, item: Any) -> Any:
    """Data of a DataCube or an array, checked to have four axes."""
    data = values_of(item)
    if np.ndim(data) != 4:
        raise ValueError(f"{name} of shape {np.shape(data)} must have four axes")
    return data


def _draw_patterns(
    item: Any,
    data: Any,
    positions: list[tuple[int, int]],
    names: list[str],
    colors: NDArray[Any] | None,
    ax: Axes | None,
    columns: int | None,
    power: float,
    scale_bar: bool | Mapping[str, Any],
    disks: list[NDArray[Any]] | None = None,
) -> Axes:
    """Draw patterns as tiles of one picture, each with a name and a frame."""
    power = check_number("power", power, 1e-3)
    if not positions:
        raise ValueError("there is nothing to draw: name at least one pattern")
    columns = int(np.ceil(np.sqrt(len(positions)))) if columns is None else columns
    columns = min(check_integer("columns", columns, 1), len(positions))
    rows = -(-len(positions) // columns)

    ax = axes_or_new(ax)
    qx, qy = data.shape[2:]
    gap = max(1, round(0.04 * max(qx, qy)))
    for place, position in enumerate(positions):
        row, column = divmod(place, columns)
        top, left = row * (qx + gap), column * (qy + gap)
        pattern = read_window(data, *((k, k + 1) for k in position))[0, 0].astype(np.float64)
        pattern = np.clip(pattern, 0, None) ** power
        low, high = np.nanpercentile(pattern, (1, 99.9)) if np.isfinite(pattern).any() else (0, 1)
        extent = (left - 0.5, left + qy - 0.5, top + qx - 0.5, top - 0.5)
        ax.imshow(pattern, cmap="inferno", vmin=low, vmax=high, extent=extent)
        color = "0.5" if colors is None else colors[place]
        if disks is not None:
            rows_of, columns_of = disks[place].T
            size = min((240 / columns / max(qx, qy)) ** 2 * 10, 60)
            ax.scatter(
                left + columns_of, top + rows_of, size, facecolors="none", edgecolors="cyan", lw=0.8
            )
        corner = (left - 0.5, top - 0.5)
        ax.add_patch(Rectangle(corner, qy, qx, fill=False, edgecolor=color, linewidth=2))
        ax.text(
            left + 0.03 * qy,
            top + 0.03 * qx,
            names[place],
            color="white",
            ha="left",
            va="top",
            fontsize=np.clip(60 / columns, 3, 8),
            path_effects=OUTLINE,
        )
    ax.set_xlim(-gap, columns * (qy + gap))
    ax.set_ylim(rows * (qx + gap), -gap)
    bare_frame(ax, None)
    ax.set_frame_on(False)
    ax.set_xlabel(f"intensity to the power {power:g}, each scaled by itself", fontsize=7)
    # The bar is black if the last row has an empty tile for it; otherwise it is white on a pattern.
    color = "black" if len(positions) < rows * columns else "white"
    draw_scale_bar(ax, scale_bar, detector_step(item), qy, color=color)
    return ax
