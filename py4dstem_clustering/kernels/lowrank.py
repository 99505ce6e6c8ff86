"""Low-rank model of a scan: the few patterns that all its patterns are mixtures of.

Patterns are divided by the root of their noise. What differs between positions then lies in a few
directions, and noise lies evenly in all. They are found in bins of detector pixels
(`lowrank_basis`). Then, twice:

1. Each pattern is measured along the directions. In windows of the scan, these scores change in
   fewer directions still; what does not stand out of noise there is removed (`shrinkage`).
2. Each detector pixel is fitted by the scores of all positions, which gives directions at the full
   resolution. In windows of the detector, what does not stand out of noise is removed.

The first time scores are those of bins, the second time those of the directions of the first time.
Counting noise of bright disks is much larger than that of the mean pattern; it is known in each
window from the model itself, and taken into account.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .binning import MAX_BINS, Binning
from .blas import matmul
from .blocks import MemoryNeed, Report, Run, iterate_blocks, row_need, scratch_need, tiles, workers
from .lowrank_basis import MAX_DIRECTIONS, Camera, Sums, binned_basis, find_camera
from .noise import Noise
from .shrinkage import shrink_windows, window_starts

N_REGIONS = 8
"""Regions of the detector along either axis, for each of which noise is estimated."""

SCAN_WINDOW, SCAN_STEP = 7, 4
"""Positions along the side of a window of the scan, and between windows. Larger windows mix more
grains, in smaller ones less stands out of noise."""

_DETECTOR_WINDOW, _DETECTOR_STEP = 3.0, 1.5
"""The same of the detector, in bins."""

_CERTAIN = 0.5
"""Power of a direction of the full resolution, in units of the root of positions times bins, from
which it stays. Noise alone hides what is below 1 in bins; pixels near each other show more."""

_NOISE_FACTOR = 1.05
"""Error of results over what is counted of it: structure outside the directions is not. It was 0.96
to 1.19 in simulated scans of six kinds (seed 100)."""

_WINDOWS_PER_TASK = 16

_PIXELS_PER_TASK = 2048
"""Detector pixels that are fitted in one task; fewer of them make calls too short."""

_FILLS = 8
"""Times that missing pixels are filled from the model and the model is fitted anew. After a few
times nothing changes, where not most of the pattern is missing."""


class Model(NamedTuple):
    """Directions of a scan; a pattern is ``scores @ directions``, in the unit of `bins`."""

    bins: Binning
    scores: NDArray[np.float32]
    """``(Rx, Ry, rank)``"""
    directions: NDArray[np.float32]
    """``(rank, Qx Qy)``"""
    in_bins: NDArray[np.float32]
    """`directions` in bins ``(rank, bins)``."""
    noise: NDArray[np.float32]
    """Noise of a pixel of the model in each region of the detector ``(Rx, Ry, n, m)``."""
    gain: float
    offset: float
    """Gain and offset of a pixel, in the unit of `bins`."""
    bin_gain: float
    """Gain from the noise of bins: larger where the noise of neighbouring pixels is alike."""
    mean: NDArray[np.float64]
    """Mean of each bin, without the offset, at least a floor."""

    @property
    def rank(self) -> int:
        """Number of directions."""
        return len(self.directions)


def model_need(data: Any, n_jobs: int | None) -> MemoryNeed:
    """Memory that `model_core` takes."""
    rx, ry, qx, qy = data.shape
    n_bins = min(MAX_BINS, qx * qy)
    matrices = 6 * 8 * n_bins**2
    row = 4 * ry * qx * qy
    kept = (SCAN_WINDOW + SCAN_STEP) * row_need(data)
    maps = 4 * rx * ry * (2 * MAX_DIRECTIONS + N_REGIONS**2)
    fits = 4 * MAX_DIRECTIONS * (8 * qx * qy + 3 * MAX_DIRECTIONS**2)
    fixed = max(matrices, maps + kept + row + fits) + scratch_need(data, n_jobs, 64, 3.5)
    return MemoryNeed(fixed, 2 * row_need(data) + 8 * ry * n_bins + 8 * len(tiles(ry)) * qx * qy)


def model_core(
    data: Any,
    *,
    q_mask: NDArray[np.bool_] | None,
    rank: int | None,
    noise: Noise | None,
    shifts: NDArray[np.int64] | None,
    local: bool,
    n_jobs: int | None,
    report: Report,
    n_rows: int | None = None,
) -> Model:
    """Find the model of a scan; with `rank` None, of as many directions as stand out of noise.

    `noise` is that of the camera; None finds it from neighbours, roughly. With `local` false,
    scores are not compared with those of neighbours. Reads the data three times.
    """
    scan, n_positions = data.shape[:2], data.shape[0] * data.shape[1]
    bins = Binning(data, q_mask)
    total = np.zeros(bins.hot.size)
    sums = Sums(len(bins.pixels))
    with workers(n_jobs) as run:
        for start, rows in iterate_blocks(data, copies=2, n_rows=n_rows):
            for row in bins.bin_rows(rows, _part(shifts, start, len(rows)), run, total):
                sums.add(row, run)
            report(len(rows))
        camera = find_camera(
            bins, noise, total / n_positions, sums.mean(n_positions), sums.variance(scan)
        )
        found = binned_basis(sums.covariance, bins, camera, n_positions, rank)
        del sums
        reader = _Reader(data, bins, shifts, local, run, report, n_rows)

        scale = np.sqrt(camera.bin_gain * camera.bin)
        view = _View(found / scale[:, None], (found * scale[:, None]).T, True)
        fit = reader.fit(view, camera.bin_gain, camera.offset * bins.pixels)
        weight = 1 / np.sqrt(camera.gain * camera.pixel)
        weight[bins.hot.ravel()] = 0
        kept, _ = _shrink_directions(fit, camera, weight, bins, run, None)
        level, vectors = np.linalg.eigh(kept @ kept.T)
        least = 1e-10 * level[-1]
        if rank is None:
            least = max(least, _CERTAIN * np.sqrt(n_positions * len(bins.pixels)))
        enough = level >= min(least, level[-1])
        axes = (vectors[:, enough] / np.sqrt(np.maximum(level[enough], 1e-30))).T @ kept

        regions = Regions(bins)
        with np.errstate(divide="ignore"):
            patterns = np.where(weight > 0, axes / weight, 0)
        view = _View((axes * weight).T, patterns, False)
        forms = regions.forms(patterns)
        fit = reader.fit(view, camera.gain, np.full(len(weight), camera.offset), forms)
        kept, of_directions = _shrink_directions(fit, camera, weight, bins, run, regions)

    with np.errstate(divide="ignore", invalid="ignore"):
        directions = np.where(weight > 0, kept / weight, fit.patterns).astype(np.float32)
    k = len(directions)
    power = fit.power
    for rows_of_scores, out in zip(fit.scores, power, strict=True):
        turned = matmul(rows_of_scores, of_directions).swapaxes(0, 1)
        out += np.maximum(matmul(turned, rows_of_scores[:, :, None])[..., 0], 0)
    np.sqrt(power, out=power)
    power *= np.float32(_NOISE_FACTOR * bins.unit)
    binned = np.empty((k, len(bins.pixels)), dtype=np.float32)
    bins.bin(directions, binned)
    return Model(
        bins=bins,
        scores=fit.scores,
        directions=np.ascontiguousarray(directions),
        in_bins=binned,
        noise=power.reshape(*scan, *regions.shape),
        gain=camera.gain,
        offset=camera.offset,
        bin_gain=camera.bin_gain,
        mean=camera.bin,
    )


class Regions:
    """Regions of the detector in which noise is estimated."""

    def __init__(self, bins: Binning) -> None:
        detector = bins.hot.shape
        self.shape = (min(N_REGIONS, detector[0]), min(N_REGIONS, detector[1]))
        u, v = (np.arange(n) * k // n for n, k in zip(detector, self.shape, strict=True))
        self.of_pixels = u[:, None] * self.shape[1] + v
        """Region of each detector pixel ``(Qx, Qy)``."""
        valid = self.of_pixels[~bins.hot]
        self.n_pixels = np.maximum(np.bincount(valid, minlength=self.number), 1)
        """Number of pixels of each region that are not hot."""

    @property
    def number(self) -> int:
        """Number of regions."""
        return self.shape[0] * self.shape[1]

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


class _View(NamedTuple):
    """Directions to measure patterns along."""

    to_scores: NDArray[Any]
    """``(bins or pixels, k)``"""
    patterns: NDArray[Any]
    """Pattern of each score ``(k, bins or pixels)``."""
    binned: bool


class _Fit(NamedTuple):
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


class _Reader:
    """What it takes to read a scan."""

    def __init__(
        self,
        data: Any,
        bins: Binning,
        shifts: NDArray[np.int64] | None,
        local: bool,
        run: Run,
        report: Report,
        n_rows: int | None,
    ) -> None:
        self.data, self.bins, self.shifts, self.local = data, bins, shifts, local
        self.run, self.report, self.n_rows = run, report, n_rows
        self.pieces = tiles(data.shape[1])

    def fit(
        self,
        view: _View,
        gain: float,
        dark: NDArray[np.float64],
        forms: NDArray[np.float32] | None = None,
    ) -> _Fit:
        """Scores along a view, without noise that can be told from neighbours; fit of all pixels.

        `dark` is the offset of the bins or pixels of the view. With `forms` (see `Regions`), the
        power of noise is found.
        """
        (rx, ry), n_pixels = self.data.shape[:2], self.bins.hot.size
        k = view.to_scores.shape[1]
        noise_form = _noise_form(view, gain, dark, self.run)
        to_scores = view.to_scores.astype(np.float32)
        patterns = view.patterns.astype(np.float32)
        scores = np.empty((rx, ry, k), dtype=np.float32)
        power = np.zeros((rx, ry, 0 if forms is None else forms.shape[1]), dtype=np.float32)
        smooth = _Smoother(scores, noise_form, forms, power, self.local)
        products, second = np.zeros((k, n_pixels)), np.zeros((k, k))
        third = np.zeros((k + 1, k * k))
        waiting: dict[int, NDArray[Any]] = {}
        done = 0
        for start, rows in iterate_blocks(self.data, copies=2, n_rows=self.n_rows):

            def score(task: tuple[int, slice], start: int = start) -> None:
                i, piece = task
                x = self.read(waiting, i, piece)
                if view.binned:
                    binned = np.empty((len(x), len(self.bins.pixels)), dtype=np.float32)
                    self.bins.bin(x, binned)
                    scores[i, piece] = matmul(binned, to_scores)
                    return
                found = matmul(x, to_scores)
                for n, missing in missing_pixels(waiting[i][piece], self.shifts is not None):
                    # The model says what is missing, and the more is known, the better.
                    for _ in range(_FILLS):
                        x[n, missing] = found[n] @ patterns[:, missing]
                        found[n] = x[n] @ to_scores
                scores[i, piece] = found

            waiting.update(zip(range(start, start + len(rows)), rows, strict=True))
            self.run(score, product(range(start, start + len(rows)), self.pieces))
            last = smooth.advance(start + len(rows), self.run)
            for i in range(done, last):
                x = np.empty((ry, n_pixels), dtype=np.float32)

                def read(piece: slice, i: int = i, x: NDArray[np.float32] = x) -> None:
                    x[piece] = self.read(waiting, i, piece)
                    if view.binned:
                        return
                    for n, missing in missing_pixels(waiting[i][piece], self.shifts is not None):
                        near = scores[i, piece][n] @ patterns[:, missing]
                        x[piece][n, missing] = near

                self.run(read, self.pieces)
                row = smooth.finished(i)

                def add(part: slice, row: Any = row, x: NDArray[np.float32] = x) -> None:
                    products[:, part] += matmul(row.T, x[:, part])

                self.run(add, tiles(n_pixels, _PIXELS_PER_TASK))
                second += matmul(row.T, row)
                third += _third_moments(row)
                del waiting[i]
            done = last
            self.report(len(rows))
        return _unit_power(smooth.total, products, second, third, power)

    def read(self, waiting: dict[int, NDArray[Any]], i: int, piece: slice) -> NDArray[np.float32]:
        """Some patterns of row `i` ``(n, Qx Qy)``, in the unit of bins and moved."""
        moves = None if self.shifts is None else self.shifts[i, piece]
        return self.bins.patterns(waiting[i][piece], moves)


def missing_pixels(patterns: NDArray[Any], moved: bool) -> list[tuple[int, NDArray[np.bool_]]]:
    """Patterns of a piece that have missing pixels, and these; none where patterns are moved."""
    if patterns.dtype.kind != "f" or moved:
        return []
    raw = patterns.reshape(len(patterns), -1)
    some = np.flatnonzero(~np.isfinite(raw).all(axis=1))
    return [(int(n), ~np.isfinite(raw[n])) for n in some]


class _Smoother:
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


def _third_moments(row: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum over positions of score x score x (scores, 1), ``(k + 1, k * k)``."""
    n, k = row.shape
    squares = (row[:, :, None] * row[:, None]).reshape(n, k * k)
    with_one = np.concatenate([row, np.ones((n, 1), dtype=np.float32)], axis=1)
    found: NDArray[Any] = matmul(with_one.T, squares)
    return found.astype(np.float64)


