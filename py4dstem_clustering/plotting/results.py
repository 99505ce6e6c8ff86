"""Figures of trees, cross-validation and gained disks."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from ..base.checks import check_integer, check_number
from .style import PALETTE, add_scale_bar, axes_or_new, bare_frame


def plot_tree(tree: Any, axes: Any = None, *, min_size: int = 10, n_leaves: int = 24) -> Any:
    """Draw the number of clusters over the level at which a tree is cut, and a dendrogram.

    Parameters
    ----------
    tree : ClusterTree
        From ``datacube.get_cluster_tree()``.
    axes : two matplotlib Axes, optional
        Where to draw; by default in a new figure.
    min_size : int
        Clusters of fewer positions do not count.
    n_leaves : int
        The dendrogram shows the coarsest joins, with at most this many branches at its end.

    Returns
    -------
    sequence of two matplotlib Axes
        The number of clusters; the dendrogram, whose horizontal axis has no meaning.
    """
    min_size = check_integer("min_size", min_size, 1)
    n_leaves = check_integer("n_leaves", n_leaves, 2)
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")[1]
    left, right = axes
    grows = tree.method == "grow"
    what = "similarity" if grows else "level of merging"
    counts = tree.n_clusters(min_size=min_size)
    left.step(tree.levels, counts, where="post", color=PALETTE[0], linewidth=1.2)
    left.set_xlabel(what)
    left.set_ylabel(f"clusters of {min_size} positions or more")
    if counts.size and counts.max() > 50:
        left.set_yscale("symlog", linthresh=10)
    for i, (name, level) in enumerate(tree.named_levels.items()):
        left.axvline(level, color="0.4", linewidth=0.8, linestyle="--")
        right.axhline(level, color="0.4", linewidth=0.8, linestyle="--")
        # Beside the lines, which lie close together.
        place = max(tree.named_levels.values()), 0.98 - 0.08 * i
        text = f"  {name}: {level:g}"
        left.text(*place, text, fontsize=8, va="top", transform=left.get_xaxis_transform())
    _draw_branches(tree, right, min_size, n_leaves)
    right.set_ylabel(what)
    right.set_xticks([])
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return axes


def _draw_branches(tree: Any, ax: Axes, min_size: int, n_leaves: int) -> None:
    """Draw the coarsest joins of large clusters as a dendrogram."""
    joins, levels, n_regions = tree.branches(min_size=min_size)
    first = max(0, len(joins) - n_leaves + 1)  # finer joins are drawn as one branch
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
        Error at the upper end of the colour bar, degrees; by default the 95th percentile of all
        errors, but at least 5.

    Returns
    -------
    ndarray of matplotlib Axes
        Positions without an error are grey: the position or all four neighbours have no
        orientation. Titles show the mean error of each method over all its positions with an error.
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


def plot_disks(gained: Any, ax: Axes | None = None, *, step: float = 0.1) -> Axes:
    """Draw the number of Bragg disks over the scattering vector, in averages and single patterns.

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
        Number of disks per pattern in each bin. All clusters have the same weight.
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
    ax.margins(y=0.25)  # room for the legend, which would cover the stairs
    ax.legend(frameon=False, loc="upper right")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
