"""Figures. Every function draws into `ax` and returns it; none calls ``show()``.

The first scan axis runs downwards, as in py4DSTEM's own pictures.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import matplotlib.patheffects
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap, hsv_to_rgb, rgb_to_hsv, to_rgb
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from scipy.ndimage import distance_transform_edt

from .base.checks import check_integer, check_number, values_of
from .kernels.blocks import read_window
from .kernels.regions import find_borders
from .scan.calibration import detector_step

# Okabe and Ito's colours, told apart by all common kinds of colour vision; black is left out.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")

OUTLINE = [matplotlib.patheffects.withStroke(linewidth=1.5, foreground="black")]


def axes_or_new(ax: Any) -> Any:
    """Axes that were given, or those of a new figure."""
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def bare_frame(ax: Any, title: str | None) -> None:
    """A frame without ticks, and a title."""
    ax.set_xticks([])
    ax.set_yticks([])
    if title:
        ax.set_title(title)


def add_scale_bar(
    ax: Any,
    pixel_size: float,
    units: str,
    n_pixels: int,
    *,
    loc: str = "lower right",
    color: str = "white",
) -> None:
    """A scale bar of 1, 2 or 5 times a power of ten, at most a quarter of the picture wide."""
    if not pixel_size > 0:
        return  # no scale that could be drawn
    target = 0.25 * n_pixels * pixel_size
    power = 10.0 ** np.floor(np.log10(target))
    length = max(m * power for m in (1, 2, 5) if m * power <= target * 1.0001)
    label, shown = {"A^-1": "Å⁻¹", "A": "Å"}.get(units, units), length
    if units == "A" and length >= 10:
        label, shown = "nm", length / 10
    if units == "pixels":
        label = "px"
    bar = AnchoredSizeBar(
        ax.transData,
        length / pixel_size,
        f"{shown:g} {label}",
        loc,
        color=color,
        pad=0.2,
        borderpad=0.8,
        sep=2,
        frameon=False,
        # Of the picture, not of a tile; less in a flat one.
        size_vertical=min(abs(np.subtract(*ax.get_xlim())), 2 * abs(np.subtract(*ax.get_ylim())))
        / 80,
    )
    if color == "white":
        # An outline rather than a box: it reads on any ground and hides less of the picture.
        bar.txt_label._text.set_path_effects(OUTLINE)
        bar.size_bar.get_children()[0].set(facecolor="white", edgecolor="black", linewidth=0.75)
    ax.add_artist(bar)


def free_corner(shape: tuple[int, int], places: list[Any]) -> str:
    """The corner for a scale bar in which nothing is written, the lower right if it is free."""
    for vertical, horizontal in product(("lower", "upper"), ("right", "left")):
        inside = [
            (x > 0.87 * shape[0] if vertical == "lower" else x < 0.13 * shape[0])
            and (y > 0.67 * shape[1] if horizontal == "right" else y < 0.33 * shape[1])
            for x, y in places
        ]
        if not any(inside):
            return f"{vertical} {horizontal}"
    return "lower right"


# --- colours ---------------------------------------------------------------------------------


def neighbour_pairs(labels: np.ndarray) -> np.ndarray:
    """Pairs of labels that touch, diagonals included, ``(n, 2)``; background left out."""
    borders = find_borders(labels)[0]
    return np.stack([borders.first, borders.second], axis=1)


def cluster_colors(labels: np.ndarray, n_clusters: int) -> np.ndarray:
    """RGB of each cluster ``(N, 3)``; clusters that touch never share a colour."""
    return pair_colors(neighbour_pairs(labels), n_clusters)


def pair_colors(pairs: np.ndarray, n_clusters: int) -> np.ndarray:
    """RGB of each cluster ``(N, 3)``; those of a pair, ``(n, 2)``, never share a colour.

    Greedy colouring, least connected last to be removed; among the colours that no neighbour has,
    the one used least. Where the palette is too small, lighter and darker versions follow.
    """
    touching: list[set[int]] = [set() for _ in range(n_clusters)]
    for a, b in pairs.tolist():
        touching[a].add(b)
        touching[b].add(a)

    # Take away the cluster with the fewest neighbours left, again and again; colour in reverse.
    degree = np.array([len(t) for t in touching])
    alive = np.ones(n_clusters, dtype=bool)
    order = []
    for _ in range(n_clusters):
        k = int(np.where(alive, degree, n_clusters).argmin())
        alive[k] = False
        order.append(k)
        degree[list(touching[k])] -= 1

    color = np.full(n_clusters, -1)
    used = [0] * len(PALETTE)
    for k in reversed(order):
        taken = {int(color[j]) for j in touching[k]}
        free = [c for c in range(len(used)) if c not in taken]
        if not free:
            used.append(0)
            free = [len(used) - 1]
        color[k] = min(free, key=lambda c: (used[c], c))
        used[color[k]] += 1
    return np.array([nth_color(c) for c in range(len(used))])[color].reshape(-1, 3)


def nth_color(index: int) -> np.ndarray:
    """Colour number `index`: the palette, then shades of it."""
    turn, index = divmod(index, len(PALETTE))
    hue, saturation, value = rgb_to_hsv(to_rgb(PALETTE[index]))
    value *= 0.5 + 0.5 * np.modf(1 + turn * 0.618)[0] if turn else 1
    return hsv_to_rgb((hue, saturation, value))


# --- pictures of the scan --------------------------------------------------------------------


def plot_similarity(similarity: Any, ax: Any = None, *, direction: int | None = None) -> Any:
    """Draw a similarity as a map of the scan, with its scale.

    Parameters
    ----------
    similarity : Similarity
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure.
    direction : int, optional
        The similarity with the neighbour in one direction, 0 to 7; by default the mean over all.

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
    add_scale_bar(ax, similarity.pixel_size, similarity.pixel_units, similarity.shape[1])
    return ax


