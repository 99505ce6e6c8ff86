"""Pole figures."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle
from numpy.typing import NDArray

from .style import PALETTE

_GRID = 91
"""Places of the density along the diameter of a pole figure."""


def pole_axes(axes: Any, n: int, with_bars: bool) -> NDArray[Any]:
    """The axes that were given, one for each pole figure, or those of a new figure."""
    if axes is None:
        size = ((2.9 if with_bars else 2.4) * n + 0.2, 2.7)
        axes = plt.subplots(1, n, figsize=size, layout="constrained", squeeze=False)[1]
    axes = np.ravel(axes)
    if len(axes) != n:
        raise ValueError(f"axes must be {n}, one for each pole, not {len(axes)}")
    return axes


def project(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Stereographic projection (..., 2) of unit vectors (..., 3) on the side of the beam."""
    return directions[..., :2] / (1 + directions[..., 2:])


def density_of_poles(
    places: NDArray[np.float64],
    directions: NDArray[np.float64],
    weights: NDArray[np.float64],
    width: float,
) -> NDArray[np.float64]:
    """Density of poles at unit vectors (k, 3), in multiples of a random distribution.

    `directions` are (n, m, 3), of which opposite ones count as well, and `weights` (n,) add up to
    1. `width` is the angle in degrees at which the density of one pole has fallen to a half.
    """
    sharpness = np.log(2) / (1 - np.cos(np.deg2rad(width)))
    total = np.zeros(len(places))
    share = weights / directions.shape[1]
    for one, weight in zip(directions, share, strict=True):
        cosines = places @ one.T
        total += weight * np.exp(sharpness * (np.abs(cosines) - 1)).sum(axis=1)
    # The mean of exp(s (|c| - 1)) over the sphere.
    return total / ((1 - np.exp(-sharpness)) / sharpness)


def draw_pole_figure(
    ax: Axes,
    directions: NDArray[np.float64],
    weights: NDArray[np.float64],
    colors: Any,
    title: str,
    width: float | None,
) -> None:
    """Draw poles (n, m, 3) as dots whose areas show `weights`, with a density if it has a width."""
    if width is not None:
        x, y = np.meshgrid(*[np.linspace(-1, 1, _GRID)] * 2, indexing="ij")
        square = x**2 + y**2
        places = np.stack([2 * x, 2 * y, 1 - square], axis=-1) / (1 + square)[..., None]
        inside = square <= 1
        density = np.full(x.shape, np.nan)
        density[inside] = density_of_poles(places[inside], directions, weights, width)
        step = 1 / (_GRID - 1)
        picture = ax.imshow(
            density,
            cmap="Greys",
            vmin=0,
            extent=(-1 - step, 1 + step, 1 + step, -1 - step),
            interpolation="bilinear",
        )
        ax.figure.colorbar(picture, ax=ax, label="multiples of random", shrink=0.75, pad=0.02)
    places = project(directions)
    n, m = places.shape[:2]
    sizes = np.clip(60 * weights / weights.max(), 2, 60) * (1 if width is None else 0.25)
    ax.scatter(
        places[..., 1].ravel(),
        places[..., 0].ravel(),
        s=np.repeat(sizes, m),
        color=PALETTE[0] if colors is None else np.repeat(colors, m, axis=0),
        edgecolors="black",
        linewidths=0.4,
        alpha=0.85 if n <= 200 else 0.3,
        zorder=3,
    )
    ax.add_patch(Circle((0, 0), 1, fill=False, color="black", linewidth=1))
    ax.plot([-0.04, 0.04], [0, 0], color="black", linewidth=0.6)
    ax.plot([0, 0], [-0.04, 0.04], color="black", linewidth=0.6)
    ax.text(0, 1.06, "Qx", ha="center", va="top", fontsize=8)
    ax.text(1.04, 0, "Qy", ha="left", va="center", fontsize=8)
    ax.set_xlim(-1.1, 1.22)
    ax.set_ylim(1.22, -1.1)
    ax.set_aspect("equal")
    ax.axis("off")
    ax.set_title(title)
