"""Mean diffraction pattern of each cluster."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import (
    MemoryNeed,
    Report,
    at_once,
    is_small_integer,
    iterate_blocks,
    row_need,
    scratch_need,
    to_float32,
    workers,
)

# Members of a cluster that are added together: few enough to stay in the cache of a core, and more
# of a small detector.
_TILE = 16

# So many numbers of 16 bits add up in float32 without error.
_EXACT = 2**8


def averaging_core(
    data: Any,
    labels: NDArray[Any],
    *,
    n_jobs: int | None,
    report: Report,
    shifts: NDArray[Any] | None = None,
    n_rows: int | None = None,
) -> NDArray[Any]:
    """Mean patterns ``(n_clusters, Qx, Qy)``, float32, accumulated in float64.

    With `shifts` ``(Rx, Ry, 2)``, each pattern is moved by so many pixels first.

    A missing pixel (NaN or infinite) has no weight; where a pixel is missing in all members of a
    cluster, the mean is NaN.
    """
    n_clusters = int(labels.max()) + 1
    detector = data.shape[2:]
    pixels = int(np.prod(detector))
    tile = min(at_once(_TILE, pixels), _EXACT, labels.shape[1])
    total = np.zeros((n_clusters, pixels))
    sizes = np.bincount(labels[labels >= 0], minlength=n_clusters)
    missing: dict[int, NDArray[Any]] = {}

    with workers(n_jobs) as run:
        for start, rows in iterate_blocks(data, copies=1, n_rows=n_rows):
            rows = rows.reshape(len(rows), labels.shape[1], pixels)
            moves = None if shifts is None else shifts[start : start + len(rows)]
            # Small whole numbers add up without error in float32, at half the cost, in any order.
            exact = moves is None and is_small_integer(rows.dtype)
            jobs = _members_by_label(labels[start : start + len(rows)], tile, by_row=not exact)

            def add(
                label: int,
                rows: NDArray[Any] = rows,
                jobs: dict = jobs,
                moves: NDArray[Any] | None = moves,
                exact: bool = exact,
            ) -> None:
                # One thread owns a label, and adds its members in order: the same bits for any
                # block size and any number of threads.
                scratch = np.empty((tile, pixels), dtype=np.float32 if exact else np.float64)
                ones = np.ones(tile, dtype=scratch.dtype)
                sums, count = np.zeros(pixels if exact else 0, dtype=np.float32), 0
                for group in jobs[label]:
                    n = 0
                    for i, columns in group:
                        here = scratch[n : n + columns.stop - columns.start]
                        n += len(here)
                        if moves is None:
                            np.copyto(here, rows[i, columns], casting="unsafe")
                            continue
                        pairs = zip(rows[i, columns], moves[i, columns], strict=True)
                        for target, (pattern, move) in zip(here, pairs, strict=True):
                            target[:] = move_pattern(pattern.reshape(detector), move).ravel()
                    # NumPy's own sum takes twice as long as a product with ones.
                    with np.errstate(invalid="ignore"):  # both infinities in one pixel
                        part = ones[:n] @ scratch[:n]
                    if exact:
                        sums += part
                        count += n
                        if count > _EXACT - tile:
                            total[label] += sums
                            sums[:] = count = 0
                        continue
                    if not np.isfinite(part).all():
                        present = np.isfinite(scratch[:n])
                        part = scratch[:n].sum(axis=0, where=present)
                        gaps = missing.setdefault(label, np.zeros(pixels, dtype=np.int64))
                        gaps += (~present).sum(axis=0)
                    total[label] += part
                if count:
                    total[label] += sums

            run(add, jobs)
            report(len(rows))

    for label in range(n_clusters):
        count = np.full(pixels, float(sizes[label]))
        if label in missing:
            count -= missing[label]
            count[count == 0] = np.nan
        total[label] /= count
    return to_float32(total, "a cluster average").reshape(n_clusters, *detector)


def averaging_need(data: Any, n_clusters: int, n_jobs: int | None) -> MemoryNeed:
    """Memory that `averaging_core` takes, its sums among it."""
    pixels = int(np.prod(data.shape[2:]))
    tile = min(at_once(_TILE, pixels), _EXACT)
    return MemoryNeed(
        16 * n_clusters * pixels + scratch_need(data, n_jobs, tile, 3), 3 * row_need(data)
    )


def move_pattern(pattern: NDArray[Any], shift: NDArray[Any]) -> NDArray[Any]:
    """A pattern moved by `shift` pixels along both axes, float64.

    Linear between pixels: never negative, and the same counts. What enters at the border repeats
    the border. A missing pixel makes those that it contributes to missing.
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
    labels: NDArray[Any], size: int, by_row: bool
) -> dict[int, list[list[tuple[int, slice]]]]:
    """Runs ``(row, columns)`` of each label in a block of rows, in groups to add together.

    A group has at most `size` members; with `by_row`, of one row only.
    """
    groups: dict[int, list[list[tuple[int, slice]]]] = {}
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
