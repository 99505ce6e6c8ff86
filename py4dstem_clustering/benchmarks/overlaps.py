"""Benchmark: grains that lie above one another, found by several methods.

``py4dstem-clustering benchmark overlaps --out DIR`` runs it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ..base.progress import progress
from .common import doses_of, mean_and_worst
from .common import markdown_table as make_table
from .overlap_methods import METHODS, Found
from .overlap_samples import KINDS, MIN_ALONE, SCATTERING, OverlapSample, make_overlaps

ELECTRONS = (300.0, 1000.0, 3000.0, 10000.0)
"""Electrons a pattern."""

TUNING_SEEDS = range(100, 164)
"""Seeds for tuning; the benchmark refuses them."""

SHAPES = {False: ((48, 42), (48, 44)), True: ((26, 22), (32, 30))}
"""Shapes of scan and detector. True: small scans, for tests of the benchmark itself."""


MIN_COSINE = 0.95
"""Cosine with the truth from which on a pure pattern is good."""


class Row(NamedTuple):
    """One method on one scan; the columns of the CSV file."""

    kind: str
    scattering: str
    method: str
    electrons: float
    seed: int
    grains: int
    found: int
    quality: float
    """Panoptic quality of supports that may overlap."""
    share_error: float
    """Root mean square error of shares of grains that are there, where two or more overlap."""
    thickness_error: float
    """The same against shares of thickness."""
    pure_good: int
    """Pure patterns with a cosine of at least 0.95 of grains that are alone at 20 % or more."""
    pure_alone: int
    """Number of these grains."""
    pure_possible: int
    """Number of those whose mean over the positions where they truly are alone is as good."""
    pure_cosine: float
    """Lowest cosine of their pure patterns; NaN where there are none."""
    pure_hidden: float
    """Median cosine of the pure patterns of the other grains."""
    seconds: float


def run_benchmark(
    kinds: Sequence[str],
    scattering: Sequence[str],
    doses: Sequence[float],
    seeds: range,
    methods: Sequence[str],
    *,
    small: bool = False,
    progress_bar: bool = True,
) -> list[Row]:
    """Run methods on every sample at every dose (electrons a pattern)."""
    rows = []
    n_scans = len(kinds) * len(scattering) * len(seeds) * len(doses)
    scan_shape, detector_shape = SHAPES[small]
    with progress(n_scans, "Finding overlaps", progress_bar, "scans") as report:
        for kind in kinds:
            for way in scattering:
                for seed in seeds:
                    samples = make_overlaps(
                        kind, way, doses, seed,
                        scan_shape=scan_shape, detector_shape=detector_shape,
                    )  # fmt: skip
                    for dose, sample in zip(doses, samples, strict=True):
                        rows += [
                            run_method(name, sample, (kind, way, dose, seed)) for name in methods
                        ]
                        report(1)
    return rows


def run_method(name: str, sample: OverlapSample, what: tuple[str, str, float, int]) -> Row:
    """Run one method on one scan; `what` are kind, scattering, electrons and seed."""
    kind, way, dose, seed = what
    method = METHODS[name]
    start = time.perf_counter()
    found = method.run(sample, seed)
    seconds = time.perf_counter() - start
    quality = support_quality(found.supports, sample.supports)
    pairs = match_supports(found.supports, sample.supports)
    pure = _pure(found, sample, pairs)
    return Row(
        kind, way, method.title, dose, seed,
        int(sample.supports.any(axis=(0, 1)).sum()), found.supports.shape[2], quality,
        share_error(found.shares, sample.shares, sample.supports, pairs),
        share_error(found.shares, sample.shares_of_thickness, sample.supports, pairs),
        *pure, seconds,
    )  # fmt: skip


# --- measures --------------------------------------------------------------------------------


def _unions(found: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.float64]:
    """Intersection over union of each map ``(Rx, Ry, n)`` with each true one, ``(n, m)``."""
    a = found.reshape(-1, found.shape[2]).astype(np.float64)
    b = truth.reshape(-1, truth.shape[2]).astype(np.float64)
    both = a.T @ b
    return np.asarray(both / np.maximum(a.sum(axis=0)[:, None] + b.sum(axis=0) - both, 1))


def support_quality(found: NDArray[Any], truth: NDArray[Any]) -> float:
    """Panoptic quality of supports ``(Rx, Ry, n)`` that may overlap; empty ones do not count."""
    found, truth = (maps[..., maps.any(axis=(0, 1))] for maps in (found, truth))
    iou = _unions(found, truth)
    iou = np.where(iou > 0.5, iou, 0)
    if not sum(iou.shape):
        return 1.0
    return float(2 * iou[linear_sum_assignment(-iou)].sum() / sum(iou.shape))


def match_supports(found: NDArray[Any], truth: NDArray[Any]) -> list[tuple[int, int]]:
    """Pairs of a found and a true grain, so that their supports agree best."""
    iou = _unions(found, truth)
    rows, columns = linear_sum_assignment(-iou)
    return [(int(k), int(g)) for k, g in zip(rows, columns, strict=True) if iou[k, g] > 0]


def share_error(
    shares: NDArray[Any],
    truth: NDArray[Any],
    supports: NDArray[Any],
    pairs: Sequence[tuple[int, int]],
) -> float:
    """Root mean square error of shares where grains overlap, of those that are there; NaN if none.

    Grains that were not found have the share 0.
    """
    own = np.zeros(truth.shape)
    for k, g in pairs:
        own[..., g] = shares[..., k]
    there = supports & (supports.sum(axis=2) > 1)[..., None]
    return float(np.sqrt(((own - truth)[there] ** 2).mean())) if there.any() else float("nan")


def disks_only(patterns: NDArray[Any]) -> NDArray[np.float64]:
    """Patterns ``(n, Qx, Qy)`` without the mean of each ring and the direct beam, ``(n, m)``."""
    qx, qy = patterns.shape[1:]
    u, v = np.indices((qx, qy))
    ring = np.hypot(u - (qx - 1) / 2, v - (qy - 1) / 2).astype(int).ravel()
    flat = patterns.reshape(len(patterns), -1).astype(np.float64)
    size = np.bincount(ring)
    mean = np.stack([np.bincount(ring, row) / size for row in flat]) if len(flat) else flat
    return flat[:, ring > 4] - (mean[:, ring[ring > 4]] if len(flat) else 0)


def _pure(
    found: Found, sample: OverlapSample, pairs: Sequence[tuple[int, int]]
) -> tuple[int, int, int, float, float]:
    """The fields of `Row` from `pure_good` to `pure_hidden`."""
    if found.patterns is None:
        return 0, 0, 0, float("nan"), float("nan")
    supports = sample.supports
    single = (supports.sum(axis=2) == 1)[..., None] & supports
    alone = single.sum(axis=(0, 1)) / np.maximum(supports.sum(axis=(0, 1)), 1)
    mine, truth = disks_only(found.patterns), disks_only(sample.pure)
    possible = 0
    seen: list[float] = []
    others: list[float] = []
    for k, g in pairs:
        cosine = _cosine(mine[k], truth[g])
        if alone[g] < MIN_ALONE:
            others.append(cosine)
            continue
        seen.append(cosine)
        mean = sample.datacube.data[single[..., g]].mean(axis=0, dtype=np.float64)
        possible += _cosine(disks_only(mean[None])[0], truth[g]) >= MIN_COSINE
    lowest = min(seen, default=float("nan"))
    hidden = float(np.median(others)) if others else float("nan")
    return sum(c >= MIN_COSINE for c in seen), len(seen), int(possible), lowest, hidden


def _cosine(first: NDArray[Any], second: NDArray[Any]) -> float:
    return float(first @ second / max(np.linalg.norm(first) * np.linalg.norm(second), 1e-12))


# --- tables ----------------------------------------------------------------------------------


def markdown_table(rows: Sequence[Row]) -> str:
    """Mean and worst quality of supports, a row for each kind, scattering and dose."""
    titles = list(dict.fromkeys(row.method for row in rows))
    lines = []
    for kind in KINDS:
        for way in SCATTERING:
            for dose in doses_of(rows):
                chosen = [
                    [row.quality for row in rows
                     if row[:4] == (kind, way, title, dose)] for title in titles
                ]  # fmt: skip
                if any(chosen):
                    lines.append(
                        [kind, way, f"{dose:,.10g}", *(mean_and_worst(cell) for cell in chosen)]
                    )
    return make_table(["kind", "scattering", "electrons", *titles], lines, texts=(0, 1))


def share_table(rows: Sequence[Row]) -> str:
    """Errors of shares and pure patterns of `find_overlaps`, over all seeds."""
    heads = ["kind", "scattering", "electrons", "shares", "shares of thickness",
             "pure patterns", "by true positions", "never or rarely alone"]  # fmt: skip
    lines = []
    title = METHODS["overlaps"].title
    for kind in KINDS:
        for way in SCATTERING:
            for dose in doses_of(rows):
                chosen = [row for row in rows if row[:4] == (kind, way, title, dose)]
                if chosen:
                    good = sum(row.pure_good for row in chosen)
                    alone = sum(row.pure_alone for row in chosen)
                    hidden = [row.pure_hidden for row in chosen if np.isfinite(row.pure_hidden)]
                    lines.append([
                        kind, way, f"{dose:,.10g}", *(
                            f"{np.sqrt(np.nanmean(np.square(values))):.2f}" for values in (
                                [row.share_error for row in chosen],
                                [row.thickness_error for row in chosen],
                            )
                        ),
                        f"{good} of {alone}",
                        f"{sum(row.pure_possible for row in chosen)}",
                        f"{np.median(hidden):.2f}" if hidden else "-",
                    ])  # fmt: skip
    return make_table(heads, lines, texts=(0, 1))