def plot_clusters(
    clusters: Any,
    ax: Any = None,
    *,
    image: Any = None,
    alpha: float = 0.45,
    contours: bool = True,
    numbers: bool | None = None,
    seeds: bool = False,
    title: str | None = None,
) -> Any:
    """Draw the label map over an image, with contours and a scale bar.

    Parameters
    ----------
    clusters : Clusters
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure.
    image : array-like (Rx, Ry), optional
        Grey picture beneath, such as a virtual image; by default the mean similarity.
    alpha : float
        Opacity of the colours, 0 to 1; 0 for contours only.
    contours : bool
        Draw the outline of each cluster.
    numbers : bool, optional
        Write the number of each cluster; by default when there are at most 30.
    seeds : bool
        Mark the seed of each cluster.
    title : str, optional

    Returns
    -------
    matplotlib Axes
        Clusters that touch never share a colour.

    Examples
    --------
    >>> clusters = datacube.cluster(threshold=0.9, min_size=5, progress_bar=False)
    >>> ax = plot_clusters(clusters, seeds=True)
    """
    alpha = check_number("alpha", alpha, 0, 1)
    if image is None:
        image = clusters.similarity_mean
    else:
        image = np.asarray(values_of(image), dtype=np.float64)
        if image.shape != clusters.shape:
            raise ValueError(
                f"image of shape {image.shape} must have the shape of the scan, {clusters.shape}"
            )
    ax = axes_or_new(ax)
    colors = cluster_colors(clusters.labels, clusters.n_clusters)
    low, high = grey_limits(image)
    ax.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
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
            # Where there is most room: a bent cluster need not hold its centroid.
            depth = distance_transform_edt(np.pad(clusters.labels == k, 1))[1:-1, 1:-1]
            written.append(np.unravel_index(depth.argmax(), depth.shape))
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
    add_scale_bar(ax, clusters.pixel_size, clusters.pixel_units, clusters.shape[1], loc=loc)
    return ax


def plot_growth(clusters: Any, ax: Any = None, *, label: int | None = None) -> Any:
    """Draw in which order positions joined, from the seed outwards.

    Parameters
    ----------
    clusters : Clusters
        Made by growth.
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure.
    label : int, optional
        One cluster; by default all.

    Returns
    -------
    matplotlib Axes
        Colour tells the step at which a position joined, 0 at the seed (marked by its number);
        a position joins one step after the first neighbour that takes it in.

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
    add_scale_bar(ax, clusters.pixel_size, clusters.pixel_units, clusters.shape[1], loc=loc)
    return ax


def write_text(ax: Any, position: np.ndarray, text: str, size: float = 8) -> None:
    """A number or a word on a picture, with an outline, so that it reads on any ground."""
    ax.text(
        position[1],
        position[0],
        text,
        color="white",
        ha="center",
        va="center",
        fontsize=size,
        fontweight="bold",
        path_effects=OUTLINE,
        clip_on=True,
    )


def grey_limits(image: np.ndarray) -> tuple[float | None, float | None]:
    """Grey levels that a few hot pixels do not spoil."""
    values = image[np.isfinite(image)]
    return tuple(np.percentile(values, (0.5, 99.5))) if values.size else (None, None)


# --- diffraction patterns --------------------------------------------------------------------


def plot_averages(
    averages: Any,
    ax: Any = None,
    *,
    labels: Any = None,
    columns: int | None = None,
    power: float = 0.25,
) -> Any:
    """Draw cluster averages as a grid of diffraction patterns.

    Parameters
    ----------
    averages : DataCube (N, 1, Qx, Qy)
        What ``datacube.get_clustered_datacube()`` returned.
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure.
    labels : sequence of int, optional
        Clusters to draw, in this order; by default the first 30.
    columns : int, optional
        Patterns side by side; by default such that the grid is about as wide as high.
    power : float
        Intensities are drawn to this power, between the 1st and the 99.9th percentile of each
        pattern, so that weak disks show beside the direct beam.

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
    return _draw_patterns(averages, data, positions, names, colors, ax, columns, power)


