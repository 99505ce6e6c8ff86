"""The distribution of grain sizes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ..base.checks import check_flag, check_integer
from .style import PALETTE, axes_or_new

_FEWEST = 3
"""Grains from which on a distribution is fitted."""


class LogNormal(NamedTuple):
    """A log-normal distribution fitted to sizes, with standard errors."""

    median: float
    sigma: float
    """Standard deviation of the logarithm."""
    median_error: float
    sigma_error: float


def fit_log_normal(sizes: ArrayLike) -> LogNormal:
    """The log-normal distribution of the greatest likelihood, for at least two sizes above 0."""
    logs = np.log(np.asarray(sizes, dtype=np.float64))
    n = len(logs)
    median, sigma = float(np.exp(logs.mean())), float(logs.std(ddof=1))
    return LogNormal(median, sigma, median * sigma / np.sqrt(n), sigma / np.sqrt(2 * (n - 1)))


def plot_sizes(
    clusters: Any,
    ax: Axes | None = None,
    *,
    bins: int | None = None,
    border: bool = False,
    fit: bool = True,
) -> Axes:
    """Draw a histogram of the equivalent diameters of clusters, with a log-normal fit.

    Parameters
    ----------
    clusters : Clusters
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure.
    bins : int, optional
        Number of bins; by default about the root of the number of grains, from 5 to 30.
    border : bool
        Also count clusters that touch the border of the scan. They may go on outside, so that their
        diameters come out too small. Leaving them out removes large grains more often than small
        ones, so the field of view should be many grains wide.
    fit : bool
        Draw the log-normal distribution of the greatest likelihood, from 3 grains on.

    Returns
    -------
    matplotlib Axes
        The equivalent diameter is that of a circle of the same area. Background is left out. The
        legend has the median and sigma, the standard deviation of the logarithm, each with its
        standard error. Grains below the resolution of the scan or below `min_size` are missing in
        the histogram, which makes the median too large.

    Raises
    ------
    ValueError, TypeError
        If an option breaks its rule.

    Examples
    --------
    >>> clusters = datacube.cluster(threshold=0.98, min_size=5, progress_bar=False)
    >>> ax = plot_sizes(clusters, border=True)
    >>> ax.get_xlabel()
    'equivalent diameter (nm)'
    """
    bins = bins if bins is None else check_integer("bins", bins, 1)
    border, fit = check_flag("border", border), check_flag("fit", fit)
    table = clusters.properties()
    grains = ~np.isin(table["label"], clusters.background)
    chosen = grains & (border | ~table["touches_border"])
    scale, unit = _length_unit(clusters.pixel_units)
    diameters = table["equivalent_diameter"][chosen] * scale
    ax = axes_or_new(ax)
    n, left_out = len(diameters), int((grains & ~chosen).sum())
    title = f"{n} grain{'s' * (n != 1)}"
    if left_out:
        title += f", {left_out} at the border of the scan left out"
    ax.set_title(title)
    ax.set_xlabel(f"equivalent diameter ({unit})")
    ax.set_ylabel("number of grains")
    ax.spines[["top", "right"]].set_visible(False)
    if not n:
        return ax
    if bins is None:
        bins = int(np.clip(np.ceil(np.sqrt(n)), 5, 30))
    counts, edges = np.histogram(diameters, bins)
    ax.stairs(counts, edges, fill=True, color=PALETTE[0], alpha=0.35)
    ax.stairs(counts, edges, color=PALETTE[0], linewidth=1.2)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    if fit and n >= _FEWEST and np.ptp(diameters) > 0:
        _draw_fit(ax, fit_log_normal(diameters), edges, n, unit)
    ax.set_ylim(0, 1.3 * ax.get_ylim()[1])  # room for the legend
    return ax


def _draw_fit(ax: Axes, found: LogNormal, edges: NDArray[np.float64], n: int, unit: str) -> None:
    """Draw a distribution as the number of grains in a bin, and write its parameters."""
    logs = np.log(found.median) + found.sigma * np.linspace(-3.5, 3.5, 300)
    z = (logs - np.log(found.median)) / found.sigma
    density = np.exp(-(z**2) / 2) / (found.sigma * np.sqrt(2 * np.pi)) / np.exp(logs)
    text = (
        f"log-normal: median {found.median:.3g} ± {found.median_error:.2g} {unit},\n"
        f"σ = {found.sigma:.2f} ± {found.sigma_error:.2f}"
    )
    width = edges[1] - edges[0]
    ax.plot(np.exp(logs), n * width * density, color=PALETTE[5], linewidth=1.5, label=text)
    ax.legend(frameon=False, fontsize=8, loc="upper right")


def _length_unit(units: str) -> tuple[float, str]:
    """Factor and unit in which lengths are written."""
    if units == "A":
        return 0.1, "nm"
    return 1.0, {"um": "µm", "pixels": "positions"}.get(units, units)
