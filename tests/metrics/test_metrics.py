"""Measures of labels against known grains: by hand, by the formula, and what must not matter."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from py4DSTEM import RealSlice

from py4dstem_clustering import Clusters
from py4dstem_clustering.metrics import (
    PanopticQuality,
    adapted_rand_error,
    adjusted_rand_index,
    border_f_score,
    panoptic_quality,
    variation_of_information,
)

PERFECT = {
    panoptic_quality: 1,
    adapted_rand_error: 0,
    adjusted_rand_index: 1,
    variation_of_information: (0, 0),
    border_f_score: 1,
}
every_metric = pytest.mark.parametrize("metric", PERFECT, ids=lambda metric: metric.__name__)

TRUTH = np.array(
    [
        [0, 0, 0, 1, 1],
        [0, 0, 0, 1, 1],
        [-1, -1, -1, 2, 2],
    ]
)
LABELS = np.array(
    [
        [4, 4, 4, 4, 1],
        [4, 4, 4, 1, 1],
        [-1, 7, 7, 7, -1],
    ]
)


@st.composite
def two_maps(draw):
    """Two small maps of one shape."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    maps = hnp.arrays(np.int64, shape, elements=st.integers(-1, 3))
    return draw(maps), draw(maps)


def random_maps(seed):
    """Labels that agree with the truth in part, so that some pairs match."""
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(-1, 4, (3, 4)), np.ones((2, 3), int))
    labels = np.where(rng.random(truth.shape) < 0.2, rng.integers(-1, 6, truth.shape), truth)
    return labels, truth


def numbers(result):
    """A result of any metric as an array."""
    if isinstance(result, PanopticQuality):
        result = (result.quality, result.segmentation, result.recognition)
    return np.array(result)


# --- one rule for all ----------------------------------------------------------------------------


@every_metric
@pytest.mark.parametrize(
    "truth",
    [
        TRUTH,
        TRUTH.T,
        np.full((3, 5), -1),
        np.zeros((2, 3), int),
        np.arange(6).reshape(2, 3),  # every position by itself
        np.array([[-1]]),
        np.array([[0]]),
    ],
    ids=["grains", "transposed", "liquid", "one", "singles", "1x1 liquid", "1x1 grain"],
)
def test_perfect_match(metric, truth):
    labels = np.where(truth < 0, -1, 9 - truth)
    np.testing.assert_allclose(numbers(metric(labels, truth)), PERFECT[metric], atol=1e-12)


@every_metric
@given(two_maps(), st.permutations([0, 5, 2**40, 2**62]), st.permutations(range(4)))
@settings(deadline=None, max_examples=40)
def test_numbers_do_not_matter(metric, maps, high, low):
    labels, truth = maps
    expected = numbers(metric(labels, truth))
    # The last entry is that of -1.
    renumbered = np.array([*high, -1])[labels], np.array([*low, -1])[truth]
    np.testing.assert_allclose(numbers(metric(*renumbered)), expected, rtol=1e-12, atol=1e-12)


@every_metric
@given(two_maps())
@settings(deadline=None, max_examples=40)
def test_transposition_and_exchange(metric, maps):
    labels, truth = maps
    expected = numbers(metric(labels, truth))
    turned = numbers(metric(labels.T, truth.T))
    np.testing.assert_allclose(turned, expected, rtol=1e-12, atol=1e-12)
    exchanged = numbers(metric(truth, labels))
    if metric is variation_of_information:
        exchanged = exchanged[::-1]  # splits become merges
    np.testing.assert_allclose(exchanged, expected, rtol=1e-12, atol=1e-12)


@every_metric
def test_kinds_of_input(metric):
    expected = numbers(metric(LABELS, TRUTH))
    labels = np.array([-1, 0, 1, 2])[np.searchsorted([-1, 1, 4, 7], LABELS)]
    clusters = Clusters(labels, [(0, 4), (0, 0), (2, 1)], np.zeros(labels.shape))
    unchanged = clusters.labels.copy()
    for given_labels in (clusters, labels.tolist(), labels.astype(np.int8), RealSlice(labels)):
        np.testing.assert_array_equal(numbers(metric(given_labels, TRUTH)), expected)
    np.testing.assert_array_equal(clusters.labels, unchanged)
    unsigned = metric(np.ones((2, 3), np.uint8), np.ones((2, 3), np.uint64))
    np.testing.assert_allclose(numbers(unsigned), PERFECT[metric], atol=1e-12)


