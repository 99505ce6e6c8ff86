"""Benchmark: how well methods find the grains of many kinds of sample, compared with the truth.

``py4dstem-clustering benchmark samples --out DIR`` runs it; the kinds are those of
`simulate_sample`, the methods those of `methods`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..base.progress import progress
from ..simulate.samples import SimulatedSample, simulate_sample
from .common import doses_of, mean_and_worst
from .common import markdown_table as make_table
from .methods import METHODS
from .segmentation import SHAPES, run_methods

ELECTRONS = (100.0, 1000.0, 10000.0)
"""Electrons a pattern."""

COMPARED = ("merge", "k-means", "ward", "nmf", "best-threshold")
"""Methods that are compared unless others are chosen."""

TUNING_SEEDS = range(100, 164)
"""Seeds for tuning; the benchmark refuses them."""


class Row(NamedTuple):
    """One method on one scan; the columns of the CSV file."""

    kind: str
    method: str
    electrons: float
    seed: int
    grains: int
    clusters: int
    panoptic_quality: float
    adapted_rand_error: float
    seconds: float
    threshold: float | str | None


def make_sample(kind: str, seed: int, electrons: float, *, small: bool) -> SimulatedSample:
    """Simulate the sample of one kind and seed at one dose."""
    scan_shape, detector_shape = SHAPES[True] if small else ((64, 56), (64, 60))
    return simulate_sample(kind, scan_shape, detector_shape, electrons=electrons, seed=seed)


def run_benchmark(
    kinds: Sequence[str],
    doses: Sequence[float],
    seeds: range,
    methods: tuple[str, ...],
    *,
    small: bool = False,
    progress_bar: bool = True,
) -> list[Row]:
    """Run methods on samples of every kind, seed and dose (electrons a pattern)."""
    rows = []
    n_scans = len(kinds) * len(seeds) * len(doses)
    with progress(n_scans, "Segmenting", progress_bar, "scans") as report:
        for kind in kinds:
            for seed in seeds:
                for dose in doses:
                    sample = make_sample(kind, seed, dose, small=small)
                    rows += [Row(kind, *row) for row in run_methods(sample, dose, seed, methods)[0]]
                    report(1)
    return rows


def markdown_table(rows: Sequence[Row], methods: Sequence[str]) -> str:
    """Return mean and worst panoptic quality: a row for each kind and dose."""
    titles = [METHODS[name].title for name in methods]
    found: dict[tuple[str, float, str], list[float]] = {}
    for row in rows:
        key = (row.kind, row.electrons, row.method)
        found.setdefault(key, []).append(row.panoptic_quality)
    lines = []
    for kind in dict.fromkeys(row.kind for row in rows):
        for dose in doses_of(rows):
            cells = [mean_and_worst(found[kind, dose, title]) for title in titles]
            lines.append([kind, f"{dose:,.10g}", *cells])
    return make_table(["kind", "electrons", *titles], lines, texts=(0,))
