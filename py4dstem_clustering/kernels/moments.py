"""Mean, noise and covariance with diagonal neighbours of the binned patterns of a scan."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .blas import matmul
from .blocks import Run, of_each, tiles

NEIGHBOUR_SIGMA = 1.5
"""Standard deviation of the Gaussian weights of the diagonal neighbours, scan positions. A larger
value averages more noise, and mixes in more of the next grain."""

NEIGHBOUR_REACH = 2
"""Diagonal neighbours count up to this many positions along either axis; more take longer."""

_COVARIANCE_TILE = 256
"""Rows of the covariance that are one task."""


def offsets(scan_shape: tuple[int, int]) -> list[tuple[int, int, float]]:
    """One of each opposite pair of diagonal neighbours, as ``(dRx, dRy, weight)``.

    A scan that is a line has no diagonals; there, the neighbours along the line are taken.
    """
    line = min(scan_shape) == 1
    found = []
    for dx in range(NEIGHBOUR_REACH + 1):
        for dy in range(-NEIGHBOUR_REACH, NEIGHBOUR_REACH + 1):
            forward = (dx, dy) > (0, 0)
            if forward and (line or (dx and dy)):
                found.append((dx, dy, float(np.exp(-0.5 * (dx**2 + dy**2) / NEIGHBOUR_SIGMA**2))))
    total = 2 * sum(weight for *_, weight in found)
    return [(dx, dy, weight / total) for dx, dy, weight in found]


_Row: TypeAlias = "tuple[NDArray[np.float32], NDArray[np.bool_]]"
"""Binned patterns ``(Ry, bins)`` of a row, and which of them are not lost."""


def _sum_squares(
    differences: NDArray[np.float32], count: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], int]:
    """Sum of the squares of differences ``(n, bins)`` of neighbours of which both are there."""
    if not count.all():
        differences = differences[count]
    return (differences.astype(np.float64) ** 2).sum(axis=0), int(count.sum())


def _near(rows: list[_Row], k: int, pairs: list[tuple[int, int, float]]) -> NDArray[np.float32]:
    """Weighted mean of those neighbours of each pattern of row `k` that come before it.

    `pairs` are from `offsets`.
    """
    row = rows[k][0]
    near = np.zeros_like(row)
    for dx, dy, weight in pairs:
        if dx > k:
            continue
        other = rows[k - dx][0]
        here = slice(max(0, dy), len(row) + min(0, dy))
        there = slice(max(0, -dy), len(row) - max(0, dy))
        near[here] += np.float32(weight) * other[there]
    return near


class Moments:
    """Sums over all binned patterns of a scan, which take one row after the other."""

    def __init__(self, scan_shape: tuple[int, int], n_bins: int) -> None:
        self._n_positions = self._n_pairs = 0
        self._pairs = offsets(scan_shape)
        self._total, self._squares = np.zeros(n_bins), np.zeros(n_bins)
        self.covariance = np.zeros((n_bins, n_bins))
        """Sum of the products of each pattern with the mean of its diagonal neighbours before
        it."""
        self._recent: list[_Row] = []  # the rows before, the last one at the end

    @property
    def n_positions(self) -> int:
        """Positions that are not lost, 1 at least."""
        return max(self._n_positions, 1)

    def add(self, rows: NDArray[np.float32], lost: NDArray[np.bool_], run: Run) -> None:
        """Add the binned patterns ``(n, Ry, bins)`` of the next rows, without those ``(n, Ry)``
        that are lost.

        Sums go on row by row, for the same bits with any number of rows and of threads.
        """
        if lost.any():
            rows = np.where(lost[..., None], np.float32(0), rows)
        every = [*self._recent, *zip(rows, ~lost, strict=True)]
        n_recent = len(self._recent)

        def measure(k: int) -> tuple[NDArray[Any], NDArray[Any], list[tuple[NDArray[Any], int]]]:
            row, kept = every[k]
            squares = [_sum_squares(np.diff(row, axis=0), kept[1:] & kept[:-1])]
            if k:
                above, kept_above = every[k - 1]
                squares.append(_sum_squares(row - above, kept & kept_above))
            return _near(every, k, self._pairs), row.sum(axis=0, dtype=np.float64), squares

        measured = of_each(run, measure, range(n_recent, len(every)))
        for _, total, squares in measured:
            self._total += total
            for part, n_pairs in squares:
                self._squares += part
                self._n_pairs += n_pairs
        self._n_positions += int((~lost).sum())

        def multiply(tile: slice) -> None:
            for row, (near, *_) in zip(rows, measured, strict=True):
                self.covariance[tile] += matmul(row[:, tile].T, near)

        run(multiply, tiles(rows.shape[2], _COVARIANCE_TILE))
        self._recent = [(row.copy(), kept) for row, kept in every[-NEIGHBOUR_REACH:]]

    def mean(self) -> NDArray[np.float64]:
        """Mean of each bin."""
        return self._total / self.n_positions

    def variance(self) -> NDArray[np.float64]:
        """Variance of the noise of each bin, from the differences of direct neighbours."""
        return self._squares / (2 * max(self._n_pairs, 1))
