"""Methods that the benchmark of overlaps compares; each gives supports, and shares if it has any.

As in `methods`, some are told facts of the truth: k-means and NMF the number of grains, and which
of their maps are background.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label, maximum_filter
from sklearn.cluster import DBSCAN

from ..kernels.features import features_core
from ..kernels.regions import consecutive
from .methods import best_kmeans, binned_counts, drop_liquid, nmf_weights
from .overlap_samples import DISK_RADIUS, OverlapSample, parts_of_one


class Found(NamedTuple):
    """Grains that a method has found, N in all."""

    supports: NDArray[np.bool_]
    """``(Rx, Ry, N)``"""
    shares: NDArray[np.float64]
    """``(Rx, Ry, N)``"""
    patterns: NDArray[np.float64] | None = None
    """Pure patterns ``(N, Qx, Qy)``, where the method has them."""


def of_labels(labels: NDArray[Any]) -> Found:
    """One grain at each position, -1 for none."""
    supports = labels[..., None] == np.arange(labels.max(initial=-1) + 1)
    return Found(supports, supports.astype(np.float64))


def _overlaps(sample: OverlapSample, seed: int) -> Found:
    grains = sample.datacube.find_overlaps(progress_bar=False)
    patterns = np.zeros((0, *sample.datacube.Qshape))
    if grains.n_grains:
        patterns = grains.get_pure_patterns(sample.datacube, progress_bar=False).data[:, 0]
    return Found(grains.supports, grains.shares.astype(np.float64), patterns)


def _cluster(sample: OverlapSample, seed: int) -> Found:
    return of_labels(sample.datacube.cluster(progress_bar=False).labels)


def _n_wanted(sample: OverlapSample) -> int:
    return int(sample.supports.any(axis=(0, 1)).sum()) + bool((sample.labels < 0).any())


def _kmeans(sample: OverlapSample, seed: int) -> Found:
    features = features_core(
        sample.datacube.data, q_mask=None, rank=None, centre=None, n_jobs=1, report=lambda n: None
    )
    values = features.values.astype(np.float64)
    labels = best_kmeans(values, _n_wanted(sample), seed, starts=5, rounds=10)
    labels = drop_liquid(labels, sample.labels)
    return of_labels(consecutive(labels))


NMF_LEVEL = 0.3
"""Part of its maximum above which a weight of NMF is support. It was not optimised."""


def _nmf(sample: OverlapSample, seed: int) -> Found:
    """Maps of weights are supports where they are large."""
    counts = np.sqrt(binned_counts(sample))
    weights, components = nmf_weights(counts, _n_wanted(sample), seed)
    maps = weights > NMF_LEVEL * np.maximum(weights.max(axis=(0, 1)), 1e-12)
    inside = sample.supports.any(axis=2)
    grain = 2 * (maps & inside[..., None]).sum(axis=(0, 1)) > maps.sum(axis=(0, 1))
    amounts = (weights * components.sum(axis=1))[..., grain] * maps[..., grain]
    return Found(maps[..., grain], parts_of_one(amounts))


# --- disks as vectors ----------------------------------------------------------------------------

_SEEN = 4.0
"""Standard deviations of counting noise above which a disk is found in a single pattern."""

_MIN_SEEN = 8
"""Number of patterns that must show a disk at a place."""

_MIN_SEGMENT = 12
"""Size of the smallest segment of a virtual image, scan positions."""

_MIN_ALIKE = 0.5
"""Correlation of two segments from which on they belong to one grain."""


def _vectors(sample: OverlapSample, seed: int) -> Found:
    """Grains from virtual images of disks, as the chain of pyxem makes them.

    Disks are found in each pattern, DBSCAN finds the places that many of them share, a virtual
    image of each place is cut into segments, and segments that are alike become one grain.
    """
    data = sample.datacube.data
    rx, ry, qx, qy = data.shape
    radius = DISK_RADIUS * min(qx, qy) / 60
    u, v = np.indices((qx, qy)) - (np.array([qx, qy])[:, None, None] - 1) / 2
    rings = np.hypot(u, v).astype(int).ravel()
    flat = data.reshape(-1, qx * qy).astype(np.float32)
    ring = np.stack([flat[:, rings == r].mean(axis=1) for r in range(rings.max() + 1)], axis=1)
    level = ring[:, rings].reshape(-1, qx, qy)
    smooth = gaussian_filter(flat.reshape(level.shape), (0, radius, radius), mode="nearest")
    # The variance of a Gaussian mean of counts: the mean over 4 pi sigma^2.
    noise = np.sqrt(np.maximum(level, 0.02) / (4 * np.pi * radius**2))
    peak = (smooth == maximum_filter(smooth, (1, 3, 3))) & (smooth > level + _SEEN * noise)
    peak &= np.hypot(u, v) > 2.5 * radius + 1
    places = np.argwhere(peak)
    empty = Found(np.zeros((rx, ry, 0), dtype=bool), np.zeros((rx, ry, 0)))
    if len(places) < _MIN_SEEN:
        return empty
    # Places are whole pixels: each pixel counts as often as it was seen.
    pixel, weight = np.unique(places[:, 1:], axis=0, return_counts=True)
    number = DBSCAN(eps=1.0, min_samples=_MIN_SEEN).fit(pixel, sample_weight=weight).labels_
    segments: list[NDArray[np.float64]] = []
    over = (smooth - level).reshape(rx, ry, qx, qy)
    for k in range(number.max() + 1):
        own = number == k
        u0, v0 = np.average(pixel[own], axis=0, weights=weight[own]).round().astype(int)
        image = gaussian_filter(over[:, :, u0, v0].astype(np.float64), 1.0)
        deviation = noise.reshape(over.shape)[:, :, u0, v0].mean() / np.sqrt(4 * np.pi)
        bright = image > max(3 * deviation, 0.3 * np.quantile(image, 0.99))
        part, n = label(bright)
        for i in range(1, n + 1):
            if (part == i).sum() >= _MIN_SEGMENT:
                segments.append(np.where(part == i, image, 0))
    if not segments:
        return empty
    return _join_segments(np.array(segments))


def _join_segments(segments: NDArray[np.float64]) -> Found:
    """Add segments ``(n, Rx, Ry)`` that correlate, the brightest first."""
    flat = segments.reshape(len(segments), -1)
    groups: list[tuple[NDArray[np.float64], int]] = []
    for k in np.argsort([-segment.sum() for segment in flat]).tolist():
        found = [np.corrcoef(group, flat[k])[0, 1] for group, _ in groups]
        if found and max(found) >= _MIN_ALIKE:
            best = int(np.argmax(found))
            groups[best] = groups[best][0] + flat[k], groups[best][1] + 1
        else:
            groups.append((flat[k], 1))
    # A grain has at least two disks.
    kept = [group for group, n in groups if n > 1] or [group for group, _ in groups]
    amounts = np.stack(kept, axis=1).reshape(*segments.shape[1:], -1)
    maps = amounts > 0.2 * np.quantile(amounts, 0.995, axis=(0, 1))
    return Found(maps, parts_of_one(amounts * maps))


class Method(NamedTuple):
    """One way to find grains that overlap."""

    title: str
    told: str
    run: Callable[[OverlapSample, int], Found]


METHODS = {
    "overlaps": Method("find_overlaps()", "nothing", _overlaps),
    "cluster": Method("cluster()", "nothing", _cluster),
    "k-means": Method("k-means", "number of grains, what is background", _kmeans),
    "nmf": Method("NMF", "number of grains, what is background", _nmf),
    "vectors": Method("clustered Bragg vectors", "nothing", _vectors),
}
"""Methods by the names that ``--methods`` takes."""
