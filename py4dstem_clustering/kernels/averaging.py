"""Mean diffraction patterns of clusters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import pairwise
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .blas import sum_counts, sum_present
from .blocks import (
    MemoryNeed,
    Report,
    at_once,
    is_small_integer,
    iterate_blocks,
    read_window,
    row_need,
    scratch_need,
    tiles,
    to_float32,
    workers,
)

_MEMBERS_AT_ONCE = 16
"""Members of a cluster that are added together, see `at_once`. More of them do not fit into
the cache of a core."""

EXACT_TERMS = 2**8
"""How many numbers of 16 bits float32 adds without error. With more of them, sums would round."""

_MIN_RUN = 4
"""Patterns side by side in memory that are added without a copy; for fewer, a copy is faster."""

_GROUPS_A_TASK = 8
"""Groups of members that are one task at most: with more, threads wait for each other; with fewer,
sums are added more often."""

_READ_BYTES = 32 * 2**20
"""Bytes of the scan that `member_mean` reads at a time."""


Group: TypeAlias = list[tuple[int, slice]]
"""Members of a cluster that are added together: rows of a block, and columns."""


def averaging_core(
    data: Any,
    labels: NDArray[np.integer[Any]],
    *,
    n_jobs: int | None,
    report: Report,
    shifts: NDArray[np.float64] | None = None,
    n_rows: int | None = None,
) -> NDArray[np.float32]:
    """Mean patterns ``(n_clusters, Qx, Qy)``, accumulated in float64.

    With `shifts` ``(Rx, Ry, 2)``, each pattern is moved by so many pixels first.

    A missing pixel (NaN or infinite) has no weight; where a pixel is missing in all members of a
    cluster, the mean is NaN.
    """
    sums = summing_core(data, labels, n_jobs=n_jobs, report=report, shifts=shifts, n_rows=n_rows)
    return sums.means(np.bincount(labels[labels >= 0], minlength=len(sums.total)))


def summing_core(
    data: Any,
    labels: NDArray[np.integer[Any]],
    *,
    n_jobs: int | None,
    report: Report,
    shifts: NDArray[np.float64] | None,
    n_rows: int | None,
) -> ClusterSums:
    """The sums of which `averaging_core` takes the means."""
    sums = ClusterSums(int(labels.max(initial=-1)) + 1, data.shape[1:])
    # Small whole numbers add up without error, in any order.
    is_exact = shifts is None and is_small_integer(np.dtype(data.dtype))
    adding = Lock()
    with workers(n_jobs) as run:
        for start, rows in iterate_blocks(data, copies=1, n_rows=n_rows, packed=is_exact):
            some = slice(start, start + len(rows))
            # A masked array holds NaN where it is masked.
            exact = is_exact and is_small_integer(rows.dtype)
            groups = _members_by_label(labels[some], sums.at_once, by_row=not exact)
            if exact:
                run(partial(sums.add_exact, rows, adding), _tasks(groups))
            else:
                # A task owns a label, and adds its members in order: the same bits for any block
                # size and any number of threads.
                moves = None if shifts is None else shifts[some]
                run(partial(sums.add, rows, moves, groups), groups)
            report(len(rows))
    return sums


def averaging_need(data: Any, n_clusters: int, n_jobs: int | None) -> MemoryNeed:
    """Memory that `averaging_core` takes, including its sums."""
    pixels = int(np.prod(data.shape[2:]))
    members = min(at_once(_MEMBERS_AT_ONCE, pixels), EXACT_TERMS)
    fixed = 16 * n_clusters * pixels + scratch_need(data, n_jobs, members, 3)
    return MemoryNeed(fixed, 3 * row_need(data))


def member_mean(
    data: Any,
    members: NDArray[np.int64],
    shifts: NDArray[np.float64] | None = None,
    report: Report = lambda n: None,
) -> NDArray[np.float32]:
    """Mean pattern ``(Qx, Qy)`` of the members of one cluster; reads little else of the scan.

    Up to rounding, the result is that of `averaging_core`, which reads the whole scan.

    Parameters
    ----------
    data : array-like (Rx, Ry, Qx, Qy)
    members : ndarray, (n, 2), int
        Scan positions, sorted by row.
    shifts : ndarray, (n, 2), optional
        Pixels by which each pattern moves first.
    report : callable
        Called with the number of positions just read.
    """
    rows, columns = members.T
    low, high = int(columns.min()), int(columns.max()) + 1
    row_bytes = np.dtype(data.dtype).itemsize * (high - low) * int(np.prod(data.shape[2:]))
    step = max(1, _READ_BYTES // row_bytes)
    total, count = np.zeros(data.shape[2:]), np.zeros(data.shape[2:])
    start = 0
    while start < len(members):
        first = int(rows[start])
        stop = int(np.searchsorted(rows, first + step))
        block = read_window(data, (first, int(rows[stop - 1]) + 1), (low, high))
        patterns = block[rows[start:stop] - first, columns[start:stop] - low]
        if shifts is not None:
            pairs = zip(patterns, shifts[start:stop], strict=True)
            patterns = np.stack([move_pattern(pattern, shift) for pattern, shift in pairs])
        part, present = sum_present(patterns)
        total += part
        count += present
        report(stop - start)
        start = stop
    mean = np.full(total.shape, np.nan, dtype=np.float32)
    np.divide(total, count, out=mean, where=count > 0, casting="same_kind")
    return mean


class ClusterSums:
    """Sums of the patterns of each cluster, and how often a pixel was missing."""

    def __init__(self, n_clusters: int, row_shape: tuple[int, ...]) -> None:
        n_columns, *self._detector = row_shape
        self._n_pixels = int(np.prod(self._detector))
        self.at_once = min(at_once(_MEMBERS_AT_ONCE, self._n_pixels), EXACT_TERMS, n_columns)
        """Members that are added together."""
        self.total = np.zeros((n_clusters, self._n_pixels))
        self._n_missing: dict[int, NDArray[np.int64]] = {}

    def add(
        self,
        rows: NDArray[Any],
        shifts: NDArray[np.float64] | None,
        groups: dict[int, list[Group]],
        label: int,
    ) -> None:
        """Add the members of a cluster that lie in some rows, in float64."""
        for patterns in self._gather(rows, shifts, groups[label], np.float64):
            with np.errstate(invalid="ignore"):  # both infinities in one pixel
                part = _sum(patterns)
            if not np.isfinite(part).all():
                present = np.isfinite(patterns)
                part = patterns.sum(axis=0, where=present)
                n_missing = self._n_missing.setdefault(label, np.zeros(self._n_pixels, np.int64))
                n_missing += (~present).sum(axis=0)
            self.total[label] += part

    def add_exact(
        self, rows: Any, adding: AbstractContextManager[Any], task: tuple[int, list[Group]]
    ) -> None:
        """Add members of a cluster, small whole numbers, without error; `rows` may be packed.

        The lock `adding` is held while the total changes.
        """
        label, groups = task
        part = sum_counts(self._parts(rows, groups), self._n_pixels)
        with adding:
            self.total[label] += part

    def _parts(self, rows: Any, groups: list[Group]) -> Iterator[NDArray[Any]]:
        """Patterns ``(n, pixels)`` of groups; most of those in memory are not copied."""
        buffer: NDArray[Any] | None = None
        in_memory = isinstance(rows, np.ndarray)
        for group in groups:
            n = 0
            for i, columns in group:
                length = columns.stop - columns.start
                if in_memory and length >= _MIN_RUN:
                    yield rows[i, columns].reshape(length, -1)
                    continue
                if buffer is None:
                    buffer = np.empty((self.at_once, *self._detector), dtype=rows.dtype)
                here = buffer[n : n + length]
                if in_memory:
                    here[:] = rows[i, columns]
                else:
                    rows.copy_to(here, i, columns)
                n += length
            if buffer is not None and n:
                yield buffer[:n].reshape(n, -1)

    def add_sums(self, labels: NDArray[np.int64], other: ClusterSums) -> None:
        """Add sums of other patterns, whose clusters have these `labels` here."""
        self.total[labels] += other.total
        for own, n_missing in other._n_missing.items():
            label = int(labels[own])
            known = self._n_missing.setdefault(label, np.zeros(self._n_pixels, np.int64))
            known += n_missing

    def means(self, sizes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Means of clusters of these `sizes`; the sums are divided in place."""
        for label, total in enumerate(self.total):
            count = np.full(self._n_pixels, float(sizes[label]))
            if label in self._n_missing:
                count -= self._n_missing[label]
                count[count == 0] = np.nan
            total /= count
        return to_float32(self.total, "a cluster average").reshape(-1, *self._detector)

    def _gather(
        self,
        rows: NDArray[Any],
        shifts: NDArray[np.float64] | None,
        groups: list[Group],
        dtype: type[np.floating[Any]],
    ) -> Iterator[NDArray[Any]]:
        """Patterns ``(n, pixels)`` of each group, moved by `shifts`, in the same buffer."""
        buffer = np.empty((self.at_once, self._n_pixels), dtype=dtype)
        for group in groups:
            n = 0
            for i, columns in group:
                here = buffer[n : n + columns.stop - columns.start]
                n += len(here)
                if shifts is None:
                    patterns = rows[i, columns].reshape(here.shape)
                    np.copyto(here, patterns, casting="unsafe")
                    continue
                pairs = zip(rows[i, columns], shifts[i, columns], strict=True)
                for target, (pattern, shift) in zip(here, pairs, strict=True):
                    target[:] = move_pattern(pattern, shift).ravel()
            yield buffer[:n]


