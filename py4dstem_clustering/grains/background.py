"""The background in files that were written before it had a map of its own.

Until then, a region was background if the power of its mean pattern beyond the radial profile was a
small share of that of the strongest region. `kernels/disks.py` looks for disks instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SHARE_OF_STRONGEST = 0.1
"""Largest power that the mean pattern of a background region has beyond its radial profile, as a
share of this power in the strongest region. When it grows, weak grains become background. Simulated
liquid has at most 0.01, film and vacuum beside cubes of MgO 0.07 to 0.09, the weakest cube 0.3."""

MAX_SHARE_OF_RADIAL = 0.05
"""Largest power that the mean pattern of a background region has beyond its radial profile, as a
share of the power of that profile. Background is also below `MAX_SHARE_OF_STRONGEST`. When it
grows, weak grains beside a strong one become background. Simulated grains have 0.9 and more. If the
direct beam is saturated, all regions have a small share."""

MAX_NOISE_POWERS = 0.25
"""A region with less power than this is always background. It is the power for each feature, in
units of the noise power of one feature in a single pattern. When it grows, grains at few electrons
become background. Simulated liquid has a tenth of it, a grain at 30 electrons ten times as much."""


def powers(totals: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Power of the mean pattern of each region, in units of the noise power of one feature.

    Parameters
    ----------
    totals : ndarray, (n, rank + 3)
        Sums over each region: features, sum of their squares, brightness, and 1 (the number of
        positions).

    Returns
    -------
    power : ndarray, (n,)
        Power of the features minus `scatter`.
    scatter : ndarray, (n,)
        Power of the noise and speckle that remain in the mean.
    radial : ndarray, (n,)
        Power of the radial profile.
    """
    size = totals[:, -1]
    mean, square, radial = np.split(totals[:, :-1] / size[:, None], [-2, -1], axis=1)
    strength = (mean**2).sum(axis=1)
    # Variance of a mean: that of the values divided by their number; for noise alone 1 / size.
    scatter = np.maximum(square[:, 0] - strength, 0) / np.maximum(size - 1, 1)
    scatter = np.maximum(np.where(size > 1, scatter, 0), mean.shape[1] / size)
    return strength - scatter, scatter, radial[:, 0] ** 2


def is_background(totals: NDArray[Any], strongest: float) -> NDArray[np.bool_]:
    """True for regions without Bragg disks; for `totals` see `powers`.

    `strongest` is the power of the strongest region, infinite if there is only one region.
    """
    rank = totals.shape[1] - 3
    power, scatter, radial = powers(totals)
    weak = (power <= MAX_SHARE_OF_STRONGEST * strongest) & (power <= MAX_SHARE_OF_RADIAL * radial)
    # A power below twice the scatter cannot be distinguished from zero.
    return weak | (power <= np.maximum(2 * scatter, MAX_NOISE_POWERS * rank))


def find_background(
    features: NDArray[Any], brightness: NDArray[Any], regions: NDArray[Any]
) -> NDArray[np.bool_]:
    """Positions ``(Rx, Ry)`` in regions without Bragg disks, by the rule of such files."""
    flat = features.reshape(regions.size, -1).T.astype(np.float64)
    rows = np.vstack([flat, (flat**2).sum(axis=0), brightness.ravel(), np.ones(regions.size)])
    number, n = regions.ravel() + 1, int(regions.max(initial=-1)) + 2
    totals = np.stack([np.bincount(number, row, n) for row in rows], axis=1)[1:]
    power = powers(totals)[0]
    strongest = float(power.max()) if len(power) > 1 else np.inf
    return np.append(is_background(totals, strongest), False)[regions]
