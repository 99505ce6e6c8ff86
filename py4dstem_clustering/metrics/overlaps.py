"""Check two label maps, and count the positions that a cluster and a grain share."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base.checks import values_of


class Overlaps(NamedTuple):
    """Sizes of the segments of two maps, and of all intersections that are not empty."""

    clusters: NDArray[Any]  # numbers that occur in the labels, rising, with -1
    grains: NDArray[Any]  # numbers that occur in the truth, rising, with -1
    cluster_sizes: NDArray[Any]  # number of positions of each cluster
    grain_sizes: NDArray[Any]  # number of positions of each grain
    rows: NDArray[Any]  # index of the cluster of each intersection
    columns: NDArray[Any]  # index of the grain of each intersection
    common: NDArray[Any]  # number of positions of each intersection


def count_overlaps(labels: NDArray[Any], truth: NDArray[Any]) -> Overlaps:
    """Count the positions of clusters, of grains and of their intersections."""
    clusters, row, cluster_sizes = np.unique(labels, return_inverse=True, return_counts=True)
    grains, column, grain_sizes = np.unique(truth, return_inverse=True, return_counts=True)
    pairs, common = np.unique(row * len(grains) + column, return_counts=True)
    rows, columns = np.divmod(pairs, len(grains))
    return Overlaps(clusters, grains, cluster_sizes, grain_sizes, rows, columns, common)


def _check_map(name: str, labels: Any, axes: str) -> NDArray[np.int64]:
    """Check a map of whole numbers from -1; `axes` are the names of its axes."""
    labels = np.asarray(values_of(getattr(labels, "labels", labels)))
    n_axes = len(axes.split(", "))
    if labels.ndim != n_axes:
        raise ValueError(
            f"{name} of shape {labels.shape} must be a {n_axes}D map ({axes}); use "
            f"{name}.reshape({axes})"
        )
    if labels.size == 0:
        raise ValueError(f"{name} of shape {labels.shape} is empty: give at least one position")
    if labels.dtype.kind not in "iu":
        raise TypeError(
            f"{name} of type {labels.dtype} must hold whole numbers; use {name}.astype(int)"
        )
    for value in (int(labels.min()), int(labels.max())):
        if not -1 <= value < 2**63:  # -1 became 2**64 - 1 if it was cast to unsigned
            raise ValueError(
                f"{name} holds {value}: it must hold numbers from 0, and -1 where there is no "
                "grain; write -1 there"
            )
    return labels.astype(np.int64)


def check_maps(
    labels: Any, truth: Any, name: str = "labels", axes: str = "Rx, Ry"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Check two maps of the same shape, from arrays or `Clusters`."""
    labels, truth = _check_map(name, labels, axes), _check_map("truth", truth, axes)
    if labels.shape != truth.shape:
        raise ValueError(
            f"{name} of shape {labels.shape} and truth of shape {truth.shape} must have the same "
            "shape; cut both to the same scan positions"
        )
    return labels, truth