def _tasks(groups: dict[int, list[Group]]) -> list[tuple[int, list[Group]]]:
    """Labels, each with some of its groups; a label with many groups is several tasks."""
    return [
        (label, some[part])
        for label, some in groups.items()
        for part in tiles(len(some), _GROUPS_A_TASK)
    ]


def _sum(patterns: NDArray[Any]) -> NDArray[Any]:
    """Sum over the patterns; NumPy's own sum takes twice as long as a product with ones."""
    return np.ones(len(patterns), dtype=patterns.dtype) @ patterns


def move_pattern(pattern: NDArray[Any], shift: NDArray[Any]) -> NDArray[np.float64]:
    """A pattern moved by `shift` pixels along both axes, float64.

    Interpolation is linear, so it makes no negative values and keeps the counts. Pixels that enter
    repeat the border. A pixel is missing if a missing pixel contributes to it.
    """
    out = pattern.astype(np.float64)
    for axis, distance in enumerate(shift):
        n = out.shape[axis]
        whole = int(np.floor(distance))
        part = distance - whole
        source = np.arange(n) - whole
        moved = out.take(np.clip(source, 0, n - 1), axis=axis)
        if part > 0:
            moved *= 1 - part
            moved += part * out.take(np.clip(source - 1, 0, n - 1), axis=axis)
        out = moved
    return out


def _members_by_label(
    labels: NDArray[np.integer[Any]], size: int, by_row: bool
) -> dict[int, list[Group]]:
    """Members of each label in a block of rows, in groups of at most `size` to add together.

    With `by_row`, a group holds members of one row only.
    """
    groups: dict[int, list[Group]] = {}
    room: dict[int, int] = {}
    for i, row in enumerate(labels):
        if by_row:
            room.clear()
        edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
        for first, last in pairwise(edges):
            label = int(row[first])
            if label < 0:
                continue
            for start in range(first, last, size):
                stop = min(start + size, last)
                if room.get(label, 0) < stop - start:
                    groups.setdefault(label, []).append([])
                    room[label] = size
                groups[label][-1].append((i, slice(start, stop)))
                room[label] -= stop - start
    return groups
