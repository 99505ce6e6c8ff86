"""How fast the kernels are, beside a slow loop, the published way and what the machine can do.

``python -m py4dstem_clustering benchmark speed`` runs it. All ways of doing one thing are timed in
turn, again and again, in one run, so that a machine that slows down slows all of them; medians are
quoted. What is slow is timed on some of the positions, and every time is per pattern.
"""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

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
from ..kernels.similarity import DIRECTIONS, similarity_core, similarity_mean
from ..kernels.tree import cut_at, spanning_forest
from ..kernels.unit_vectors import radial_weight

FILTER = {"sigma": 3, "radius": 4, "corr_range": (0.85, 0.95), "edge": 12}
"""The published filter."""

_SLOW_POSITIONS = 9

_COPIED = 2**26  # bytes

_MAP, _THRESHOLDS = 512, np.linspace(0.5, 0.95, 10)


class Machine(NamedTuple):
    """What the kernels run on, and what it can do with so many threads."""

    processor: str
    cores: int
    blas: str
    threads: int
    bandwidth: float
    """Bytes a second that a copy reads and writes."""
    flops: float
    """Floating-point operations a second of a large matrix product."""


class Way(NamedTuple):
    """One way of doing a thing: a function, and the number of patterns that it works on."""

    name: str
    run: Callable[[], Any]
    patterns: int


class Row(NamedTuple):
    """One line of the table."""

    task: str
    way: str
    seconds: float
    """Per pattern; median."""
    ratio: float
    """To the first way; median over turns."""
    share: float
    """Of the roofline; NaN where there is none."""


