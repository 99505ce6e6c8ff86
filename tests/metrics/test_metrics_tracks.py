"""Quality of tracks: by hand, by trying all matchings, and what must not matter."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from py4dstem_clustering.metrics import TrackQuality, track_quality

PERFECT = TrackQuality(1.0, 1.0, 1.0, 1.0, 0, 0, 0)


@st.composite
def two_series(draw):
    """Tracks and truth of a few frames; tracks agree with the truth in many places."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(1, 6)))
    elements = st.integers(-1, 2)
    truth = draw(hnp.arrays(np.int64, shape, elements=elements))
    other = draw(hnp.arrays(np.int64, shape, elements=elements))
    return np.where(draw(hnp.arrays(bool, shape)), truth, other), truth


def appearances(frame):
    """Positions of each number in a frame."""
    numbers = sorted(set(frame.ravel().tolist()) - {-1})
    return {number: set(zip(*np.nonzero(frame == number), strict=True)) for number in numbers}


def matchings(pairs):
    """All sets of pairs in which nothing is twice."""
    if not pairs:
        yield ()
        return
    (track, particle), *others = pairs
    yield from matchings(others)
    free = [(t, p) for t, p in others if t != track and p != particle]
    for rest in matchings(free):
        yield ((track, particle), *rest)


def best_of(choices, value):
    """The one choice of largest value, and whether it is the only one."""
    ranked = sorted(choices, key=value, reverse=True)
    alone = len(ranked) == 1 or value(ranked[0]) > value(ranked[1])
    return ranked[0], alone


def by_trial(tracks, truth, iou):
    """MOTA and IDF1 as their sources say, by trying all matchings; None if these are not unique."""
    last, together = {}, {}
    n_matches = switches = n_tracks = n_particles = 0
    for found, known in zip(map(appearances, tracks), map(appearances, truth), strict=True):
        n_tracks, n_particles = n_tracks + len(found), n_particles + len(known)
        overlap = {
            (t, p): len(found[t] & known[p]) / len(found[t] | known[p])
            for t, p in itertools.product(found, known)
        }
        overlap = {pair: share for pair, share in overlap.items() if share > iou}
        for pair in overlap:
            together[pair] = together.get(pair, 0) + 1
        kept = [(t, p) for t, p in overlap if last.get(p) == t]
        if len({t for t, _ in kept}) < len(kept):
            return None
        busy = [set(side) for side in zip(*kept, strict=True)] or [set(), set()]
        free = [(t, p) for t, p in overlap if t not in busy[0] and p not in busy[1]]
        new, alone = best_of(
            matchings(free), lambda m, o=overlap: (len(m), round(sum(o[pair] for pair in m), 9))
        )
        if not alone:
            return None
        switches += sum(p in last and last[p] != t for t, p in new)
        last |= {p: t for t, p in [*kept, *new]}
        n_matches += len(kept) + len(new)
    identities = max(sum(together[pair] for pair in m) for m in matchings(list(together)))
    misses, false_positives = n_particles - n_matches, n_tracks - n_matches
    if n_particles:
        mota = 1 - (misses + false_positives + switches) / n_particles
    else:
        mota = math.nan if n_tracks else 1.0
    total = n_tracks + n_particles
    return (
        mota,
        2 * identities / total if total else 1.0,
        misses,
        false_positives,
        switches,
    )


def numbers(result):
    return (
        result.mota,
        result.idf1,
        result.misses,
        result.false_positives,
        result.switches,
    )


def test_an_example_by_hand():
    truth = np.array(
        [
            [[0, 0, 0, -1, 1, 1, 1, -1]],
            [[0, 0, 0, -1, 1, 1, 1, -1]],
            [[0, 0, 0, -1, 1, 1, 1, -1]],
            [[0, 0, 0, -1, 1, 1, 1, -1]],
            [[0, 0, 0, -1, 1, 1, 1, -1]],
        ]
    )
    tracks = np.array(
        [
            [[5, 5, 5, -1, 7, 7, 7, -1]],  # both found
            [[-1, 5, 5, -1, -1, -1, 7, -1]],  # 2/3, and 1/3: a miss and a false positive
            [[5, 5, 5, 8, 7, 7, 7, 7]],  # 8 is false; 7 is back on its particle, no switch
            [[5, 5, 5, -1, 9, 9, 9, -1]],  # particle 1 changes from 7 to 9
            [[7, 7, 7, -1, 9, 9, 9, -1]],  # particle 0 from 5 to 7
        ]
    )
    result = track_quality(tracks, truth)
    assert (result.misses, result.false_positives, result.switches) == (1, 2, 2)
    assert result.mota == pytest.approx(1 - 5 / 10)
    # 9 of 11 appearances of tracks, 9 of 10 of particles.
    assert result.precision == pytest.approx(9 / 11)
    assert result.recall == pytest.approx(9 / 10)
    # Particle 0 is track 5 in 4 frames, particle 1 is 7 or 9 in 2.
    assert result.idf1 == pytest.approx(2 * 6 / 21)


