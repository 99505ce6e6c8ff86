"""Mean diffraction pattern of each cluster."""

from __future__ import annotations

from typing import Any

import numpy as np

from .blocks import (
    Need,
    Report,
    iterate_blocks,
    row_need,
    scratch_need,
    tiles,
    to_float32,
    workers,
)

# Members of a cluster, in one row of the scan, that are added together: copied, perhaps moved.
_TILE = 64


def averaging_core(
    data: Any,
    labels: np.ndarray,
    *,
    n_jobs: int | None,
    report: Report,
    shifts: np.ndarray | None = None,
    n_rows: int | None = None,
) -> np.ndarray:
    """Mean patterns ``(n_clusters, Qx, Qy)``, float32, accumulated in float64.

    With `shifts` ``(Rx, Ry, 2)``, each pattern is moved by so many pixels first.

    A missing pixel (NaN or infinite) has no weight; where a pixel is missing in all members of a
    cluster, the mean is NaN.
    """
    n_clusters = int(labels.max()) + 1
    detector = data.shape[2:]
    pixels = int(np.prod(detector))
    total = np.zeros((n_clusters, pixels))
    sizes = np.bincount(labels[labels >= 0], minlength=n_clusters)
    missing: dict[int, np.ndarray] = {}

    with workers(n_jobs) as run:
        for start, rows in iterate_blocks(data, copies=1, n_rows=n_rows):
            rows = rows.reshape(len(rows), labels.shape[1], pixels)
            jobs = _members_by_label(labels[start : start + len(rows)])
            moves = None if shifts is None else shifts[start : start + len(rows)]

            # Small whole numbers add up without error in 32 bits, at half the cost.
            small = None
            if rows.dtype.kind in "bui" and rows.itemsize <= 2 and rows.shape[1] < 2**15:
                small = np.int32 if rows.dtype.kind == "i" else np.uint32

            def add(
                label: int,
                rows: np.ndarray = rows,
                jobs: dict = jobs,
                moves: np.ndarray | None = moves,
                small: type | None = small,
            ) -> None:
                # One thread owns a label, and adds its rows in order: the same bits for any block
                # size and any number of threads.
                for i, columns in jobs[label]:
                    patterns = rows[i, columns]
                    if small is not None and moves is None:
                        total[label] += patterns.sum(axis=0, dtype=small)
                        continue
                    if moves is not None:
                        pairs = zip(patterns, moves[i, columns], strict=True)
                        patterns = np.stack([
                            move_pattern(pattern.reshape(detector), move).ravel()
                            for pattern, move in pairs
                        ])  # fmt: skip
                    part = patterns.sum(axis=0, dtype=np.float64)
                    if not np.isfinite(part).all():
                        present = np.isfinite(patterns)
                        part = patterns.sum(axis=0, dtype=np.float64, where=present)
                        gaps = missing.setdefault(label, np.zeros(pixels, dtype=np.int64))
                        gaps += (~present).sum(axis=0)
                    total[label] += part

            run(add, jobs)
            report(len(rows))

    for label in range(n_clusters):
        count = np.full(pixels, float(sizes[label]))
        if label in missing:
            count -= missing[label]
            count[count == 0] = np.nan
        total[label] /= count
    return to_float32(total, "a cluster average").reshape(n_clusters, *detector)


def averaging_need(data: Any, n_clusters: int, moved: bool, n_jobs: int | None) -> Need:
    """Memory that `averaging_core` takes, its sums among it."""
    pixels = int(np.prod(data.shape[2:]))
    copies = 6 if moved else 2  # in float64, each and together
    return Need(
        16 * n_clusters * pixels + scratch_need(data, n_jobs, _TILE, copies), 3 * row_need(data)
    )


def move_pattern(pattern: np.ndarray, shift: np.ndarray) -> np.ndarray:
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


def _members_by_label(labels: np.ndarray) -> dict[int, list[tuple[int, np.ndarray | slice]]]:
    """``{label: [(row, columns), ...]}`` of a block of rows."""
    jobs: dict[int, list[tuple[int, np.ndarray | slice]]] = {}
    for i, row in enumerate(labels):
        order = np.argsort(row, kind="stable")
        values, starts = np.unique(row[order], return_index=True)
        for label, columns in zip(values, np.split(order, starts[1:]), strict=True):
            if label >= 0:
                for tile in tiles(len(columns), _TILE):
                    # Neighbouring columns are read where they lie, not copied first.
                    some = columns[tile]
                    together = some[-1] - some[0] + 1 == len(some)
                    which = slice(some[0], some[-1] + 1) if together else some
                    jobs.setdefault(int(label), []).append((i, which))
    return jobs
