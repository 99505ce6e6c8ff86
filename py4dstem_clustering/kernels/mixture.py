"""Mixtures: what share each cluster has in the pattern of a scan position."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter
from scipy.optimize import nnls

from .blocks import Report
from .regions import region_means


def mixture_core(
    values: NDArray[np.float32],
    labels: NDArray[np.integer[Any]],
    reach: int,
    max_clusters: int,
    report: Report = lambda n: None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Clusters ``(Rx, Ry, max_clusters)`` and their shares, the largest first.

    Shares come from least squares on the mean features of the clusters within `reach` positions;
    they are not negative, and all of them sum to 1. Positions in no cluster (-1) count as one more
    cluster. Where there are fewer than `max_clusters` clusters, the rest is -2 with a share of 0.
    """
    rx, ry = labels.shape
    known = labels - labels.min()  # -1 becomes a region like any other
    present, number = np.unique(known, return_inverse=True)
    number = number.reshape(labels.shape)
    names = present + labels.min()
    means = _pure_means(number, values, reach)
    which = np.full((rx, ry, max_clusters), -2, dtype=np.int32)
    shares = np.zeros((rx, ry, max_clusters), dtype=np.float32)
    which[..., 0] = labels
    shares[..., 0] = 1
    # One equation more, with a large weight, makes the shares sum to 1.
    weight = 1e3 * max(float(np.abs(means).max()), 1e-9)
    done = 0
    for x, y in np.argwhere(_mixed(number, reach)):
        if x > done:
            report(int(x) - done)
            done = int(x)
        window = number[max(0, x - reach) : x + reach + 1, max(0, y - reach) : y + reach + 1]
        near = np.unique(window)
        system = np.vstack([means[near].T, np.full(len(near), weight)])
        share, _ = nnls(system, np.append(values[x, y], weight))
        order = np.argsort(-share, kind="stable")[:max_clusters]
        total = share.sum()
        if total > 0:
            which[x, y, : len(order)] = np.where(share[order] > 0, names[near[order]], -2)
            shares[x, y, : len(order)] = share[order] / total
    report(rx - done)
    return which, shares


def _mixed(number: NDArray[Any], reach: int) -> NDArray[Any]:
    """Positions with another cluster in their window."""
    size = 2 * reach + 1
    low = minimum_filter(number, size, mode="nearest")
    return low != maximum_filter(number, size, mode="nearest")


def _pure_means(number: NDArray[Any], values: NDArray[Any], reach: int) -> NDArray[Any]:
    """Mean features of each cluster, of positions away from other clusters where it has enough."""
    means, _ = region_means(number, values)
    for distance in range(1, reach + 1):
        pure = np.where(_mixed(number, distance), -1, number)
        counts = np.bincount(pure[pure >= 0], minlength=len(means))
        enough = np.flatnonzero(counts >= 8)
        for k in enough:
            means[k] = values[pure == k].mean(axis=0)
    return means
