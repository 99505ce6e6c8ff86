"""Checkerboard cross-validation and Bragg disks gained."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import py4DSTEM
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from py4DSTEM import DataCube
from py4DSTEM.braggvectors import BraggVectors
from scipy.spatial.transform import Rotation

from py4dstem_clustering import Clusters, CrossValidation, get_symmetry, simulate_scan
from py4dstem_clustering.diffraction.disks import GainedDisks
from py4dstem_clustering.diffraction.halves import checkerboard, neighbour_errors, take_half
from py4dstem_clustering.grains.validation import METHODS

DISKS = {
    "corrPower": 1.0,
    "sigma_cc": 0,
    "edgeBoundary": 2,
    "minRelativeIntensity": 0.02,
    "relativeToPeak": 1,
    "minPeakSpacing": 4,
    "subpixel": "poly",
}
PLAN = {
    "angle_step_zone_axis": 4.0,
    "angle_step_in_plane": 4.0,
    "accel_voltage": 300e3,
    "zone_axis_range": np.array([[0, 0, 1], [0, 1, 1], [1, 1, 1]]),
    "power_intensity": 0.0,
    "power_intensity_experiment": 0.25,
    "sigma_excitation_error": 0.03,
    "progress_bar": False,
}
DETECTOR = (64, 60)
QUIET = {"progress_bar": False}


@pytest.fixture(scope="module")
def grains():
    """A scan of few electrons, with an odd number of columns, and a crystal with a plan."""
    scan = simulate_scan((14, 11), DETECTOR, n_grains=2, electrons=150, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of spglib, where there is pymatgen
        scan.crystal.orientation_plan(**PLAN)
    return scan


@pytest.fixture(scope="module")
def kernel():
    centre = np.array(DETECTOR) / 2 - 0.5
    u, v = np.indices(DETECTOR)
    disk = np.clip(2.5 - np.hypot(u - centre[0], v - centre[1]), 0, 1)
    probe = py4DSTEM.Probe(disk)
    probe.get_kernel(mode="flat", origin=tuple(centre))
    return probe.kernel


def _annulus():
    u, v = np.indices(DETECTOR)
    return np.hypot(u - 31.5, v - 29.5) > 6


@pytest.fixture(scope="module")
def validation(grains, kernel):
    return grains.datacube.cross_validate_orientation(
        grains.crystal,
        kernel,
        disks=DISKS,
        filter={"corr_range": "auto", "edge": 4},
        grow={"threshold": 0.8, "q_mask": _annulus(), "r_mask": grains.labels >= 0},
        r_mask=grains.labels >= 0,
        **QUIET,
    )


# --- the checkerboard ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 4), (5, 7), (6, 9)])
def test_halves_are_a_checkerboard(shape):
    seen = np.zeros(shape, dtype=int)
    for half in (0, 1):
        x, y = checkerboard(shape, half)
        assert x.shape == (shape[0], shape[1] // 2)
        assert ((x + y) % 2 == half).all()
        assert (np.diff(y, axis=1) == 2).all()
        seen[x, y] += 1
    even = shape[1] // 2 * 2
    assert (seen[:, :even] == 1).all()
    assert (seen[:, even:] == 0).all()


def test_a_half_has_the_patterns_and_calibration_of_its_positions(wrap, cube, monkeypatch):
    from py4dstem_clustering.kernels import blocks

    plain = cube.data
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)  # a row at a time
    held = DataCube(wrap(plain), calibration=cube.calibration.copy())
    rx, ry = plain.shape[:2]
    qx, qy = cube.calibration.get_origin()
    for half in (0, 1):
        taken = take_half(held, half)
        assert not isinstance(taken.data, np.ndarray)  # it stays where it is
        assert_array_equal(taken.data[2:4, 1, 3:], np.asarray(taken.data)[2:4, 1, 3:])
        assert taken.data[:, 5:5].shape == (rx, 0, *plain.shape[2:])
        assert taken.data.dtype == plain.dtype
        assert taken.calibration.get_Q_pixel_size() == 0.02
        origin = taken.calibration.get_origin()
        for x in range(rx):
            columns = [y for y in range(ry - ry % 2) if (x + y) % 2 == half]
            for j, y in enumerate(columns):
                assert_array_equal(taken.data[x, j], plain[x, y])
                assert (origin[0][x, j], origin[1][x, j]) == (qx[x, y], qy[x, y])
    assert_array_equal(held.calibration.get_origin()[0], qx)


def test_masked_pixels_become_missing(cube):
    data = np.ma.masked_array(cube.data, mask=False)
    data[5, 3, 2, 1] = np.ma.masked
    halves = [np.asarray(take_half(DataCube(data), half).data) for half in (0, 1)]
    assert [np.isnan(half).sum() for half in halves] == [1, 0]


def test_errors_against_a_slow_reference(grains):
    matrices = Rotation.random(6 * 5, random_state=1).as_matrix().reshape(6, 5, 3, 3)
    matrices[1, 1] = np.nan
    matrices[4:, 2:] = np.nan
    matrices[5, 4] = np.eye(3)  # alone
    symmetry = get_symmetry(grains.crystal)
    expected = np.full((6, 5), np.nan)
    for x, y in np.ndindex(6, 5):
        angles = []
        for a, b in ((x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)):
            if not (0 <= a < 6 and 0 <= b < 5):
                continue
            between = symmetry @ matrices[x, y] @ matrices[a, b].T
            if np.isfinite(between).all():
                angles.append(min(Rotation.from_matrix(turn).magnitude() for turn in between))
        if angles:
            expected[x, y] = np.rad2deg(min(angles))
    assert np.isnan(expected[[1, 5], [1, 4]]).all()
    assert_allclose(neighbour_errors(matrices, grains.crystal), expected, atol=1e-6)


# --- the whole -------------------------------------------------------------------------------


def test_clusters_agree_better_than_single_patterns(grains, validation):
    table = validation.table()
    assert table["method"].tolist() == list(METHODS)
    raw, merged = table[0], table[-1]
    assert raw["mean_common"] > 4
    assert merged["mean_common"] < raw["mean_common"] / 2
    assert raw["n_matches"] == (grains.labels[:, :10] >= 0).sum()
    assert merged["n_matches"] < 12
    assert raw["seconds_before"] == 0
    assert (table["seconds"] > 0).all()
    assert (table["seconds_before"][1:] > 0).all()
    assert table["seconds_before"][3] > table["seconds_before"][1]
    for method in METHODS:
        error, matrices = validation.errors[method], validation.orientations[method]
        assert np.isnan(error[grains.labels < 0]).all()
        assert np.isnan(error[:, 10]).all()
        assert not np.isnan(matrices).all()
        assert_array_equal(error, neighbour_errors(matrices, grains.crystal))
    assert "merged" in repr(validation)
    assert len(pd.DataFrame(table)) == 5


def test_the_table(validation):
    errors = {"raw": np.array([[1.0, 9.0, np.nan, 2.0]]), "merged": np.array([[3, 3, 3, np.nan]])}
    made = CrossValidation(errors, {}, {"raw": (4, 1.5, 0.0), "merged": (1, 0.5, 2.0)})
    table = made.table()
    assert table["mean"].tolist() == [4, 3]
    assert table["median"].tolist() == [2, 3]
    assert_allclose(table["below_5"], [2 / 3, 1])
    assert table["n_positions"].tolist() == [3, 3]
    assert table["n_common"].tolist() == [2, 2]
    assert table["mean_common"].tolist() == [5, 3]
    assert table["n_matches"].tolist() == [4, 1]
    empty = CrossValidation({"raw": np.full((2, 2), np.nan)}, {}, {"raw": (0, 0.0, 0.0)})
    assert np.isnan(empty.table()["mean"]).all()
    assert repr(empty).endswith("raw none)")
    empty.plot()[0].figure.canvas.draw()


def test_what_was_there_stays(grains, kernel, capsys, wrap):
    """No output, no change of scan or crystal; the same result for every kind of array."""
    whole = grains.datacube
    small = (slice(2, 9), slice(3, 8))
    mask = np.zeros((7, 5), dtype=bool)
    mask[2:4, 1:4] = True
    results = []
    for data, kept in ((whole.data[small], {}), (wrap(whole.data[small]), {"orientation_map": 1})):
        cube = DataCube(data, calibration=whole.calibration.copy())
        cube.calibration.set_origin([q[small] for q in whole.calibration.get_origin()])
        before = list(cube._branch.keys())
        vars(grains.crystal).pop("orientation_map", None)  # other tests share the crystal
        vars(grains.crystal).update(kept)
        result = cube.cross_validate_orientation(
            grains.crystal, kernel, methods=["raw"], disks=DISKS, r_mask=mask, **QUIET
        )
        assert vars(grains.crystal).pop("orientation_map", None) == kept.get("orientation_map")
        assert list(cube._branch.keys()) == before
        results.append(result.errors["raw"])
    assert np.isfinite(results[0]).any()
    assert_array_equal(*results)
    output = capsys.readouterr()
    assert output.out == output.err == ""


def test_no_clusters_in_a_half_is_no_error(grains, kernel):
    validation = grains.datacube.cross_validate_orientation(
        grains.crystal,
        kernel,
        methods=("merged", "filtered + clustered"),
        disks=DISKS,
        filter={"edge": 4},
        grow={"min_size": 1000},
        merge={"min_size": 1000, "r_mask": grains.labels >= 0},
        **QUIET,
    )
    assert all(np.isnan(error).all() for error in validation.errors.values())
    assert validation.table()["n_matches"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"methods": "raw"}, TypeError, "sequence of names"),
        ({"methods": ("raw", "best")}, ValueError, "'best'; they must be of raw, filtered"),
        ({"methods": ()}, ValueError, "at least one"),
        ({"methods": ("raw", "raw")}, ValueError, "each once"),
        ({"template": np.ones((3, 4))}, ValueError, r"shape \(3, 4\) must have .* \(64, 60\)"),
        ({"template": "probe"}, TypeError, "must hold real numbers"),
        ({"disks": ["corrPower"]}, TypeError, "disks=.* must be a mapping"),
        ({"disks": {"corrpower": 1}}, ValueError, "disks holds 'corrpower'.*corrPower"),
        ({"disks": {"template": 1}}, ValueError, "disks holds 'template'"),
        ({"match": 3}, TypeError, "match=3 must be a mapping"),
        ({"match": {"progress_bar": True}}, ValueError, "match holds 'progress_bar'"),
        ({"filter": {"out": "x.h5"}}, ValueError, "filter holds 'out'"),
        ({"filter": {"edge": 99}}, ValueError, "edge=99"),
        ({"grow": {"threshold": 3}}, ValueError, "threshold=3"),
        ({"grow": {"r_mask": "triangel"}}, ValueError, "r_mask='triangel'"),
        ({"merge": {"sigma": 1}}, ValueError, "sigma belongs to growth"),
        ({"merge": {"method": "grow"}}, ValueError, "merge holds 'method'"),
        ({"r_mask": np.ones((3, 3), bool)}, ValueError, r"r_mask of shape \(3, 3\)"),
        ({"n_jobs": 0}, ValueError, "n_jobs=0"),
        ({"progress_bar": 1}, TypeError, "progress_bar=1"),
        ({"crystal": None}, TypeError, "crystal must be a py4DSTEM Crystal, not NoneType"),
    ],
)
def test_refuses(grains, kernel, monkeypatch, options, error, match):
    monkeypatch.setattr(
        "py4dstem_clustering.grains.validation.take_half", None
    )  # nothing has begun
    options = {"crystal": grains.crystal, "template": kernel, **QUIET, **options}
    with pytest.raises(error, match=match):
        grains.datacube.cross_validate_orientation(**options)


def test_refuses_before_the_work(grains, kernel, monkeypatch):
    monkeypatch.setattr("py4dstem_clustering.grains.validation.take_half", None)
    data, calibration = grains.datacube.data, grains.datacube.calibration
    fresh = simulate_scan((4, 4), DETECTOR, n_grains=0).crystal
    with pytest.raises(ValueError, match="no orientation plan"):
        grains.datacube.cross_validate_orientation(fresh, kernel)
    with pytest.raises(ValueError, match="3 x 11 is too small"):
        DataCube(data[:3]).cross_validate_orientation(grains.crystal, kernel)
    with pytest.raises(ValueError, match=r"set the origin .* and the pixel size"):
        DataCube(data).cross_validate_orientation(grains.crystal, kernel)
    bare = DataCube(data, calibration=calibration.copy())
    with pytest.raises(TypeError, match=r"use probe\.kernel"):
        bare.cross_validate_orientation(grains.crystal, py4DSTEM.Probe(kernel))
    grains.crystal.orientation_map = "mine"  # also when a match fails
    with pytest.raises(Exception, match=r".*"):
        bare.cross_validate_orientation(
            grains.crystal, kernel, disks=DISKS, match={"min_number_peaks": "many"}, **QUIET
        )
    assert vars(grains.crystal).pop("orientation_map") == "mine"


# --- disks gained ----------------------------------------------------------------------------


def bragg_of(patterns, shape):
    """Calibrated Bragg vectors from lists of (qx, qy) in 1/Angstrom."""
    bragg = BraggVectors(shape, (40, 40))
    bragg.calibration.set_Q_pixel_size(0.05)
    bragg.calibration.set_Q_pixel_units("A^-1")
    bragg.calibration.set_origin((20.0, 20.0))
    for (x, y), peaks in patterns.items():
        data = np.zeros(len(peaks), dtype=bragg._v_uncal.dtype)
        places = np.reshape(peaks, (-1, 2)) / 0.05 + 20
        data["qx"], data["qy"], data["intensity"] = places[:, 0], places[:, 1], 1
        bragg._v_uncal[x, y].add(data)
    return bragg


@pytest.fixture
def two():
    labels = np.array([[0, 0, 0], [1, 1, -1]])
    return Clusters(labels, [[0, 0], [1, 0]], np.ones((2, 3)))


def test_gained_disks_without_a_crystal(two):
    beam = (0.01, 0.0)
    averages = bragg_of({(0, 0): [beam, (0.3, 0.4), (0.6, 0.8)], (1, 0): [beam]}, (2, 1))
    single = {
        (0, 0): [beam, (0.3, 0.4)],
        (0, 1): [(0.0, 0.3), (0.0, -0.4)],  # no direct beam
        (0, 2): [beam],
        (1, 2): [(0.9, 0.0)] * 5,
    }
    gained = two.gained_disks(averages, bragg_of(single, (2, 3)))
    table = gained.table()
    assert table["label"].tolist() == [0, 1]
    assert table["n_average"].tolist() == [2, 0]
    assert table["n_single"].tolist() == [1, 0]
    assert_allclose(table["q_average"], [1, np.nan])
    assert_allclose(table["q_single"], [0.4, np.nan])
    assert repr(gained) == (
        "GainedDisks(2 clusters; medians: 1 disks in averages, 0.5 disks in single patterns)"
    )
    assert len(pd.DataFrame(table)) == 2
    ax = gained.plot()
    ax.figure.canvas.draw()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "averages: 1.0 disks",
        "single patterns: 0.5 disks",
    ]


def test_gained_disks_count_on_the_lattice_only(grains, two):
    class Known:
        matrix = np.zeros((2, 1, 1, 3, 3))
        corr = np.ones((2, 1, 1))
        num_matches = 1

    Known.matrix[0, 0, 0] = np.eye(3)  # {200} of gold at 0.49
    q = 2 / 4.0782
    averages = bragg_of({(0, 0): [(0, 0), (q, 0), (0, q + 0.02), (q / 2, 0.2)]}, (2, 1))
    single = bragg_of({(0, 0): [(0, 0), (q, 0.01), (q, -0.02), (0.7, 0.2)]}, (2, 3))
    options = {"crystal": grains.crystal, "orientation": Known}
    gained = two.gained_disks(averages, single, **options, max_distance=0.05)
    assert_allclose(gained.average[0], [q, q + 0.02])
    assert_allclose([len(q) for q in gained.single[0]], [1, 0, 0])
    assert gained.average[1] is gained.single[1] is None
    assert np.isnan(gained.table()["n_average"][1])
    assert "1 without orientation" in repr(gained)
    gained.plot().figure.canvas.draw()
    near = two.gained_disks(averages, single, **options, max_distance=0.015)
    assert_allclose(near.average[0], [q])


@pytest.mark.filterwarnings("ignore:.*bragg peaks not .* calibrated")
def test_gained_disks_of_a_scan(grains, kernel):
    cube = grains.datacube
    clusters = cube.cluster(**QUIET)
    averages = cube.get_clustered_datacube(clusters, **QUIET)
    bragg = averages.find_Bragg_disks(template=kernel, **DISKS)
    scan = cube.find_Bragg_disks(template=kernel, **DISKS)
    bragg.setcal()
    orientation = grains.crystal.match_orientations(bragg, **QUIET)
    gained = clusters.gained_disks(
        bragg, scan, crystal=grains.crystal, orientation=orientation, max_distance=0.05
    )
    table = gained.table()
    assert (table["n_average"] > table["n_single"]).all()
    assert (table["q_average"] > table["q_single"]).all()
    expanded = clusters.expand_orientation_map(orientation)
    again = clusters.gained_disks(
        bragg, scan, crystal=grains.crystal, orientation=expanded, max_distance=0.05
    )
    assert_array_equal(again.table(), table)


def test_gained_disks_refuses(grains, two):
    averages, scan = bragg_of({}, (2, 1)), bragg_of({}, (2, 3))
    with pytest.raises(ValueError, match="crystal without orientation"):
        two.gained_disks(averages, scan, crystal=grains.crystal)
    with pytest.raises(ValueError, match="orientation without crystal"):
        two.gained_disks(averages, scan, orientation=1)
    with pytest.raises(ValueError, match=r"shape \(2, 1\) must have shape \(2, 3\)"):
        two.gained_disks(averages, averages)
    with pytest.raises(ValueError, match="not calibrated"):
        two.gained_disks(BraggVectors((2, 1), (9, 9)), scan)
    with pytest.raises(TypeError, match="orientation must be an OrientationMap"):
        two.gained_disks(averages, scan, crystal=grains.crystal, orientation=1)
    with pytest.raises(ValueError, match="max_distance=-1"):
        two.gained_disks(averages, scan, max_distance=-1)
    none = Clusters(np.full((2, 3), -1), np.zeros((0, 2)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="no clusters"):
        none.gained_disks(averages, scan)
    assert GainedDisks((), ()).table().shape == (0,)
