"""Orientations of clusters on the scan, and boundaries between clusters."""

from __future__ import annotations

import contextlib
import io
import warnings
from copy import deepcopy
from functools import lru_cache

import matplotlib.pyplot as plt
import numpy as np
import pytest
from py4DSTEM import Calibration
from py4DSTEM.braggvectors import BraggVectors
from py4DSTEM.process.diffraction import Crystal
from py4DSTEM.process.diffraction.utils import OrientationMap
from scipy.spatial.transform import Rotation

from py4dstem_clustering import Clusters
from py4dstem_clustering.diffraction.misorientation import get_symmetry, misorientation
from py4dstem_clustering.diffraction.orientation import best_positions, cluster_orientations
from py4dstem_clustering.scan.calibration import count_patterns

FIELDS = ("matrix", "family", "corr", "inds", "mirror", "angles")
FCC = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]


@lru_cache
def gold():
    return Crystal(np.array(FCC), 79, 4.0782)


@lru_cache
def magnesium():
    places = [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]
    return Crystal(np.array(places), 12, [3.209, 3.209, 5.211, 90, 90, 120])


CUBE, HEXAGON = get_symmetry(gold()), get_symmetry(magnesium())


def clusters_of(labels, **options):
    labels = np.array(labels)
    seeds = np.array([np.argwhere(labels == k)[0] for k in range(labels.max() + 1)])
    return Clusters(labels, seeds.reshape(-1, 2), np.zeros(labels.shape), {}, **options)


def random_rotations(n, seed=0):
    quaternions = np.random.default_rng(seed).standard_normal((n, 4))
    return Rotation.from_quat(quaternions).as_matrix()


def turn(degrees, axis):
    axis = np.array(axis, dtype=float)
    return Rotation.from_rotvec(np.deg2rad(degrees) * axis / np.linalg.norm(axis)).as_matrix()


def map_of(matrices, shape=None):
    """As py4DSTEM makes it without pymatgen: `family` is all zero."""
    matrices = np.asarray(matrices)
    shape = (len(matrices), 1) if shape is None else shape
    out = OrientationMap(*shape, 1)
    out.matrix[:] = matrices.reshape(*shape, 1, 3, 3)
    out.corr[:] = matrices.any(axis=(-1, -2)).reshape(*shape, 1)
    return out


def full_map(n, num_matches, seed=0):
    """Every field of every match has a value of its own."""
    rng = np.random.default_rng(seed)
    out = OrientationMap(n, 1, num_matches)
    shape = (n, 1, num_matches)
    out.matrix[:] = random_rotations(n * num_matches, seed).reshape(*shape, 3, 3)
    out.family[:] = random_rotations(n * num_matches, seed + 1).reshape(*shape, 3, 3)
    out.corr[:] = rng.uniform(0.5, 2, shape)
    out.inds[:] = rng.integers(1, 100, (*shape, 2))
    out.mirror[:] = rng.random(shape) < 0.5
    out.angles[:] = rng.uniform(1, 3, (*shape, 3))
    return out


LABELS = np.array([[0, 0, -1, 2], [1, 0, -1, 2], [1, 1, 3, 3]])

# --- maps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_matches", [1, 3])
def test_every_field_is_expanded(num_matches):
    per_cluster = full_map(4, num_matches)
    kept = deepcopy(per_cluster)
    found = clusters_of(LABELS).expand_orientation_map(per_cluster)
    assert type(found) is OrientationMap
    assert (found.num_x, found.num_y, found.num_matches) == (3, 4, num_matches)
    for name in FIELDS:
        value, source = getattr(found, name), getattr(per_cluster, name)
        assert value.shape == (3, 4, *source.shape[2:])
        assert value.dtype == source.dtype
        for position in np.ndindex(3, 4):
            if LABELS[position] >= 0:
                np.testing.assert_array_equal(value[position], source[LABELS[position], 0])
        np.testing.assert_array_equal(source, getattr(kept, name))
    assert (found.corr[LABELS < 0] == 0).all()
    for name in ("matrix", "family"):
        assert (getattr(found, name)[LABELS < 0] == np.eye(3)).all()
    # Nothing is shared.
    found.matrix[:] = found.corr[:] = 7
    np.testing.assert_array_equal(per_cluster.matrix, kept.matrix)
    np.testing.assert_array_equal(per_cluster.corr, kept.corr)


