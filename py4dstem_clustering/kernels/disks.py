"""Bragg disks in the mean patterns of regions: whether there are any, and whether two regions share
them.

Features are projections of patterns on a few directions, so the mean features of a region give its
mean pattern without reading the scan again. The noise of this pattern is known, too: it falls with
the number of positions. A pattern here has one value for each bin of detector pixels, in units of
the noise of that bin in one pattern of the scan, without its radial profile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_opening, gaussian_filter

from .features import Features, find_centre

DISK_ERRORS = 4.0
"""Standard errors by which a disk must exceed the limit to be certain. A larger value needs larger
regions to tell weak disks from noise."""

DISK_BINS = 3
"""Bins that a disk, or several disks, must fill. A larger value ignores smaller and fewer disks."""

DIRECTION_ERRORS = 2.0
"""The same for the noise of the directions, which is alike in all patterns of the scan."""

SHARED_ERRORS = 2.0
"""Standard errors above which a bin counts as part of a disk when two patterns are compared."""

MIN_LIMIT = 0.25
"""Smallest contrast of disks in a grain, relative to the mean pattern of the scan. Simulated
liquid, film and vacuum reach 0.2, from 100 to 100,000 electrons; arcs of a polymer have 0.4, the
weakest of the Bloch-wave grains 0.9."""

MAX_LIMIT = 0.6
"""Largest value of the limit between grains and background. Support beside strong grains reaches
0.56, since the tails of the probe bring disks of the grains there."""

MIN_GAP = 2.5
"""Factor of contrast between background and grains. With a larger factor, weak regions beside
strong ones are grains more often. It is 3.7 for MgO on carbon, 1.7 at most in simulated films."""

SHADOW = 0.3
"""Brightness relative to the median at the same radius below which a bin is in a shadow. A larger
value leaves out more of the detector."""

_BLUR = 2.5
"""Standard deviation, in bins, of what counts as the surroundings of a disk."""

_PIECE = 512


class Disks(NamedTuple):
    """How to get the patterns of regions from their features."""

    directions: NDArray[np.float64]
    """``(bins, rank)``, see `Features`."""
    error: NDArray[np.float64]
    """Standard deviation of each bin of a single pattern that was made from features."""
    grid: NDArray[np.int64]
    """Row and column ``(bins, 2)`` of each bin."""
    mean: NDArray[np.float64]
    """Mean of each bin over the scan, in units of its noise, and a little more so that no bin is
    zero."""
    counts: NDArray[np.bool_]
    """Bins outside the direct beam and outside shadows."""
    power: NDArray[np.float64]
    """Sum of the squares of each feature over the scan. The directions were found from these
    patterns, so each bin of a direction has a variance of one over this power."""
    deviation: NDArray[np.float64] = np.ones(1)
    """Standard deviation of the noise of each bin in one pattern, in recorded units."""


def get_disks(features: Features) -> Disks:
    """What is needed to look for disks in the features of a scan."""
    directions = features.directions.astype(np.float64)
    variance = features.variance
    varying = variance[variance > 0]
    deviation = np.sqrt(np.maximum(variance, 0.02 * (varying.mean() if len(varying) else 0)))
    deviation = np.where(deviation > 0, deviation, 1.0)
    # An offset of the camera is no intensity.
    dark = float(np.quantile(features.mean / np.maximum(features.pixels, 1), 0.01))
    mean = np.maximum(features.mean - dark * features.pixels, 0)
    # Bins without a count, as beside a small image on a large detector, have no part in the means.
    lit = mean > 0
    typical = float(mean[lit].mean()) if lit.any() else 1.0
    grid = features.bin_grid
    image = _on_grid(mean / np.maximum(features.pixels, 1), grid)
    top = find_centre(image)
    radius = np.sqrt((image > image.max() / 2).sum() / np.pi)
    counts = np.hypot(grid[:, 0] - top[0], grid[:, 1] - top[1]) > 2 * radius + 1
    n_positions = features.values.shape[0] * features.values.shape[1]
    per_pixel = deviation / np.sqrt(n_positions) / np.maximum(features.pixels, 1)
    shadow = _in_shadow(mean / np.maximum(features.pixels, 1), per_pixel, grid, top)
    directions = np.where(shadow[:, None], 0.0, directions)
    counts &= ~shadow
    return Disks(
        directions,
        np.sqrt((directions**2).sum(axis=1)),
        grid,
        (mean + 0.02 * typical) / deviation,
        counts if counts.sum() > DISK_BINS else np.ones(len(grid), dtype=bool),
        np.maximum((features.values.astype(np.float64) ** 2).sum(axis=(0, 1)), 1.0),
        deviation,
    )


def _in_shadow(
    mean: NDArray[Any], error: NDArray[Any], grid: NDArray[Any], centre: tuple[float, float]
) -> NDArray[np.bool_]:
    """Bins far darker than others at their radius, as behind a beam stop, and those beside them."""
    ring = np.hypot(grid[:, 0] - centre[0], grid[:, 1] - centre[1]).round().astype(int)
    median = np.array([np.median(mean[ring == r]) if (ring == r).any() else 0.0
                       for r in range(ring.max() + 1)])  # fmt: skip
    dark = mean + DISK_ERRORS * error < SHADOW * median[ring]
    image = _on_grid(dark.astype(np.float64), grid) > 0
    # Two bins, since the edge of a shadow is blurred.
    beside = binary_dilation(image, np.ones((3, 3)), iterations=2)
    # Single dark bins are chance, or dead pixels without an edge.
    large = binary_opening(image, np.ones((2, 2)))
    return beside[grid[:, 0], grid[:, 1]] & large.any()


def _on_grid(values: NDArray[Any], grid: NDArray[Any]) -> NDArray[np.float64]:
    """Values ``(..., bins)`` as images; bins that do not count are 0."""
    image = np.zeros((*values.shape[:-1], *(grid.max(axis=0) + 1)))
    image[..., grid[:, 0], grid[:, 1]] = values
    return image


def disk_contrast(
    disks: Disks, mean: NDArray[Any], size: NDArray[Any], errors: float
) -> NDArray[np.float64]:
    """How far disks rise above their surroundings in the mean features ``(n, rank)`` of regions.

    The contrast is relative to the mean pattern of the scan at the same place, less `errors`
    standard errors. Of all bins, the one of rank `DISK_BINS` is taken. With positive `errors` the
    contrast is at least as large as the result, with negative `errors` at most.

    Parameters
    ----------
    disks : Disks
    mean : ndarray, (n, rank)
        Mean features of each region.
    size : ndarray, (n,)
        Number of positions of each region.
    errors : float
    """
    out = np.empty(len(mean))
    inside = np.maximum(
        gaussian_filter(_on_grid(np.ones(len(disks.grid)), disks.grid), _BLUR), 0.05
    )
    rank = min(DISK_BINS, int(disks.counts.sum()))
    for start in range(0, len(mean), _PIECE):
        piece = slice(start, start + _PIECE)
        pattern = mean[piece] @ disks.directions.T
        around = gaussian_filter(_on_grid(pattern, disks.grid), (0, _BLUR, _BLUR)) / inside
        rise = pattern - around[:, disks.grid[:, 0], disks.grid[:, 1]]
        # Beside a shadow, such as a beam stop, a bin rises without being bright.
        rise = np.minimum(rise, pattern)
        own = disks.error / np.sqrt(size[piece, None])
        directions = np.sqrt((mean[piece] ** 2) @ (1 / disks.power))[:, None]
        rise -= errors * own + np.sign(errors) * DIRECTION_ERRORS * directions
        contrast = (rise / np.maximum(disks.mean, 1e-12))[:, disks.counts]
        out[piece] = np.partition(contrast, -rank, axis=1)[:, -rank]
    return out


def contrast_limit(contrast: NDArray[Any]) -> float:
    """Contrast of disks above which a region is a grain, from that of all regions of the scan.

    Background and grains leave a gap: a region and the next one differ by a factor of `MIN_GAP` at
    least. The limit lies in the widest gap, between `MIN_LIMIT` and `MAX_LIMIT`. Where there is no
    gap, as in a film of weak and strong grains, it is `MIN_LIMIT`.
    """
    ordered = np.sort(np.maximum(contrast, MIN_LIMIT / 2))
    low, high = ordered[:-1], ordered[1:]
    low, high = low[low <= MAX_LIMIT], high[low <= MAX_LIMIT]
    if not len(low) or (high / low).max() < MIN_GAP:
        return MIN_LIMIT
    widest = int((high / low).argmax())
    return float(np.clip(np.sqrt(low[widest] * high[widest]), MIN_LIMIT, MAX_LIMIT))


def shared_disks(disks: Disks, mean: NDArray[Any], size: NDArray[Any]) -> NDArray[np.float64]:
    """Share of the disks that pairs of patterns have in common, 0 to 1.

    It is the cosine between the roots of both patterns (their Hellinger affinity), with bins below
    `SHARED_ERRORS` standard errors set to zero. The root makes disks count by their place more
    than by their intensity, which changes with thickness and bending. Noise makes the cosine
    smaller; the result is relative to the cosine that noise leaves between two measurements of one
    pattern.

    Parameters
    ----------
    disks : Disks
    mean : ndarray, (n, 2, rank)
        Mean features on both sides of each border.
    size : ndarray, (n, 2)
        Number of positions on both sides.
    """
    rank = mean.shape[2]
    # One draw for all pairs, so that a pair has the same result in any order.
    noise = np.random.default_rng(0).standard_normal(rank)
    out = np.empty(len(mean))
    for start in range(0, len(mean), _PIECE):
        piece = slice(start, start + _PIECE)
        first, second = mean[piece, 0], mean[piece, 1]
        n_first, n_second = size[piece, 0], size[piece, 1]
        shift = np.sqrt(1 / n_first + 1 / n_second)[:, None] * noise
        roots = {
            "first": _roots(disks, first, n_first),
            "second": _roots(disks, second, n_second),
            "first again": _roots(disks, first + shift, n_second),
            "second again": _roots(disks, second + shift, n_first),
        }
        found = _cosines(roots["first"], roots["second"])
        possible = np.minimum(
            _cosines(roots["first"], roots["first again"]),
            _cosines(roots["second"], roots["second again"]),
        )
        out[piece] = found / np.maximum(np.maximum(possible, found), 0.3)
    return out


def _roots(disks: Disks, mean: NDArray[Any], size: NDArray[Any]) -> NDArray[np.float64]:
    """Roots of the significant part of patterns."""
    error = SHARED_ERRORS * disks.error / np.sqrt(size)[:, None]
    return np.sqrt(np.maximum(mean @ disks.directions.T - error, 0))


def _cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    norms = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return (a * b).sum(axis=1) / np.maximum(norms, 1e-12)
