"""Which positions are neighbours for the correlative filter, and how much each of them counts.

The columns of the scan are cut into tiles. The correlations of a tile with one row of neighbours
are one matrix product, and so are the weighted sums of its patterns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from .blas import matmul
from .blocks import tiles

TILE_COLUMNS = 8
"""Columns of a tile. A tile of T columns has T + 2 reach neighbours in each row, so a larger tile
multiplies more pairs that are no neighbours, and a smaller one is slower for BLAS."""

MAX_SMALL_PRODUCT = 10**6
"""Multiplications up to which OpenBLAS multiplies small matrices without copying them first. For
few rows on one side the copy takes longer than the product."""


def footprint(radius: float) -> NDArray[np.int64]:
    """Offsets ``(n, 2)`` with ``dx^2 + dy^2 <= (radius + 1/2)^2``, the centre among them."""
    reach = int(radius + 0.5)
    steps = np.arange(-reach, reach + 1)
    dx, dy = (grid.ravel() for grid in np.meshgrid(steps, steps, indexing="ij"))
    inside = dx**2 + dy**2 <= (radius + 0.5) ** 2
    return np.stack([dx[inside], dy[inside]], axis=1)


class Neighbours:
    """The neighbours of all positions of a row, and where they lie in the matrices of a tile."""

    def __init__(self, radius: float, n_columns: int) -> None:
        offsets = footprint(radius)
        self.n_columns = n_columns
        self.n_offsets = len(offsets)
        """Neighbours of a position, itself among them."""
        self.reach = reach = int(offsets[:, 0].max())
        """Rows, or columns, to the farthest neighbour."""
        self.n_tiles = -(-n_columns // TILE_COLUMNS)
        self.tile_near = TILE_COLUMNS + 2 * reach
        """Neighbours of a tile in one row."""
        self.band: dict[int, slice] = {}
        """The offsets of each dRx, which are contiguous."""
        self.width: dict[int, int] = {}
        """Largest dRy of each dRx; the smallest is ``-width``."""
        for dx in range(-reach, reach + 1):
            (indices,) = np.nonzero(offsets[:, 0] == dx)
            self.band[dx] = slice(int(indices[0]), int(indices[-1]) + 1)
            self.width[dx] = len(indices) // 2
        self.unused = reach - self.width[reach]
        """Positions at each end of the surroundings of a tile that no position of the tile uses."""
        columns = np.arange(n_columns)[:, None] + offsets[:, 1]
        self.inside: NDArray[np.bool_] = (columns >= 0) & (columns < n_columns)
        """Whether a neighbour lies in a column of the scan, ``(n_columns, n_offsets)``."""

    def correlate(
        self,
        units: dict[int, NDArray[np.float32]],
        row: int,
        tile_range: slice,
        out: NDArray[np.float32],
    ) -> None:
        """Correlate some tiles of a row with the row itself and the rows above.

        `units` are the unit vectors of each row, with `reach` empty positions at either end. They
        go to ``out[dRx, tile, position, neighbour]``.
        """
        n_pixels = units[row].shape[1]
        step, item = units[row].strides
        shape = (self.n_tiles, self.tile_near, n_pixels)
        near = as_strided(units[row], shape, (TILE_COLUMNS * step, step, item), writeable=False)[
            tile_range
        ]
        for dx in range(min(self.reach, row) + 1):
            first = self.reach - self.width[dx]
            last = self.reach + self.width[dx] + TILE_COLUMNS
            own = units[row - dx][self.reach : self.reach + self.n_tiles * TILE_COLUMNS]
            _products_of_tiles(
                own.reshape(self.n_tiles, TILE_COLUMNS, n_pixels)[tile_range],
                near[:, first:last],
                out=out[dx, tile_range, :, first:last],
            )

    def weigh(
        self,
        correlations: NDArray[np.float32],
        corr_range: tuple[float, float],
        row: int,
        weights: dict[int, NDArray[np.float32]],
    ) -> None:
        """Write the weights of both positions of each pair of a row and those above.

        `correlations` are those of `correlate`; `weights` ``(n_columns, n_offsets)`` are those of
        the neighbours of each row.
        """
        low, high = corr_range
        n = self.n_columns
        for dx in range(min(self.reach, row) + 1):
            width, band = self.width[dx], self.band[dx]
            a = _diagonals(correlations[dx], self.reach - width, 2 * width + 1)
            a = a.reshape(-1, 2 * width + 1)[:n] - np.float32(low)
            a /= high - low
            np.clip(a, 0, 1, out=a)
            a *= self.inside[:, band]
            weights[row - dx][:, band] = a
            if dx == 0:
                continue
            opposite = weights[row][:, self.band[-dx]][:, ::-1]
            for dy in range(-min(width, n - 1), min(width, n - 1) + 1):
                here = slice(max(0, -dy), n - max(0, dy))
                opposite[here.start + dy : here.stop + dy, width + dy] = a[here, width + dy]

    def shares(self, weights: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Shares of the neighbours in the average of every position of some rows.

        The position's own pattern counts once more than its weight, and the shares of a position
        sum to 1. Returns matrices ``(row, tile, position, neighbour)``: the neighbours are all
        positions around the tile, row after row, less `unused` at either end.
        """
        n, reach = self.n_columns, self.reach
        share = np.zeros((len(weights), self.n_tiles * TILE_COLUMNS, self.n_offsets), np.float32)
        np.stack(weights, out=share[:, :n])
        share[:, :n, self.band[0].start + self.width[0]] += 1
        share[:, :n] /= share[:, :n].sum(axis=2, dtype=np.float64)[..., None]
        share = share.reshape(len(weights), self.n_tiles, TILE_COLUMNS, -1)
        shape = (*share.shape[:3], 2 * reach + 1, self.tile_near)
        matrices = np.zeros(shape, dtype=np.float32)
        for dx, band in self.band.items():
            width = self.width[dx]
            matrix = matrices[..., reach + dx, :]
            _diagonals(matrix, reach - width, 2 * width + 1)[:] = share[..., band]
        return matrices.reshape(*share.shape[:3], -1)[..., self.unused : -self.unused or None]

    def around(self, near: NDArray[Any]) -> NDArray[Any]:
        """View of the surroundings of each row of a tile, as one list of neighbours.

        The patterns ``(tile, row, column, pixel)`` have `reach` more rows at each end. The view is
        ``(tile, row, neighbour, pixel)``, with the neighbours of `shares`.
        """
        tile, row, column, item = near.strides
        n_rows = near.shape[1] - 2 * self.reach
        n_near = (2 * self.reach + 1) * self.tile_near - 2 * self.unused
        shape = len(near), n_rows, n_near, near.shape[3]
        strides = (tile, row, column, item)
        return as_strided(near[:, 0, self.unused :], shape, strides, writeable=False)


def _diagonals(matrices: NDArray[Any], shift: int, count: int) -> NDArray[Any]:
    """View ``(..., n, count)`` of matrices: each row i from column i + `shift` on."""
    *outer, down, right = matrices.strides
    shape = (*matrices.shape[:-1], count)
    return as_strided(matrices[..., shift:], shape, (*outer, down + right, right))


def _products_of_tiles(
    a: NDArray[np.float32], b: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """``a[i] @ b[i].T`` of few rows and many columns, summed in float64 where they are long."""
    length = max(1, MAX_SMALL_PRODUCT // (a.shape[1] * b.shape[1]))
    transposed = b.swapaxes(1, 2)
    if a.shape[2] <= length:
        matmul(a, transposed, out=out)
        return
    total = np.zeros(out.shape)
    for piece in tiles(a.shape[2], length):
        total += matmul(a[..., piece], transposed[:, piece])
    out[:] = total
