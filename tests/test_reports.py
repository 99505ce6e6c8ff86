"""Mistakes that users of kindred packages reported, tried here; each test names its report."""

from __future__ import annotations

import dask.array as da
import h5py
import numpy as np
import py4DSTEM
import pytest
from conftest import make_scan
from py4DSTEM import DataCube
from py4DSTEM.process.diffraction import Crystal
from scipy.spatial.transform import Rotation

from py4dstem_clustering import (
    Clusters,
    cluster_series,
    misorientation,
    open_series,
    plot_clusters,
    plot_similarity,
    simulate_scan,
)
from py4dstem_clustering.cli.main import main

QUIET = {"progress_bar": False}
GROW = {"threshold": 0.5, **QUIET}


def lazy(cube, chunks=(3, 2, 5, -1)):
    """The same scan as a dask array, with a copy of the calibration."""
    other = DataCube(da.from_array(cube.data, chunks=chunks), name=cube.name)
    other.calibration._params.update(cube.calibration._params)
    return other


def halves(cube):
    labels = (np.indices(cube.Rshape)[1] > 4).astype(int)
    return Clusters(labels, [(0, 0), (0, 5)], np.zeros(cube.Rshape))


# --- py4DSTEM ----------------------------------------------------------------------------------


def test_py4dstem_396_a_binned_scan_survives_a_file(cube, tmp_path):
    cube.calibration.set_origin((3.0, 2.5))
    cube.bin_Q(2)
    clusters = cube.cluster(**GROW)
    averages = cube.get_clustered_datacube(**QUIET)
    py4DSTEM.save(tmp_path / "scan.h5", cube)
    py4DSTEM.save(tmp_path / "averages.h5", averages)
    np.testing.assert_array_equal(
        py4DSTEM.read(tmp_path / "scan.h5").clusters.labels, clusters.labels
    )
    np.testing.assert_array_equal(py4DSTEM.read(tmp_path / "averages.h5").data, averages.data)


def test_py4dstem_740_the_mean_pattern_and_the_probe_of_averages():
    scan = simulate_scan((16, 14), (32, 30), n_grains=2, electrons=1e5, seed=1).datacube
    scan.cluster(**QUIET)
    averages = scan.get_clustered_datacube(**QUIET)
    expected = np.mean(averages.data, axis=(0, 1))
    np.testing.assert_allclose(averages.get_dp_mean().data, expected, rtol=1e-5)
    _, qx0, qy0 = averages.get_probe_size(averages.tree("dp_mean").data)
    np.testing.assert_allclose([qx0, qy0], [15.5, 14.5], atol=1)


def test_py4dstem_109_metadata_of_the_user_travel(cube, tmp_path):
    cube.metadata = py4DSTEM.Metadata("session", {"operator": "A. B.", "corrPower": 1})
    cube.cluster(**GROW)
    py4DSTEM.save(tmp_path / "averages.h5", cube.get_clustered_datacube(**QUIET))
    read = py4DSTEM.read(tmp_path / "averages.h5")
    assert read.metadata["session"]["operator"] == "A. B."


def test_py4dstem_708_the_origin_stays_in_pixels(cube):
    cube.calibration.set_Q_pixel_size(0.008)
    cube.cluster(**GROW)
    averages = cube.get_clustered_datacube(**QUIET)
    qx0 = averages.calibration.get_qx0()
    assert ((qx0 > 5) & (qx0 < 8)).all()


# --- pyxem -------------------------------------------------------------------------------------


def test_pyxem_172_the_centre_of_the_direct_beam(tmp_path):
    for beam in ((9, 11), (9.5, 10.5)):
        x, y = np.indices((20, 22))
        spot = 1000 * np.exp(-((x - beam[0]) ** 2 + (y - beam[1]) ** 2) / 4)
        np.save(tmp_path / "scan.npy", np.broadcast_to(spot, (5, 4, 20, 22)))
        out = tmp_path / "out.h5"
        options = ["--q-range", "0", "4", "--keep-background", "--overwrite", "--quiet"]
        assert main(["cluster", str(tmp_path / "scan.npy"), "--out", str(out), *options]) == 0
        mask = py4DSTEM.read(out).clusters.settings["q_mask"]
        np.testing.assert_allclose(np.argwhere(mask).mean(axis=0), beam, atol=0.5)


