"""The window of `explore_clusters`, driven by matplotlib events of mouse and keys."""

from __future__ import annotations

import gc
import weakref

import dask.array as da
import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import first_quick
from driving import (
    QUIET,
    SHAPE,
    click,
    make_cube,
    mouse,
    pictures,
    press,
    push,
    same_clusters,
    size_slider,
    slider,
    title,
    tree_of,
)
from matplotlib.backend_bases import CloseEvent
from py4DSTEM import DataCube

from py4dstem_clustering import ClusterExplorer
from py4dstem_clustering.explore.pictures import Pictures
from py4dstem_clustering.explore.shown import lasting_colors, outline
from py4dstem_clustering.explore.slider import level_steps, size_steps
from py4dstem_clustering.kernels import virtual
from py4dstem_clustering.kernels.averaging import member_mean
from py4dstem_clustering.plotting.style import neighbour_pairs


@pytest.fixture
def cube():
    return make_cube()


@pytest.fixture(params=["merge", "grow"])
def explorer(request, cube):
    return cube.explore_clusters(tree=tree_of(request.param), **QUIET)


@pytest.fixture
def merging(cube):
    return cube.explore_clusters(tree=tree_of("merge"), **QUIET)


def on_screen(explorer):
    """The line of borders that is drawn on the label map."""
    x, y = pictures(explorer).label_ax.lines[0].get_data()
    return np.nan_to_num(x), np.nan_to_num(y)


# --- cuts ------------------------------------------------------------------------------------


def test_it_opens_with_the_automatic_cut(explorer):
    assert isinstance(explorer, ClusterExplorer)
    explorer.figure.canvas.draw()
    same_clusters(explorer.clusters, explorer.tree.cut(name="explored"))
    assert explorer.clusters.name == "explored"
    assert explorer.clusters.n_clusters > 1
    assert f"{explorer.clusters.n_clusters} clusters" in title(explorer)


