"""Drift of the sample through a series of images in which particles grow.

A plain correlation of two images mistakes growth for motion where a particle grows at the border of
the scan or next to another particle. Here the difference of images `a` and `b` is, to first
order, a displacement of the whole image, plus the growth of each particle at its edge:

    b - a = -d . grad(a) + v_k |grad(a)| + offset + scale a

The displacement ``d`` and the growth ``v_k`` of each particle k are fitted together (Gauss-Newton,
as by Lucas and Kanade 1981). Weights drop where a single particle moves or appears.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.ndimage import distance_transform_edt, gaussian_filter, label, shift, spline_filter
from skimage.filters import threshold_otsu

FRAME_DISTANCES = (1, 2, 4, 8)
"""Each image is compared with the images that came so many images earlier.

From successive images alone, the errors add up. More and larger distances reduce the error, but
cost time, and particles change more between images that are far apart.
"""

BLUR_SIGMA = 1.0
"""Standard deviation of the blur of images before they are compared, scan positions.

A larger value bears more noise, but loses small particles.
"""

RESIDUAL_SCALE = 0.3
"""Residual of a pair of images, scan positions, at which its weight (of squares) is halved.

A larger value lets wrong displacements count more.
"""

MAX_FIT_STEPS = 8
"""Largest number of steps of the fit of one displacement; more cost time and rarely help."""

MAX_STEP_LENGTH = 0.5
"""Longest step of the fit along Rx and Ry, scan positions, since edges are a few positions wide.

A larger value converges faster, but may leave the edges.
"""

MAX_FIT_DISTANCE = 1.5
"""Largest distance from the start along Rx and Ry, scan positions, of a fit that has converged.

A larger value accepts more fits in place of the correlation, wrong fits among them.
"""

MIN_PARTICLE_SIZE = 4
"""Size of a particle, scan positions, from which on its growth is fitted.

A larger value counts small particles to their neighbours.
"""


class _Image(NamedTuple):
    """An image, ready to be compared."""

    smooth: NDArray[Any]  # blurred, unknown positions left out
    spline: NDArray[Any]  # spline coefficients of `smooth`
    valid: NDArray[Any]  # bool, where the image is known
    nearest: NDArray[Any]  # number of the nearest particle
    n: int  # number of particles
    flat: bool  # whether the image has one value everywhere


def find_drift_core(
    images: Iterable[NDArray[Any] | None], reach: float | None
) -> NDArray[np.float64]:
    """Displacement ``(T, 2)``, scan positions, of each image against the first one.

    Parameters
    ----------
    images : iterable of ndarray, (Rx, Ry), float64
        NaN where unknown; None for a missing image, whose displacement is NaN. At most
        ``max(FRAME_DISTANCES) + 1`` images are held at a time.
    reach : float
        Largest displacement between successive images; None for a quarter of the shorter side.
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
        places: list[NDArray[Any]] = []
        for distance in [distance for distance in FRAME_DISTANCES if distance <= k]:
            a = recent[k - distance]
            known = not (a.flat or b.flat)
            value = np.zeros(2) if distance == 1 else places[0] - found[k - distance]
            if known:
                if distance == 1:
                    value = correlate(a.smooth, b.smooth, a.valid, b.valid, farthest)
                value = _refine(a, b, value)
            pairs.append((k - distance, k))
            values.append(value)
            weights.append(1.0 if known else 1e-3)
            places.append(found[k - distance] + value)
        found.append(np.median(places, axis=0) if places else np.zeros(2))
        recent.pop(k - max(FRAME_DISTANCES), None)
    out = np.full((t + 1, 2), np.nan)
    if pairs:
        out[there] = _solve(len(there), np.array(pairs), np.array(values), np.array(weights))
    elif there:
        out[there] = 0
    return out


def _prepare(image: NDArray[Any]) -> _Image:
    valid = np.isfinite(image)
    amount = gaussian_filter(valid.astype(float), BLUR_SIGMA, mode="nearest")
    filled = np.where(valid, image, image[valid].mean())
    filled -= filled.mean()
    filled /= max(np.abs(filled).max(), 1e-300)
    smooth = gaussian_filter(filled * valid, BLUR_SIGMA, mode="nearest")
    smooth = np.where(amount > 1e-3, smooth / np.maximum(amount, 1e-3), 0)
    flat = bool(np.ptp(image[valid]) <= 1e-9 * np.abs(image[valid]).max())
    nearest, n = _particles(smooth)
    return _Image(smooth, spline_filter(smooth, 3, mode="nearest"), valid, nearest, n, flat)


def _particles(image: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Number of the bright region nearest to each position, and how many there are."""
    regions, _ = label(image > threshold_otsu(image, nbins=128))
    sizes = np.bincount(regions.ravel())
    keep = sizes >= MIN_PARTICLE_SIZE
    keep[0] = False
    number = np.cumsum(keep) * keep
    regions = number[regions]
    if not regions.any():
        return np.zeros(image.shape, dtype=int), 1
    index = distance_transform_edt(regions == 0, return_distances=False, return_indices=True)
    return regions[tuple(index)] - 1, int(keep.sum())


def correlate(
    a: NDArray[Any], b: NDArray[Any], a_valid: NDArray[Any], b_valid: NDArray[Any], reach: float
) -> NDArray[np.float64]:
    """Displacement ``(2,)`` of `b` against `a`, at most `reach`, with the largest correlation.

    For each displacement, only the positions that both images show are correlated, so that the
    border of the scan has no influence (Padfield 2012); these must be at least half of the
    positions of the smaller image. A parabola through the maximum gives fractions of a position.
    The displacement is 0 where nothing can be correlated.
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
    """Displacement of `b` against `a`, fitted with the growth of each particle from `start` on.

    Returns `start` where the fit does not converge.
    """
    move = start.copy()
    for _ in range(MAX_FIT_STEPS):
        # Each image moves by half, so that interpolation blurs both by the same amount.
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
            # The growth of each particle is eliminated from all columns of the fit.
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
        move = move + np.clip(step, -MAX_STEP_LENGTH, MAX_STEP_LENGTH)
        if np.abs(step).max() < 2e-3:
            break
    return move if np.abs(move - start).max() <= MAX_FIT_DISTANCE else start


def _solve(
    n: int, pairs: NDArray[Any], values: NDArray[Any], weights: NDArray[Any]
) -> NDArray[Any]:
    """Places ``(n, 2)`` from differences of pairs; the first is 0, outliers count less (Cauchy)."""
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
        weight = weights / np.sqrt(1 + (rest / RESIDUAL_SCALE) ** 2)
    return np.concatenate([np.zeros((1, 2)), found])
