"""Low-rank model of a scan: noise told from neighbours, in windows of the scan and the detector."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .binning import Binning
from .blas import matmul
from .blocks import Run, tiles
from .lowrank_basis import Camera
from .shrinkage import shrink_windows, window_starts

N_REGIONS = 8
"""Regions of the detector along either axis, for each of which noise is estimated."""

SCAN_WINDOW, SCAN_STEP = 7, 4
"""Positions along the side of a window of the scan, and between windows. Larger windows mix more
grains, in smaller ones less stands out of noise."""

_DETECTOR_WINDOW, _DETECTOR_STEP = 3.0, 1.5
"""The same of the detector, in bins."""

_WINDOWS_PER_TASK = 16


class Regions:
    """Regions of the detector in which noise is estimated."""

    def __init__(self, bins: Binning) -> None:
        detector = bins.hot.shape
        self.shape = (min(N_REGIONS, detector[0]), min(N_REGIONS, detector[1]))
        u, v = (np.arange(n) * k // n for n, k in zip(detector, self.shape, strict=True))
        self._along = [
            np.eye(k, dtype=np.float32)[:, which]
            for which, k in zip((u, v), self.shape, strict=True)
        ]
        self._hot = np.flatnonzero(bins.hot)
        self.of_pixels = u[:, None] * self.shape[1] + v
        """Region of each detector pixel ``(Qx, Qy)``."""
        valid = self.of_pixels[~bins.hot]
        self.n_pixels = np.maximum(np.bincount(valid, minlength=self.number), 1)
        """Number of pixels of each region that are not hot."""

    @property
    def number(self) -> int:
        """Number of regions."""
        return self.shape[0] * self.shape[1]

    def means(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean of each region ``(n, regions)`` of maps ``(n, Qx Qy)``; hot pixels become 0."""
        if len(self._hot):
            x[:, self._hot] = 0
        maps = x.reshape(-1, *self.of_pixels.shape)
        sums = matmul(matmul(self._along[0], maps), self._along[1].T).reshape(len(maps), -1)
        return np.asarray(sums / self.n_pixels.astype(np.float32))

    def forms(self, patterns: NDArray[Any]) -> NDArray[np.float32]:
        """From a covariance of scores to the power of a pixel in each region.

        ``(k * k, regions)``, for directions `patterns` ``(k, Qx Qy)``.
        """
        k = len(patterns)
        out = np.empty((k * k, self.number), dtype=np.float32)
        for region, n in enumerate(self.n_pixels):
            some = patterns[:, self.of_pixels.ravel() == region]
            out[:, region] = (some @ some.T / n).ravel()
        return out


class Fit(NamedTuple):
    """Scores of a scan, with unit power altogether, and the fit of each pixel by them."""

    scores: NDArray[np.float32]
    """``(Rx, Ry, k)``"""
    patterns: NDArray[np.float64]
    """``(k, Qx Qy)``"""
    moments: NDArray[np.float64]
    """Sums over positions of score x score x (scores, 1), ``(k + 1, k * k)``."""
    power: NDArray[np.float32]
    """Power of the noise that scores bring to a pixel of each region ``(Rx, Ry, regions)``; empty
    where it was not asked for."""
    measured: NDArray[np.float32] | None = None
    """Scores ``(Rx, Ry, k)`` as they were measured, where they were asked for."""