def test_where_nothing_matched():
    per_cluster = full_map(4, 3)
    per_cluster.matrix[1] = per_cluster.family[1] = 0  # too few peaks
    per_cluster.corr[1] = 0
    per_cluster.corr[2, 0, 1:] = 0  # no second match
    per_cluster.family[2, 0, 1:] = 0
    per_cluster.matrix[3, 0, 2] = np.nan
    found = clusters_of(LABELS).expand_orientation_map(per_cluster)
    none = np.zeros((3, 4, 3), bool)
    none[LABELS < 0] = none[LABELS == 1] = True
    none[LABELS == 2] = [False, True, True]
    none[LABELS == 3] = [False, False, True]
    assert (found.corr[none] == 0).all()
    assert (found.corr[~none] > 0).all()
    assert (found.matrix[none] == np.eye(3)).all()
    assert (found.family[none] == np.eye(3)).all()
    inside = ~none[..., 0]
    np.testing.assert_array_equal(found.matrix[inside, 0], per_cluster.matrix[LABELS[inside], 0, 0])


def test_maps_of_py4dstem_without_pymatgen_keep_their_matches():
    per_cluster = map_of(random_rotations(4))
    found = clusters_of(LABELS).expand_orientation_map(per_cluster)
    np.testing.assert_array_equal(found.corr[..., 0], LABELS >= 0)
    np.testing.assert_array_equal(found.matrix[0, 3, 0], per_cluster.matrix[2, 0, 0])


def test_no_clusters_give_an_empty_map():
    found = clusters_of(np.full((3, 4), -1)).expand_orientation_map(OrientationMap(0, 1, 2))
    assert found.corr.shape == (3, 4, 2)
    assert not found.corr.any()
    assert (found.matrix == np.eye(3)).all()


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (None, TypeError, r"orientation must be an OrientationMap .* not NoneType"),
        (np.eye(3), TypeError, r"not ndarray"),
        (full_map(3, 1), ValueError, r"shape \(3, 1\) does not fit; it must be \(4, 1\)"),
        (OrientationMap(3, 4, 1), ValueError, r"shape \(3, 4\) does not fit"),
    ],
)
def test_wrong_maps(value, error, match):
    with pytest.raises(error, match=match):
        clusters_of(LABELS).expand_orientation_map(value)


# --- in py4DSTEM -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planned():
    """Gold with an orientation plan, of the kind that knows its symmetry."""
    pytest.importorskip("pymatgen.symmetry.analyzer")
    crystal = Crystal(np.array(FCC), 79, 4.0782)
    assert crystal.pymatgen_available
    crystal.calculate_structure_factors(1.2)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        # Of spglib, and of py4DSTEM 0.14.18.
        warnings.filterwarnings("ignore", "Set OLD_ERROR|dict interface", DeprecationWarning)
        warnings.filterwarnings("ignore", "Converting `np.integer`", DeprecationWarning)
        crystal.orientation_plan(
            angle_step_zone_axis=8, angle_step_in_plane=8, accel_voltage=300e3, progress_bar=False
        )
    return crystal


@pytest.fixture
def matched(planned):
    """Orientations of four clusters by py4DSTEM; the last one has no disks."""
    peaks = BraggVectors((4, 1), (96, 90), calibration=calibration_of(np.full((4, 1), 47.5)))
    for k, matrix in enumerate(random_rotations(3, 5)):
        pattern = planned.generate_diffraction_pattern(
            orientation_matrix=matrix, sigma_excitation_error=0.03
        ).data
        rows = np.zeros(len(pattern), peaks._v_uncal.dtype)
        rows["qx"], rows["qy"] = pattern["qx"] / 0.03 + 47.5, pattern["qy"] / 0.03 + 44.5
        rows["intensity"] = pattern["intensity"]
        peaks._v_uncal[k, 0].add(rows)
    peaks.setcal()
    peaks.calstate.update(ellipse=True, rotate=True)
    return planned.match_orientations(peaks, progress_bar=False)


