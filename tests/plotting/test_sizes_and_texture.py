"""Distributions of grain sizes, and pole figures."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.spatial.transform import Rotation

from py4dstem_clustering import Clusters, plot_orientations, plot_sizes, simulate_scan
from py4dstem_clustering.diffraction.texture import pole_directions
from py4dstem_clustering.plotting.sizes import fit_log_normal
from py4dstem_clustering.plotting.style import cluster_colors
from py4dstem_clustering.plotting.texture import density_of_poles, project


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


# --- sizes -------------------------------------------------------------------------------------


def squares(sides, units="nm", step=2.0, background=()):
    """Squares of these sides in a row, which do not touch each other or the border."""
    labels = np.full((max(sides) + 2, sum(sides) + len(sides) + 1), -1)
    column = 1
    for k, side in enumerate(sides):
        labels[1 : 1 + side, column : column + side] = k
        column += side + 1
    seeds = [np.argwhere(labels == k)[0] for k in range(len(sides))]
    return Clusters(
        labels, seeds, np.zeros(labels.shape), {}, None, "squares", step, units, background
    )


def test_the_histogram_counts_every_grain_once():
    sides = [2, 3, 3, 4, 4, 4, 5, 5, 7]
    ax = plot_sizes(squares(sides), bins=4)
    diameters = 2 * np.array(sides) * 2 / np.sqrt(np.pi)  # of circles of the same area
    counts, edges = np.histogram(diameters, 4)
    np.testing.assert_array_equal(ax.patches[0].get_data().values, counts)
    np.testing.assert_allclose(ax.patches[0].get_data().edges, edges)
    assert ax.get_title() == "9 grains"
    assert ax.get_xlabel() == "equivalent diameter (nm)"
    assert ax.get_ylabel() == "number of grains"
    (curve,) = ax.lines
    x, y = curve.get_data()
    # The curve has the area of the histogram, and the text what was fitted.
    assert trapezoid(y, x) == pytest.approx(9 * (edges[1] - edges[0]), rel=0.01)
    found = fit_log_normal(diameters)
    assert f"median {found.median:.3g}" in ax.get_legend().get_texts()[0].get_text()


def test_fit_of_a_log_normal_distribution():
    rng = np.random.default_rng(5)
    errors = []
    for _ in range(200):
        found = fit_log_normal(20 * np.exp(0.3 * rng.normal(size=60)))
        errors.append(
            [(found.median - 20) / found.median_error, (found.sigma - 0.3) / found.sigma_error]
        )
    # Unbiased within their errors, which are those that were said.
    np.testing.assert_allclose(np.mean(errors, axis=0), 0, atol=0.3)
    np.testing.assert_allclose(np.std(errors, axis=0), 1, atol=0.2)


def test_grains_at_the_border_and_background_are_left_out():
    labels = squares([2, 3, 4, 5]).labels[:, 1:]  # the first one now touches the border
    clusters = Clusters(
        labels, [np.argwhere(labels == k)[0] for k in range(4)], np.zeros(labels.shape),
        pixel_size=1.0, pixel_units="A", background=(3,),
    )  # fmt: skip
    ax = plot_sizes(clusters, fit=False)
    assert ax.get_title() == "2 grains, 1 at the border of the scan left out"
    assert not ax.lines
    assert ax.patches[0].get_data().edges[-1] == pytest.approx(0.1 * 8 / np.sqrt(np.pi))  # nm
    assert plot_sizes(clusters, border=True).get_title() == "3 grains"


def test_few_grains_and_wrong_options():
    assert not plot_sizes(squares([3, 5])).lines  # too few to fit
    assert not plot_sizes(squares([3, 3, 3, 3])).lines  # all alike
    assert "positions" in plot_sizes(squares([3], "pixels", 1.0)).get_xlabel()
    with pytest.raises(ValueError, match="bins=0 must be at least 1"):
        plot_sizes(squares([3]), bins=0)
    with pytest.raises(TypeError, match="border=1 must be True or False"):
        plot_sizes(squares([3]), border=1)


# --- pole figures ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth():
    return simulate_scan((8, 10), (32, 30), n_grains=3, seed=1)


def test_poles_are_the_normals_of_all_equal_planes(truth):
    """Against the definition: h a* + k b* + l c* of every permutation and sign, cubic."""
    gold = truth.crystal
    for plane, number in (((0, 0, 1), 3), ((1, 1, 1), 4), ((0, 1, 1), 6), ((1, 2, 3), 24)):
        found = pole_directions(truth.orientations, gold, plane)
        assert found.shape == (3, number, 3)
        np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1)
        assert (found[..., 2] >= 0).all()
    matrix = truth.orientations[0]
    expected = [matrix.T @ axis for axis in np.eye(3)]  # the cube axes, seen from the microscope
    found = pole_directions(truth.orientations[:1], gold, (0, 0, 2))[0]
    for one in expected:
        assert np.abs(found @ one).max() == pytest.approx(1)


def test_poles_of_a_crystal_that_is_not_cubic():
    from py4DSTEM.process.diffraction import Crystal

    magnesium = Crystal(
        np.array([[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]), 12, [3.21, 3.21, 5.21, 90, 90, 120]
    )
    identity = np.eye(3)[None]
    assert pole_directions(identity, magnesium, (0, 0, 1)).shape == (1, 1, 3)
    prisms = pole_directions(identity, magnesium, (1, 0, 0))[0]
    assert len(prisms) == 3
    # The normal of (100) is at right angles to b and c.
    assert np.abs(prisms @ np.asarray(magnesium.lat_real[1])).min() < 1e-6
    assert np.abs(prisms @ np.asarray(magnesium.lat_real[2])).max() < 1e-6


def test_projection():
    np.testing.assert_allclose(project(np.array([0, 0, 1.0])), 0)
    np.testing.assert_allclose(project(np.array([0.6, 0, 0.8])), [1 / 3, 0])
    np.testing.assert_allclose(project(np.array([0, 1.0, 0])), [0, 1])


def test_density_of_poles():
    """Its mean over the sphere is 1, at half the height at the width, as far as opposite poles."""
    rng = np.random.default_rng(0)
    places = rng.normal(size=(20_000, 3))
    places /= np.linalg.norm(places, axis=1)[:, None]
    one = np.array([[[0.0, 0, 1]]])
    density = density_of_poles(places, one, np.ones(1), 20)
    assert density.mean() == pytest.approx(1, abs=0.05)
    tilted = np.array([[0, 0, 1], [np.sin(np.pi / 9), 0, np.cos(np.pi / 9)], [0, 0, -1]])
    top, half, bottom = density_of_poles(tilted, one, np.ones(1), 20)
    assert half / top == pytest.approx(0.5, rel=1e-6)
    assert bottom == top
    random = Rotation.random(4000, random_state=1).as_matrix()
    even = density_of_poles(places[:50], random, np.full(4000, 1 / 4000), 15)
    np.testing.assert_allclose(even, 1, atol=0.1)


def test_plot_orientations(truth):
    labels = truth.labels
    seeds = [np.argwhere(labels == k)[0] for k in range(3)]
    clusters = Clusters(labels, seeds, np.zeros(labels.shape), background=(2,))
    orientation = SimpleNamespace(matrix=truth.orientations[:, None, None])
    axes = clusters.plot_orientations(orientation, truth.crystal)
    axes[0].figure.canvas.draw()
    assert [ax.get_title() for ax in axes] == ["{001}", "{011}", "{111}"]
    for ax, plane in zip(axes, ((0, 0, 1), (0, 1, 1), (1, 1, 1)), strict=True):
        (dots,) = ax.collections
        expected = project(pole_directions(truth.orientations[:2], truth.crystal, plane))
        np.testing.assert_allclose(dots.get_offsets()[:, ::-1], expected.reshape(-1, 2))
        colors = cluster_colors(labels, 3)[:2].repeat(expected.shape[1], axis=0)
        np.testing.assert_allclose(dots.get_facecolors()[:, :3], colors)
        sizes = dots.get_sizes()[:: expected.shape[1]]
        assert sizes[1] / sizes[0] == pytest.approx(clusters.sizes[1] / clusters.sizes[0])
        assert not ax.images
    with_density = plot_orientations(
        orientation, truth.crystal, poles=[(1, 1, -1)], density=True, width=20
    )
    assert with_density[0].get_title() == "{11\N{MINUS SIGN}1}"
    assert np.nanmax(with_density[0].images[0].get_array()) > 1


def test_wrong_orientations(truth):
    orientation = SimpleNamespace(matrix=truth.orientations[:, None, None])
    clusters = Clusters(np.zeros((4, 5), int), [[0, 0]], np.zeros((4, 5)))
    with pytest.raises(ValueError, match=r"orientation of shape \(3, 1\) does not fit; it must be"):
        plot_orientations(orientation, truth.crystal, clusters=clusters)
    with pytest.raises(TypeError, match="orientation must be an OrientationMap"):
        plot_orientations(truth.orientations, truth.crystal)
    with pytest.raises(TypeError, match="crystal must be a py4DSTEM Crystal"):
        plot_orientations(orientation, "gold")
    none = SimpleNamespace(matrix=np.zeros((3, 1, 1, 3, 3)))
    with pytest.raises(ValueError, match="orientation holds no match"):
        plot_orientations(none, truth.crystal)
    for poles, text in (([], "must name"), ([(1, 1)], "three whole"), ([(0, 0, 0)], "not 0")):
        with pytest.raises(ValueError, match=text):
            plot_orientations(orientation, truth.crystal, poles=poles)
    with pytest.raises(ValueError, match="axes must be 3, one for each pole, not 1"):
        plot_orientations(orientation, truth.crystal, plt.subplots()[1])
    with pytest.raises(ValueError, match=r"width=0\.1"):
        plot_orientations(orientation, truth.crystal, width=0.1)
