"""Disks in regions, strips at borders, and crystals: slow loops, and samples made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from py4dstem_clustering import simulate_sample, simulate_scan
from py4dstem_clustering.kernels import crystals as kernel
from py4dstem_clustering.kernels import disks as disk_kernel
from py4dstem_clustering.kernels import joining, outlines, pieces
from py4dstem_clustering.kernels.disks import Disks, contrast_limit, disk_contrast, shared_disks
from py4dstem_clustering.kernels.merging import find_regions, merge_positions
from py4dstem_clustering.kernels.regions import consecutive, region_means
from py4dstem_clustering.kernels.strips import (
    STRIP_DEPTH,
    border_strips,
    find_facing,
    noise_power,
)
from py4dstem_clustering.metrics import panoptic_quality

GRID = (9, 8)
RANK = 4
QUIET = {"progress_bar": False}


def some_disks(seed=0, rank=RANK):
    rng = np.random.default_rng(seed)
    n = GRID[0] * GRID[1]
    grid = np.stack(np.divmod(np.arange(n), GRID[1]), axis=1)
    directions = rng.normal(size=(n, rank))
    return Disks(
        directions,
        np.sqrt((directions**2).sum(axis=1)),
        grid,
        rng.uniform(0.5, 2, n),
        rng.random(n) > 0.1,
        rng.uniform(50, 100, rank),
    )


def stripes(shape=(14, 11), width=3):
    return np.broadcast_to(np.arange(shape[1]) // width, shape).copy()


# --- disks -----------------------------------------------------------------------------------


def contrast_by_loops(disks, mean, size, errors):
    out = []
    ones = gaussian_filter(np.ones(GRID), 2.5)
    for m, n in zip(mean, size, strict=True):
        pattern = (disks.directions @ m).reshape(GRID)
        rise = np.minimum(pattern - gaussian_filter(pattern, 2.5) / ones, pattern).ravel()
        leak = np.sqrt(sum(m[k] ** 2 / disks.power[k] for k in range(len(m))))
        found = []
        for b in range(len(rise)):
            if disks.counts[b]:
                less = errors * disks.error[b] / np.sqrt(n) + np.sign(errors) * 2 * leak
                found.append((rise[b] - less) / disks.mean[b])
        out.append(sorted(found)[-3])
    return np.array(out)


@pytest.mark.parametrize("errors", [4.0, 0.0, -3.0])
def test_contrast_is_that_of_the_third_bin(errors):
    disks = some_disks()
    rng = np.random.default_rng(1)
    mean, size = rng.normal(size=(7, RANK)), rng.uniform(1, 200, 7)
    expected = contrast_by_loops(disks, mean, size, errors)
    np.testing.assert_allclose(disk_contrast(disks, mean, size, errors), expected)


def test_contrast_does_not_depend_on_how_many_regions_there_are(monkeypatch):
    disks = some_disks()
    rng = np.random.default_rng(1)
    mean, size = rng.normal(size=(9, RANK)), rng.uniform(1, 200, 9)
    whole = disk_contrast(disks, mean, size, 4.0)
    pairs = np.stack([mean[:-1], mean[1:]], axis=1), np.stack([size[:-1], size[1:]], axis=1)
    shared = shared_disks(disks, *pairs)
    monkeypatch.setattr(disk_kernel, "_PIECE", 2)
    np.testing.assert_allclose(disk_contrast(disks, mean, size, 4.0), whole)
    np.testing.assert_allclose(shared_disks(disks, *pairs), shared)


@pytest.mark.parametrize(
    ("contrast", "limit"),
    [
        ([], 0.25),
        ([3.0], 0.25),
        ([-0.5, 0.1, 3.0], 0.6),  # liquid and a strong grain: in the gap, but not above
        ([0.1, 0.2, 0.8], np.sqrt(0.2 * 0.8)),
        ([0.45, 0.53, 0.6, 0.9, 1.4], 0.25),  # a film without a gap
        ([0.4, 0.56, 2.1, 5.4], 0.6),  # measured: MgO on carbon
    ],
)
def test_the_limit_lies_in_the_widest_gap(contrast, limit):
    assert contrast_limit(np.array(contrast)) == pytest.approx(limit)


def shared_by_loops(disks, mean, size):
    noise = np.random.default_rng(0).standard_normal(mean.shape[2])
    out = []
    for (a, b), (n_a, n_b) in zip(mean, size, strict=True):

        def root(features, count):
            pattern = disks.directions @ features - 2 * disks.error / np.sqrt(count)
            return np.sqrt(np.maximum(pattern, 0))

        def cosine(x, y):
            return x @ y / max(np.sqrt((x @ x) * (y @ y)), 1e-12)

        shift = np.sqrt(1 / n_a + 1 / n_b) * noise
        found = cosine(root(a, n_a), root(b, n_b))
        possible = min(
            cosine(root(a, n_a), root(a + shift, n_b)), cosine(root(b, n_b), root(b + shift, n_a))
        )
        out.append(found / max(possible, found, 0.3))
    return np.array(out)


def test_shared_disks_are_a_cosine_of_roots():
    disks = some_disks()
    rng = np.random.default_rng(2)
    mean, size = rng.normal(size=(8, 2, RANK)), rng.uniform(5, 100, (8, 2))
    expected = shared_by_loops(disks, mean, size)
    np.testing.assert_allclose(shared_disks(disks, mean, size), expected, rtol=1e-6)


def test_shared_disks_of_one_pattern_are_all_of_them():
    mean = np.random.default_rng(3).normal(size=(5, 1, RANK)).repeat(2, axis=1)
    shared = shared_disks(some_disks(), mean * [[[1.0], [4.0]]], np.full((5, 2), 1e6))
    np.testing.assert_allclose(shared, 1, atol=1e-2)


# --- strips ----------------------------------------------------------------------------------


def strips_by_loops(labels, region, pairs, values, noise):
    mean, size, depth, scatter = [], [], [], []
    places = [tuple(p) for p in np.argwhere(labels >= 0)]
    of = {p: region[labels[p]] for p in places}
    for low, high in pairs:
        for own, other in ((low, high), (high, low)):
            weights, members, distances = [], [], []
            for p in places:
                if of[p] != own:
                    continue
                near = [np.hypot(p[0] - q[0], p[1] - q[1]) for q in places if of[q] == other]
                distance = min(near)
                if distance > STRIP_DEPTH:
                    continue
                weights.append(0.15 if distance < 1.2 else 0.5 if distance < 1.6 else 1.0)
                members.append(values[p].astype(float))
                distances.append(distance - 0.5)
            w, x = np.array(weights), np.array(members)
            m = w @ x / w.sum()
            n = w.sum() ** 2 / (w**2).sum()
            mean.append(m)
            size.append(n)
            depth.append(w @ np.array(distances) / w.sum())
            square = w @ ((x - m) ** 2).sum(axis=1) / w.sum()
            scatter.append((square - noise * (1 - 1 / n)) * n / max(n - 1, 0.5))
    return [
        np.array(x).reshape(len(pairs), 2, *np.shape(x[0])) for x in (mean, size, depth, scatter)
    ]


@pytest.mark.parametrize("joined", [False, True])
def test_strips_are_those_of_a_loop(joined):
    labels = stripes()
    labels[:6, :2] = labels.max() + 1
    labels[-3:] = -1
    n = labels.max() + 1
    region = np.arange(n)
    if joined:
        region[2] = region[1]
    values = np.random.default_rng(4).normal(size=(*labels.shape, RANK)).astype(np.float32)
    pairs = {tuple(sorted((region[a], region[b]))) for a in range(n) for b in range(n)
             if region[a] != region[b] and abs(a - b) == 1 and max(a, b) < n - 1}  # fmt: skip
    pairs = np.array(sorted(pairs))
    found = border_strips(find_facing(labels), region, labels, pairs, values, 3.0)
    for part, expected in zip(
        found, strips_by_loops(labels, region, pairs, values, 3.0), strict=True
    ):
        np.testing.assert_allclose(part, expected, rtol=1e-5)


def test_noise_is_that_of_the_direction_in_which_nothing_changes():
    rng = np.random.default_rng(5)
    labels = stripes((40, 24), 12)
    values = 1.5 * rng.normal(size=(40, 24, RANK))
    values += 4 * np.arange(24)[:, None]  # bends along Ry
    assert noise_power(labels, values) == pytest.approx(RANK * 1.5**2, rel=0.1)
    assert noise_power(np.full((2, 2), -1), values[:2, :2]) == RANK


# --- joining ---------------------------------------------------------------------------------


def lattice(n_positions, *, bent, seed=0, shape=(30, 30), strength=30):
    """Features of one crystal per region of `n_positions` columns, in a space of clear disks.

    Each feature is one disk. A bent crystal lights up one disk after the other.
    """
    columns = np.arange(shape[1])
    values = np.zeros((*shape, 12))
    if bent:
        for k in range(12):
            values[..., k] = strength * np.exp(-0.5 * ((columns - 2.7 * k) / 3.0) ** 2)
    else:
        for k, column in enumerate(columns // n_positions):
            values[:, k, column % 12] = strength
    rng = np.random.default_rng(seed)
    return (values + rng.normal(size=values.shape)).astype(np.float32)


def clear_disks():
    """One bin for each feature, and empty bins around it."""
    grid = np.stack(np.divmod(np.arange(16 * 15), 15), axis=1)
    directions = np.zeros((len(grid), 12))
    for k in range(12):
        u, v = 2 + 5 * (k // 4), 2 + 3 * (k % 4)
        for du, dv in ((0, 0), (0, 1), (1, 0), (1, 1)):
            directions[(u + du) * 15 + v + dv, k] = 0.5
    error = np.sqrt((directions**2).sum(axis=1))
    flat = np.ones(len(grid))
    return Disks(directions, error, grid, flat, flat > 0, np.full(12, 1e5))


def even_profile(values):
    """Radial features that are the same everywhere, but for noise."""
    return np.random.default_rng(9).normal(size=(*values.shape[:2], 2)).astype(np.float32)


def crystals_of(values, mask=None):
    mask = np.ones(values.shape[:2], dtype=bool) if mask is None else mask
    merges = merge_positions(values, mask)
    regions = find_regions(values, merges)
    found = kernel.find_crystals(values, merges, regions, clear_disks(), even_profile(values))
    kept = found.pairs[found.level <= kernel.CRYSTAL_LEVEL]
    number = joining.join_numbers(kept, int(found.labels.max(initial=-1)) + 1)
    return found, consecutive(np.where(found.background, -1, np.append(number, -1)[found.labels]))


def test_a_bent_crystal_is_one_and_comes_in_pieces():
    found, labels = crystals_of(lattice(5, bent=True))
    assert found.labels.max() + 1 >= 4
    assert labels.max() == 0
    assert not found.background.any()


def test_steps_stay():
    _, labels = crystals_of(lattice(10, bent=False))
    assert labels.max() + 1 == 3
    np.testing.assert_array_equal(labels, np.broadcast_to(labels[0], labels.shape))


def test_the_background_has_no_disks():
    values = lattice(10, bent=False)
    values[:, 10:20] = np.random.default_rng(6).normal(size=(30, 10, 12))
    found, labels = crystals_of(values)
    np.testing.assert_array_equal(found.background[:, 11:19], True)
    assert labels.max() + 1 == 2


@pytest.mark.parametrize("bent", [True, False])
def test_crystals_turn_with_the_scan(bent):
    values = lattice(7, bent=bent)
    _, labels = crystals_of(values)
    _, turned = crystals_of(np.ascontiguousarray(values.swapaxes(0, 1)))
    assert panoptic_quality(turned.T, labels).quality > 0.99


def test_positions_outside_the_mask_have_no_part():
    values = lattice(10, bent=False)
    mask = np.ones((30, 30), dtype=bool)
    mask[:, :10] = False
    found, labels = crystals_of(values, mask)
    np.testing.assert_array_equal(found.labels[:, :10], -1)
    assert not found.background[:, :10].any()
    assert labels.max() + 1 == 2
    nothing, labels = crystals_of(values, np.zeros((30, 30), dtype=bool))
    assert nothing.labels.max() == labels.max() == -1
    assert len(nothing.pairs) == len(nothing.level) == 0


def test_a_region_that_varies_is_cut_in_its_parts_and_no_other():
    mixed = lattice(7, bent=True, shape=(30, 28), strength=15)
    even = lattice(28, bent=False, shape=(30, 28), strength=15)
    mask = np.ones((30, 28), dtype=bool)
    for values, n_least, n_most in ((mixed, 4, 14), (even, 1, 1)):
        merges = merge_positions(values, mask)
        whole = np.zeros(mask.shape, dtype=np.int64)  # as if merging had found one pattern
        found, _ = pieces.find_pieces(values, merges, whole, clear_disks(), even_profile(values))
        assert n_least <= found.max() + 1 <= n_most
        fine = pieces.cut_merges(merges, pieces.VARYING_LEVEL)
        # Each piece lies in one part of the finer cut: nothing was refined away.
        for label in range(found.max() + 1):
            assert len(np.unique(fine[found == label])) == 1 or n_most == 1
        assert (found >= 0).all()
    # Where noise hardly counts, merging has parted what differs.
    strong = lattice(7, bent=True, shape=(30, 28), strength=60)
    merges = merge_positions(strong, mask)
    found, _ = pieces.find_pieces(strong, merges, whole, clear_disks(), even_profile(strong))
    assert found.max() == 0


def test_two_crystals_that_merging_took_for_one_pattern_come_apart():
    values = lattice(5, bent=True, shape=(30, 30), strength=15)
    values[:, 17:] = np.roll(values[:, 17:], 5, axis=2)  # another lattice begins here
    mask = np.ones((30, 30), dtype=bool)
    whole = np.zeros((30, 30), dtype=np.int64)
    merges = merge_positions(values, mask)
    found, _ = pieces.find_pieces(values, merges, whole, clear_disks(), even_profile(values))
    joins, scores = joining.join_pieces(found, values, clear_disks())
    kept = joins[scores >= joining.MIN_SHARED]
    crystals = joining.join_numbers(kept, int(found.max()) + 1)[found]
    assert not np.isin(crystals[:, :16], crystals[:, 18:]).any()


def test_a_wide_piece_has_one_pattern():
    labels = np.zeros((24, 26), dtype=np.int64)
    labels[:, 12:] = 1
    labels[:, 24:] = 2
    values = np.random.default_rng(7).normal(size=(24, 26, RANK)) + 10.0
    values[:, 12:] += 20 * np.linspace(-1, 1, 14)[:, None]  # varies
    wide, flat = pieces.find_uniform(labels, values)
    np.testing.assert_array_equal(wide, [True, False, False])
    np.testing.assert_array_equal(flat, [True, False, True])  # the scan goes on beside it


def test_a_mixture_of_two_crystals_joins_none():
    mean = np.zeros((3, 12))
    mean[0, 0] = mean[1, 1] = 30
    mean[2, :2] = 14
    size = np.array([80.0, 60.0, 20.0])
    near = [{1: 0.0, 2: 0.7}, {0: 0.0, 2: 0.7}, {0: 0.7, 1: 0.7}]
    assert joining._is_bridge(2, 0, near, mean, size)
    near = [{1: 0.5, 2: 0.7}, {0: 0.5, 2: 0.7}, {0: 0.7, 1: 0.7}]  # they may be one crystal
    assert not joining._is_bridge(2, 0, near, mean, size)
    near = [{2: 0.7}, {2: 0.7}, {0: 0.7, 1: 0.7}]  # nothing is known of them
    assert not joining._is_bridge(2, 0, near, mean, size)


# --- borders ---------------------------------------------------------------------------------


def profile(strength):
    values = np.zeros((20, len(strength), RANK))
    values[..., 0] = 40 * np.asarray(strength)
    return values + np.random.default_rng(8).normal(size=values.shape)


@pytest.mark.parametrize("start", [9, 10, 11])
def test_a_blurred_border_moves_to_one_half(start):
    strength = 1 / (1 + np.exp(-(np.arange(24) - 8.5) / 0.35))  # a probe of sigma 0.6
    labels = np.where(np.arange(24) >= start, 0, -1) * np.ones((20, 1), dtype=np.int64)
    found = outlines.move_borders(labels, profile(strength), np.ones(labels.shape, dtype=bool))
    expected = np.broadcast_to(np.arange(24) >= 9, (12, 24))
    np.testing.assert_array_equal(found[4:-4] >= 0, expected)


def test_a_crystal_that_grows_thin_keeps_its_border():
    strength = np.sqrt(np.clip(1 - ((np.arange(24) - 23) / 18) ** 2, 0, 1)) ** 3
    labels = np.where(strength > 0.02, 0, -1) * np.ones((20, 1), dtype=np.int64)
    found = outlines.move_borders(labels, profile(strength), np.ones(labels.shape, dtype=bool))
    np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize("has_background", [True, False])
def test_a_crystal_that_grows_thin_takes_in_its_rim(has_background):
    # Half of the strength of the whole crystal is left at column 12, its rim is at column 6.
    strength = np.sqrt(np.clip(1 - ((np.arange(24) - 23) / 18) ** 2, 0, 1)) ** 3
    values = profile(strength)
    if not has_background:  # what lies beside it is another crystal
        values[:, :8, 1] += 30
    labels = np.where(np.arange(24) >= 12, 0, -1) * np.ones((20, 1), dtype=np.int64)
    if not has_background:
        labels[:, :8] = 1
    found = outlines.move_borders(labels, values, np.ones(labels.shape, dtype=bool))
    columns = (found == found[10, 20])[4:-4].sum(axis=1)
    if has_background:
        assert set(columns) <= {16, 17, 18}
    else:  # a hole in a film, such as a grain that was not found, is no rim
        assert set(columns) == {12}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_parts_are_connected_and_keep_their_region(seed, n):
    labels = np.random.default_rng(seed).integers(-1, n, (6, 7))
    parts = pieces.split_unconnected(labels)
    np.testing.assert_array_equal(parts < 0, labels < 0)
    for part in range(parts.max() + 1):
        places = np.argwhere(parts == part)
        assert len(np.unique(labels[parts == part])) == 1
        reached = {tuple(places[0])}
        while True:
            more = {tuple(p) for p in places if any(np.abs(p - q).max() <= 1 for q in reached)}
            if more <= reached:
                break
            reached |= more
        assert len(reached) == len(places)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_joins_are_a_forest_with_rising_levels(seed):
    rng = np.random.default_rng(seed)
    values = lattice(int(rng.integers(4, 12)), bent=bool(rng.random() < 0.5), seed=seed)
    found, labels = crystals_of(values[: rng.integers(8, 30)])
    n = int(found.labels.max()) + 1
    assert (np.diff(found.level) >= 0).all()
    assert (found.level > kernel.PATTERN_LEVEL).all()
    assert len(np.unique(joining.join_numbers(found.pairs, n))) == n - len(found.pairs)
    # A crystal holds no background, and each region is one or the other.
    shares = np.bincount(found.labels.ravel(), found.background.ravel()) / np.bincount(
        found.labels.ravel()
    )
    assert np.isin(shares, (0, 1)).all()
    np.testing.assert_array_equal(labels < 0, found.background)


# --- scans -----------------------------------------------------------------------------------


def quality(scan, **options):
    return panoptic_quality(scan.datacube.cluster(**options, **QUIET).labels, scan.labels).quality


def test_contours_and_fringes_are_hardly_more_than_one_crystal():
    scan = simulate_sample("bent-foil", (64, 56), (64, 60), electrons=1000, seed=1)
    assert scan.datacube.cluster(**QUIET).n_clusters <= 3
    assert scan.datacube.cluster(level="pattern", **QUIET).n_clusters > 20


def test_bent_wedges_are_found_far_better_than_their_patterns():
    """Bloch waves of gold, 5 to 40 nm, bent by 2 degrees."""
    scan = simulate_scan(
        (30, 26),
        (64, 60),
        n_grains=3,
        electrons=10_000,
        scattering="dynamical",
        thickness=(5, 40),
        thickness_profile="wedge",
        bending=2.0,
        surroundings="vacuum",
        film=0.05,
        even_disks=True,
        seed=1,
    )
    assert quality(scan) > quality(scan, level="pattern") + 0.2


def test_regions_of_the_scan_have_disks_or_not():
    scan = simulate_scan((30, 26), (48, 44), n_grains=3, electrons=20_000, seed=3)
    clusters = scan.datacube.cluster(**QUIET)
    assert ((clusters.labels < 0) == (scan.labels < 0)).mean() > 0.97
    tree = scan.datacube.get_cluster_tree(**QUIET)
    mean, _ = region_means(tree.automatic, tree.features)
    power = (mean**2).sum(axis=1)
    empty = np.bincount(tree.automatic.ravel(), tree.background.ravel()) > 0
    assert power[empty].max() < 0.1 * power[~empty].min()


def test_a_weak_part_of_a_crystal_is_kept_and_liquid_is_not():
    """No disk is excited in the middle of a bent crystal, and none in a drop beside it."""
    values = lattice(5, bent=True)
    rng = np.random.default_rng(3)
    values[:, 20:] = rng.normal(size=values[:, 20:].shape)  # vacuum beside the crystal
    values[10:20, 8:13] = rng.normal(size=values[10:20, 8:13].shape)  # the weak part
    radial = rng.normal(size=(30, 30, 2)).astype(np.float32)
    radial[:, :20] += 10
    radial[5:15, 24:28] += 10  # a drop of liquid
    mask = np.ones((30, 30), dtype=bool)
    merges = merge_positions(values, mask)
    found = kernel.find_crystals(
        values, merges, find_regions(values, merges), clear_disks(), radial
    )
    assert not found.background[:, 1:19].any()
    assert found.background[:, 21:].all()