def calibration_of(qx0):
    calibration = Calibration()
    calibration.set_Q_pixel_size(0.03)
    calibration.set_Q_pixel_units("A^-1")
    calibration.set_origin((qx0, np.full(qx0.shape, 44.5)))
    calibration.set_ellipse((1.0, 1.0, 0.0))
    calibration.set_QR_rotation(0.0)
    return calibration


def test_py4dstem_draws_and_clusters_an_expanded_map(planned, matched):
    assert not matched.corr[3].any()
    clusters = clusters_of(LABELS)
    found = clusters.expand_orientation_map(matched)
    with np.errstate(all="raise"):
        images, fig, _ = planned.plot_orientation_maps(found, returnfig=True)
    assert isinstance(fig, plt.Figure)
    colours = np.asarray(images)
    assert np.isfinite(colours).all()
    planned.orientation_map = found
    planned.cluster_grains(threshold_add=0.1, angle_tolerance_deg=1, progress_bar=False)
    grains = planned.cluster_orientation_map(area_min=1)
    np.testing.assert_array_equal(grains.corr[..., 0] > 0, (LABELS >= 0) & (LABELS != 3))
    for k in range(3):
        x, y = np.argwhere(k == LABELS)[0]
        best = found.matrix[x, y, 0]
        assert (misorientation(grains.matrix[k == LABELS][:, 0], best, planned) < 1e-6).all()


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")  # of spglib
@pytest.mark.filterwarnings("ignore:dict interface:DeprecationWarning")
def test_py4dstem_exports_an_expanded_map(planned, matched, tmp_path):
    pytest.importorskip("orix")
    found = clusters_of(LABELS).expand_orientation_map(matched)
    planned.save_ang_file(str(tmp_path / "map.ang"), found)
    assert (tmp_path / "map.ang").stat().st_size > 0
    crystal_map = planned.orientation_map_to_orix_CrystalMap(found)
    assert crystal_map.size == LABELS.size


# --- Bragg vectors ---------------------------------------------------------------------------


def bragg_of_clusters():
    out = BraggVectors((4, 1), (50, 44), name="disks", calibration=calibration_of(QX0))
    rng = np.random.default_rng(0)
    for k in range(3):  # the last cluster has none
        rows = np.zeros(5 + k, out._v_uncal.dtype)
        for name in rows.dtype.names:
            rows[name] = rng.uniform(10, 40, len(rows))
        out._v_uncal[k, 0].add(rows)
    return out


QX0 = np.array([[20.0], [21], [22], [23]])


def test_bragg_vectors_are_expanded():
    per_cluster = bragg_of_clusters()
    per_cluster.setcal()
    found = clusters_of(LABELS).expand_bragg(per_cluster)
    assert type(found) is BraggVectors
    assert found.shape == found.Rshape == (3, 4)
    assert found.Qshape == (50, 44)
    assert found.calstate == per_cluster.calstate
    for x, y in np.ndindex(3, 4):
        k = LABELS[x, y]
        if k < 0:
            assert len(found.raw[x, y].data) == len(found.cal[x, y].data) == 0
        else:
            for kind in ("raw", "cal"):
                mine, theirs = getattr(found, kind)[x, y], getattr(per_cluster, kind)[k, 0]
                np.testing.assert_array_equal(mine.data, theirs.data)
    assert len(found.raw[0, 0].data) == 5
    inside = LABELS >= 0
    origin = found.calibration.get_origin()
    np.testing.assert_array_equal(origin[0][inside], QX0[LABELS[inside], 0])
    assert np.isfinite(origin[0]).all()
    assert (origin[1] == 44.5).all()
    assert found.calibration.get_Q_pixel_size() == 0.03
    # Nothing is shared.
    found.raw[0, 0].data["qx"] = 0
    found._v_uncal[1, 3].data["qx"] = 0
    found.calibration.set_Q_pixel_size(9)
    again = bragg_of_clusters()
    for k in range(4):
        np.testing.assert_array_equal(per_cluster.raw[k, 0].data, again.raw[k, 0].data)
    assert per_cluster.calibration.get_Q_pixel_size() == 0.03
    np.testing.assert_array_equal(per_cluster.calibration.get_origin()[0], QX0)
    assert per_cluster.shape == (4, 1)


