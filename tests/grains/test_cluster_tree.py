"""ClusterTree: cuts at any level, numbers of clusters, files, and `cluster` by both methods."""

from __future__ import annotations

import pickle
from functools import lru_cache
from itertools import pairwise
from types import SimpleNamespace

import h5py
import matplotlib.pyplot as plt
import numpy as np
import py4DSTEM
import pytest
import reference
from conftest import SCAN, first_quick
from py4DSTEM import DataCube, RealSlice

from py4dstem_clustering import Clusters, simulate_scan
from py4dstem_clustering.grains.background import find_background
from py4dstem_clustering.grains.tree import ClusterTree, level_for
from py4dstem_clustering.kernels import blocks
from py4dstem_clustering.kernels.tree import label_nodes, link, most_stable
from py4dstem_clustering.metrics import adjusted_rand_index
from py4dstem_clustering.plotting.style import cluster_colors

QUIET = {"progress_bar": False}
SHAPE = (24, 20)


@lru_cache
def simulation(seed=1, **options):
    return simulate_scan(SHAPE, (48, 44), **{"n_grains": 3, **options}, seed=seed)


def cube_of(data):
    return DataCube(data, name="cube")


@pytest.fixture(scope="module")
def grown():
    return cube_of(simulation().datacube.data).get_cluster_tree(method="grow", sigma=1, **QUIET)


@pytest.fixture(scope="module")
def merged():
    return cube_of(simulation().datacube.data).get_cluster_tree(**QUIET)


@pytest.fixture
def tree(request):
    return request.getfixturevalue(request.param)


both = pytest.mark.parametrize("tree", ["grown", "merged"], indirect=True)


def same(a, b):
    """Whether two label maps are equal except for the numbering; -1 is -1 in both."""
    a, b = np.asarray(a), np.asarray(b)
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return (
        np.array_equal(a < 0, b < 0)
        and len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]
    )


def nested(fine, coarse):
    """Whether each region of `fine` lies in one region of `coarse`."""
    return all(len(np.unique(coarse[fine == k])) == 1 for k in np.unique(fine[fine >= 0]))


# --- the tree in the kernel ------------------------------------------------------------------


def test_link_by_hand():
    # 0-1, 3-4, (0 1)-2, then all; 5 stays alone.
    children, sizes = link(np.array([0, 4, 2, 1]), np.array([1, 3, 1, 3]), 6)
    assert children.tolist() == [[0, 1], [4, 3], [2, 6], [8, 7]]
    assert sizes.tolist() == [1] * 6 + [2, 2, 3, 5]


def test_link_without_joins():
    children, sizes = link(np.empty(0, int), np.empty(0, int), 3)
    assert children.shape == (0, 2)
    assert sizes.tolist() == [1, 1, 1]
    assert label_nodes(children, np.array([1]), 3).tolist() == [-1, 0, -1]


def test_label_nodes_by_hand():
    children, _ = link(np.array([0, 4, 2, 1]), np.array([1, 3, 1, 3]), 6)
    assert label_nodes(children, np.array([8, 7]), 6).tolist() == [0, 0, 0, 1, 1, -1]
    assert label_nodes(children, np.array([7, 6]), 6).tolist() == [1, 1, -1, 0, 0, -1]
    assert label_nodes(children, np.array([5, 9]), 6).tolist() == [1, 1, 1, 1, 1, 0]
    assert label_nodes(children, np.array([], int), 6).tolist() == [-1] * 6


def excess_of_mass(children, sizes, level, min_size):
    """Members of the best set of disjoint clusters, slowly and from the definition."""
    n = len(sizes) - len(children)

    def leaves(node):
        return [node] if node < n else [k for c in children[node - n] for k in leaves(c)]

    def branch_levels(top):
        """Level at which each leaf joins the branch that ends with the node `top`."""
        a, b = children[top - n]
        here = level[top - n]
        large = [c for c in (a, b) if sizes[c] >= min_size]
        if len(large) == 1:  # the branch continues below
            (below,) = large
            found = branch_levels(below)
        else:
            found = {}
        return {**dict.fromkeys(leaves(top), here), **found}

    def best(top, end):
        """Stability of the best choice at or below a branch, which ends at the level `end`."""
        own = sum(here - end for here in branch_levels(top).values())
        node = top
        while True:
            large = [c for c in children[node - n] if sizes[c] >= min_size]
            if len(large) != 1:
                break
            (node,) = large
        if len(large) < 2:
            return own, [top]
        parts = [best(int(c), level[node - n]) for c in large]
        within = sum(part[0] for part in parts)
        return (own, [top]) if own >= within else (within, parts[0][1] + parts[1][1])

    parents = set(children.ravel().tolist())
    roots = [k for k in range(n, n + len(children)) if k not in parents]
    chosen = []
    for root in roots:
        if sizes[root] >= min_size:
            chosen += best(root, level[-1])[1]
    return sorted({frozenset(leaves(k)) for k in chosen}, key=min)


