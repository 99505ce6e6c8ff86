"""Figures of the scan. Each function draws into `ax` and returns `ax`; none calls ``show()``.

The first scan axis runs downwards, as in py4DSTEM's own pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from ..base.checks import check_integer, check_number, check_same_scan, values_of
from ..scan.virtual import scattered_image
from .style import (
    OUTLINE,
    axes_or_new,
    bare_frame,
    cluster_colors,
    draw_scale_bar,
    free_corner,
    grey_limits,
    write_text,
)


def plot_similarity(
    similarity: Any,
    ax: Axes | None = None,
    *,
    direction: int | None = None,
    scale_bar: bool | Mapping[str, Any] = True,
) -> Axes:
    """Draw a similarity as a map of the scan, with a colour bar.

    Parameters
    ----------
    similarity : Similarity
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure.
    direction : int, optional
        Direction of the neighbour, 0 to 7; by default the mean over all directions.
    scale_bar : bool or dict
        As in `plot_clusters`.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> ax = plot_similarity(datacube.get_similarity(progress_bar=False))
    """
    if direction is None:
        image, what = similarity.mean, "mean similarity"
    else:
        direction = check_integer("direction", direction, 0)
        if direction > 7:
            raise ValueError(f"direction={direction} must be from 0 to 7")
        image = similarity.data[..., direction]
        what = f"similarity with the neighbour at {similarity.directions[direction]}"
    ax = axes_or_new(ax)
    picture = ax.imshow(image, cmap="viridis", interpolation="nearest")
    ax.figure.colorbar(picture, ax=ax, label=what, fraction=0.046, pad=0.04)
    bare_frame(ax, None)
    step = similarity.pixel_size, similarity.pixel_units
    draw_scale_bar(ax, scale_bar, step, similarity.shape[1])
    return ax


def plot_residual(
    filtered: Any, ax: Axes | None = None, *, limit: float = 2, scale_bar: Any = True
) -> Axes:
    """Draw what the low-rank filter could not explain, and mark odd positions.

    Parameters
    ----------
    filtered : DataCube
        Result of `filter_lowrank`.
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure.
    limit : float
        Positions get a ring where the residual is above it, relative to noise. Noise alone leaves
        about 1, and seldom more than 1.3 (detectors of 96 x 90 pixels and larger).
    scale_bar : bool or dict
        As in `plot_clusters`.

    Returns
    -------
    matplotlib Axes
        Rings also mark positions that kept values of their own in a part of the detector.

    Raises
    ------
    ValueError
        If the scan was not filtered by `filter_lowrank`.

    Examples
    --------
    >>> ax = plot_residual(datacube.filter_lowrank(progress_bar=False))
    """
    limit = check_number("limit", limit, 0)
    try:
        residual, kept = (np.asarray(filtered.tree(name).data) for name in ("residual", "kept"))
    except (AttributeError, AssertionError, KeyError):
        raise ValueError(
            "filtered has no residual map; give the result of filter_lowrank()"
        ) from None
    ax = axes_or_new(ax)
    picture = ax.imshow(
        residual, cmap="viridis", interpolation="nearest", vmin=min(0.5, residual.min()), vmax=limit
    )
    ax.figure.colorbar(
        picture, ax=ax, label="residual / noise (power)", fraction=0.046, pad=0.04, extend="max"
    )
    x, y = np.nonzero((residual > limit) | (kept > 0))
    ax.plot(y, x, "o", color="#D55E00", markerfacecolor="none", markersize=6)
    bare_frame(ax, None)
    calibration = filtered.calibration
    step = calibration.get_R_pixel_size(), calibration.get_R_pixel_units()
    draw_scale_bar(ax, scale_bar, step, residual.shape[1])
    return ax


def plot_clusters(
    clusters: Any,
    ax: Axes | None = None,
    *,
    image: Any = None,
    alpha: float = 0.45,
    contours: bool = True,
    numbers: bool | None = None,
    seeds: bool = False,
    title: str | None = None,
    scale_bar: bool | Mapping[str, Any] = True,
) -> Axes:
    """Draw the label map over an image, with contours and a scale bar.

    Parameters
    ----------
    clusters : Clusters
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure.
    image : array-like (Rx, Ry) or DataCube, optional
        Grey picture below the colours, such as a virtual image; by default the mean similarity. Of
        a DataCube, the scan that was clustered, it is the virtual image of all that is scattered
        beyond the direct beam; for that the scan is read once.
    alpha : float
        Opacity of the colours, 0 to 1; 0 for contours only.
    contours : bool
        Draw the outline of each cluster.
    numbers : bool, optional
        Write the number of each cluster; by default when there are at most 30.
    seeds : bool
        Mark the seed of each cluster.
    title : str, optional
        Written above the picture; by default nothing.
    scale_bar : bool or dict
        False draws no scale bar. A dict chooses its place, colour or length, where the rest stays
        automatic: ``{"loc": "upper left", "color": "black", "length": 50}``. "loc" is a corner,
        such as "lower right"; "length" is in the unit of the scan step.

    Returns
    -------
    matplotlib Axes
        Clusters that touch never share a colour.

    Examples
    --------
    >>> clusters = datacube.cluster(threshold=0.9, min_size=5, progress_bar=False)
    >>> ax = plot_clusters(clusters, seeds=True)
    >>> ax = plot_clusters(clusters, image=datacube, scale_bar={"loc": "upper left"})
    """
    alpha = check_number("alpha", alpha, 0, 1)
    grey = clusters.similarity_mean
    if image is not None:
        grey = _grey_picture(image, clusters.shape)
    ax = axes_or_new(ax)
    colors = cluster_colors(clusters.labels, clusters.n_clusters)
    low, high = grey_limits(grey)
    ax.imshow(grey, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    if clusters.n_clusters and alpha > 0:
        overlay = np.ma.masked_less(clusters.labels, 0)
        ax.imshow(
            overlay,
            cmap=ListedColormap(colors),
            vmin=-0.5,
            vmax=clusters.n_clusters - 0.5,
            alpha=alpha,
            interpolation="nearest",
        )
    if numbers is None:
        numbers = clusters.n_clusters <= 30
    written = []
    for k in range(clusters.n_clusters):
        if contours:
            for points in clusters.contours(k):
                ax.plot(points[:, 1], points[:, 0], color=colors[k], linewidth=1.2)
        if numbers:
            written.append(_deepest_place(clusters.labels == k))
            write_text(ax, written[-1], str(k))
    if seeds and clusters.n_clusters:
        ax.plot(
            clusters.seeds[:, 1],
            clusters.seeds[:, 0],
            "+",
            color="white",
            markersize=8,
            path_effects=OUTLINE,
        )
    ax.set_xlim(-0.5, clusters.shape[1] - 0.5)
    ax.set_ylim(clusters.shape[0] - 0.5, -0.5)
    bare_frame(ax, title)
    loc = free_corner(clusters.shape, written)
    step = clusters.pixel_size, clusters.pixel_units
    draw_scale_bar(ax, scale_bar, step, clusters.shape[1], loc=loc)
    return ax


def _grey_picture(image: Any, shape: tuple[int, int]) -> NDArray[np.float64]:
    """A map of the scan, or the virtual image of a scan, that is drawn below a label map."""
    values = values_of(image)
    if np.ndim(values) == 4:
        check_same_scan("clusters", shape, values.shape[:2])
        return scattered_image(image)
    grey = np.asarray(values, dtype=np.float64)
    if grey.shape != shape:
        raise ValueError(f"image of shape {grey.shape} must have the shape of the scan, {shape}")
    return grey


def _deepest_place(inside: NDArray[np.bool_]) -> tuple[int, ...]:
    """Position farthest from the border of a cluster; the centroid may lie outside of it."""
    depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    return np.unravel_index(depth.argmax(), depth.shape)


def plot_growth(
    clusters: Any,
    ax: Axes | None = None,
    *,
    label: int | None = None,
    scale_bar: bool | Mapping[str, Any] = True,
) -> Axes:
    """Draw the order in which positions joined a cluster, from the seed outwards.

    Parameters
    ----------
    clusters : Clusters
        Clusters from the method "grow".
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure.
    label : int, optional
        One cluster; by default all.
    scale_bar : bool or dict
        As in `plot_clusters`.

    Returns
    -------
    matplotlib Axes
        Colours show the step at which a position joined. The seed has step 0, and shows the number
        of the cluster. Any other position has one step more than the neighbour to which it joined.

    Examples
    --------
    >>> clusters = datacube.cluster(threshold=0.98, progress_bar=False)
    >>> ax = plot_growth(clusters, label=0)
    """
    chosen = range(clusters.n_clusters) if label is None else [label]
    steps = np.full(clusters.shape, -1)
    for k in chosen:
        grown = clusters.growth_steps(k)
        steps[grown >= 0] = grown[grown >= 0]

    ax = axes_or_new(ax)
    low, high = grey_limits(clusters.similarity_mean)
    ax.imshow(clusters.similarity_mean, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    picture = ax.imshow(np.ma.masked_less(steps, 0), cmap="viridis", interpolation="nearest")
    ax.figure.colorbar(picture, ax=ax, label="growth step", fraction=0.046, pad=0.04)
    written = [clusters.seeds[k] for k in chosen] if len(chosen) <= 30 else []
    for k, place in zip(chosen, written, strict=False):
        write_text(ax, place, str(k))
    bare_frame(ax, None)
    loc = free_corner(clusters.shape, written)
    step = clusters.pixel_size, clusters.pixel_units
    draw_scale_bar(ax, scale_bar, step, clusters.shape[1], loc=loc)
    return ax
