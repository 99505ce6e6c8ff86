"""Correlative filter: average each pattern with those neighbours that look like it.

One pass over the scan, with a window of rows that moves along. Each pattern is read, blurred and
normalised once; each pair is correlated once; correlations and weighted sums are matrix products
over tiles of neighbouring columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blas import matmul
from .blocks import (
    MemoryNeed,
    Report,
    Run,
    count_jobs,
    iterate_blocks,
    row_blocks,
    row_need,
    scratch_need,
    tiles,
    to_float32,
    workers,
)
from .neighbours import MAX_SMALL_PRODUCT, TILE_COLUMNS, Neighbours
from .unit_vectors import PATTERNS_PER_TASK, Modes, Pixels, unit_vectors

_TILES_PER_TASK = 8
"""Tiles whose correlations are one task. With fewer, threads wait for each other more often; with
more, some threads have nothing to do at the end of a block."""

_PIECES_PER_TASK = 20
"""Pieces of pixels that are averaged in one task, one after the other, in the same buffer. The
effect of more and of fewer is as with `_TILES_PER_TASK`."""

_ROWS_PER_GROUP = 10
"""Rows that are averaged together, so that the patterns around them are fetched once. More rows
take more memory for each thread."""

_CACHED_VALUES = 2**17
"""Values of all positions around a tile that stay in the cache of a core. The larger, the more
pixels are averaged at a time."""


def correlative_core(
    data: Any,
    out: Any,
    *,
    sigma: float,
    radius: float,
    corr_range: tuple[float, float],
    edge: int,
    n_jobs: int | None,
    report: Report,
    n_rows: int | None = None,
) -> None:
    """Write the filtered scan to `out`, anything that takes ``out[start:stop] = rows``."""
    rx, ry, qx, qy = data.shape
    neighbours = Neighbours(radius, ry)
    # A longer block is worth its memory where rows are long: to average a single row, all rows
    # around it are fetched.
    copies = 4 if _rows_in_block(data.shape, 4) >= _ROWS_PER_GROUP // 2 else 1
    in_block = n_rows or _rows_in_block(data.shape, copies)
    window = _Window(data, neighbours, unit_vectors((qx, qy), sigma, edge), in_block)
    written = 0
    with workers(n_jobs) as run:
        for start, rows in iterate_blocks(data, copies=copies, n_rows=n_rows):
            stop = start + len(rows)
            window.take(rows, start, run)
            del rows  # before the next block is read
            _weigh(window, range(start, stop), corr_range, run)
            last = rx if stop == rx else max(written, stop - neighbours.reach)
            while written < last:
                ready = min(written + stop - start, last)  # no more at a time than were read
                _write_averages(window, range(written, ready), out, run)
                report(ready - written)
                written = ready
            window.forget(written, stop)


def correlative_need(
    data: Any, sigma: float, radius: float, edge: int, n_jobs: int | None
) -> MemoryNeed:
    """Memory that `correlative_core` takes: rows within reach of those that are averaged."""
    ry, qx, qy = data.shape[1:]
    neighbours = Neighbours(radius, ry)
    reach, tile_near = neighbours.reach, neighbours.tile_near
    positions = neighbours.n_tiles * TILE_COLUMNS
    read, row = row_need(data), 4 * ry * qx * qy
    dtype = _kept_as(data)
    kept = 0 if _is_in_place(data) else dtype.itemsize * ry * qx * qy
    converted = row if dtype != data.dtype else 0
    unit = 4 * (positions + 2 * reach) * unit_vectors((qx, qy), sigma, edge).size
    weights = 4 * ry * neighbours.n_offsets
    shares = 4 * positions * tile_near * (2 * reach + 1)
    rows = max(_ROWS_PER_GROUP + 2 * reach, _tiles_at_once(1) * (1 + 2 * reach))
    near = 4.0 * rows * tile_near * min(_pixels_at_once(reach), qx * qy)
    if np.dtype(data.dtype).kind == "f":
        near *= 2.25  # where pixels are missing
    return MemoryNeed(
        2 * reach * kept
        + reach * unit
        + 2 * reach * weights
        + int(count_jobs(n_jobs) * near)
        + scratch_need(data, n_jobs, PATTERNS_PER_TASK, 4),
        kept + converted + 2 * read + unit + 2 * weights + 3 * shares + row,
    )


class _Window:
    """The rows that are averaged and those within reach: patterns, unit vectors and weights.

    Unit vectors and weights are kept by the number of the row in the scan. Patterns stay where they
    are if all of them are in memory; otherwise they are copied to a buffer that is filled again and
    again, row ``i`` of the scan to row ``i % len(patterns)``.
    """

    def __init__(
        self, data: Any, neighbours: Neighbours, vectors: Pixels | Modes, in_block: int
    ) -> None:
        self.neighbours = neighbours
        self.n_scan_rows, self.n_columns, *self.detector = data.shape
        self.n_pixels = int(np.prod(self.detector))
        self._vectors = vectors
        self._in_place = _is_in_place(data)
        if self._in_place:
            self.patterns = data.reshape(self.n_scan_rows, self.n_columns, self.n_pixels)
        else:
            n_rows = min(in_block + 2 * neighbours.reach, self.n_scan_rows)
            shape = n_rows, self.n_columns, self.n_pixels
            self.patterns = np.empty(shape, dtype=_kept_as(data))
        self.units: dict[int, NDArray[np.float32]] = {}
        self.weights: dict[int, NDArray[np.float32]] = {}
        self._has_missing: dict[int, bool] = {}

    def take(self, rows: NDArray[Any], start: int, run: Run) -> None:
        """Take in the next rows of the scan: their patterns and unit vectors."""
        near, stop = self.neighbours, start + len(rows)
        patterns = rows
        if rows.dtype != self.patterns.dtype:
            patterns = to_float32(rows, f"row {start} to {stop - 1} of the scan")
        n_positions = near.n_tiles * TILE_COLUMNS + 2 * near.reach
        for row in range(start, stop):
            self.units[row] = np.zeros((n_positions, self._vectors.size), dtype=np.float32)
            self.weights[row] = np.zeros((self.n_columns, near.n_offsets), dtype=np.float32)

        def prepare(task: tuple[int, slice]) -> None:
            i, columns = task
            unit = self.units[start + i][columns.start + near.reach : columns.stop + near.reach]
            self._vectors.write(rows[i, columns].reshape(len(unit), -1), unit)
            if not self._in_place:
                slot = (start + i) % len(self.patterns)
                self.patterns[slot, columns] = patterns[i, columns].reshape(len(unit), -1)

        def check(i: int) -> None:
            self._has_missing[start + i] = not np.isfinite(rows[i]).all()

        run(prepare, product(range(len(rows)), tiles(self.n_columns, PATTERNS_PER_TASK)))
        if rows.dtype.kind == "f":
            run(check, range(len(rows)))

    def forget(self, written: int, stop: int) -> None:
        """Drop what is not needed once `written` rows are averaged and `stop` are read."""
        reach = self.neighbours.reach
        for row in [row for row in self.weights if row < written - reach]:
            del self.weights[row]
            self._has_missing.pop(row, None)
        for row in [row for row in self.units if row < stop - reach]:
            del self.units[row]

    def rows_with_missing(self, first: int, last: int) -> list[int]:
        """Rows whose average has a missing pixel among its neighbours, counted from `first`."""
        reach = self.neighbours.reach
        return [
            row - first
            for row in range(first, last)
            if any(self._has_missing.get(row + dx) for dx in range(-reach, reach + 1))
        ]

    def fetch(self, first: int, tile_range: slice, pixels: slice, out: NDArray[np.float32]) -> None:
        """Copy what lies around some rows and tiles to `out` ``(tile, row, column, pixel)``.

        `out` has `reach` rows and columns more at either end of each tile. Its values stay as they
        are where they lie outside the scan.
        """
        reach, tile_near = self.neighbours.reach, self.neighbours.tile_near
        above, below = max(0, first - reach), min(self.n_scan_rows, first - reach + out.shape[1])
        for rows, slots in self._slots(above, below):
            to = slice(rows.start - first + reach, rows.stop - first + reach)
            for i, tile in enumerate(range(tile_range.start, tile_range.stop)):
                start = tile * TILE_COLUMNS - reach
                left, right = max(0, start), min(self.n_columns, start + tile_near)
                np.copyto(
                    out[i, to, left - start : right - start],
                    self.patterns[slots, left:right, pixels],
                    casting="same_kind",
                )

    def _slots(self, first: int, last: int) -> Iterator[tuple[slice, slice]]:
        """Rows of the scan and where they lie in `patterns`: in at most two pieces."""
        n = len(self.patterns)
        for a, b in pairwise([first, *range(first - first % n + n, last, n), last]):
            yield slice(a, b), slice(a % n, (b - 1) % n + 1)


def _weigh(window: _Window, rows: range, corr_range: tuple[float, float], run: Run) -> None:
    """Correlate some rows with all within reach before them, and weigh the pairs."""
    near = window.neighbours
    shape = len(rows), near.reach + 1, near.n_tiles, TILE_COLUMNS, near.tile_near
    correlations = np.empty(shape, dtype=np.float32)

    def correlate(task: tuple[int, slice]) -> None:
        row, tile_range = task
        near.correlate(window.units, row, tile_range, out=correlations[row - rows.start])

    run(correlate, product(rows, tiles(near.n_tiles, _TILES_PER_TASK)))
    # Not in threads: between many short calls, threads would only wait for each other.
    for row, found in zip(rows, correlations, strict=True):
        near.weigh(found, corr_range, row, window.weights)


def _write_averages(window: _Window, rows: range, out: Any, run: Run) -> None:
    """Average some rows, and write them to `out`."""
    n_columns, n_pixels = window.n_columns, window.n_pixels
    # If `out` is such an array, the averages are made in it, without a copy.
    direct = isinstance(out, np.ndarray) and out.dtype == np.float32 and out.flags.c_contiguous
    if direct:
        averages = out[rows.start : rows.stop].reshape(-1, n_columns, n_pixels)
    else:
        averages = np.empty((len(rows), n_columns, n_pixels), dtype=np.float32)
    shares = window.neighbours.shares([window.weights[row] for row in rows])
    n_groups = -(-len(rows) // _ROWS_PER_GROUP)
    edges = np.linspace(0, len(rows), n_groups + 1).astype(int).tolist()
    pieces = tiles(n_pixels, _pixels_at_once(window.neighbours.reach))

    def average(task: tuple[slice, slice, slice]) -> None:
        group, tile_range, part = task
        _average(
            window,
            rows.start + group.start,
            tile_range,
            pieces[part],
            shares[group],
            averages[group],
        )

    run(
        average,
        (
            (slice(start, stop), tile_range, part)
            for start, stop in pairwise(edges)
            for tile_range in _tile_groups(n_columns, stop - start)
            for part in tiles(len(pieces), _PIECES_PER_TASK)
        ),
    )
    if not direct:
        out[rows.start : rows.stop] = averages.reshape(-1, n_columns, *window.detector)


def _average(
    window: _Window,
    first: int,
    tile_range: slice,
    pieces: list[slice],
    shares: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Average some tiles and pieces of pixels of as many rows as `out` has, from `first` on."""
    near = window.neighbours
    n_rows, n_tiles = len(out), tile_range.stop - tile_range.start
    columns = slice(
        tile_range.start * TILE_COLUMNS, min(tile_range.stop * TILE_COLUMNS, window.n_columns)
    )
    share = shares[:, tile_range, : columns.stop - columns.start].swapaxes(0, 1)
    missing = window.rows_with_missing(first, first + n_rows)
    shape = n_tiles, n_rows + 2 * near.reach, near.tile_near, pieces[0].stop - pieces[0].start
    buffer = np.zeros(shape, dtype=np.float32)  # what lies outside the scan stays zero
    for pixels in pieces:
        patterns = buffer[..., : pixels.stop - pixels.start]
        window.fetch(first, tile_range, pixels, out=patterns)
        if missing:
            present = np.isfinite(patterns)
            patterns[~present] = 0
        result = out[:, columns, pixels]
        result = result.reshape(n_rows, n_tiles, -1, result.shape[2]).swapaxes(0, 1)
        matmul(share, near.around(patterns), out=result)
        if missing:  # a missing pixel has no weight, so the weights differ from pixel to pixel
            weight = matmul(share, near.around(present.astype(np.float32)))[:, missing]
            weight[weight == 0] = np.nan  # missing in all neighbours
            result[:, missing] /= weight


