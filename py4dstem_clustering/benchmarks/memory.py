"""Benchmark: time and peak memory of each step on a scan in a file, one process for each step.

A small simulated scan is enlarged to the wanted size, block by block. The number of
grains stays the same; time and memory are those of a measured scan of that size.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shutil import disk_usage
from time import perf_counter
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_integer, check_memory
from ..simulate.scan import simulate_scan

STEPS = ("filter", "lowrank", "merge", "averages")
"""The steps: both filters to HDF5, merging of the unfiltered scan, averages of the clusters."""

_SIMULATED_SIDE = 32
"""Largest number of positions along an axis of the small scan."""

_ELECTRONS = 1000
"""Electrons of a pattern."""

_TABLE = 2**20
"""Entries of the table of a pattern; with fewer, dim pixels are missed."""

_PIECE_BYTES = 16 * 2**20
"""Size of the blocks in which the scan is written."""


class Row(NamedTuple):
    """Time and memory of one step."""

    step: str
    seconds: float
    positions: int
    peak: int
    """Largest memory of the process, bytes, without `imports`."""
    imports: int
    """Memory of the process after the imports, bytes."""


def pieces_of_scan(
    scan: tuple[int, int], detector: tuple[int, int]
) -> Iterator[tuple[int, int, NDArray[np.uint16]]]:
    """Yield a scan of 16-bit counts as row, first column and patterns, piece by piece.

    Each position has noise of its own: positions with the same noise would be grains.
    """
    rx, ry = scan
    small = simulate_scan(
        (min(rx, _SIMULATED_SIDE), min(ry, _SIMULATED_SIDE)), detector, n_grains=6, seed=0
    )
    # Electrons are drawn one by one, which is faster than a number for each pixel: a table of each
    # pattern holds a pixel as often as electrons arrive there.
    upper = np.cumsum(small.patterns.reshape(len(small.patterns), -1), axis=1)
    levels = (np.arange(_TABLE) + 0.5) / _TABLE
    pixels = np.stack([np.searchsorted(row / row[-1], levels) for row in upper])
    n_pixels = upper.shape[1]
    rng = np.random.default_rng(0)
    x, y = (np.arange(n) * m // n for n, m in zip(scan, small.labels.shape, strict=True))
    step = max(1, _PIECE_BYTES // (8 * n_pixels))
    for row in range(rx):
        for start in range(0, ry, step):
            shares = small.shares[x[row], y[start : start + step]]
            numbers = rng.poisson(shares * _ELECTRONS)
            hits = []
            for of_pattern, number in zip(pixels, numbers.T, strict=True):
                position = np.repeat(np.arange(len(number)), number)
                drawn = rng.integers(0, _TABLE, len(position))
                hits.append(position * n_pixels + of_pattern[drawn])
            counts = np.bincount(np.concatenate(hits), minlength=len(shares) * n_pixels)
            yield row, start, counts.astype(np.uint16).reshape(-1, *detector)


def write_scan(path: Path, scan: tuple[int, int], detector: tuple[int, int]) -> None:
    """Write a scan of 16-bit counts, with a chunk for each pattern."""
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", (*scan, *detector), np.uint16, chunks=(1, 1, *detector))
        for row, start, piece in pieces_of_scan(scan, detector):
            data[row, start : start + len(piece)] = piece


def run_benchmark(
    scan: tuple[int, int],
    detector: tuple[int, int],
    *,
    max_memory: str | None = None,
) -> Iterator[Row]:
    """Write a scan in a temporary folder, and measure each step on it."""
    for n in scan:
        check_integer("--scan", n, 4)
    for n in detector:
        check_integer("--detector", n, 32)
    check_memory(max_memory)
    # The scan has 16 bits, the filtered scan 32. Python integers do not overflow.
    n_bytes = 6 * int(np.prod([*scan, *detector], dtype=object))
    with tempfile.TemporaryDirectory() as place:
        free = disk_usage(place).free
        if n_bytes > 0.95 * free:
            raise ValueError(
                f"--scan {scan[0]} {scan[1]} --detector {detector[0]} {detector[1]} takes "
                f"{n_bytes / 1e9:.3g} GB in {place}, where {free / 1e9:.3g} GB are free; take "
                "smaller ones, or set TMPDIR to another disk"
            )
        path = Path(place) / "scan.h5"
        write_scan(path, scan, detector)
        for step in STEPS:
            command = [sys.executable, "-m", __name__, step, str(path), max_memory or ""]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                last = done.stderr.strip().splitlines()[-1:]
                raise ValueError(f"{step} failed: {' '.join(last)}")
            found = json.loads(done.stdout.splitlines()[-1])
            yield Row(step, found["seconds"], scan[0] * scan[1], found["peak"], found["imports"])
            (path.parent / "filtered.h5").unlink(missing_ok=True)


def text_line(row: Row) -> str:
    """Return a row of the table under `HEAD`."""
    return (
        f"{row.step:<9} {row.seconds / 60:>8.2f} {1e3 * row.seconds / row.positions:>13.2f} "
        f"{row.peak / 1e6:>8.0f} {(row.peak + row.imports) / 1e6:>15.0f}"
    )


HEAD = f"{'step':<9} {'minutes':>8} {'ms a position':>13} {'peak, MB':>8} {'with Python, MB':>15}"


# --- the process that is measured ------------------------------------------------------------


def _memory() -> int:
    """Return the largest memory that this process has had, bytes."""
    import resource

    status = Path("/proc/self/status")
    if status.exists():  # on Linux, getrusage starts with the number of the parent process
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _run(step: str, path: Path, max_memory: str | None) -> dict[str, Any]:
    """Run one step and return its time and memory."""
    import py4DSTEM

    from .. import Clusters

    stored = path.with_name("clusters.h5")
    options = {"max_memory": max_memory, "progress_bar": False}
    with h5py.File(path, "r") as file:
        cube = py4DSTEM.DataCube(file["data"], name="scan")
        clusters: Any = None
        if step == "averages":
            clusters = Clusters.from_node(py4DSTEM.read(str(stored)))
        imports, start = _memory(), perf_counter()
        if step == "filter":
            cube.filter_correlative(out=path.with_name("filtered.h5"), corr_range="auto", **options)
        elif step == "lowrank":
            cube.filter_lowrank(out=path.with_name("filtered.h5"), **options)
        elif step == "merge":
            clusters = cube.cluster(drop_background=False, **options)
        else:
            cube.get_clustered_datacube(clusters, **options)
        found = {"seconds": perf_counter() - start, "peak": _memory() - imports}
        if step == "merge":
            py4DSTEM.save(str(stored), clusters.to_node(), mode="o")
    return {**found, "imports": imports}


if __name__ == "__main__":
    print(json.dumps(_run(sys.argv[1], Path(sys.argv[2]), sys.argv[3] or None)))
