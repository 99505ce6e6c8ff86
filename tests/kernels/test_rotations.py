"""Rotations of crystals: symmetry against pymatgen, angles and axes against slow references."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py4DSTEM.process.diffraction import Crystal
from scipy.spatial.transform import Rotation

from py4dstem_clustering.diffraction.misorientation import get_symmetry
from py4dstem_clustering.kernels import rotations
from py4dstem_clustering.kernels.rotations import (
    misorientation_angle,
    misorientation_axis,
    steady_rotation,
    symmetry_rotations,
)

FCC = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
HCP = [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]
THIRDS = [[1 / 3, 2 / 3, 0.0], [2 / 3, 1 / 3, 0.5]]

# Name: positions, atomic numbers, cell, number of rotations of the Laue class.
CRYSTALS = {
    "gold": (FCC, 79, 4.078, 24),
    "gold, primitive": ([[0, 0, 0]], 79, [4.0782 / 2**0.5] * 3 + [60] * 3, 24),
    "salt": (
        [*FCC, [0.5, 0.5, 0.5], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]],
        [11] * 4 + [17] * 4,
        5.64,
        24,
    ),
    "silicon": (FCC + [[x + 0.25 for x in place] for place in FCC], 14, 5.431, 24),
    # -43m: no centre of inversion, its fourfold axes are inversions.
    "zinc blende": (
        FCC + [[x + 0.25 for x in place] for place in FCC],
        [30] * 4 + [16] * 4,
        5.41,
        24,
    ),
    # m-3: a cube without fourfold axes.
    "pyrite": (
        [
            *FCC,
            [0.385, 0.385, 0.385],
            [0.615, 0.615, 0.615],
            [0.115, 0.615, 0.885],
            [0.885, 0.385, 0.115],
            [0.615, 0.885, 0.115],
            [0.385, 0.115, 0.885],
            [0.885, 0.115, 0.615],
            [0.115, 0.885, 0.385],
        ],
        [26] * 4 + [16] * 8,
        5.418,
        12,
    ),
    "magnesium": (HCP, 12, [3.209, 3.209, 5.211, 90, 90, 120], 12),
    "zinc oxide": (
        THIRDS + [[x, y, z + 0.382] for x, y, z in THIRDS],
        [30, 30, 8, 8],
        [3.25, 3.25, 5.207, 90, 90, 120],
        12,
    ),
    "rutile": (
        [
            [0, 0, 0],
            [0.5, 0.5, 0.5],
            [0.305, 0.305, 0],
            [0.695, 0.695, 0],
            [0.195, 0.805, 0.5],
            [0.805, 0.195, 0.5],
        ],
        [22] * 2 + [8] * 4,
        [4.594, 4.594, 2.959, 90, 90, 90],
        8,
    ),
    "bismuth": ([[0.234] * 3, [0.766] * 3], 83, [4.746] * 3 + [57.23] * 3, 6),
    "quartz": (
        [
            [0.47, 0, 2 / 3],
            [0, 0.47, 1 / 3],
            [0.53, 0.53, 0],
            [0.413, 0.267, 0.786],
            [0.733, 0.146, 0.786 + 2 / 3],
            [0.854, 0.587, 0.786 + 1 / 3],
            [0.267, 0.413, 0.214],
            [0.146, 0.733, 0.214 + 1 / 3],
            [0.587, 0.854, 0.214 + 2 / 3],
        ],
        [14] * 3 + [8] * 6,
        [4.913, 4.913, 5.405, 90, 90, 120],
        6,
    ),
    "orthorhombic": ([[0, 0, 0]], 26, [3, 4, 5], 4),
    "monoclinic": ([[0, 0, 0], [0.21, 0, 0.37]], [40, 8], [5.1, 5.2, 5.3, 90, 99, 90], 2),
    "triclinic": ([[0, 0, 0], [0.2, 0.3, 0.37]], [40, 8], [5.1, 6.2, 7.3, 80, 99, 93], 1),
    # Cell and places of the atoms are cubic, but not the elements at these places.
    "ordered alloy": (FCC, [79, 79, 29, 29], 3.9, 8),
}


def crystal_of(name):
    positions, numbers, cell, _ = CRYSTALS[name]
    return Crystal(np.array(positions), numbers, cell)


@pytest.fixture(params=list(CRYSTALS))
def name(request):
    return request.param


def random_rotations(n, seed=0):
    quaternions = np.random.default_rng(seed).standard_normal((n, 4))
    return Rotation.from_quat(quaternions).as_matrix()


CUBE = get_symmetry(crystal_of("gold"))
HEXAGON = get_symmetry(crystal_of("magnesium"))
TRIGONAL = get_symmetry(crystal_of("quartz"))
NONE = np.eye(3)[None]
GROUPS = {"cube": CUBE, "hexagon": HEXAGON, "trigonal": TRIGONAL, "none": NONE}

quaternions = st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(
    lambda q: np.linalg.norm(q) > 0.1
)
orientations = quaternions.map(lambda q: Rotation.from_quat(q).as_matrix())
groups = st.sampled_from(list(GROUPS))


# --- symmetry --------------------------------------------------------------------------------


def test_known_numbers_of_rotations(name):
    assert get_symmetry(crystal_of(name)).shape == (CRYSTALS[name][3], 3, 3)


def test_rotations_are_a_group_with_the_identity_first(name):
    found = get_symmetry(crystal_of(name))
    np.testing.assert_allclose(found[0], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(found @ found.transpose(0, 2, 1) - np.eye(3), 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(found), 1)
    for a, b in product(found, found):
        assert (np.abs(a @ b - found).max(axis=(1, 2)) < 1e-4).sum() == 1


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")  # of spglib
@pytest.mark.filterwarnings("ignore:dict interface:DeprecationWarning")
def test_symmetry_equals_that_of_pymatgen(name):
    pytest.importorskip("pymatgen")
    from pymatgen.core.structure import Structure
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    crystal = crystal_of(name)
    structure = Structure(crystal.lat_real, crystal.numbers, crystal.positions)
    operations = SpacegroupAnalyzer(structure, 1e-3).get_point_group_operations(cartesian=True)
    expected = []
    for operation in operations:
        turn = operation.rotation_matrix * np.sign(np.linalg.det(operation.rotation_matrix))
        if not any(np.abs(turn - other).max() < 1e-3 for other in expected):
            expected.append(turn)
    found = get_symmetry(crystal)
    assert len(found) == len(expected)
    for turn in expected:
        assert np.abs(turn - found).max(axis=(1, 2)).min() < 1e-3


def test_diffraction_patterns_have_the_symmetry(name):
    crystal = crystal_of(name)
    crystal.calculate_structure_factors(1.0)
    for turn in get_symmetry(crystal):
        moved = turn @ crystal.g_vec_all
        distance = np.linalg.norm(moved[:, :, None] - crystal.g_vec_all[:, None], axis=0)
        np.testing.assert_allclose(distance.min(axis=1), 0, atol=1e-3)
        again = crystal.struct_factors_int[distance.argmin(axis=1)]
        largest = crystal.struct_factors_int.max()
        np.testing.assert_allclose(again / largest, crystal.struct_factors_int / largest, atol=5e-3)


def test_the_choice_of_origin_and_cell_wraps_does_not_matter(name):
    crystal = crystal_of(name)
    moved = crystal.positions + np.array([0.123, -3.3, 0.77])
    found = symmetry_rotations(crystal.lat_real, moved, crystal.numbers)
    np.testing.assert_allclose(found, get_symmetry(crystal), atol=1e-9)


def test_a_rotated_cell_has_rotated_symmetry():
    crystal = crystal_of("magnesium")
    turn = random_rotations(1, 3)[0]
    found = symmetry_rotations(crystal.lat_real @ turn.T, crystal.positions, crystal.numbers)
    assert len(found) == 12
    for rotation in turn @ HEXAGON @ turn.T:
        assert np.abs(rotation - found).max(axis=(1, 2)).min() < 1e-9


def test_a_cell_that_is_nearly_a_cube():
    for cell, n in (([4, 4, 4.002], 24), ([4, 4, 4.1], 8)):
        found = get_symmetry(Crystal(np.array(FCC), 79, cell))
        assert len(found) == n
        np.testing.assert_allclose(found @ found.transpose(0, 2, 1) - np.eye(3), 0, atol=1e-12)


# --- angles ----------------------------------------------------------------------------------


def slow_angle(a, b, symmetry):
    """Smallest angle over all equivalent orientations of both."""
    angles = [
        Rotation.from_matrix((s @ a) @ (t @ b).T).magnitude() for s in symmetry for t in symmetry
    ]
    return min(angles)


@pytest.mark.parametrize("group", list(GROUPS))
def test_angles_equal_a_slow_reference(group):
    symmetry = GROUPS[group]
    a, b = random_rotations(6, 1), random_rotations(6, 2)
    expected = [slow_angle(*pair, symmetry) for pair in zip(a, b, strict=True)]
    np.testing.assert_allclose(misorientation_angle(a, b, symmetry), expected, rtol=1e-9)


def test_angles_without_symmetry_are_those_of_scipy():
    a, b = random_rotations(300, 1), random_rotations(300, 2)
    expected = Rotation.from_matrix(a @ b.transpose(0, 2, 1)).magnitude()
    np.testing.assert_allclose(misorientation_angle(a, b, NONE), expected, rtol=1e-9)


def test_shapes_are_broadcast(monkeypatch):
    monkeypatch.setattr(rotations, "_ROTATIONS_PER_CHUNK", 7)
    a, b = random_rotations(15, 1).reshape(5, 3, 3, 3), random_rotations(3, 2)
    found = misorientation_angle(a, b, CUBE)
    assert found.shape == (5, 3)
    for i, j in np.ndindex(5, 3):
        assert found[i, j] == pytest.approx(misorientation_angle(a[i, j], b[j], CUBE), rel=1e-12)
    assert misorientation_angle(a[0, 0], b[0], CUBE).shape == ()
    assert misorientation_angle(a[:0], b, CUBE).shape == (0, 3)


def test_largest_angles_are_the_known_ones():
    a = random_rotations(20_000, 5)
    for symmetry, largest in ((CUBE, 62.80), (HEXAGON, 93.84)):
        found = np.rad2deg(misorientation_angle(a, np.eye(3), symmetry))
        assert largest - 3 < found.max() < largest + 0.01


@pytest.mark.parametrize("angle", [1e-9, 1e-7, 1e-5, 1e-3, 0.1, np.pi - 1e-6, np.pi])
def test_angles_are_accurate_where_they_are_small_or_large(angle):
    a = random_rotations(20, 7)
    axes = random_rotations(20, 8)[:, 0]
    b = Rotation.from_rotvec(angle * axes).as_matrix() @ a
    tolerance = {"rtol": 1e-6, "atol": 2e-15}
    np.testing.assert_allclose(misorientation_angle(a, b, NONE), angle, **tolerance)
    if angle < 0.2:
        b = CUBE[np.arange(20)] @ b
        np.testing.assert_allclose(misorientation_angle(a, b, CUBE), angle, **tolerance)
        assert misorientation_axis(a[0], b[0], CUBE)[0] == pytest.approx(angle, rel=1e-6, abs=2e-15)


@settings(deadline=None, max_examples=60)
@given(orientations, orientations, orientations, groups, st.integers(0, 10**6))
def test_misorientation_is_a_distance_between_lattices(a, b, c, group, pick):
    symmetry = GROUPS[group]
    turn = symmetry[pick % len(symmetry)]
    ab = misorientation_angle(a, b, symmetry)
    assert 0 <= ab <= np.pi
    assert misorientation_angle(b, a, symmetry) == pytest.approx(ab, abs=1e-9)
    assert misorientation_angle(turn @ a, a, symmetry) == pytest.approx(0, abs=1e-9)
    assert misorientation_angle(turn @ a, b, symmetry) == pytest.approx(ab, abs=1e-9)
    assert misorientation_angle(a, turn @ b, symmetry) == pytest.approx(ab, abs=1e-9)
    # Turning both in the laboratory changes nothing.
    assert misorientation_angle(a @ c, b @ c, symmetry) == pytest.approx(ab, abs=1e-9)
    ac, cb = (misorientation_angle(*pair, symmetry) for pair in ((a, c), (c, b)))
    assert ab <= ac + cb + 1e-9


# --- axes ------------------------------------------------------------------------------------


def turned(a, degrees, axis):
    axis = np.array(axis, dtype=float)
    return Rotation.from_rotvec(np.deg2rad(degrees) * axis / np.linalg.norm(axis)).as_matrix() @ a


@pytest.mark.parametrize(
    ("symmetry", "degrees", "axis", "expected"),
    [
        (CUBE, 60, [1, 1, 1], [1, 1, 1]),
        (CUBE, 60, [-1, 1, 1], [1, 1, 1]),
        (CUBE, 60, [1, -1, 1], [1, 1, 1]),
        (CUBE, 60, [1, 1, -1], [1, 1, 1]),
        (CUBE, -60, [1, 1, 1], [1, 1, 1]),
        (CUBE, 36.87, [0, -1, 0], [0, 0, 1]),
        (CUBE, 38.94, [1, 0, -1], [0, 1, 1]),
        (CUBE, 3, [3, -1, 2], [1, 2, 3]),
        (CUBE, 1e-4, [3, -1, 2], [1, 2, 3]),
        (HEXAGON, 86.3, [0.5, 0.75**0.5, 0], None),
        (HEXAGON, 20, [0, 0, -1], [0, 0, 1]),
        (NONE, 180, [0.6, 0, -0.8], [-0.6, 0, 0.8]),
        (NONE, 180, [1, 0, 0], [1, 0, 0]),
        (NONE, 180 - 1e-6, [0.6, 0, 0.8], [0.6, 0, 0.8]),
        (NONE, 180 - 1e-3, [0.6, 0, 0.8], [0.6, 0, 0.8]),
        (NONE, 180 - 1e-1, [0.6, 0, 0.8], [0.6, 0, 0.8]),
        (NONE, 1e-3, [-0.6, 0.8, 0], [-0.6, 0.8, 0]),
    ],
)
def test_known_axes(symmetry, degrees, axis, expected):
    for a in random_rotations(5, 4):
        angle, found = misorientation_axis(a, turned(a, degrees, axis), symmetry)
        assert np.rad2deg(angle) == pytest.approx(abs(degrees), rel=1e-6)
        assert np.linalg.norm(found) == pytest.approx(1)
        if expected is not None:
            expected = np.array(expected) / np.linalg.norm(expected)
            np.testing.assert_allclose(found, expected, atol=1e-5)
        else:
            assert found[2] == pytest.approx(0, abs=1e-9)
            away = np.rad2deg(np.arctan2(found[1], found[0])) % 60
            assert min(away, 60 - away) == pytest.approx(0, abs=1e-6)


def test_no_axis_without_a_rotation():
    a = random_rotations(1)[0]
    for b in (a, CUBE[5] @ a):
        angle, axis = misorientation_axis(a, b, CUBE)
        assert angle == pytest.approx(0, abs=1e-12)
        assert np.isnan(axis).all()


@pytest.mark.parametrize("group", list(GROUPS))
def test_equivalent_orientations_have_one_axis(group):
    symmetry = GROUPS[group]
    for seed in range(5):
        a, b = random_rotations(2, 20 + seed)
        angle, axis = misorientation_axis(a, b, symmetry)
        assert angle == pytest.approx(misorientation_angle(a, b, symmetry), rel=1e-12)
        # It is the axis of a rotation that takes the lattice of one into that of the other.
        turn = Rotation.from_rotvec(angle * axis).as_matrix()
        assert min(
            misorientation_angle(turn @ s @ first, second, symmetry)
            for first, second in ((a, b), (b, a))
            for s in symmetry
        ) == pytest.approx(0, abs=1e-9)
        for i, j in ((0, 0), (1, 2), (3, 5), (4, 0), (7, 11)):
            first, second = symmetry[i % len(symmetry)] @ a, symmetry[j % len(symmetry)] @ b
            for pair in ((first, second), (second, first)):
                again, other = misorientation_axis(*pair, symmetry)
                assert again == pytest.approx(angle, rel=1e-9)
                np.testing.assert_allclose(other, axis, atol=1e-9)


@pytest.mark.parametrize("n", [3, 4, 8])
def test_the_error_of_a_steady_rotation_is_that_of_its_rate(n):
    rng = np.random.default_rng(n)
    cubic = get_symmetry(Crystal(np.array(FCC), 79, 4.078))
    speed, noise = np.deg2rad(6), np.deg2rad(0.5)
    times = np.arange(n)
    found = []
    for _ in range(200):
        velocity = rng.normal(size=3)
        velocity *= speed / np.linalg.norm(velocity)
        start = Rotation.from_quat(rng.normal(size=4)).as_matrix()
        turns = Rotation.from_rotvec(times[:, None] * velocity).as_matrix()
        errors = Rotation.from_rotvec(noise * rng.normal(size=(n, 3))).as_matrix()
        matrices = start @ np.swapaxes(errors @ turns, -1, -2)
        rotation = steady_rotation(matrices, times, cubic, np.deg2rad(5))
        found.append((np.linalg.norm(rotation.velocity) - speed, rotation.error))
    deviation, error = np.sqrt(np.mean(np.square(found), axis=0))
    assert error == pytest.approx(deviation, rel=0.2)  # 200 values determine each to 5 %
    best = noise / np.sqrt(((times - times.mean()) ** 2).sum())
    assert deviation == pytest.approx(best, rel=0.2)
