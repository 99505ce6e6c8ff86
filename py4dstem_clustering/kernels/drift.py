"""Clusters through a series of scans: how the sample drifts, and which cluster becomes which.

Drift: particles grow, and a correlation of images takes a particle that grows against the border of
the scan, or against another particle, for one that moves. So, to first order, the difference of two
frames is a displacement of everything, plus an edge of each particle that moves outwards:

    b - a = -d . grad(a) + v_k |grad(a)| + offset + scale a

The speeds ``v_k`` are fitted along with the displacement ``d`` (Gauss-Newton, as Lucas and Kanade
1981), with weights that drop where one particle moves or appears on its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.ndimage import distance_transform_edt, gaussian_filter, label, shift, spline_filter

LAGS = (1, 2, 4, 8)
"""Frames that are compared are so far apart: errors of successive frames alone would add up."""

_SMOOTH = 1.0
"""Blur of images before they are compared, scan positions."""

_DOUBT = 0.3
"""Residual of a pair of frames from which on it counts less, scan positions."""

_ROUNDS = 8
"""Most steps of the fit of a displacement."""

_MOST_STEP = 0.5
"""Farthest step of it, scan positions: edges are a few positions wide."""

_NEAR = 1.5
"""Farthest that a fit may end from where it began, scan positions: else it did not converge."""

_LEAST_BLOB = 4
"""Fewest positions of a particle whose growth is fitted."""


# --- drift -----------------------------------------------------------------------------------


class _Image(NamedTuple):
    """An image, ready to be compared."""

    smooth: NDArray[Any]
    spline: NDArray[Any]  # its spline coefficients
    valid: NDArray[Any]  # where it is known
    nearest: NDArray[Any]  # number of the nearest particle
    n: int  # of particles
    flat: bool


def find_drift_core(images: Iterable[NDArray[Any] | None], reach: float | None) -> NDArray[Any]:
    """Displacement (T, 2) of each image against the first one that is there; NaN for None.

    `images` (Rx, Ry), float64, NaN where unknown, are taken one after the other, and at most
    ``max(LAGS) + 1`` are held. `reach` is the farthest displacement between successive images, by
    default a quarter of the shorter side.
    """
    recent: dict[int, _Image] = {}
    there: list[int] = []
    found: list[NDArray[Any]] = []
    pairs: list[tuple[int, int]] = []
    values: list[NDArray[Any]] = []
    weights: list[float] = []
    t = -1
    for t, image in enumerate(images):
        if image is None:
            continue
        k = len(there)
        there.append(t)
        b = recent[k] = _prepare(image)
        sides = [n for n in image.shape if n > 1]
        farthest = max(1.0, min(sides, default=4) / 4) if reach is None else reach
        guesses = []
        for lag in [lag for lag in LAGS if lag <= k]:
            a = recent[k - lag]
            known = not (a.flat or b.flat)
            value = np.zeros(2) if lag == 1 else guesses[0] - found[k - lag]
            if known:
                if lag == 1:
                    value = correlate(a.smooth, b.smooth, a.valid, b.valid, farthest)
                value = _refine(a, b, value)
            pairs.append((k - lag, k))
            values.append(value)
            weights.append(1.0 if known else 1e-3)
            guesses.append(found[k - lag] + value)
        found.append(np.median(guesses, axis=0) if guesses else np.zeros(2))
        recent.pop(k - max(LAGS), None)
    out = np.full((t + 1, 2), np.nan)
    if pairs:
        out[there] = _solve(len(there), np.array(pairs), np.array(values), np.array(weights))
    elif there:
        out[there] = 0
    return out


def _prepare(image: NDArray[Any]) -> _Image:
    valid = np.isfinite(image)
    amount = gaussian_filter(valid.astype(float), _SMOOTH, mode="nearest")
    filled = np.where(valid, image, image[valid].mean())
    filled -= filled.mean()
    filled /= max(np.abs(filled).max(), 1e-300)
    smooth = gaussian_filter(filled * valid, _SMOOTH, mode="nearest")
    smooth = np.where(amount > 1e-3, smooth / np.maximum(amount, 1e-3), 0)
    flat = bool(np.ptp(image[valid]) <= 1e-9 * np.abs(image[valid]).max())
    nearest, n = _particles(smooth)
    return _Image(smooth, spline_filter(smooth, 3, mode="nearest"), valid, nearest, n, flat)


def _particles(image: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Number of the bright region nearest to each position, and how many there are."""
    regions, _ = label(image > _otsu(image))
    sizes = np.bincount(regions.ravel())
    keep = sizes >= _LEAST_BLOB
    keep[0] = False
    number = np.cumsum(keep) * keep
    regions = number[regions]
    if not regions.any():
        return np.zeros(image.shape, dtype=int), 1
    index = distance_transform_edt(regions == 0, return_distances=False, return_indices=True)
    return regions[tuple(index)] - 1, int(keep.sum())


def _otsu(image: NDArray[Any]) -> float:
    """Threshold with the largest variance between the two sides (Otsu 1979)."""
    counts, edges = np.histogram(image, 128)
    middle = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    total = np.cumsum(counts * middle)
    gap = total[:-1] / np.maximum(below, 1) - (total[-1] - total[:-1]) / np.maximum(above, 1)
    return float(middle[(below * above * gap**2).argmax()])


