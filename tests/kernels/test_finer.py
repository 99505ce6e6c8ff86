"""Cuts below the level of one pattern are refined, and stay inside its regions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from py4dstem_clustering.kernels.finer import (
    FINER_LEVELS,
    _fill_inside,
    finer_regions,
    refined_parts,
)
from py4dstem_clustering.kernels.joining import join_numbers
from py4dstem_clustering.kernels.merging import cut_merges, merge_positions
from py4dstem_clustering.kernels.regions import consecutive

RANK = 6


def three_grains(blur=1.0, seed=0):
    """Grains in columns, of which the first two differ little, and a weak background below."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((30, 36), dtype=np.int64)
    truth[:, 12:24], truth[:, 24:] = 1, 2
    truth[22:] = 3
    mean = np.zeros((4, RANK))
    mean[0, 0], mean[1, :2], mean[2, 2] = 20, (19, 11), 20
    values = gaussian_filter(mean[truth], (blur, blur, 0)) + rng.normal(size=(*truth.shape, RANK))
    return truth, values.astype(np.float32)


def test_parts_are_those_of_the_truth_without_mixtures_at_borders():
    truth, values = three_grains()
    merges = merge_positions(values, np.ones(truth.shape, bool))
    whole = np.where(truth == 3, 2, truth // 2)  # both grains that differ little are one region
    raw = cut_merges(merges, 0.1)
    assert len(np.unique(raw[:22])) > 5  # with pieces of noise and of borders
    parts = refined_parts(whole, raw, values, truth == 3)
    assert sorted(np.unique(parts)) == [0, 1, 2, 3]
    assert (parts != truth).mean() < 0.01


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_levels_are_nested_cuts_of_one_tree(seed):
    rng = np.random.default_rng(seed)
    shape = (rng.integers(2, 16), rng.integers(2, 18))
    values = gaussian_filter(rng.normal(size=(*shape, RANK)), (2, 2, 0)) * 40
    values = (values + rng.normal(size=values.shape)).astype(np.float32)
    mask = rng.random(shape) < 0.95
    merges = merge_positions(values, mask)
    labels = consecutive(np.where(mask, cut_merges(merges, 1.0), -1))
    background = labels == 0
    parts, first, pairs, level = finer_regions(values, merges, labels, background, 1.0)
    np.testing.assert_array_equal(parts >= 0, labels >= 0)
    assert (np.diff(level) >= 0).all()
    n = int(parts.max(initial=-1)) + 1
    before = np.zeros(n + 1, int)
    for k, at in enumerate([*FINER_LEVELS[::-1], 1.0]):
        group = np.append(join_numbers(pairs[level <= at], n), -1)[parts]
        if k:  # each finer part lies in one coarser part
            assert len(np.unique(np.stack([before, group], -1).reshape(-1, 2), axis=0)) == len(
                np.unique(before)
            )
        before = group
    # At the top they are the regions again.
    both = np.unique(np.stack([before, labels], -1).reshape(-1, 2), axis=0)
    assert len(both) == len(np.unique(labels))
    inside = labels >= 0
    np.testing.assert_array_equal(
        before[inside], np.append(join_numbers(pairs, n), -1)[first[labels[inside]]]
    )
    assert len(np.unique(parts[background])) <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1)])
def test_small_scans(shape):
    values = np.zeros((*shape, RANK), np.float32)
    merges = merge_positions(values, np.ones(shape, bool))
    labels = np.zeros(shape, np.int64)
    parts, first, pairs, _ = finer_regions(values, merges, labels, labels > 0, 1.0)
    assert (parts == 0).all()
    assert first.tolist() == [0]
    assert pairs.shape == (0, 2)


def test_positions_go_to_neighbours_of_the_same_region():
    whole = np.array([[0, 0, 0, 1, 1, 2], [0, 0, 0, 1, 1, -1]])
    labels = np.array([[4, -1, -1, -1, 7, -1], [-1, -1, -1, -1, 7, -1]])
    found = _fill_inside(labels, whole)
    assert (found[whole == 0] == 4).all()
    assert (found[whole == 1] == 7).all()
    assert found[0, 5] > 7  # it has lost all parts
    assert found[1, 5] == -1
