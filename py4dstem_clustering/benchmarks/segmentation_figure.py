"""The figure of the benchmark of segmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from ..metrics import panoptic_quality
from ..plotting.style import cluster_colors
from .common import doses_of
from .methods import METHODS
from .segmentation import Example, Results, summarise


def draw(figure: Any, results: Results) -> None:
    """Draw quality against dose, and label maps of one scan."""
    figure.set_size_inches(11, 4.4)
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    _draw_quality(left, results)
    _draw_maps(right, results.example)


def _draw_quality(figure: Any, results: Results) -> None:
    """Draw lines through means, and bars from the worst scan to the best."""
    ax = figure.add_subplot()
    summaries = summarise(results.rows)
    doses = np.array(doses_of(results.rows))
    for i, name in enumerate(results.methods):
        method = METHODS[name]
        found = [summaries[method.title, dose] for dose in doses]
        mean, worst, best = (np.array([one[k] for one in found]) for k in range(3))
        # Points are moved apart, so that bars do not hide each other.
        x = doses * 10 ** (0.045 * (i - (len(results.methods) - 1) / 2))
        strong = name == "merge"
        title = method.title + (" *" if method.told else "")
        ax.vlines(x, worst, best, color=method.color, linewidth=1, alpha=0.55)
        ax.plot(
            x, mean, color=method.color, marker=method.marker, markersize=5, label=title,
            linewidth=2.2 if strong else 1.2, linestyle="--" if method.told else "-",
            zorder=3 if strong else 2,
        )  # fmt: skip
    ax.set_xscale("log")
    if len(doses) <= 6:
        ax.set_xticks(doses, [f"{dose:,.10g}" for dose in doses])
        ax.set_xticks([], minor=True)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("electrons a pattern")
    ax.set_ylabel("panoptic quality")
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    n_seeds = len({row.seed for row in results.rows})
    scans = "one scan" if n_seeds == 1 else f"{n_seeds} scans: mean, worst to best"
    ax.set_title(f"a   {scans}", loc="left", fontsize=9)
    legend = figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    legend.set_title("* told something by the truth", {"size": 7})


def _draw_maps(figure: Any, example: Example) -> None:
    """Draw truth and label maps; clusters have the colour of the grain that they match, or grey."""
    n_maps = 1 + len(example.labels)
    columns = min(n_maps, 4)
    axes = figure.subplots(-(-n_maps // columns), columns, squeeze=False).ravel()
    colors = cluster_colors(example.truth, int(example.truth.max()) + 1)
    _draw_map(axes[0], example.truth, colors)
    axes[0].set_title("truth\n", fontsize=8)
    for ax, (name, labels) in zip(axes[1:], example.labels.items(), strict=False):
        _draw_map(ax, labels, matched_colors(labels, example.truth, colors))
        text = f"{METHODS[name].title}\nPQ {example.quality[name]:.2f}"
        ax.set_title(text, fontsize=8)
    for ax in axes[n_maps:]:
        ax.set_visible(False)
    text = f"b   seed {example.seed}, {example.electrons:,.10g} electrons a pattern"
    figure.suptitle(text, x=0.01, ha="left", fontsize=9)
    figure.supxlabel("colour: cluster matches that grain; grey: matches none", fontsize=7)


def matched_colors(labels: NDArray[Any], truth: NDArray[Any], colors: NDArray[Any]) -> NDArray[Any]:
    """Return the colour of each cluster: the colour of the matching grain, or grey."""
    out = np.tile(to_rgb("0.62"), (int(labels.max(initial=-1)) + 1, 1))
    for cluster, grain in panoptic_quality(labels, truth).matches:
        out[cluster] = colors[grain]
    return out


def _draw_map(ax: Any, labels: NDArray[Any], colors: NDArray[Any]) -> None:
    palette = np.concatenate([colors, [to_rgb("white")]])  # index -1 is the last colour
    ax.imshow(palette[labels], interpolation="nearest")
    ax.add_collection(LineCollection(list(border_lines(labels)), colors="black", linewidths=0.5))
    ax.set_xticks([])
    ax.set_yticks([])


def border_lines(labels: NDArray[Any]) -> NDArray[Any]:
    """Return edges between positions of different labels, ``(n, 2, 2)``: both ends, x and y."""
    row, column = np.nonzero(labels[1:] != labels[:-1])
    across = np.stack([column - 0.5, row + 0.5, column + 0.5, row + 0.5], axis=1)
    row, column = np.nonzero(labels[:, 1:] != labels[:, :-1])
    along = np.stack([column + 0.5, row - 0.5, column + 0.5, row + 0.5], axis=1)
    return np.concatenate([across, along]).reshape(-1, 2, 2)
