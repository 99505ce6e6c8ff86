"""Slow loops written from the formulas; kernels are timed and tested against them.

They compute in float64 for a float64 scan, and in float32 for a scan of 16-bit counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ..kernels.similarity import DIRECTIONS

Place = tuple[int, int]
"""A scan position."""


def published_similarity(
    data: NDArray[Any], places: Iterable[Place], q_mask: NDArray[Any], sigma: float
) -> NDArray[np.float64]:
    """Similarity as in the published code, ``(n, 8)``.

    Each pattern is converted, blurred and masked again for each of its neighbours.
    """
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


def neighbours(shape: tuple[int, ...], place: Place, radius: float) -> Iterator[Place]:
    """Yield the positions within `radius` of a place, including the place itself."""
    reach = int(radius + 1)
    for dx in range(-reach, reach + 1):
        for dy in range(-reach, reach + 1):
            x, y = place[0] + dx, place[1] + dy
            near = dx**2 + dy**2 <= (radius + 0.5) ** 2
            if near and 0 <= x < shape[0] and 0 <= y < shape[1]:
                yield x, y


def filter_feature(pattern: NDArray[Any], weight: NDArray[Any], sigma: float) -> NDArray[Any]:
    """Return the blurred, weighted pattern that the filter compares; 0 for a flat pattern."""
    if pattern.max() == pattern.min():
        return np.zeros_like(weight)
    blurred = gaussian_filter(pattern.astype(weight.dtype), sigma, mode="reflect", truncate=4)
    return weight * (blurred - np.sum(weight * blurred) / np.sum(weight))


def unit(feature: NDArray[Any]) -> NDArray[Any]:
    """Divide by the norm, unless that is 0."""
    norm = np.linalg.norm(feature)
    return feature / norm if norm > 0 else feature


def filter_sums(
    data: NDArray[Any],
    place: Place,
    features: Mapping[Place, NDArray[Any]],
    *,
    radius: float,
    corr_range: tuple[float, float],
) -> tuple[NDArray[Any], float]:
    """Correlative filter at one place: the weighted sum of patterns, and the sum of weights.

    The pattern of the place has weight 1. Each pattern within `radius` is added, including the
    pattern of the place once more. Its weight rises from 0 to 1 when the correlation rises over
    `corr_range`. The correlation is the product of two `features` of norm 1.
    """
    low, high = corr_range
    total = data[place].astype(np.result_type(data, np.float32))
    sum_of_weights = 1.0
    for other in neighbours(data.shape[:2], place, radius):
        correlation = np.sum(features[place] * features[other])
        a = min(max((correlation - low) / (high - low), 0), 1)
        total += total.dtype.type(a) * data[other]
        sum_of_weights += a
    return total, sum_of_weights


def label_sums(data: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Add up the patterns of each label ``(n_labels, Qx, Qy)``; -1 is left out."""
    total = np.zeros((labels.max() + 1, *data.shape[2:]))
    for place in np.ndindex(labels.shape):
        if labels[place] >= 0:
            total[labels[place]] += data[place]
    return total
