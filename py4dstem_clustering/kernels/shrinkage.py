"""How far noise reaches in a covariance, and how much of a noisy direction is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from .blocks import Run, tiles

_FREQUENCIES = 64
"""Frequencies along either axis of the scan from which the largest eigenvalue of noise is found.
With more of them it changes by less than one part in a thousand."""

_ROWS_PER_TASK = 4
"""Rows of the detector whose directions are shrunk in one task. With more of them, the moments of
a task take more memory."""


def noise_edge(n_positions: int, n_bins: int) -> float:
    """Largest eigenvalue that unit noise leaves in the covariance of patterns with their mean.

    The mean is over 3 x 3 positions, with the weights 1, 2, 1 along either axis. Its spectrum is
    ``h``, between 0 and 1. The edge is the smallest value of
    ``(1 / u + c <h / (1 - h u)>) / c`` over ``0 < u < 1``, with ``c`` positions for each bin
    (Silverstein and Choi, 1995).
    """
    steps = np.pi * (np.arange(_FREQUENCIES) + 0.5) / _FREQUENCIES
    along = (1 + np.cos(steps)) / 2
    h = np.outer(along, along).ravel()
    per_bin = n_positions / n_bins
    u = np.linspace(0.002, 0.998, 499)
    edge = 1 / u + per_bin * (h / (1 - u[:, None] * h)).mean(axis=1)
    return float(edge.min() / per_bin)


def kept_share(level: NDArray[Any], ratio: float) -> NDArray[Any]:
    """Share of a direction to keep, from the eigenvalue `level` of its second moment.

    Noise has the moment 1. `ratio` is the number of directions for each sample. This is the share
    with the smallest squared error (Gavish and Donoho, 2017); at and below the edge of noise, 0.
    """
    level = np.asarray(level, dtype=np.float64)
    inside = np.maximum((level - ratio - 1) ** 2 - 4 * ratio, 0)
    return np.where(level > (1 + np.sqrt(ratio)) ** 2, np.sqrt(inside) / np.maximum(level, 1), 0)


def shrink_locally(
    values: NDArray[np.float32],
    sigma: float,
    run: Run,
    visit: Callable[[slice, NDArray[np.float32]], None],
) -> NDArray[np.float32]:
    """Remove from maps ``(n, m, k)`` with unit noise what does not stand out of it nearby.

    At each place, the second moment of the `k` values is averaged over a Gaussian of standard
    deviation `sigma`, and its eigenvectors are kept as `kept_share` says. `visit` is called in
    threads with some rows and the matrices ``(rows, m, k, k)`` that keep these shares.
    """
    n, _, k = values.shape
    first, second = np.triu_indices(k)
    reach = int(np.ceil(4 * sigma))
    ratio = k / (4 * np.pi * sigma**2)
    out = np.empty_like(values)

    def shrink(rows: slice) -> None:
        start, stop = max(0, rows.start - reach), min(n, rows.stop + reach)
        near = values[start:stop]
        ones = np.ones(near.shape[:2], dtype=np.float32)
        inside = slice(rows.start - start, rows.stop - start)
        count = gaussian_filter(ones, sigma, mode="constant")[inside]
        moment = np.empty((*count.shape, k, k), dtype=np.float32)
        for a, b in zip(first, second, strict=True):
            product = gaussian_filter(near[..., a] * near[..., b], sigma, mode="constant")
            moment[..., a, b] = moment[..., b, a] = product[inside] / count
        level, vectors = np.linalg.eigh(moment)
        share = kept_share(level, ratio).astype(np.float32)
        keep = (vectors * share[..., None, :]) @ vectors.swapaxes(-1, -2)
        out[rows] = (keep @ values[rows][..., None])[..., 0]
        visit(rows, keep)

    run(shrink, tiles(n, _ROWS_PER_TASK))
    return out
