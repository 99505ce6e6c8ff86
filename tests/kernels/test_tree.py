"""Growth cut from a tree equals the paper's growth, seed by seed and neighbour by neighbour."""

from __future__ import annotations

import numpy as np
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from py4dstem_clustering.kernels.similarity import similarity_mean
from py4dstem_clustering.kernels.tree import cut_at, growth_steps, spanning_forest

# Few different values, so that ties and exact thresholds are common.
LEVELS = st.sampled_from([-1.0, -0.25, 0.0, 0.5, 0.75, 0.9, 1.0])
SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 6))


@st.composite
def cases(draw):
    shape = draw(SHAPES)
    values = draw(hnp.arrays(np.float32, (*shape, 4), elements=LEVELS.map(np.float32)))
    mask = draw(hnp.arrays(bool, shape, elements=st.sampled_from([True, True, True, False])))
    return reference.symmetric(values), mask


@given(case=cases(), thresholds=st.lists(LEVELS, min_size=1, max_size=4), size=st.integers(1, 5))
@settings(deadline=None, max_examples=300)
def test_cut_equals_growth(case, thresholds, size):
    s, mask = case
    mean = similarity_mean(s)
    forest = spanning_forest(s, mask)
    for threshold in thresholds:  # one tree, every threshold
        labels, seeds = cut_at(forest, threshold, mean, size)
        expected_labels, expected_seeds = reference.growth(s, mean, mask, threshold, size)
        np.testing.assert_array_equal(labels, expected_labels)
        np.testing.assert_array_equal(seeds, expected_seeds)


@given(seed=st.integers(0, 10_000), threshold=st.floats(-1, 1), size=st.integers(1, 4))
@settings(deadline=None, max_examples=100)
def test_cut_equals_growth_without_ties(seed, threshold, size):
    rng = np.random.default_rng(seed)
    s = reference.symmetric(rng.uniform(-1, 1, (8, 6, 4)).astype(np.float32))
    mean, mask = similarity_mean(s), rng.random((8, 6)) < 0.9
    labels, seeds = cut_at(spanning_forest(s, mask), threshold, mean, size)
    expected_labels, expected_seeds = reference.growth(s, mean, mask, threshold, size)
    np.testing.assert_array_equal(labels, expected_labels)
    np.testing.assert_array_equal(seeds, expected_seeds)


@given(case=cases())
@settings(deadline=None, max_examples=50)
def test_a_higher_threshold_only_splits(case):
    s, mask = case
    mean, forest = similarity_mean(s), spanning_forest(s, mask)
    coarse, _ = cut_at(forest, 0.0, mean, 1)
    fine, _ = cut_at(forest, 0.75, mean, 1)
    for k in range(fine.max() + 1):
        assert len(np.unique(coarse[fine == k])) == 1


def test_a_position_without_neighbours_is_a_cluster_of_its_own():
    s = np.full((1, 1, 8), np.nan, np.float32)
    labels, seeds = cut_at(
        spanning_forest(s, np.ones((1, 1), bool)), 0.5, similarity_mean(s), min_size=1
    )
    assert labels.tolist() == [[0]]
    assert seeds.tolist() == [[0, 0]]


def test_an_empty_mask_has_no_clusters():
    s = reference.symmetric(np.ones((3, 4, 4), np.float32))
    labels, seeds = cut_at(
        spanning_forest(s, np.zeros((3, 4), bool)), 0.5, similarity_mean(s), min_size=1
    )
    assert (labels == -1).all()
    assert seeds.shape == (0, 2)


def test_growth_steps_count_from_the_seed():
    s = reference.symmetric(np.ones((4, 5, 4), np.float32))
    members = np.ones((4, 5), bool)
    members[2:, 2] = False
    steps = growth_steps(s, members, (3, 1), 0.5)
    assert steps[3, 1] == 0
    assert steps[2, 1] == steps[2, 0] == steps[3, 0] == 1
    assert steps[1, 1] == steps[1, 2] == 2  # diagonals count
    assert steps[3, 3] == 4  # around the gap
    assert (steps[~members] == -1).all()
    assert (steps[members] >= 0).all()


def test_growth_steps_stop_at_the_threshold():
    forward = np.full((1, 4, 4), 0.9, np.float32)
    forward[0, 1] = 0.1
    steps = growth_steps(reference.symmetric(forward), np.ones((1, 4), bool), (0, 0), 0.5)
    assert steps.tolist() == [[0, 1, -1, -1]]


def test_the_forest_is_sorted():
    s = reference.symmetric(np.random.default_rng(0).uniform(-1, 1, (6, 5, 4)).astype(np.float32))
    forest = spanning_forest(s, np.ones((6, 5), bool))
    assert (np.diff(forest.level) <= 0).all()
    assert len(forest.level) == 6 * 5 - 1