def test_expanded_bragg_vectors_of_uncalibrated_ones():
    per_cluster = BraggVectors((4, 1), (50, 44))
    found = clusters_of(LABELS).expand_bragg(per_cluster)
    assert not any(found.calstate.values())
    assert found.calibration.get_origin() is None


def test_expanded_bragg_vectors_survive_a_file(tmp_path):
    import py4DSTEM

    found = clusters_of(LABELS).expand_bragg(bragg_of_clusters())
    py4DSTEM.save(tmp_path / "disks.h5", found)
    read = py4DSTEM.read(tmp_path / "disks.h5")
    for position in np.ndindex(3, 4):
        np.testing.assert_array_equal(read.raw[position].data, found.raw[position].data)
    np.testing.assert_array_equal(
        read.calibration.get_origin()[0], found.calibration.get_origin()[0]
    )


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (None, TypeError, r"per_cluster must be BraggVectors .* not NoneType"),
        (OrientationMap(4, 1, 1), TypeError, "not OrientationMap"),
        (BraggVectors((3, 4), (5, 5)), ValueError, r"shape \(3, 4\) must have shape \(4, 1\)"),
    ],
)
def test_wrong_bragg_vectors(value, error, match):
    with pytest.raises(error, match=match):
        clusters_of(LABELS).expand_bragg(value)


# --- angles ----------------------------------------------------------------------------------


def test_misorientation_is_in_degrees_and_nan_without_a_match():
    a = random_rotations(6).reshape(2, 3, 3, 3)
    b = turn(7, [1, 2, 3]) @ a
    b[0, 1], b[1, 2] = 0, np.nan
    kept = b.copy()
    found = misorientation(a, CUBE[5] @ b, gold())
    expected = np.full((2, 3), 7.0)
    expected[0, 1] = expected[1, 2] = np.nan
    np.testing.assert_allclose(found, expected)
    np.testing.assert_array_equal(b, kept)
    assert misorientation(a, a[0, 0], gold()).shape == (2, 3)
    assert np.isnan(misorientation(b[1, 2], a[0, 0], gold()))
    # 60 degrees about c is nothing to a hexagonal lattice, and 60 to a cubic one.
    assert misorientation(np.eye(3), turn(60, [0, 0, 1]), magnesium()) == pytest.approx(0)
    assert misorientation(np.eye(3), turn(60, [0, 0, 1]), gold()) == pytest.approx(30)


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (np.eye(2), ValueError, r"a of shape \(2, 2\) must hold 3 x 3"),
        (5.0, ValueError, r"a of shape \(\) must hold 3 x 3"),
        (2 * np.eye(3), ValueError, "a holds matrices that are no rotations"),
        (-np.eye(3), ValueError, "a holds matrices that are no rotations"),
        ("x", ValueError, None),
    ],
)
def test_wrong_matrices(value, error, match):
    with pytest.raises(error, match=match):
        misorientation(value, np.eye(3), gold())
    if match:
        with pytest.raises(error, match=match.replace("a ", "b ", 1)):
            misorientation(np.eye(3), value, gold())


