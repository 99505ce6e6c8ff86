"""Find the rows and columns of a scan from the number of its frames."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.checks import check_integer


def find_scan_shape(
    n_frames: int,
    stated: tuple[int, int] | None,
    scan_shape: Any,
    skip: tuple[int, int],
    flyback: int,
    facts: dict[str, Any],
    *,
    square: bool = True,
) -> tuple[int, int]:
    """Rows and columns of the scan, without flyback.

    `stated` is what the file says, with flyback. `square`: whether a scan of which nothing is known
    is taken for a square, as the programs of the detector do.
    """
    kept = n_frames - sum(skip)
    what = f"{n_frames} frames"
    if skip != (0, 0):
        what = f"the {kept} of {what} that skip_frames={skip} leaves"
    if kept < 1:
        raise ValueError(f"skip_frames={skip} leaves none of {n_frames} frames; skip fewer")

    if scan_shape is not None:
        try:
            rows, columns = scan_shape
        except (TypeError, ValueError):
            raise TypeError(
                f"scan_shape={scan_shape!r} must be two whole numbers, (rows, columns)"
            ) from None
        rows, columns = (check_integer("scan_shape", n, 1) for n in (rows, columns))
        needed = rows * (columns + flyback)
        if kept not in (needed, needed - flyback):
            over = kept - needed
            remedy = f"it can be {_possible_shapes(kept, flyback)}"
            if over > 0:
                remedy += f", or skip_frames={(skip[0], skip[1] + over)} drops the last {over}"
            raise ValueError(
                f"scan_shape={(rows, columns)} with flyback={flyback} needs {needed} frames and "
                f"does not fit {what}; {remedy}"
            )
        return rows, columns

    if stated is not None and skip == (0, 0) and stated[1] > flyback:
        if stated[0] * stated[1] != n_frames:
            raise ValueError(
                f"there are {n_frames} frames, but the file announces a scan of {stated}; copy it "
                "again, or give scan_shape if the scan was stopped: "
                f"{_possible_shapes(kept, flyback)}"
            )
        return stated[0], stated[1] - flyback
    triggers, each = facts.get("ntrigger"), facts.get("nimages")
    if isinstance(triggers, int) and isinstance(each, int):
        if triggers * each != n_frames:
            raise ValueError(
                f"there are {n_frames} frames, but the file announces {triggers * each}; copy all "
                "chunk files, or give scan_shape if the scan was stopped: "
                f"{_possible_shapes(kept, flyback)}"
            )
        if skip == (0, 0) and min(triggers, each - flyback) > 1:
            return triggers, each - flyback
    if kept == 1:
        return 1, 1
    for frames in {kept, kept + flyback} if square else ():
        columns = round((np.sqrt(flyback**2 + 4 * frames) - flyback) / 2)
        if columns > 0 and columns * (columns + flyback) == frames:
            return columns, columns
    why = f"with flyback={flyback} make no square" if square else "are a stack, without rows"
    raise ValueError(f"{what} {why}; give scan_shape: {_possible_shapes(kept, flyback)}")


def _possible_shapes(frames: int, flyback: int) -> str:
    """The six scan shapes nearest to a square with so many frames, as text for an error."""
    found = {
        (rows, total // rows - flyback)
        for total in {frames, frames + flyback}
        for rows in _divisors(total)
        if total // rows > flyback
    }
    nearest = sorted(found, key=lambda shape: abs(np.log(shape[0] / shape[1])))[:6]
    return " or ".join(map(str, sorted(nearest)))


def _divisors(n: int) -> list[int]:
    """All divisors of a number."""
    small = [i for i in range(1, int(np.sqrt(n)) + 1) if n % i == 0]
    return small + [n // i for i in small]