@every_metric
def test_errors(metric):
    with pytest.raises(ValueError, match=r"\(3, 5\) and truth of shape \(5, 3\).*same shape; cut"):
        metric(TRUTH, TRUTH.T)
    with pytest.raises(ValueError, match=r"labels of shape \(15,\) must be a 2D map.*reshape"):
        metric(TRUTH.ravel(), TRUTH)
    with pytest.raises(ValueError, match=r"truth of shape \(1, 3, 5\) must be a 2D map"):
        metric(TRUTH, TRUTH[None])
    with pytest.raises(ValueError, match=r"labels of shape \(0, 5\) is empty: give at least"):
        metric(TRUTH[:0], TRUTH[:0])
    with pytest.raises(TypeError, match=r"truth of type float64 must hold whole.*astype\(int\)"):
        metric(TRUTH, TRUTH.astype(float))
    with pytest.raises(TypeError, match="labels of type bool must hold whole numbers"):
        metric(TRUTH > 0, TRUTH)
    with pytest.raises(ValueError, match="labels holds -2: it must hold numbers from 0, and -1"):
        metric(TRUTH - 1, TRUTH)
    with pytest.raises(ValueError, match=r"truth holds 18446744073709551615: .*write -1 there"):
        metric(TRUTH, TRUTH.astype(np.uint64))


# --- panoptic quality ----------------------------------------------------------------------------


def test_panoptic_quality_by_hand():
    result = panoptic_quality(LABELS, TRUTH)
    # Cluster 4 has 7 positions, grain 0 has 6, all in it: 6 / 7.
    # Cluster 1 has 3 positions, all in grain 1 of 4: 3 / 4.
    # Cluster 7 has 3 positions, grain 2 has 2, 1 in both: 1 / 4, no match.
    assert result.matches.tolist() == [[1, 1], [4, 0]]
    np.testing.assert_allclose(result.iou, [3 / 4, 6 / 7])
    assert result.segmentation == pytest.approx((3 / 4 + 6 / 7) / 2)
    # 2 pairs, 1 cluster and 1 grain left over.
    assert result.recognition == pytest.approx(2 / (2 + 1 / 2 + 1 / 2))
    assert result.quality == pytest.approx((3 / 4 + 6 / 7) / 3)
    assert float(result) == result.quality


def test_half_of_the_union_is_no_match():
    # 2 of 4 positions: 1/2. 3 of 5: 3/5.
    assert float(panoptic_quality([[0, 0, 1, 1]], [[0, 0, 0, 0]])) == 0
    assert panoptic_quality([[0, 0, 0, -1, -1]], [[0] * 5]).iou.tolist() == [3 / 5]


def test_the_liquid_is_no_segment_but_counts_in_the_union():
    # All of the liquid is right, which earns nothing: 1 / 3 is no match.
    result = panoptic_quality([[0, 0, 0, -1, -1, -1]], [[-1, -1, 0, -1, -1, -1]])
    assert numbers(result).tolist() == [0, 0, 0]
    # The two positions in the liquid are in the union: 3 / 5.
    result = panoptic_quality([[0, 0, 0, 0, 0, -1]], [[-1, -1, 0, 0, 0, -1]])
    assert result.iou.tolist() == [3 / 5]


def test_panoptic_quality_without_segments():
    none, some = np.full((2, 3), -1), np.array([[0, 0, 1], [-1, 1, 1]])
    for labels, truth, expected in ((none, none, 1), (none, some, 0), (some, none, 0)):
        result = panoptic_quality(labels, truth)
        assert numbers(result).tolist() == [expected] * 3
        assert result.matches.shape == (0, 2)
        assert result.iou.shape == (0,)
        assert result.matches.dtype == np.int64


