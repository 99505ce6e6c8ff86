"""How well methods find the grains of simulated scans, by the truth.

``python -m py4dstem_clustering benchmark segmentation --out DIR`` runs it. Some methods are told
more than a measurement tells, always in their favour: see `Method.told`. k-means, NMF and Ward do
not recognise the liquid, so a cluster of theirs that is mostly liquid by the truth counts as
background (`drop_liquid`). That is generous: no method can look at the truth.
"""

from __future__ import annotations

import csv
import time
import warnings
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import emdfile
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from ..base.checks import check_integer, check_number
from ..kernels.binning import bin_factor, bin_matrix
from ..kernels.features import features_core
from ..metrics import adapted_rand_error, panoptic_quality
from ..plotting.style import cluster_colors
from ..simulate.scan import SimulatedScan, simulate_scan

ELECTRONS = (30.0, 100.0, 1000.0, 10000.0, 100000.0)
"""Electrons a pattern."""

TUNING_SEEDS = range(100, 164)
"""Seeds of the scans that the settings of the merge method were tuned on; refused."""

SHAPES = {False: ((64, 56), (96, 90)), True: ((20, 18), (40, 36))}
"""Scan and detector; of small scans, for tests of the benchmark itself, by True."""

HARD = {"twins": 0.5, "bending": 2.0, "probe_blur": 0.8, "uneven": 0.5}
"""Options of `simulate_scan` that make hard scans; easy ones have none."""

THRESHOLDS = np.concatenate(
    [np.linspace(0.01, 0.9, 90), np.linspace(0.905, 0.99, 18), np.linspace(0.991, 0.999, 9)]
).round(3)
"""Thresholds of which "paper, best threshold" takes the best by the truth.

From far down, because noise pulls all similarities down: at 100 electrons the best is about 0.06.
"""

_DISK_RADIUS = 2.0  # detector pixels, the default of simulate_scan

_GROWTH = {"r_mask": "triangle", "min_size": 10, "progress_bar": False}


# --- scans -----------------------------------------------------------------------------------


def make_scan(seed: int, electrons: float, *, easy: bool, small: bool) -> SimulatedScan:
    """The scan of one seed at one dose; a seed means the same grains at every dose."""
    options = {} if easy else HARD
    n_grains = 2 + (4 * seed) % 11
    return simulate_scan(
        *SHAPES[small], n_grains=n_grains, electrons=electrons, seed=seed, **options
    )


def check_seeds(first: int, number: int, tuning: range) -> range:
    """Seeds from `first` on; none of those used for tuning."""
    number = check_integer("--seeds", number, 1)
    first = check_integer("--first-seed", first, 0)
    seeds = range(first, first + number)
    if set(seeds) & set(tuning):
        raise ValueError(
            f"seeds {first} to {seeds[-1]} take in some of {tuning[0]} to {tuning[-1]},"
            " on which settings were tuned; choose others with --first-seed and --seeds"
        )
    return seeds


def _count(labels: NDArray[Any]) -> int:
    """Number of clusters or grains; -1 is none."""
    return int((np.unique(labels) >= 0).sum())


# --- what methods start from -----------------------------------------------------------------


def _raw(scan: SimulatedScan) -> Any:
    return scan.datacube


def _annulus(cube: Any) -> NDArray[Any]:
    """Detector pixels without the direct beam."""
    centre = tuple((n - 1) / 2 for n in cube.Qshape)
    inner = 2 * _DISK_RADIUS + 2
    return cube.make_detector(cube.Qshape, "annulus", (centre, (inner, min(centre))))


def _compare(scan: SimulatedScan) -> tuple[Any, Any]:
    """The filtered scan and its similarity, as in the paper."""
    filtered = scan.datacube.filter_correlative(
        sigma=3, radius=4, corr_range=(0.85, 0.95), edge=12, progress_bar=False
    )
    q_mask = _annulus(scan.datacube)
    return filtered, filtered.get_similarity(q_mask=q_mask, progress_bar=False)


