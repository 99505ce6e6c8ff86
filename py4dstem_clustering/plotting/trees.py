"""Figures of cluster trees."""

from __future__ import annotations

from itertools import groupby
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from ..base.checks import check_integer
from .style import PALETTE, cluster_colors

_NEAREST = 1e-4
"""Distance from a similarity of 1 below which similarities are drawn at one place. A smaller value
leaves less room for the levels below."""

_COARSE = (-1, 0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)
_FINE = (*_COARSE, 0.92, 0.94, 0.96, 0.97, 0.985, 0.988, 0.992, 0.994, 0.996, 0.997, 0.9985)
"""Similarities that may be written at an axis; the fine ones if it shows few of the coarse ones."""

_JOINED = "0.35"
"""Grey of joins of different clusters."""


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
        Left, the number of clusters at each level. Right, the dendrogram: numbers and colours at
        its end are those of ``tree.cut(min_size=min_size).plot()``, a bracket stands for several
        branches of one cluster, and "-" for positions in no cluster, such as background. Joins of
        different clusters are grey. Dashed lines are the levels with a name. Levels of merging are
        drawn on a logarithmic axis; similarities are spread towards 1, where they lie close
        together.
    """
    min_size = check_integer("min_size", min_size, 1)
    n_leaves = check_integer("n_leaves", n_leaves, 2)
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")[1]
    left, right = axes
    grows = tree.method == "grow"
    what = "similarity" if grows else "level of merging"
    _draw_counts(tree, left, min_size)
    left.set_xlabel(what)
    left.set_ylabel(f"clusters of {min_size} positions or more")
    left.set_title("number of clusters")
    _draw_branches(tree, right, min_size, n_leaves)
    right.set_ylabel(what)
    right.set_xlabel("cluster, as numbered by tree.cut()")
    right.set_title("how they join")
    for i, (name, level) in enumerate(tree.named_levels.items()):
        left.axvline(level, color="0.4", linewidth=0.8, linestyle="--")
        right.axhline(level, color="0.4", linewidth=0.8, linestyle="--", zorder=0)
        # Beside the lines, which lie close together.
        place = max(tree.named_levels.values()), 0.98 - 0.08 * i
        text = f"  {name}: {level:g}"
        left.text(*place, text, fontsize=8, va="top", transform=left.get_xaxis_transform())
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return axes


# --- axes --------------------------------------------------------------------------------------


def _spread(values: Any) -> NDArray[np.float64]:
    """Similarities on an axis that leaves room towards 1."""
    return -np.log10(np.maximum(1 - np.asarray(values, dtype=np.float64), _NEAREST))


def _similarity(places: Any) -> NDArray[np.float64]:
    """The inverse of `_spread`."""
    return 1 - 10.0 ** -np.asarray(places, dtype=np.float64)


def _scale_similarity(axis: Any, levels: NDArray[Any]) -> tuple[float, float]:
    """Make an axis of similarities around `levels`; returns its ends."""
    axis._set_axes_scale("function", functions=(_spread, _similarity))
    ends = _spread([levels.min(initial=0.99), levels.max(initial=0.5)])
    room = 0.08 * max(ends[1] - ends[0], 0.5)
    low, high = _similarity([ends[0] - room, ends[1] + room])
    ticks = [s for s in _COARSE if low <= s <= high]
    if len(ticks) < 4:
        ticks = [s for s in _FINE if low <= s <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return low, high


def _scale_log(axis: Any, low: float, high: float) -> None:
    """Make a logarithmic axis whose ticks are plain numbers, without a 0."""
    axis._set_axes_scale("log", nonpositive="clip")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _draw_counts(tree: Any, ax: Axes, min_size: int) -> None:
    """Draw the number of clusters at each level."""
    counts = tree.n_clusters(min_size=min_size)
    levels = tree.levels
    ax.step(levels, counts, where="post", color=PALETTE[0], linewidth=1.2)
    shown = levels[counts > 0]  # before any cluster has reached `min_size` nothing is to be seen
    if tree.method == "grow":
        ax.set_xlim(_scale_similarity(ax.xaxis, shown))
    else:
        shown = [*shown[shown > 0], 1.0, tree.automatic_level]
        low, high = min(shown) / 1.5, max(shown) * 1.5
        _scale_log(ax.xaxis, low, high)
        ax.set_xlim(low, high)
    if counts.max(initial=0) > 50:
        _scale_log(ax.yaxis, 0.8, counts.max())
        ax.set_ylim(0.8, 1.2 * counts.max())
    else:
        ax.set_ylim(bottom=0)


# --- dendrogram --------------------------------------------------------------------------------


class _Branches(NamedTuple):
    """The joins that are drawn; nodes are numbered as in `ClusterTree.branches`."""

    children: dict[int, tuple[int, int]]
    level: dict[int, float]
    order: list[int]
    """The ends of the dendrogram, from left to right."""
    cluster: dict[int, int]
    """Cluster of each node, -1 for none, -2 for several."""


def _find_branches(tree: Any, labels: NDArray[Any], min_size: int, n_leaves: int) -> _Branches:
    """The coarsest joins of large clusters, with the clusters of their ends."""
    joins, levels, n_regions = tree.branches(min_size=min_size)
    cluster: dict[int, int] = dict(enumerate(_leaf_clusters(tree, labels, min_size)))
    for i, (a, b) in enumerate(joins.tolist()):
        parts = {cluster[a], cluster[b]}
        cluster[n_regions + i] = parts.pop() if len(parts) == 1 else -2
    first = max(0, len(joins) - n_leaves + 1)  # finer joins are drawn as one branch
    children = {n_regions + i: tuple(joins[i].tolist()) for i in range(first, len(joins))}
    level = {n_regions + i: float(levels[i]) for i in range(first, len(joins))}
    below = {k for pair in children.values() for k in pair}
    roots = sorted(set(children) - below, reverse=True) or list(range(min(n_regions, n_leaves)))
    order, stack = [], list(roots)
    while stack:  # ends from left to right, so that no lines cross
        node = stack.pop(0)
        if node in children:
            # Parts of one cluster come together where the tree allows it.
            stack = [*sorted(children[node], key=lambda k: cluster[k]), *stack]
        else:
            order.append(node)
    return _Branches(children, level, order, cluster)


def _leaf_clusters(tree: Any, labels: NDArray[Any], min_size: int) -> list[int]:
    """Cluster of one position of each leaf of `ClusterTree.branches`."""
    places = tree.leaf_places(min_size=min_size)
    return [int(labels.flat[place]) if place >= 0 else -1 for place in places]


def _draw_branches(tree: Any, ax: Axes, min_size: int, n_leaves: int) -> None:
    """Draw the coarsest joins of large clusters as a dendrogram."""
    clusters = tree.cut(min_size=min_size)
    found = _find_branches(tree, clusters.labels, min_size, n_leaves)
    colors = cluster_colors(clusters.labels, clusters.n_clusters)
    levels = np.array([found.level[node] for node in found.children])
    if tree.method == "grow":
        top, floor = _scale_similarity(ax.yaxis, levels)
    else:
        known = [*levels[levels > 0], 1.0, tree.automatic_level]
        floor, top = 0.8 * min(known), 1.5 * max(known)
        _scale_log(ax.yaxis, floor, top)
    ax.set_ylim(floor, top)

    def color(node: int) -> Any:
        label = found.cluster[node]
        return colors[label] if label >= 0 else _JOINED

    place = {node: float(k) for k, node in enumerate(found.order)}
    height = dict.fromkeys(found.order, floor)
    if not found.children:
        for node in found.order:
            ax.plot([place[node]] * 2, [floor, top], color=color(node), linewidth=1.2)
    for node in sorted(found.children):
        a, b = found.children[node]
        level = found.level[node]
        for child in (a, b):
            ax.plot([place[child]] * 2, [height[child], level], color=color(child), linewidth=1.2)
        ax.plot([place[a], place[b]], [level, level], color=color(node), linewidth=1.2)
        place[node], height[node] = (place[a] + place[b]) / 2, level
    _name_ends(ax, found)


def _name_ends(ax: Axes, found: _Branches) -> None:
    """Write the number of the cluster under each end, once for ends of one cluster."""
    ticks, names = [], []
    places = enumerate(found.cluster[node] for node in found.order)
    for label, group in groupby(places, key=lambda item: item[1]):
        run = [k for k, _ in group]
        ticks.append((run[0] + run[-1]) / 2)
        names.append(str(label) if label >= 0 else "-" if label == -1 else "…")
        if len(run) > 1:
            ax.plot(
                [run[0] - 0.3, run[-1] + 0.3],
                [-0.015, -0.015],
                color="black",
                linewidth=0.8,
                transform=ax.get_xaxis_transform(),
                clip_on=False,
            )
    ax.set_xticks(ticks, names, fontsize=8 if len(names) <= 24 else 6)
    ax.tick_params(axis="x", length=0, pad=5)
    ax.set_xlim(-0.8, max(len(found.order), 1) - 0.2)