def test_what_is_no_crystal():
    for function in (get_symmetry, lambda crystal: misorientation(np.eye(3), np.eye(3), crystal)):
        with pytest.raises(TypeError, match="crystal must be a py4DSTEM Crystal, not str"):
            function("gold")


# --- boundaries ------------------------------------------------------------------------------


def length_of(labels, **options):
    matrices = random_rotations(labels.max() + 1)
    return clusters_of(labels, **options).get_boundaries(map_of(matrices), gold())


@pytest.mark.parametrize("degrees", [0, 22.5, 30, 45, 60, 90, 135])
def test_lengths_of_straight_boundaries(degrees):
    x, y = np.indices((300, 300)) - 149.7
    away = np.deg2rad(degrees)
    disk = np.hypot(x, y) < 140
    labels = (x * np.cos(away) + y * np.sin(away) > 0).astype(int)
    labels[~disk] = -1
    (row,) = length_of(labels)
    assert (row["label_a"], row["label_b"]) == (0, 1)
    assert row["length"] == pytest.approx(280, rel=0.06)
    (row,) = length_of(labels, pixel_size=2.5, pixel_units="nm")
    assert row["length"] == pytest.approx(700, rel=0.06)


@pytest.mark.parametrize("radius", [20, 50])
def test_the_length_around_a_circle(radius):
    x, y = np.indices((120, 130))
    labels = (np.hypot(x - 60.3, y - 63.1) < radius).astype(int)
    (row,) = length_of(labels)
    assert row["length"] == pytest.approx(2 * np.pi * radius, rel=0.06)


@pytest.mark.parametrize("radius", [0.5, 1, 2.3, 9])
def test_the_perimeter_is_the_length_of_the_boundary(radius):
    x, y = np.indices((23, 26))
    labels = (np.hypot(x - 11, y - 12) > radius).astype(int)
    (row,) = length_of(labels, pixel_size=2.5)
    assert clusters_of(labels, pixel_size=2.5).properties()["perimeter"][0] == pytest.approx(
        row["length"]
    )


def test_pairs_that_touch():
    labels = np.array([[0, 0, 3, -1, 2], [0, 1, 3, -1, 2], [1, 1, -1, -1, 2]])
    table = length_of(labels)
    assert list(zip(table["label_a"], table["label_b"], strict=True)) == [
        (0, 1),
        (0, 3),
        (1, 3),
    ]
    # Counted by hand: sides and corners across.
    for row, (sides, corners) in zip(table, [(3, 2), (1, 1), (1, 2)], strict=True):
        expected = np.pi / 8 * (sides + corners / 2**0.5)
        assert row["length"] == pytest.approx(expected)


def pair_of_clusters(first, second, crystal=None, **options):
    labels = np.repeat([[0, 0, 1, 1]], 3, axis=0)
    orientation = map_of([first, second])
    (row,) = clusters_of(labels).get_boundaries(orientation, crystal or gold(), **options)
    return row


@pytest.mark.parametrize("deviation", [0, 5, 8, 9])
@pytest.mark.parametrize("axis", [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, -1)])
def test_sigma_3(axis, deviation):
    rng = np.random.default_rng(deviation)
    first = random_rotations(1, deviation)[0]
    second = turn(deviation, rng.standard_normal(3)) @ turn(60, axis) @ first
    second = CUBE[rng.integers(24)] @ second
    for pair in ((first, second), (second, first)):
        row = pair_of_clusters(*pair)
        assert row["twin_deviation"] == pytest.approx(deviation, abs=1e-5)
        assert row["twin"] == (deviation < 15 / 3**0.5)
        if deviation == 0:
            assert row["angle"] == pytest.approx(60)
            found = [row["axis_x"], row["axis_y"], row["axis_z"]]
            np.testing.assert_allclose(found, 3**-0.5, atol=1e-6)


def test_tolerance_of_twins():
    first = random_rotations(1, 1)[0]
    second = turn(5, [1, 3, 2]) @ turn(60, [1, 1, 1]) @ first
    for tolerance, expected in ((4.9, False), (5.1, True)):
        assert pair_of_clusters(first, second, tolerance=tolerance)["twin"] == expected
    row = pair_of_clusters(first, second, twin=None)
    assert not row["twin"]
    assert np.isnan(row["twin_deviation"])


