"""Which regions show no Bragg disks: liquid, vacuum, supporting film."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SHARE_OF_STRONGEST = 0.1
"""Largest power that the mean pattern of a background region has beyond its radial profile, as a
share of that of the strongest region. When it grows, weak grains become background. Simulated
liquid has at most 0.01, film and vacuum beside cubes of MgO 0.07 to 0.09, the weakest cube 0.3."""

MAX_SHARE_OF_RADIAL = 0.05
"""Largest power that the mean pattern of a background region has beyond its radial profile, as a
share of the power of that profile; it must be below both shares. When it grows, weak grains beside
a strong one become background. Simulated grains have 0.9 and more; where the direct beam is
saturated, all regions have a small share."""

MAX_NOISE_POWERS = 0.25
"""Largest power that a background region has beside no grain, in powers of the noise of a single
pattern (1 for each feature). When it grows, grains at few electrons become background. Simulated
liquid has a tenth of this, a grain at 30 electrons ten times as much."""


def sum_nodes(children: NDArray[Any], leaves: NDArray[Any]) -> NDArray[np.float64]:
    """Sums over the leaves below each node of a tree, given the values of the leaves, one a row."""
    n = len(leaves)
    out = np.concatenate([leaves, np.empty((len(children), leaves.shape[1]))])
    for i, (a, b) in enumerate(children.tolist()):
        out[n + i] = out[a] + out[b]
    return out


def powers(totals: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Powers in the mean pattern of each region, in units of the noise power of one feature.

    Parameters
    ----------
    totals : ndarray, (n, rank + 3)
        Sums over each region: features, sum of their squares, brightness, number of positions.

    Returns
    -------
    power : ndarray, (n,)
        Of the features, without what noise and speckle leave in the mean.
    scatter : ndarray, (n,)
        What noise and speckle leave in the mean.
    radial : ndarray, (n,)
        Of the radial profile.
    """
    size = totals[:, -1]
    mean, square, radial = np.split(totals[:, :-1] / size[:, None], [-2, -1], axis=1)
    strength = (mean**2).sum(axis=1)
    # The variance of a mean is that of the values, over their number; noise alone has 1 / size.
    scatter = np.maximum(square[:, 0] - strength, 0) / np.maximum(size - 1, 1)
    scatter = np.maximum(np.where(size > 1, scatter, 0), mean.shape[1] / size)
    return strength - scatter, scatter, radial[:, 0] ** 2


def is_background(totals: NDArray[Any], strongest: float) -> NDArray[np.bool_]:
    """Which regions show no Bragg disks; `totals` as for `powers`.

    `strongest` is the power of the strongest region, infinite where there is one region only.
    """
    rank = totals.shape[1] - 3
    power, scatter, radial = powers(totals)
    weak = (power <= MAX_SHARE_OF_STRONGEST * strongest) & (power <= MAX_SHARE_OF_RADIAL * radial)
    # Twice the scatter: the power is not distinct from zero.
    return weak | (power <= np.maximum(2 * scatter, MAX_NOISE_POWERS * rank))
