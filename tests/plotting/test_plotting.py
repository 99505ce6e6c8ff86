"""Figures: what is drawn where, and colours; how they look is for people to judge."""

from __future__ import annotations

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.colors import to_rgb

from py4dstem_clustering import (
    Clusters,
    CrossValidation,
    GainedDisks,
    plot_averages,
    plot_clusters,
    plot_cross_validation,
    plot_disks,
    plot_growth,
    plot_patterns,
    plot_residual,
    plot_similarity,
)
from py4dstem_clustering.kernels.virtual import sample_mean, scattered
from py4dstem_clustering.plotting.style import (
    PALETTE,
    add_scale_bar,
    cluster_colors,
    free_corner,
    neighbour_pairs,
)
from py4dstem_clustering.scan.calibration import detector_step, known_centre

QUIET = {"progress_bar": False}


@pytest.fixture
def clusters(cube):
    return cube.cluster(threshold=0.6, min_size=2, **QUIET)


def drawn(ax):
    """Draw for real, so that an error of the artists shows."""
    ax.figure.canvas.draw()
    return ax


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_plot_similarity(cube):
    similarity = cube.get_similarity(**QUIET)
    ax = drawn(plot_similarity(similarity))
    np.testing.assert_array_equal(ax.images[0].get_array(), similarity.mean)
    ax = drawn(similarity.plot(direction=2))
    np.testing.assert_array_equal(
        np.ma.filled(ax.images[0].get_array(), np.nan), similarity.data[..., 2]
    )
    with pytest.raises(ValueError, match="direction=8"):
        plot_similarity(similarity, direction=8)


def test_plot_residual(cube):
    filtered = cube.filter_lowrank(**QUIET)
    residual = filtered.tree("residual").data
    residual[2, 1] = 7
    filtered.tree("kept").data[0, 3] = 0.1
    _, ax = plt.subplots()
    assert plot_residual(filtered, ax, limit=6) is ax
    drawn(ax)
    np.testing.assert_array_equal(ax.images[0].get_array(), residual)
    assert ax.images[0].get_clim()[1] == 6
    marked = ax.lines[0].get_xydata().tolist()
    assert [1.0, 2.0] in marked
    assert [3.0, 0.0] in marked
    with pytest.raises(ValueError, match="has no residual map"):
        plot_residual(cube)


def test_plot_clusters_draws_into_ax(clusters):
    _, ax = plt.subplots()
    assert plot_clusters(clusters, ax) is ax
    drawn(ax)
    assert texts(ax) == [str(k) for k in range(clusters.n_clusters)]
    assert len(plt.get_fignums()) == 1
    # The first scan axis runs downwards.
    assert ax.get_ylim() == (clusters.shape[0] - 0.5, -0.5)
    shown = ax.images[1].get_array()
    np.testing.assert_array_equal(np.ma.filled(shown, -1), clusters.labels)


def test_odd_images_and_scales(clusters):
    drawn(clusters.plot(image=clusters.similarity_mean > 0.5))
    drawn(dataclasses.replace(clusters, pixel_size=0.0).plot())


def test_plot_clusters_options(clusters):
    image = np.random.default_rng(0).random(clusters.shape)
    ax = drawn(clusters.plot(image=image, alpha=0, numbers=False, seeds=True, title="grains"))
    assert len(ax.images) == 1
    assert texts(ax) == []
    assert ax.get_title() == "grains"
    assert len(ax.lines[-1].get_xdata()) == clusters.n_clusters
    with pytest.raises(ValueError, match=r"image of shape \(9, 7\)"):
        clusters.plot(image=image.T)
    with pytest.raises(ValueError, match="alpha=2"):
        clusters.plot(alpha=2)


def test_the_number_stands_inside_its_cluster(clusters):
    ax = plot_clusters(clusters)
    for k, text in enumerate(ax.texts):
        y, x = text.get_position()
        assert clusters.labels[int(x), int(y)] == k


def test_plots_of_no_clusters(cube):
    none = cube.cluster(threshold=1, min_size=60, **QUIET)
    drawn(none.plot(seeds=True))
    drawn(plot_growth(none))


def test_plot_growth(clusters):
    ax = drawn(plot_growth(clusters))
    steps = np.ma.filled(ax.images[1].get_array(), -1)
    np.testing.assert_array_equal(steps >= 0, clusters.labels >= 0)
    assert (steps[tuple(clusters.seeds.T)] == 0).all()
    one = np.ma.filled(plot_growth(clusters, label=1).images[1].get_array(), -1)
    np.testing.assert_array_equal(one >= 0, clusters.labels == 1)
    with pytest.raises(ValueError, match="does not exist"):
        plot_growth(clusters, label=99)
    bare = Clusters(clusters.labels, clusters.seeds, clusters.similarity_mean)
    with pytest.raises(ValueError, match="grew is not known"):
        plot_growth(bare)


