"""Deformations of lattices: right weights, honest errors, no axis preferred."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from py4dstem_clustering.kernels.lattice_fit import fit_lattices, usual_deformation

TRUTH = np.array([[0.99, 0.004], [-0.002, 1.006]])


def lattices(n, disks, radial, turn, seed=0, truth=TRUTH):
    """Places with scatter along the radius, and by turns about the beam."""
    rng = np.random.default_rng(seed)
    reference = rng.uniform(-1.1, 1.1, (n, disks, 2))
    reference /= np.maximum(1, 0.3 / np.linalg.norm(reference, axis=2, keepdims=True)) ** -1
    found = reference @ truth.T
    angle = rng.normal(0, turn, (n, disks, 1))
    found = found + angle * np.stack([-found[..., 1], found[..., 0]], axis=2)
    return found + rng.normal(0, radial, found.shape), reference


def strain(m):
    """First order."""
    return np.stack([1 - m[:, 0, 0], 1 - m[:, 1, 1], -(m[:, 0, 1] + m[:, 1, 0]) / 2], axis=1)


@pytest.mark.parametrize(("radial", "turn"), [(0.003, 0), (0.002, 0.006), (0.0005, 0.01)])
@pytest.mark.parametrize("disks", [7, 14])
def test_errors_are_honest(radial, turn, disks):
    found, reference = lattices(300, disks, radial, turn)
    none = np.zeros(found.shape[:2])
    fit = fit_lattices(found, reference, none, none == 0, True)
    off = np.abs(strain(fit.m) - strain(TRUTH[None]))
    inside = (off < fit.errors[:, :3]).mean()
    assert 0.6 < inside < 0.78
    assert (off < 2 * fit.errors[:, :3]).mean() > 0.88


def test_turns_do_no_harm():
    """Where a crystal bends, the radius counts: strains are far better than with equal weights."""
    found, reference = lattices(200, 10, 0.0005, 0.01)
    none = np.zeros(found.shape[:2])
    scatter = [
        np.std(strain(fit_lattices(found, reference, none, none == 0, robust).m), axis=0).mean()
        for robust in (True, False)
    ]
    assert scatter[0] < 0.5 * scatter[1]


def test_known_errors_are_weights():
    rng = np.random.default_rng(3)
    found, reference = lattices(200, 10, 0.0003, 0)
    error = rng.choice([0.0003, 0.01], size=found.shape[:2])
    found = found + rng.normal(size=found.shape) * np.where(error > 0.001, error, 0)[..., None]
    used = np.ones(error.shape, dtype=bool)
    off = [
        np.std(strain(fit_lattices(found, reference, own, used, True).m), axis=0).mean()
        for own in (error, np.zeros_like(error))
    ]
    assert off[0] < 0.8 * off[1]


def test_places_that_do_not_exist_do_not_count():
    found, reference = lattices(5, 9, 0.002, 0)
    used = np.ones((5, 9), dtype=bool)
    used[:, 7:] = False
    wrong = np.where(used[..., None], found, 99.0)
    none = np.zeros(used.shape)
    a = fit_lattices(wrong, reference, none, used, True)
    b = fit_lattices(found[:, :7], reference[:, :7], none[:, :7], used[:, :7], True)
    np.testing.assert_allclose(a.m, b.m, atol=1e-10)
    np.testing.assert_allclose(a.errors, b.errors, atol=1e-10)


@settings(deadline=None, max_examples=20)
@given(st.floats(-3, 3), st.booleans())
def test_no_axis_is_preferred(angle, robust):
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s], [s, c]])
    found, reference = lattices(3, 8, 0.002, 0.005, seed=4)
    none = np.zeros(found.shape[:2])
    plain = fit_lattices(found, reference, none, none == 0, robust)
    turned = fit_lattices(found @ turn.T, reference @ turn.T, none, none == 0, robust)
    np.testing.assert_allclose(turned.m, turn @ plain.m @ turn.T, atol=1e-7)
    np.testing.assert_allclose(turned.errors[:, 3], plain.errors[:, 3], rtol=1e-5)


@pytest.mark.parametrize("n", [2, 7])
def test_usual_deformations_minimize_what_they_say(n):
    """Squares of residuals over the error, plus squares of strains over the usual one."""
    rng = np.random.default_rng(n)
    reference = rng.normal(0, 0.8, (n, 2))
    found = reference @ np.array([[1.02, 0.01], [-0.03, 0.97]]).T + rng.normal(0, 0.01, (n, 2))
    error, usual = 0.01, 0.02

    def cost(m):
        m = m.reshape(2, 2)
        rest = found - reference @ m.T
        return (rest**2).sum() / error**2 + ((m - np.eye(2)) ** 2).sum() / usual**2

    expected = minimize(cost, np.eye(2).ravel(), tol=1e-12).x.reshape(2, 2)
    m = usual_deformation(found, reference, error, usual)
    np.testing.assert_allclose(m, expected, atol=1e-5)
    nothing = np.empty((0, 2))
    np.testing.assert_allclose(usual_deformation(nothing, nothing, error, usual), np.eye(2))
