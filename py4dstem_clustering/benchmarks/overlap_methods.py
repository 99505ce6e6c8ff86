"""Methods that the benchmark of overlaps compares; each gives supports, and shares if it has any.

As in `methods`, some are told facts of the truth: k-means and NMF the number of grains, and which
of their maps are background.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.ndimage import gaussian_filter, label, maximum_filter
from sklearn.cluster import DBSCAN
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

from ..kernels.features import features_core
from .methods import binned_counts, drop_liquid
from .overlap_samples import DISK_RADIUS, OverlapSample


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
    values = features.values.reshape(-1, features.values.shape[2]).astype(np.float64)
    best = (np.inf, np.zeros(len(values), dtype=int))
    for i in range(5):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "One of the clusters is empty")
            means, labels = kmeans2(values, _n_wanted(sample), minit="++", seed=1000 * seed + i)
        best = min(best, (float(((values - means[labels]) ** 2).sum()), labels), key=lambda x: x[0])
    labels = drop_liquid(best[1].reshape(sample.labels.shape), sample.labels)
    return of_labels(np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
                     - bool((labels < 0).any()))  # fmt: skip


NMF_LEVEL = 0.3
"""Part of its maximum above which a weight of NMF is support. It was not optimised."""


def _nmf(sample: OverlapSample, seed: int) -> Found:
    """Maps of weights are supports where they are large."""
    counts = binned_counts(sample)  # type: ignore[arg-type]
    model = NMF(_n_wanted(sample), init="nndsvda", random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        weights = model.fit_transform(np.sqrt(counts.reshape(-1, counts.shape[2])))
    weights = weights.reshape(*counts.shape[:2], -1)
    maps = weights > NMF_LEVEL * np.maximum(weights.max(axis=(0, 1)), 1e-12)
    inside = sample.supports.any(axis=2)
    grain = 2 * (maps & inside[..., None]).sum(axis=(0, 1)) > maps.sum(axis=(0, 1))
    amounts = (weights * model.components_.sum(axis=1))[..., grain] * maps[..., grain]
    return Found(maps[..., grain], _parts(amounts))


def _parts(amounts: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(amounts / np.maximum(amounts.sum(axis=2, keepdims=True), 1e-12))


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
    segments: list[NDArray[np.bool_]] = []
    images: list[NDArray[np.float64]] = []
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
                segments.append(part == i)
                images.append(np.where(part == i, image, 0))
    if not segments:
        return empty
    return _join_segments(np.array(segments), np.array(images))


def _join_segments(segments: NDArray[np.bool_], images: NDArray[np.float64]) -> Found:
    """Add segments that correlate, the brightest first, until none does."""
    total = list(images.reshape(len(images), -1))
    size = [1] * len(total)
    order = np.argsort([-image.sum() for image in total]).tolist()
    groups: list[tuple[NDArray[np.float64], int]] = []
    for k in order:
        found = [np.corrcoef(group, total[k])[0, 1] for group, _ in groups]
        if found and max(found) >= _MIN_ALIKE:
            best = int(np.argmax(found))
            groups[best] = groups[best][0] + total[k], groups[best][1] + size[k]
        else:
            groups.append((total[k], 1))
    # A grain has at least two disks.
    kept = [group for group, n in groups if n > 1] or [group for group, _ in groups]
    amounts = np.stack(kept, axis=1).reshape(*segments.shape[1:], -1)
    maps = amounts > 0.2 * np.quantile(amounts, 0.995, axis=(0, 1))
    return Found(maps, _parts(amounts * maps))


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