def plot_patterns(
    datacube: Any,
    positions: Any,
    ax: Any = None,
    *,
    columns: int | None = None,
    power: float = 0.25,
) -> Any:
    """Draw the diffraction patterns of some scan positions as a grid.

    Parameters
    ----------
    datacube : DataCube (Rx, Ry, Qx, Qy)
    positions : array-like of int, (n, 2)
        Scan positions (rx, ry), such as ``clusters.seeds``, to be compared with the averages, or
        the first of ``clusters.growth_order(0)``.
    ax, columns, power
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
    places = [tuple(place) for place in places.tolist()]
    names = [f"{rx}, {ry}" for rx, ry in places]
    return _draw_patterns(datacube, data, places, names, None, ax, columns, power)


def _check_patterns(name: str, item: Any) -> Any:
    data = values_of(item)
    if np.ndim(data) != 4:
        raise ValueError(f"{name} of shape {np.shape(data)} must have four axes")
    return data


def _draw_patterns(
    item: Any,
    data: Any,
    positions: list[tuple[int, int]],
    names: list[str],
    colors: np.ndarray | None,
    ax: Any,
    columns: int | None,
    power: float,
) -> Any:
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
        frame = (left - 0.5, top - 0.5), qy, qx
        ax.add_patch(plt.Rectangle(*frame, fill=False, edgecolor=color, linewidth=2))
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
    # Black beside the grid where its last row has room, white on the last pattern elsewhere.
    color = "black" if len(positions) < rows * columns else "white"
    add_scale_bar(ax, *detector_step(item), qy, color=color)
    return ax


def plot_tree(tree: Any, axes: Any = None, *, min_size: int = 10, n_leaves: int = 24) -> Any:
    """Number of clusters over the level at which a tree is cut, and a dendrogram of its top.

    Parameters
    ----------
    tree : ClusterTree
        From ``datacube.get_cluster_tree()``.
    axes : two matplotlib axes, optional
        Where to draw; by default a new figure.
    min_size : int
        Clusters of fewer positions do not count.
    n_leaves : int
        Most branches of the dendrogram; the rest is drawn as one. Their widths mean nothing.

    Returns
    -------
    The two axes.
    """
    min_size = check_integer("min_size", min_size, 1)
    n_leaves = check_integer("n_leaves", n_leaves, 2)
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")[1]
    left, right = axes
    grows = tree.method == "grow"
    what = "similarity" if grows else "cost (1: noise and variation inside a grain)"
    counts = tree.n_clusters(min_size=min_size)
    left.step(tree.levels, counts, where="post", color=PALETTE[0], linewidth=1.2)
    left.set_xlabel(what)
    left.set_ylabel(f"clusters of {min_size} positions or more")
    if counts.size and counts.max() > 50:
        left.set_yscale("symlog", linthresh=10)
    if not grows:
        left.axvline(1, color="0.4", linewidth=0.8, linestyle="--")
        right.axhline(1, color="0.4", linewidth=0.8, linestyle="--")
    _draw_branches(tree, right, min_size, n_leaves)
    right.set_ylabel(what)
    right.set_xticks([])
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return axes


def _draw_branches(tree: Any, ax: Any, min_size: int, n_leaves: int) -> None:
    """The coarsest joins of large clusters, as in any dendrogram."""
    joins, levels, n_regions = tree.branches(min_size=min_size)
    first = max(0, len(joins) - n_leaves + 1)  # finer ones are drawn as one branch
    floor = levels[first] if first else (1.0 if not len(levels) else min(1.0, levels[0]))
    if tree.method == "grow" and len(levels):
        floor = levels[first] + 0.05 * max(levels[first] - levels[-1], 1e-3)
    drawn = {n_regions + i: joins[i] for i in range(first, len(joins))}
    below = {int(k) for pair in drawn.values() for k in pair}
    roots = sorted(set(drawn) - below, reverse=True) or list(range(min(n_regions, n_leaves)))
    place: dict[int, float] = {}
    order: list[int] = []
    stack = list(roots)
    while stack:  # leaves from left to right, so that no lines cross
        node = int(stack.pop(0))
        if node in drawn:
            stack = [*drawn[node], *stack]
        else:
            place[node] = float(len(order))
            order.append(node)
    height = dict.fromkeys(order, float(floor))
    for node in order:
        ax.plot([place[node]] * 2, [floor, floor], color=PALETTE[0], linewidth=1)
    for node in sorted(drawn):
        a, b = (int(k) for k in drawn[node])
        level = float(levels[node - n_regions])
        ax.plot(
            (place[a], place[a], place[b], place[b]),
            (height[a], level, level, height[b]),
            color=PALETTE[0],
            linewidth=1,
        )
        place[node], height[node] = (place[a] + place[b]) / 2, level
    if tree.method == "grow":
        ax.invert_yaxis()


# --- orientations ----------------------------------------------------------------------------


def plot_cross_validation(
    validation: Any, axes: Any = None, *, max_error: float | None = None
) -> Any:
    """Draw the error map of each method side by side, with one colour bar.

    Parameters
    ----------
    validation : CrossValidation
        From ``datacube.cross_validate_orientation()``.
    axes : sequence of matplotlib Axes, optional
        Where to draw, one for each method; by default in a new figure.
    max_error : float, optional
        Error at the end of the colours, degrees; by default the 95th percentile of all errors, at
        least 5.

    Returns
    -------
    ndarray of matplotlib Axes
        Grey where there is no error: no orientation, or none beside it. Titles hold the mean error
        of each method over its own positions.
    """
    errors = validation.errors
    if max_error is None:
        values = np.concatenate([error[np.isfinite(error)] for error in errors.values()])
        max_error = max(5.0, np.percentile(values, 95)) if values.size else 5.0
    max_error = check_number("max_error", max_error, 1e-6)
    if axes is None:
        rx, ry = validation.shape
        height = np.clip(2.6 * rx / ry, 1.5, 8) + 0.6
        size = (2.6 * len(errors) + 0.8, height)
        axes = plt.subplots(1, len(errors), figsize=size, layout="compressed", squeeze=False)[1]
    axes = np.ravel(axes)
    if len(axes) != len(errors):
        raise ValueError(f"axes must be {len(errors)}, one for each method, not {len(axes)}")
    colors = plt.get_cmap("viridis").with_extremes(bad="0.8")
    for ax, row, error in zip(axes, validation.table(), errors.values(), strict=True):
        picture = ax.imshow(error, cmap=colors, vmin=0, vmax=max_error, interpolation="nearest")
        mean = f"mean {row['mean']:.2f}°" if row["n_positions"] else "no errors"
        bare_frame(ax, None)
        ax.set_title(f"{row['method']}\n{mean}", fontsize=10)
    add_scale_bar(axes[0], validation.pixel_size, validation.pixel_units, validation.shape[1])
    ax.figure.colorbar(
        picture, ax=list(axes), label="misorientation (degrees)", extend="max", pad=0.02
    )
    return axes


def plot_disks(gained: Any, ax: Any = None, *, step: float = 0.1) -> Any:
    """Draw how many Bragg disks a pattern has over scattering vector: averages, single patterns.

    Parameters
    ----------
    gained : GainedDisks
        From ``clusters.gained_disks()``.
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure.
    step : float
        Width of the bins, 1/Angstrom.

    Returns
    -------
    matplotlib Axes
        Disks for each pattern in each bin. Every cluster weighs the same, whatever its size.
    """
    step = check_number("step", step, 1e-3)
    pairs = [
        (average, np.concatenate(single), len(single))
        for average, single in zip(gained.average, gained.single, strict=True)
        if average is not None
    ]
    farthest = max((q.max(initial=0) for pair in pairs for q in pair[:2]), default=0)
    edges = step * np.arange(np.floor(farthest / step) + 2)
    averages, singles = np.zeros((2, len(edges) - 1))
    for average, single, n_members in pairs:
        averages += np.histogram(average, edges)[0] / len(pairs)
        singles += np.histogram(single, edges)[0] / n_members / len(pairs)
    ax = axes_or_new(ax)
    for counts, name, color in (
        (averages, "averages", PALETTE[0]),
        (singles, "single patterns", PALETTE[1]),
    ):
        label = f"{name}: {counts.sum():.1f} disks"
        ax.stairs(counts, edges, fill=True, color=color, alpha=0.25)
        ax.stairs(counts, edges, color=color, linewidth=1.5, label=label)
    ax.set_xlabel("scattering vector (Å⁻¹)")
    ax.set_ylabel(f"Bragg disks a pattern, in {step:g} Å⁻¹")
    ax.margins(y=0.25)  # room for the legend, which takes steps for nothing
    ax.legend(frameon=False, loc="upper right")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
