"""Clusters edited by hand in the window, undone, repeated by a script."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from driving import (
    QUIET,
    SHAPE,
    click,
    drag,
    make_cube,
    mouse,
    pictures,
    press,
    push,
    said,
    same_clusters,
    size_slider,
    slider,
    title,
    tree_of,
)

from py4dstem_clustering import cluster_names, edit_clusters
from py4dstem_clustering.explore.coloring import UNKNOWN, orientation_colors, phase_colors
from py4dstem_clustering.explore.history import History, State
from py4dstem_clustering.explore.tools import TEXTS
from py4dstem_clustering.kernels import virtual
from py4dstem_clustering.plotting.style import nth_color


@pytest.fixture
def cube():
    return make_cube()


@pytest.fixture
def explorer(cube):
    found = cube.explore_clusters(tree=tree_of("merge"), **QUIET)
    found.set(n_clusters=4, min_size=4)
    return found


def inside(explorer, label, k=0):
    """A position of a cluster, as plain numbers."""
    return explorer.clusters.members(label)[k].tolist()


def repeated(explorer, cube):
    """What a script makes of the settings of the window."""
    made = explorer.settings
    cut = {key: made[key] for key in ("threshold", "n_clusters", "min_size")}
    tree = tree_of(made["method"])
    return edit_clusters(tree.cut(**cut, name="explored"), made["edits"], tree=tree)


# --- each tool -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["button", "key"])
def test_join_two_clusters(explorer, cube, how):
    before = explorer.clusters
    a, b = inside(explorer, 1, 2), inside(explorer, 3, 1)
    push(explorer, "join") if how == "button" else press(explorer, "j")
    assert said(explorer) == TEXTS["join"]
    click(explorer, *a, "label_ax")
    assert explorer.edits == ()
    assert said(explorer) == "Now click the cluster that it joins."
    assert pictures(explorer)._first.get_data()[1] == [a[0]]
    click(explorer, *b, "image_ax")
    assert explorer.edits == (f"join(at=[{a}, {b}])",)
    np.testing.assert_array_equal(explorer.clusters.labels, before.join([1, 3]).labels)
    assert title(explorer) == f"{before.n_clusters - 1} clusters, 1 edit"
    same_clusters(repeated(explorer, cube), explorer.clusters)
    assert len(pictures(explorer)._first.get_data()[0]) == 0


def test_the_first_of_two_clusters_may_be_clicked_again(explorer):
    press(explorer, "j")
    click(explorer, *inside(explorer, 1))
    click(explorer, *inside(explorer, 1, 3))  # the same cluster
    assert explorer.edits == ()
    press(explorer, "escape")
    assert explorer._screen.tool.value == "join"
    click(explorer, *inside(explorer, 2))
    assert explorer.edits == ()
    press(explorer, "escape", "escape")
    assert explorer._screen.tool.value == "look"


def test_split_a_cluster(explorer, cube, monkeypatch):
    before = explorer.clusters
    push(explorer, "split")
    click(explorer, *inside(explorer, 0, 5))
    after = explorer.clusters
    assert after.n_clusters > before.n_clusters
    np.testing.assert_array_equal(after.labels[before.labels > 0], before.labels[before.labels > 0])
    same_clusters(repeated(explorer, cube), after)
    monkeypatch.setattr("py4dstem_clustering.explore.tools.PIECE_SHARE", 0.9)
    click(explorer, *inside(explorer, 0, 5))
    assert said(explorer).startswith("This cluster has no two pieces")


def test_drop_a_cluster(explorer, cube):
    before = explorer.clusters
    press(explorer, "d")
    click(explorer, *inside(explorer, 2))
    same_clusters(repeated(explorer, cube), explorer.clusters)
    np.testing.assert_array_equal(explorer.clusters.labels, before.remove(2).labels)
    rx, ry = np.argwhere(explorer.clusters.labels < 0)[0]
    click(explorer, rx, ry)
    assert said(explorer).startswith("This position is in no cluster")
    assert len(explorer.edits) == 1


def test_paint_and_erase(explorer, cube):
    before = explorer.clusters.labels.copy()
    press(explorer, "b", "]")
    assert "radius 2" in said(explorer)
    start, end = inside(explorer, 0), [20, 3]
    drag(explorer, [start, (10, 8), end])
    assert explorer.edits == (f"paint(to={start}, stroke=[{start}, [10, 8], {end}], radius=2.0)",)
    after = explorer.clusters.labels
    x, y = np.indices(SHAPE)
    assert (after[np.hypot(x - 20, y - 3) <= 2] == after[tuple(start)]).all()
    assert (after == before).sum() > 300
    assert len(pictures(explorer)._brush.get_data()[0]) == 0
    press(explorer, "[", "[", "e")
    drag(explorer, [(5, 5)])
    assert explorer.edits[1] == "erase(stroke=[[5, 5]], radius=0.0)"
    assert explorer.clusters.labels[5, 5] == -1
    push(explorer, "paint")
    drag(explorer, [(5, 5)])  # from outside of the clusters: a new one
    assert explorer.edits[2].startswith("paint(to=None")
    assert explorer.clusters.sizes[explorer.clusters.labels[5, 5]] == 1
    same_clusters(repeated(explorer, cube), explorer.clusters)


def test_a_stroke_that_leaves_the_picture_ends_where_it_left(explorer):
    press(explorer, "e")
    ax, label_ax = pictures(explorer).pattern_ax, pictures(explorer).label_ax
    mouse(explorer, label_ax, 4, 6)
    mouse(explorer, ax, 4, 6, "motion_notify_event")
    mouse(explorer, ax, 4, 6, "button_release_event")
    assert explorer.edits == ("erase(stroke=[[6, 4]], radius=1.0)",)
    mouse(explorer, label_ax, 9, 9, "motion_notify_event")
    assert len(explorer.edits) == 1


def test_name_a_cluster(explorer, cube):
    press(explorer, "n")
    at = inside(explorer, 1)
    click(explorer, *at)
    press(explorer, *"Mg", "x", "backspace", "O", "space", "j", "ctrl+z", "left")
    assert said(explorer) == "Name: MgO j_   (Enter: done, Esc: leave)"
    press(explorer, "enter")
    assert explorer.edits == (f"name(at={at}, name='MgO j')",)
    assert cluster_names(explorer.clusters) == {1: "MgO j"}
    assert [text.get_text() for text in pictures(explorer).label_ax.texts] == ["MgO j"]
    click(explorer, *inside(explorer, 2))
    press(explorer, "a", "escape")
    click(explorer, *inside(explorer, 2))
    press(explorer, " ", "enter")  # an empty name is none
    assert len(explorer.edits) == 1
    same_clusters(repeated(explorer, cube), explorer.clusters)
    assert cluster_names(explorer.keep("named")) == {1: "MgO j"}


@pytest.mark.parametrize("where", ["pattern_ax", "average_ax"])
def test_a_disk_of_the_pattern(explorer, cube, where):
    first = pictures(explorer).image_ax.images[0].get_array().copy()
    click(explorer, 3, 4)
    push(explorer, "disk")
    press(explorer, "]")
    click(explorer, 30.2, 11.7, where)
    qx, qy = explorer.settings["disk"][0]
    assert (round(qx, 1), round(qy, 1)) == (30.2, 11.7)
    assert explorer.settings["disk"][1] == 3
    mask = cube.make_detector(cube.Qshape, "circle", explorer.settings["disk"])
    image = (cube.data * mask).sum(axis=(2, 3))
    low, high = np.percentile(image, (0.5, 99.5))
    shown = pictures(explorer).image_ax.images[0].get_array()
    wanted = np.clip((image - low) / (high - low), 0, 1)
    np.testing.assert_allclose(shown[..., 0] / 255, wanted, atol=0.51 / 255)
    assert pictures(explorer).image_ax.get_title() == "disk at 30, 12, radius 3"
    click(explorer, 9, 9, "label_ax")  # shows the pattern, as without the tool
    assert explorer.position == (9, 9)
    click(explorer, 9, 9, "image_ax")
    np.testing.assert_array_equal(pictures(explorer).image_ax.images[0].get_array(), first)
    assert explorer.settings["disk"] is None
    for center, radius in (((48, 3), 2), ((3, 44), 2), ((3, 3), 0)):
        with pytest.raises(ValueError, match=r"center=4|radius=0"):
            explorer.show_disk(center, radius)


# --- undo and redo ---------------------------------------------------------------------------


def test_undo_and_redo(explorer):
    first = explorer.clusters
    explorer.edit(f"drop(at={inside(explorer, 0)})")
    second = explorer.clusters
    explorer.edit(f"drop(at={inside(explorer, 0)})")
    third = explorer.clusters
    press(explorer, "u")
    same_clusters(explorer.clusters, second)
    push(explorer, "undo")
    same_clusters(explorer.clusters, first)
    press(explorer, "ctrl+y", "y")
    same_clusters(explorer.clusters, third)
    push(explorer, "redo")  # there is no more
    same_clusters(explorer.clusters, third)
    press(explorer, "ctrl+z")
    explorer.edit("erase(stroke=[[3, 3]])")  # what was undone is gone
    press(explorer, "y")
    assert len(explorer.edits) == 2
    assert explorer.edits[1].startswith("erase")


def test_another_cut_takes_the_edits_with_it_and_undo_brings_them_back(explorer):
    explorer.edit(f"drop(at={inside(explorer, 0)})")
    edited = explorer.clusters
    for k in (3, 2, 1):
        slider(explorer).set_val(k)
    assert explorer.edits == ()
    assert said(explorer).startswith("Another cut")
    push(explorer, "undo")  # the slider counts as one step
    same_clusters(explorer.clusters, edited)
    assert len(explorer.edits) == 1
    press(explorer, "y")
    assert explorer.edits == ()


def test_an_edit_that_cannot_be_done_changes_nothing(explorer):
    before = explorer.clusters
    with pytest.raises(ValueError, match="is unknown"):
        explorer.edit("melt(at=[3, 4])")
    with pytest.raises(ValueError, match="lies outside"):
        explorer.edit("drop(at=[30, 4])")
    assert explorer.clusters is before
    assert explorer.undo().n_clusters == explorer.tree.cut().n_clusters  # before `set`


def test_the_history():
    tree = tree_of("merge")
    states = [State(tree, k) for k in range(1, 6)]
    history = History(states[0])
    assert not history.step(-1)
    assert not history.step(1)
    for state in states[1:]:
        history.push(state)
    assert history.now is states[-1]
    assert history.step(-1)  # cuts in a row are one step
    assert history.now is states[0]
    edited = State(tree, 1, {}, ("drop(at=[0, 0])",))
    history.push(edited)
    assert not history.step(1)
    history.push(states[2])
    assert history.step(-1)
    assert history.now is edited


def test_the_history_forgets(monkeypatch):
    monkeypatch.setattr("py4dstem_clustering.explore.history.MAX_UNDO", 3)
    tree = tree_of("merge")
    history = History(State(tree, 1))
    for k in range(10):
        history.push(State(tree, 1, {}, ("x",) * k))
    assert [history.step(-1) for _ in range(5)] == [True, True, True, False, False]
    assert history.now.edits == ("x",) * 6


# --- colours ---------------------------------------------------------------------------------


def shown_colors(explorer):
    return pictures(explorer).label_ax.images[0].get_array()[..., :3].astype(float)


def test_colour_by_size(explorer):
    push(explorer, "size")
    sizes = explorer.clusters.sizes
    assert f"sizes {sizes.min()} to {sizes.max()}" in title(explorer)
    brightness = [
        shown_colors(explorer)[explorer.clusters.labels == k].mean() for k in np.argsort(sizes)
    ]
    assert brightness[-1] == max(brightness)
    assert explorer.settings["color"] == "size"
    press(explorer, "c")  # the next that is known
    assert explorer.settings["color"] == "cluster"


def test_colour_by_purity(explorer, cube):
    push(explorer, "purity")
    labels = explorer.clusters.labels
    purity = explorer.clusters.get_mixture(cube, **QUIET).purity
    inner = labels >= 0
    brightness = shown_colors(explorer)[inner].mean(axis=1)
    wanted = plt.get_cmap("magma")(np.clip(2 * purity[inner] - 1, 0, 1))[:, :3].mean(axis=1)
    assert np.corrcoef(brightness, wanted)[0, 1] > 0.8
    slider(explorer).set_val(3)  # it is not measured at each step
    assert "press purity again" in title(explorer)
    push(explorer, "purity")
    assert "purity 0.5 to 1" in title(explorer)
    explorer.edit(f"drop(at={inside(explorer, explorer.clusters.n_clusters - 1)})")
    assert "press purity again" in title(explorer)


def test_colour_by_phase(cube):
    phase = np.zeros(SHAPE)
    phase[:, 10:] = 1
    phase[0] = np.nan
    explorer = cube.explore_clusters(tree=tree_of("merge"), phase=phase, image=np.ones(SHAPE))
    press(explorer, "c", "c")
    assert explorer.settings["color"] == "phase"
    rgb = phase_colors(phase)
    np.testing.assert_array_equal(rgb[5, 3], nth_color(0))
    np.testing.assert_array_equal(rgb[5, 13], nth_color(1))
    assert (rgb[0] == UNKNOWN).all()
    inner = explorer.clusters.labels >= 0
    # The grey image is white everywhere: 0.4 of it, and 0.6 of the colour.
    grey = shown_colors(explorer)[~inner].mean() / 255 if (~inner).any() else 1
    np.testing.assert_allclose(
        shown_colors(explorer)[inner] / 255, 0.4 * grey + 0.6 * rgb[inner], atol=0.01
    )


def test_maps_that_were_not_given(explorer):
    for name in ("phase", "orientation"):
        push(explorer, name)
        assert f"the {name} is not known" in said(explorer)
        with pytest.raises(ValueError, match=f"give {name}="):
            explorer.color_by(name)
    assert explorer.settings["color"] == "cluster"
    with pytest.raises(ValueError, match="color='age'"):
        explorer.color_by("age")


class Crystal:
    """What the colours need of a Crystal with an orientation plan."""

    orientation_zone_axis_range = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 1]]) / np.sqrt(
        [[1], [2], [3]]
    )
    pymatgen_available = True


class Orientations:
    """What the colours need of an OrientationMap."""

    def __init__(self, axes):
        family = np.zeros((*axes.shape[:2], 1, 3, 3))
        family[:, :, 0, :, 2] = axes
        self.family = self.matrix = family
        self.corr = np.ones((*axes.shape[:2], 1))
        self.num_matches = 1


def test_colour_by_orientation(cube):
    axes = np.zeros((*SHAPE, 3))
    axes[..., 2] = 1
    axes[:12] = np.array([0, 1, 1]) / np.sqrt(2)
    axes[:, :5] = np.ones(3) / np.sqrt(3)
    orientations = Orientations(axes)
    orientations.corr[3, 4] = 0
    rgb = orientation_colors(orientations, Crystal())
    np.testing.assert_allclose(rgb[20, 10], (1, 0, 0), atol=1e-9)  # corners of the triangle
    np.testing.assert_allclose(rgb[3, 10], (0, 0.7, 0), atol=1e-9)
    np.testing.assert_allclose(rgb[20, 3], (0, 0.3, 1), atol=1e-9)
    np.testing.assert_allclose(rgb[3, 4], UNKNOWN)
    explorer = cube.explore_clusters(
        tree=tree_of("merge"), orientation=orientations, crystal=Crystal(), **QUIET
    )
    push(explorer, "orientation")
    assert explorer.settings["color"] == "orientation"


# --- growth asks for a ring ------------------------------------------------------------------


def test_grow_asks_for_an_annulus(cube):
    explorer = cube.explore_clusters(tree=tree_of("merge"), **QUIET)
    merged = explorer.clusters
    push(explorer, "grow")
    assert explorer.method == "merge"
    assert "Click its inner" in said(explorer)
    center = explorer._screen.tools._annulus[0]
    assert np.abs(np.subtract(center, (23.5, 21.5))).max() < 1.5
    click(explorer, center[0], center[1] + 6, "pattern_ax")
    assert said(explorer) == "Now click the outer radius."
    click(explorer, center[0], center[1] + 3, "pattern_ax")
    assert "must be larger" in said(explorer)
    click(explorer, center[0] - 18, center[1], "pattern_ax")
    assert explorer.method == "grow"
    q_mask = cube.make_detector(cube.Qshape, "annulus", (center, (6, 18)))
    tree = cube.get_cluster_tree(method="grow", q_mask=q_mask, **QUIET)
    same_clusters(explorer.clusters, tree.cut(name="explored"))
    assert explorer.clusters.n_clusters > 1
    np.testing.assert_array_equal(explorer.settings["q_mask"], q_mask)
    push(explorer, "undo")
    same_clusters(explorer.clusters, merged)
    push(explorer, "grow")  # this tree is known
    assert explorer.method == "grow"


def test_the_ring_that_is_proposed(cube):
    explorer = cube.explore_clusters(tree=tree_of("merge"), **QUIET)
    explorer.pick((3, 4))
    push(explorer, "grow")
    press(explorer, "left", "a", "j")  # answers are Enter, Esc and clicks
    assert explorer.method == "merge"
    press(explorer, "escape")
    assert explorer.method == "merge"
    assert pictures(explorer).pattern_ax.get_title() == "position 3, 4"
    assert not any(ring.get_visible() for ring in pictures(explorer)._rings)
    push(explorer, "grow")
    rings = [ring.get_radius() for ring in pictures(explorer)._rings]
    beam = ~virtual.scattered(virtual.sample_mean(cube.data), None)
    assert abs(rings[0] - np.sqrt(beam.sum() / np.pi)) < 0.1
    assert rings[1] > 2 * rings[0]
    push(explorer, "merge")  # another answer: stay
    assert explorer.method == "merge"
    push(explorer, "grow")
    press(explorer, "enter")
    assert explorer.method == "grow"
    assert explorer.clusters.n_clusters > 1


def test_growth_that_was_asked_for_can_get_a_ring_later(cube):
    explorer = cube.explore_clusters(tree=tree_of("grow"), **QUIET)
    assert "Press grow to choose the ring" in said(explorer)
    push(explorer, "grow")
    press(explorer, "enter")
    assert explorer.tree is not tree_of("grow")
    assert explorer.settings["q_mask"] is not None


def test_growth_with_a_mask_of_the_detector_does_not_ask(cube):
    q_mask = cube.make_detector(cube.Qshape, "annulus", ((23.5, 21.5), (6, 20)))
    explorer = cube.explore_clusters(tree=tree_of("merge"), q_mask=q_mask, **QUIET)
    push(explorer, "grow")
    assert explorer.method == "grow"
    np.testing.assert_array_equal(explorer.settings["q_mask"], q_mask)


# --- keys ------------------------------------------------------------------------------------


def test_keys_of_levels_and_sizes(explorer):
    press(explorer, "1")
    same_clusters(explorer.clusters, explorer.tree.cut(1.0, min_size=4, name="explored"))
    assert "pattern" in slider(explorer).valtext.get_text()
    press(explorer, "2")
    assert "crystal" in slider(explorer).valtext.get_text()
    at = size_slider(explorer).val
    press(explorer, "up", "up", "down")
    assert size_slider(explorer).val == at + 1
    assert explorer.min_size == 5
    press(explorer, "k")
    assert said(explorer).startswith("Kept")


def test_zooming_edits_nothing(explorer):
    explorer.figure.canvas.widgetlock(explorer)  # as zoom and pan of the toolbar do
    push(explorer, "drop")
    assert explorer._screen.tool.value == "look"
    explorer.figure.canvas.widgetlock.release(explorer)


# --- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"phase": np.zeros((3, 4))}, ValueError, "phase of type"),
        ({"phase": np.zeros(SHAPE, complex)}, ValueError, "phase of type"),
        ({"orientation": 3}, TypeError, "must be an OrientationMap"),
        ({"orientation": Orientations(np.ones((3, 4, 3)))}, ValueError, "does not fit"),
        ({"orientation": Orientations(np.ones((*SHAPE, 3)))}, TypeError, "give crystal="),
    ],
)
def test_wrong_maps(cube, options, error, message):
    with pytest.raises(error, match=message):
        cube.explore_clusters(tree=tree_of("merge"), **options, **QUIET)
    assert plt.get_fignums() == []
