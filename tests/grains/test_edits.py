"""Edits by hand, as plain actions that a script repeats."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import lru_cache

import numpy as np
import py4DSTEM
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py4DSTEM import DataCube

from py4dstem_clustering import Clusters, cluster_names, edit_clusters, simulate_scan
from py4dstem_clustering.grains.actions import MAX_NAME, action_text, check_action
from py4dstem_clustering.grains.averages import keep_clusters
from py4dstem_clustering.grains.edits import stroke_mask
from py4dstem_clustering.grains.splitting import finer_level

QUIET = {"progress_bar": False}
SHAPE = (24, 20)
LABELS = np.array(
    [
        [0, 0, 0, 1, 1, -1],
        [0, 0, 0, 1, 1, -1],
        [0, 2, 2, 2, -1, -1],
        [3, 3, 2, 2, -1, 4],
    ]
)


@lru_cache
def scan():
    return simulate_scan(SHAPE, (48, 44), n_grains=3, seed=1).datacube.data


@lru_cache
def tree_of(method):
    return DataCube(scan()).get_cluster_tree(method=method, **QUIET)


@pytest.fixture
def made():
    """Five clusters whose mean similarity falls in reading order."""
    seeds = [np.argwhere(k == LABELS)[0] for k in range(5)]
    mean = np.linspace(0.9, 0.1, LABELS.size).reshape(LABELS.shape)
    return Clusters(LABELS, seeds, mean, {"method": "merge"}, background=(1,))


# --- each action -----------------------------------------------------------------------------


def test_join(made):
    found = edit_clusters(made, ["join(at=[[0, 4], [3, 5]])"])
    wanted = np.where(LABELS == 4, 1, LABELS)
    np.testing.assert_array_equal(found.labels, wanted)
    same = made.join([1, 4])
    np.testing.assert_array_equal(found.labels, same.labels)
    np.testing.assert_array_equal(found.seeds, same.seeds)
    assert found.background == same.background == ()
    np.testing.assert_array_equal(made.labels, LABELS)
    assert found.settings["edits"] == ("join(at=[[0, 4], [3, 5]])",)


def test_drop(made):
    found = edit_clusters(made, ["drop(at=[0, 0])"])
    same = made.remove(0)
    np.testing.assert_array_equal(found.labels, same.labels)
    np.testing.assert_array_equal(found.seeds, same.seeds)
    assert found.background == same.background == (0,)


def test_paint_and_erase(made):
    found = edit_clusters(made, ["paint(to=[2, 1], stroke=[[0, 0], [0, 2]])"])
    wanted = LABELS.copy()
    wanted[0, :3] = 2
    np.testing.assert_array_equal(found.labels, wanted)
    assert found.seeds[0].tolist() == [1, 0]  # the best position that is left
    assert found.seeds[2].tolist() == [2, 1]  # the old seed stays
    new = edit_clusters(made, ["paint(to=None, stroke=[[1, 5], [3, 5]], radius=0)"])
    wanted = LABELS.copy()
    wanted[1:, 5] = 4  # the last cluster is covered, and a new one takes its number
    np.testing.assert_array_equal(new.labels, wanted)
    assert new.seeds[4].tolist() == [1, 5]
    gone = edit_clusters(made, [{"do": "erase", "stroke": [[3, 0]], "radius": 1}])
    wanted = LABELS.copy()
    wanted[2, 0] = wanted[3, :2] = -1
    wanted[wanted == 4] = 3
    np.testing.assert_array_equal(gone.labels, wanted)


@pytest.mark.parametrize("radius", [0, 1, 1.5, 3])
def test_the_brush_covers_a_disk_along_its_way(radius):
    shape, stroke = (9, 12), [[1, 2], [7, 5], [7, 11]]
    wanted = np.zeros(shape, bool)
    for (x0, y0), (x1, y1) in [((1, 2), (7, 5)), ((7, 5), (7, 11))]:
        for t in np.linspace(0, 1, max(abs(x1 - x0), abs(y1 - y0)) + 1):
            middle = round(x0 + t * (x1 - x0)), round(y0 + t * (y1 - y0))
            for x, y in np.ndindex(shape):
                wanted[x, y] |= np.hypot(x - middle[0], y - middle[1]) <= radius
    np.testing.assert_array_equal(stroke_mask(shape, stroke, radius), wanted)


@pytest.mark.parametrize("method", ["merge", "grow"])
def test_split_at_a_finer_level(method):
    tree = tree_of(method)
    cut = tree.cut(n_clusters=2) if method == "merge" else tree.cut(tree.levels[-1])
    member = cut.labels == 0
    level = finer_level(tree, member, 5)
    at = cut.members(0)[3].tolist()
    found = edit_clusters(cut, [action_text("split", at=at, level=level, min_size=5)], tree=tree)
    n_new = found.n_clusters - cut.n_clusters
    assert n_new >= 1
    inside = found.labels[member]
    assert set(inside) == {0, *range(cut.n_clusters, found.n_clusters)}
    sizes = np.bincount(inside)
    assert sizes[0] == sizes.max()
    assert sizes[sizes > 0].min() >= 5
    np.testing.assert_array_equal(found.labels[~member], cut.labels[~member])
    # The pieces are those of the finer cut, but for positions in pieces that are too small.
    drop = {"drop_background": False} if method == "merge" else {}
    fine = tree.cut(level, **drop).labels
    large = np.isin(fine, [k for k in set(fine[member]) if (fine[member] == k).sum() >= 5])
    pairs = set(zip(found.labels[member & large], fine[member & large], strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    # Just above this level the cluster is whole: it is the coarsest at which it falls apart.
    steps = np.sort(tree.levels)
    coarser = steps[steps > level][0] if method == "merge" else steps[steps < level][-1]
    with pytest.raises(ValueError, match="is one piece at level"):
        edit_clusters(cut, [action_text("split", at=at, level=coarser, min_size=5)], tree=tree)


def test_a_cluster_without_pieces_has_no_finer_level():
    tree = tree_of("merge")
    assert finer_level(tree, tree.cut(n_clusters=2).labels == 0, 10**6) is None
    one = np.zeros(SHAPE, bool)
    one[3, 4] = True
    assert finer_level(tree, one) is None


# --- names -----------------------------------------------------------------------------------


def test_names_follow_their_clusters(made):
    named = edit_clusters(made, ["name(at=[2, 1], name='gold cube')", "name(at=[3, 5], name='b')"])
    assert cluster_names(named) == {2: "gold cube", 4: "b"}
    assert cluster_names(named.relabel([4, 3, 2, 1, 0])) == {0: "b", 2: "gold cube"}
    assert cluster_names(named.remove([0, 4])) == {1: "gold cube"}
    again = edit_clusters(named, ["name(at=[2, 2], name='new')"])
    assert cluster_names(again) == {2: "new", 4: "b"}
    # The position at which the name was given is painted over: it stays with the cluster.
    painted = edit_clusters(named, ["paint(to=[0, 0], stroke=[[2, 1]])"])
    assert cluster_names(painted) == {2: "gold cube", 4: "b"}
    assert painted.labels[2, 1] == 0
    joined = edit_clusters(named, ["join(at=[[2, 2], [3, 5]])"])
    assert cluster_names(joined) == {2: "b"}  # the name that was given last
    joins = ["join(at=[[2, 2], [3, 5]])", "join(at=[[2, 2], [3, 0]])"]
    names = ["name(at=[2, 1], name='a')", "name(at=[3, 0], name='c')", "name(at=[3, 5], name='b')"]
    assert cluster_names(edit_clusters(made, [*names, *joins])) == {2: "b"}
    dropped = edit_clusters(named, ["drop(at=[2, 2])"])
    assert cluster_names(dropped) == {3: "b"}
    assert cluster_names(made) == {}


def test_damaged_names_are_an_error(made):
    with pytest.raises(ValueError, match="must be 'rx ry name'"):
        cluster_names(replace(made, settings={"names": ("gold",)}))
    with pytest.raises(ValueError, match="hold 3, which must be 'rx ry name'"):
        cluster_names(replace(made, settings={"names": 3}))
    outside = replace(made, settings={"names": ("90 90 gold",)})
    assert cluster_names(outside) == {}


def test_a_file_keeps_edits_and_names(tmp_path):
    cube = DataCube(scan(), name="cube")
    tree = tree_of("merge")
    actions = [
        "erase(stroke=[[2, 3], [5, 9]], radius=2)",
        f"name(at={tree.cut().members(0)[0].tolist()}, name='Würfel, \"a\"/b')",
    ]
    edited = edit_clusters(tree.cut(), actions)
    keep_clusters(cube, edited)
    py4DSTEM.save(tmp_path / "scan.h5", cube)
    read = py4DSTEM.read(tmp_path / "scan.h5")
    found = read.get_clusters("clusters")
    assert found.settings["edits"] == edited.settings["edits"]
    assert cluster_names(found) == cluster_names(edited) == {0: 'Würfel, "a"/b'}
    again = edit_clusters(tree.cut(), found.settings["edits"])
    np.testing.assert_array_equal(again.labels, found.labels)
    assert "edits" not in dict(found.settings)  # they are no options of `cluster`
    assert "names" not in dict(found.settings)
    assert "edited manually: erase(stroke=[[2, 3], [5, 9]], radius=2.0), name(" in found.describe()


def test_the_methods_text_shortens_long_strokes():
    stroke = [[0, k % 6] for k in range(100)]
    start = tree_of("merge").cut()
    text = edit_clusters(start, [{"do": "erase", "stroke": stroke}]).describe()
    assert "edited manually: erase(stroke=[[0, 0], [0, 1]," in text
    assert "...)." in text
    assert len(text) < len(start.describe()) + 110


# --- any actions -----------------------------------------------------------------------------


def places(draw):
    return [draw(st.integers(0, LABELS.shape[0] - 1)), draw(st.integers(0, LABELS.shape[1] - 1))]


@st.composite
def action(draw):
    what = draw(st.sampled_from(["join", "paint", "erase", "drop", "name"]))
    stroke = [places(draw) for _ in range(draw(st.integers(1, 3)))]
    radius = draw(st.sampled_from([0, 1, 1.5]))
    return {
        "join": {"do": what, "at": [places(draw), places(draw)]},
        "paint": {
            "do": what,
            "to": draw(st.none() | st.just(places(draw))),
            "stroke": stroke,
            "radius": radius,
        },
        "erase": {"do": what, "stroke": stroke, "radius": radius},
        "drop": {"do": what, "at": places(draw)},
        "name": {"do": what, "at": places(draw), "name": draw(st.sampled_from("ab"))},
    }[what]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(action(), max_size=6))
def test_actions_one_by_one_are_the_same_as_all_at_once(actions):
    seeds = [np.argwhere(k == LABELS)[0] for k in range(5)]
    mean = np.linspace(0.9, 0.1, LABELS.size).reshape(LABELS.shape)
    start = now = Clusters(LABELS, seeds, mean, {"method": "merge"}, background=(1,))
    done = []
    for item in actions:
        with suppress(ValueError):  # a position in no cluster, or two in one
            now = edit_clusters(now, [item])
            done.append(item)
    for texts in (done, now.settings.get("edits", ())):
        once = edit_clusters(start, texts)
        np.testing.assert_array_equal(once.labels, now.labels)
        np.testing.assert_array_equal(once.seeds, now.seeds)
        assert once.background == now.background
        assert cluster_names(once) == cluster_names(now)
    for label, seed in enumerate(now.seeds):
        assert now.labels[tuple(seed)] == label
    assert set(cluster_names(now)) <= set(range(now.n_clusters))


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ("drop(at=[3, 4]", ValueError, "cannot be read"),
        ("drop", ValueError, "cannot be read"),
        ("os.remove(at=[3, 4])", ValueError, "cannot be read"),
        ("drop(at=open('x'))", ValueError, "cannot be read"),
        ("(" * 500, ValueError, "cannot be read"),
        ("join([0, 1])", ValueError, "by their numbers"),
        ("remove(at=[0, 1])", ValueError, "action 'remove' is unknown"),
        ({"at": [0, 1]}, ValueError, "action None is unknown"),
        ("drop(to=[0, 1])", ValueError, "has the options at, not to"),
        ("drop(at=[0, 1, 2])", ValueError, "must be a scan position"),
        ("drop(at=3)", TypeError, "must be a scan position"),
        ("drop(at=[0.5, 1])", TypeError, "at=0.5"),
        ("drop(at=[-1, 1])", ValueError, "at=-1"),
        ("drop(at=[4, 1])", ValueError, r"lies outside of \(4, 6\)"),
        ("join(at=[[0, 0], [0, 6]])", ValueError, "lies outside"),
        ("paint(to=[0, 9], stroke=[[0, 0]])", ValueError, "lies outside"),
        ("erase(stroke=[[9, 0]])", ValueError, "lies outside"),
        ("erase(stroke=[])", ValueError, "at least one"),
        ("erase(stroke=3)", TypeError, "list of scan positions"),
        ("erase(stroke=[[0, 0]], radius=-1)", ValueError, "radius=-1"),
        ("split(at=[0, 0], level=1)", ValueError, "needs the tree"),
        ("split(at=[0, 0], level='x')", TypeError, "level='x'"),
        ("split(at=[0, 0], level=1, min_size=0)", ValueError, "min_size=0"),
        ("name(at=[0, 0], name='')", ValueError, "1 to 80 letters"),
        (f"name(at=[0, 0], name={'x' * (MAX_NAME + 1)!r})", ValueError, "1 to 80 letters"),
        ("name(at=[0, 0], name='a\\nb')", ValueError, "one line"),
        ("name(at=[0, 0], name=3)", TypeError, "must be a text"),
        (3, TypeError, "must be a text such as"),
    ],
)
def test_wrong_actions(made, item, error, message):
    with pytest.raises(error, match=message):
        edit_clusters(made, ["erase(stroke=[[0, 0]])", item])


def test_actions_that_find_nothing(made):
    with pytest.raises(ValueError, match=r"drop: position \[0, 5\] lies in no cluster"):
        edit_clusters(made, ["drop(at=[0, 5])"])
    with pytest.raises(ValueError, match="lie in one cluster"):
        edit_clusters(made, ["join(at=[[0, 0], [0, 1]])"])
    with pytest.raises(TypeError, match="list of actions"):
        edit_clusters(made, "drop(at=[0, 0])")
    with pytest.raises(TypeError, match="clusters must be Clusters"):
        edit_clusters(LABELS, [])
    with pytest.raises(TypeError, match="clusters must be Clusters"):
        cluster_names(LABELS)
    with pytest.raises(ValueError, match="must fit this scan"):
        edit_clusters(made, [], tree=tree_of("merge"))
    with pytest.raises(TypeError, match="tree must be a ClusterTree"):
        edit_clusters(made, [], tree=made)


def test_texts_of_actions():
    assert action_text("drop", at=np.array([3, 4])) == "drop(at=[3, 4])"
    assert check_action("paint(to=None, stroke=[(1, 2)])") == (
        "paint",
        {"to": None, "stroke": [[1, 2]], "radius": 0.0},
    )
