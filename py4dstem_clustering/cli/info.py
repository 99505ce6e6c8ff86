"""The command ``info``: what is in a file, how it is calibrated, and what clustering would take."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..base.checks import check_n_jobs
from ..emd import nodes
from ..kernels.blocks import BLOCK_BYTES, read_window
from ..kernels.virtual import sample_mean
from ..scan.axes import unit_sign
from ..scan.calibration import detector_step, known_centre, known_origins, scan_step, varies
from ..scan.opening import notes_of
from .options import load_datacube, opening_options, parse_step, program_name

_PASSES = 3
"""How often merging and averaging read the scan."""

_TRIED_POSITIONS = 1296
"""Scan positions that are clustered to measure the time. With more, the command takes longer."""

_TRIED_BYTES = 200_000_000
"""Largest size of these patterns."""

_PYTHON_BYTES = 0.3e9
"""Memory of Python with py4DSTEM."""

_MERGING_BYTES = 2300
"""Memory of merging for each scan position."""

_KINDS = {
    "clusters": "clusters", "cluster_tree": "cluster trees", "similarity": "similarities",
    "orientation_map": "orientation maps", "phase_map": "phase maps",
}  # fmt: skip
"""Results that an EMD file may hold."""


def run_info(options: argparse.Namespace) -> None:
    """Print what is in a file, how it is calibrated, and what clustering it would take."""
    from ..exporting.series import series_of

    check_n_jobs(options.n_jobs)
    step = None if options.step is None else parse_step(*options.step)
    series = series_of(options.file)
    if series is not None:
        _print(options.file.name, {"series": f"{series!r}", "time": _times(series)})
        _hint(options, f"export {options.file} --to results")
        return
    scan = load_datacube(options.file, opening_options(options), step)
    results = _results(scan)
    _print(
        options.file.name,
        describe_scan(scan, options.file, results),
    )
    if scan.data.shape[1] == 1 and results:
        print("These are averages of clusters, no scan.")
        _hint(options, f"export {options.file} --to results")
        return
    patterns, found = _try(scan, options.n_jobs)
    _print("Clustering and averaging it would take", _estimate(scan, patterns, found))
    _hint(options, f"cluster {options.file} --out clusters.h5 --report report.html")


def _hint(options: argparse.Namespace, command: str) -> None:
    if not options.quiet:
        print(f"Next:\n  {program_name()} {command}")


def describe_scan(
    scan: Any, path: Path, results: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Shape, counts, results and calibration of a scan, as text."""
    return {
        **_content(scan, path),
        **(results or {}),
        **_calibration(scan),
        "not stated": "; ".join(notes_of(scan)) or "nothing",
    }


def _print(title: str, facts: dict[str, str]) -> None:
    print(title)
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"  {name:<{width}}  {value}")


def _times(series: Any) -> str:
    first, last = series.times[[0, -1]]
    return f"{first:g} to {last:g} {series.time_units}"


def _content(scan: Any, path: Path) -> dict[str, str]:
    """Shape, type and counts of a scan."""
    data = scan.data
    rx, ry, qx, qy = data.shape
    size = int(np.prod(data.shape)) * np.dtype(data.dtype).itemsize
    in_file = path.stat().st_size if path.is_file() else 0
    where = "read at once" if isinstance(data, np.ndarray) else "stays on disk"
    facts = {
        "scan": f"{rx} x {ry} positions",
        "detector": f"{qx} x {qy} pixels",
        "data": f"{np.dtype(data.dtype)}, {_bytes(size)}, {where} (file {_bytes(in_file)})",
    }
    mean = sample_mean(data)
    facts["mean pattern"] = (
        f"{mean.sum():.4g} in all pixels, at most {mean.max():.3g} in one (of 8 rows)"
    )
    for name in ("arina", "file"):
        if name in scan.metadata:
            params = scan.metadata[name]._params
            facts["reader"] = str(params["opened"]["reader"])
            if params.get("description"):
                facts["detector"] += f", {params['description']}"
            if np.any(params.get("bad_pixels", False)):
                facts["bad pixels"] = f"{int(np.sum(params['bad_pixels']))}"
    return facts


def _results(scan: Any) -> dict[str, str]:
    """Results of this package in the tree of a scan."""
    found = {}
    for kind, name in _KINDS.items():
        kept = nodes.children(scan, kind)
        if kept:
            found[name] = ", ".join(map(repr, kept))
    if "clusters" in found:
        found["newest clusters"] = repr(scan.clusters)
    return found