class Smoother:
    """Scores without noise that can be told from neighbours, window by window."""

    def __init__(
        self,
        scores: NDArray[np.float32],
        noise_form: NDArray[np.float32],
        forms: NDArray[np.float32] | None,
        power: NDArray[np.float32],
        local: bool,
    ) -> None:
        rx, ry, _ = scores.shape
        self._scores, self._noise_form, self._forms = scores, noise_form, forms
        self._power = power
        self._local = local
        self.total = np.zeros_like(scores) if local else scores
        self._size = min(SCAN_WINDOW, rx), min(SCAN_WINDOW, ry)
        self._tops = window_starts(rx, self._size[0], SCAN_STEP)
        self._lefts = np.array(window_starts(ry, self._size[1], SCAN_STEP))
        self._next = 0
        counts = (
            _covering(n, starts, size)
            for n, starts, size in zip((rx, ry), (self._tops, self._lefts), self._size, strict=True)
        )
        self._count = np.outer(*counts).astype(np.float32)

    def advance(self, known: int, run: Run) -> int:
        """Work with the scores of all rows before `known`; returns how many rows are finished."""
        if not self._local:
            return known
        first = self._next
        while self._next < len(self._tops) and self._tops[self._next] + self._size[0] <= known:
            self._next += 1
        some = self._tops[first : self._next]
        groups = tiles(len(self._lefts), _WINDOWS_PER_TASK)
        found: dict[tuple[int, int], Any] = {}

        def shrink(task: tuple[int, slice]) -> None:
            found[task[0], task[1].start] = self._shrink(task[0], self._lefts[task[1]])

        run(shrink, product(some, groups))
        height, width = self._size
        for top, group in product(some, groups):
            values, power = found.pop((top, group.start))
            for n, left in enumerate(self._lefts[group]):
                where = np.s_[top : top + height, left : left + width]
                self.total[where] += values[n]
                if power is not None:
                    self._power[where] += power[n]
        return self._tops[self._next] if self._next < len(self._tops) else len(self._scores)

    def _shrink(self, top: int, lefts: NDArray[Any]) -> tuple[NDArray[np.float32], Any]:
        height, width = self._size
        k = self._scores.shape[2]
        rows = self._scores[top : top + height]
        windows = np.stack([rows[:, left : left + width] for left in lefts])
        flat = windows.reshape(len(lefts), -1, k)
        noise = matmul(flat.mean(axis=1), self._noise_form[:-1]) + self._noise_form[-1]
        found = shrink_windows(flat, noise.reshape(-1, k, k))
        values = found.values.reshape(windows.shape)
        if self._forms is None:
            return values, None
        before, kept = (
            matmul(form.reshape(len(lefts), k * k), self._forms)[:, None]
            for form in (found.noise, found.space)
        )
        own = found.own[..., None]
        # What is lost may be below zero by chance.
        own_and_lost = np.maximum(own + found.lost[:, None, None], 0.5 * own)
        return values, (own_and_lost * before + (1 - own) * kept).reshape(*windows.shape[:3], -1)

    def finished(self, i: int) -> NDArray[np.float32]:
        """Scores ``(Ry, k)`` of a row that is finished; call it once for each row."""
        count = self._count[i, :, None]
        row = self.total[i]
        if self._local:
            row /= count
            self._power[i] /= count
        elif self._forms is not None:
            form = matmul(self._noise_form.reshape(-1, len(self._forms)), self._forms)
            self._power[i] = np.maximum(matmul(row, form[:-1]) + form[-1], 0)
        return row


def _covering(n: int, starts: Any, size: int) -> NDArray[np.float64]:
    """How many windows cover each sample of an axis."""
    out = np.zeros(n)
    for start in starts:
        out[start : start + size] += 1
    return out


def _add_squares(
    values: NDArray[Any], weight: NDArray[Any], region: NDArray[Any], out: NDArray[Any]
) -> None:
    """Add ``weight value x value`` of each pixel to `out` ``(regions, k, k)``, by its region."""
    for which in np.unique(region):
        inside = region == which
        some = values[inside] * np.sqrt(weight[inside])[:, None]
        out[which] += some.T @ some


