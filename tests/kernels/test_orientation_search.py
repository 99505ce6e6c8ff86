"""The search over all orientations: zone axes, polar sums, and known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from py4dstem_clustering import get_symmetry
from py4dstem_clustering.kernels import orientation_search as search_module
from py4dstem_clustering.kernels.kinematic import Window, brightness, make_lattice, predict
from py4dstem_clustering.kernels.orientation_search import make_plan, search, zone_axes
from py4dstem_clustering.kernels.rotations import misorientation_angle
from py4dstem_clustering.simulate.crystals import check_materials

WINDOW = Window(np.array([[30.0, 0], [0, 30]]), np.array([-40.0, -35]), np.array([40.0, 35]))


def lattice_of(material):
    crystal = check_materials(material, 0.08)[0].kinematical(1.5, 300e3)
    keep = np.linalg.norm(crystal.g_vec_all, axis=0) > 1e-6
    intensity = crystal.struct_factors_int[keep]
    lattice = make_lattice(crystal.g_vec_all[:, keep], intensity, crystal.wavelength)
    return lattice, get_symmetry(crystal)


def random_matrices(n, seed):
    return Rotation.from_quat(np.random.default_rng(seed).standard_normal((n, 4))).as_matrix()


@pytest.mark.parametrize(("material", "n_symmetry"), [("gold", 24), ("titanium", 12)])
def test_zone_axes_cover_every_direction_once(material, n_symmetry):
    _, symmetry = lattice_of(material)
    step = np.deg2rad(4)
    axes = zone_axes(symmetry, step)
    np.testing.assert_allclose(np.linalg.norm(axes, axis=1), 1)
    assert len(axes) == pytest.approx(4 * np.pi / step**2 / n_symmetry, rel=0.15)
    directions = random_matrices(300, 1)[:, 2]
    equivalent = np.einsum("sij,nj->nsi", symmetry, directions)
    nearest = np.arccos(np.clip(equivalent @ axes.T, -1, 1)).min(axis=(1, 2))
    assert np.rad2deg(nearest).max() < 4


def test_sums_are_those_of_turned_disks():
    lattice, symmetry = lattice_of("gold")
    plan = make_plan(lattice, symmetry, WINDOW, 1.3)
    image = np.random.default_rng(2).random(plan.grid.shape[:2])
    views = search_module._turned_views(image)
    rings, first, weight = plan.disks[17]
    found = search_module._turned_sums(views, rings, first, weight)
    n = search_module.N_TURNS
    for turn in (0, 1, 50, n - 1):
        expected = sum(
            w * image[r, (f + turn) % n] for r, f, w in zip(rings, first, weight, strict=True)
        )
        assert found[turn] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("material", ["gold", "titanium"])
def test_the_truth_is_among_the_candidates(material):
    lattice, symmetry = lattice_of(material)
    plan = make_plan(lattice, symmetry, WINDOW, 1.5)
    rng = np.random.default_rng(4)
    for truth in random_matrices(6, 3):
        places, error = predict(lattice, truth[None])
        expected = 5 + brightness(lattice, error[0], 0.015)
        keep = (expected > 0) & WINDOW.holds(places[0])
        # Intensities scatter by a factor of three, and places by half a pixel.
        weights = np.exp(0.25 * (expected[keep] + rng.normal(0, 1, keep.sum())))
        measured = places[0, keep] + rng.normal(0, 0.015, (keep.sum(), 2))
        found = search(plan, symmetry, measured, weights, 20)
        assert 1 < len(found) <= 20
        angle = np.rad2deg(misorientation_angle(found, truth, symmetry))
        assert angle.min() < 4
        apart = misorientation_angle(found[:, None], found[None], symmetry)
        assert np.rad2deg(apart[~np.eye(len(found), dtype=bool)]).min() >= 4 - 1e-6