def _features(scan: SimulatedScan) -> NDArray[Any]:
    """The features that the merge method starts from."""
    found = features_core(
        scan.datacube.data, q_mask=None, rank=None, centre=None, n_jobs=None, report=lambda n: None
    )
    return found.values.astype(np.float64)


def _binned(scan: SimulatedScan) -> NDArray[Any]:
    """Counts without the direct beam, ``(Rx, Ry, pixels)``, in the same bins as the features."""
    cube = scan.datacube
    mask = _annulus(cube)
    factor = bin_factor(mask.shape, mask.size)
    along_u, along_v = (bin_matrix(n, max(1, round(n / factor))) for n in mask.shape)
    bins = along_u @ mask @ along_v.T > 0
    rows = [(along_u @ (row * mask).astype(np.float32) @ along_v.T)[:, bins] for row in cube.data]
    return np.stack(rows)


# --- methods ---------------------------------------------------------------------------------


class Segmentation(NamedTuple):
    """What a method makes of a scan."""

    labels: NDArray[Any]
    threshold: float | str | None = None


def _grow(start: tuple[Any, Any], threshold: float | str) -> Segmentation:
    filtered, similarity = start
    clusters = filtered.cluster(threshold=threshold, similarity=similarity, **_GROWTH)
    return Segmentation(clusters.labels, threshold)


def _paper(start: Any, truth: NDArray[Any], seed: int) -> Segmentation:
    return _grow(start, 0.9)


def _auto_threshold(start: Any, truth: NDArray[Any], seed: int) -> Segmentation:
    return _grow(start, "auto")


def _best_threshold(start: Any, truth: NDArray[Any], seed: int) -> Segmentation:
    """Of equally good thresholds the lowest."""
    found = [_grow(start, float(threshold)) for threshold in THRESHOLDS]
    return max(found, key=lambda one: panoptic_quality(one.labels, truth).quality)


def _merge(start: Any, truth: NDArray[Any], seed: int) -> Segmentation:
    return Segmentation(start.cluster(progress_bar=False).labels)


def _kmeans(start: NDArray[Any], truth: NDArray[Any], seed: int) -> Segmentation:
    """The best of ten starts, by the sum of squared distances."""
    from scipy.cluster.vq import kmeans2

    values = start.reshape(-1, start.shape[2])
    best, labels = np.inf, None
    for i in range(10):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "One of the clusters is empty")
            means, found = kmeans2(
                values, _count(truth) + 1, iter=50, minit="++", seed=1000 * seed + i
            )
        squares = ((values - means[found]) ** 2).sum()
        if squares < best:
            best, labels = squares, found
    return Segmentation(drop_liquid(labels.reshape(truth.shape), truth))


def _nmf(start: NDArray[Any], truth: NDArray[Any], seed: int) -> Segmentation:
    """The component that explains most of the counts of a position is its label."""
    values = start.reshape(-1, start.shape[2])
    factorise = _nmf_sklearn if has_sklearn() else _nmf_numpy
    weights, components = factorise(values, _count(truth) + 1, seed)
    labels = (weights * components.sum(axis=1)).argmax(axis=1)
    return Segmentation(drop_liquid(labels.reshape(truth.shape), truth))


