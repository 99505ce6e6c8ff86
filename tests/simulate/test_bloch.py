"""Bloch waves are those of py4DSTEM, and tables of them are exact between their nodes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from emdfile import PointList
from py4DSTEM.process.diffraction import Crystal
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from py4dstem_clustering.simulate import bloch
from py4dstem_clustering.simulate.bloch import BlochCrystal, propagate_core, rocking_table
from py4dstem_clustering.simulate.crystals import PRESETS, check_materials

BEAM_FIELDS = [("qx", float), ("qy", float), ("intensity", float), *((n, int) for n in "hkl")]


def dynamical(material, k_max=2.0, voltage=300e3):
    (material,) = check_materials(material, 0.08)
    crystal = material.dynamical(2 * k_max, voltage)
    return crystal, BlochCrystal(crystal, k_max)


def orientation(seed):
    quaternion = np.random.default_rng(seed).standard_normal(4)
    return Rotation.from_quat(quaternion).as_matrix()


def beam_list(hkl):
    beams = PointList(np.zeros(len(hkl), dtype=BEAM_FIELDS))
    for axis, name in enumerate("hkl"):
        beams.data[name] = hkl[:, axis]
    return beams


def of_py4dstem(crystal, hkl, zone_axis, depths):
    """Intensities ``(n, J)`` of py4DSTEM."""
    with warnings.catch_warnings():
        # py4DSTEM 0.14.18 makes a number of an array with one element.
        warnings.simplefilter("ignore", DeprecationWarning)
        found = crystal.generate_dynamical_diffraction_pattern(
            beam_list(hkl), list(depths), zone_axis_cartesian=zone_axis, always_return_list=True
        )
    return np.array([pattern.data["intensity"] for pattern in found]).T


def skewed():
    """A crystal without any symmetry, not even a centre, of two elements."""
    cell = np.array([3.1, 4.2, 5.3, 82.0, 97.0, 104.0])
    return Crystal(np.array([[0, 0, 0], [0.31, 0.52, 0.13]]), np.array([22, 8]), cell)


@pytest.mark.parametrize(("seed", "segment"), [(0, 16), (1, 16), (2, 2)])
def test_waves_are_the_exponential_of_the_matrix(seed, segment, monkeypatch):
    monkeypatch.setattr(bloch, "SEGMENT", segment)
    rng = np.random.default_rng(seed)
    matrix = 0.01 * (rng.standard_normal((6, 6)) + 1j * rng.standard_normal((6, 6)))
    matrix = matrix + matrix.conj().T + 1e-4j * rng.random((6, 6))
    np.fill_diagonal(matrix, 0)
    diagonal = rng.uniform(-0.05, 0.08, (6, 4))
    depths = np.array([0, 3.7, 250, 1500.0])
    start = rng.standard_normal(6)
    waves = propagate_core(matrix, diagonal, start, depths)
    assert waves.shape == (4, 6, 4)
    for j, t in np.ndindex(4, 4):
        whole = matrix + np.diag(diagonal[:, t])
        expected = expm(2j * np.pi * depths[j] * whole) @ start
        np.testing.assert_allclose(waves[j, :, t], expected, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("material", "voltage"),
    [("gold", 300e3), ("silicon", 60e3), ("NaCl", 200e3), ("magnesium", 80e3), ("titanium", 300e3)],
)
def test_intensities_are_those_of_py4dstem(material, voltage):
    crystal, bloch_crystal = dynamical(material, voltage=voltage)
    depths = np.array([20, 77.3, 400, 1500.0])
    rng = np.random.default_rng(5)
    tilts = np.column_stack([rng.uniform(-0.01, 0.01, (3, 2)), np.ones(3)])
    axes = tilts @ orientation(7).T / np.linalg.norm(tilts, axis=1)[:, None]
    chosen = bloch_crystal.select(axes)
    found = bloch_crystal.intensities(chosen, axes, depths)
    assert found.shape == (len(chosen), 4, 3)
    for t in range(3):
        expected = of_py4dstem(crystal, bloch_crystal.hkl[chosen], axes[t], depths)
        np.testing.assert_allclose(found[..., t], expected, atol=1e-10)
    assert len(chosen) > 8
    assert found.max(axis=(1, 2))[1:].max() > 0.01


def test_a_crystal_without_symmetry_is_that_of_py4dstem():
    crystal, bloch_crystal = dynamical(skewed())
    axes = orientation(2)[:, 2:].T
    chosen = bloch_crystal.select(axes)
    found = bloch_crystal.intensities(chosen, axes, np.array([150.0, 600.0]))
    expected = of_py4dstem(crystal, bloch_crystal.hkl[chosen], axes[0], [150, 600])
    np.testing.assert_allclose(found[..., 0], expected, atol=1e-10)


def test_gold_at_a_known_two_beam_condition():
    # {111} at its Bragg angle, nothing else near: fringes of the extinction distance k / |U|.
    _, gold = dynamical("gold")
    g = gold.hkl.tolist().index([1, 1, 1])
    zero = gold.hkl.tolist().index([0, 0, 0])
    vector = gold.vectors[g]
    across = np.cross(vector, [1, -2, 0.37])
    across /= np.linalg.norm(across)
    tilt = gold.wavelength * np.linalg.norm(vector) / 2
    axis = across + tilt * vector / np.linalg.norm(vector)
    axis = (axis / np.linalg.norm(axis))[None]
    assert abs(gold.excitation_errors(vector[None], axis)[0, 0]) < 1e-4
    extinction = 1 / (gold.wavelength * gold.strengths[g])
    assert 200 < extinction < 300  # gold {111} at 300 kV, Angstrom
    depths = np.array([extinction / 2, extinction])
    two = gold.intensities(np.array([zero, g]), axis, depths)[..., 0]
    total = two.sum(axis=0)
    # Without absorption sin^2 would be 1 and 0; anomalous absorption makes the phase complex.
    factor = gold.factor(np.array([1, 1, 1]))
    phase = np.pi * depths * gold.wavelength * factor
    expected = np.abs(np.sin(phase)) ** 2
    expected /= expected + np.abs(np.cos(phase)) ** 2
    np.testing.assert_allclose(two[1] / total, expected, atol=1e-3)
    assert expected[0] > 0.95
    assert expected[1] < 0.15
    assert 0.5 < total[1] < total[0] < 0.95


def test_reflections_that_two_steps_excite_are_among_the_beams():
    _, silicon = dynamical("silicon", k_max=1.2)
    assert [2, 0, 0] in silicon.hkl.tolist()  # forbidden: excited by two {111}
    _, gold = dynamical("gold", k_max=1.2)
    parity = gold.hkl % 2
    assert (parity == parity[:, :1]).all()  # mixed indices are in no chain of allowed ones


@pytest.mark.parametrize(
    ("material", "thickness", "seed"),
    [
        ("gold", 25, 1),
        pytest.param("gold", 40, 2, marks=pytest.mark.slow),
        pytest.param("NaCl", 80, 1, marks=pytest.mark.slow),
        pytest.param("titanium", 150, 2, marks=pytest.mark.slow),
    ],
)
def test_a_table_is_exact_between_its_nodes(material, thickness, seed):
    rng = np.random.default_rng(seed)
    _, crystal = dynamical(material)
    turn = orientation(seed)
    angle = rng.uniform(0, 2 * np.pi)
    along, across = rng.uniform(-6e-3, 6e-3, 40), rng.uniform(-1e-3, 1e-3, 40)
    slopes = np.column_stack([along, across]) @ [
        [np.cos(angle), np.sin(angle)],
        [-np.sin(angle), np.cos(angle)],
    ]
    table = rocking_table(crystal, turn, slopes, thickness, 1.3)
    depths = rng.uniform(0, thickness, 40)
    depths[:2] = 0, thickness
    axes = np.column_stack([slopes, np.ones(40)]) @ turn.T
    axes /= np.linalg.norm(axes, axis=1)[:, None]
    chosen = crystal.select(axes)
    numbers = {tuple(hkl): n for n, hkl in enumerate(table.hkl.tolist())}
    errors = []
    for n in range(40):
        exact = crystal.intensities(chosen, axes[n : n + 1], 10 * depths[n : n + 1])[:, 0, 0]
        for hkl, value in zip(crystal.hkl[chosen].tolist(), exact, strict=True):
            k = numbers.get(tuple(hkl))
            found = 0 if k is None else table.intensity(k, slopes[n : n + 1], depths[n : n + 1])[0]
            errors.append(abs(found - value))
        lost = table.intensity(-1, slopes[n : n + 1], depths[n : n + 1])[0]
        errors.append(abs(lost - (1 - exact.sum())))
    # In shares of the electrons; most of it comes from reflections that were left out.
    assert max(errors) < 0.015
    assert np.sqrt(np.mean(np.square(errors))) < 0.002


def test_a_table_of_one_tilt():
    _, crystal = dynamical("silicon")
    table = rocking_table(crystal, orientation(3), np.zeros((5, 2)), 30, 1.3)
    assert table.splines.shape[2:] == (1, 1)
    axis = orientation(3)[:, 2:].T
    chosen = crystal.select(axis)
    exact = crystal.intensities(chosen, axis, np.array([214.0]))[:, 0, 0]
    found = [table.intensity(k, np.zeros((1, 2)), np.array([21.4]))[0] for k in range(len(chosen))]
    np.testing.assert_allclose(found, exact, atol=2e-3)


@pytest.mark.slow
def test_more_nodes_and_more_beams_change_little(monkeypatch):
    _, crystal = dynamical("gold")
    rng = np.random.default_rng(4)
    slopes, depths = rng.uniform(-3e-3, 3e-3, (30, 2)), rng.uniform(2, 30, 30)
    values = []
    for nodes, amplitude in ((3, 0.01), (6, 0.004)):
        monkeypatch.setattr(bloch, "NODES_PER_FRINGE", nodes)
        monkeypatch.setattr(bloch, "MIN_AMPLITUDE", amplitude)
        table = rocking_table(crystal, orientation(6), slopes, 30, 1.3)
        zero = table.hkl.tolist().index([0, 0, 0])
        values.append(table.intensity(zero, slopes, depths))
    assert np.ptp(values[0]) > 0.1
    assert np.abs(values[0] - values[1]).max() < 0.03


def test_presets():
    edges = {
        "gold": 2.355, "aluminium": 2.338, "silicon": 3.136, "NaCl": 3.256, "magnesium": 2.452,
        "titanium": 2.244,
    }  # fmt: skip
    planes = {"magnesium": [1, 0, 1], "titanium": [1, 0, 1]}
    assert set(edges) == set(PRESETS)
    for name, spacing in edges.items():  # strongest or best-known lattice plane, Angstrom
        (material,) = check_materials(name, 0.08)
        g = np.array(planes.get(name, [1, 1, 1])) @ material.crystal.lat_inv
        assert 1 / np.linalg.norm(g) == pytest.approx(spacing, abs=0.002)
        assert material.cubic == (name not in planes)
        assert 0.05 < min(material.displacements.values()) < 0.16