def test_the_slider_moves_through_the_levels_of_the_tree(explorer):
    steps = level_steps(explorer.tree)
    assert np.isin(steps, explorer.tree.levels).all()
    assert (np.diff(steps) > 0).all()
    assert slider(explorer).valmax == len(steps) - 1
    for k in (0, len(steps) // 2, len(steps) - 1):
        slider(explorer).set_val(k)
        same_clusters(explorer.clusters, explorer.tree.cut(float(steps[k]), name="explored"))
        assert slider(explorer).val == k
        assert slider(explorer).valtext.get_text().startswith(f"{steps[k]:.4g}")
        for drawn, wanted in zip(
            on_screen(explorer), outline(explorer.clusters.labels), strict=True
        ):
            np.testing.assert_array_equal(drawn, np.nan_to_num(wanted))


def test_outlines_are_thin_where_there_are_many():
    shape = 200, 200
    steps = (1.0, "pixels"), (1.0, "pixels")
    pictures = Pictures(plt.figure(), np.ones(shape), (8, 8), steps, 0.25)
    width = pictures.label_ax.lines[0].get_linewidth
    pictures.draw_labels(np.zeros(shape, int), np.ones((*shape, 3)), "one")
    assert width() == 0.8
    two = (np.random.default_rng(0).random(shape) > 0.5).astype(int)
    pictures.draw_labels(two, np.ones((*shape, 3)), "many")
    assert width() < 0.2


def test_the_mouse_drags_the_slider(merging):
    steps = level_steps(merging.tree)
    mouse(merging, slider(merging).ax, len(steps) - 3, 0.5)
    same_clusters(merging.clusters, merging.tree.cut(float(steps[-3]), name="explored"))
    mouse(merging, slider(merging).ax, len(steps) - 2, 0.5, "motion_notify_event")
    same_clusters(merging.clusters, merging.tree.cut(float(steps[-2]), name="explored"))
    mouse(merging, slider(merging).ax, 0, 0.5, "button_release_event")
    push(merging, "number")  # with fewer steps over the same width
    ax = slider(merging).ax
    place = ax.transAxes.transform((1, 0.5)) - (1, 0)
    mouse(merging, ax, *ax.transData.inverted().transform(place))
    assert merging.clusters.n_clusters == merging.tree.n_clusters().max()
    assert ax.get_xlim() == (0, slider(merging).valmax)


@pytest.mark.parametrize("min_size", first_quick([5, 1]))
def test_the_slider_moves_through_numbers_of_clusters(explorer, min_size):
    explorer.set(min_size=min_size)
    before = explorer.clusters
    push(explorer, "number")
    assert explorer.clusters is before  # until the slider moves
    counts = np.unique(explorer.tree.n_clusters(min_size=min_size))
    cuts = [explorer.tree.cut(n_clusters=int(n), min_size=min_size) for n in counts[counts > 0]]
    found = {cut.n_clusters for cut in cuts}
    assert slider(explorer).valtext.get_text() == str(before.n_clusters)
    for k, n in enumerate(sorted(found)[:8]):
        slider(explorer).set_val(k)
        wanted = explorer.tree.cut(n_clusters=int(n), min_size=min_size, name="explored")
        same_clusters(explorer.clusters, wanted)
        assert explorer.clusters.n_clusters == n
        assert slider(explorer).valtext.get_text() == str(n)
    push(explorer, "level")
    level = explorer.clusters.settings["level"]
    assert slider(explorer).valtext.get_text().startswith(f"{level:.4g}")


def test_min_size_keeps_the_level(explorer):
    explorer.set(n_clusters=4)
    level = explorer.clusters.settings["level"]
    sizes = size_steps(np.prod(SHAPE))
    k = int(np.flatnonzero(sizes == 8)[0])
    size_slider(explorer).set_val(k)
    same_clusters(explorer.clusters, explorer.tree.cut(level, min_size=8, name="explored"))
    assert size_slider(explorer).valtext.get_text() == "8"
    explorer.set(threshold="auto", min_size=1)
    size_slider(explorer).set_val(k)
    same_clusters(explorer.clusters, explorer.tree.cut(min_size=8, name="explored"))


def test_clusters_may_all_be_too_small(explorer):
    size_slider(explorer).set_val(size_slider(explorer).valmax)
    explorer.set(threshold=0.0 if explorer.method == "merge" else 1.0)
    assert explorer.clusters.n_clusters == 0
    push(explorer, "number")
    click(explorer, 3, 4)
    assert explorer.average is None
    explorer.figure.canvas.draw()


def test_keys(explorer):
    slider(explorer).set_val(2)
    press(explorer, "right")
    assert slider(explorer).val == 3
    wanted = explorer.tree.cut(float(level_steps(explorer.tree)[3]), name="explored")
    same_clusters(explorer.clusters, wanted)
    for _ in range(5):
        press(explorer, "left")
    assert slider(explorer).val == 0
    press(explorer, "a")
    same_clusters(explorer.clusters, explorer.tree.cut(name="explored"))
    press(explorer, "g")  # of matplotlib: a grid, where there is an axis below the mouse


def test_buttons(explorer, cube):
    slider(explorer).set_val(0)
    push(explorer, "auto")
    same_clusters(explorer.clusters, explorer.tree.cut(name="explored"))
    push(explorer, "keep")
    same_clusters(cube.clusters, explorer.tree.cut(name="clusters"))
    assert cube.clusters.name == "clusters"


def test_set_takes_any_value(merging):
    assert merging.set(threshold=0.123, min_size=3) is merging.clusters
    same_clusters(merging.clusters, merging.tree.cut(0.123, min_size=3, name="explored"))
    same_clusters(merging.set(n_clusters=2), merging.tree.cut(n_clusters=2, min_size=3, name="e"))
    with pytest.raises(ValueError, match="min_size=0"):
        merging.set(min_size=0)
    with pytest.raises(ValueError, match="give only one"):
        merging.set(threshold=1, n_clusters=2)
    with pytest.raises(ValueError, match="method='ward'"):
        merging.set(method="ward")


def test_a_number_that_cannot_be_had_changes_nothing(cube):
    apart = np.ones(SHAPE, dtype=bool)
    apart[:, 10] = False
    explorer = cube.explore_clusters(method="grow", r_mask=apart, min_size=2, **QUIET)
    before = explorer.clusters
    with pytest.raises(ValueError, match="n_clusters=1 cannot be had"):
        explorer.set(n_clusters=1, min_size=1)
    assert explorer.clusters is before
    assert explorer.min_size == 2
    with pytest.raises(ValueError, match="n_clusters=1 cannot be had"):
        explorer.tree.cut(n_clusters=1)


# --- methods ---------------------------------------------------------------------------------


def test_the_other_tree_is_measured_when_it_is_asked_for(cube):
    explorer = cube.explore_clusters(method="merge", sigma=1, rank=3, min_size=4, **QUIET)
    assert list(explorer.trees) == ["merge"]
    assert explorer.tree.settings["rank"] == 3
    explorer.set(method="grow")
    assert explorer.method == "grow"
    wanted = cube.get_cluster_tree(method="grow", sigma=1, **QUIET)
    same_clusters(explorer.clusters, wanted.cut(min_size=4, name="explored"))
    assert slider(explorer).label.get_text() == "similarity"
    assert slider(explorer).valmax == len(level_steps(wanted)) - 1
    grown = explorer.tree
    push(explorer, "merge")
    push(explorer, "grow")
    assert explorer.tree is grown


def test_a_similarity_and_a_mask_of_the_detector_go_together(cube):
    similarity = cube.get_similarity(sigma=1, **QUIET)
    q_mask = np.ones(cube.Qshape, dtype=bool)
    explorer = cube.explore_clusters(similarity=similarity, q_mask=q_mask, **QUIET)
    explorer.set(method="grow", threshold=0.9)
    assert explorer.clusters.similarity is similarity
    with pytest.raises(ValueError, match="sigma cannot change a similarity"):
        cube.explore_clusters(similarity=similarity, sigma=1, **QUIET)


def test_a_tree_that_cannot_be_measured_leaves_the_window(merging, monkeypatch):
    def fail(*args, **options):
        raise OSError("disk gone")

    monkeypatch.setattr("py4dstem_clustering.explore.source.measure_tree", fail)
    before = merging.clusters
    with pytest.raises(OSError, match="disk gone"):
        merging.set(method="grow")
    assert merging.clusters is before
    assert merging._screen.method.value == merging.method == "merge"
    slider(merging).set_val(1)


def test_background_stays_when_asked_for(cube):
    explorer = cube.explore_clusters(tree=tree_of("merge"), drop_background=False, **QUIET)
    same_clusters(explorer.clusters, explorer.tree.cut(drop_background=False, name="explored"))
    explorer.set(method="grow")  # growth has no background


# --- patterns --------------------------------------------------------------------------------


@pytest.mark.parametrize("ax", ["image_ax", "label_ax"])
def test_a_click_shows_the_pattern_and_the_average(explorer, cube, ax):
    explorer.set(n_clusters=4, min_size=4)
    rx, ry = explorer.clusters.members(1)[2]
    click(explorer, rx + 0.4, ry - 0.4, ax)
    assert explorer.position == (rx, ry)
    np.testing.assert_array_equal(explorer.pattern, cube.data[rx, ry])
    member = explorer.clusters.labels == 1
    mean = cube.data[member].mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(explorer.average, mean, rtol=1e-6)
    pattern_ax, average_ax = pictures(explorer).pattern_ax, pictures(explorer).average_ax
    shown = pattern_ax.images[0].get_array()
    np.testing.assert_allclose(shown, cube.data[rx, ry] ** 0.25, rtol=1e-6)
    np.testing.assert_allclose(average_ax.images[0].get_array(), mean**0.25, rtol=1e-6)
    assert pattern_ax.get_title() == f"position {rx}, {ry}"
    assert average_ax.get_title() == f"cluster 1: mean of {member.sum()}"
    explorer.figure.canvas.draw()


def test_averages_are_read_on_demand(merging, monkeypatch):
    merging.set(n_clusters=4)
    rx, ry = merging.clusters.members(0)[0]
    reads = []
    monkeypatch.setattr(
        "py4dstem_clustering.explore.source.member_mean",
        lambda data, members, *rest: reads.append(len(members)) or np.ones(data.shape[2:]),
    )
    click(merging, rx, ry)
    click(merging, *merging.clusters.members(0)[1])
    assert reads == [merging.clusters.sizes[0]]
    merging.set(threshold=0.01)  # averages of other members are not read while the slider moves
    assert merging.average is None
    assert "click" in pictures(merging).average_ax.texts[0].get_text()
    assert len(reads) == 1
    merging.set(n_clusters=4)  # this average is known
    assert merging.average is not None
    assert len(reads) == 1


def test_clicks_elsewhere_do_nothing(merging):
    click(merging, 3, 4, "pattern_ax")
    mouse(merging, pictures(merging).label_ax, 4, 3, button=3)
    merging.figure.canvas.widgetlock(merging)  # as zoom and pan of the toolbar do
    click(merging, 3, 4)
    assert merging.position is None
    merging.figure.canvas.widgetlock.release(merging)
    click(merging, 3, 4)
    assert merging.position == (3, 4)
    for position in ((24, 0), (0, 20), (-1, 0)):
        with pytest.raises(ValueError, match="position"):
            merging.pick(position)


def test_outside_clusters_there_is_no_average(merging):
    merging.set(min_size=60)
    rx, ry = np.argwhere(merging.clusters.labels < 0)[0]
    click(merging, rx, ry)
    assert merging.average is None
    assert pictures(merging).average_ax.texts[0].get_text() == "in no cluster"


@pytest.mark.parametrize("kind", ["numpy", "memmap", "h5py", "dask"])
@pytest.mark.parametrize("block", [1, 2000, 10**9])
def test_the_mean_of_members_reads_no_others(kind, block, tmp_path, monkeypatch):
    monkeypatch.setattr("py4dstem_clustering.kernels.averaging._READ_BYTES", block)
    rng = np.random.default_rng(0)
    scan = rng.poisson(5, (9, 8, 6, 5)).astype(np.uint16)
    members = np.array([[2, 3], [2, 5], [3, 4], [7, 3], [8, 6]])
    if kind == "memmap":
        np.save(tmp_path / "scan.npy", scan)
        data = np.load(tmp_path / "scan.npy", mmap_mode="r")
    elif kind == "h5py":
        with h5py.File(tmp_path / "scan.h5", "w") as file:
            file["d"] = scan
        data = h5py.File(tmp_path / "scan.h5", "r")["d"]
    else:
        data = scan if kind == "numpy" else da.from_array(scan, chunks=(2, 3, -1, -1))
    told = []
    found = member_mean(data, members, report=told.append)
    mean = scan[tuple(members.T)].mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(found, mean, rtol=1e-6)
    assert sum(told) == len(members)
    if kind == "h5py":
        data.file.close()


def test_members_far_apart_are_read_by_themselves():
    class Scan:
        dtype, shape, read = np.dtype(np.float32), (50, 40, 3, 3), 0

        def __getitem__(self, key):
            part = np.ones(self.shape, dtype=self.dtype)[key]
            Scan.read += part.shape[0] * part.shape[1]
            return part

    member_mean(Scan(), np.array([[4, 10], [5, 12], [6, 11]]))
    assert Scan.read == 9


def test_missing_pixels_have_no_weight():
    data = np.arange(2 * 2 * 3 * 3, dtype=np.float32).reshape(2, 2, 3, 3)
    data[0, 0, 1, 1] = np.nan
    data[:, :, 2, 2] = np.inf
    found = member_mean(data, np.array([[0, 0], [1, 1]]))
    data[:, :, 2, 2] = np.nan
    wanted = np.nanmean(data[[0, 1], [0, 1]].reshape(2, 9)[:, :8], axis=0)
    np.testing.assert_allclose(found.ravel()[:8], wanted)
    assert np.isnan(found[2, 2])


def test_the_average_is_that_of_the_clustered_datacube(cube):
    x, y = np.indices(SHAPE)
    cube.calibration.set_origin((23 + 0.1 * x, 21 - 0.05 * y))
    explorer = cube.explore_clusters(tree=tree_of("merge"), min_size=4, **QUIET)
    averages = cube.get_clustered_datacube(explorer.clusters, **QUIET)
    click(explorer, *explorer.clusters.members(1)[0])
    np.testing.assert_allclose(explorer.average, averages.data[1, 0], rtol=1e-5, atol=1e-6)


def test_the_image(cube):
    explorer = cube.explore_clusters(tree=tree_of("merge"), **QUIET)
    weight = virtual.scattered(virtual.sample_mean(cube.data), None)
    image = (cube.data * weight).sum(axis=(2, 3))
    low, high = np.percentile(image, (0.5, 99.5))
    shown = pictures(explorer).image_ax.images[0].get_array()
    wanted = np.clip((image - low) / (high - low), 0, 1)
    np.testing.assert_allclose(shown[..., 1] / 255, wanted, atol=0.51 / 255)
    given = np.full(SHAPE, np.nan)
    given[3:] = 1
    explorer = cube.explore_clusters(tree=tree_of("merge"), image=given > 0, **QUIET)
    cube.explore_clusters(tree=tree_of("merge"), image=given, **QUIET).figure.canvas.draw()
    shown = pictures(explorer).image_ax.images[0].get_array()
    np.testing.assert_array_equal(shown[..., 2] / 255, given > 0)


# --- the window ------------------------------------------------------------------------------


def test_pyplot_stays_as_it_was(cube):
    options = dict(plt.rcParams)
    _, ax = plt.subplots()
    explorer = cube.explore_clusters(tree=tree_of("merge"), **QUIET)
    assert plt.gca() is ax
    assert explorer.figure.number in plt.get_fignums()
    slider(explorer).set_val(0)
    assert plt.gca() is ax
    assert dict(plt.rcParams) == options


def registered(explorer):
    """Callbacks of the figure that belong to the window or its widgets."""
    widgets = explorer, explorer._screen, slider(explorer), size_slider(explorer)
    ours = {id(widget) for widget in widgets}
    found = []
    for functions in explorer.figure.canvas.callbacks.callbacks.values():
        for reference in functions.values():
            function = reference()
            owner = getattr(function, "__self__", None)
            wrapped = getattr(function, "__wrapped__", function)
            owner = owner or getattr(wrapped, "__self__", None)
            found += [function] if id(owner) in ours else []
    return found


def numbers(figure):
    return {number for held in figure.canvas.callbacks.callbacks.values() for number in held}


@pytest.mark.parametrize("how", ["disconnect", "close"])
def test_nothing_listens_after_the_end(merging, how):
    figure = merging.figure
    assert len(registered(merging)) > 10
    # Keys come to the window, which passes other keys on to matplotlib.
    assert figure.canvas.manager.key_press_handler_id not in numbers(figure)
    if how == "close":
        CloseEvent("close_event", figure.canvas)._process()
    else:
        merging.disconnect()
    assert registered(merging) == []
    merging.disconnect()  # a second time does nothing
    before = merging.clusters
    press(merging, "left")
    press(merging, "a")
    click(merging, 3, 4)
    mouse(merging, slider(merging).ax, 0, 0.5)
    assert merging.clusters is before
    assert merging.position is None
    assert merging.keep("later").n_clusters == before.n_clusters
    assert figure.canvas.manager.key_press_handler_id in numbers(figure)


def test_the_figure_keeps_the_window_and_goes_with_it(cube):
    explorer = cube.explore_clusters(tree=tree_of("merge"), **QUIET)
    seen, number = weakref.ref(explorer), explorer.figure.number
    del explorer
    gc.collect()
    assert seen() is not None
    slider(seen()).set_val(0)
    plt.close(number)
    gc.collect()
    assert seen() is None


def test_keep_and_names(merging, cube):
    merging.set(n_clusters=2)
    kept = merging.keep("by_hand")
    assert kept.name == kept.settings["name"] == "by_hand"
    same_clusters(cube.get_clusters("by_hand"), merging.clusters)
    assert merging.clusters.name == "explored"
    cube.get_similarity(**QUIET)
    with pytest.raises(ValueError, match="name='similarity' is taken"):
        merging.keep("similarity")
    with pytest.raises(ValueError, match="cannot be stored"):
        merging.keep("a/b")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "ward"}, ValueError, "method='ward'"),
        ({"image": np.zeros((3, 4))}, ValueError, "shape of the scan"),
        ({"image": np.zeros(SHAPE, complex)}, ValueError, "real numbers"),
        ({"min_size": 0}, ValueError, "min_size=0"),
        ({"min_size": 2.5}, TypeError, "min_size=2.5"),
        ({"drop_background": 1}, TypeError, "drop_background=1"),
        ({"tree": "cluster_tree"}, TypeError, "ClusterTree.from_node"),
        ({"rank": 99}, ValueError, "rank=99"),
        ({"sigma": -1}, ValueError, "sigma=-1"),
        ({"subtract_mean": 1}, TypeError, "subtract_mean=1"),
        ({"similarity": np.zeros((3, 4, 8))}, ValueError, "similarity"),
        ({"q_mask": np.zeros((3, 4), bool)}, ValueError, "q_mask"),
        ({"r_mask": "none"}, ValueError, "r_mask='none'"),
        ({"power": 0}, ValueError, "power=0"),
        ({"n_jobs": 0}, ValueError, "n_jobs=0"),
        ({"max_memory": "1 kB"}, ValueError, "max_memory='1 kB'"),
        ({"progress_bar": 1}, TypeError, "progress_bar=1"),
    ],
)
def test_errors_come_before_any_work(cube, monkeypatch, options, error, message):
    def work(*args, **options):
        raise AssertionError("work was done")

    monkeypatch.setattr("py4dstem_clustering.explore.source.measure_tree", work)
    monkeypatch.setattr("py4dstem_clustering.explore.source.sample_mean", work)
    with pytest.raises(error, match=message):
        cube.explore_clusters(**{**QUIET, **options})
    assert plt.get_fignums() == []