@pytest.mark.parametrize("sigma", [0, 1.5])
def test_pyxem_1079_missing_pixels_outside_a_mask_have_no_effect(cube, sigma):
    q_mask = np.ones(cube.Qshape, bool)
    q_mask[:3] = False
    found = []
    for value in (np.nan, np.inf):
        data = cube.data.astype(np.float32)
        data[:, :, :3] = value
        found.append(DataCube(data).get_similarity(q_mask=q_mask, sigma=sigma, **QUIET).data)
    np.testing.assert_array_equal(*found)
    whole = cube.get_similarity(q_mask=q_mask, sigma=sigma, **QUIET).data
    np.testing.assert_array_equal(np.isnan(found[0]), np.isnan(whole))


def test_pyxem_746_a_plane_of_descan_is_undone():
    made = simulate_scan((24, 20), (48, 44), n_grains=3, electrons=1000, descan=4, seed=2)
    scan, (x, y) = made.datacube, np.indices((24, 20))
    qx0, qy0, _ = py4DSTEM.process.calibration.get_origin(scan)
    basis = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1)
    planes = [
        (basis @ np.linalg.lstsq(basis, q.ravel(), rcond=None)[0]).reshape(x.shape)
        for q in (qx0, qy0)
    ]
    scan.calibration.set_origin(planes)
    assert scan.cluster(**QUIET).n_clusters == 3


# --- kikuchipy ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [(1, 9, 14, 11), (3, 2, 5, -1), (7, 9, 14, 11)])
def test_kikuchipy_154_no_stripes_at_borders_of_chunks(cube, chunks):
    options = {"sigma": 1, "radius": 2, "corr_range": (0.2, 0.8), "edge": 2, **QUIET}
    np.testing.assert_array_equal(
        lazy(cube, chunks).filter_correlative(**options).data,
        cube.filter_correlative(**options).data,
    )


def test_kikuchipy_380_similarity_with_missing_pixels(cube):
    data = cube.data.astype(float)
    data[..., 0, 0] = np.nan
    similarity = DataCube(data).get_similarity(**QUIET)
    np.testing.assert_array_equal(
        np.isnan(similarity.data), np.isnan(cube.get_similarity(**QUIET).data)
    )


def test_kikuchipy_134_averages_of_8_bit_counts_do_not_overflow():
    data = np.full((6, 5, 14, 11), 200, np.uint8)
    data[..., 3, 4] = 255
    averages = DataCube(data).get_clustered_datacube(
        Clusters(np.zeros((6, 5), int), [(0, 0)], np.zeros((6, 5))), **QUIET
    )
    assert averages.data[0, 0, 3, 4] == 255
    assert averages.data[0, 0, 0, 0] == 200
    filtered = DataCube(data).filter_correlative(edge=1, **QUIET)
    np.testing.assert_allclose(filtered.data, data, rtol=1e-6)  # float32


# --- HyperSpy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["merge", "grow"])
def test_hyperspy_3609_a_mask_on_a_lazy_scan_masks_the_same_positions(cube, method):
    mask = np.zeros(cube.Rshape, bool)
    mask[1:6, 2:] = mask[0, 0] = True
    options = {"method": method, "r_mask": mask, **QUIET}
    found = [scan.cluster(**options).labels for scan in (cube, lazy(cube))]
    np.testing.assert_array_equal(*found)
    assert (found[0][~mask] == -1).all()


def test_hyperspy_2677_a_transposed_mask_is_refused(cube):
    for name, mask in {"r_mask": np.ones((9, 7), bool), "q_mask": np.ones((11, 14), bool)}.items():
        with pytest.raises(ValueError, match=rf"{name} of shape .* must have the shape"):
            cube.cluster(**{name: mask}, **QUIET)


def test_hyperspy_2550_a_mask_that_leaves_nothing_is_refused(cube):
    with pytest.raises(ValueError, match="r_mask is empty"):
        cube.cluster(r_mask=np.zeros(cube.Rshape, bool), **QUIET)
    assert cube.cluster(r_mask=1.0, **QUIET).n_clusters == 0  # a number that nothing exceeds


