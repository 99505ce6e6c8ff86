"""Low-rank model of a scan: its patterns measured along directions, and each pixel fitted."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .binning import Binning
from .blas import matmul
from .blocks import Report, Run, iterate_blocks, tiles
from .lowrank_windows import Fit, Smoother

_PIXELS_PER_TASK = 1024
"""Detector pixels that are fitted in one task; fewer of them make calls too short, more of them do
not stay in the cache of a processor core."""

_FILLS = 8
"""Times that missing pixels are filled from the model and the model is fitted anew. After a few
times nothing changes, where not most of the pattern is missing."""


class View(NamedTuple):
    """Directions to measure patterns along."""

    to_scores: NDArray[Any]
    """``(bins or pixels, k)``"""
    patterns: NDArray[Any]
    """Pattern of each score ``(k, bins or pixels)``."""
    binned: bool


class Reader:
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
        self.plain = shifts is None and bins.holds_counts(data.dtype)
        """Whether patterns need nothing but the type float32; then no copy of a row is made."""

    def fit(
        self,
        view: View,
        gain: float,
        dark: NDArray[np.float64],
        forms: NDArray[np.float32] | None = None,
        keep: bool = False,
    ) -> Fit:
        """Scores along a view, without noise that can be told from neighbours; fit of all pixels.

        `dark` is the offset of the bins or pixels of the view. With `forms` (see `Regions`), the
        power of noise is found. With `keep`, scores as they were measured are returned, too.
        """
        (rx, ry), n_pixels = self.data.shape[:2], self.bins.hot.size
        k = view.to_scores.shape[1]
        noise_form = _noise_form(view, gain, dark, self.run)
        to_scores = view.to_scores.astype(np.float32)
        patterns = view.patterns.astype(np.float32)
        scores = np.empty((rx, ry, k), dtype=np.float32)
        power = np.zeros((rx, ry, 0 if forms is None else forms.shape[1]), dtype=np.float32)
        smooth = Smoother(scores, noise_form, forms, power, self.local)
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
                row = smooth.finished(i)
                if self.plain:
                    x = waiting[i].reshape(ry, n_pixels)
                else:
                    x = np.empty((ry, n_pixels), dtype=np.float32)

                def read(piece: slice, i: int = i, x: NDArray[Any] = x) -> None:
                    x[piece] = self.read(waiting, i, piece)
                    if view.binned:
                        return
                    for n, missing in missing_pixels(waiting[i][piece], self.shifts is not None):
                        near = scores[i, piece][n] @ patterns[:, missing]
                        x[piece][n, missing] = near

                if not self.plain:
                    self.run(read, self.pieces)

                def add(part: slice, row: Any = row, x: NDArray[Any] = x) -> None:
                    products[:, part] += matmul(row.T, x[:, part].astype(np.float32, copy=False))

                self.run(add, tiles(n_pixels, _PIXELS_PER_TASK))
                second += matmul(row.T, row)
                third += _third_moments(row)
                del waiting[i]
            done = last
            self.report(len(rows))
        measured = None
        if keep:
            measured = scores if self.local else scores.copy()
        return _unit_power(smooth.total, products, second, third, power)._replace(measured=measured)

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


def _third_moments(row: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum over positions of score x score x (scores, 1), ``(k + 1, k * k)``."""
    n, k = row.shape
    squares = (row[:, :, None] * row[:, None]).reshape(n, k * k)
    with_one = np.concatenate([row, np.ones((n, 1), dtype=np.float32)], axis=1)
    found: NDArray[Any] = matmul(with_one.T, squares)
    return found.astype(np.float64)


def _noise_form(
    view: View, gain: float, dark: NDArray[np.float64], run: Run
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
) -> Fit:
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
    return Fit(scores[..., :found], turn.T @ products, moments.reshape(found + 1, -1), power)