def test_a_tree_of_another_scan(cube):
    other = DataCube(cube.data[:10])
    with pytest.raises(ValueError, match="must fit this scan"):
        other.explore_clusters(tree=tree_of("merge"), **QUIET)


# --- pieces ----------------------------------------------------------------------------------


def test_outlines_lie_between_labels():
    labels = np.array([[0, 0, 1], [0, -1, 1]])
    x, y = outline(labels)
    edges = set()
    for x0, x1, y0, y1 in zip(x[::3], x[1::3], y[::3], y[1::3], strict=True):
        if x0 == x1:
            edges |= {("upright", x0, k + 0.5) for k in np.arange(y0, y1)}
        else:
            edges |= {("level", k + 0.5, y0) for k in np.arange(x0, x1)}
    padded = np.pad(labels, 1, constant_values=-1)
    wanted = set()
    for i, j in np.ndindex(3, 4):
        if i > 0 and padded[i, j] != padded[i, j + 1]:
            wanted.add(("upright", j - 0.5, float(i - 1)))
    for i, j in np.ndindex(3, 5):
        if padded[i, j] != padded[i + 1, j]:
            wanted.add(("level", float(j - 1), i - 0.5))
    assert edges == wanted
    assert np.isnan(x[2::3]).all()


def consecutive(labels):
    values, labels = np.unique(labels, return_inverse=True)
    return labels.reshape(60, 50), len(values)


def test_colors_last_and_neighbours_differ():
    rng = np.random.default_rng(0)
    labels = np.kron(rng.permutation(60).reshape(6, 10), np.ones((4, 5), int))
    before = lasting_colors(labels, 60, np.full(labels.shape, -1))
    joined = np.where(labels == 7, 11, labels)
    joined = np.unique(joined, return_inverse=True)[1].reshape(labels.shape)
    after = lasting_colors(joined, 59, before[labels])
    pairs = neighbour_pairs(joined)
    assert (after[pairs[:, 0]] != after[pairs[:, 1]]).all()
    changed = before[labels] != after[joined]
    assert changed.mean() < 0.1
    many = np.arange(60 * 50).reshape(60, 50)
    many[:10, :40] = 0
    found = lasting_colors(*consecutive(many), np.full(many.shape, -1))
    assert set(found) == set(range(7))
    odd = np.full((3, 4), -1)
    assert lasting_colors(odd, 0, odd).size == 0


def test_clusters_that_do_not_touch_differ_in_colour_as_well():
    labels = np.array([[0, -1, 1, -1, 2]])
    assert lasting_colors(labels, 3, np.full(labels.shape, -1)).tolist() == [0, 1, 2]