def _rows_in_block(shape: tuple[int, ...], copies: int) -> int:
    return next(iter(row_blocks(shape, copies)))[1]


def _kept_as(data: Any) -> np.dtype[Any]:
    """Type of the patterns in the window: their own where they fit into float32, or float32."""
    dtype = np.dtype(data.dtype)
    as_it_is = dtype.isnative and dtype.itemsize <= 4 and dtype != np.float16
    return dtype if as_it_is and not isinstance(data, np.ma.MaskedArray) else np.dtype(np.float32)


def _is_in_place(data: Any) -> bool:
    """Whether all patterns are in memory, in the type and layout of the window."""
    return (
        row_need(data) == 0
        and _kept_as(data) == data.dtype
        and data.strides[2:] == (data.shape[3] * data.itemsize, data.itemsize)
    )


def _pixels_at_once(reach: int) -> int:
    """Pixels that are averaged at a time."""
    tile_near = TILE_COLUMNS + 2 * reach
    pixels = min(
        MAX_SMALL_PRODUCT // (TILE_COLUMNS * (2 * reach + 1) * tile_near),
        _CACHED_VALUES // ((_ROWS_PER_GROUP + 2 * reach) * tile_near),
    )
    return int(np.clip(pixels // 16 * 16, 256, 4096))


def _tiles_at_once(n_rows: int) -> int:
    """Tiles that are averaged in one call: one tile of few rows is too little work for a call."""
    return max(1, 5 // n_rows)


def _tile_groups(n_columns: int, n_rows: int) -> list[slice]:
    """Tiles that are averaged together; the last tile is alone if it is not full."""
    whole, rest = divmod(n_columns, TILE_COLUMNS)
    return tiles(whole, _tiles_at_once(n_rows)) + [slice(whole, whole + 1)] * (rest > 0)