def _calibration(scan: Any) -> dict[str, str]:
    """Scan step, detector pixels and origin, or how to state them."""
    size, unit = scan_step(scan)
    rx, ry, qx, qy = scan.data.shape
    if hasattr(scan, "clusters"):  # averages lie in no field of view; their scan does
        rx, ry = scan.clusters.shape
    facts = {"scan step": "not known; state it with --step 2 nm"}
    if unit != "pixels":
        shown = unit_sign(unit)
        field = f"field of view {size * rx:.4g} x {size * ry:.4g} {shown}"
        facts["scan step"] = f"{size:.4g} {shown} ({field})"
    size, unit = detector_step(scan)
    facts["detector pixel"] = "not known; orientation and strain need it, clustering does not"
    if unit != "pixels":
        shown = unit_sign(unit)
        reach = size * min(qx, qy) / 2
        facts["detector pixel"] = f"{size:.4g} {shown} (reaches {reach:.3g} {shown})"
    centre = known_centre(scan)
    facts["origin"] = "not known; the brightest place is taken where one is needed"
    if centre is not None:
        origins = known_origins(scan)
        each = origins is not None and varies(origins)
        facts["origin"] = f"pixel {centre[0]:.1f}, {centre[1]:.1f}" + (
            " on average, known for each position" if each else ""
        )
    return facts


class _Tried(NamedTuple):
    """What clustering a part of the scan took."""

    read: float
    """Seconds to read a pattern."""
    work: float
    """Seconds to cluster and average a pattern."""


def _try(scan: Any, n_jobs: int | None) -> tuple[int, _Tried]:
    """Cluster a window in the middle of the scan; the number of its patterns, and the times."""
    from py4DSTEM import DataCube

    from ..grains.averages import get_clustered_datacube
    from ..grains.clustering import cluster

    data = scan.data
    rx, ry, qx, qy = data.shape
    number = min(_TRIED_POSITIONS, max(64, _TRIED_BYTES // (qx * qy * data.dtype.itemsize)))
    side = int(np.sqrt(number))
    rows = min(rx, max(side, number // ry))
    columns = min(ry, number // rows)
    first = (rx - rows) // 2, (ry - columns) // 2
    start = time.perf_counter()
    window = read_window(data, (first[0], first[0] + rows), (first[1], first[1] + columns))
    read = time.perf_counter() - start
    seconds = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a window, which is not the scan
        for part in (window[:4, :4], window):  # the first call also imports
            start = time.perf_counter()
            cube = DataCube(np.ascontiguousarray(part))
            clusters: Any = cluster(cube, drop_background=False, n_jobs=n_jobs, progress_bar=False)
            if clusters.n_clusters:
                get_clustered_datacube(cube, clusters, n_jobs=n_jobs, progress_bar=False)
            seconds = time.perf_counter() - start
    n = rows * columns
    return n, _Tried(read / n, seconds / n)


def _estimate(scan: Any, n_tried: int, found: _Tried) -> dict[str, str]:
    """Time and memory of `cluster` and averages, from a part of the scan."""
    rx, ry, qx, qy = scan.data.shape
    number = rx * ry
    reading = 0.0 if isinstance(scan.data, np.ndarray) else _PASSES * found.read * number
    working = found.work * number
    size = number * qx * qy * np.dtype(scan.data.dtype).itemsize
    if isinstance(scan.data, np.ndarray):
        held = size + _MERGING_BYTES * number
    else:  # two blocks are in memory while a third one is worked on
        blocks = min(3 * BLOCK_BYTES * np.dtype(scan.data.dtype).itemsize / 4, size)
        held = max(blocks, _MERGING_BYTES * number)
    memory = _PYTHON_BYTES + held
    return {
        "time": f"about {_time(max(reading, working) + min(reading, working) / 2)} on this machine "
        f"(measured with {n_tried} patterns from the middle; reading {_time(reading)})",
        "memory": f"about {_bytes(memory)}",
        "averages": f"{_bytes(4 * qx * qy)} for each cluster",
    }


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.2g} min" if seconds < 5400 else f"{seconds / 3600:.2g} h"


def _bytes(number: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} bytes"