def test_a_swap_is_two_switches():
    truth = np.array([[[0, 0, 1, 1]]] * 4)
    tracks = truth.copy()
    tracks[2:] = 1 - tracks[2:]
    assert numbers(track_quality(tracks, truth)) == (1 - 2 / 8, 0.5, 0, 0, 2)


def test_it_matters_when_an_identity_is_lost_for_idf1_only():
    truth = np.zeros((10, 1, 2), int)
    early, late = truth.copy(), truth.copy()
    early[5:], late[9:] = 1, 1
    a, b = track_quality(early, truth), track_quality(late, truth)
    assert a.mota == b.mota == 0.9
    assert (a.idf1, b.idf1) == (0.5, 0.9)


def test_a_gap_is_no_switch():
    truth = np.array([[[0, 0]], [[-1, -1]], [[0, 0]]])
    assert track_quality(truth, truth) == PERFECT
    tracks = np.array([[[0, 0]], [[-1, -1]], [[1, 1]]])
    assert track_quality(tracks, truth).switches == 1


def test_a_match_is_kept_though_another_is_better():
    truth = np.array([[[0] * 6]] * 2)
    tracks = np.array([[[3] * 6], [[3] * 2 + [4] * 4]])
    kept = track_quality(tracks, truth, iou=0.2)
    assert (kept.switches, kept.misses, kept.false_positives) == (0, 0, 1)
    assert track_quality(tracks, truth).switches == 1
    # Without a history the better one is taken: 4, which particle 0 then keeps.
    again = np.concatenate([tracks[1:], np.full((1, 1, 6), 4)])
    assert track_quality(again, truth, iou=0.2).switches == 0


def test_as_many_pairs_as_can_be():
    # 6 and particle 0 overlap by 8/11, which is more than 6 and 1, 1/10, with 5 and 0, 2/10.
    truth = np.array([[[0] * 10 + [1] * 2]])
    tracks = np.array([[[5] * 2 + [6] * 9 + [-1]]])
    result = track_quality(tracks, truth, iou=0.05)
    assert (result.misses, result.false_positives) == (0, 0)


def test_what_does_not_overlap_is_no_pair():
    # 5 matches particle 0 or 1, and 6 or 7 particle 2: one of each is left, but apart.
    truth, tracks = [[[0, 0, 1, 1, 2, 2]]], [[[5, 5, 5, 5, 6, 7]]]
    result = track_quality(tracks, truth, iou=0.3)
    assert (result.misses, result.false_positives) == (1, 1)


def test_a_track_is_kept_by_one_particle_only():
    truth = np.array([[[0, 0, -1, -1, -1]], [[-1, -1, 1, 1, 1]], [[0, 0, 1, 1, 1]]])
    tracks = np.where(truth >= 0, 5, -1)
    result = track_quality(tracks, truth, iou=0.3)
    assert (result.misses, result.false_positives, result.switches) == (1, 0, 0)


def test_half_of_the_union_is_no_match():
    assert track_quality([[[0, 0, -1, -1]]], [[[0, 0, 0, 0]]]).recall == 0
    assert track_quality([[[0, 0, -1, -1]]], [[[0, 0, 0, 0]]], iou=0.49).recall == 1
    assert track_quality([[[0, -1]]], [[[-1, 0]]], iou=0).recall == 0


def test_without_tracks_or_particles():
    none, some = np.full((2, 1, 3), -1), np.array([[[0, 0, 1]]] * 2)
    assert track_quality(none, none) == PERFECT
    assert track_quality(none, some) == TrackQuality(0.0, 0.0, 0.0, 0.0, 4, 0, 0)
    result = track_quality(some, none)
    assert math.isnan(result.mota)
    assert (result.idf1, result.precision, result.recall) == (0, 0, 0)
    assert (result.misses, result.false_positives, result.switches) == (0, 4, 0)


