"""What all figures share: colours, axes, scale bars, text on images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import matplotlib.patheffects
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb, is_color_like, rgb_to_hsv, to_rgb
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from numpy.typing import NDArray

from ..base.checks import check_choice, check_flag, check_number
from ..kernels.regions import find_borders
from ..scan.axes import as_length

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
"""Colours of Okabe and Ito without black, which colour-blind readers can distinguish too."""

OUTLINE = [matplotlib.patheffects.withStroke(linewidth=1.5, foreground="black")]
"""A black line around white text and marks, so that they can be read on any background."""


def axes_or_new(ax: Axes | None) -> Axes:
    """The axes that were given, or those of a new figure."""
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def size_in_points(ax: Axes) -> NDArray[np.float64]:
    """Height and width of axes, which may lie in a subfigure."""
    frame, whole = ax.get_position(), ax.figure.bbox
    return 72 * np.array([frame.height * whole.height, frame.width * whole.width]) / ax.figure.dpi


def bare_frame(ax: Axes, title: str | None) -> None:
    """A frame without ticks, and a title."""
    ax.set_xticks([])
    ax.set_yticks([])
    if title:
        ax.set_title(title)


PLACES = ("lower right", "lower left", "upper right", "upper left")
"""Corners for a scale bar."""

_IN_NM = {"m": 1e9, "mm": 1e6, "um": 1e3, "nm": 1.0, "A": 0.1, "pm": 1e-3}
"""Nanometres of each unit of length."""


def add_scale_bar(
    ax: Axes,
    pixel_size: float,
    units: str,
    n_pixels: int,
    *,
    loc: str = "lower right",
    color: str = "white",
    length: float | None = None,
) -> None:
    """A scale bar of 1, 2 or 5 times a power of ten, at most a quarter of the picture wide.

    Lengths are written in µm from 1 µm on, in nm from 1 nm on, else in Å. `length` is in `units`.
    No bar is drawn if the pixel size is unknown (0 or NaN).
    """
    if not pixel_size > 0:
        return
    if length is None:
        target = 0.25 * n_pixels * pixel_size
        power = 10.0 ** np.floor(np.log10(target))
        length = max(m * power for m in (1, 2, 5) if m * power <= target * 1.0001)
    bar = AnchoredSizeBar(
        ax.transData,
        length / pixel_size,
        _length_text(length, units),
        loc,
        color=color,
        pad=0.2,
        borderpad=0.8,
        sep=2,
        frameon=False,
        # The bar is scaled to the whole picture, not to one tile; it is thinner in a flat picture.
        size_vertical=min(abs(np.subtract(*ax.get_xlim())), 2 * abs(np.subtract(*ax.get_ylim())))
        / 80,
    )
    if color == "white":
        # A box would hide more of the picture than an outline.
        bar.txt_label._text.set_path_effects(OUTLINE)
        bar.size_bar.get_children()[0].set(facecolor="white", edgecolor="black", linewidth=0.75)
    ax.add_artist(bar)


def _length_text(length: float, units: str) -> str:
    """A length with the unit that suits its size; other units stay as they are."""
    known = as_length(units)
    if known not in _IN_NM:
        label = {"A^-1": "Å⁻¹"}.get(units, "px" if known == "pixels" else units)
        return f"{length:g} {label}"
    in_nm = length * _IN_NM[known]
    if in_nm >= 0.9999e3:
        return f"{in_nm / 1e3:g} µm"
    return f"{in_nm:g} nm" if in_nm >= 0.9999 else f"{10 * in_nm:g} Å"


def hatch(ax: Axes, inside: NDArray[np.bool_]) -> None:
    """Hatch positions ``(Rx, Ry)`` in white."""
    if inside.any():
        drawn = ax.contourf(
            inside.astype(np.float64), levels=[0.5, 1.5], colors="none", hatches=["////"]
        )
        drawn.set_edgecolor("white")
        drawn.set_linewidth(0)


def draw_scale_bar(
    ax: Axes,
    options: Any,
    step: tuple[float, str],
    n_pixels: int,
    *,
    loc: str = "lower right",
    color: str = "white",
) -> None:
    """Draw the scale bar as the option `scale_bar` of a figure says.

    True draws it at `loc` in `color`; False draws none; a dict may have "loc", one of `PLACES`,
    "color", and "length", in the unit of the step.
    """
    if isinstance(options, Mapping):
        chosen = check_scale_bar(options)
    elif not check_flag("scale_bar", options):
        return
    else:
        chosen = {}
    add_scale_bar(ax, *step, n_pixels, **{"loc": loc, "color": color, **chosen})


def check_scale_bar(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check a dict of options of a scale bar."""
    rest = sorted(map(str, set(options) - {"loc", "color", "length"}))
    if rest:
        raise ValueError(
            f"scale_bar has {', '.join(rest)}; it may have 'loc', 'color' and 'length', or be True "
            "or False"
        )
    if "loc" in options:
        check_choice("scale_bar['loc']", options["loc"], PLACES)
    if "color" in options and not is_color_like(options["color"]):
        raise ValueError(
            f"scale_bar['color']={options['color']!r} must be a colour of matplotlib, such as "
            "'white' or '#0072B2'"
        )
    if "length" in options:
        check_number("scale_bar['length']", options["length"], 1e-12)
    return dict(options)


def free_corner(shape: tuple[int, int], places: Sequence[Any]) -> str:
    """Corner for a scale bar, if possible one without text; the lower right is preferred.

    `places` are the positions (rx, ry) of texts on a picture of shape `shape`.
    """
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


def neighbour_pairs(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Pairs of labels that touch, diagonals included, ``(n, 2)``; label -1 is left out."""
    borders = find_borders(labels)[0]
    return np.stack([borders.first, borders.second], axis=1)


def cluster_colors(labels: NDArray[Any], n_clusters: int) -> NDArray[np.float64]:
    """RGB of each cluster ``(N, 3)``; clusters that touch never share a colour."""
    return pair_colors(neighbour_pairs(labels), n_clusters)


def pair_colors(pairs: NDArray[Any], n_clusters: int) -> NDArray[np.float64]:
    """RGB of each cluster ``(N, 3)``; the two clusters of a pair never share a colour.

    `pairs` are ``(n, 2)``. Clusters with many neighbours get a colour first. Each cluster gets the
    least used of the colours that none of its neighbours has. If the palette is too small, darker
    versions of its colours are added.
    """
    touching: list[set[int]] = [set() for _ in range(n_clusters)]
    for a, b in pairs.tolist():
        touching[a].add(b)
        touching[b].add(a)

    # Repeatedly take away the cluster with the fewest remaining neighbours. Colours are given in
    # the reverse order.
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


def nth_color(index: int) -> NDArray[np.float64]:
    """RGB of colour number `index`: first the palette, then darker shades of it."""
    turn, index = divmod(index, len(PALETTE))
    hue, saturation, value = rgb_to_hsv(to_rgb(PALETTE[index]))
    value *= 0.5 + 0.5 * np.modf(1 + turn * 0.618)[0] if turn else 1
    return hsv_to_rgb((hue, saturation, value))


def write_text(ax: Axes, position: Any, text: str, size: float = 8) -> None:
    """Write a number or a word on a picture of the scan, centred at `position` (rx, ry)."""
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


def grey_limits(image: NDArray[Any]) -> tuple[float, float] | tuple[None, None]:
    """Values that are drawn black and white; they are percentiles, so hot pixels change little.

    Both are None if the image has no finite value.
    """
    values = image[np.isfinite(image)]
    if not values.size:
        return None, None
    low, high = np.percentile(values, (0.5, 99.5))
    return low, high