def test_hyperspy_3607_noise_is_corrected_on_lazy_scans_too(cube):
    options = {"noise_correct": True, "gain": 1.0, "offset": 0.0, **QUIET}
    plain = cube.get_similarity(**QUIET).data
    corrected = cube.get_similarity(**options).data
    assert np.nanmax(np.abs(corrected - plain)) > 0.05
    np.testing.assert_array_equal(lazy(cube).get_similarity(**options).data, corrected)


def test_hyperspy_3612_missing_positions_stay_where_they_are(cube):
    data = cube.data.astype(np.float32)
    data[2, 6] = data[5, 1] = np.nan
    for scan in (DataCube(data), lazy(DataCube(data))):
        similarity = scan.get_similarity(**QUIET).data
        assert (np.nan_to_num(similarity[2, 6]) == 0).all()
        averages = scan.get_clustered_datacube(halves(scan), **QUIET).data
        assert np.isfinite(averages).all()
        right = np.isfinite(data[:, 5:].sum(axis=(2, 3)))
        np.testing.assert_allclose(
            averages[1, 0], data[:, 5:][right].mean(axis=0), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("shape", [(1, 12), (12, 1)])
def test_hyperspy_175_a_line_scan_can_be_drawn(shape, tmp_path):
    scan = DataCube(make_scan(shape))
    clusters = scan.cluster(**GROW)
    for ax in (plot_clusters(clusters), plot_similarity(scan.get_similarity(**QUIET))):
        ax.figure.savefig(tmp_path / "x.png")
    assert len(clusters.properties()) == clusters.n_clusters
    scan.explore_clusters(**QUIET).figure.savefig(tmp_path / "y.png")


def test_hyperspy_1415_a_scan_without_any_metadata_is_saved(scan, tmp_path):
    bare = DataCube(scan.copy())
    bare.cluster(**GROW)
    py4DSTEM.save(tmp_path / "x.h5", bare)
    assert py4DSTEM.read(tmp_path / "x.h5").clusters.n_clusters == bare.clusters.n_clusters


def test_hyperspy_602_background_and_edits_keep_their_numbers(cube):
    clusters = cube.cluster(drop_background=False, **QUIET)
    joined = clusters.join(range(clusters.n_clusters)) if clusters.n_clusters > 1 else clusters
    assert set(np.unique(joined.labels)) <= {-1, 0}


# --- RosettaSciIO ------------------------------------------------------------------------------


def test_rosettasciio_205_a_result_without_clusters_is_saved(cube, tmp_path):
    nothing = cube.cluster(min_size=1000, **GROW)
    assert nothing.n_clusters == 0
    py4DSTEM.save(tmp_path / "x.h5", cube)
    read = py4DSTEM.read(tmp_path / "x.h5").clusters
    np.testing.assert_array_equal(read.labels, nothing.labels)
    assert read.properties().shape == (0,)


def test_rosettasciio_423_a_damaged_file_is_one_line(cube, tmp_path, capsys):
    cube.cluster(**GROW)
    py4DSTEM.save(tmp_path / "x.h5", cube)
    content = bytearray((tmp_path / "x.h5").read_bytes())
    content[96:2000] = bytes(1904)
    (tmp_path / "x.h5").write_bytes(content)
    assert main(["cluster", str(tmp_path / "x.h5"), "--out", str(tmp_path / "y.h5")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_rosettasciio_270_more_frames_than_positions_are_refused(scan, tmp_path, capsys):
    np.save(tmp_path / "stack.npy", np.concatenate([scan.reshape(63, 14, 11), scan[0, :1]]))
    command = ["cluster", str(tmp_path / "stack.npy"), "--out", str(tmp_path / "y.h5"), "--quiet"]
    assert main([*command, "--scan-shape", "7", "9"]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert "64" in error


# --- LiberTEM ----------------------------------------------------------------------------------


def test_libertem_793_a_wrong_shape_is_explained(scan, tmp_path, capsys):
    np.save(tmp_path / "stack.npy", scan.reshape(63, 14, 11))
    command = ["cluster", str(tmp_path / "stack.npy"), "--out", str(tmp_path / "y.h5"), "--quiet"]
    assert main([*command, "--scan-shape", "8", "9"]) == 2
    error = capsys.readouterr().err
    assert "63" in error
    assert "reshape array" not in error


def test_libertem_818_dead_pixels_that_are_left_out_have_no_effect(cube):
    q_mask = np.ones(cube.Qshape, bool)
    q_mask[4, 5] = q_mask[13, 10] = False
    hot = cube.data.copy()
    hot[..., 4, 5] = 60000
    hot[..., 13, 10] = 60000
    for options in (GROW, {"method": "merge", **QUIET}):
        found = [
            DataCube(data).cluster(q_mask=q_mask, subtract_mean=None, **options).labels
            for data in (cube.data, hot)
        ]
        if options is GROW:  # the mean of the whole pattern is subtracted, as documented
            options = {**options, "subtract_mean": False}
            found = [
                DataCube(data).cluster(q_mask=q_mask, **options).labels for data in (cube.data, hot)
            ]
        np.testing.assert_array_equal(*found)


# --- orix --------------------------------------------------------------------------------------


def gold():
    return Crystal(np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]), 79, 4.078)


def magnesium():
    return Crystal(
        np.array([[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]),
        12,
        [3.209, 3.209, 5.211, 90, 90, 120],
    )


def euler(*degrees):
    return Rotation.from_euler("ZXZ", degrees, degrees=True).as_matrix()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((45, 0, 0), (-45, 0, 0), 0),
        ((0, 0, 0), (90, 0, 0), 0),
        ((44.9999, 0, 0), (-45.0001, 0, 0), 0),
    ],
)
def test_orix_17_quarter_turns_of_a_cube_are_nothing(first, second, expected):
    found = misorientation(euler(*first), euler(*second), gold())
    assert found == pytest.approx(expected, abs=1e-3)


def test_orix_431_opposite_poles_of_a_hexagonal_crystal():
    turn = Rotation.from_rotvec(np.deg2rad([0, 3.58, 0])).as_matrix()
    flip = Rotation.from_rotvec([np.pi, 0, 0]).as_matrix()  # aligns [0001] with [000-1]
    start = euler(20, 35, 50)
    assert misorientation(start, flip @ turn @ start, magnesium()) == pytest.approx(3.58, abs=1e-3)


def test_orix_368_distances_do_not_depend_on_the_equivalent_that_was_chosen():
    quaternions = [
        [0.5101, -0.0107, 0.0421, -0.859], [0.5114, -0.0107, 0.0421, -0.8582],
        [0.2451, -0.0222, 0.0373, -0.9685], [0.2455, -0.016, 0.0368, -0.9686],
        [0.2442, -0.0223, 0.0373, -0.9688],
    ]  # fmt: skip
    matrices = Rotation.from_quat(np.roll(quaternions, -1, axis=1)).as_matrix()
    quarter = Rotation.from_rotvec([0, 0, np.pi / 2]).as_matrix()
    table = misorientation(matrices[:, None], matrices[None], gold())
    np.testing.assert_allclose(table, table.T, atol=1e-6)
    other = misorientation((quarter @ matrices)[:, None], matrices[None], gold())
    np.testing.assert_allclose(other, table, atol=1e-5)
    assert np.diag(table).max() < 1e-4


# --- files that are exchanged between programs ---------------------------------------------------


def test_hyperspy_813_other_programs_find_a_plain_emd_file(cube, tmp_path):
    cube.cluster(**GROW)
    py4DSTEM.save(tmp_path / "averages.h5", cube.get_clustered_datacube(**QUIET))
    cluster_series([cube], out=tmp_path / "series.h5", **QUIET)
    with h5py.File(tmp_path / "averages.h5") as file:
        group = file["py4DSTEM_root/averages"]
        assert group.attrs["emd_group_type"] == "array"
        assert [group[f"dim{k}"].attrs["units"] for k in range(4)] == ["", "", "A^-1", "A^-1"]
    assert len(open_series(tmp_path / "series.h5")) == 1
