"""Benchmark: speed of the kernels, a slow loop and the published code, and of the machine.

``py4dstem-clustering benchmark speed`` runs it. All ways to do a task are timed in turn, several
times, so a machine that becomes slower affects all of them. Results are medians. Slow ways
are timed on a few positions only. Times are per pattern.
"""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from threadpoolctl import threadpool_info

from ..kernels.averaging import averaging_core
from ..kernels.blas import matmul
from ..kernels.blocks import count_jobs, tiles, workers
from ..kernels.blur import Blur, blur_matrix
from ..kernels.correlative import correlative_core
from ..kernels.neighbours import footprint
from ..kernels.similarity import similarity_core, similarity_mean
from ..kernels.tree import cut_at, spanning_forest
from ..kernels.unit_vectors import radial_weight
from .slow import (
    Place,
    filter_feature,
    filter_sums,
    label_sums,
    neighbours,
    published_similarity,
    unit,
)

SIGMA, RADIUS, CORR_RANGE, EDGE = 3.0, 4.0, (0.85, 0.95), 12
"""Options of the published filter."""

_N_SLOW_PLACES = 9
"""Number of positions on which slow ways are timed."""

_COPIED_BYTES = 2**26
"""Size of the copy that measures the memory; it must be larger than the caches."""

_GROWTH_SIDE, _GROWTH_THRESHOLDS = 512, np.linspace(0.5, 0.95, 10)


class Machine(NamedTuple):
    """The machine, and its speed with `threads` threads."""

    processor: str
    cores: int
    blas: str
    threads: int
    bandwidth: float
    """Bytes a second of a copy: bytes read plus bytes written."""
    flops: float
    """Floating-point operations a second of a large matrix product."""


class Way(NamedTuple):
    """One way to do a task: a function, and the number of patterns that it works on."""

    name: str
    run: Callable[[], Any]
    patterns: int


class Row(NamedTuple):
    """One line of the table."""

    task: str
    way: str
    seconds: float
    """Median time per pattern."""
    ratio: float
    """Time divided by the time of the first way; median over turns."""
    share: float
    """Least possible time divided by the time; NaN for all ways but the first."""


