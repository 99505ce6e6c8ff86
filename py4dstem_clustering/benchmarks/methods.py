"""Methods that the benchmark of segmentation compares.

Some methods use facts from the truth that no measurement gives; this is an advantage for them, see
`Method.told`. k-means, NMF and Ward do not recognise the liquid, so clusters that are mostly liquid
in the truth count as background (`drop_liquid`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from sklearn.cluster import AgglomerativeClustering
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.image import grid_to_graph

from ..kernels.binning import bin_factor, bin_matrix
from ..kernels.features import features_core
from ..metrics import panoptic_quality
from ..simulate.samples import SimulatedSample
from ..simulate.scan import SimulatedScan
from .overlap_samples import OverlapSample

KnownScan = SimulatedScan | SimulatedSample | OverlapSample
"""A scan of which the true labels are known."""

THRESHOLDS = np.concatenate(
    [np.linspace(0.01, 0.9, 90), np.linspace(0.905, 0.99, 18), np.linspace(0.991, 0.999, 9)]
).round(3)
"""Thresholds that "paper, best threshold" tries; the truth decides which of them is best.

They start near 0, because noise lowers all similarities: at 100 electrons the best is about 0.06.
"""

_DISK_RADIUS = 2.0
"""Radius of the direct beam in detector pixels, the default of `simulate_scan`."""

_KMEANS_STARTS = 10
"""Number of starts of k-means; more starts give a better result and take longer."""

_GROWTH = {"r_mask": "triangle", "min_size": 10, "progress_bar": False}


def count_labels(labels: NDArray[Any]) -> int:
    """Return the number of clusters or grains; -1 is background."""
    return int((np.unique(labels) >= 0).sum())


def _n_wanted(truth: NDArray[Any]) -> int:
    """Number of clusters to look for: the grains, and the background if there is one."""
    return len(np.unique(truth))


# --- what methods start from -----------------------------------------------------------------


def _datacube(scan: KnownScan) -> Any:
    return scan.datacube


def annulus(cube: Any) -> NDArray[np.bool_]:
    """Return a mask of the detector pixels outside the direct beam."""
    centre = tuple((n - 1) / 2 for n in cube.Qshape)
    inner = 2 * _DISK_RADIUS + 2
    return cube.make_detector(cube.Qshape, "annulus", (centre, (inner, min(centre))))


def _filtered_and_similarity(scan: KnownScan) -> tuple[Any, Any]:
    """Filter and compare as in the paper."""
    filtered = scan.datacube.filter_correlative(
        sigma=3, radius=4, corr_range=(0.85, 0.95), edge=12, progress_bar=False
    )
    q_mask = annulus(scan.datacube)
    return filtered, filtered.get_similarity(q_mask=q_mask, progress_bar=False)


def _features(scan: KnownScan) -> NDArray[np.float64]:
    """Return the features that merging uses, ``(Rx, Ry, n)``."""
    found = features_core(
        scan.datacube.data, q_mask=None, rank=None, centre=None, n_jobs=None, report=lambda n: None
    )
    return found.values.astype(np.float64)


def binned_counts(scan: KnownScan) -> NDArray[Any]:
    """Return counts outside the direct beam, ``(Rx, Ry, n)``, in the bins of the features."""
    cube = scan.datacube
    mask = annulus(cube)
    n_u, n_v = mask.shape
    factor = bin_factor((n_u, n_v), mask.size)
    along_u, along_v = (bin_matrix(n, max(1, round(n / factor))) for n in (n_u, n_v))
    bins = along_u @ mask @ along_v.T > 0
    rows = [(along_u @ (row * mask).astype(np.float32) @ along_v.T)[:, bins] for row in cube.data]
    return np.stack(rows)


# --- methods ---------------------------------------------------------------------------------


class Segmentation(NamedTuple):
    """Result of a method on a scan."""

    labels: NDArray[Any]
    threshold: float | str | None = None


def _grow(start: tuple[Any, Any], threshold: float | str) -> Segmentation:
    filtered, similarity = start
    clusters = filtered.cluster(threshold=threshold, similarity=similarity, **_GROWTH)
    return Segmentation(clusters.labels, threshold)


def _paper(start: tuple[Any, Any], truth: NDArray[Any], seed: int) -> Segmentation:
    return _grow(start, 0.9)


def _auto_threshold(start: tuple[Any, Any], truth: NDArray[Any], seed: int) -> Segmentation:
    return _grow(start, "auto")


def _best_threshold(start: tuple[Any, Any], truth: NDArray[Any], seed: int) -> Segmentation:
    """Grow at each threshold and take the best; among equals the lowest threshold."""
    found = [_grow(start, float(threshold)) for threshold in THRESHOLDS]
    return max(found, key=lambda one: panoptic_quality(one.labels, truth).quality)


def _merge(start: Any, truth: NDArray[Any], seed: int) -> Segmentation:
    return Segmentation(start.cluster(progress_bar=False).labels)


def _kmeans(start: NDArray[Any], truth: NDArray[Any], seed: int) -> Segmentation:
    labels = best_kmeans(start, _n_wanted(truth), seed, starts=_KMEANS_STARTS, rounds=50)
    return Segmentation(drop_liquid(labels, truth))


def best_kmeans(
    values: NDArray[np.float64], n: int, seed: int, *, starts: int, rounds: int
) -> NDArray[Any]:
    """Labels ``(Rx, Ry)`` of the best of several starts of k-means, by the sum of squared distances
    of the features ``(Rx, Ry, rank)`` from their means.
    """
    flat = values.reshape(-1, values.shape[2])

    def run(i: int) -> tuple[float, NDArray[Any]]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "One of the clusters is empty")
            means, labels = kmeans2(flat, n, iter=rounds, minit="++", seed=1000 * seed + i)
        return ((flat - means[labels]) ** 2).sum(), labels

    _, labels = min((run(i) for i in range(starts)), key=lambda found: found[0])
    return labels.reshape(values.shape[:2])


def _nmf(start: NDArray[Any], truth: NDArray[Any], seed: int) -> Segmentation:
    """Label each position by the component that explains most of its counts."""
    weights, components = nmf_weights(start, _n_wanted(truth), seed)
    labels = (weights * components.sum(axis=1)).argmax(axis=2)
    return Segmentation(drop_liquid(labels, truth))


def nmf_weights(counts: NDArray[Any], n: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weights ``(Rx, Ry, n)`` and components ``(n, bins)`` of the counts ``(Rx, Ry, bins)``."""
    model = NMF(n, init="nndsvda", random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        weights = model.fit_transform(counts.reshape(-1, counts.shape[2]))
    return weights.reshape(*counts.shape[:2], -1), model.components_


def _ward(start: NDArray[Any], truth: NDArray[Any], seed: int) -> Segmentation:
    """Join only neighbours along the axes of the scan."""
    model = AgglomerativeClustering(
        _n_wanted(truth), connectivity=grid_to_graph(*truth.shape), linkage="ward"
    )
    labels = model.fit_predict(start.reshape(-1, start.shape[2]))
    return Segmentation(drop_liquid(labels.reshape(truth.shape), truth))


def drop_liquid(labels: NDArray[Any], truth: NDArray[Any]) -> NDArray[Any]:
    """Set clusters to -1 if more than half of their positions are liquid in the truth.

    This uses the truth, so it is an advantage for methods that do not recognise the liquid.
    """
    size = np.bincount(labels.ravel())
    liquid = np.bincount(labels[truth < 0], minlength=len(size))
    return np.where(2 * liquid[labels] > size[labels], -1, labels)


class Method(NamedTuple):
    """One way to find the grains."""

    title: str
    told: str
    """Facts from the truth that the method uses; empty if it uses none."""
    prepare: Callable[[KnownScan], Any]
    """Function that makes the input of the method; methods with the same input share it."""
    run: Callable[[Any, NDArray[Any], int], Segmentation]
    """Function that makes the labels from this input, the truth and the seed."""
    color: str
    marker: str


_GRAINS_AND_LIQUID = "number of grains, what is liquid"

METHODS = {
    "paper": Method("paper", "", _filtered_and_similarity, _paper, "#D55E00", "s"),
    "best-threshold": Method(
        "paper, best threshold", "threshold", _filtered_and_similarity, _best_threshold, "#E69F00",
        "D",
    ),
    "auto-threshold": Method(
        "auto threshold", "", _filtered_and_similarity, _auto_threshold, "#CC79A7", "v"
    ),
    "merge": Method("merge", "", _datacube, _merge, "#0072B2", "o"),
    "k-means": Method("k-means", _GRAINS_AND_LIQUID, _features, _kmeans, "#009E73", "^"),
    "nmf": Method("NMF", _GRAINS_AND_LIQUID, binned_counts, _nmf, "#56B4E9", "P"),
    "ward": Method("Ward", _GRAINS_AND_LIQUID, _features, _ward, "#777777", "X"),
}  # fmt: skip
"""Methods by the names that ``--methods`` takes."""