@given(two_series(), st.sampled_from([0.5, 0.7]))
@settings(deadline=None, max_examples=150)
def test_by_trying_all_matchings(series, iou):
    expected = by_trial(*series, iou)
    np.testing.assert_allclose(numbers(track_quality(*series, iou=iou)), expected, atol=1e-12)


@given(two_series(), st.sampled_from([0, 0.2, 0.35]))
@settings(deadline=None, max_examples=150)
def test_by_trying_all_matchings_where_they_compete(series, iou):
    expected = by_trial(*series, iou)
    assume(expected is not None)  # else it may be the one or the other
    np.testing.assert_allclose(numbers(track_quality(*series, iou=iou)), expected, atol=1e-12)


@given(two_series(), st.permutations([0, 5, 2**40]), st.permutations([3, 1, 2**62]))
@settings(deadline=None, max_examples=60)
def test_numbers_do_not_matter(series, high, low):
    tracks, truth = series
    expected = numbers(track_quality(tracks, truth))
    # The last entry is that of -1.
    renumbered = np.array([*high, -1])[tracks], np.array([*low, -1])[truth]
    np.testing.assert_allclose(numbers(track_quality(*renumbered)), expected, rtol=1e-12)


@given(two_series(), st.permutations([0, 5, 2**40]))
@settings(deadline=None, max_examples=60)
def test_perfect_tracks(series, high):
    truth = series[1]
    assert track_quality(np.array([*high, -1])[truth], truth) == PERFECT


@given(two_series())
@settings(deadline=None, max_examples=60)
def test_what_follows_from_the_formulas(series):
    tracks, truth = series
    result = track_quality(tracks, truth)
    assert min(result.idf1, result.precision, result.recall) >= 0
    assert max(result.idf1, result.precision, result.recall) <= 1
    assert not result.mota > 1
    # A matching of whole tracks is one of each frame.
    if (tracks >= 0).any() and (truth >= 0).any():
        found = result.precision + result.recall
        f_score = 2 * result.precision * result.recall / found if found else 0
        assert result.idf1 <= f_score + 1e-12
    # Exchanged, misses are false positives; identities do not change.
    exchanged = track_quality(truth, tracks)
    assert exchanged.idf1 == pytest.approx(result.idf1)
    assert (exchanged.misses, exchanged.false_positives) == (
        result.false_positives,
        result.misses,
    )


def test_the_result_is_plain():
    result = track_quality(np.zeros((1, 2, 3), np.uint8), [[[0, 0, 0]] * 2])
    assert result == PERFECT
    assert pickle.loads(pickle.dumps(result)) == result
    assert [type(value) for value in dataclasses.astuple(result)] == [float] * 4 + [int] * 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.mota = 0.0


def test_errors():
    truth = np.zeros((2, 3, 4), int)
    with pytest.raises(ValueError, match=r"tracks of shape \(3, 4\) must be a 3D map \(T, Rx, Ry"):
        track_quality(truth[0], truth)
    with pytest.raises(ValueError, match=r"truth of shape \(3, 4\) must be a 3D map"):
        track_quality(truth, truth[0])
    with pytest.raises(ValueError, match=r"tracks of shape \(1, 3, 4\) and truth of shape \(2, 3"):
        track_quality(truth[:1], truth)
    with pytest.raises(ValueError, match=r"tracks of shape \(0, 3, 4\) is empty"):
        track_quality(truth[:0], truth[:0])
    with pytest.raises(TypeError, match="tracks of type float64 must hold whole numbers"):
        track_quality(truth.astype(float), truth)
    with pytest.raises(ValueError, match="truth holds -2: it must hold numbers from 0"):
        track_quality(truth, truth - 2)
    for iou in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=r"iou=.* must be a finite number from 0 to 1"):
            track_quality(truth, truth, iou=iou)
    with pytest.raises(ValueError, match=r"iou=1.0 must be below 1"):
        track_quality(truth, truth, iou=1)
    with pytest.raises(TypeError, match="iou='1' must be a number"):
        track_quality(truth, truth, iou="1")
