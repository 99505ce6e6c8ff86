"""The clusters of a tree are connected at every level."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label

from py4dstem_clustering.kernels.connected import connect, levels_of
from py4dstem_clustering.kernels.joining import join_numbers

AROUND = np.ones((3, 3))


def clusters_at(labels, pairs, level, at):
    """Label map after the joins up to a level."""
    n = int(labels.max(initial=-1)) + 1
    group = join_numbers(pairs[level <= at], n)
    return np.append(group, -1)[labels]


def random_tree(rng, n):
    """Joins of regions in random order, not all of them."""
    order = rng.permutation(n)
    pairs = np.array(
        [(order[i], order[rng.integers(i)]) for i in range(1, n)], dtype=np.int64
    ).reshape(-1, 2)
    level = np.sort(rng.integers(1, 6, len(pairs)).astype(float))
    keep = rng.random(len(pairs)) < 0.8
    return pairs[keep], level[keep]


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 8), st.integers(1, 9), st.integers(0, 2**32 - 1), st.booleans())
def test_clusters_are_those_of_before_in_connected_parts(rx, ry, seed, rows_lost):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, rng.integers(1, 9), (rx, ry))
    labels = np.append(np.unique(labels[labels >= 0], return_inverse=True)[1], [])  # numbers only
    labels = rng.integers(-1, 6, (rx, ry))
    used = np.unique(labels[labels >= 0])
    labels = np.where(labels >= 0, np.searchsorted(used, labels), -1)
    pairs, level = random_tree(rng, len(used))
    lost = np.zeros((rx, ry), bool)
    if rows_lost:
        lost[rng.integers(rx)] = True
    out, new_pairs, new_level = connect(labels, pairs, level, lost)
    assert (np.diff(new_level) >= 0).all()
    np.testing.assert_array_equal(out >= 0, (labels >= 0) & ~lost)
    for at in range(7):
        before, after = (clusters_at(*tree, at) for tree in (
            (labels, pairs, level), (out, new_pairs, new_level)))  # fmt: skip
        # Each old cluster, with the lost positions in it, in parts that touch.
        expected = np.full(labels.shape, -1)
        count = 0
        for k in np.unique(before[before >= 0]):
            parts, n = label(before == k, AROUND)
            expected = np.where(parts > 0, parts + count, expected)
            count += n
        expected[lost] = -1
        both = np.unique(np.stack([expected, after], axis=-1).reshape(-1, 2), axis=0)
        assert len(both) == len(np.unique(expected)) == len(np.unique(after))


def test_levels_are_those_of_the_tree():
    pairs = np.array([[0, 1], [3, 4], [1, 3]])
    ends = np.array([[0, 1], [0, 4], [3, 4], [2, 0], [1, 1], [4, 1]])
    found = levels_of(ends, pairs, np.array([1.0, 1.5, 2.0]), 5)
    assert found.tolist() == [1.0, 2.0, 1.5, np.inf, 0.0, 2.0]


def test_parts_join_through_what_touches_them():
    labels = np.array([[0, 0, 1, 0, -1, 0]])
    out, pairs, level = connect(
        labels, np.array([[0, 1]]), np.array([1.2]), np.zeros(labels.shape, bool)
    )
    assert out.tolist() == [[0, 0, 1, 2, -1, 3]]
    assert pairs.tolist() == [[0, 1], [0, 2]]
    assert level == pytest.approx([1.2, 1.2])