def test_other_boundaries_are_no_twins():
    first = random_rotations(1, 3)[0]
    for degrees, axis in ((60, [1, 1, 0]), (45, [1, 0, 0]), (3, [1, 1, 1]), (0, [1, 1, 1])):
        row = pair_of_clusters(first, turn(degrees, axis) @ first)
        assert not row["twin"]
        assert row["twin_deviation"] > 15 / 3**0.5
        assert np.isnan(row["axis_x"]) == (degrees == 0)


@pytest.mark.parametrize(
    "twin",
    [
        (86.3, (1, 0, 0)),
        (86.3, (0, 1, 0)),
        (86.3, (1, 1, 0)),
        (86.3, (-1, 0, 0)),
        [86.3, np.array([2, 0, 0])],
    ],
)
def test_twins_of_magnesium(twin):
    first = random_rotations(1, 2)[0]
    second = HEXAGON[7] @ turn(1.5, [3, 1, 2]) @ turn(86.3, [1, 0, 0]) @ first
    row = pair_of_clusters(first, second, magnesium())
    assert not row["twin"]  # "auto" knows none
    assert np.isnan(row["twin_deviation"])
    assert row["angle"] == pytest.approx(86.3, abs=1.6)
    for pair in ((first, second), (second, first)):
        row = pair_of_clusters(*pair, magnesium(), twin=twin, tolerance=5)
        assert row["twin"]
        assert row["twin_deviation"] == pytest.approx(1.5, abs=1e-6)
    other = pair_of_clusters(first, second, magnesium(), twin=(86.3, (1, -1, 0)))
    assert not other["twin"]  # <10-10>, 30 degrees from <11-20>


def test_twins_in_either_order_without_any_symmetry():
    # Here no twofold axis turns the twin into its inverse.
    places = [[0, 0, 0], [0.2, 0.3, 0.37]]
    crystal = Crystal(np.array(places), [40, 8], [5.1, 6.2, 7.3, 80, 99, 93])
    assert len(get_symmetry(crystal)) == 1
    first = random_rotations(1, 2)[0]
    second = turn(100, crystal.lat_real[1]) @ first
    for pair in ((first, second), (second, first)):
        row = pair_of_clusters(*pair, crystal, twin=(100, (0, 1, 0)))
        assert row["twin"]
        assert row["twin_deviation"] == pytest.approx(0, abs=1e-6)
        assert row["angle"] == pytest.approx(100)


def test_boundaries_without_an_orientation():
    labels = np.array([[0, 1, 2], [0, 1, 2]])
    matrices = random_rotations(3)
    matrices[1] = 0
    table = clusters_of(labels).get_boundaries(map_of(matrices), gold())
    assert len(table) == 2
    for field in ("angle", "axis_x", "axis_y", "axis_z", "twin_deviation"):
        assert np.isnan(table[field]).all()
    assert not table["twin"].any()
    assert (table["length"] > 0).all()
    # Expanded, the identity stands for none.
    expanded = clusters_of(labels).expand_orientation_map(map_of(matrices))
    again = clusters_of(labels).get_boundaries(expanded, gold())
    assert np.isnan(again["angle"]).all()


def test_boundaries_of_a_map_of_the_scan():
    labels = np.repeat([[0, 0, 1, -1]], 4, axis=0)
    matrices = random_rotations(16, 9).reshape(4, 4, 3, 3)
    orientation = map_of(matrices, (4, 4))
    orientation.corr[..., 0] = np.random.default_rng(0).uniform(0, 1, (4, 4))
    orientation.corr[3, 1, 0], orientation.corr[2, 2, 0] = 2, 3
    orientation.corr[0, 1, 0] = np.nan
    orientation.corr[:, 3] = 9
    orientation.matrix[1, 0], orientation.corr[1, 0] = 0, 8
    (row,) = clusters_of(labels).get_boundaries(orientation, gold())
    expected = misorientation(matrices[3, 1], matrices[2, 2], gold())
    assert row["angle"] == pytest.approx(float(expected))


