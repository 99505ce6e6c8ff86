"""Benchmark: errors of filtered patterns against the noise-free truth.

The truth is a simulated scan of so many electrons that noise is nothing; scans of any dose are
drawn from it. Errors are root mean squares outside the direct beam, relative to those of raw
patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from py4DSTEM import DataCube
from scipy.linalg import eigh
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter

from ..base.progress import progress
from ..simulate.samples import simulate_sample
from ..simulate.scan import simulate_scan
from .common import doses_of, markdown_table

ELECTRONS = (100.0, 1000.0, 10000.0)
"""Electrons a pattern; a run of all kinds takes a few minutes."""

TUNING_SEEDS = range(100, 116)
"""Seeds on which the filter was tuned; the benchmark refuses them."""

SHAPES = {False: ((40, 36), (96, 90)), True: ((20, 18), (48, 44))}
"""Shapes of scan and detector. True: small ones, for tests of the benchmark itself."""

KINDS: dict[str, dict[str, Any]] = {
    "particles in liquid": {"speckle": 0.0},
    "particles in speckled liquid": {},
    "hard particles": {
        "n_grains": 8, "twins": 0.5, "bending": 2.0, "probe_blur": 0.8, "uneven": 0.5,
    },
    "small particles in liquid": {"n_grains": 40, "speckle": 0.0},
    "film": {"n_grains": 40, "film": 0.3, "speckle": 0.0},
}  # fmt: skip
"""Kinematical scans: options of simulate_scan."""

SAMPLES = {
    "gold film, random": "random-film",
    "precipitates": "precipitates",
    "bent foil": "bent-foil",
    "particles on film": "particles",
}
"""Two-beam intensities: kinds of simulate_sample."""

SMALL = 25
"""Positions up to which a grain counts as small."""

_FOILS: dict[str, dict[str, Any]] = {
    "bent": {"thickness": (5, 40), "thickness_profile": "wedge", "bending": 2.0},
    "flat": {"thickness": (5, 40), "thickness_profile": "flat"},
}
_DYNAMICAL: dict[str, dict[str, Any]] = {
    f"{material}, {name}": {"materials": material, "speckle": 0.0, **options}
    for material, name, options in (
        ("gold", "bent", _FOILS["bent"]),
        ("gold", "flat", _FOILS["flat"]),
        ("silicon", "bent", _FOILS["bent"]),
        ("magnesium", "bent", _FOILS["bent"]),
    )
}

AVERAGES = "true grain averages"
"""The mean pattern of each true grain: in a small grain it is no better than its few patterns."""

NLPAR_STRENGTHS = (0.5, 0.7, 1.0, 1.5, 2.0)
"""Strengths of NLPAR; the truth decides which of them is best."""

_TRUE_ELECTRONS = 1e9
CORRELATIVE: dict[str, Any] = {"sigma": 1.5, "radius": 4, "edge": 3, "progress_bar": False}
"""Options of the correlative filter."""


class FilterRow(NamedTuple):
    """One method on one scan; the columns of filters.csv."""

    kind: str
    electrons: float
    seed: int
    method: str
    error: float
    """Error relative to that of raw patterns."""
    border: float
    """Error within two positions of a border between grains, relative to that of the whole scan."""
    small: float
    """Error in grains of at most `SMALL` positions over that elsewhere, each relative to raw
    patterns; NaN where there are none."""
    rank: int
    """Number of directions; 0 where the method has none."""
    noise: float
    """Estimate of the error of the result, relative to the true one; NaN where there is none."""


def kinds() -> dict[str, dict[str, Any]]:
    """Kinds of scans, with the options of each."""
    found = KINDS | {name: {"scattering": "dynamical", **x} for name, x in _DYNAMICAL.items()}
    return found | {name: {"sample": kind} for name, kind in SAMPLES.items()}


def make_truth(kind: str, seed: int, *, small: bool = False) -> tuple[NDArray[Any], NDArray[Any]]:
    """Expected share of electrons in each pixel of a scan, and the true grains."""
    scan, detector = SHAPES[small]
    options = dict(kinds()[kind])
    sample = options.pop("sample", None)
    common: dict[str, Any] = {"electrons": _TRUE_ELECTRONS, "seed": seed}
    if sample is None:
        truth = simulate_scan(scan, detector, **common, **options)
        return truth.datacube.data / np.float32(_TRUE_ELECTRONS), truth.labels
    found = simulate_sample(sample, scan, detector, **common)
    return found.datacube.data / np.float32(_TRUE_ELECTRONS), found.labels


def run_benchmark(
    doses: Sequence[float],
    seeds: range,
    names: Sequence[str] | None = None,
    *,
    small: bool = False,
    progress_bar: bool = True,
) -> list[FilterRow]:
    """Return the rows of kinds (all, or `names`), seeds and doses (electrons a pattern)."""
    rows: list[FilterRow] = []
    chosen = tuple(kinds()) if names is None else tuple(names)
    n_scans = len(chosen) * len(seeds) * len(doses)
    with progress(n_scans, "Filtering", progress_bar, "scans") as done:
        for kind in chosen:
            for seed in seeds:
                share, labels = make_truth(kind, seed, small=small)
                for dose in doses:
                    rows += compare(share, labels, kind, dose, seed)
                    done(1)
    return rows


def deepest(labels: NDArray[Any]) -> tuple[int, int]:
    """The position of the largest grain that is farthest from its border."""
    largest = labels == np.bincount(labels[labels >= 0]).argmax()
    depth = distance_transform_edt(np.pad(largest, 1))[1:-1, 1:-1]
    x, y = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y)


def compare(
    share: NDArray[Any], labels: NDArray[Any], kind: str, dose: float, seed: int
) -> Iterator[FilterRow]:
    """Yield the rows of one scan, from the expected `share` of electrons in each pixel."""
    rng = np.random.default_rng([seed, int(dose)])
    truth = np.asarray(share, dtype=np.float64) * dose
    counts = rng.poisson(np.maximum(truth, 0))
    counts = counts.astype(np.uint16 if counts.max() < 2**16 else np.uint32)
    outside = outside_beam(share.mean(axis=(0, 1)))
    border = maximum_filter(labels, 5) != minimum_filter(labels, 5)

    weight = (outside / outside.sum()).astype(np.float32).ravel()
    expected = truth.astype(np.float32)

    def squares(result: NDArray[Any]) -> NDArray[np.float64]:
        apart = result.astype(np.float32) - expected
        found = np.square(apart, out=apart).reshape(*labels.shape, -1) @ weight
        return np.asarray(found.astype(np.float64))

    of_raw = squares(counts)
    raw = float(np.sqrt(of_raw.mean()))
    names, place = np.unique(labels, return_inverse=True)
    place = place.reshape(labels.shape)
    tiny = ((np.bincount(place.ravel()) <= SMALL) & (names >= 0))[place]

    def row(method: str, result: NDArray[Any], rank: int = 0, noise: Any = None) -> FilterRow:
        found = squares(result)
        error = float(np.sqrt(found.mean()))
        near = float(np.sqrt(found[border].mean())) / error if border.any() else np.nan
        ratio = np.nan if noise is None else _noise_ratio(noise, result, truth, outside)
        inside = np.nan
        if tiny.any() and not tiny.all():
            shares = [found[part].mean() / of_raw[part].mean() for part in (tiny, ~tiny)]
            inside = float(np.sqrt(shares[0] / shares[1]))
        return FilterRow(kind, dose, seed, method, error / raw, near, inside, rank, ratio)

    cube = DataCube(counts)
    filtered = cube.filter_lowrank(progress_bar=False)
    rank = int(filtered.metadata["filter_lowrank"]["rank"])
    yield row("low rank", filtered.data, rank, filtered.tree("noise").data)
    yield row("correlative", cube.filter_correlative(**CORRELATIVE).data)
    auto = cube.filter_correlative(**CORRELATIVE, corr_range="auto")
    yield row("correlative, auto", auto.data)
    found = nlpar(counts, NLPAR_STRENGTHS)
    yield min((row("NLPAR, best", one) for one in found), key=attrgetter("error"))
    yield row("SVD, same rank", poisson_svd(counts, rank), rank)
    if (labels >= 0).any():
        means = np.stack([counts[labels == name].mean(axis=0) for name in names])
        yield row(AVERAGES, means[place])


def outside_beam(mean: NDArray[Any]) -> NDArray[np.bool_]:
    """Detector pixels more than a 24th of the detector away from the brightest one."""
    u, v = np.indices(mean.shape)
    top = np.unravel_index(mean.argmax(), mean.shape)
    return np.hypot(u - top[0], v - top[1]) > min(mean.shape) / 22


def _noise_ratio(
    noise: NDArray[Any], result: NDArray[Any], truth: NDArray[Any], outside: NDArray[np.bool_]
) -> float:
    """Estimated noise relative to the true error, in regions without the direct beam."""
    n, m = noise.shape[2:]
    u, v = (np.arange(size) * k // size for size, k in zip(outside.shape, (n, m), strict=True))
    region = u[:, None] * m + v
    clear = np.bincount(region[~outside], minlength=n * m) == 0
    error = ((result - truth) ** 2).mean(axis=(0, 1))
    true = np.bincount(region.ravel(), error.ravel()) / np.bincount(region.ravel())
    found = (noise.reshape(-1, n * m).astype(np.float64) ** 2).mean(axis=0)
    return float(np.sqrt(found[clear].mean() / true[clear].mean()))


def nlpar(
    counts: NDArray[Any], strengths: Sequence[float], reach: int = 3
) -> Iterator[NDArray[np.float32]]:
    """Non-local pattern averaging and reindexing (Brewick et al., Ultramicroscopy 2019).

    A neighbour at the squared distance ``d`` of `n` pixels has the weight
    ``exp(-max((d - n s) / (s sqrt(2 n)), 0) / strength^2)``, where ``s`` is the sum of the noise
    variances of both patterns, each half the smallest mean squared difference from a neighbour.
    """
    rx, ry = counts.shape[:2]
    x = counts.reshape(rx, ry, -1).astype(np.float32)
    n = x.shape[2]
    power = np.einsum("ijk,ijk->ij", x, x, dtype=np.float64)
    around = [slice(max(i - reach, 0), i + reach + 1) for i in range(rx)]
    columns = np.arange(ry)
    near = np.abs(columns[:, None, None] - columns) <= reach
    distance = []
    noise = np.empty((rx, ry))
    for i, rows in enumerate(around):
        both = np.tensordot(x[i], x[rows], axes=(1, 2)).astype(np.float64)
        found = np.maximum(power[i][:, None, None] + power[rows] - 2 * both, 0)
        found[columns, i - rows.start, columns] = 0
        distance.append(found)
        others = np.broadcast_to(near, found.shape).copy()
        others[columns, i - rows.start, columns] = False
        noise[i] = np.where(others, found, np.inf).min(axis=(1, 2)) / (2 * n)
    for strength in strengths:
        out = np.empty_like(x)
        for i, rows in enumerate(around):
            both = np.maximum(noise[i][:, None, None] + noise[rows], 1e-12)
            excess = np.maximum((distance[i] - n * both) / (both * np.sqrt(2 * n)), 0)
            excess[columns, i - rows.start, columns] = 0
            weight = np.where(near, np.exp(-excess / strength**2), 0)
            weight /= weight.sum(axis=(1, 2), keepdims=True)
            out[i] = weight.reshape(ry, -1).astype(np.float32) @ x[rows].reshape(-1, n)
        yield out.reshape(counts.shape)


def poisson_svd(counts: NDArray[Any], rank: int) -> NDArray[np.float32]:
    """Truncated SVD of patterns that are scaled as HyperSpy scales Poisson noise."""
    x = counts.reshape(counts.shape[0] * counts.shape[1], -1).astype(np.float32)
    rows, columns = (x.sum(axis=axis, dtype=np.float64) for axis in (1, 0))
    scale = np.sqrt(np.outer(rows, columns) / max(rows.sum(), 1)).astype(np.float32)
    scaled = np.divide(x, scale, out=np.zeros_like(x), where=scale > 0)
    top = [max(len(x) - rank, 0), len(x) - 1]
    vectors = eigh((scaled @ scaled.T).astype(np.float64), subset_by_index=top)[1]
    found = (vectors.astype(np.float32) @ (vectors.T.astype(np.float32) @ scaled)) * scale
    return np.asarray(found.reshape(counts.shape))


def filter_table(rows: Sequence[FilterRow]) -> str:
    """Mean error over seeds, and the largest in brackets, of each kind, dose and method."""
    methods = list(dict.fromkeys(row.method for row in rows))

    def cell(chosen: list[FilterRow], value: Callable[[FilterRow], float]) -> str:
        found = [value(row) for row in chosen if np.isfinite(value(row))]
        return f"{np.mean(found):.2f} ({np.max(found):.2f})" if found else ""

    lines = []
    error = attrgetter("error")
    for kind in dict.fromkeys(row.kind for row in rows):
        for dose in doses_of(rows):
            of = [row for row in rows if (row.kind, row.electrons) == (kind, dose)]
            first = [row for row in of if row.method == methods[0]]
            averages = [row for row in of if row.method == AVERAGES]
            lines.append([
                kind, f"{dose:,.0f}",
                *(cell([row for row in of if row.method == method], error) for method in methods),
                *(cell(first, value) for value in map(attrgetter, ("border", "small", "noise"))),
                cell(averages, attrgetter("small")),
            ])  # fmt: skip
    heads = [
        "scan",
        "electrons",
        *methods,
        "low rank: at borders",
        "in small grains",
        "noise found",
        "averages: in small grains",
    ]
    return markdown_table(heads, lines, texts={0})