def _nmf_sklearn(values: NDArray[Any], n: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    model = NMF(n, init="nndsvda", random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        weights = model.fit_transform(values)
    return weights, model.components_


def _nmf_numpy(values: NDArray[Any], n: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Multiplicative updates of Lee and Seung, for where scikit-learn is missing."""
    rng = np.random.default_rng(seed)
    size = np.sqrt(values.mean() / n)
    weights = size * rng.uniform(0.5, 1.5, (len(values), n))
    components = size * rng.uniform(0.5, 1.5, (n, values.shape[1]))
    for _ in range(300):
        components *= (weights.T @ values) / (weights.T @ weights @ components + 1e-12)
        weights *= (values @ components.T) / (weights @ (components @ components.T) + 1e-12)
    return weights, components


def _ward(start: NDArray[Any], truth: NDArray[Any], seed: int) -> Segmentation:
    """Only neighbours along the axes of the scan may join."""
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.feature_extraction.image import grid_to_graph

    model = AgglomerativeClustering(
        _count(truth) + 1, connectivity=grid_to_graph(*truth.shape), linkage="ward"
    )
    labels = model.fit_predict(start.reshape(-1, start.shape[2]))
    return Segmentation(drop_liquid(labels.reshape(truth.shape), truth))


def drop_liquid(labels: NDArray[Any], truth: NDArray[Any]) -> NDArray[Any]:
    """Set clusters to -1 of which more than half of the positions are liquid by the truth.

    Generous to methods that take the liquid for a grain: it uses what no method knows.
    """
    size = np.bincount(labels.ravel())
    liquid = np.bincount(labels[truth < 0], minlength=len(size))
    return np.where(2 * liquid[labels] > size[labels], -1, labels)


def has_sklearn() -> bool:
    """Whether scikit-learn is there: py4DSTEM brings it, this package does not ask for it."""
    return find_spec("sklearn") is not None


class Method(NamedTuple):
    """One way to find the grains."""

    title: str
    told: str
    """What it is told by the truth."""
    prepare: Callable[[SimulatedScan], Any]
    """Makes what it starts from; methods that share it wait for it once."""
    run: Callable[[Any, NDArray[Any], int], Segmentation]
    """From that, the truth and the seed to labels."""
    color: str
    marker: str


_CLUSTERING = "number of grains, what is liquid"

METHODS = {
    "paper": Method("paper", "", _compare, _paper, "#D55E00", "s"),
    "best-threshold": Method(
        "paper, best threshold", "threshold", _compare, _best_threshold, "#E69F00", "D"
    ),
    "auto-threshold": Method("auto threshold", "", _compare, _auto_threshold, "#CC79A7", "v"),
    "merge": Method("merge", "", _raw, _merge, "#0072B2", "o"),
    "k-means": Method("k-means", _CLUSTERING, _features, _kmeans, "#009E73", "^"),
    "nmf": Method("NMF", _CLUSTERING, _binned, _nmf, "#56B4E9", "P"),
    "ward": Method("Ward", _CLUSTERING, _features, _ward, "#777777", "X"),
}
"""By the names that ``--methods`` takes."""


def check_methods(names: Iterable[str]) -> tuple[str, ...]:
    """Names of methods, without repetition, in the order of `METHODS`."""
    wanted = {name.lower() for name in names}
    unknown = sorted(wanted - set(METHODS))
    if unknown:
        raise ValueError(
            f"--methods {' '.join(unknown)} is not known; there are {', '.join(METHODS)}"
        )
    return tuple(name for name in METHODS if name in wanted)


def without_missing(methods: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """Methods that can run here, and lines that say what cannot."""
    if has_sklearn():
        return methods, []
    notes = []
    if "ward" in methods:
        notes.append("scikit-learn is not installed: Ward is left out")
    if "nmf" in methods:
        notes.append("scikit-learn is not installed: NMF by multiplicative updates instead")
    methods = tuple(name for name in methods if name != "ward")
    if not methods:
        raise ValueError("--methods ward needs scikit-learn: pip install scikit-learn")
    return methods, notes


# --- running ---------------------------------------------------------------------------------


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
    """All rows, and one example."""

    methods: tuple[str, ...]
    rows: list[Row]
    example: Example


def run_benchmark(
    electrons: Iterable[float],
    seeds: range,
    methods: tuple[str, ...],
    *,
    easy: bool = False,
    small: bool = False,
    progress_bar: bool = True,
) -> Results:
    """Run methods on scans of every seed and dose, one after the other."""
    doses = sorted({check_number("--electrons", value, 1, 1e9) for value in electrons})
    shown = doses[len(doses) // 2]
    rows: list[Row] = []
    examples: list[Example] = []
    if has_sklearn():
        import sklearn.cluster
        import sklearn.decomposition  # noqa: F401  so that no method waits for it
    n_scans = len(seeds) * len(doses)
    bar = emdfile.tqdmnd(n_scans, desc="Segmenting", unit="scans", disable=not progress_bar)
    try:
        for seed in seeds:
            for dose in doses:
                scan = make_scan(seed, dose, easy=easy, small=small)
                found, example = _run_scan(scan, dose, seed, methods)
                rows += found
                if dose == shown:
                    examples.append(example)
                bar.update(1)
    finally:
        bar.close()
    return Results(methods, rows, _typical(examples))


def _run_scan(
    scan: SimulatedScan, electrons: float, seed: int, methods: tuple[str, ...]
) -> tuple[list[Row], Example]:
    truth = scan.labels
    prepared: dict[Any, tuple[Any, float]] = {}
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
        counts = _count(truth), _count(found.labels)
        rows.append(
            Row(method.title, electrons, seed, *counts, quality[name], error, seconds,
                found.threshold)
        )  # fmt: skip
    return rows, Example(electrons, seed, truth, labels, quality)


def _typical(examples: list[Example]) -> Example:
    """The scan of median mean quality among the half with the most grains."""
    many = sorted(examples, key=lambda one: -_count(one.truth))[: (len(examples) + 1) // 2]
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
    """Means over the seeds (of seconds the median), by title of the method and dose."""
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


def _doses(rows: list[Row]) -> list[float]:
    return sorted({row.electrons for row in rows})


def text_table(results: Results) -> str:
    """A line for each method and dose, aligned."""
    lines = [
        f"{'method':<21} {'electrons':>9} {'PQ':>5} {'worst':>5} {'Rand error':>10} "
        f"{'clusters - grains':>17} {'seconds':>7}"
    ]
    summaries = summarise(results.rows)
    for name in results.methods:
        title = METHODS[name].title
        for dose in _doses(results.rows):
            one = summaries[title, dose]
            lines.append(
                f"{title:<21} {dose:>9g} {one.mean:>5.2f} {one.worst:>5.2f} "
                f"{one.rand_error:>10.3f} {one.excess:>+17.1f} {one.seconds:>7.2g}"
            )
    return "\n".join(lines)


def markdown_table(results: Results) -> str:
    """Mean and worst panoptic quality: a row for each method, a column for each dose."""
    doses = _doses(results.rows)
    heads = ["method", "told by the truth", *(f"{dose:,.10g}" for dose in doses)]
    lines = [_markdown(heads), _markdown(["---", "---", *(["---:"] * len(doses))])]
    summaries = summarise(results.rows)
    for name in results.methods:
        title, told = METHODS[name].title, METHODS[name].told
        found = [summaries[title, dose] for dose in doses]
        cells = [f"{one.mean:.2f} ({one.worst:.2f})" for one in found]
        lines.append(_markdown([title, told or "nothing", *cells]))
    return "\n".join(lines) + "\n"


def _markdown(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_csv(path: Path, rows: list[Any]) -> None:
    """A line for each row, under the names of its fields; None is an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0]._fields)
        for row in rows:
            writer.writerow([f"{x:.6g}" if isinstance(x, float) else x for x in row])


# --- figure ----------------------------------------------------------------------------------


def draw(figure: Any, results: Results) -> None:
    """Quality against dose, and label maps of one scan."""
    figure.set_size_inches(11, 4.4)
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    _draw_quality(left, results)
    _draw_maps(right, results.example)


def _draw_quality(figure: Any, results: Results) -> None:
    """Lines through means, bars from the worst scan to the best."""
    ax = figure.add_subplot()
    summaries = summarise(results.rows)
    doses = np.array(_doses(results.rows))
    for i, name in enumerate(results.methods):
        method = METHODS[name]
        found = [summaries[method.title, dose] for dose in doses]
        mean, worst, best = (np.array([one[k] for one in found]) for k in range(3))
        # Side by side, so that bars do not hide each other.
        x = doses * 10 ** (0.045 * (i - (len(results.methods) - 1) / 2))
        strong = name == "merge"
        title = method.title + (" *" if method.told else "")
        ax.vlines(x, worst, best, color=method.color, linewidth=1, alpha=0.55)
        ax.plot(
            x, mean, color=method.color, marker=method.marker, markersize=5, label=title,
            linewidth=2.2 if strong else 1.2, linestyle="--" if method.told else "-",
            zorder=3 if strong else 2,
        )  # fmt: skip
    ax.set_xscale("log")
    if len(doses) <= 6:
        ax.set_xticks(doses, [f"{dose:,.10g}" for dose in doses])
        ax.set_xticks([], minor=True)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("electrons a pattern")
    ax.set_ylabel("panoptic quality")
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    n_seeds = len({row.seed for row in results.rows})
    scans = "one scan" if n_seeds == 1 else f"{n_seeds} scans: mean, worst to best"
    ax.set_title(f"a   {scans}", loc="left", fontsize=9)
    legend = figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    legend.set_title("* told something by the truth", {"size": 7})


def _draw_maps(figure: Any, example: Example) -> None:
    """Truth and label maps; a cluster that matches a grain has its colour, others are grey."""
    n_maps = 1 + len(example.labels)
    columns = min(n_maps, 4)
    axes = figure.subplots(-(-n_maps // columns), columns, squeeze=False).ravel()
    colors = cluster_colors(example.truth, int(example.truth.max()) + 1)
    _draw_map(axes[0], example.truth, colors)
    axes[0].set_title("truth\n", fontsize=8)
    for ax, (name, labels) in zip(axes[1:], example.labels.items(), strict=False):
        _draw_map(ax, labels, matched_colors(labels, example.truth, colors))
        text = f"{METHODS[name].title}\nPQ {example.quality[name]:.2f}"
        ax.set_title(text, fontsize=8)
    for ax in axes[n_maps:]:
        ax.set_visible(False)
    text = f"b   seed {example.seed}, {example.electrons:,.10g} electrons a pattern"
    figure.suptitle(text, x=0.01, ha="left", fontsize=9)
    figure.supxlabel("colour: cluster matches that grain; grey: matches none", fontsize=7)


def matched_colors(labels: NDArray[Any], truth: NDArray[Any], colors: NDArray[Any]) -> NDArray[Any]:
    """Colours of clusters: that of the grain matched, grey without."""
    out = np.tile(to_rgb("0.62"), (int(labels.max(initial=-1)) + 1, 1))
    for cluster, grain in panoptic_quality(labels, truth).matches:
        out[cluster] = colors[grain]
    return out


def _draw_map(ax: Any, labels: NDArray[Any], colors: NDArray[Any]) -> None:
    palette = np.concatenate([colors, [to_rgb("white")]])  # -1 is the last
    ax.imshow(palette[labels], interpolation="nearest")
    ax.add_collection(LineCollection(border_lines(labels), colors="black", linewidths=0.5))
    ax.set_xticks([])
    ax.set_yticks([])


def border_lines(labels: NDArray[Any]) -> NDArray[Any]:
    """Edges between positions of different labels ``(n, 2, 2)``, as x and y of the picture."""
    row, column = np.nonzero(labels[1:] != labels[:-1])
    across = np.stack([column - 0.5, row + 0.5, column + 0.5, row + 0.5], axis=1)
    row, column = np.nonzero(labels[:, 1:] != labels[:, :-1])
    along = np.stack([column + 0.5, row - 0.5, column + 0.5, row + 0.5], axis=1)
    return np.concatenate([across, along]).reshape(-1, 2, 2)