def correlate(
    a: NDArray[Any], b: NDArray[Any], a_valid: NDArray[Any], b_valid: NDArray[Any], reach: float
) -> NDArray[Any]:
    """Displacement (2,) of `b` against `a`, at most `reach`, where they correlate most.

    Each displacement has the correlation of what both images show then, so that the border of the
    scan draws it nowhere (Padfield 2012); at least half of both must be shown. A parabola gives
    parts of a position; 0 where there is nothing to correlate.
    """
    shape = [next_fast_len(2 * n - 1) for n in a.shape]
    steps = [np.fft.fftfreq(n, 1 / n) for n in shape]

    def transform(values: NDArray[Any]) -> NDArray[Any]:
        return rfft2(values, shape)

    def cross(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
        return irfft2(np.conj(first) * second, shape)

    one_a, one_b = transform(a_valid.astype(float)), transform(b_valid.astype(float))
    a, b = a * a_valid, b * b_valid
    fa, fb = transform(a), transform(b)
    n = np.maximum(cross(one_a, one_b), 1)
    sum_a, sum_b = cross(fa, one_b), cross(one_a, fb)
    var_a = cross(transform(a * a), one_b) - sum_a**2 / n
    var_b = cross(one_a, transform(b * b)) - sum_b**2 / n
    spread = np.sqrt(np.maximum(var_a, 0) * np.maximum(var_b, 0))
    allowed = (n >= 0.5 * min(a_valid.sum(), b_valid.sum()) - 0.5) & (spread > 1e-6 * spread.max())
    allowed &= (np.abs(steps[0])[:, None] <= reach) & (np.abs(steps[1]) <= reach)
    if not allowed.any():
        return np.zeros(2)
    value = np.full(n.shape, -1.0)
    value[allowed] = ((cross(fa, fb) - sum_a * sum_b / n)[allowed]) / spread[allowed]
    top = np.unravel_index(value.argmax(), value.shape)
    out = np.empty(2)
    for axis in range(2):
        line = np.moveaxis(value, axis, 0)[:, top[1 - axis]]
        at = top[axis]
        left, middle, right = line[at - 1], line[at], line[(at + 1) % len(line)]
        bend = left - 2 * middle + right
        part = 0.5 * (left - right) / bend if bend < 0 else 0.0
        out[axis] = steps[axis][at] + (np.clip(part, -0.5, 0.5) if min(left, right) > -1 else 0)
    return out


def _gradient(values: NDArray[Any], axis: int) -> NDArray[Any]:
    return np.gradient(values, axis=axis) if values.shape[axis] > 1 else np.zeros(values.shape)


def _refine(a: _Image, b: _Image, start: NDArray[Any]) -> NDArray[Any]:
    """Displacement of `b` against `a`, near to `start`, with the growth of each particle."""
    move = start.copy()
    for _ in range(_ROUNDS):
        # Both are moved by half, so that interpolation blurs them alike.
        here = shift(a.spline, move / 2, order=3, mode="nearest", prefilter=False)
        there = shift(b.spline, -move / 2, order=3, mode="nearest", prefilter=False)
        nearest = shift(a.nearest, move / 2, order=0, mode="nearest", prefilter=False)
        inside = shift(a.valid.astype(float), move / 2, order=1, mode="constant") > 0.99
        inside &= shift(b.valid.astype(float), -move / 2, order=1, mode="constant") > 0.99
        if inside.sum() < 16:
            return start
        middle = (here + there) / 2
        slopes = [_gradient(middle, axis)[inside] for axis in range(2)]
        edge = np.hypot(*slopes)
        number = nearest[inside]
        columns = np.stack(
            [*slopes, np.ones(len(edge)), here[inside], (there - here)[inside]], axis=1
        )
        weight = np.ones(len(edge))
        step = np.zeros(2)
        for _ in range(3):
            # What the growth of each particle explains is taken off everything.
            weighted = weight**2 * edge
            power = np.bincount(number, weighted * edge, a.n)
            power += 1e-6 * max(power.sum(), 1e-300) / a.n
            left = np.empty_like(columns)
            for c, column in enumerate(columns.T):
                speed = np.bincount(number, weighted * column, a.n) / power
                left[:, c] = column - speed[number] * edge
            design, target = left[:, :4], left[:, 4]
            square = (design * weight[:, None] ** 2).T @ design
            square[np.diag_indices(4)] += 1e-6 * max(np.trace(square[:2, :2]), 1e-300) / 2
            part = np.linalg.solve(square, (design * weight[:, None] ** 2).T @ target)
            step = -part[:2]
            rest = target - design @ part
            size = np.sqrt((weight**2 * rest**2).sum() / (weight**2).sum())
            weight = 1 / np.sqrt(1 + (rest / max(size, 1e-300)) ** 2)
        move = move + np.clip(step, -_MOST_STEP, _MOST_STEP)
        if np.abs(step).max() < 2e-3:
            break
    return move if np.abs(move - start).max() <= _NEAR else start


def _solve(
    n: int, pairs: NDArray[Any], values: NDArray[Any], weights: NDArray[Any]
) -> NDArray[Any]:
    """Places (n, 2) from measured differences, the first 0; outliers count less (Cauchy)."""
    rows = np.arange(len(pairs))
    design = np.zeros((len(pairs), n))
    design[rows, pairs[:, 1]] = 1
    design[rows, pairs[:, 0]] = -1
    design = design[:, 1:]
    weight = weights
    found = np.zeros((n - 1, 2))
    for _ in range(30):
        weighted = design * weight[:, None] ** 2
        found = np.linalg.solve(weighted.T @ design, weighted.T @ values)
        rest = np.hypot(*(design @ found - values).T)
        weight = weights / np.sqrt(1 + (rest / _DOUBT) ** 2)
    return np.concatenate([np.zeros((1, 2)), found])
