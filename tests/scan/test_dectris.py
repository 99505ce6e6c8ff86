"""Scans on disk: the same as in memory, no more read than asked for, and faults that are seen."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import dask.array as da
import h5py
import numpy as np
import py4DSTEM
import pytest
from arina import chunk_place, overwrite, write_arina
from conftest import DETECTOR, SCAN, make_scan
from numpy.testing import assert_array_equal

from py4dstem_clustering import ScanArray, open_scan
from py4dstem_clustering.kernels.blocks import read_rows

RX, RY = SCAN  # 7 x 9 positions of 14 x 11 pixels
N = RX * RY


def as_frames(data):
    return data.reshape(-1, *data.shape[-2:])


@pytest.fixture
def master(scan, tmp_path):
    return write_arina(tmp_path, as_frames(scan), per_file=20)  # ends in the middle of a row


@pytest.fixture
def opened(master):
    return open_scan(master, scan_shape=SCAN)


@pytest.fixture
def reads(monkeypatch):
    """Frames read, as (file, first, last), in the order of reading."""
    seen = []
    original = ScanArray._read_run

    def read_run(self, piece, first, out):
        seen.append((piece.file.name, first, first + len(out) - 1))
        original(self, piece, first, out)

    monkeypatch.setattr(ScanArray, "_read_run", read_run)
    return seen


# --- the same numbers -------------------------------------------------------------------------


@pytest.mark.parametrize("path_type", [str, lambda path: path])
def test_the_scan_is_what_was_written(master, scan, path_type):
    cube = open_scan(path_type(master), scan_shape=SCAN)
    assert isinstance(cube, py4DSTEM.DataCube)
    assert (cube.name, cube.Rshape, cube.Qshape) == ("scan", SCAN, DETECTOR)
    data = cube.data
    assert (data.shape, data.dtype, data.ndim) == (scan.shape, scan.dtype, 4)
    assert (data.size, data.nbytes, len(data)) == (scan.size, scan.nbytes, RX)
    assert repr(data) == "<ScanArray (7, 9, 14, 11) uint16 in scan_data_000001.h5 and 3 more>"
    assert_array_equal(np.asarray(data), scan)
    assert_array_equal(np.asarray(data, dtype=np.float32), scan)
    assert np.asarray(data, dtype=np.float32).dtype == np.float32


@pytest.mark.parametrize("per_file", [1, 8, 9, N, 1000])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", ">u2"])
def test_any_chunk_and_any_type(scan, tmp_path, per_file, dtype):
    frames = as_frames(np.minimum(scan, 250)).astype(dtype)
    cube = open_scan(write_arina(tmp_path, frames, per_file=per_file), scan_shape=SCAN)
    assert cube.data.dtype == np.dtype(dtype).newbyteorder("=")
    assert_array_equal(np.asarray(cube.data), frames.reshape(scan.shape))


def test_counts_above_16_bits_are_kept(scan, tmp_path):
    frames = as_frames(scan).astype(np.uint32) + 70_000
    cube = open_scan(write_arina(tmp_path, frames), scan_shape=SCAN)
    assert_array_equal(as_frames(np.asarray(cube.data)), frames)


INDICES = [
    np.s_[3],
    np.s_[-1],
    np.s_[2:5],
    np.s_[5:2:-1],
    np.s_[:0],
    np.s_[...],
    np.s_[3, 4],
    np.s_[3, ..., 4],
    np.s_[..., 4],
    np.s_[3, 4, 5],
    np.s_[3, 4, 5, 6],
    np.s_[1:6:2, ::-3, 2:-2, ::4],
    np.s_[:, 2, :, -1],
    np.s_[np.int64(3), np.uint8(4)],
    np.s_[[3, 1, 3]],
    np.s_[[3, 1, 3], [8, 0, 8]],
    np.s_[[3, 1], :, 2:4],
    np.s_[:, np.arange(9) % 2 == 0],
    np.s_[np.arange(63).reshape(SCAN) % 5 == 0],
    np.s_[np.arange(63).reshape(SCAN) % 5 == 0, 1:3],
    np.s_[np.zeros(SCAN, dtype=bool)],
    np.s_[[[0, 1], [2, 3]], 4],
]


@pytest.mark.parametrize("key", INDICES, ids=str)
def test_indices_give_what_numpy_gives(opened, scan, key):
    expected = scan[key]
    got = opened.data[key]
    assert type(got) is type(expected)
    assert got.dtype == expected.dtype
    assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (np.s_[7], "out of bounds"),
        (np.s_[0, 9], "out of bounds"),
        (np.s_[0, 0, 14], "out of bounds"),
        (np.s_[0, 0, 0, 0, 0], "5 indices"),
        (np.s_[..., 0, ...], "one ellipsis"),
        (np.s_[None], "no new axis"),
        (np.s_[:, :, [1, 2]], "detector axes take integers and slices"),
        (np.s_[[1, 2], :, 3], "detector axes take slices only"),
        (np.s_[0, np.ones((9, 14), dtype=bool)], "detector axes take"),
        (np.s_[np.ones(DETECTOR, dtype=bool)], "boolean index"),
        (np.s_["a"], "."),
    ],
    ids=str,
)
def test_indices_that_cannot_be(opened, key, message):
    with pytest.raises(IndexError, match=message):
        opened.data[key]


def test_the_parts_of_py4dstem_that_go_from_pattern_to_pattern(opened, scan):
    disk = {"mode": "circle", "geometry": ((7, 5), 3), "verbose": False}
    image = opened.get_virtual_image(**disk, name="in_file").data
    whole = py4DSTEM.DataCube(scan.copy())
    assert_array_equal(image, whole.get_virtual_image(**disk, name="in_memory").data)
    np.testing.assert_allclose(opened.get_dp_mean().data, scan.mean(axis=(0, 1)))
    assert_array_equal(opened.get_dp_max().data, scan.max(axis=(0, 1)))
    mask = np.arange(N).reshape(SCAN) % 4 == 0
    selected = opened.get_virtual_diffraction("mean", mask=mask, name="some").data
    np.testing.assert_allclose(selected, scan[mask].mean(axis=0))
    assert_array_equal(opened[2, 3], scan[2, 3])


def test_mean_and_max_along_other_axes(opened, scan):
    np.testing.assert_allclose(np.mean(opened.data), scan.mean())
    np.testing.assert_allclose(np.mean(opened.data, axis=3), scan.mean(axis=3))
    assert np.max(opened.data) == scan.max()
    assert_array_equal(np.max(opened.data, axis=(2, 3)), scan.max(axis=(2, 3)))
    assert np.max(opened.data, axis=(0, 1), keepdims=True).shape == (1, 1, *DETECTOR)


def test_copies_pickles_and_dask(opened, scan):
    assert_array_equal(np.asarray(opened.copy().data), scan)
    assert_array_equal(copy.deepcopy(opened.data)[2], scan[2])
    assert_array_equal(pickle.loads(pickle.dumps(opened.data))[2:4], scan[2:4])
    chunked = da.from_array(opened.data, chunks=(2, 4, -1, -1), meta=np.empty(0, scan.dtype))
    assert_array_equal(chunked.sum(axis=(2, 3)).compute(), scan.sum(axis=(2, 3)))


def test_saving_makes_an_ordinary_file(opened, scan, tmp_path):
    py4DSTEM.save(str(tmp_path / "saved.h5"), opened)
    again = py4DSTEM.read(str(tmp_path / "saved.h5"))
    assert_array_equal(again.data, scan)
    assert again.metadata["arina"]["count_time"] == pytest.approx(1e-5)


def test_every_method_gives_what_it_gives_in_memory(opened, scan, tmp_path):
    memory = py4DSTEM.DataCube(scan.copy(), name="memory")
    quiet = {"n_jobs": 2, "progress_bar": False}
    results = []
    for cube in (opened, memory):
        options = {"sigma": 1, "radius": 1, "edge": 2, "corr_range": (0.2, 0.8), **quiet}
        filtered = cube.filter_correlative(**options)
        out = cube.filter_correlative(**options, out=tmp_path / f"{cube.name}_filtered.h5")
        similarity = cube.get_similarity(**quiet)
        grown = cube.cluster(threshold=0.7, **quiet)
        averages = cube.get_clustered_datacube(**quiet).data
        merged = cube.cluster(method="merge", name="merged", **quiet)
        mixture = merged.get_mixture(cube, **quiet)
        results.append(
            [filtered.data, out.data[...], similarity.data, grown.labels, averages, merged.labels]
        )
        results[-1].append(mixture.shares)
        out.data.file.close()
    for lazy, eager in zip(*results, strict=True):
        assert_array_equal(lazy, eager)
    # and against NumPy
    flat = as_frames(scan).reshape(N, -1).astype(float)
    flat -= flat.mean(axis=1, keepdims=True)
    flat = (flat / np.linalg.norm(flat, axis=1, keepdims=True)).reshape(*SCAN, -1)
    right = (flat[:, :-1] * flat[:, 1:]).sum(axis=2)
    np.testing.assert_allclose(results[0][2][:, :-1, 7], right, atol=1e-6)
    for label in range(grown.n_clusters):
        mean = scan[grown.labels == label].mean(axis=0)
        np.testing.assert_allclose(results[0][4][label, 0], mean, rtol=1e-6)


# --- what the frames make up ------------------------------------------------------------------


@pytest.mark.parametrize("last_row_too", [True, False])
def test_flyback_and_skipped_frames_are_left_out(scan, tmp_path, last_row_too):
    frames = np.full((RX, RY + 2, *DETECTOR), 999, dtype=np.uint16)
    frames[:, :RY] = scan
    frames = as_frames(frames)[: None if last_row_too else -2]
    frames = np.concatenate([np.full((3, *DETECTOR), 888, np.uint16), frames])
    path = write_arina(tmp_path, frames)
    cube = open_scan(path, scan_shape=SCAN, skip_frames=3, flyback=2)
    assert_array_equal(np.asarray(cube.data), scan)
    frames = np.concatenate([frames, frames[:5]])
    path = write_arina(tmp_path, frames, prefix="longer")
    cube = open_scan(path, scan_shape=SCAN, skip_frames=(3, 5), flyback=2)
    assert_array_equal(np.asarray(cube.data), scan)


@pytest.mark.parametrize(
    ("n", "options", "shape"),
    [
        (36, {}, (6, 6)),
        (38, {"skip_frames": 2}, (6, 6)),
        (48, {"flyback": 2}, (6, 6)),
        (46, {"flyback": 2}, (6, 6)),
        (1, {}, (1, 1)),
    ],
)
def test_a_square_is_found(tmp_path, n, options, shape):
    path = write_arina(tmp_path, make_scan((1, n))[0])
    assert open_scan(path, **options).Rshape == shape


def test_triggers_of_many_frames_are_rows(scan, tmp_path):
    facts = {"detectorSpecific/ntrigger": RX, "detectorSpecific/nimages": RY}
    path = write_arina(tmp_path, as_frames(scan), facts=facts)
    assert_array_equal(np.asarray(open_scan(path).data), scan)
    assert open_scan(path, flyback=2).Rshape == (RX, RY - 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"63 frames with flyback=0 make no square; give scan_shape: .*\(7, 9\) or \(9, 7\)"),
        ({"scan_shape": (7, 8)}, r"needs 56 frames and does not fit 63.*\(0, 7\) drops the last 7"),
        ({"scan_shape": (8, 8)}, r"needs 64 frames and does not fit 63 frames; it can be"),
        ({"scan_shape": SCAN, "skip_frames": 1}, r"the 62 of 63 frames that skip_frames=\(1, 0\)"),
        ({"scan_shape": SCAN, "flyback": 1}, r"flyback=1 needs 70 frames"),
        ({"skip_frames": 63}, "leaves none of 63 frames"),
        ({"skip_frames": (1, 2, 3)}, "must be a number, or two"),
        ({"skip_frames": -1}, "skip_frames=-1 must be at least 0"),
        ({"flyback": -1}, "flyback=-1 must be at least 0"),
        ({"scan_shape": (0, 9)}, "scan_shape=0 must be at least 1"),
        ({"bad_pixels": "mask"}, "bad_pixels='mask' must be one of 'fill', 'missing', 'keep'"),
        ({"saturated": "no"}, "saturated='no' must be one of 'raise', 'missing', 'keep'"),
        ({"name": "a/b"}, "cannot be stored"),
        ({"dataset": "entry/nothing"}, "holds no 'entry/nothing'"),
        ({"dataset": "entry/data"}, "'entry/data' of .* is no dataset"),
        ({"dataset": "entry/instrument/detector/count_time"}, "is no scan: it must be"),
    ],
    ids=str,
)
def test_arguments_that_break_a_rule(master, options, message):
    with pytest.raises(ValueError, match=message):
        open_scan(master, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scan_shape": 9}, "scan_shape=9 must be two whole numbers"),
        ({"scan_shape": (7.0, 9)}, "must be a whole number"),
        ({"flyback": True}, "must be a whole number"),
        ({"dataset": 3}, "dataset=3 must be a string"),
        ({"name": 3}, "must be a string"),
    ],
    ids=str,
)
def test_arguments_of_a_wrong_type(master, options, message):
    with pytest.raises(TypeError, match=message):
        open_scan(master, **options)


def test_a_path_must_be_one():
    with pytest.raises(TypeError, match="path=3 must be a path"):
        open_scan(3)


def test_a_scan_that_was_stopped_is_told(scan, tmp_path):
    facts = {"detectorSpecific/ntrigger": 100}
    path = write_arina(tmp_path, as_frames(scan)[:49], facts=facts)
    with pytest.raises(ValueError, match="49 frames, but the file announces 100; copy all"):
        open_scan(path)
    assert open_scan(path, scan_shape=(7, 7)).Rshape == (7, 7)


# --- plain HDF5 -------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [None, True, (2, 3, 5, 11)])
def test_a_4d_dataset(scan, tmp_path, chunks):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x/y", data=scan, chunks=chunks)
        file["soft"] = h5py.SoftLink("/x/y")
    for name in ("x/y", "/x/y", "soft"):
        cube = open_scan(tmp_path / "a.h5", dataset=name)
        assert_array_equal(np.asarray(cube.data), scan)
        assert cube.name == "a"
    cube = open_scan(tmp_path / "a.h5", dataset="x/y", flyback=2)
    assert_array_equal(np.asarray(cube.data), scan[:, :-2])
    cube = open_scan(tmp_path / "a.h5", dataset="x/y", scan_shape=(9, 7))
    assert_array_equal(as_frames(np.asarray(cube.data)), as_frames(scan))


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "?"])
def test_a_3d_dataset_of_any_real_type(scan, tmp_path, dtype):
    frames = as_frames(scan).astype(dtype)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["frames"] = frames
    cube = open_scan(tmp_path / "data.h5", dataset="frames", scan_shape=SCAN, saturated="missing")
    assert_array_equal(as_frames(np.asarray(cube.data)), frames)
    assert cube.name == "scan"  # emdfile keeps "data" for itself


def test_what_is_no_scan(tmp_path, scan):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x/y"] = scan
        file["complex"] = scan[0].astype(complex)
        file["empty"] = scan[:, :0]
        file["flat"] = scan[0, 0]
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["flat"] = scan[0, 0]
    assert_array_equal(np.asarray(open_scan(tmp_path / "a.h5").data), scan)  # the only one
    (tmp_path / "a.txt").write_text("nothing")
    (tmp_path / "b.h5").touch()
    for path, options, kind, message in [
        ("d.h5", {}, ValueError, "no dataset of it has 3 or 4 axes"),
        ("a.h5", {"dataset": "complex"}, TypeError, "must hold real numbers"),
        ("a.h5", {"dataset": "empty"}, ValueError, "is empty"),
        ("a.h5", {"dataset": "flat"}, ValueError, "is no scan"),
        ("a.txt", {}, ValueError, "a.txt is of no kind that is known; give a file that ends in"),
        ("b.h5", {}, ValueError, "b.h5 is empty; copy it again"),
        ("c.h5", {}, FileNotFoundError, "c.h5 is not a file; check the path"),
        (".", {}, ValueError, "is a folder; give a file in it"),
    ]:
        with pytest.raises(kind, match=message):
            open_scan(tmp_path / path, **options)


# --- what the detector says -------------------------------------------------------------------


def test_metadata_is_what_the_file_says(scan, tmp_path):
    facts = {"detector_distance": np.float64(0.5), "detector_number": b"E-01"}
    path = write_arina(tmp_path, as_frames(scan), facts=facts, pixel_size=0.4)
    cube = open_scan(path, scan_shape=SCAN, name="mine")
    arina = cube.metadata["arina"]
    assert arina["description"] == "Dectris ARINA Si"
    assert arina["detector_distance"] == 0.5
    assert arina["detector_number"] == "E-01"
    assert arina["x_pixel_size_units"] == "m"
    assert arina["opened"]["path"] == str(path)
    assert "bad_pixels" not in arina.keys
    assert cube.name == "mine"
    assert cube.calibration.get_R_pixel_size() == pytest.approx(4)
    assert cube.calibration.get_R_pixel_units() == "A"
    assert cube.calibration.get_Q_pixel_size() == 1


def test_nothing_is_calibrated_that_the_files_do_not_say(opened):
    assert opened.calibration.get_R_pixel_size() == 1
    assert opened.calibration.get_R_pixel_units() == "pixels"


@pytest.fixture
def masked(scan, tmp_path):
    """A scan with bad pixels, of which the detector wrote the largest value."""
    mask = np.zeros(DETECTOR, dtype=np.uint32)
    mask[3, 4] = 2  # dead
    mask[0, 0] = mask[0, 1] = 16  # noisy, in a corner
    mask[9:12, 5:8] = 1  # a gap
    mask[6, 6] = 1 << 31  # interpolated, and good
    bad = (mask & 0xFFFF) > 0
    data = scan.copy()
    data[..., bad] = 65535
    return write_arina(tmp_path, as_frames(data), mask=mask), data, bad


def test_bad_pixels_get_the_median_of_good_neighbours(masked):
    path, data, bad = masked
    cube = open_scan(path, scan_shape=SCAN)
    got = np.asarray(cube.data)
    assert got.dtype == np.uint16
    assert_array_equal(got[..., ~bad], data[..., ~bad])
    around = data[..., 2:5, 3:6].reshape(*SCAN, 9)
    median = np.median(np.delete(around, 4, axis=2), axis=2)
    assert_array_equal(got[..., 3, 4], np.rint(median))
    corner = np.median(data[..., [0, 1, 1, 1], [2, 0, 1, 2]], axis=2)
    assert_array_equal(
        got[..., 0, 1], np.rint(corner)
    )  # (0, 0) has but two good neighbours at hand
    corner = data[..., :3, :3][..., ~bad[:3, :3]]
    assert_array_equal(got[..., 0, 0], np.rint(np.median(corner, axis=2)))
    middle = data[..., 8:13, 4:9][..., ~bad[8:13, 4:9]]  # of the gap, a square of 5
    assert_array_equal(got[..., 10, 6], np.rint(np.median(middle, axis=2)))
    assert_array_equal(cube.metadata["arina"]["bad_pixels"], bad)
    assert cube.metadata["arina"]["pixel_mask"][6, 6] == 1 << 31


def test_bad_pixels_as_missing_or_as_they_are(masked):
    path, data, bad = masked
    got = np.asarray(open_scan(path, scan_shape=SCAN, bad_pixels="missing").data)
    assert got.dtype == np.float32
    assert_array_equal(got, np.where(bad, np.nan, data))
    got = np.asarray(open_scan(path, scan_shape=SCAN, bad_pixels="keep").data)
    assert_array_equal(got, data)


def test_a_detector_that_applied_its_mask_marks_every_bit(masked, tmp_path):
    path, data, bad = masked
    data[..., 6, 6] = 65535
    mask = np.where(bad, 1, 0)
    mask[6, 6] = 1 << 31
    facts = {"detectorSpecific/pixel_mask_applied": True}
    path = write_arina(tmp_path, as_frames(data), mask=mask, facts=facts)
    assert np.asarray(open_scan(path, scan_shape=SCAN).data).max() < 65535


def test_bad_pixels_travel_to_a_file_and_to_results(masked, tmp_path):
    path, _, bad = masked
    cube = open_scan(path, scan_shape=SCAN)
    options = {"sigma": 0, "radius": 1, "edge": 0, "progress_bar": False}
    filtered = cube.filter_correlative(**options)
    assert_array_equal(filtered.metadata["arina"]["bad_pixels"], bad)
    py4DSTEM.save(str(tmp_path / "saved.h5"), filtered)
    again = py4DSTEM.read(str(tmp_path / "saved.h5"))
    assert_array_equal(again.metadata["arina"]["bad_pixels"], bad)


def test_a_mask_that_cannot_be(scan, tmp_path):
    frames = as_frames(scan)
    path = write_arina(tmp_path, frames, mask=np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"\(4, 4\), does not fit its frames, \(14, 11\)"):
        open_scan(path, scan_shape=SCAN)
    path = write_arina(tmp_path, frames, mask=np.zeros(4))
    with pytest.raises(ValueError, match="is no pixel mask"):
        open_scan(path, scan_shape=SCAN)
    path = write_arina(tmp_path, frames, mask=np.ones(DETECTOR))
    with pytest.raises(ValueError, match="marks every pixel as bad; bad_pixels='keep'"):
        open_scan(path, scan_shape=SCAN)
    cube = open_scan(path, scan_shape=SCAN, bad_pixels="keep")
    assert_array_equal(np.asarray(cube.data), scan)


@pytest.mark.parametrize(
    ("dtype", "facts", "value"),
    [
        ("u1", {}, 255),
        ("u2", {}, 65535),
        ("u4", {}, 2**32 - 1),
        ("u4", {"bit_depth_image": 16}, 65535),
        ("u4", {"saturation_value": 5000}, 5001),
        ("u4", {"detectorSpecific/countrate_correction_count_cutoff": 5000}, 5001),
    ],
    ids=str,
)
def test_saturated_counts(scan, tmp_path, dtype, facts, value):
    data = np.minimum(scan, 200).astype(dtype)
    data[4, 5, 6, 7] = data[5, 0, 1, 2] = value
    path = write_arina(tmp_path, as_frames(data), facts=facts)
    cube = open_scan(path, scan_shape=SCAN)
    assert_array_equal(np.asarray(cube.data[:4]), data[:4])
    message = rf"pixel \(6, 7\) at scan position \(4, 5\) is saturated: it holds {value}, the larg"
    with pytest.raises(ValueError, match=message):
        cube.data[4:6]
    with pytest.raises(ValueError, match=message):
        cube.get_dp_max()
    with pytest.raises(ValueError, match=message):
        cube.get_similarity(progress_bar=False)
    got = np.asarray(open_scan(path, scan_shape=SCAN, saturated="missing").data)
    assert got.dtype == (np.float64 if dtype == "u4" else np.float32)
    assert_array_equal(got, np.where(data == value, np.nan, data))
    got = np.asarray(open_scan(path, scan_shape=SCAN, saturated="keep").data)
    assert_array_equal(got, data)


def test_a_bad_pixel_is_not_filled_with_saturated_counts(scan, tmp_path):
    data = scan.copy()
    mask = np.zeros(DETECTOR)
    mask[5, 5] = mask[8, 8] = 1
    data[1, 1, 4:7, 4:7] = 65535
    data[1, 2, 4:6, 4:7] = 65535
    options = {"scan_shape": SCAN, "saturated": "missing"}
    cube = open_scan(write_arina(tmp_path, as_frames(data), mask=mask), **options)
    assert np.isnan(cube.data[1, 1, 5, 5])
    assert cube.data[1, 2, 5, 5] == np.median(data[1, 2, 6, 4:7])
    assert np.isfinite(cube.data[..., 8, 8]).all()
    assert cube.cluster(threshold=0.5, progress_bar=False).n_clusters >= 1


def test_the_lower_16_bits_of_a_mask_mark_bad_pixels(scan, tmp_path):
    mask = np.zeros(DETECTOR, dtype=np.uint32)
    mask.ravel()[:32] = 2 ** np.arange(32, dtype=np.uint64)
    cube = open_scan(write_arina(tmp_path, as_frames(scan), mask=mask), scan_shape=SCAN)
    bad = cube.metadata["arina"]["bad_pixels"].ravel()
    assert bad[:16].all()
    assert not bad[16:].any()


def test_a_large_gap_is_filled(tmp_path):
    frames = np.full((1, 60, 50), 7, dtype=np.uint16)
    mask = np.zeros((60, 50))
    mask[5:55] = 1
    got = open_scan(write_arina(tmp_path, frames, mask=mask)).data[0, 0]
    assert_array_equal(got, frames[0])
    mask[:], mask[0, 0] = 1, 0  # one good pixel
    frames[0, 1:] = 3
    got = open_scan(write_arina(tmp_path, frames, mask=mask, prefix="other")).data[0, 0]
    assert_array_equal(got, 7)


# --- no more than asked for -------------------------------------------------------------------


def test_only_the_frames_asked_for_are_read(opened, reads):
    assert reads == []  # not by opening
    read_rows(opened.data, 2, 4)  # frames 18 to 35, of files with 20 each
    assert reads == [("scan_data_000001.h5", 18, 19), ("scan_data_000002.h5", 0, 15)]
    del reads[:]
    opened.data[3, 4]
    opened.data[[6, 0, 6], [8, 0, 8], 3:5]
    assert reads == [
        ("scan_data_000002.h5", 11, 11),
        ("scan_data_000001.h5", 0, 0),
        ("scan_data_000004.h5", 2, 2),
    ]


def test_only_the_files_asked_for_are_opened(opened, tmp_path, scan):
    for number in (3, 4):
        (tmp_path / f"scan_data_{number:06d}.h5").unlink()
    assert_array_equal(opened.data[:4], scan[:4])
    with pytest.raises(OSError, match=r"scan_data_000003.h5 is missing .*; put it back"):
        opened.data[5]


def test_memory_is_that_of_the_answer(tmp_path, monkeypatch):
    frames = np.ones((400, 64, 64), dtype=np.uint16)  # 3.3 MB
    cube = open_scan(write_arina(tmp_path, frames, per_file=100))
    monkeypatch.setattr("py4dstem_clustering.scan.array._BATCH_BYTES", 20 * 64 * 64 * 2)
    cube.get_dp_mean()  # what is imported at the first call does not count
    tracemalloc.start()
    try:
        assert_array_equal(cube.data[:, :, 3, 5], 1)
        cube.get_dp_mean()
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_few_files_are_open_at_a_time(opened, scan, monkeypatch):
    monkeypatch.setattr("py4dstem_clustering.scan.array._MAX_OPEN_FILES", 2)
    assert_array_equal(np.asarray(opened.data), scan)
    assert len(opened.data._handles) == 2
    opened.data.close()
    assert len(opened.data._handles) == 0
    assert_array_equal(opened.data[6], scan[6])


def test_threads_read_what_is_there(opened, scan, monkeypatch):
    monkeypatch.setattr("py4dstem_clustering.scan.array._MAX_OPEN_FILES", 2)
    keys = [np.s_[i % RX, (3 * i) % RY] for i in range(200)] + [np.s_[i % RX] for i in range(50)]
    with ThreadPoolExecutor(8) as pool:
        for key, got in zip(keys, pool.map(opened.data.__getitem__, keys), strict=True):
            assert_array_equal(got, scan[key])


def test_another_folder_is_no_hindrance(master, scan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cube = open_scan(master.name, scan_shape=SCAN)
    monkeypatch.chdir("/")
    assert_array_equal(np.asarray(cube.data), scan)


# --- files and links --------------------------------------------------------------------------


@pytest.mark.parametrize("links", [True, False])
def test_renamed_files_are_found(scan, tmp_path, links):
    write_arina(tmp_path, as_frames(scan), links=links)
    (tmp_path / "new").mkdir()
    for path in sorted(tmp_path.glob("scan*.h5")):
        path.rename(tmp_path / "new" / path.name.replace("scan", "renamed"))
    cube = open_scan(tmp_path / "new" / "renamed_master.h5", scan_shape=SCAN)
    assert_array_equal(np.asarray(cube.data), scan)
    assert cube.name == "renamed"


def test_chunks_inside_the_master_file(scan, tmp_path):
    frames = as_frames(scan)
    with h5py.File(tmp_path / "a_master.h5", "w") as file:
        file["entry/data/data_000001"] = frames[:40]
        file["entry/data/data_000002"] = frames[40:]
        file["entry/data/other"] = 3
    cube = open_scan(tmp_path / "a_master.h5", scan_shape=SCAN)
    assert_array_equal(np.asarray(cube.data), scan)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["entry/data/data"] = frames
    cube = open_scan(tmp_path / "b.h5", scan_shape=SCAN)
    assert_array_equal(np.asarray(cube.data), scan)


def relink(master, name, target, path="/entry/data/data"):
    with h5py.File(master, "r+") as file:
        if name in file:
            del file[name]
        file[name] = h5py.ExternalLink(str(target), path)


@pytest.mark.parametrize("prefix", ["", "/elsewhere/", "..", "C:\\data\\", "sub/../"])
def test_links_lead_to_files_beside_the_master_whatever_their_path(master, scan, prefix):
    name = "scan_data_000002.h5"
    relink(
        master, "entry/data/data_000002", f"{prefix}/{name}" if prefix == ".." else prefix + name
    )
    assert_array_equal(np.asarray(open_scan(master, scan_shape=SCAN).data), scan)


def test_links_into_a_folder_below(master, scan, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "scan_data_000002.h5").rename(tmp_path / "sub" / "second.h5")
    relink(master, "entry/data/data_000002", "sub/second.h5")
    assert_array_equal(np.asarray(open_scan(master, scan_shape=SCAN).data), scan)


def test_links_to_elsewhere_are_not_followed(master, scan, tmp_path):
    outside = tmp_path / "outside"
    inside = tmp_path / "inside"
    inside.mkdir()
    outside.mkdir()
    for path in tmp_path.glob("scan*.h5"):
        path.rename(inside / path.name)
    master = inside / master.name
    shutil.move(inside / "scan_data_000002.h5", outside / "secret.h5")
    for target in (outside / "secret.h5", "../outside/secret.h5"):
        relink(master, "entry/data/data_000002", target)
        with pytest.raises(OSError, match=r"links to .* outside its folder, which is not followed"):
            open_scan(master, scan_shape=SCAN)
    with h5py.File(inside / "scan_data_000002.h5", "w") as file:  # one more step away
        file["entry/data/data"] = h5py.ExternalLink(str(outside / "secret.h5"), "entry/data/data")
    relink(master, "entry/data/data_000002", "scan_data_000002.h5")
    with pytest.raises(OSError, match="outside its folder, which is not followed"):
        open_scan(master, scan_shape=SCAN)


@pytest.mark.parametrize("place", ["", "/detectorSpecific", "/detectorSpecific/pixel_mask"])
def test_nothing_else_is_taken_from_other_files(master, scan, tmp_path, place):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x/count_time"] = 5
        file["x/nimages"] = 5
    with h5py.File(master, "r+") as file:
        if "pixel_mask" not in place:
            del file["entry/instrument/detector" + place]
    relink(master, "entry/instrument/detector" + place, tmp_path / "other.h5", "x")
    with pytest.raises(OSError, match="leads to another file, which is not followed; copy the"):
        open_scan(master, scan_shape=SCAN)
    cube = open_scan(master, scan_shape=SCAN, bad_pixels="keep")
    assert 5 not in cube.metadata["arina"]._params.values()
    assert_array_equal(np.asarray(cube.data), scan)


def test_links_in_a_ring_end(master):
    relink(master, "entry/data/data_000002", master.name, "/entry/data/data_000002")
    with pytest.raises(OSError, match="chain of links without end"):
        open_scan(master, scan_shape=SCAN)
    with h5py.File(master, "r+") as file:
        del file["entry/data/data_000002"]
        file["entry/data/data_000002"] = h5py.SoftLink("data_000002")
    with pytest.raises(ValueError, match="holds no 'entry/data/data_000002'"):
        open_scan(master, scan_shape=SCAN)


def test_values_in_other_files_are_not_read(tmp_path, scan):
    (tmp_path / "raw").write_bytes(scan.tobytes())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(
            "external", scan.shape, scan.dtype, external=[(str(tmp_path / "raw"), 0, scan.nbytes)]
        )
        layout = h5py.VirtualLayout(scan.shape, scan.dtype)
        layout[...] = h5py.VirtualSource("b.h5", "x", scan.shape)
        file.create_virtual_dataset("virtual", layout)
    for name in ("external", "virtual"):
        with pytest.raises(OSError, match="takes its values from other files, which is not"):
            open_scan(tmp_path / "a.h5", dataset=name)


# --- faults -----------------------------------------------------------------------------------


def test_a_missing_chunk_file_is_named(master, tmp_path):
    (tmp_path / "scan_data_000002.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"scan_data_000002.h5 is missing, scan_master.h5"):
        open_scan(master, scan_shape=SCAN)
    with h5py.File(master, "r+") as file:
        del file["entry/data/data_000002"]
    with pytest.raises(FileNotFoundError, match="no chunk data_000002, but data_000004; copy"):
        open_scan(master, scan_shape=SCAN)


def test_no_chunk_at_all(master, tmp_path):
    for path in tmp_path.glob("scan_data*"):
        path.unlink()
    with h5py.File(master, "r+") as file:
        del file["entry/data"]
        file.create_group("entry/data")
    with pytest.raises(FileNotFoundError, match=r"no file scan_data_000001.h5 lies beside it"):
        open_scan(master)


def test_a_chunk_file_is_no_scan(master, tmp_path):
    chunk = tmp_path / "scan_data_000002.h5"
    with pytest.raises(ValueError, match=r"is one chunk file of a scan; give .* scan_master.h5"):
        open_scan(chunk)
    assert open_scan(chunk, dataset="entry/data/data", scan_shape=(4, 5)).Rshape == (4, 5)


def test_chunks_of_another_scan(master, tmp_path, scan):
    with h5py.File(tmp_path / "scan_data_000003.h5", "w") as file:
        file["entry/data/data"] = as_frames(scan)[:20].astype(np.uint32)
    with pytest.raises(ValueError, match=r"000003.h5 holds frames of \(14, 11\) uint32, that of"):
        open_scan(master, scan_shape=SCAN)


def test_a_corrupt_chunk_is_named_with_its_frame(master, scan, tmp_path):
    path = tmp_path / "scan_data_000002.h5"
    offset, size = chunk_place(path, 7)
    overwrite(path, offset, b"\xff" * size)
    cube = open_scan(master, scan_shape=SCAN)
    assert_array_equal(cube.data[:2], scan[:2])
    message = (
        r"frame 7 of '/entry/data/data' in .*000002.h5, scan position \(3, 0\), cannot be read"
    )
    for read in (lambda: cube.data[2:5], cube.get_dp_mean, lambda: cube.data[3, 0]):
        with pytest.raises(OSError, match=message):
            read()
    with pytest.raises(OSError, match=message):
        cube.get_similarity(progress_bar=False)
    assert_array_equal(cube.data[4:], scan[4:])  # the rest can be read


def test_a_corrupt_row_of_a_4d_dataset(tmp_path, scan):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=scan, chunks=(1, 1, *DETECTOR), compression="gzip")
    offset, size = chunk_place(path, 2 * RY + 3, "x")
    overwrite(path, offset, b"\xff" * size)
    with pytest.raises(OSError, match=r"frame \(2, 3\) of '/x' in .*, scan position \(2, 3\)"):
        np.asarray(open_scan(path, dataset="x").data)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_chunk_file_is_named(master, tmp_path, keep):
    path = tmp_path / "scan_data_000003.h5"
    os.truncate(path, int(keep * path.stat().st_size))
    with pytest.raises(OSError, match=r"scan_data_000003.h5 (is damaged, cut short|is no HDF5)"):
        open_scan(master, scan_shape=SCAN)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("at_work", [True, False])
def test_a_file_that_shrinks_is_never_read_as_zeros(scan, tmp_path, compressed, at_work):
    compression = None if compressed else {"compression": None}
    path = write_arina(tmp_path, as_frames(scan) + 1, per_file=20, compression=compression)
    cube = open_scan(path, scan_shape=SCAN)
    if at_work:
        cube.data[3]
    chunk = tmp_path / "scan_data_000002.h5"
    os.truncate(chunk, chunk.stat().st_size // 2)
    with pytest.raises(OSError, match=r"000002.h5 shrank from \d+ to \d+ bytes since it was opene"):
        cube.data[3]
    with pytest.raises(OSError, match="shrank"):
        cube.filter_correlative(sigma=0, radius=1, edge=1, progress_bar=False)
    out = tmp_path / "out.h5"
    with pytest.raises(OSError, match="shrank"):
        cube.filter_correlative(sigma=0, radius=1, edge=1, out=out, progress_bar=False)
    assert not list(tmp_path.glob("*out.h5*"))
    assert_array_equal(cube.data[:2], scan[:2] + 1)


def test_a_file_that_was_replaced(opened, tmp_path, scan):
    path = tmp_path / "scan_data_000001.h5"
    with h5py.File(tmp_path / "new.h5", "w") as file:
        file["entry/data/data"] = as_frames(scan)[:, :-1]
    os.replace(tmp_path / "new.h5", path)
    with pytest.raises(OSError, match="was changed; open the scan again"):
        opened.data[0]


@pytest.mark.parametrize("written", [0, 5, 19])
def test_frames_that_were_never_written_are_no_zeros(master, tmp_path, scan, written):
    with h5py.File(tmp_path / "scan_data_000002.h5", "w") as file:
        shape = (20, *DETECTOR)
        data = file.create_dataset("entry/data/data", shape, scan.dtype, chunks=(1, *DETECTOR))
        data[:written] = as_frames(scan)[:written]
    with pytest.raises(OSError, match=rf"000002.h5 was not written .* missing is {written} of 20"):
        open_scan(master, scan_shape=SCAN)
    with h5py.File(tmp_path / "scan_data_000002.h5", "w") as file:
        file.create_dataset("entry/data/data", shape, scan.dtype)
    with pytest.raises(OSError, match=r"000002.h5 was not written .* missing is 0 of 20"):
        open_scan(master, scan_shape=SCAN)


def test_a_filter_that_is_not_installed(master, monkeypatch):
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: False)
    with pytest.raises(
        OSError, match=r"HDF5 filter 32008 .* not installed; pip install hdf5plugin"
    ):
        open_scan(master, scan_shape=SCAN)


def test_units_that_are_no_text(tmp_path, scan):
    master = write_arina(tmp_path, scan.reshape(-1, *scan.shape[2:]).astype(np.uint16))
    with h5py.File(master, "r+") as file:
        attributes = file["entry/instrument/detector/count_time"].attrs
        attributes.create("units", b"\xb5s", dtype="S2")
    cube = open_scan(master, scan_shape=scan.shape[:2])
    assert cube.metadata["arina"]["count_time_units"] == "\ufffds"
    cube.data.close()


def test_the_files_of_a_scan(tmp_path, scan):
    master = write_arina(tmp_path, scan.reshape(-1, *scan.shape[2:]).astype(np.uint16), per_file=30)
    cube = open_scan(master, scan_shape=scan.shape[:2])
    chunks = [tmp_path / f"scan_data_{k:06d}.h5" for k in (1, 2, 3)]
    assert cube.data.files == sorted([master, *chunks])
    cube.data.close()
