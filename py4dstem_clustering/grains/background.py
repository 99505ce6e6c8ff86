"""Which regions show no disks: liquid, vacuum, supporting film."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WEAK = 0.1
"""A region is background where the power of its mean pattern beyond the radial profile is below
this share of the strongest one's. Simulated liquid: at most 0.01; film and vacuum beside MgO cubes:
0.07 to 0.09; the weakest cube 0.3."""

BACKGROUND = 0.05
"""And below this share of the power of the radial profile, which protects weak grains: simulated
ones have 0.9 and more. A saturated direct beam makes it small for everything."""


def sum_nodes(children: NDArray[Any], leaves: NDArray[Any]) -> NDArray[Any]:
    """Sums over the leaves under each node of a tree, given those of the leaves."""
    n = len(leaves)
    out = np.concatenate([leaves, np.empty((len(children), leaves.shape[1]))])
    for i, (a, b) in enumerate(children.tolist()):
        out[n + i] = out[a] + out[b]
    return out


def powers(totals: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Power of the mean features, what noise and speckle leave in it, and power of the radial mean.

    Of regions, given the sums of their columns.
    """
    size = totals[:, -1]
    mean, square, radial = np.split(totals[:, :-1] / size[:, None], [-2, -1], axis=1)
    strength = (mean**2).sum(axis=1)
    # Noise and speckle leave as much power in a mean as the region scatters about it.
    scatter = np.maximum(square[:, 0] - strength, 0) / np.maximum(size - 1, 1)
    scatter = np.maximum(np.where(size > 1, scatter, 0), mean.shape[1] / size)
    return strength - scatter, scatter, radial[:, 0] ** 2


def is_background(totals: NDArray[Any], strongest: float) -> NDArray[Any]:
    """Which regions have no power beyond the radial mean, given the sums of their columns."""
    rank = totals.shape[1] - 3
    power, scatter, radial = powers(totals)
    weak = (power <= WEAK * strongest) & (power <= BACKGROUND * radial)
    # Without any grain beside it: a quarter of the noise of a single pattern. Liquid has a tenth of
    # that, a grain at 30 electrons ten times as much.
    return weak | (power <= np.maximum(2 * scatter, rank / 4))
