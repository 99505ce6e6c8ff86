"""Benchmark: how well methods find the grains of simulated scans, compared with the truth.

``py4dstem-clustering benchmark segmentation --out DIR`` runs it; `methods` holds the methods.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base.progress import progress
from ..metrics import adapted_rand_error, panoptic_quality
from ..simulate.scan import SimulatedScan, simulate_scan
from .common import doses_of
from .common import markdown_table as make_table
from .methods import METHODS, KnownScan, count_labels

ELECTRONS = (30.0, 100.0, 1000.0, 10000.0, 100000.0)
"""Electrons a pattern."""

TUNING_SEEDS = range(100, 164)
"""Seeds on which the settings of merging were tuned; the benchmark refuses them."""

SHAPES = {False: ((64, 56), (96, 90)), True: ((20, 18), (40, 36))}
"""Shapes of scan and detector. True: small scans, for tests of the benchmark itself."""

HARD: dict[str, Any] = {"twins": 0.5, "bending": 2.0, "probe_blur": 0.8, "uneven": 0.5}
"""Options of `simulate_scan` for hard scans; easy scans have none of them."""


def make_scan(seed: int, electrons: float, *, easy: bool, small: bool) -> SimulatedScan:
    """Simulate the scan of one seed at one dose; a seed has the same grains at every dose."""
    options = {} if easy else HARD
    n_grains = 2 + (4 * seed) % 11
    return simulate_scan(
        *SHAPES[small], n_grains=n_grains, electrons=electrons, seed=seed, **options
    )


class Row(NamedTuple):
    """One method on one scan; the columns of the CSV file."""

    method: str
    electrons: float
    seed: int
    grains: int
    clusters: int
    panoptic_quality: float
    adapted_rand_error: float
    seconds: float
    threshold: float | str | None


class Example(NamedTuple):
    """Label maps of one scan, for the figure."""

    electrons: float
    seed: int
    truth: NDArray[Any]
    labels: dict[str, NDArray[Any]]
    quality: dict[str, float]


class Results(NamedTuple):
    """All rows, and the label maps of one scan."""

    methods: tuple[str, ...]
    rows: list[Row]
    example: Example


def run_benchmark(
    doses: Sequence[float],
    seeds: range,
    methods: tuple[str, ...],
    *,
    easy: bool = False,
    small: bool = False,
    progress_bar: bool = True,
) -> Results:
    """Run methods on scans of every seed and dose (electrons a pattern), one after the other."""
    shown = doses[len(doses) // 2]
    rows: list[Row] = []
    examples: list[Example] = []
    with progress(len(seeds) * len(doses), "Segmenting", progress_bar, "scans") as report:
        for seed in seeds:
            for dose in doses:
                scan = make_scan(seed, dose, easy=easy, small=small)
                found, example = run_methods(scan, dose, seed, methods)
                rows += found
                if dose == shown:
                    examples.append(example)
                report(1)
    return Results(methods, rows, typical_example(examples))


def run_methods(
    scan: KnownScan, electrons: float, seed: int, methods: tuple[str, ...]
) -> tuple[list[Row], Example]:
    """Run methods on one scan; methods that start from the same input share it."""
    truth = scan.labels
    prepared: dict[Any, tuple[Any, float]] = {}  # and the seconds that this took
    rows, labels, quality = [], {}, {}
    for name in methods:
        method = METHODS[name]
        if method.prepare not in prepared:
            start = time.perf_counter()
            prepared[method.prepare] = method.prepare(scan), time.perf_counter() - start
        value, seconds = prepared[method.prepare]
        start = time.perf_counter()
        found = method.run(value, truth, seed)
        seconds += time.perf_counter() - start
        labels[name] = found.labels
        quality[name] = panoptic_quality(found.labels, truth).quality
        error = adapted_rand_error(found.labels, truth)
        counts = count_labels(truth), count_labels(found.labels)
        rows.append(
            Row(method.title, electrons, seed, *counts, quality[name], error, seconds,
                found.threshold)
        )  # fmt: skip
    return rows, Example(electrons, seed, truth, labels, quality)


def typical_example(examples: list[Example]) -> Example:
    """Return the scan of median quality (mean over methods) in the half with the most grains."""
    many = sorted(examples, key=lambda one: -count_labels(one.truth))[: (len(examples) + 1) // 2]
    many.sort(key=lambda one: sum(one.quality.values()))
    return many[len(many) // 2]


# --- tables ----------------------------------------------------------------------------------


class Summary(NamedTuple):
    """One method at one dose, over all seeds."""

    mean: float
    worst: float
    best: float
    rand_error: float
    excess: float
    """Number of clusters minus number of grains."""
    seconds: float


def summarise(rows: list[Row]) -> dict[tuple[str, float], Summary]:
    """Return means over the seeds (for seconds the median), by title of the method and dose."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.electrons), []).append(row)
    return {key: _summary(group) for key, group in groups.items()}


def _summary(rows: list[Row]) -> Summary:
    quality = [row.panoptic_quality for row in rows]
    return Summary(
        mean=float(np.mean(quality)),
        worst=min(quality),
        best=max(quality),
        rand_error=float(np.mean([row.adapted_rand_error for row in rows])),
        excess=float(np.mean([row.clusters - row.grains for row in rows])),
        seconds=float(np.median([row.seconds for row in rows])),
    )


def text_table(results: Results) -> str:
    """Return a line for each method and dose, aligned."""
    lines = [
        f"{'method':<21} {'electrons':>9} {'PQ':>5} {'worst':>5} {'Rand error':>10} "
        f"{'clusters - grains':>17} {'seconds':>7}"
    ]
    summaries = summarise(results.rows)
    for name in results.methods:
        title = METHODS[name].title
        for dose in doses_of(results.rows):
            one = summaries[title, dose]
            lines.append(
                f"{title:<21} {dose:>9g} {one.mean:>5.2f} {one.worst:>5.2f} "
                f"{one.rand_error:>10.3f} {one.excess:>+17.1f} {one.seconds:>7.2g}"
            )
    return "\n".join(lines)


def markdown_table(results: Results) -> str:
    """Return mean and worst panoptic quality: a row for each method, a column for each dose."""
    doses = doses_of(results.rows)
    summaries = summarise(results.rows)
    rows = []
    for method in map(METHODS.__getitem__, results.methods):
        found = [summaries[method.title, dose] for dose in doses]
        cells = [f"{one.mean:.2f} ({one.worst:.2f})" for one in found]
        rows.append([method.title, method.told or "nothing", *cells])
    heads = ["method", "told by the truth", *(f"{dose:,.10g}" for dose in doses)]
    return make_table(heads, rows, texts=(0, 1))