def slow_best(labels, orientation):
    """Position of each cluster by loops over all positions."""
    found = []
    for label in range(labels.max() + 1):
        best, place = None, -1
        for k, position in enumerate(np.ndindex(*labels.shape)):
            corr = orientation.corr[position][0]
            if labels[position] != label or not orientation.matrix[position][0].any():
                continue
            if not corr > 0:
                continue
            value = (int(orientation.verdict[position]), corr)
            if best is None or value > best:
                best, place = value, k
        found.append(place)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_one_rule_for_the_orientation_of_a_cluster(seed):
    """Orientation, verdict and strain of a cluster come from one and the same position."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), 10).reshape(8, 5)
    labels[:, 4] = np.where(rng.random(8) < 0.3, -1, labels[:, 4])
    orientation = map_of(random_rotations(40, seed).reshape(8, 5, 3, 3), (8, 5))
    orientation.corr[..., 0] = rng.choice([0.2, 0.5, 0.9], (8, 5))
    orientation.verdict = rng.integers(0, 3, (8, 5)).astype(np.uint8)
    # The highest correlation of the first cluster has no orientation.
    orientation.corr[0, 0], orientation.matrix[0, 0], orientation.verdict[0, 0] = 9, 0, 2
    orientation.corr[2, 1], orientation.verdict[2, 1] = np.nan, 2
    orientation.corr[labels == 3] = 0  # a cluster without any orientation
    found = best_positions(labels, orientation)
    assert found.tolist() == slow_best(labels, orientation)
    assert found[3] == -1
    assert 0 not in found
    matrices = orientation.matrix[:, :, 0].reshape(-1, 3, 3)[found]
    verdict = orientation.verdict.ravel()[found]
    chosen = cluster_orientations(labels, orientation)
    np.testing.assert_array_equal(chosen[:3], matrices[:3])
    assert not chosen[3].any()
    for row in clusters_of(labels).get_boundaries(orientation, gold()):
        pair = [row["label_a"], row["label_b"]]
        if 3 in pair:
            assert np.isnan(row["angle"])
            assert row["verdict"] == ""
            continue
        assert row["angle"] == pytest.approx(float(misorientation(*matrices[pair], gold())))
        assert row["verdict"] == ("not indexed", "ambiguous", "sure")[verdict[pair].min()]


def test_no_boundaries():
    for labels in (np.zeros((3, 4), int), np.array([[0, -1, 1]])):
        assert len(length_of(labels)) == 0
    empty = clusters_of(np.full((2, 2), -1))
    assert len(empty.get_boundaries(OrientationMap(0, 1, 1), gold())) == 0


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"twin": "sigma5"}, ValueError, "twin='sigma5' must be 'auto', None"),
        ({"twin": 60}, TypeError, r"twin=60 must be 'auto', None, or \(degrees"),
        ({"twin": (60, (1, 1))}, TypeError, r"twin=\(60, \(1, 1\)\) must be"),
        ({"twin": (60, "abc")}, TypeError, "must be 'auto', None, or"),
        ({"twin": (60, (0, 0, 0))}, ValueError, "must be a direction, not 0"),
        ({"twin": (200, (1, 1, 1))}, ValueError, "the angle of twin=200 must be"),
        ({"tolerance": -1}, ValueError, "tolerance=-1 must be"),
        ({"tolerance": "x"}, TypeError, "tolerance='x' must be"),
        ({"crystal": None}, TypeError, "crystal must be a py4DSTEM Crystal, not NoneType"),
        ({"orientation": None}, TypeError, "orientation must be an OrientationMap"),
        (
            {"orientation": OrientationMap(3, 1, 1)},
            ValueError,
            r"shape \(3, 1\) does not fit; it must be \(3, 4\) .* or \(4, 1\)",
        ),
    ],
)
def test_wrong_arguments(options, error, match):
    options = {"orientation": full_map(4, 1), "crystal": gold(), **options}
    with pytest.raises(error, match=match):
        clusters_of(LABELS).get_boundaries(**options)


# --- joining ---------------------------------------------------------------------------------

CHAIN = np.repeat([[0, 1, 2, 3, -1, 4]], 3, axis=0)


def chain(*degrees, **options):
    """Each cluster of `CHAIN` turned by so much against the first."""
    first = random_rotations(1, 1)[0]
    matrices = [
        CUBE[k] @ (first if d is None else turn(d, [1, 2, 3]) @ first)
        for k, d in enumerate(degrees)
    ]
    orientation = map_of(matrices)
    for k, d in enumerate(degrees):
        if d is None:
            orientation.matrix[k] = orientation.corr[k] = 0
    found = clusters_of(CHAIN).join_by_misorientation(orientation, gold(), **options)
    return found.labels[0].tolist()


def test_pieces_of_a_grain_join():
    assert chain(0, 4, 20, 21, 0) == [0, 0, 1, 1, -1, 2]
    assert chain(0, 4, 8, 12, 0) == [0, 0, 0, 0, -1, 1]  # a chain; 4 touches nothing
    assert chain(0, 8, 16, 24, 0) == [0, 1, 2, 3, -1, 4]
    assert chain(0, 8, 16, 24, 0, max_angle=9) == [0, 0, 0, 0, -1, 1]
    assert chain(0, 30, 31, 1, 0) == [0, 1, 1, 2, -1, 3]
    assert chain(0, 0, 0, 0, 0, max_angle=1e-6) == [0, 0, 0, 0, -1, 1]
    assert chain(0, 1, None, 1, 0, max_angle=180) == [0, 0, 1, 2, -1, 3]
    assert chain(None, None, None, None, None, max_angle=180) == [0, 1, 2, 3, -1, 4]


def test_joins_in_any_order_of_numbers():
    rng = np.random.default_rng(0)
    pieces = np.repeat(np.arange(9), 4).reshape(6, 6)
    matrices = turn(25, [1, 0, 0]) @ np.array([np.eye(3)] * 9)
    for _ in range(5):
        order = rng.permutation(9)
        found = clusters_of(order[pieces]).join_by_misorientation(map_of(matrices), gold())
        assert found.n_clusters == 1
        assert (found.labels == 0).all()


def test_joined_clusters_are_clusters():
    clusters = clusters_of(CHAIN)
    found = clusters.join_by_misorientation(map_of(np.array([np.eye(3)] * 5)), gold(), max_angle=3)
    assert type(found) is Clusters
    assert found.settings["edits"] == ("join_by_misorientation(3.0)",)
    assert found.labels.dtype == clusters.labels.dtype
    np.testing.assert_array_equal(found.sizes, [12, 3])
    for k, seed in enumerate(found.seeds):
        assert found.labels[tuple(seed)] == k
    assert clusters.n_clusters == 5


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (181, ValueError), ("x", TypeError), (None, TypeError)]
)
def test_wrong_angles(value, error):
    with pytest.raises(error, match=f"max_angle={value!r} must be"):
        clusters_of(LABELS).join_by_misorientation(full_map(4, 1), gold(), max_angle=value)


def test_expanded_bragg_vectors_have_the_step_of_the_scan():
    per_cluster = bragg_of_clusters()
    per_cluster.calibration.set_R_pixel_size(2.5)
    per_cluster.calibration.set_R_pixel_units("nm")
    count_patterns(per_cluster.calibration)
    assert per_cluster.calibration.get_R_pixel_units() == ""
    found = clusters_of(LABELS).expand_bragg(per_cluster).calibration
    assert (found.get_R_pixel_size(), found.get_R_pixel_units()) == (2.5, "nm")
