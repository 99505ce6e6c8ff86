"""A scan without the lag of its camera, undone as its rows are read; and the search for a lag."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import is_small_integer, read_rows
from .features import noise_of_neighbours
from .lag import Lag, find_lag, settle_lag, without_lag
from .merging import find_regions, merge_positions

MAX_SCORES = 30
"""Scores in which a lag is looked for, the largest ones; more take longer."""

MAX_POSITIONS = 192
"""Positions along either axis, in the middle of the scan, in which a lag is looked for."""


class WithoutLag:
    """A scan that is read like an array: ``scan[start:stop]``, or ``scan[start:stop, columns]``.

    Each pattern loses the share of the pattern before it. The first pattern of a line stays, since
    none is known before it. So do lost patterns, which hold one value only, and those behind them.
    """

    def __init__(self, data: Any, lag: Lag) -> None:
        self._data, self._lag = data, lag
        self.shape: tuple[int, ...] = tuple(data.shape)
        dtype = np.dtype(data.dtype)
        narrow = is_small_integer(dtype) or (dtype.kind == "f" and dtype.itemsize <= 4)
        self.dtype = np.dtype(np.float32 if narrow else np.float64)

    def __getitem__(self, key: slice | tuple[slice, slice]) -> NDArray[Any]:
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        n = self.shape[0]
        start, stop, _ = rows.indices(n)
        axis, direction, decay = self._lag
        first, last = start, stop
        if axis == 0:
            first, last = max(start - int(direction > 0), 0), min(stop + int(direction < 0), n)
        raw = read_rows(self._data, first, last)
        line = np.moveaxis(raw, axis, 0)[::direction]
        lost = line.min(axis=(-2, -1)) == line.max(axis=(-2, -1))
        out = np.empty(raw.shape, dtype=self.dtype)
        found = np.moveaxis(out, axis, 0)[::direction]
        found[...] = line
        clear = ~(lost[1:] | lost[:-1])
        for i, j in zip(*np.nonzero(clear), strict=True):
            pattern = found[i + 1, j]
            pattern -= decay * line[i, j]
            pattern /= 1 - decay
        return out[start - first : stop - first, columns]


def search_lag(scores: NDArray[np.float32]) -> Lag | None:
    """Lag of the camera, from maps ``(Rx, Ry, k)`` in which patterns differ; None if there is none.

    As merging does, regions are found anew without the lag, and its size is measured between them.
    """
    rows, columns = (
        slice(max(n - MAX_POSITIONS, 0) // 2, max(n - MAX_POSITIONS, 0) // 2 + MAX_POSITIONS)
        for n in scores.shape[:2]
    )
    values = scores[rows, columns, :MAX_SCORES]
    values = values - np.median(values, axis=(0, 1))
    values /= noise_of_neighbours(values).astype(np.float32)
    mask = np.ones(values.shape[:2], dtype=bool)

    def regions_without(lag: Lag) -> NDArray[Any]:
        undone = without_lag(values, lag)
        undone /= noise_of_neighbours(undone).astype(np.float32)
        return find_regions(undone, merge_positions(undone, mask))

    lag = find_lag(values, find_regions(values, merge_positions(values, mask)))
    return None if lag is None else settle_lag(values, lag, regions_without)