@pytest.mark.parametrize("min_size", [2, 3, 5])
def test_most_stable_equals_a_slow_reference(min_size):
    rng = np.random.default_rng(min_size)
    several = 0
    for _ in range(60):
        n = int(rng.integers(2, 40))
        part = np.arange(n)
        first, second = [], []
        for _ in range(int(rng.integers(1, n))):
            # Positions close to each other join more often, so that branches grow large.
            a = int(rng.integers(n))
            b = int(np.clip(a + rng.integers(-4, 5), 0, n - 1))
            if part[a] != part[b]:
                first.append(a)
                second.append(b)
                part[part == part[b]] = part[a]
        # Not evenly spaced, so that no two choices are equally good.
        level = np.sort(rng.random(len(first)) ** 3)[::-1]
        children, sizes = link(np.array(first, int), np.array(second, int), n)
        nodes = most_stable(children, sizes, level, min_size)
        labels = label_nodes(children, nodes, n)
        found = [frozenset(np.flatnonzero(labels == k).tolist()) for k in range(len(nodes))]
        expected = excess_of_mass(children, sizes, level, min_size) if len(level) else []
        assert sorted(found, key=min) == expected
        several += len(found) > 1
    assert several >= 5


def test_most_stable_takes_two_long_branches_and_not_their_late_sum():
    # Two chains of 3 join at 0.9 and 0.8 and with each other at 0.1.
    children, sizes = link(np.array([0, 3, 1, 4, 0]), np.array([1, 4, 2, 5, 5]), 6)
    level = np.array([0.9, 0.9, 0.8, 0.8, 0.1])
    assert label_nodes(children, most_stable(children, sizes, level, 2), 6).tolist() == [
        *(0, 0, 0),
        *(1, 1, 1),
    ]
    # The chains join at 0.75 already: both together last longer, down to a last join at 0.1.
    children, sizes = link(np.array([0, 3, 1, 4, 0, 0]), np.array([1, 4, 2, 5, 5, 6]), 7)
    level = np.array([0.9, 0.9, 0.8, 0.8, 0.75, 0.1])
    assert label_nodes(children, most_stable(children, sizes, level, 2), 7).tolist() == [0] * 7
    assert most_stable(children, sizes, level, 8).tolist() == []
    with pytest.raises(ValueError, match="one position"):
        most_stable(children, sizes, level, 1)


# --- both methods ----------------------------------------------------------------------------


@both
@pytest.mark.parametrize("min_size", [1, 4, 20])
def test_the_curve_counts_the_cuts(tree, min_size):
    counts, levels = tree.n_clusters(min_size=min_size), tree.levels
    assert counts.shape == levels.shape
    some = np.unique(
        np.append(np.arange(0, len(levels), 7), np.arange(len(levels) - 12, len(levels)))
    )
    for i in some:
        assert tree.cut(float(levels[i]), min_size=min_size).n_clusters == counts[i]
    assert len(np.unique(counts)) > 2


@pytest.mark.parametrize("min_size", [1, 10])
def test_the_curve_with_background_counts_it(merged, min_size):
    counts = merged.n_clusters(min_size=min_size, drop_background=False)
    without = merged.n_clusters(min_size=min_size)
    assert (counts >= without).all()
    assert (counts > without).any()
    for i in range(0, len(counts), 9):
        found = merged.cut(float(merged.levels[i]), min_size=min_size, drop_background=False)
        assert found.n_clusters == counts[i]


@both
def test_levels_run_from_fine_to_coarse(tree):
    step = np.diff(tree.levels)
    assert (step < 0).all() if tree.method == "grow" else (step > 0).all()
    assert tree.method == "grow" or {0.25, 1.0, 2.0} <= set(tree.levels)
    assert tree.named_levels == ({} if tree.method == "grow" else {"pattern": 1.0, "crystal": 2.0})


@both
@pytest.mark.parametrize("min_size", [1, 10])
def test_a_number_of_clusters_is_met_from_below(tree, min_size):
    counts = tree.n_clusters(min_size=min_size)
    for n in (1, 2, 3, 4, 7, 50, 10_000):
        found = tree.cut(n_clusters=n, min_size=min_size)
        assert found.n_clusters == counts[counts <= n].max()
        assert found.settings["n_clusters"] == n
        assert found.settings["threshold"] is None
        again = tree.cut(found.settings["level"], min_size=min_size)
        np.testing.assert_array_equal(again.labels, found.labels)


def test_a_number_of_grown_clusters_is_met_where_they_are_large(grown):
    truth = simulation().labels
    found = grown.cut(n_clusters=4, min_size=20)  # with the liquid
    assert found.n_clusters == 4
    assert adjusted_rand_index(found, truth) > 0.9


def test_a_number_below_the_automatic_one_joins_grains():
    scan = simulate_scan((48, 44), (72, 68), n_grains=9, electrons=1000, probe_blur=0.6, seed=3)
    tree = scan.datacube.get_cluster_tree(progress_bar=False)
    automatic = tree.cut(min_size=5)
    assert automatic.n_clusters > 7
    found = tree.cut(n_clusters=7, min_size=5)
    assert found.n_clusters == 7
    assert found.settings["level"] > 1  # not a fine level with small clusters
    assert found.sizes.sum() >= automatic.sizes.sum()


def test_a_number_of_merged_clusters_is_met_next_to_the_automatic_level(merged):
    automatic = merged.cut()
    assert automatic.n_clusters == 3
    found = merged.cut(n_clusters=3)
    assert found.settings["level"] == 2
    np.testing.assert_array_equal(found.labels, automatic.labels)


def test_a_number_of_merged_clusters_is_not_taken_where_clusters_are_still_small():
    levels = np.array([0.9, 1.0, 100.0])
    tree = SimpleNamespace(method="merge", levels=levels, automatic_level=1.0)
    assert level_for(tree, np.array([2, 5, 2]), 2) == 100
    assert level_for(tree, np.array([5, 2, 2]), 2) == 1


