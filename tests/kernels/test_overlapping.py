"""Kernels of grains that overlap, against slow and obvious versions, and on noise-free sums."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from scipy.optimize import nnls

from py4dstem_clustering.kernels import overlaps
from py4dstem_clustering.kernels.disks import Disks
from py4dstem_clustering.kernels.overlap_maps import (
    MAX_GRAINS,
    disk_shares,
    few_grains,
    find_amounts,
    find_supports,
    near_maps,
    reach,
)
from py4dstem_clustering.kernels.overlaps import (
    alone_means,
    core_means,
    depths,
    find_ends,
    overlaps_core,
    peel_amount,
)

SHAPE, RANK = (26, 21), 8


def disks_of(rank=RANK):
    """Detector on which each feature is one bin."""
    n = rank
    return Disks(
        np.eye(n),
        np.ones(n),
        np.stack([np.arange(n), np.zeros(n, dtype=int)], axis=1),
        np.ones(n),
        np.ones(n, dtype=bool),
        np.full(n, 1e6),
    )


def two_films():
    """Two flat grains, of which the second lies over the right part of the first."""
    supports = np.zeros((*SHAPE, 2), dtype=bool)
    supports[3:22, 2:13, 0] = True
    supports[5:24, 8:19, 1] = True
    patterns = np.zeros((2, RANK))
    patterns[0, :4] = (40, 30, 20, 10)
    patterns[1, 3:7] = (10, 35, 25, 30)
    regions = (supports * np.array([1, 2])).sum(axis=2) - 1
    values = supports.astype(float) @ patterns
    noise = np.random.default_rng(3).normal(size=(*SHAPE, RANK))
    return supports, patterns, regions, (values + noise).astype(np.float32)


def test_two_films_come_apart():
    supports, patterns, regions, values = two_films()
    mask = np.ones(SHAPE, dtype=bool)
    found = overlaps_core(values, regions, regions, mask, disks_of())
    assert found.supports.shape == supports.shape
    order = [int(found.cores[10, 4]), int(found.cores[14, 16])]
    # The median rounds the four corners of each film.
    assert not (found.supports[..., order] & ~supports).any()
    assert (found.supports[..., order] != supports).sum() == 8
    np.testing.assert_allclose(found.patterns[order], patterns, atol=1)
    np.testing.assert_allclose(found.amounts[supports[..., 0], order[0]], 1, atol=0.2)
    assert not found.hidden.any()
    both = supports.all(axis=2)
    assert not found.alone[both].any()
    assert found.alone[found.supports.sum(axis=2) == 1].mean() > 0.95
    assert found.residual.max() < 0.05


def test_a_core_in_a_shell_is_never_alone():
    x, y = np.indices(SHAPE)
    far = np.hypot(x - 13, y - 10)
    shell, core = far < 9, far < 4.5
    patterns = np.zeros((2, RANK))
    patterns[0, :4] = (40, 30, 20, 35)
    patterns[1, 4:] = (30, 45, 25, 30)
    amounts = np.stack([shell * np.where(core, 0.6, 1), core], axis=2)
    values = amounts @ patterns + np.random.default_rng(1).normal(size=(*SHAPE, RANK))
    regions = np.where(core, 1, np.where(shell, 0, -1))
    found = overlaps_core(
        values.astype(np.float32), regions, regions, np.ones(SHAPE, dtype=bool), disks_of()
    )
    outer, inner = found.cores[13, 3], found.cores[13, 10]
    assert found.hidden.tolist() == [k == inner for k in range(2)]
    np.testing.assert_allclose(found.patterns[inner], patterns[1], atol=2)
    np.testing.assert_array_equal(found.supports[..., outer], shell)
    np.testing.assert_array_equal(found.supports[..., inner], core)
    np.testing.assert_allclose(found.amounts[core, outer].mean(), 0.6, atol=0.05)


def test_nothing_in_nothing():
    empty = np.full(SHAPE, -1)
    values = np.random.default_rng(0).normal(size=(*SHAPE, RANK)).astype(np.float32)
    found = overlaps_core(values, empty, empty, empty < 0, disks_of())
    assert found.supports.shape == (*SHAPE, 0)
    assert not found.alone.any()
    assert not found.residual.any()


def test_a_region_that_is_a_sum_is_no_end():
    _, patterns, regions, values = two_films()
    cores, mean, _, whole = find_ends(regions, values)
    assert len(mean) == 2
    assert (cores[regions == 2] == -1).all()
    # It goes to the grain that explains most of it.
    strongest = np.sqrt((patterns**2).sum(axis=1)).argmax()
    np.testing.assert_array_equal(whole, np.where(regions == 2, strongest, regions))
    swapped = np.where(regions >= 0, np.array([1, 0, 2, -1])[regions], -1)
    whole = find_ends(swapped, values)[3]
    np.testing.assert_array_equal(whole, np.where(swapped == 2, 1 - strongest, swapped))
    np.testing.assert_allclose(mean, patterns, atol=1)


def test_a_weak_rim_does_not_explain_its_grain():
    values = np.zeros((*SHAPE, RANK))
    values[:20, :14, :2] = (30, 40)
    values[:6, :14, :2] /= 10
    regions = np.full(SHAPE, -1)
    regions[6:20, :14] = 0
    regions[:6, :14] = 1
    cores, mean, _, _ = find_ends(regions, values)
    assert len(mean) == 1
    assert (cores[6:20, :14] == 0).all()
    assert (cores[:6] == -1).all()


def best_subset(system, pattern):
    """Rest of the best of all non-negative sums of at most `MAX_GRAINS` terms."""
    rests = []
    for n in range(1, MAX_GRAINS + 1):
        for chosen in itertools.combinations(range(system.shape[1]), n):
            rests.append(nnls(system[:, chosen], pattern)[1])
    return min(rests)


def test_amounts_of_few_grains_are_nearly_the_best():
    rng = np.random.default_rng(5)
    system = rng.gamma(0.4, 20, size=(RANK, 6))
    for _ in range(20):
        true = np.zeros(6)
        true[rng.choice(6, MAX_GRAINS, replace=False)] = rng.uniform(0.3, 1, MAX_GRAINS)
        pattern = system @ true + rng.normal(size=RANK)
        amount, rest = few_grains(system, pattern)
        assert (amount >= 0).all()
        assert (amount > 0).sum() <= MAX_GRAINS
        assert rest == pytest.approx(np.linalg.norm(system @ amount - pattern))
        assert rest <= 2 * best_subset(system, pattern) + 2


def test_amounts_only_near_the_core():
    _, patterns, regions, values = two_films()
    cores = np.where(regions == 2, -1, regions)
    amounts, errors, rest = find_amounts(values, cores, patterns)
    count = np.bincount(cores[cores >= 0])
    for k in range(2):
        far = distance_transform_edt(cores != k) > reach(count)[k]
        assert not amounts[far, k].any()
        assert np.isinf(errors[far, k]).all()
    x, y = 14, 10
    expected = nnls(patterns.T, values[x, y].astype(float))
    np.testing.assert_allclose(amounts[x, y], expected[0], rtol=1e-5)
    assert rest[x, y] == pytest.approx(expected[1] ** 2, rel=1e-4)
    covariance = np.linalg.inv(patterns @ patterns.T)
    np.testing.assert_allclose(errors[x, y], np.sqrt(np.diag(covariance)), rtol=1e-5)


def test_near_maps_are_distances():
    *_, regions, _ = two_films()
    count = np.bincount(regions[regions >= 0])
    for k, (box, inside) in enumerate(near_maps(regions)):
        whole = np.zeros(SHAPE, dtype=bool)
        whole[box] = inside
        expected = distance_transform_edt(regions != k) <= reach(count)[k]
        np.testing.assert_array_equal(whole, expected)


def test_means_leave_out_the_border():
    number = np.zeros(SHAPE, dtype=int)
    number[:, 9:] = 1
    values = number[..., None].astype(float)
    values[:, 8:10] = 0.5  # what the probe mixes
    mean, size = core_means(number, values)
    np.testing.assert_array_equal(mean[:, 0], [0, 1])
    np.testing.assert_array_equal(size, [26 * 8, 26 * 11])


def test_depths():
    number = np.full(SHAPE, -1)
    number[4:11, 5:16] = 0
    number[20:, :] = 1
    np.testing.assert_allclose(depths(number), [4, 7])  # to one beyond the border of the scan


@pytest.mark.parametrize("amount", [0, 0.4, 1.3])
def test_peeling_finds_how_much_of_the_outer_grain_there_is(amount):
    outer, inner = np.zeros(12), np.zeros(12)
    outer[:7] = (50, 40, 30, 45, 35, 60, 20)
    inner[6:] = (70, 80, 20, 30, 40, 50)  # one disk at the same place
    found = peel_amount(inner + amount * outer, outer, 100, disks_of(12))
    assert found == pytest.approx(amount, abs=1e-9)


def test_peeling_without_certain_disks():
    assert peel_amount(np.ones(RANK), np.full(RANK, 0.1), 4, disks_of()) == 0


def test_alone_means():
    _, patterns, regions, values = two_films()
    cores = np.where(regions == 2, -1, regions)
    amounts, *_ = find_amounts(values, cores, patterns)
    given = np.full((2, RANK), 7.0)
    mean, size = alone_means(values, cores, amounts, given, np.array([3.0, 3.0]))
    np.testing.assert_allclose(mean, patterns, atol=1)
    assert (size > 50).all()
    nobody = alone_means(values, np.full(SHAPE, -1), amounts, given, np.array([3.0, 3.0]))
    np.testing.assert_array_equal(nobody[0], given)


def test_narrow_overlaps_are_borders():
    amounts = np.zeros((*SHAPE, 2))
    amounts[:, :11, 0] = 1
    amounts[:, 9:, 1] = 0.8
    cores = np.where(np.arange(SHAPE[1]) < 9, 0, 1) * np.ones(SHAPE, dtype=int)
    mask = np.ones(SHAPE, dtype=bool)
    supports, met = find_supports(amounts, np.zeros(amounts.shape), cores, mask)
    assert not (supports & ~met).any()
    assert not (met & ~supports.any(axis=2, keepdims=True)).any()
    assert (supports.sum(axis=2) == 1).all()
    assert supports[:, 10, 0].all()
    np.testing.assert_array_equal(met, amounts > 0)  # the probe meets both there
    amounts[:, :13, 0] = 1  # now it is four positions wide
    supports, met = find_supports(amounts, np.zeros(amounts.shape), cores, mask)
    assert not (supports & ~met).any()
    assert not (met & ~supports.any(axis=2, keepdims=True)).any()
    np.testing.assert_array_equal(supports.all(axis=2), (amounts > 0).all(axis=2))


def test_a_support_holds_its_core_and_stands_out_of_noise():
    amounts = np.zeros((*SHAPE, 1))
    amounts[2:10, 2:10] = 1
    amounts[15:20, 12:18] = 1  # not connected
    cores = np.where(amounts[..., 0] > 0, 0, -1)
    cores[12:] = -1
    mask = np.ones(SHAPE, dtype=bool)
    found = find_supports(amounts, np.full(amounts.shape, 0.1), cores, mask)[0][..., 0]
    assert found[3:9, 3:9].all()
    assert not found[12:].any()
    assert not find_supports(amounts, np.full(amounts.shape, 0.4), cores, mask)[0].any()


def test_a_grain_without_a_support_is_left_out(monkeypatch):
    """As where a thin grain lies under a narrow overlap."""
    _, _, regions, values = two_films()
    whole = overlaps.find_supports

    def without_first(*args):
        supports, met = whole(*args)
        supports[..., 0] = False
        return supports, met

    monkeypatch.setattr(overlaps, "find_supports", without_first)
    found = overlaps_core(values, regions, regions, np.ones(SHAPE, dtype=bool), disks_of())
    assert found.supports.shape[2] == found.amounts.shape[2] == len(found.patterns) == 1
    assert set(np.unique(found.cores)) == {-1, 0}


def pattern_bins(shape=(15, 13)):
    """Bins of a detector as features, with the direct beam in the middle, and the ring of each."""
    grid = np.argwhere(np.ones(shape, dtype=bool))
    middle = (np.array(shape) - 1) / 2
    distance = np.hypot(*(grid - middle).T)
    mean = np.where(distance < 1.5, 1e4, 100.0)
    deviation = np.sqrt(mean)
    n = len(grid)
    disks = Disks(
        np.eye(n), np.ones(n), grid, mean / deviation, distance > 3, np.full(n, 1e9), deviation
    )
    return disks, distance.round().astype(int)


def test_shares_are_those_of_what_disks_hold():
    """Disks of a grain may grow and fade; rings have no mean, as in features."""
    disks, ring = pattern_bins()
    rng = np.random.default_rng(7)
    outside = np.flatnonzero(disks.counts)
    spots = rng.permutation(outside)[:52]
    held = np.zeros((2, len(ring)))  # the first grain has so many disks that rings miss them
    held[0, spots[:44]] = rng.uniform(40, 90, 44)
    held[1, spots[44:]] = rng.uniform(20, 35, 8)

    def features(electrons):
        mean = np.bincount(ring, electrons) / np.bincount(ring)
        return (electrons - mean[ring]) / disks.deviation

    patterns = np.array([features(one) for one in held])
    met = np.ones((4, 3, 2), dtype=bool)
    met[0, :, 1] = False
    amounts = rng.uniform(0.5, 1.5, size=(4, 3, 2)).astype(np.float32)
    values = np.zeros((4, 3, len(ring)))
    truth = np.zeros((4, 3, 2))
    for x, y in np.ndindex(4, 3):
        now = held * amounts[x, y, :, None] * rng.uniform(0.3, 1.7, held.shape) * met[x, y, :, None]
        values[x, y] = features(now.sum(axis=0))
        truth[x, y] = now.sum(axis=1) / now.sum()
    shares, error = disk_shares(
        values, amounts, patterns, np.full(2, 1e6), np.array([0, 1]), met, disks
    )
    np.testing.assert_allclose(shares.sum(axis=2), 1, atol=1e-6)
    np.testing.assert_array_equal(shares[0], [[1, 0]] * 3)
    assert np.abs(shares - truth).max() < 0.01
    assert (error[0] == 0).all()
    assert (error[1:] > 0).all()
    # Noise of standard deviation 1 in each feature changes shares by as much as the errors say.
    found = [
        disk_shares(
            values + rng.normal(size=values.shape), amounts, patterns, np.full(2, 1e6),
            np.array([0, 1]), met, disks,
        )[0].max(axis=2)[1:]
        for _ in range(60)
    ]  # fmt: skip
    ratio = np.std(found, axis=0) / error[1:]
    assert 0.8 < np.median(ratio) < 1.25


def test_disks_in_common_are_halved():
    disks, _ = pattern_bins()
    spots = np.flatnonzero(disks.counts)[:4]
    patterns = np.zeros((2, len(disks.error)))
    patterns[0, spots[:3]] = patterns[1, spots[1:]] = 50
    values = patterns.sum(axis=0)[None, None]
    one = np.ones((1, 1, 2))
    shares, _ = disk_shares(
        values, one, patterns, np.full(2, 1e6), np.array([0, 1]), one > 0, disks
    )
    np.testing.assert_allclose(shares, 0.5, atol=1e-6)
    # Strengths of disks count little: twice as strong patterns take 1.19 times as much.
    shares, _ = disk_shares(
        values, one, patterns * [[2], [1]], np.full(2, 1e6), np.array([0, 1]), one > 0, disks
    )
    np.testing.assert_allclose(shares[0, 0, 0], (1 + 2 * 1.19 / 2.19) / 4, atol=0.02)
    # The pieces of one grain count together.
    shares, _ = disk_shares(
        values, one, patterns, np.full(2, 1e6), np.array([0, 0]), one[..., :1] > 0, disks
    )
    np.testing.assert_array_equal(shares, 1)


def test_a_core_in_a_shell_of_two_parts():
    """Neither part encloses the core, but both have the disks of the shell."""
    x, y = np.indices((25, 23))
    distance = np.hypot(x - 12, y - 11)
    left = y < 11
    regions = np.where(distance < 10, np.where(left, 0, 1), -1)
    regions[distance < 5] = 2
    rng = np.random.default_rng(1)
    disks, _ = pattern_bins()
    spots = np.flatnonzero(disks.counts)
    shell, core = np.zeros((2, len(disks.error)))
    shell[spots[3:9]] = 40
    core[spots[20:25]] = 60
    clean = np.stack([shell * 1.0, shell * 0.6, 0.7 * shell + core])
    values = np.where((regions >= 0)[..., None], clean[regions], 0)
    values = values + rng.normal(size=values.shape)
    mean, size = core_means(regions, values)
    pure, hidden = overlaps.peel(regions, mean, size, disks)
    assert hidden.tolist() == [False, False, True]
    assert np.abs(pure[2] - core).max() < 5


def test_pieces_cut_from_one_region_are_one_again():
    crystals = np.full((7, 9), -1)
    crystals[1:6, 1:5], crystals[1:6, 5:8] = 0, 1
    pieces = np.where(crystals == 0, 0, -1)
    pieces[1:4, 5:8], pieces[4:6, 5:8] = 2, 3
    pieces[3:6, 1:5] = 1  # the first crystal in two pieces
    regions = np.zeros((7, 9), dtype=np.int64)  # the film, with rims of both crystals
    regions[1:6, 2:5], regions[1:4, 5:7], regions[4:6, 5:7] = 1, 2, 3
    found = overlaps.join_cut(pieces, regions, crystals)
    np.testing.assert_array_equal(found < 0, crystals < 0)
    assert len(np.unique(found[crystals == 0])) == 1
    np.testing.assert_array_equal(found[crystals == 1] == found[4, 5], pieces[crystals == 1] == 3)
    regions[regions == 3] = 1  # a region in two crystals is two
    assert len(np.unique(overlaps.join_cut(pieces, regions, crystals)[crystals >= 0])) == 3
    nothing = np.full((3, 4), -1)
    np.testing.assert_array_equal(overlaps.join_cut(nothing, nothing, nothing), nothing)