def test_panoptic_quality_is_frozen():
    result = panoptic_quality(LABELS, TRUTH)
    for copy in (result, pickle.loads(pickle.dumps(result))):
        assert copy.matches.tolist() == [[1, 1], [4, 0]]
        with pytest.raises(ValueError, match="read-only"):
            copy.iou[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.quality = 1.0


@pytest.mark.parametrize("seed", range(20))
def test_panoptic_quality_by_the_formula(seed):
    labels, truth = random_maps(seed)
    clusters, grains = (np.unique(m[m >= 0]).tolist() for m in (labels, truth))
    iou = {}
    for cluster, grain in itertools.product(clusters, grains):
        inside, known = labels == cluster, truth == grain
        share = Fraction(int((inside & known).sum()), int((inside | known).sum()))
        if share > Fraction(1, 2):
            iou[cluster, grain] = share
    false_positives, false_negatives = len(clusters) - len(iou), len(grains) - len(iou)
    expected = sum(iou.values()) / (len(iou) + Fraction(false_positives + false_negatives, 2))
    result = panoptic_quality(labels, truth)
    assert iou  # else there is little to compare
    assert [tuple(pair) for pair in result.matches.tolist()] == list(iou)
    np.testing.assert_allclose(result.iou, [float(share) for share in iou.values()])
    assert result.quality == pytest.approx(float(expected))
    assert result.quality == pytest.approx(result.segmentation * result.recognition)


# --- pairs of positions --------------------------------------------------------------------------

PAIRS_LABELS = [[0, 0, 0], [1, 1, -1]]
PAIRS_TRUTH = [[0, 0, -1], [0, 1, -1]]
# Pairs together: in the labels 3 + 1 + 0, in the truth 3 + 0 + 1, in both 1, of 15.


def count_pairs(labels, truth):
    """Pairs of positions together in both maps, in the labels, in the truth, and all."""
    a, b = labels.ravel(), truth.ravel()
    first, second = np.triu_indices(a.size, 1)
    in_labels, in_truth = a[first] == a[second], b[first] == b[second]
    counts = (in_labels & in_truth).sum(), in_labels.sum(), in_truth.sum(), first.size
    return [int(count) for count in counts]


def test_pairs_by_hand():
    # Precision and recall are both 1 / 4.
    assert adapted_rand_error(PAIRS_LABELS, PAIRS_TRUTH) == pytest.approx(3 / 4)
    # By chance 4 * 4 / 15: (1 - 16/15) / (4 - 16/15) = -1 / 44.
    assert adjusted_rand_index(PAIRS_LABELS, PAIRS_TRUTH) == pytest.approx(-1 / 44)


def test_liquid_in_pieces_is_an_error():
    truth, labels = np.array([[-1, -1, -1, 0], [-1] * 4]), np.array([[1, 1, 1, 0], [-1] * 4])
    # 7 positions of liquid are 21 pairs; 3 + 6 of them are still together: 2 * 9 / (9 + 21).
    assert adapted_rand_error(labels, truth) == pytest.approx(1 - 18 / 30)
    # 9 * 21 / 28 by chance: (9 - 27/4) / (15 - 27/4) = 9 / 33.
    assert adjusted_rand_index(labels, truth) == pytest.approx(9 / 33)
    assert variation_of_information(labels, truth)[0] > 0.8
    # And so is what is found in nothing but liquid.
    assert adapted_rand_error([[0, 0, -1, -1]], [[-1] * 4]) == pytest.approx(1 - 2 * 2 / (2 + 6))


def test_all_apart_against_all_together():
    apart, together = np.arange(6).reshape(2, 3), np.full((2, 3), -1)
    for maps in ((apart, together), (together, apart)):
        assert adapted_rand_error(*maps) == 1
        assert adjusted_rand_index(*maps) == 0  # no better than chance
    assert variation_of_information(apart, together) == pytest.approx((math.log2(6), 0))


@pytest.mark.parametrize("seed", range(20))
def test_pairs_by_counting(seed):
    labels, truth = random_maps(seed)
    both, in_labels, in_truth, pairs = count_pairs(labels, truth)
    chance = Fraction(in_labels * in_truth, pairs)
    expected = (both - chance) / (Fraction(in_labels + in_truth, 2) - chance)
    assert adjusted_rand_index(labels, truth) == pytest.approx(float(expected), rel=1e-14)
    error = 1 - Fraction(2 * both, in_labels + in_truth)
    assert adapted_rand_error(labels, truth) == pytest.approx(float(error), abs=1e-14)


@given(two_maps())
@settings(deadline=None, max_examples=100)
def test_pairs_of_any_maps(maps):
    both, in_labels, in_truth, pairs = count_pairs(*maps)
    best, chance = (in_labels + in_truth) * pairs, 2 * in_labels * in_truth
    expected = Fraction(2 * both * pairs - chance, best - chance) if best > chance else 1
    assert adjusted_rand_index(*maps) == pytest.approx(float(expected), rel=1e-14)
    error = 1 - Fraction(2 * both, in_labels + in_truth) if in_labels + in_truth else 0
    assert adapted_rand_error(*maps) == pytest.approx(float(error), abs=1e-14)


def test_adjusted_rand_index_of_a_large_scan_is_exact():
    # Two positions are exchanged between halves of 2**17: products of pairs exceed 64 bits.
    n = 2**17
    truth = np.repeat([0, -1], n)
    labels = truth.copy()
    labels[[0, -1]] = labels[[-1, 0]]
    half, pairs = math.comb(n, 2), math.comb(2 * n, 2)
    # Of n in each half n - 1 are with each other, and 1 is alone.
    both = 2 * math.comb(n - 1, 2)
    chance = Fraction((2 * half) ** 2, pairs)
    expected = float((both - chance) / (2 * half - chance))
    assert adjusted_rand_index(labels.reshape(512, 512), truth.reshape(512, 512)) == expected < 1


# --- information ---------------------------------------------------------------------------------


def test_splits_and_merges_by_hand():
    truth = np.array([[0, 0, 0, 0], [1, 1, -1, -1]])
    labels = np.array([[0, 1, 2, 3], [5, 5, 5, 5]])
    # Half of the scan is a grain in 4 pieces: 2 bits. Half is a cluster of 2 classes: 1 bit.
    assert variation_of_information(labels, truth) == pytest.approx((2 / 2, 1 / 2))


def entropy(values):
    """Bits in a list of anything."""
    counts = Counter(values).values()
    return sum(n / len(values) * math.log2(len(values) / n) for n in counts)


@given(two_maps())
@settings(deadline=None, max_examples=100)
def test_splits_and_merges_by_entropies(maps):
    labels, truth = (m.ravel().tolist() for m in maps)
    joint = entropy(list(zip(labels, truth, strict=True)))
    # H(labels | truth) = H(labels, truth) - H(truth)
    expected = joint - entropy(truth), joint - entropy(labels)
    result = variation_of_information(*maps)
    assert result == pytest.approx(expected, abs=1e-12)
    assert min(result) >= 0
    assert [type(value) for value in result] == [float, float]


# --- borders -------------------------------------------------------------------------------------


def test_border_by_hand():
    truth, labels = np.zeros((4, 5), int), np.zeros((4, 5), int)
    truth[:, 2:] = 1  # border in columns 1 and 2
    labels[:, 3:] = -1  # border in columns 2 and 3
    assert border_f_score(labels, truth, tolerance=0) == pytest.approx(1 / 2)
    assert border_f_score(labels, truth, tolerance=0.9) == pytest.approx(1 / 2)
    assert border_f_score(labels, truth, tolerance=1) == 1


def test_too_many_borders():
    truth = np.zeros((3, 8), int)
    truth[:, 2:] = -1
    labels = truth.copy()
    labels[1, 6] = 1
    # 6 border positions are right; those of the single position are it and its 4 neighbours:
    # precision 6 / 11, recall 1.
    assert border_f_score(labels, truth) == pytest.approx(12 / 17)
    assert border_f_score(truth, labels) == pytest.approx(12 / 17)
    # (1, 5), (0, 6), (2, 6) and (1, 6) are 3 and 4 from column 2, (1, 7) is 5.
    assert border_f_score(labels, truth, tolerance=3) == pytest.approx(2 * 7 / (7 + 11))


def test_tolerance_is_euclidean():
    truth, labels = np.zeros((5, 8), int), np.zeros((5, 8), int)
    truth[0, 0] = 1  # border (0, 0), (0, 1), (1, 0)
    labels[-1, -1] = 1  # border (4, 7), (4, 6), (3, 7)
    # (4, 6) is 41**0.5 = 6.40 from (0, 1), (3, 7) is 45**0.5 = 6.71 from it, and (4, 7) is
    # 52**0.5 = 7.21 from it; the same the other way round.
    assert border_f_score(labels, truth, tolerance=6.5) == pytest.approx(1 / 3)
    assert border_f_score(labels, truth, tolerance=7) == pytest.approx(2 / 3)
    assert border_f_score(labels, truth, tolerance=7.3) == 1
    assert border_f_score(labels, truth) == 0


def test_no_borders():
    flat, edge = np.zeros((3, 4), int), np.array([[0, 0, 0, 1]] * 3)
    assert border_f_score(flat, flat - 1) == 1
    assert border_f_score(flat, edge, tolerance=100) == 0
    assert border_f_score(edge, flat, tolerance=100) == 0


@given(two_maps(), st.sampled_from([0, 1, 1.5, 2, 3]))
@settings(deadline=None, max_examples=60)
def test_borders_by_search(maps, tolerance):
    def border(labels):
        places = []
        for x, y in np.ndindex(labels.shape):
            around = [(x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)]
            inside = [p for p in around if p in set(np.ndindex(labels.shape))]
            if any(labels[place] != labels[x, y] for place in inside):
                places.append((x, y))
        return places

    def share(places, others):
        return np.mean([min(math.dist(p, q) for q in others) <= tolerance for p in places])

    found, known = (border(labels) for labels in maps)
    if found and known:
        precision, recall = share(found, known), share(known, found)
        total = precision + recall
        expected = 2 * precision * recall / total if total else 0
    else:
        expected = float(not found and not known)
    assert border_f_score(*maps, tolerance=tolerance) == pytest.approx(expected)


@pytest.mark.parametrize("tolerance", [-1, np.nan, np.inf])
def test_tolerance_must_be_a_distance(tolerance):
    with pytest.raises(ValueError, match=r"tolerance=.* must be a finite number of at least 0"):
        border_f_score(LABELS, TRUTH, tolerance=tolerance)
    with pytest.raises(TypeError, match="tolerance='1' must be a number, not str"):
        border_f_score(LABELS, TRUTH, tolerance="1")
