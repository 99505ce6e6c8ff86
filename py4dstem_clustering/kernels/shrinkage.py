"""How far noise reaches in a covariance, and what of a noisy map does not stand out of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_FREQUENCIES = 64
"""Frequencies along either axis of the scan from which the largest eigenvalue of noise is found.
With more of them it changes by less than one part in a thousand."""

_RIDGE = 0.05
"""Smallest noise of a direction, relative to the mean over directions. It keeps directions in which
a few dark pixels have hardly any noise from being taken for certain."""


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


class Shrunk(NamedTuple):
    """Windows without what does not stand out of noise, and the noise that is left in them.

    The error of sample `i` has the covariance
    ``(own[i] + lost) noise + (1 - own[i]) space``, on average over windows.
    """

    values: NDArray[np.float32]
    """``(windows, n, k)``"""
    own: NDArray[np.float32]
    """How much a sample follows its own noise, ``(windows, n)``."""
    lost: NDArray[np.float32]
    """Power of structure that was removed with the noise, in units of it, ``(windows,)``: by how
    much the power exceeds that of noise. It is above or below 0 by chance."""
    noise: NDArray[np.float32]
    """Covariance of the noise before, ``(windows, k, k)``."""
    space: NDArray[np.float32]
    """Its part in the directions that were kept, ``(windows, k, k)``."""


def shrink_windows(values: NDArray[np.float32], noise: NDArray[np.float32]) -> Shrunk:
    """Remove from windows ``(windows, n, k)`` what does not stand out of noise.

    The `n` samples of a window are neighbours. Their noise has the covariance `noise`
    ``(windows, k, k)``, and is independent from sample to sample. In units of it, the samples are
    their mean and a few directions of change; each is kept as `kept_share` says. The mean goes
    where it is no larger than that of noise can be.
    """
    n, k = values.shape[1:]
    root, ridge = _roots(noise)
    back = np.linalg.inv(root)
    unit = k - ridge * (back.astype(np.float64) ** 2).sum(axis=(1, 2))  # power of noise in `x`
    unit = np.maximum(unit, 0.5 * k)  # intensities below zero can make it anything
    x = values @ back.swapaxes(1, 2)
    mean = x.mean(axis=1, keepdims=True)
    power = n * (mean.astype(np.float64) ** 2).sum(axis=2, keepdims=True)
    share = np.where(power > k + 2 * np.sqrt(2 * k), 1 - k / np.maximum(power, 1e-30), 0)
    share = share.astype(np.float32)
    x -= mean
    m = max(n - 1, 1)
    wide = n <= k
    gram = x @ x.swapaxes(1, 2) / np.float32(k) if wide else x.swapaxes(1, 2) @ x / np.float32(m)
    level, vectors = np.linalg.eigh(gram)
    ratio = m / k if wide else k / m
    kept = kept_share(level, ratio).astype(np.float32)
    keep = (vectors * kept[:, None]) @ vectors.swapaxes(1, 2)
    out = (keep @ x if wide else x @ keep) + share * mean

    counted = k if wide else m
    b = level - 1 - ratio
    true = (b + np.sqrt(np.maximum(b**2 - 4 * ratio, 0))) / 2
    lost = counted * (level.sum(axis=1, dtype=np.float64) - np.where(kept > 0, true, 0).sum(axis=1))
    lost -= m * unit
    # Each direction counts as if it were alone; then noise that lies in two of them counts twice.
    lost -= (kept > 0).sum(axis=1) ** 2
    lost += np.where(share[:, 0, 0] > 0, 0, power[:, 0, 0] - unit)

    inside = vectors * (kept > 0)[:, None]
    size = 1 / np.sqrt(np.maximum(level, 1e-6) * counted)
    other = (x.swapaxes(1, 2) if wide else x) @ (inside * size[:, None].astype(np.float32))
    samples, directions = (inside, other) if wide else (other, inside)
    # The error of a shrunk direction is smaller than that of its noise, most of all near the edge.
    error = np.where(kept > 0, (true - kept**2 * level) / (1 + ratio), 0)
    error = np.clip(error, 0, 1)[:, None].astype(np.float32)
    own = (samples**2 * error).sum(axis=2) + share[:, :, 0] / np.float32(n)
    own = np.minimum(own, 1).astype(np.float32)
    turned = root @ directions
    size_of = (unit / k).astype(np.float32)[:, None, None]  # without the floor
    return Shrunk(
        out @ root.swapaxes(1, 2),
        own,
        (lost / (n * unit)).astype(np.float32),
        size_of * (root @ root.swapaxes(1, 2)),
        size_of * ((turned * error) @ turned.swapaxes(1, 2)),
    )


def _roots(noise: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Roots of covariances ``(n, k, k)``, and the floor they stand on ``(n,)``."""
    k = noise.shape[1]
    level = np.maximum(np.trace(noise, axis1=1, axis2=2) / k, 1e-6)
    full = (noise + noise.swapaxes(1, 2)) / 2
    full += _RIDGE * level[:, None, None] * np.eye(k, dtype=np.float32)
    try:
        root: NDArray[np.float32] = np.linalg.cholesky(full)
    except np.linalg.LinAlgError:  # intensities below zero, where patterns hold nearly nothing
        values, vectors = np.linalg.eigh(full)
        values = np.maximum(values, _RIDGE * level[:, None])
        root = vectors * np.sqrt(values)[:, None]
    return root, _RIDGE * level.astype(np.float64)


def window_starts(n: int, size: int, step: int) -> list[int]:
    """First samples of windows of `size` that cover an axis, `step` apart; the last is flush."""
    last = max(n - size, 0)
    return [*range(0, last, step), last]