def test_parts_of_the_mask_that_do_not_touch_cannot_be_one(scan):
    r_mask = np.ones(SCAN, bool)
    r_mask[:, 4] = False
    tree = cube_of(scan).get_cluster_tree(method="grow", r_mask=r_mask, **QUIET)
    assert tree.cut(n_clusters=2).n_clusters == 2
    with pytest.raises(ValueError, match="there are 2 clusters or more"):
        tree.cut(n_clusters=1)


@both
def test_small_clusters_are_dropped(tree):
    level = float(tree.levels[len(tree.levels) // 3])
    all_of_them = tree.cut(level)
    large = tree.cut(level, min_size=5)
    assert 0 < large.n_clusters < all_of_them.n_clusters
    assert large.sizes.min() >= 5
    kept = all_of_them.labels[large.labels >= 0]
    assert set(kept) == set(np.flatnonzero(all_of_them.sizes >= 5))


@both
def test_seeds_are_the_members_most_like_their_neighbours(tree):
    for threshold in ("auto", float(tree.levels[len(tree.levels) // 2])):
        found = tree.cut(threshold)
        assert found.n_clusters > 1
        for k, seed in enumerate(found.seeds):
            values = np.where(found.labels == k, found.similarity_mean, -np.inf)
            assert found.similarity_mean[tuple(seed)] == values.max()
    order = tree.cut().sizes if tree.method == "merge" else None
    if order is not None:
        assert (np.diff(order) <= 0).all()


def nothing_of(tree):
    return {name: getattr(tree, name) for name in ("first", "second", "level", "mask")}


@both
def test_arrays_are_read_only_and_pickling_keeps_them_so(tree):
    again = pickle.loads(pickle.dumps(tree))
    for found in (tree, again):
        for name in ("first", "second", "level", "mask"):
            with pytest.raises(ValueError, match="read-only"):
                getattr(found, name)[...] = 0
        with pytest.raises(TypeError):
            found.settings["rank"] = 1
    if tree.method == "merge":
        for name in ("automatic", "features", "background", "similarity"):
            assert not getattr(again, name).flags.writeable
    for threshold in ("auto", float(tree.levels[-3])):
        np.testing.assert_array_equal(again.cut(threshold).labels, tree.cut(threshold).labels)
    with pytest.raises(AttributeError):
        tree.method = "x"


@both
def test_repr(tree):
    name = "grow" if tree.method == "grow" else "merge"
    assert repr(tree) == f"ClusterTree('{name}', {len(tree.level)} joins, 24 x 20 scan positions)"


def test_a_tree_is_grown_or_merged(grown):
    with pytest.raises(ValueError, match="method='x' must be"):
        ClusterTree("x", **nothing_of(grown), settings={}, similarity=grown.similarity)


@pytest.mark.parametrize("method", ["grow", "merge"])
def test_a_file_holds_the_whole_tree(cube, tmp_path, method):
    tree = cube.get_cluster_tree(method=method, **QUIET)
    py4DSTEM.save(tmp_path / "tree.h5", cube)
    node = py4DSTEM.read(tmp_path / "tree.h5").tree("cluster_tree")
    assert type(node) is RealSlice  # opens without this package
    np.testing.assert_array_equal(node.data, tree.similarity_mean)
    again = ClusterTree.from_node(node)
    assert repr(again) == repr(tree)
    assert (again.pixel_size, again.pixel_units) == (2.5, "nm")
    assert dict(again.settings).keys() == dict(tree.settings).keys()
    for name in ("first", "second", "level", "mask", "automatic", "features", "background"):
        expected, found = getattr(tree, name), getattr(again, name)
        np.testing.assert_array_equal(found, expected)
        assert expected is None or found.dtype == expected.dtype
    np.testing.assert_array_equal(again.levels, tree.levels)
    np.testing.assert_array_equal(again.n_clusters(), tree.n_clusters())
    for threshold in ("auto", *tree.levels[:: max(1, len(tree.levels) // 8)].tolist()):
        a, b = tree.cut(threshold, min_size=2), again.cut(threshold, min_size=2)
        np.testing.assert_array_equal(b.labels, a.labels)
        np.testing.assert_array_equal(b.seeds, a.seeds)
        assert b.settings["threshold"] == a.settings["threshold"]
        assert (b.similarity is None) == (a.similarity is None)
        assert b.background == a.background


def test_a_tree_without_joins_survives_too(tmp_path):
    cube = cube_of(np.ones((4, 3, 12, 10)))
    cube.get_cluster_tree(method="grow", r_mask=0.5, name="none", **QUIET)  # no similarity
    one = np.zeros((4, 3), bool)
    one[1, 2] = True
    cube.get_cluster_tree(r_mask=one, **QUIET)
    py4DSTEM.save(tmp_path / "tree.h5", cube)
    read = py4DSTEM.read(tmp_path / "tree.h5")
    for name, n in (("none", 0), ("cluster_tree", 1)):
        tree = ClusterTree.from_node(read.tree(name))
        assert len(tree.level) == 0
        drop = {} if tree.method == "grow" else {"drop_background": False}
        for options in ({}, {"threshold": 0.5}, {"n_clusters": 2}, {"min_size": 2}):
            expected = 0 if "min_size" in options or name == "none" else n
            assert tree.cut(**options, **drop).n_clusters == expected


def test_only_a_tree_makes_a_tree(cube):
    cube.cluster(threshold=0.5, **QUIET)
    with pytest.raises(ValueError, match="'clusters' holds no cluster tree"):
        ClusterTree.from_node(cube.tree("clusters"))
    with pytest.raises(ValueError, match="holds no cluster tree"):
        ClusterTree.from_node(RealSlice(np.zeros((3, 4)), name="other"))
    with pytest.raises(ValueError, match="name='clusters' is taken"):
        cube.get_cluster_tree(name="clusters", **QUIET)


def test_returncalc(cube):
    assert cube.get_cluster_tree(method="grow", returncalc=False, **QUIET) is None
    assert ClusterTree.from_node(cube.tree("cluster_tree")).method == "grow"
    assert cube.cluster(returncalc=False, **QUIET) is None
    assert cube.clusters.settings["method"] == "merge"


# --- growth ----------------------------------------------------------------------------------


@pytest.mark.parametrize("min_size", [1, 3])
def test_cuts_equal_clusters_that_grew(min_size):
    cube = cube_of(simulation(2).datacube.data)
    similarity = cube.get_similarity(sigma=1, **QUIET)
    tree = cube.get_cluster_tree(method="grow", similarity=similarity, r_mask="otsu", **QUIET)
    levels = tree.levels
    numbers = set()
    for t in [-1, 0, 0.5, 0.9, 1, *levels[::25].tolist(), *np.linspace(0.6, 0.99, 8).tolist()]:
        cut = tree.cut(t, min_size=min_size)
        made = cube.cluster(
            threshold=t, min_size=min_size, similarity=similarity, r_mask="otsu", **QUIET
        )
        np.testing.assert_array_equal(cut.labels, made.labels)
        np.testing.assert_array_equal(cut.seeds, made.seeds)
        assert cut.settings == made.settings
        assert made.similarity is not None
        numbers.add(cut.n_clusters)
    assert len(numbers) > 5


@pytest.mark.parametrize("seed", [1, 3, 5, 7])
def test_stable_clusters_are_the_grains(seed):
    scan = simulation(seed, electrons=10_000)
    cube = cube_of(scan.datacube.data)
    q_mask = np.hypot(*(np.indices((48, 44)) - np.array([23.5, 21.5])[:, None, None])) > 4
    found = cube.cluster(method="grow", threshold="auto", q_mask=q_mask, sigma=1, **QUIET)
    assert found.settings["threshold"] == "auto"
    for k in range(scan.labels.max() + 1):
        grain = scan.labels == k
        if grain.sum() < 40:
            continue
        labels = found.labels[grain]
        label = np.bincount(labels[labels >= 0]).argmax()
        cluster = found.labels == label
        assert (cluster & grain).sum() / (cluster | grain).sum() > 0.8


def test_one_threshold_is_needed_for_growth_steps():
    found = cube_of(simulation().datacube.data).cluster(threshold="auto", **QUIET)
    with pytest.raises(ValueError, match="how 'clusters' grew is not known"):
        found.growth_steps(0)


# --- merging ---------------------------------------------------------------------------------


def test_the_default_is_the_automatic_cut(merged):
    cube = cube_of(simulation().datacube.data)
    found = cube.cluster(**QUIET)
    for expected in (merged.cut(), merged.cut(1), merged.cut("auto")):
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_array_equal(found.seeds, expected.seeds)
    assert found.settings == merged.cut().settings
    assert adjusted_rand_index(found, simulation().labels) > 0.95


def test_fine_cuts_are_nested(merged):
    levels = [0, *np.quantile(merged.levels[merged.levels < 1], [0.1, 0.5, 0.9, 0.97, 1])]
    maps = [merged.cut(float(t), drop_background=False).labels for t in levels]
    assert len({labels.max() for labels in maps}) > 3
    assert all(nested(a, b) for a, b in pairwise(maps))
    assert maps[0].max() + 1 == SHAPE[0] * SHAPE[1]


def test_beyond_the_automatic_level_regions_only_join(merged):
    levels = merged.levels[merged.levels >= merged.automatic_level]
    assert len(levels) >= 3
    maps = [merged.cut(float(t), drop_background=False).labels for t in (*levels, 1e6)]
    assert all(nested(a, b) for a, b in pairwise(maps))
    counts = [labels.max() + 1 for labels in maps[:-1]]
    assert (np.diff(counts) < 0).all()
    assert counts[-1] == 1


def test_any_kind_of_array_gives_the_same_clusters(wrap, merged):
    found = cube_of(wrap(simulation().datacube.data)).cluster(**QUIET)
    np.testing.assert_array_equal(found.labels, merged.cut().labels)
    assert found.settings["rank"] == merged.settings["rank"]


def test_threads_and_blocks_change_nothing(merged, monkeypatch):
    cube = cube_of(simulation().datacube.data)
    one = cube.get_cluster_tree(n_jobs=1, **QUIET)
    np.testing.assert_array_equal(one.features, merged.features)
    np.testing.assert_array_equal(one.level, merged.level)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    small = cube.get_cluster_tree(n_jobs=3, **QUIET)
    np.testing.assert_array_equal(small.automatic, merged.automatic)
    np.testing.assert_array_equal(small.level, merged.level)


CHANGES = {
    "transposed": (lambda d: d.transpose(1, 0, 2, 3), lambda m: m.T),
    "upside down": (lambda d: d[::-1], lambda m: m[::-1]),
    "mirrored": (lambda d: d[:, ::-1], lambda m: m[:, ::-1]),
    "turned detector": (lambda d: d[..., ::-1].swapaxes(2, 3), lambda m: m),
    "gain": (lambda d: d.astype(np.int32) * 7, lambda m: m),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("seed", first_quick([1, 5]))
def test_the_scan_may_lie_in_any_way(change, seed):
    data = simulation(seed).datacube.data
    of_scan, of_map = CHANGES[change]
    expected = cube_of(data).cluster(**QUIET)
    found = cube_of(np.ascontiguousarray(of_scan(data))).cluster(**QUIET)
    assert found.n_clusters >= 3
    assert same(found.labels, of_map(expected.labels))
    if change == "gain":
        assert found.settings["gain"] == pytest.approx(7 * expected.settings["gain"], rel=0.01)
        assert found.settings["noise"] == pytest.approx(7 * expected.settings["noise"])


def test_settings_tell_how(merged):
    settings = merged.cut(min_size=3, name="mine").settings
    expected = {
        "method": "merge",
        "threshold": "auto",
        "level": 2.0,
        "min_size": 3,
        "name": "mine",
        "drop_background": True,
        "n_background": 1,
        "r_mask": None,
        "q_mask": None,
    }
    assert {key: settings[key] for key in expected} == expected
    assert settings["gain"] == pytest.approx(1, abs=0.1)
    assert settings["offset"] == pytest.approx(0, abs=0.1)
    data = simulation().datacube.data
    binned = data.reshape(*SHAPE, 24, 2, 22, 2).sum(axis=(3, 5)).astype(float)
    variance = np.diff(binned, axis=1).var(axis=(0, 1)) / 2 / 4
    assert settings["noise"] == pytest.approx(np.sqrt(np.median(variance)), rel=0.1)
    assert merged.features.shape[2] == settings["rank"] >= 3
    assert {"py4dstem_clustering_version", "py4DSTEM_version"} <= set(settings.noted)
    coarse = merged.cut(5.0).settings
    assert (coarse["threshold"], coarse["level"]) == (5.0, 5.0)
    grown = cube_of(data).cluster(threshold=0.5, sigma=1, **QUIET).settings
    assert (grown["method"], grown["threshold"], grown["sigma"]) == ("grow", 0.5, 1)
    assert "n_background" not in grown


def test_the_rank_is_what_was_asked_for():
    cube = cube_of(simulation().datacube.data)
    tree = cube.get_cluster_tree(rank=5, **QUIET)
    assert tree.features.shape == (*SHAPE, 5)
    assert tree.settings["rank"] == 5
    found = cube.cluster(rank=np.int64(5), **QUIET)
    assert found.settings["rank"] == 5
    assert adjusted_rand_index(found, simulation().labels) > 0.9


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_grain(seed):
    scan = simulation(seed, n_grains=1)
    found = cube_of(scan.datacube.data).cluster(**QUIET)
    assert found.n_clusters == 1
    assert ((found.labels == 0) == (scan.labels == 0)).mean() > 0.97


@pytest.mark.parametrize("electrons", first_quick([1000, 100, 30_000]))
@pytest.mark.parametrize("speckle", [0, 0.5])
@pytest.mark.parametrize("calibrated", [True, False])
def test_liquid_is_no_grain(electrons, speckle, calibrated):
    cube = simulation(0, n_grains=0, speckle=speckle, electrons=electrons).datacube
    cube = DataCube(cube.data, calibration=cube.calibration) if calibrated else cube_of(cube.data)
    assert cube.cluster(**QUIET).n_clusters == 0
    found = cube.cluster(drop_background=False, **QUIET)
    assert found.n_clusters == 1
    assert found.background == (0,)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_is_no_grain(seed):
    data = np.random.default_rng(seed).poisson(3, (18, 14, 24, 22))
    cube = cube_of(data)
    assert cube.cluster(**QUIET).n_clusters <= 1
    assert cube.cluster(drop_background=False, **QUIET).n_clusters == 1


@pytest.mark.parametrize("value", [0, 3])
def test_an_empty_scan(value):
    cube = cube_of(np.full((5, 4, 12, 10), value))
    assert cube.cluster(**QUIET).n_clusters == 0
    found = cube.cluster(drop_background=False, **QUIET)
    assert (found.n_clusters, found.background) == (1, (0,))


def test_scan_positions_can_be_left_out():
    scan = simulation()
    cube = cube_of(scan.datacube.data)
    inside = scan.labels >= 0
    found = cube.cluster(r_mask=inside, **QUIET)
    assert (found.labels[~inside] == -1).all()
    assert adjusted_rand_index(found, scan.labels) > 0.95
    np.testing.assert_array_equal(found.settings["r_mask"], inside)
    tree = cube.get_cluster_tree(**QUIET)
    number = float(np.median(tree.similarity_mean))
    part = cube.cluster(r_mask=number, drop_background=False, **QUIET)
    np.testing.assert_array_equal(part.labels >= 0, tree.similarity_mean > number)
    assert part.settings["r_mask"] == number
    named = cube.cluster(r_mask="otsu", drop_background=False, **QUIET)
    high = named.labels >= 0
    assert 0 < high.sum() < high.size
    assert tree.similarity_mean[high].min() > tree.similarity_mean[~high].max()
    assert named.settings["r_mask"] == "otsu"


def test_detector_pixels_can_be_left_out():
    scan = simulation()
    q_mask = np.ones((48, 44), bool)
    q_mask[:, 30:] = False
    found = cube_of(scan.datacube.data).cluster(q_mask=q_mask, **QUIET)
    np.testing.assert_array_equal(found.settings["q_mask"], q_mask)
    assert adjusted_rand_index(found, scan.labels) > 0.9
    data = scan.datacube.data.copy()
    data[..., 30:] = np.random.default_rng(0).poisson(50, data[..., 30:].shape)
    other = cube_of(data)
    other.calibration.set_origin((23.5, 21.5))  # the direct beam may lie outside the mask
    other = other.cluster(q_mask=q_mask, **QUIET)
    assert same(other.labels, found.labels)


# --- background ------------------------------------------------------------------------------


def test_liquid_is_listed_or_dropped(merged):
    liquid = simulation().labels < 0
    kept = merged.cut(drop_background=False)
    (label,) = kept.background
    assert ((kept.labels == label) == liquid).mean() > 0.97
    dropped = merged.cut(drop_background=True)
    assert dropped.background == ()
    assert dropped.n_clusters == kept.n_clusters - 1
    np.testing.assert_array_equal(dropped.labels == -1, kept.labels == label)
    assert same(np.where(kept.labels == label, -1, kept.labels), dropped.labels)
    for found in (kept, dropped):
        assert found.settings["n_background"] == 1


@pytest.mark.parametrize("electrons", [100, 300, 1000, 10_000])
@pytest.mark.parametrize("seed", first_quick([0, 1, 3, 4]))
def test_a_grain_is_never_background(electrons, seed):
    scan = simulation(seed, electrons=electrons)
    found = cube_of(scan.datacube.data).cluster(drop_background=False, **QUIET)
    background = np.isin(found.labels, found.background)
    assert background.any()
    for k in range(scan.labels.max() + 1):
        assert background[scan.labels == k].mean() < 0.2
    assert (scan.labels[background] >= 0).mean() < 0.02


@pytest.mark.parametrize(("power", "background"), [(0.2, True), (0.35, False)])
def test_in_old_files_one_region_is_background_up_to_a_quarter_of_the_noise(power, background):
    features = np.full((6, 6, 4), power**0.5)  # the same at all positions
    found = find_background(features, np.zeros((6, 6)), np.zeros((6, 6), dtype=int))
    np.testing.assert_array_equal(found, background)


@pytest.mark.parametrize(("power", "background"), [(5, True), (20, False)])
def test_in_old_files_a_weak_region_is_background_beside_a_strong_one(power, background):
    shape, rank = (4, 2), 4
    features = np.ones((*shape, rank)) * np.sqrt([[100 / rank], [power / rank]])
    found = find_background(features, np.full(shape, 100.0), np.indices(shape)[1])
    np.testing.assert_array_equal(found, [[False, background]] * 4)


def test_a_cluster_is_background_if_most_of_it_is():
    shape, n = (6, 5), 30
    background = np.zeros(shape, dtype=bool)
    background.ravel()[:15] = True

    def tree(background):
        return ClusterTree(
            "merge", np.arange(n - 1), np.arange(1, n), np.zeros(n - 1), np.ones(shape, bool), {},
            np.full((*shape, 8), np.nan), np.zeros(shape, int), np.zeros((*shape, 2)), background,
        )  # fmt: skip

    half = tree(background)
    assert half.cut(drop_background=False).background == ()
    assert half.cut().n_clusters == half.n_clusters()[-1] == 1
    background.ravel()[15] = True
    most = tree(background)
    assert most.cut(drop_background=False).background == (0,)
    assert most.cut().n_clusters == most.n_clusters()[-1] == 0


def test_levels_have_names(merged):
    crystals, patterns = merged.cut(level="crystal"), merged.cut(level="pattern")
    np.testing.assert_array_equal(crystals.labels, merged.cut().labels)
    np.testing.assert_array_equal(patterns.labels, merged.cut(1.0).labels)
    assert (crystals.settings["level"], patterns.settings["level"]) == (2, 1)
    assert nested(patterns.labels, np.where(patterns.labels < 0, -1, crystals.labels))
    cube = cube_of(simulation().datacube.data)
    found = cube.cluster(level="pattern", **QUIET)
    np.testing.assert_array_equal(found.labels, patterns.labels)
    with pytest.raises(ValueError, match="level='x' must be one of 'pattern', 'crystal'"):
        merged.cut(level="x")
    with pytest.raises(ValueError, match="give no threshold"):
        merged.cut(1.5, level="crystal")
    with pytest.raises(ValueError, match="belongs to merging"):
        cube.cluster(method="grow", level="crystal", **QUIET)
    with pytest.raises(ValueError, match="add method='merge', or give level="):
        cube.cluster(threshold=3, **QUIET)


def test_a_twentieth_of_a_small_scan_is_a_stable_cluster():
    n = 480
    level = np.full(n - 1, 0.98)
    level[:29] = 0.99
    level[29] = 0.1  # between 30 positions and the other 450
    order = np.argsort(-level, kind="stable")
    tree = ClusterTree(
        "grow", order, order + 1, level[order], np.ones((24, 20), bool), {}, np.zeros((24, 20, 8))
    )
    assert sorted(tree.cut("auto").sizes.tolist()) == [30, 450]
    assert tree.cut("auto", min_size=31).n_clusters == 1


def test_new_clusters_know_their_background(merged):
    kept = merged.cut(drop_background=False)
    (label,) = kept.background
    others = [k for k in range(kept.n_clusters) if k != label]
    turned = kept.relabel([*others, label])
    assert turned.background == (kept.n_clusters - 1,)
    np.testing.assert_array_equal(turned.labels == turned.background[0], kept.labels == label)
    assert turned.remove(0).background == (kept.n_clusters - 2,)
    assert turned.remove(turned.background[0]).background == ()
    assert kept.join([label, others[0]]).background == ()
    assert turned.join((*turned.background, 0)).background == ()
    joined = turned.join([0, 1])
    assert joined.background == (kept.n_clusters - 2,)
    two = Clusters(
        *(kept.labels, kept.seeds, kept.similarity_mean), background=(label, others[0])
    ).join([label, others[0]])
    assert two.background == (min(label, others[0]),)
    with pytest.raises(ValueError, match="label 99 does not exist"):
        Clusters(kept.labels, kept.seeds, kept.similarity_mean, background=(99,))
    assert pickle.loads(pickle.dumps(kept)).background == kept.background


def test_files_keep_the_background(tmp_path):
    cube = cube_of(simulation().datacube.data)
    kept = cube.cluster(drop_background=False, **QUIET)
    cube.cluster(name="grains", **QUIET)
    path = tmp_path / "scan.h5"
    py4DSTEM.save(path, cube)
    read = py4DSTEM.read(path)
    assert read.get_clusters("clusters").background == kept.background == (0,)
    assert read.get_clusters("grains").background == ()
    gone = []
    with h5py.File(path, "r+") as file:  # as version 0.1.0 wrote it
        file.visit(lambda name: gone.append(name) if name.endswith("/background") else None)
        assert len(gone) == 2
        for name in gone:
            del file[name]
    old = py4DSTEM.read(path).get_clusters("clusters")
    assert old.background == ()
    np.testing.assert_array_equal(old.labels, kept.labels)


# --- arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "method"),
    [
        ({}, "merge"),
        ({"min_size": 2}, "merge"),
        ({"n_clusters": 2}, "merge"),
        ({"drop_background": False}, "merge"),
        ({"rank": 3}, "merge"),
        ({"threshold": 0.5}, "grow"),
        ({"threshold": "auto"}, "grow"),
        ({"sigma": 1}, "grow"),
        ({"subtract_mean": False}, "grow"),
        ({"method": "merge", "threshold": 2}, "merge"),
        ({"method": "grow"}, "grow"),
        ({"method": "grow", "n_clusters": 2}, "grow"),
    ],
)
def test_the_method_follows_from_the_arguments(cube, options, method):
    found = cube.cluster(**options, **QUIET)
    assert found.settings["method"] == method
    if method == "grow" and not {"threshold", "n_clusters"} & set(options):
        assert found.settings["threshold"] == 0.9
    assert (found.similarity is None) == (method == "merge")


def test_a_similarity_means_growth(cube):
    similarity = cube.get_similarity(**QUIET)
    found = cube.cluster(similarity=similarity, **QUIET)
    assert (found.settings["method"], found.settings["threshold"]) == ("grow", 0.9)


S = reference.symmetric(np.zeros((*SCAN, 4), np.float32))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"method": "grow", "rank": 3}, ValueError, "rank belongs to merging"),
        ({"threshold": 0.5, "rank": 3}, ValueError, "rank belongs to merging"),
        ({"method": "merge", "similarity": S}, ValueError, "similarity belongs to growth"),
        ({"method": "merge", "sigma": 1}, ValueError, "sigma belongs to growth"),
        ({"method": "merge", "subtract_mean": True}, ValueError, "subtract_mean belongs to growth"),
        ({"threshold": 0.5, "n_clusters": 2}, ValueError, "give only one"),
        ({"threshold": "auto", "n_clusters": 2}, ValueError, "give only one"),
        ({"threshold": 0.5, "drop_background": True}, ValueError, "drop_background knows no"),
        ({"drop_background": 1}, TypeError, "drop_background=1 must be True or False"),
        ({"rank": 0}, ValueError, "rank=0 must be at least 1"),
        ({"rank": 61}, ValueError, "rank=61 must be at most 60"),
        ({"rank": "x"}, TypeError, "rank='x' must be a whole number"),
        ({"rank": 2.0}, TypeError, r"rank=2\.0 must be a whole number"),
        ({"threshold": "x"}, ValueError, "threshold='x' must be a number or 'auto'"),
        ({"threshold": 1.5}, ValueError, r"threshold=1\.5 must be a finite number from -1 to 1"),
        ({"method": "merge", "threshold": -0.1}, ValueError, r"threshold=-0\.1 must be a finite"),
        ({"method": "merge", "threshold": np.nan}, ValueError, "threshold=nan must be a finite"),
        ({"threshold": True}, TypeError, "threshold=True must be a number"),
        ({"method": "x"}, ValueError, "method='x' must be one of 'merge', 'grow'"),
        ({"n_clusters": 0}, ValueError, "n_clusters=0 must be at least 1"),
        ({"n_clusters": 1.5}, TypeError, "n_clusters=1.5 must be a whole number"),
        ({"min_size": 0}, ValueError, "min_size=0 must be at least 1"),
        ({"similarity": S, "sigma": 1}, ValueError, "sigma cannot change a similarity"),
        (
            {"similarity": reference.symmetric(np.zeros((3, 4, 4), np.float32))},
            ValueError,
            "must fit this scan",
        ),
    ],
)
def test_wrong_arguments(cube, options, error, match):
    with pytest.raises(error, match=match):
        cube.cluster(**options, **QUIET)
    assert not cube.treekeys


@both
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": "x"}, "threshold='x' must be"),
        ({"threshold": -2}, "threshold=-2 must be"),
        ({"threshold": 0.5, "n_clusters": 3}, "give only one"),
        ({"min_size": 0}, "min_size=0"),
        ({"n_clusters": -1}, "n_clusters=-1"),
        ({"name": "a/b"}, "name='a/b'"),
    ],
)
def test_wrong_cuts(tree, options, match):
    with pytest.raises(ValueError, match=match):
        tree.cut(**options)


def test_growth_knows_no_background(grown):
    for call in (grown.cut, grown.n_clusters):
        with pytest.raises(ValueError, match="drop_background knows no background"):
            call(drop_background=False)


# --- dendrogram ----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("min_size", [1, 8])
def test_branches_account_for_every_count(tree, min_size):
    """Only joins, and clusters that reach `min_size`, change the number of clusters."""
    joins, level, n_leaves = tree.branches(min_size=min_size)
    assert len(np.unique(joins)) == joins.size  # each is joined once
    assert (joins < n_leaves + np.arange(len(joins))[:, None]).all()
    levels = tree.levels
    if tree.method == "grow":
        counts = tree.n_clusters(min_size=min_size)
        joined = np.array([(level == here).sum() for here in levels])
        born = np.diff(counts, prepend=0) + joined
        assert (born >= 0).all()
        assert born.sum() == n_leaves
        assert (np.diff(level) <= 0).all()
    else:
        counts = tree.n_clusters(drop_background=False)
        for here, count in zip(levels, counts, strict=True):
            if here >= 1:
                assert count == n_leaves - (level <= here).sum()
        assert (np.diff(level) >= 0).all()


@both
def test_plot(tree):
    left, right = tree.plot(min_size=3, n_leaves=4)
    curve = left.lines[0]
    np.testing.assert_array_equal(curve.get_xdata(), tree.levels)
    np.testing.assert_array_equal(curve.get_ydata(), tree.n_clusters(min_size=3))
    joins, level, _ = tree.branches(min_size=3)
    drawn = min(len(joins), 3)
    bars = [
        line for line in right.lines
        if line.get_transform() == right.transData and len(set(line.get_ydata())) == 1
    ]  # fmt: skip
    assert len(bars) == drawn
    np.testing.assert_allclose([line.get_ydata()[0] for line in bars], level[len(level) - drawn :])
    stems = [line for line in right.lines if len(set(line.get_xdata())) == 1]
    places = [line.get_xdata()[0] for line in stems]
    assert len(set(places)) == len(places) == 2 * drawn  # no two branches at one place
    for ax in (left, right):
        ax.figure.canvas.draw()
        assert ax.get_title()
        assert "0" not in [
            text.get_text() for text in ax.get_yticklabels() if ax.get_yscale() == "log"
        ]
    axes = plt.subplots(1, 2)[1]
    assert tree.plot(axes) is axes
    plt.close("all")
    with pytest.raises(ValueError, match="n_leaves=1 must be"):
        tree.plot(n_leaves=1)


@both
@pytest.mark.parametrize("min_size", [1, 8])
def test_leaves_have_a_place(tree, min_size):
    """Each leaf has a position of its own, in the mask, and the last joins part these positions."""
    joins, level, n_leaves = tree.branches(min_size=min_size)
    places = tree.leaf_places(min_size=min_size)
    assert len(places) == n_leaves == len(set(places.tolist()))
    assert tree.mask.flat[places].all()
    # Cut just below the last join, its two branches hold different clusters.
    below = {n_leaves + i: set() for i in range(len(joins))} | {k: {k} for k in range(n_leaves)}
    for i, (a, b) in enumerate(joins.tolist()):
        below[n_leaves + i] = below[a] | below[b]
    if not len(joins) or (tree.method == "merge" and level[-1] <= 1):
        return
    step = 1e-9 if tree.method == "grow" else -1e-9
    options = {} if tree.method == "grow" else {"drop_background": False}
    labels = tree.cut(float(level[-1] + step * abs(level[-1])), **options).labels.ravel()
    sides = [{int(labels[places[k]]) for k in below[side]} for side in joins[-1].tolist()]
    assert not sides[0] & sides[1]


def test_the_ends_of_a_dendrogram_have_the_numbers_and_colours_of_the_clusters():
    tree = cube_of(simulation().datacube.data).get_cluster_tree(**QUIET)
    clusters = tree.cut(min_size=3)
    right = tree.plot(min_size=3)[1]
    names = [text.get_text() for text in right.get_xticklabels()]
    assert {name for name in names if name.isdigit()} == {str(k) for k in range(len(clusters))}
    colors = cluster_colors(clusters.labels, clusters.n_clusters)
    drawn = [line.get_color() for line in right.lines]
    for color in colors:
        assert any(not isinstance(one, str) and np.allclose(one, color) for one in drawn)
    plt.close("all")


def test_plot_of_a_tree_without_joins():
    scan = cube_of(simulation().datacube.data[:1, :1])
    scan.get_cluster_tree(method="grow", **QUIET).plot()
    plt.close("all")
