"""Figure of the benchmark of filters: one position, raw, filtered and without noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from py4DSTEM import DataCube

from ..plotting.maps import plot_residual
from .filters import CORRELATIVE


def draw_filters(
    share: NDArray[Any], place: tuple[int, int], doses: Sequence[float], seed: int = 0
) -> Figure:
    """Draw the pattern at `place` at each dose (electrons a pattern), and the residual map.

    `share` is the expected share of electrons in each pixel of the scan.
    """
    heads = ("raw", "correlative", 'correlative, "auto"', "low rank", "truth", "residual")
    figure, axes = plt.subplots(
        len(doses), len(heads), figsize=(12, 2.1 * len(doses)), layout="constrained", squeeze=False
    )
    for ax, head in zip(axes[0], heads, strict=True):
        ax.set_title(head, fontsize=9)
    for row, dose in zip(axes, doses, strict=True):
        rng = np.random.default_rng([seed, int(dose)])
        truth = np.maximum(np.asarray(share, dtype=np.float64) * dose, 0)
        cube = DataCube(rng.poisson(truth).astype(np.uint32))
        lowrank = cube.filter_lowrank(progress_bar=False)
        patterns = (
            cube.data[place],
            cube.filter_correlative(**CORRELATIVE).data[place],
            cube.filter_correlative(**CORRELATIVE, corr_range="auto").data[place],
            lowrank.data[place],
            truth[place],
        )
        high = float(truth[place].max()) ** 0.25
        for ax, pattern in zip(row, patterns, strict=False):
            image = np.maximum(pattern, 0) ** 0.25
            ax.imshow(image, cmap="inferno", vmin=0, vmax=high, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"{dose:,.0f} electrons")
        plot_residual(lowrank, row[-1])
        row[-1].plot(place[1], place[0], "s", color="white", markerfacecolor="none", markersize=5)
    return figure