def test_plot_averages(cube, clusters):
    averages = cube.get_clustered_datacube(clusters, **QUIET)
    ax = drawn(plot_averages(averages))
    assert texts(ax) == [str(k) for k in range(clusters.n_clusters)]
    colors = cluster_colors(clusters.labels, clusters.n_clusters)
    frames = [patch.get_edgecolor()[:3] for patch in ax.patches]
    np.testing.assert_allclose(frames, colors)
    ax = drawn(plot_averages(averages, labels=[1, 0], columns=1))
    assert texts(ax) == ["1", "0"]
    np.testing.assert_allclose(
        ax.images[0].get_array(), averages.data[1, 0].astype(float) ** 0.25, rtol=1e-6
    )


def test_plot_patterns(cube, clusters):
    ax = drawn(plot_patterns(cube, clusters.seeds[:3]))
    assert texts(ax) == [f"{rx}, {ry}" for rx, ry in clusters.seeds[:3]]
    for image, seed in zip(ax.images, clusters.seeds, strict=False):
        np.testing.assert_allclose(image.get_array(), cube.data[tuple(seed)] ** 0.25, rtol=1e-6)
    for wrong in ([[0, 9]], [[-1, 0]], [[0.0, 1.0]], [0, 1], np.zeros((2, 3), int)):
        with pytest.raises(ValueError, match="positions must"):
            plot_patterns(cube, wrong)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"labels": [99]}, "label 99 does not exist"),
        ({"labels": []}, "at least one pattern"),
        ({"columns": 0}, "columns=0"),
        ({"power": 0}, "power=0"),
    ],
)
def test_plot_averages_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        plot_averages(np.ones((3, 1, 5, 6)), **options)


def test_plots_of_patterns_refuse_other_shapes(cube):
    with pytest.raises(ValueError, match=r"must be \(N, 1, Qx, Qy\); plot_patterns draws a scan"):
        plot_averages(cube)
    with pytest.raises(ValueError, match="four axes"):
        plot_averages(np.zeros((3, 4, 5)))
    with pytest.raises(ValueError, match="four axes"):
        plot_patterns(np.zeros((3, 4, 5)), [[0, 0]])


def test_plot_averages_with_missing_pixels():
    data = np.full((2, 1, 5, 6), np.nan)
    data[0] = 1
    drawn(plot_averages(data))


def test_the_scale_bar_keeps_clear_of_numbers():
    assert free_corner((50, 100), []) == "lower right"
    assert free_corner((50, 100), [(45, 90)]) == "lower left"
    assert free_corner((50, 100), [(45, 90), (45, 10)]) == "upper right"
    assert free_corner((50, 100), [(x, y) for x in (5, 45) for y in (10, 90)]) == "lower right"


# --- orientations ----------------------------------------------------------------------------


def test_plot_cross_validation():
    errors = {"raw": np.arange(12.0).reshape(3, 4), "merged": np.full((3, 4), np.nan)}
    costs = dict.fromkeys(errors, (1, 0.0, 0.0))
    validation = CrossValidation(errors, {}, costs, 2.5, "nm")
    axes = validation.plot()
    drawn(axes[0])
    assert [ax.get_title() for ax in axes] == [
        "raw\n5.50° in 100% of the scan",
        "merged\nno errors",
    ]
    assert len(axes[0].figure.axes) == 3  # one colour bar
    for ax, error in zip(axes, errors.values(), strict=True):
        np.testing.assert_array_equal(np.ma.filled(ax.images[0].get_array(), np.nan), error)
        assert ax.images[0].get_clim() == (0, np.percentile(errors["raw"], 95))
    part = np.where(np.arange(12).reshape(3, 4) < 3, 1.0, np.nan)
    both = CrossValidation({"raw": errors["raw"], "merged": part}, {}, costs).plot()
    assert [ax.get_title() for ax in both] == [
        "raw\n1.00° in common\n5.50° in 100% of the scan",  # (0 + 1 + 2) / 3
        "merged\n1.00° in common\n1.00° in 25% of the scan",
    ]
    mine = plt.subplots(1, 2)[1]
    assert plot_cross_validation(validation, mine, max_error=3)[1] is mine[1]
    assert mine[0].images[0].get_clim() == (0, 3)
    with pytest.raises(ValueError, match="axes must be 2, one for each method, not 1"):
        plot_cross_validation(validation, mine[0])
    with pytest.raises(ValueError, match="max_error=0"):
        plot_cross_validation(validation, max_error=0)


def test_plot_disks():
    far, near = np.array([0.25, 0.75]), np.array([0.25])
    gained = GainedDisks((far, None, near), ([near, near, near[:0]], None, [near[:0]]))
    ax = drawn(plot_disks(gained, step=0.5))
    averages, singles = (ax.patches[i].get_data() for i in (0, 2))
    np.testing.assert_allclose(averages.edges, [0, 0.5, 1])
    np.testing.assert_allclose(averages.values, [1, 0.5])
    np.testing.assert_allclose(singles.values, [1 / 3, 0])
    drawn(plot_disks(GainedDisks((), ())))
    with pytest.raises(ValueError, match="step=0"):
        plot_disks(gained, step=0)


# --- colours ---------------------------------------------------------------------------------


