"""Size, shape and outline of clusters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.measure import find_contours, regionprops

PROPERTIES = np.dtype(
    [
        ("label", np.int32),
        ("size", np.int64),
        ("area", np.float64),
        ("centroid_rx", np.float64),
        ("centroid_ry", np.float64),
        ("seed_rx", np.int64),
        ("seed_ry", np.int64),
        ("equivalent_diameter", np.float64),
        ("major_axis", np.float64),
        ("minor_axis", np.float64),
        ("orientation", np.float64),
        ("eccentricity", np.float64),
        ("solidity", np.float64),
        ("perimeter", np.float64),
        ("similarity", np.float64),
        ("touches_border", bool),
    ]
)
"""Fields of `Clusters.properties`."""


def measure_properties(
    labels: NDArray[np.int32],
    seeds: NDArray[np.int64],
    similarity_mean: NDArray[np.float32],
    pixel_size: float,
) -> NDArray[np.void]:
    """Table of `Clusters.properties`, a row for each cluster."""
    table = np.zeros(len(seeds), dtype=PROPERTIES)
    rx, ry = labels.shape
    for region in regionprops(labels + 1):
        k = region.label - 1
        top, left, bottom, right = region.bbox
        similarity = similarity_mean[tuple(region.coords.T)]
        similarity = similarity[np.isfinite(similarity)]
        table[k] = (
            k,
            region.area,
            region.area * pixel_size**2,
            *region.centroid,
            *seeds[k],
            region.equivalent_diameter_area * pixel_size,
            region.axis_major_length * pixel_size,
            region.axis_minor_length * pixel_size,
            region.orientation,
            region.eccentricity,
            region.solidity,
            region.perimeter_crofton * pixel_size,
            similarity.mean(dtype=np.float64) if similarity.size else np.nan,
            top == 0 or left == 0 or bottom == rx or right == ry,
        )
    return table


def find_outlines(member: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Closed contours (rx, ry) around the True positions of a map with at least one of them.

    To save time, only the box around these positions is searched.
    """
    rows, columns = (np.flatnonzero(member.any(axis=axis)) for axis in (1, 0))
    box = member[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    found = find_contours(np.pad(box, 1).astype(np.float32), 0.5, fully_connected="high")
    corner = np.array([rows[0] - 1, columns[0] - 1])
    return [points + corner for points in found]
