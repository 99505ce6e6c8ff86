"""Lost frames are found, and gaps of a row or two are bridged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from py4dstem_clustering.kernels.features import features_core, noise_of_neighbours
from py4dstem_clustering.kernels.lost import (
    MAX_GAP,
    bridge,
    find_even,
    lost_in_similarity,
    may_be_lost,
)

RNG = np.random.default_rng(0)


def frames(dtype=np.uint16, shape=(5, 7, 12, 11)):
    return np.random.default_rng(1).poisson(20, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64])
def test_even_frames_are_found(dtype):
    data = frames(dtype)
    data[1, 2] = 0
    data[3] = 9
    data[2, 4] = 65535
    data[4, 0, -1, -1] = 0  # one pixel differs
    data[4, 0, :-1] = 7
    data[4, 1] = 5
    data[4, 1, 3, 4] = 6  # not among the pixels that are looked at first
    expected = np.zeros((5, 7), bool)
    expected[1, 2] = expected[3] = expected[2, 4] = True
    if np.dtype(dtype).kind == "f":
        data[0, 3] = np.nan
        data[0, 5], data[0, 5, 2:4] = 3, np.inf
        expected[0, [3, 5]] = True
    before = data.copy()
    np.testing.assert_array_equal(find_even(data), expected)
    np.testing.assert_array_equal(data, before)


def test_frames_of_few_electrons_are_not_lost():
    shape = (200, 400)
    assert may_be_lost(RNG.poisson(0.2, shape).astype(float))
    assert not may_be_lost(RNG.poisson(0.01, shape).astype(float))  # 4 electrons
    assert not may_be_lost(np.zeros(shape))
    # Lost frames of the sample do not count; a small detector is lit in half of its pixels.
    some = RNG.poisson(0.2, shape).astype(float)
    some[:150] = np.nan
    assert may_be_lost(some)
    assert may_be_lost(np.arange(12.0).reshape(2, 6))


def bridge_by_loops(values, lost):
    out, found = values.copy(), np.zeros(lost.shape, bool)
    for x, y in np.argwhere(lost):
        out[x, y] = 0
        best = None
        for dx, dy in ((1, 0), (0, 1)):
            ends = []
            for sign in (-1, 1):
                n = 0
                i, j = x, y
                while 0 <= i < lost.shape[0] and 0 <= j < lost.shape[1] and lost[i, j]:
                    i, j, n = i + sign * dx, j + sign * dy, n + 1
                inside = 0 <= i < lost.shape[0] and 0 <= j < lost.shape[1]
                ends.append((n, values[i, j]) if inside else None)
            if None in ends or sum(n for n, _ in ends) > MAX_GAP + 1:
                continue
            (n, a), (m, b) = ends
            if best is None or n + m < best[0]:
                best = n + m, (m * a + n * b) / (n + m)
        if best is not None:
            out[x, y], found[x, y] = best[1], True
    return out, found


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 8), st.integers(0, 2**32 - 1), st.floats(0, 0.8))
def test_bridging_equals_loops(rx, ry, seed, share):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rx, ry, 3)).astype(np.float32)
    lost = rng.random((rx, ry)) < share
    expected = bridge_by_loops(values, lost)
    out, found = bridge(values, lost)
    np.testing.assert_array_equal(found, expected[1])
    np.testing.assert_allclose(out, expected[0], rtol=1e-5, atol=1e-6)


def test_long_gaps_and_the_rim_are_not_bridged():
    values = np.ones((9, 6, 1), np.float32)
    lost = np.zeros((9, 6), bool)
    lost[[0, 3, 4, 5]] = True
    lost[7] = True
    out, found = bridge(values, lost)
    assert np.flatnonzero(found.any(axis=1)).tolist() == [7]
    assert (out[found] == 1).all()
    assert (out[lost & ~found] == 0).all()


def test_lost_rows_change_no_features_of_the_others():
    """Neither the rank, nor the unit, nor hot pixels: rows that are lost do not count."""
    data = frames(shape=(30, 24, 12, 11))
    data[:15, :, 2:4, 3:5] += 60
    data[:, 12:, 8:10, 6:8] += 60
    data[..., 10, 1] = 9000  # a hot pixel

    def measure(scan):
        return features_core(
            scan, q_mask=None, rank=None, centre=None, n_jobs=1, report=lambda n: None
        )

    plain = measure(data)
    for value in (0, 65535, 300):
        damaged = data.copy()
        damaged[[8, 24]] = value  # hot pixels are looked for there, too
        found = measure(damaged)
        assert np.flatnonzero(found.lost.all(axis=1)).tolist() == [8, 24]
        np.testing.assert_array_equal(found.pixels, plain.pixels)
        assert min(found.values.shape[2], plain.values.shape[2]) >= 2
        kept = ~found.lost
        for k in range(2):
            pair = np.corrcoef(found.values[kept][:, k], plain.values[kept][:, k])
            assert abs(pair[0, 1]) > 0.99
        np.testing.assert_allclose(found.variance, plain.variance, rtol=0.2)
        np.testing.assert_allclose(noise_of_neighbours(found.values, found.lost), 1, rtol=0.05)


def test_positions_like_none_of_their_neighbours():
    similarity = np.full((3, 4, 8), 0.5)
    similarity[1, 2] = 0
    similarity[0, 0] = np.nan  # no neighbours
    similarity[0, 3, :5], similarity[0, 3, 5:] = np.nan, 0
    found = lost_in_similarity(similarity)
    assert np.argwhere(found).tolist() == [[0, 3], [1, 2]]
    assert not lost_in_similarity(np.zeros((3, 4, 8))).any()