@given(
    hnp.arrays(
        np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(-1, 30)
    )
)
@settings(deadline=None, max_examples=200)
def test_clusters_that_touch_never_share_a_colour(labels):
    found = np.unique(labels)
    labels = np.where(labels >= 0, np.searchsorted(found[found >= 0], labels), -1)
    n = labels.max() + 1
    colors = cluster_colors(labels, n)
    assert colors.shape == (n, 3)
    for a, b in neighbour_pairs(labels):
        assert not np.allclose(colors[a], colors[b])


def test_neighbour_pairs_count_diagonals_both_ways():
    labels = np.array([[0, 1, -1], [2, 3, 3]])
    pairs = {tuple(pair) for pair in neighbour_pairs(labels).tolist()}
    assert pairs == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}


def test_more_colours_than_the_palette_holds():
    # One row of 20 clusters, and below it one that touches all: then all touch all.
    n = 3 * len(PALETTE)
    colors = cluster_colors(np.arange(2 * n).reshape(2, n), 2 * n)
    palette = {tuple(np.round(to_rgb(c), 6)) for c in PALETTE}
    assert {tuple(np.round(c, 6)) for c in colors} <= palette  # a strip needs few
    joined = np.array([[a, b] for a in range(n) for b in range(n)]).reshape(-1, 2 * n)
    colors = cluster_colors(joined, n)
    for a, b in neighbour_pairs(joined):
        assert not np.allclose(colors[a], colors[b])


def test_colours_are_spread():
    labels = np.full((40, 40), -1)
    labels[::2, ::2] = np.arange(400).reshape(20, 20)  # none touch
    counts = np.unique(cluster_colors(labels, 400), axis=0, return_counts=True)[1]
    assert counts.max() - counts.min() <= 1


# --- scale bar -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pixel_size", "units", "label"),
    [
        (1, "pixels", "20 px"),
        (2.5, "nm", "50 nm"),
        (20, "A", "50 nm"),
        (0.01, "A", "0.2 Å"),
        (0.03, "A^-1", "0.5 Å⁻¹"),
        (80, "nm", "2 µm"),
        (40, "nm", "1 µm"),
        (39, "nm", "500 nm"),
        (0.02, "um", "500 nm"),
        (3, "µm", "50 µm"),
        (2, "mrad", "50 mrad"),
    ],
)
def test_scale_bar(pixel_size, units, label):
    ax = plt.subplots()[1]
    ax.imshow(np.zeros((50, 100)))
    add_scale_bar(ax, pixel_size, units, 100)
    drawn(ax)
    assert ax.artists[0].txt_label.get_text() == label


def bar_of(ax):
    (bar,) = [artist for artist in ax.artists if hasattr(artist, "size_bar")]
    return bar


def test_place_colour_and_length_of_the_scale_bar(clusters, cube):
    ax = plot_clusters(clusters)
    assert bar_of(ax).loc == 4  # lower right
    chosen = {"loc": "upper left", "color": "black"}
    step, scan_step = detector_step(cube)[0], clusters.pixel_size
    similarity = cube.get_similarity(**QUIET)
    for draw, length in (
        (lambda **options: plot_clusters(clusters, **options), 3 * scan_step),
        (
            lambda **options: plot_similarity(similarity, **options),
            3 * clusters.pixel_size,
        ),
        (lambda **options: plot_growth(clusters, **options), 3 * scan_step),
        (lambda **options: plot_patterns(cube, [(0, 1)], **options), 3 * step),
    ):
        ax = drawn(draw(scale_bar={**chosen, "length": length}))
        bar = bar_of(ax)
        assert bar.loc == 2
        assert bar.size_bar.get_children()[0].get_width() == pytest.approx(3, rel=0.1)
        assert bar.txt_label._text.get_color() == "black"
        assert not draw(scale_bar=False).artists
        plt.close("all")


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"place": "left"}, "scale_bar has place; it may have 'loc', 'color' and 'length'"),
        ({"loc": "middle"}, r"scale_bar\['loc'\]='middle' must be one of 'lower right'"),
        ({"color": "whit"}, r"scale_bar\['color'\]='whit' must be a colour"),
        ({"length": 0}, r"scale_bar\['length'\]=0"),
    ],
)
def test_a_wrong_scale_bar(clusters, wrong, text):
    with pytest.raises(ValueError, match=text):
        plot_clusters(clusters, scale_bar=wrong)
    with pytest.raises(TypeError, match="scale_bar='yes' must be True or False"):
        plot_clusters(clusters, scale_bar="yes")


def test_the_virtual_image_of_the_scan_below_the_clusters(clusters, cube):
    ax = plot_clusters(clusters, image=cube)
    grey = np.asarray(ax.images[0].get_array())
    wanted = scattered(sample_mean(cube.data), known_centre(cube))
    expected = (cube.data * wanted).sum(axis=(2, 3))
    assert 0 < wanted.sum() < wanted.size
    np.testing.assert_allclose(grey, expected)
    with pytest.raises(ValueError, match="clusters"):
        plot_clusters(clusters, image=cube.data[:-1])
