"""Detector pixels that are bad, hot or dead: found, and filled from good neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_RATIO = 5.0
"""How many times as bright as the second brightest of its neighbours a hot pixel is. With a smaller
number, the middle of a sharp Bragg peak is taken for a hot pixel."""

_SIGMAS = 5.0
"""Standard deviations of the noise by which a pixel must differ. With a smaller number, noise makes
pixels hot or dead; with a larger one, more patterns are needed."""


def find_hot_pixels(total: NDArray[Any]) -> NDArray[np.bool_]:
    """Single pixels that stand out from their neighbours in a sum of patterns, and dead ones.

    A pixel is hot if it is 5 times as bright as the second brightest of its eight neighbours (the
    brightest may be hot itself), beyond 5 standard deviations of counting noise and 10 of the usual
    differences between neighbours. It is dead if it is 0 and each neighbour has more than 25
    counts.

    Parameters
    ----------
    total : (Qx, Qy), sum of some patterns of all parts of the scan, in counts.

    Returns
    -------
    (Qx, Qy), True for hot and dead pixels, and for those without a value.
    """
    values = np.asarray(total, dtype=np.float64)
    finite = np.isfinite(values)
    ring = _ring(np.where(finite, values, np.nan))
    ring = np.sort(ring, axis=0)  # NaN goes to the end
    count = np.isfinite(ring).sum(axis=0)
    second = np.take_along_axis(ring, np.maximum(count - 2, 0)[None], axis=0)[0]
    middle = np.take_along_axis(ring, np.maximum(count - 1, 0)[None] // 2, axis=0)[0]
    second, middle = np.nan_to_num(second), np.nan_to_num(middle)
    usual = 1.4826 * float(np.median(np.abs(values - middle)[finite])) if finite.any() else 0.0

    excess = values - _RATIO * np.maximum(second, 0)
    noise = np.sqrt(np.maximum(values, 0) + _RATIO**2 * np.maximum(second, 0))
    hot = (excess > _SIGMAS * noise) & (values - second > 2 * _SIGMAS * usual)
    # Speckle makes single pixels dark, but then some neighbours too.
    dead = (values == 0) & (ring[0] > _SIGMAS**2)
    found: NDArray[np.bool_] = hot | dead | ~finite
    return found


def _ring(values: NDArray[Any]) -> NDArray[Any]:
    """The eight neighbours (8, Qx, Qy) of each pixel, NaN outside the detector."""
    padded = np.pad(values, 1, constant_values=np.nan)
    nx, ny = values.shape
    places = [(a, b) for a in range(3) for b in range(3) if (a, b) != (1, 1)]
    return np.stack([padded[a : a + nx, b : b + ny] for a, b in places])


def good_neighbours(bad: NDArray[np.bool_]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """For each bad pixel, the good pixels in the smallest square around it that holds three.

    Returns
    -------
    list of (pixels (n,), neighbours (n, k)), as flat indices; an entry for each number k.
    """
    shape = bad.shape
    enough = min(3, int((~bad).sum()))
    # Number of good pixels above and left of each place. Four such numbers count a square.
    before = np.pad((~bad).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    groups: dict[int, list[tuple[NDArray[Any], NDArray[Any]]]] = {}
    pending = np.argwhere(bad)
    reach = 0
    while len(pending):
        reach += 1
        top, left = np.maximum(pending - reach, 0).T
        bottom, right = np.minimum(pending + reach + 1, shape).T
        count = (
            before[bottom, right] - before[top, right] - before[bottom, left] + before[top, left]
        )
        offsets = np.indices((2 * reach + 1,) * 2).reshape(2, -1).T - reach
        for k in np.unique(count[count >= enough]):
            chosen = pending[count == k]
            # In parts, because a large gap between detector chips may not fit into memory.
            for part in np.array_split(chosen, len(chosen) * len(offsets) // 2**22 + 1):
                places = part[:, None] + offsets
                inside = ((places >= 0) & (places < shape)).all(axis=2)
                flat = np.ravel_multi_index((places[..., 0], places[..., 1]), shape, mode="clip")
                good = inside & ~bad.ravel()[flat]
                pixels = np.ravel_multi_index((part[:, 0], part[:, 1]), shape)
                groups.setdefault(int(k), []).append((pixels, flat[good].reshape(-1, k)))
        pending = pending[count < enough]
    return [
        (np.concatenate([p for p, _ in group]), np.concatenate([n for _, n in group]))
        for group in groups.values()
    ]


def median(values: NDArray[Any]) -> NDArray[Any]:
    """Median along the last axis in float64; NaN are left out, and NaN only gives NaN."""
    values = np.sort(values, axis=-1)  # NaN goes to the end
    count = (values.shape[-1] - np.isnan(values).sum(axis=-1))[..., None]
    low = np.take_along_axis(values, np.maximum(count - 1, 0) // 2, axis=-1)
    high = np.take_along_axis(values, np.minimum(count // 2, values.shape[-1] - 1), axis=-1)
    return ((low.astype(np.float64) + high.astype(np.float64)) / 2)[..., 0]
