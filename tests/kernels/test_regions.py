"""Sums, numbers and depths of regions against slow loops."""

from __future__ import annotations

import numpy as np
import pytest

from py4dstem_clustering.kernels.regions import (
    consecutive,
    depths,
    have_depth,
    region_means,
    region_sums,
)


def blocks(shape, size, seed, n=6):
    """Regions of squares, some of them in parts, and positions without a region."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(-1, n, size=(shape[0] // size + 1, shape[1] // size + 1))
    labels = coarse.repeat(size, axis=0).repeat(size, axis=1)[: shape[0], : shape[1]]
    return consecutive(labels)


@pytest.mark.parametrize("rank", [1, 3, 19])
def test_sums_are_added_up_in_reading_order(rank):
    """So that they have the same bits however many features are added up together."""
    rng = np.random.default_rng(rank)
    labels = rng.integers(-1, 40, size=(23, 31))
    values = (rng.normal(size=(23, 31, rank)) * 10.0 ** rng.integers(-3, 6)).astype(np.float32)
    n = int(labels.max()) + 1
    expected = np.zeros((n, rank))
    for number, row in zip(labels.ravel().tolist(), values.reshape(-1, rank), strict=True):
        if number >= 0:
            expected[number] += row.astype(float)
    np.testing.assert_array_equal(region_sums(labels, values, n), expected)
    some = rng.permutation(labels.size)[:200]
    mean, size = region_means(labels.ravel(), values.reshape(-1, rank))
    np.testing.assert_array_equal(mean, expected / size[:, None])
    np.testing.assert_array_equal(size, [(labels == k).sum() for k in range(n)])
    alone, _ = region_means(np.arange(200), values.reshape(-1, rank)[some])
    np.testing.assert_array_equal(alone, values.reshape(-1, rank)[some])


def test_sums_of_nothing():
    values = np.ones((3, 4, 2), np.float32)
    assert region_sums(np.full((3, 4), -1), values, 0).shape == (0, 2)
    np.testing.assert_array_equal(region_sums(np.full((3, 4), -1), values, 2), 0)
    assert region_means(np.empty((0, 4), int), values[:0])[0].shape == (0, 2)


@pytest.mark.parametrize("step", [1, 7, 10**9])
def test_numbers_without_gaps(step):
    labels = np.array([[5, -1, 3], [3, 8, 5]])
    expected = [[1, -1, 0], [0, 2, 1]]
    np.testing.assert_array_equal(consecutive(np.where(labels < 0, -1, labels * step)), expected)
    np.testing.assert_array_equal(consecutive(np.full((2, 3), -1)), -1)
    assert consecutive(np.empty((0, 3), int)).shape == (0, 3)


def test_which_regions_are_deep():
    seen = set()
    for seed in range(8):
        labels = blocks((20 + seed, 13), 1 + seed, seed)
        for depth in (1.0, 2.8, 3.0, 4.5):
            found = have_depth(labels, depth)
            np.testing.assert_array_equal(found, depths(labels) >= depth)
            seen.update(found.tolist())
    assert seen == {True, False}
    assert have_depth(np.full((3, 4), -1), 2.8).shape == (0,)
    np.testing.assert_array_equal(have_depth(np.zeros((2, 3), int), 4.5), True)
