"""Mean diffraction pattern of each cluster."""

from __future__ import annotations

from typing import Any

import numpy as np

from .blocks import (
    Need,
    Report,
    at_once,
    is_small_integer,
    iterate_blocks,
    row_need,
    scratch_need,
    tiles,
    to_float32,
    workers,
)

# Members of a cluster, in one row of the scan, that are added together: few enough to stay in the
# cache of a core, and more of a small detector.
_TILE = 24

# So many numbers of 16 bits add up in float32 without error.
_EXACT = 2**8


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
    tile = min(at_once(_TILE, pixels), _EXACT, labels.shape[1])
    total = np.zeros((n_clusters, pixels))
    sizes = np.bincount(labels[labels >= 0], minlength=n_clusters)
    missing: dict[int, np.ndarray] = {}

    with workers(n_jobs) as run:
        for start, rows in iterate_blocks(data, copies=1, n_rows=n_rows):
            rows = rows.reshape(len(rows), labels.shape[1], pixels)
            jobs = _members_by_label(labels[start : start + len(rows)], tile)
            moves = None if shifts is None else shifts[start : start + len(rows)]

            # Small whole numbers add up without error in float32, at half the cost.
            exact = moves is None and is_small_integer(rows.dtype)

            def add(
                label: int,
                rows: np.ndarray = rows,
                jobs: dict = jobs,
                moves: np.ndarray | None = moves,
                exact: bool = exact,
            ) -> None:
                # One thread owns a label, and adds its rows in order: the same bits for any block
                # size and any number of threads.
                scratch = np.empty((tile, pixels), dtype=np.float32 if exact else np.float64)
                sums, count = np.zeros(pixels if exact else 0, dtype=np.float32), 0
                for i, columns in jobs[label]:
                    patterns = rows[i, columns]
                    if exact:
                        sums += _sum(patterns, scratch)
                        count += len(patterns)
                        if count > _EXACT - tile:
                            total[label] += sums
                            sums[:] = count = 0
                        continue
                    if moves is not None:
                        pairs = zip(patterns, moves[i, columns], strict=True)
                        patterns = np.stack([
                            move_pattern(pattern.reshape(detector), move).ravel()
                            for pattern, move in pairs
                        ])  # fmt: skip
                    part = _sum(patterns, scratch)
                    if not np.isfinite(part).all():
                        present = np.isfinite(patterns)
                        part = patterns.sum(axis=0, dtype=np.float64, where=present)
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


def _sum(patterns: np.ndarray, scratch: np.ndarray) -> np.ndarray:
    """Sum of patterns ``(n, pixels)`` in the type of `scratch`, which is overwritten.

    As a product with ones: NumPy's own sum in another type takes twice as long.
    """
    x = scratch[: len(patterns)]
    np.copyto(x, patterns, casting="unsafe")
    return np.ones(len(x), dtype=x.dtype) @ x


def averaging_need(data: Any, n_clusters: int, moved: bool, n_jobs: int | None) -> Need:
    """Memory that `averaging_core` takes, its sums among it."""
    pixels = int(np.prod(data.shape[2:]))
    copies = 6 if moved else 4  # as they are and in float64; moved, each and together
    tile = min(at_once(_TILE, pixels), _EXACT)
    return Need(
        16 * n_clusters * pixels + scratch_need(data, n_jobs, tile, copies), 3 * row_need(data)
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


def _members_by_label(
    labels: np.ndarray, size: int
) -> dict[int, list[tuple[int, np.ndarray | slice]]]:
    """``{label: [(row, columns), ...]}`` of a block of rows, at most `size` columns at once."""
    jobs: dict[int, list[tuple[int, np.ndarray | slice]]] = {}
    for i, row in enumerate(labels):
        order = np.argsort(row, kind="stable")
        values, starts = np.unique(row[order], return_index=True)
        for label, columns in zip(values, np.split(order, starts[1:]), strict=True):
            if label >= 0:
                for tile in tiles(len(columns), size):
                    # Neighbouring columns are read where they lie, not copied first.
                    some = columns[tile]
                    together = some[-1] - some[0] + 1 == len(some)
                    which = slice(some[0], some[-1] + 1) if together else some
                    jobs.setdefault(int(label), []).append((i, which))
    return jobs