def measure_machine(n_jobs: int | None) -> Machine:
    """Copy arrays and multiply matrices, with `n_jobs` threads at once."""
    jobs = count_jobs(n_jobs)
    a = [np.ones(_COPIED // jobs, dtype=np.uint8) for _ in range(jobs)]
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
    """Counts ``(side, side, detector, detector)``, uint16, of grains in stripes; their labels."""
    rng = np.random.default_rng(seed)
    side = max(3, round(np.sqrt(positions)))
    x, y = np.indices((side, side))
    labels = ((2 * x + 3 * y) // 24) % 4
    means = rng.gamma(0.5, 8, (4, detector, detector))
    data = np.empty((side, side, detector, detector), dtype=np.uint16)
    for i, row in enumerate(labels):
        data[i] = rng.poisson(means[row])
    return data, labels


def _annulus(detector: int) -> NDArray[Any]:
    u, v = np.indices((detector, detector)) - (detector - 1) / 2
    distance = np.hypot(u, v)
    return (distance > detector / 16) & (distance < detector / 2.1)


def _places(side: int) -> list[tuple[int, int]]:
    """Positions around the middle of the scan, whose neighbours are mostly inside."""
    first = max(0, side // 2 - 1)
    return [(first + i // 3, first + i % 3) for i in range(_SLOW_POSITIONS)]


# --- slow ways -------------------------------------------------------------------------------


def published_similarity(
    data: NDArray[Any], places: Iterable[tuple[int, int]], q_mask: NDArray[Any], sigma: float
) -> NDArray[Any]:
    """Each pattern converted, blurred and masked anew for each of its neighbours."""
    rx, ry = data.shape[:2]

    def take(x: int, y: int) -> NDArray[Any]:
        pattern = data[x, y].astype(np.float32)
        pattern -= pattern.mean()
        if sigma > 0:
            pattern = gaussian_filter(pattern, sigma)
        return pattern[q_mask]

    found = []
    for x, y in places:
        a = take(x, y)
        row = np.full(8, np.nan)
        for k, (dx, dy) in enumerate(DIRECTIONS):
            if 0 <= x + dx < rx and 0 <= y + dy < ry:
                b = take(x + dx, y + dy)
                row[k] = np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))
        found.append(row)
    return np.array(found)


def slow_features(pattern: NDArray[Any], weight: NDArray[Any], sigma: float) -> NDArray[Any]:
    """A pattern as the filter compares it, by scipy."""
    blurred = gaussian_filter(pattern.astype(np.float32), sigma)
    found = weight * (blurred - np.sum(weight * blurred) / np.sum(weight))
    norm = np.linalg.norm(found)
    return found / norm if norm > 0 else found


def slow_filter(
    data: NDArray[Any], places: Iterable[tuple[int, int]], features: dict, options: dict
) -> NDArray[Any]:
    """The filter in a loop over neighbours, each pattern normalised once.

    `features` holds those of the neighbours; those of `places` are made anew, so that the time of a
    pattern holds one normalisation.
    """
    rx, ry = data.shape[:2]
    low, high = options["corr_range"]
    weight = radial_weight(data.shape[2:], options["edge"]).astype(np.float32)
    offsets = footprint(options["radius"])
    found = []
    for x, y in places:
        features[x, y] = own = slow_features(data[x, y], weight, options["sigma"])
        total, sum_of_weights = data[x, y].astype(np.float32), 1.0
        for dx, dy in offsets:
            i, j = x + dx, y + dy
            if 0 <= i < rx and 0 <= j < ry:
                a = min(max((np.sum(own * features[i, j]) - low) / (high - low), 0), 1)
                total += np.float32(a) * data[i, j]
                sum_of_weights += a
        found.append(total / np.float32(sum_of_weights))
    return np.array(found)


def slow_averages(data: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Add up pattern by pattern."""
    total = np.zeros((labels.max() + 1, *data.shape[2:]))
    for x, y in np.ndindex(labels.shape):
        total[labels[x, y]] += data[x, y]
    return total / np.bincount(labels.ravel())[:, None, None]


# Started with the Python of another environment: kikuchipy needs NumPy 2, py4DSTEM NumPy 1.
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
    """Its ``get_neighbour_dot_product_matrices`` as a function, in a process that is waiting."""
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

        def run() -> None:
            try:
                process.stdin.write("\n")
                process.stdin.flush()
                done = process.stdout.readline()
            except OSError:
                done = ""
            if not done:
                raise ValueError(f"--kikuchipy {python} has no kikuchipy that runs")

        try:
            yield run
        finally:
            process.stdout.close()
            with suppress(OSError):
                process.stdin.close()
            process.wait()


# --- tasks -----------------------------------------------------------------------------------


class Task(NamedTuple):
    """Ways of doing one thing, ours first, and the least that it takes."""

    name: str
    ways: list[Way]
    bytes: float
    """That must go through memory, per pattern; 0 for no roofline."""
    flops: float


def make_tasks(
    data: NDArray[Any],
    labels: NDArray[Any],
    n_jobs: int | None,
    other: Callable[[], None] | None = None,
) -> Iterator[Task]:
    """Every comparison, made when it is asked for. `other` is that of `kikuchipy`."""
    side, detector = len(data), data.shape[-1]
    n, pixels = side * side, detector**2
    jobs = count_jobs(n_jobs)
    common = {"n_jobs": n_jobs, "report": lambda rows: None}
    places = _places(side)
    q_mask = _annulus(detector)
    inside = int(q_mask.sum())

    for sigma in (0, 2):
        band = 2 * int(4 * sigma + 0.5) + 1 if sigma else 0
        # Without blur or mask: it has neither.
        extra = [Way("kikuchipy", other, n)] if other is not None and not sigma else []
        yield Task(
            "similarity" + (f", blur {sigma}" if sigma else ""),
            [
                Way(
                    "this package",
                    lambda sigma=sigma: similarity_core(
                        data, q_mask=q_mask, sigma=sigma, subtract_mean=True, **common
                    ),
                    n,
                ),
                Way(
                    "published",
                    lambda sigma=sigma: published_similarity(data, places, q_mask, sigma),
                    len(places),
                ),
                *extra,
            ],
            # Each pattern read once; its norm and four products, and two bands of the blur.
            2.0 * pixels,
            2.0 * 5 * inside + 2 * 2 * band * pixels,
        )

    edge = min(FILTER["edge"], detector // 8)
    options = {**FILTER, "edge": edge}
    out = np.empty(data.shape, dtype=np.float32)
    weight = radial_weight((detector, detector), edge).astype(np.float32)
    reach = range(-int(FILTER["radius"]), int(FILTER["radius"]) + 1)
    near = {(x + dx, y + dy) for x, y in places for dx in reach for dy in reach}
    features = {
        (x, y): slow_features(data[x, y], weight, FILTER["sigma"])
        for x, y in near
        if 0 <= x < side and 0 <= y < side
    }
    n_offsets = len(footprint(FILTER["radius"]))
    band = 2 * int(4 * FILTER["sigma"] + 0.5) + 1
    yield Task(
        "filter",
        [
            Way("this package", lambda: correlative_core(data, out, **options, **common), n),
            Way("slow loop", lambda: slow_filter(data, places, features, options), len(places)),
        ],
        # Read in 16 bits, written in 32. Half the correlations, all weighted sums, the blur.
        6.0 * pixels,
        2.0
        * (n_offsets // 2 * (detector - 2 * edge) ** 2 + n_offsets * pixels + 2 * band * pixels),
    )

    buffers = [np.empty_like(data[0]) for _ in range(side)]

    def read() -> None:
        with workers(n_jobs) as run:
            run(lambda i: np.copyto(buffers[i], data[i]), range(side))

    yield Task(
        "averages",
        [
            Way("this package", lambda: averaging_core(data, labels, **common), n),
            Way("reading once", read, n),
            Way("slow loop", lambda: slow_averages(data, labels), n),
        ],
        2.0 * pixels,
        1.0 * pixels,
    )

    patterns = data[: max(1, min(side, 512 // side))].reshape(-1, detector, detector)
    patterns = patterns.astype(np.float32)
    matrix = blur_matrix(detector, 2)
    blur = Blur(matrix, matrix)
    blurred = np.empty_like(patterns)

    def ours() -> None:
        with workers(n_jobs) as run:
            run(lambda tile: blur(patterns[tile], out=blurred[tile]), tiles(len(patterns), 8))

    ways = [
        Way("this package", ours, len(patterns)),
        Way("scipy", lambda: gaussian_filter(patterns, (0, 2, 2)), len(patterns)),
    ]
    if find_spec("dask_image") is not None:
        import dask.array as da
        from dask_image.ndfilters import gaussian_filter as dask_gaussian_filter

        lazy = da.from_array(patterns, chunks=(8, -1, -1))
        ways.append(
            Way(
                "dask-image",
                lambda: dask_gaussian_filter(lazy, (0, 2, 2), mode="reflect").compute(
                    num_workers=jobs
                ),
                len(patterns),
            )
        )
    yield Task("blur 2", ways, 8.0 * pixels, 2.0 * 2 * 17 * pixels)


def run_tasks(tasks: Iterable[Task], machine: Machine, turns: int) -> Iterator[Row]:
    """Time the ways of each task in turn."""
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
    """Growth over ``side x side`` positions: seconds for the tree of all thresholds, and a cut."""
    rng = np.random.default_rng(0)
    # Similarities of a field that changes slowly, with noise.
    field = gaussian_filter(rng.normal(size=(side, side, 4)), (3, 3, 0)) * 10
    field += 0.3 * rng.normal(size=field.shape)
    similarity = similarity_core(
        field[..., None].astype(np.float32),
        q_mask=None,
        sigma=0,
        subtract_mean=False,
        n_jobs=None,
        report=lambda rows: None,
    )
    mean = similarity_mean(similarity)
    mask = np.ones((side, side), dtype=bool)

    forest = spanning_forest(similarity, mask)
    return (
        _median(lambda: spanning_forest(similarity, mask), turns),
        _median(lambda: [cut_at(forest, t, mean, 10) for t in _THRESHOLDS], turns)
        / len(_THRESHOLDS),
    )


# --- text ------------------------------------------------------------------------------------


def machine_text(machine: Machine) -> str:
    """What the machine is, and what it can do."""
    return (
        f"{machine.processor}, {machine.cores} cores, {platform.system()}, "
        f"Python {platform.python_version()}, NumPy {np.__version__}\n"
        f"BLAS: {machine.blas}\n"
        f"with {machine.threads} threads: copies {machine.bandwidth / 1e9:.1f} GB/s (read and "
        f"written), multiplies {machine.flops / 1e9:.0f} GFLOP/s"
    )


def load_text() -> str:
    """A warning where other work runs on the machine."""
    if not hasattr(os, "getloadavg"):
        return ""
    load = os.getloadavg()[0]
    return f"load {load:.1f}: other work runs on this machine" if load > 0.5 else ""


def row_text(row: Row) -> str:
    """One line of the table."""
    share = "" if np.isnan(row.share) else f"{100 * row.share:.0f} % of the roofline"
    return (
        f"{row.task:<20} {row.way:<13} {1e3 * row.seconds:>9.4f} ms a pattern "
        f"{row.ratio:>7.1f} x  {share}"
    ).rstrip()


def growth_text(side: int, tree: float, cut: float) -> str:
    """The line of growth."""
    return (
        f"{'growth':<20} {side} x {side} positions: {tree:.3g} s for the tree of all thresholds, "
        f"{1e3 * cut:.3g} ms for the clusters at one"
    )


def growth_side(positions: int) -> int:
    """The paper's map, or a small one where the scan is tiny."""
    return _MAP if positions >= 400 else 32