def measure_machine(n_jobs: int | None) -> Machine:
    """Measure copies of arrays and products of matrices, with `n_jobs` threads at once."""
    jobs = count_jobs(n_jobs)
    a = [np.ones(_COPIED_BYTES // jobs, dtype=np.uint8) for _ in range(jobs)]
    b = [x.copy() for x in a]
    n = 1024
    rng = np.random.default_rng(0)
    matrices = [rng.random((n, n), dtype=np.float32) for _ in range(jobs)]
    with workers(jobs) as run:
        copying = _median(lambda: run(lambda i: np.copyto(b[i], a[i]), range(jobs)))
        multiplying = _median(lambda: run(lambda x: matmul(x, x), matrices))
    return Machine(
        processor=_processor(),
        cores=count_jobs(None),
        blas=_blas(),
        threads=jobs,
        bandwidth=2 * sum(x.nbytes for x in a) / copying,
        flops=2 * n**3 * jobs / multiplying,
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _blas() -> str:
    found = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return ", ".join(
        " ".join(
            str(pool[key]) for key in ("internal_api", "version", "architecture") if pool.get(key)
        )
        + f" ({Path(pool['filepath']).parent.name.removesuffix('.libs')})"
        for pool in found
    )


def _median(run: Callable[[], Any], turns: int = 7) -> float:
    run()
    return float(np.median([_time(run) for _ in range(turns)]))


def _time(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# --- data ------------------------------------------------------------------------------------


def make_scan(positions: int, detector: int, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return counts ``(side, side, detector, detector)``, uint16, of striped grains, and labels."""
    rng = np.random.default_rng(seed)
    side = max(3, round(np.sqrt(positions)))
    x, y = np.indices((side, side))
    labels = ((2 * x + 3 * y) // 24) % 4
    means = rng.gamma(0.5, 8, (4, detector, detector))
    data = np.empty((side, side, detector, detector), dtype=np.uint16)
    for i, row in enumerate(labels):
        data[i] = rng.poisson(means[row])
    return data, labels


def annulus(detector: int) -> NDArray[np.bool_]:
    """Return the detector pixels that are compared."""
    u, v = np.indices((detector, detector)) - (detector - 1) / 2
    distance = np.hypot(u, v)
    return (distance > detector / 16) & (distance < detector / 2.1)


def slow_places(side: int) -> list[Place]:
    """Return positions in the middle of the scan, with most neighbours inside of the scan."""
    first = max(0, side // 2 - 1)
    return [(first + i // 3, first + i % 3) for i in range(_N_SLOW_PLACES)]


# --- another package -------------------------------------------------------------------------

# This runs in the Python of another environment: kikuchipy needs NumPy 2, py4DSTEM NumPy 1.
_KIKUCHIPY = """
import sys, warnings, io
warnings.simplefilter("ignore")
import numpy as np
import kikuchipy as kp
signal = kp.signals.EBSD(np.load(sys.argv[1], allow_pickle=False))
window = kp.filters.Window("rectangular", shape=(3, 3))
answer, sys.stdout = sys.stdout, io.StringIO()
for line in sys.stdin:
    np.asarray(signal.get_neighbour_dot_product_matrices(window=window, dtype_out="float32"))
    print("done", file=answer, flush=True)
"""


@contextmanager
def kikuchipy(python: str | None, data: NDArray[Any]) -> Iterator[Callable[[], None] | None]:
    """Give kikuchipy's ``get_neighbour_dot_product_matrices`` as a function; None without `python`.

    The function runs in a process of `python` that has loaded the scan and waits for calls.
    """
    if python is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.npy"
        np.save(path, data)
        try:
            process = subprocess.Popen(
                [python, "-c", _KIKUCHIPY, str(path)], stdin=subprocess.PIPE, text=True,
                stdout=subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            raise ValueError(f"--kikuchipy {python} does not start: {error}") from error

        calls, answers = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)

        def run() -> None:
            try:
                calls.write("\n")
                calls.flush()
                done = answers.readline()
            except OSError:
                done = ""
            if not done:
                raise ValueError(f"--kikuchipy {python} has no kikuchipy that runs")

        try:
            yield run
        finally:
            answers.close()
            with suppress(OSError):
                calls.close()
            process.wait()


# --- tasks -----------------------------------------------------------------------------------


class Task(NamedTuple):
    """Ways to do a task, this package first, and the least work that the task needs."""

    name: str
    ways: list[Way]
    bytes: float
    """Least number of bytes that must be read and written, per pattern."""
    flops: float
    """Least number of floating-point operations, per pattern."""


def make_tasks(
    data: NDArray[Any],
    labels: NDArray[Any],
    n_jobs: int | None,
    kikuchipy_way: Callable[[], None] | None = None,
) -> Iterator[Task]:
    """Yield every comparison; the arrays of a task are made only when it is run."""
    yield _similarity_task(data, 0, n_jobs, kikuchipy_way)
    yield _similarity_task(data, 2, n_jobs, None)  # kikuchipy has no blur
    yield _filter_task(data, n_jobs)
    yield _averages_task(data, labels, n_jobs)
    yield _blur_task(data, n_jobs)


def _ignore(done: int) -> None:
    """Report no progress."""


def _blur_width(sigma: float) -> int:
    """Return the number of pixels of a blur along an axis; 0 without a blur."""
    return 2 * int(4 * sigma + 0.5) + 1 if sigma else 0


def _similarity_task(
    data: NDArray[Any],
    sigma: float,
    n_jobs: int | None,
    kikuchipy_way: Callable[[], None] | None,
) -> Task:
    side, detector = len(data), data.shape[-1]
    q_mask, places = annulus(detector), slow_places(side)

    def ours() -> None:
        similarity_core(
            data, q_mask=q_mask, sigma=sigma, subtract_mean=True, n_jobs=n_jobs, report=_ignore
        )

    def published() -> None:
        published_similarity(data, places, q_mask, sigma)

    ways = [Way("this package", ours, side**2), Way("published", published, len(places))]
    if kikuchipy_way is not None:
        ways.append(Way("kikuchipy", kikuchipy_way, side**2))
    # Bytes: each pattern is read once. Operations: norm, four products, blur along both axes.
    n_bytes = 2.0 * detector**2
    flops = 2.0 * 5 * int(q_mask.sum()) + 2 * 2 * _blur_width(sigma) * detector**2
    return Task("similarity" + (f", blur {sigma}" if sigma else ""), ways, n_bytes, flops)


def _filter_task(data: NDArray[Any], n_jobs: int | None) -> Task:
    side, detector = len(data), data.shape[-1]
    edge = min(EDGE, detector // 8)
    out = np.empty(data.shape, dtype=np.float32)
    weight = radial_weight((detector, detector), edge).astype(np.float32)
    places = slow_places(side)
    near = {other for place in places for other in neighbours((side, side), place, RADIUS)}
    features = {place: unit(filter_feature(data[place], weight, SIGMA)) for place in near}

    def ours() -> None:
        correlative_core(
            data, out, sigma=SIGMA, radius=RADIUS, corr_range=CORR_RANGE, edge=edge,
            n_jobs=n_jobs, report=_ignore,
        )  # fmt: skip

    def slow() -> None:
        slow_filter(data, places, features, weight)

    ways = [Way("this package", ours, side**2), Way("slow loop", slow, len(places))]
    # Bytes: 16 bits read, 32 written. Operations: half of the correlations, all sums, the blur.
    n_offsets = len(footprint(RADIUS))
    correlations = n_offsets // 2 * (detector - 2 * edge) ** 2
    sums_and_blur = (n_offsets + 2 * _blur_width(SIGMA)) * detector**2
    return Task("filter", ways, 6.0 * detector**2, 2.0 * (correlations + sums_and_blur))


def slow_filter(
    data: NDArray[Any],
    places: Iterable[Place],
    features: Mapping[Place, NDArray[Any]],
    weight: NDArray[Any],
) -> NDArray[np.float32]:
    """Filter in a loop over neighbours, as if each pattern were normalised once.

    `features` are those of the neighbours. The feature of each place is computed again, so the time
    per pattern includes one normalisation.
    """
    found = []
    for place in places:
        own = unit(filter_feature(data[place], weight, SIGMA))
        total, sum_of_weights = filter_sums(
            data, place, {**features, place: own}, radius=RADIUS, corr_range=CORR_RANGE
        )
        found.append(total / np.float32(sum_of_weights))
    return np.array(found)


def _averages_task(data: NDArray[Any], labels: NDArray[Any], n_jobs: int | None) -> Task:
    side, detector = len(data), data.shape[-1]
    buffers = [np.empty_like(data[0]) for _ in range(side)]

    def ours() -> None:
        averaging_core(data, labels, n_jobs=n_jobs, report=_ignore)

    def read() -> None:
        with workers(n_jobs) as run:
            run(lambda i: np.copyto(buffers[i], data[i]), range(side))

    def slow() -> None:
        label_sums(data, labels) / np.bincount(labels.ravel())[:, None, None]

    names = ("this package", ours), ("reading once", read), ("slow loop", slow)
    ways = [Way(name, run, side**2) for name, run in names]
    return Task("averages", ways, 2.0 * detector**2, 1.0 * detector**2)


def _blur_task(data: NDArray[Any], n_jobs: int | None) -> Task:
    side, detector = len(data), data.shape[-1]
    patterns = data[: max(1, min(side, 512 // side))].reshape(-1, detector, detector)
    patterns = patterns.astype(np.float32)
    matrix = blur_matrix(detector, 2)
    blur = Blur(matrix, matrix)
    blurred = np.empty_like(patterns)

    def ours() -> None:
        with workers(n_jobs) as run:
            run(lambda tile: blur(patterns[tile], out=blurred[tile]), tiles(len(patterns), 8))

    def scipy() -> None:
        gaussian_filter(patterns, (0, 2, 2))

    ways = [Way("this package", ours, len(patterns)), Way("scipy", scipy, len(patterns))]
    if find_spec("dask_image") is not None:
        import dask.array as da
        from dask_image.ndfilters import gaussian_filter as dask_gaussian_filter

        lazy = da.from_array(patterns, chunks=(8, -1, -1))

        def dask_image() -> None:
            dask_gaussian_filter(lazy, (0, 2, 2), mode="reflect").compute(
                num_workers=count_jobs(n_jobs)
            )

        ways.append(Way("dask-image", dask_image, len(patterns)))
    return Task("blur 2", ways, 8.0 * detector**2, 2.0 * 2 * _blur_width(2) * detector**2)


def run_tasks(tasks: Iterable[Task], machine: Machine, turns: int) -> Iterator[Row]:
    """Time the ways of each task in turn, each once in every turn."""
    for task in tasks:
        for way in task.ways:
            way.run()  # warm up
        times = np.array(
            [[_time(way.run) / way.patterns for way in task.ways] for _ in range(turns)]
        )
        least = max(task.bytes / machine.bandwidth, task.flops / machine.flops)
        for k, way in enumerate(task.ways):
            seconds = float(np.median(times[:, k]))
            ratio = float(np.median(times[:, k] / times[:, 0]))
            yield Row(task.name, way.name, seconds, ratio, least / seconds if k == 0 else np.nan)


def growth_seconds(side: int, turns: int) -> tuple[float, float]:
    """Time growth over ``side x side`` positions: seconds for the tree, and for one threshold."""
    rng = np.random.default_rng(0)
    # Similarities of a field that changes slowly over the scan, with noise.
    field = gaussian_filter(rng.normal(size=(side, side, 4)), (3, 3, 0)) * 10
    field += 0.3 * rng.normal(size=field.shape)
    similarity = similarity_core(
        field[..., None].astype(np.float32),
        q_mask=None,
        sigma=0,
        subtract_mean=False,
        n_jobs=None,
        report=_ignore,
    )
    mean = similarity_mean(similarity)
    mask = np.ones((side, side), dtype=bool)

    forest = spanning_forest(similarity, mask)
    return (
        _median(lambda: spanning_forest(similarity, mask), turns),
        _median(lambda: [cut_at(forest, t, mean, 10) for t in _GROWTH_THRESHOLDS], turns)
        / len(_GROWTH_THRESHOLDS),
    )


# --- text ------------------------------------------------------------------------------------


def machine_text(machine: Machine) -> str:
    """Return lines that describe the machine and its speed."""
    return (
        f"{machine.processor}, {machine.cores} cores, {platform.system()}, "
        f"Python {platform.python_version()}, NumPy {np.__version__}\n"
        f"BLAS: {machine.blas}\n"
        f"with {machine.threads} threads: copies {machine.bandwidth / 1e9:.1f} GB/s (read and "
        f"written), multiplies {machine.flops / 1e9:.0f} GFLOP/s"
    )


def load_text() -> str:
    """Return a warning if other work runs on the machine, otherwise an empty text."""
    if not hasattr(os, "getloadavg"):
        return ""
    load = os.getloadavg()[0]
    return f"load {load:.1f}: other work runs on this machine" if load > 0.5 else ""


def row_text(row: Row) -> str:
    """Return one line of the table."""
    share = "" if np.isnan(row.share) else f"{100 * row.share:.0f} % of the roofline"
    return (
        f"{row.task:<20} {row.way:<13} {1e3 * row.seconds:>9.4f} ms a pattern "
        f"{row.ratio:>7.1f} x  {share}"
    ).rstrip()


def growth_text(side: int, tree: float, cut: float) -> str:
    """Return the line of the table for growth."""
    return (
        f"{'growth':<20} {side} x {side} positions: {tree:.3g} s for the tree of all thresholds, "
        f"{1e3 * cut:.3g} ms for the clusters at one"
    )


def growth_side(positions: int) -> int:
    """Return the side of the map for growth: as in the paper, or smaller for a tiny scan."""
    return _GROWTH_SIDE if positions >= 400 else 32
