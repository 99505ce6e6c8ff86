"""Figure of grains that overlap."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from .maps import plot_clusters
from .style import cluster_colors, hatch


def plot_overlaps(grains: Any, ax: Axes | None = None, **options: Any) -> Axes:
    """Draw the strongest grain at each position, the outline of each support, and hatch overlaps.

    Parameters
    ----------
    grains : OverlappingGrains
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure.
    **options
        Those of `plot_clusters`, such as `image`, `alpha`, `numbers` and `title`.

    Returns
    -------
    matplotlib Axes
        Grains that are never alone have dashed outlines.

    Examples
    --------
    >>> from py4dstem_clustering import simulate_sample
    >>> sample = simulate_sample("stacked", (24, 20), (32, 30), seed=1)
    >>> ax = plot_overlaps(sample.datacube.find_overlaps(progress_bar=False))
    """
    clusters = grains.clusters
    ax = plot_clusters(clusters, ax, **{"contours": False, **options})
    colors = cluster_colors(clusters.labels, clusters.n_clusters)
    hatch(ax, grains.n_above > 1)
    for k in range(grains.n_grains):
        style = "--" if grains.never_alone[k] else "-"
        for points in grains.contours(k):
            ax.plot(points[:, 1], points[:, 0], style, color=colors[k], linewidth=1.4)
    return ax
