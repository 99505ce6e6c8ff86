"""Figures of grains that overlap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from ..base.checks import check_choice
from .maps import plot_clusters
from .style import axes_or_new, bare_frame, cluster_colors, draw_scale_bar, hatch

_MAPS = {
    "purity": "share of the strongest grain",
    "residual": "part of the pattern that no grain explains",
    "above": "grains above one another",
}
"""What `plot_overlaps` can show beside the grains, with the labels of the colour bar."""


def plot_overlaps(
    grains: Any,
    ax: Axes | None = None,
    *,
    show: str = "grains",
    scale_bar: bool | Mapping[str, Any] = True,
    **options: Any,
) -> Axes:
    """Draw grains that overlap, with the outline of each support.

    Parameters
    ----------
    grains : OverlappingGrains
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure.
    show : str
        "grains": the strongest grain at each position, overlaps hatched. "purity": the share of the
        strongest grain. "above": how many grains lie above one another. "residual": the part of
        each pattern that the grains do not explain.
    scale_bar : bool or dict
        As in `plot_clusters`.
    **options
        Those of `plot_clusters` for "grains", such as `image`, `alpha`, `numbers`; and `title`.

    Returns
    -------
    matplotlib Axes
        Grains that are never alone have dashed outlines.

    Raises
    ------
    ValueError
        If `show` is none of these.

    Examples
    --------
    >>> from py4dstem_clustering import simulate_sample
    >>> sample = simulate_sample("stacked", (24, 20), (32, 30), seed=1)
    >>> ax = plot_overlaps(sample.datacube.find_overlaps(progress_bar=False))
    """
    check_choice("show", show, ("grains", *_MAPS))
    clusters = grains.clusters
    colors = cluster_colors(clusters.labels, clusters.n_clusters)
    if show == "grains":
        ax = plot_clusters(clusters, ax, **{"contours": False, "scale_bar": scale_bar, **options})
        hatch(ax, grains.n_above > 1)
    else:
        ax = _plot_map(grains, axes_or_new(ax), show, scale_bar, **options)
        colors = np.tile((1.0, 1, 1, 1) if show == "above" else (0.0, 0, 0, 1), (len(colors), 1))
    for k in range(grains.n_grains):
        style = "--" if grains.never_alone[k] else "-"
        for points in grains.contours(k):
            ax.plot(points[:, 1], points[:, 0], style, color=colors[k], linewidth=1.4)
    return ax


def _plot_map(
    grains: Any, ax: Axes, show: str, scale_bar: bool | Mapping[str, Any], title: str | None = None
) -> Axes:
    """A map of all grains, with a colour bar."""
    there = grains.n_above > 0
    bar: dict[str, Any] = {"label": _MAPS[show], "fraction": 0.046, "pad": 0.04}
    if show == "above":
        most = max(2, int(grains.n_above.max(initial=0)))
        colors = plt.get_cmap("viridis")(np.linspace(0.3, 0.95, most))
        picture = ax.imshow(
            grains.n_above,
            cmap=ListedColormap([(0.25, 0.25, 0.25, 1), *colors]),
            vmin=-0.5,
            vmax=most + 0.5,
            interpolation="nearest",
        )
        bar["ticks"] = range(most + 1)
    else:
        values: Any = np.ma.masked_array(getattr(grains, show), ~there)
        low = 0.0 if show == "residual" else 1 / max(2, int(grains.n_above.max(initial=0)))
        picture = ax.imshow(values, cmap="viridis", vmin=low, vmax=1, interpolation="nearest")
    ax.figure.colorbar(picture, ax=ax, **bar)
    bare_frame(ax, title)
    step = grains.clusters.pixel_size, grains.clusters.pixel_units
    draw_scale_bar(
        ax, scale_bar, step, there.shape[1], color="white" if show == "above" else "black"
    )
    return ax