def _noise_form(
    view: _View, gain: float, dark: NDArray[np.float64], run: Run
) -> NDArray[np.float32]:
    """From scores, and 1, to the covariance of their counting noise, ``(k + 1, k * k)``."""
    k = view.to_scores.shape[1]
    expected = np.concatenate([view.patterns, -dark[None]]).astype(np.float32)
    expected *= np.float32(gain)
    to_scores = view.to_scores.astype(np.float32)
    out = np.empty((k + 1, k, k), dtype=np.float32)

    def form(a: int) -> None:
        out[:, a] = matmul(expected * to_scores[:, a], to_scores)

    run(form, range(k))
    return out.reshape(k + 1, k * k)


def _unit_power(
    scores: NDArray[np.float32],
    products: NDArray[np.float64],
    second: NDArray[np.float64],
    third: NDArray[np.float64],
    power: NDArray[np.float32],
) -> _Fit:
    """Turn and scale scores so that they are orthonormal; directions that are empty go."""
    level, vectors = np.linalg.eigh(second)
    enough = level > 1e-9 * max(level[-1], 1e-30)
    enough[-1] = True
    turn = vectors[:, enough] / np.sqrt(np.maximum(level[enough], 1e-30))
    k, found = turn.shape
    with_one = np.zeros((k + 1, found + 1))
    with_one[:k, :found], with_one[k, found] = turn, 1
    moments = np.einsum("ca,cij->aij", with_one, third.reshape(k + 1, k, k))
    moments = turn.T @ moments @ turn
    for row in scores:  # in place: two maps of scores may not fit in memory
        row[:, :found] = matmul(row, turn.astype(np.float32))
    return _Fit(scores[..., :found], turn.T @ products, moments.reshape(found + 1, -1), power)


def _shrink_directions(
    fit: _Fit,
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
                for n, spot in enumerate(spots):
                    where, factor = regions.of_pixels[spot].ravel(), inverse[spot].ravel()
                    own = shrunk.own[n]
                    for m, share in enumerate((own + shrunk.lost[n], 1 - own)):
                        shares[m, n] = np.bincount(where, share * factor, minlength=n_regions)
                power = matmul(shares[0].T, shrunk.noise.reshape(len(spots), -1))
                power += matmul(shares[1].T, shrunk.space.reshape(len(spots), -1))
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
    # The mean pattern stays: what is weak, but everywhere, must not vanish.
    mean = fit.scores.mean(axis=(0, 1), dtype=np.float64)
    mean /= max(float(np.linalg.norm(mean)), 1e-30)
    total += ((values - total) @ mean)[..., None] * mean
    if regions is not None:
        noise /= regions.n_pixels[:, None]
    return total.reshape(qx * qy, k).T, noise.reshape(-1, k, k).astype(np.float32)


def _part(shifts: NDArray[np.int64] | None, start: int, n: int) -> NDArray[np.int64] | None:
    return None if shifts is None else shifts[start : start + n]