def shrink_directions(
    fit: Fit,
    camera: Camera,
    weight: NDArray[np.float64],
    bins: Binning,
    run: Run,
    regions: Regions | None,
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Directions ``(k, Qx Qy)`` in units of noise, without what does not stand out of it nearby.

    With `regions`, also the covariance of the noise of their pixels ``(regions, k, k)``.
    """
    qx, qy = bins.hot.shape
    k = len(fit.patterns)
    values = (fit.patterns * weight).T.reshape(qx, qy, k).astype(np.float32)
    # Counting noise of a direction at a pixel: `moments` times the patterns there.
    expected = np.concatenate([fit.patterns, np.full((1, qx * qy), -camera.offset)])
    expected *= camera.gain * weight**2
    near = expected.T.reshape(qx, qy, k + 1).astype(np.float32)
    form = fit.moments.astype(np.float32)
    size = [min(n, max(round(_DETECTOR_WINDOW * bins.factor), 3)) for n in (qx, qy)]
    step = max(round(_DETECTOR_STEP * bins.factor), 1)
    tops, lefts = (window_starts(n, side, step) for n, side in zip((qx, qy), size, strict=True))
    count = np.outer(_covering(qx, tops, size[0]), _covering(qy, lefts, size[1]))
    total = np.zeros((qx, qy, k))
    with np.errstate(divide="ignore"):
        inverse = np.where(weight > 0, 1 / weight**2, 0).reshape(qx, qy) / count
    n_regions = 0 if regions is None else regions.number
    noise = np.zeros((n_regions, k * k))
    found: dict[int, Any] = {}

    def shrink(top: int) -> None:
        part = []
        for some in tiles(len(lefts), _WINDOWS_PER_TASK):
            spots = [np.s_[top : top + size[0], left : left + size[1]] for left in lefts[some]]
            flat = np.stack([values[spot].reshape(-1, k) for spot in spots])
            mean = np.stack([near[spot].mean(axis=(0, 1)) for spot in spots])
            shrunk = shrink_windows(flat, matmul(mean, form).reshape(-1, k, k))
            power = None
            if regions is not None:
                shares = np.zeros((2, len(spots), n_regions), dtype=np.float32)
                changes = np.zeros((n_regions, k, k), dtype=np.float32)
                for n, spot in enumerate(spots):
                    where, factor = regions.of_pixels[spot].ravel(), inverse[spot].ravel()
                    _add_squares(shrunk.values[n] - flat[n], factor, where, changes)
                    own = shrunk.own[n]
                    for m, share in enumerate((own + shrunk.lost[n], 1 - own)):
                        shares[m, n] = np.bincount(where, share * factor, minlength=n_regions)
                power = matmul(shares[0].T, shrunk.noise.reshape(len(spots), -1))
                power += matmul(shares[1].T, shrunk.space.reshape(len(spots), -1))
                power -= changes.reshape(n_regions, -1)
            part.append((spots, shrunk.values, power))
        found[top] = part

    for some in tiles(len(tops), 8):
        run(shrink, tops[some])
        for top in tops[some]:
            for spots, kept, power in found.pop(top):
                for spot, one in zip(spots, kept, strict=True):
                    total[spot] += one.reshape(*total[spot].shape)
                if power is not None:
                    noise += power
    total /= count[..., None]
    if regions is not None:
        # As with windows of the scan: the error of a mean is smaller than the mean error.
        changes = np.zeros((n_regions, k, k))
        apart = (total - values).reshape(qx * qy, k)
        _add_squares(apart, (inverse * count).ravel(), regions.of_pixels.ravel(), changes)
        noise += changes.reshape(n_regions, -1)
    # The mean pattern stays: what is weak, but everywhere, must not vanish.
    mean = fit.scores.mean(axis=(0, 1), dtype=np.float64)
    mean /= max(float(np.linalg.norm(mean)), 1e-30)
    total += ((values - total) @ mean)[..., None] * mean
    if regions is not None:
        noise /= regions.n_pixels[:, None]
        # So does all of its noise.
        counting = np.concatenate([fit.patterns, np.full((1, qx * qy), -camera.offset)])
        counting = regions.means((camera.gain * counting).astype(np.float32))
        of_mean = np.outer(mean, mean).ravel()
        noise += ((matmul(counting.T, form) - noise) @ of_mean)[:, None] * of_mean
    return total.reshape(qx * qy, k).T, noise.reshape(-1, k, k).astype(np.float32)
