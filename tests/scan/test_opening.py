"""One function for every kind of file: what it says of files, frames and pixels."""

from __future__ import annotations

import os
import pickle
import re
import stat
import sys

import dask
import dask.array as da
import h5py
import numpy as np
import py4DSTEM
import pytest
from arina import write_arina
from microscopes import write_abtem, write_dm, write_emd, write_emd_berkeley, write_empad
from numpy.testing import assert_array_equal
from stored import lines_of

from py4dstem_clustering import ScanArray, open_scan, simulate_scan
from py4dstem_clustering.cli.main import main
from py4dstem_clustering.kernels.blocks import iterate_blocks
from py4dstem_clustering.scan.axes import Axes, Axis, as_length, set_calibration
from py4dstem_clustering.scan.found import library_frames
from py4dstem_clustering.scan.opening import notes_of
from py4dstem_clustering.scan.pixels import find_hot_pixels

NM, PER_NM = [(3.03, "nm")] * 2, [(0.5, "1/nm")] * 2


@pytest.fixture
def small():
    return np.random.default_rng(0).integers(1, 99, (5, 4, 9, 7)).astype("u2")


def write_npy(path, data):
    np.save(path, data)
    return path


def write_npz(path, data):
    np.savez(path, scan=data, mask=np.ones(data.shape[-2:], bool))
    return path


def write_hdf5(path, data):
    with h5py.File(path, "w") as file:
        file["counts"] = data
    return path


STACKS = {
    "npy": lambda folder, frames: write_npy(folder / "scan.npy", frames),
    "npz": lambda folder, frames: write_npz(folder / "scan.npz", frames),
    "dm4": lambda folder, frames: write_dm(folder / "scan.dm4", frames, NM[1:] + PER_NM),
    "hdf5": lambda folder, frames: write_hdf5(folder / "scan.h5", frames),
    "arina": lambda folder, frames: write_arina(folder, frames),
}  # fmt: skip


# --- frames -------------------------------------------------------------------------------------


@pytest.mark.parametrize("last_row", ["whole", "without flyback"])
@pytest.mark.parametrize("kind", STACKS)
def test_frames_to_skip_in_every_kind(tmp_path, small, kind, last_row):
    rows = np.concatenate([small, np.full((5, 2, 9, 7), 7, "u2")], axis=1)  # flyback of 2
    frames = np.concatenate([np.full((3, 9, 7), 5, "u2"), rows.reshape(-1, 9, 7)])
    frames = frames[:-2] if last_row == "without flyback" else frames
    surplus = np.concatenate([frames, frames[:4]])
    path = STACKS[kind](tmp_path, surplus)
    cube = open_scan(path, scan_shape=(5, 4), skip_frames=(3, 4), flyback=2)
    assert_array_equal(np.asarray(cube.data), small)
    with pytest.raises(ValueError, match=r"scan.*: scan_shape=\(5, 4\) .* needs 30 frames"):
        open_scan(path, scan_shape=(5, 4), flyback=2)


def test_frames_to_skip_on_the_command_line(tmp_path):
    truth = simulate_scan((12, 10), (32, 30), n_grains=2, electrons=20_000, seed=1)
    data = truth.datacube.data
    rows = np.concatenate([data, data[:, :1]], axis=1).reshape(-1, 32, 30)
    np.save(tmp_path / "stack.npy", np.concatenate([rows[:2], rows]))
    np.save(tmp_path / "scan.npy", data)
    for name, options in [
        ("scan", []),
        ("stack", ["--scan-shape", "12", "10", "--skip-frames", "2", "--flyback", "1"]),
    ]:
        out = ["--out", str(tmp_path / f"{name}.h5"), "--quiet", *options]
        assert main(["cluster", str(tmp_path / f"{name}.npy"), *out]) == 0
    plain, cut = (py4DSTEM.read(tmp_path / f"{name}.h5") for name in ("scan", "stack"))
    assert_array_equal(cut.clusters.labels, plain.clusters.labels)
    assert_array_equal(cut.data, plain.data)


def test_a_stack_says_which_shapes_fit(tmp_path, small):
    path = write_npy(tmp_path / "stack.npy", small.reshape(-1, 9, 7))
    with pytest.raises(ValueError, match=r"stack.npy: 20 frames are a stack.*\(4, 5\) or \(5, 4\)"):
        open_scan(path)
    with pytest.raises(ValueError, match=r"with flyback=1 needs 24 frames|does not fit 20 frames"):
        open_scan(path, scan_shape=(4, 5), flyback=1)


# --- what is in a file --------------------------------------------------------------------------


def test_files_stay_on_disk(tmp_path, small):
    """And are opened again by name in another process."""
    paths = [
        write_npy(tmp_path / "a.npy", small),
        write_dm(tmp_path / "a.dm4", small, NM + PER_NM),
        write_emd(tmp_path / "a.emd", small, NM + PER_NM),
        write_abtem(tmp_path / "abtem.h5", small, [(0.4, "Å")] * 2 + [(1.5, "mrad")] * 2),
        write_empad(tmp_path / "a.raw", np.zeros((2, 2, 128, 128), "f4")),
    ]
    for path in paths:
        data = open_scan(path).data
        assert isinstance(data, ScanArray)
        assert data.files == [path]
        sent = pickle.dumps(data)
        assert len(sent) < 4000
        assert_array_equal(pickle.loads(sent)[1:], data[1:])
        data.close()
        assert_array_equal(data[0], np.asarray(data)[0])


def test_steps_units_and_origin_come_from_the_file(tmp_path, small):
    cube = open_scan(write_emd_berkeley(tmp_path / "a.emd", small, NM + PER_NM))
    found = cube.calibration
    assert (found.get_R_pixel_size(), found.get_R_pixel_units()) == (pytest.approx(3.03), "nm")
    assert (found.get_Q_pixel_size(), found.get_Q_pixel_units()) == (pytest.approx(0.05), "A^-1")
    assert found.get_origin() is None  # its detector begins at 0
    with h5py.File(tmp_path / "a.emd", "r+") as file:
        for k, zero in ((3, 4), (4, 2.5)):
            values = file[f"data/scan/dim{k}"]
            values[:] = (np.arange(len(values)) - zero) * 0.5
    assert open_scan(tmp_path / "a.emd").calibration.get_origin() == (4, 2.5)


def test_emd_where_the_detector_comes_first(tmp_path, small):
    """As HyperSpy writes EMD 0.2; the units tell."""
    turned = np.ascontiguousarray(small.T)
    path = write_emd_berkeley(tmp_path / "a.emd", turned, PER_NM + NM)
    cube = open_scan(path)
    assert_array_equal(np.asarray(cube.data), small)
    assert cube.calibration.get_R_pixel_units() == "nm"


def test_a_spectrum_image_of_digital_micrograph(tmp_path, small):
    """py4DSTEM gives it with its axes swapped, and without calibration."""
    swapped = np.ascontiguousarray(small.transpose(2, 3, 0, 1))
    cube = open_scan(write_dm(tmp_path / "a.dm4", swapped, PER_NM + NM))
    assert_array_equal(np.asarray(cube.data), small)
    assert_array_equal(cube.data[3, 1:3], small[3, 1:3])
    assert cube.calibration.get_R_pixel_size() == pytest.approx(3.03)
    assert cube.calibration.get_Q_pixel_units() == "A^-1"


def test_what_lies_in_the_tree_of_a_scan_is_read_with_it(tmp_path):
    cube = simulate_scan((8, 10), (32, 30), n_grains=1, electrons=20_000, seed=1).datacube
    cube.calibration.set_R_pixel_size(2.5)
    cube.calibration.set_R_pixel_units("nm")
    clusters = cube.cluster(progress_bar=False)
    py4DSTEM.save(tmp_path / "scan.h5", cube)
    again = open_scan(tmp_path / "scan.h5")
    assert isinstance(again.data, ScanArray)
    assert_array_equal(np.asarray(again.data), cube.data)
    assert_array_equal(again.clusters.labels, clusters.labels)
    assert again.clusters.pixel_units == "nm"
    assert again.name == cube.name
    assert_array_equal(again.calibration.get_origin(), cube.calibration.get_origin())
    whole = py4DSTEM.read(tmp_path / "scan.h5")
    assert set(whole.metadata) <= set(again.metadata)
    for axis, expected in zip(again.dims, whole.dims, strict=True):
        assert_array_equal(axis, expected)
    again.data.close()


def test_several_scans_in_a_file(tmp_path, small):
    with h5py.File(write_hdf5(tmp_path / "a.h5", small), "r+") as file:
        file["x/other"] = small[::-1]
        file["image"] = small[0, 0]
    np.savez(tmp_path / "a.npz", counts=small, other=small[::-1], image=small[0, 0])
    for file, name in [("a.h5", "x/other"), ("a.npz", "other")]:
        path = tmp_path / file
        with pytest.raises(ValueError, match=r"a\.\w+ holds 2 scans; name one.*\(5, 4, 9, 7\)"):
            open_scan(path)
        assert_array_equal(np.asarray(open_scan(path, dataset=name).data), small[::-1])
        with pytest.raises(ValueError, match=r"a\.\w+ holds no .*'no'.*\(5, 4, 9, 7\)"):
            open_scan(path, dataset="no")


def test_counts_of_255_are_saturated_only_for_dectris(tmp_path, small, capsys):
    data = small.astype("u1")
    data[2, 1, 3, 4] = 255
    frames = data.reshape(-1, 9, 7)
    cube = open_scan(write_hdf5(tmp_path / "a.h5", data))
    assert_array_equal(np.asarray(cube.data), data)
    marked = open_scan(tmp_path / "a.h5", saturated="missing")
    assert np.argwhere(np.isnan(np.asarray(marked.data))).tolist() == [[2, 1, 3, 4]]
    master = write_arina(tmp_path, frames)
    with pytest.raises(ValueError, match=r"pixel \(3, 4\) at scan position \(2, 1\) is saturated"):
        np.asarray(open_scan(master, scan_shape=(5, 4)).data)
    out = str(tmp_path / "out.h5")
    run = ["cluster", str(master), "--scan-shape", "5", "4", "--out", out, "--quiet"]
    assert main(run) == 2
    assert "is saturated" in capsys.readouterr().err
    main([*run, "--saturated", "keep"])
    assert "saturated" not in capsys.readouterr().err


class Chunks:
    """An array in chunks that notes how often each is unpacked, as a compressed file would."""

    def __init__(self, data, rows):
        self.data, self.unpacked = data, []
        starts = range(0, len(data), rows)
        parts = [da.from_delayed(self.part(k, rows), data[k : k + rows].shape, data.dtype)
                 for k in starts]  # fmt: skip
        self.array = da.concatenate(parts)

    def part(self, start, rows):
        def unpack():
            self.unpacked.append(start)
            return self.data[start : start + rows]

        return dask.delayed(unpack)()


def test_chunks_of_a_file_are_unpacked_once(tmp_path, monkeypatch):
    monkeypatch.setattr("py4dstem_clustering.scan.array._BATCH_BYTES", 20 * 6 * 9 * 7)
    monkeypatch.setattr("py4dstem_clustering.kernels.blocks._PIECE_BYTES", 11 * 6 * 9 * 7)
    data = np.random.default_rng(0).integers(0, 99, (23, 6, 9, 7)).astype("u1")
    chunks = Chunks(data, 4)
    (tmp_path / "a").touch()
    frames = library_frames(tmp_path / "a", "x", lambda: chunks.array)
    options = {"bad": np.zeros((9, 7), bool), "limit": None, "bad_pixels": "keep"}
    index = np.arange(23 * 6).reshape(23, 6)
    scan = ScanArray([frames], index, path=tmp_path / "a", saturated="keep", **options)
    assert scan.chunks == (4, 6)
    assert_array_equal(np.asarray(scan), data)
    assert sorted(chunks.unpacked) == [0, 4, 8, 12, 16, 20]
    chunks.unpacked.clear()
    for start, rows in iterate_blocks(scan, n_rows=23):
        assert_array_equal(rows, data[start:])
    assert sorted(chunks.unpacked) == [0, 4, 8, 12, 16, 20]
    late = ScanArray(
        [frames], np.arange(8, 128).reshape(20, 6), path=tmp_path / "a", saturated="keep", **options
    )
    assert_array_equal(np.asarray(late), data.reshape(-1, 9, 7)[8:128].reshape(20, 6, 9, 7))
    for key in [np.s_[5, 2:4], np.s_[3:9, 1:], np.s_[::3], np.s_[[7, 2]], np.s_[2, 3, 4:, 1]]:
        assert_array_equal(scan[key], data[key])


# --- pixels -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_hot_pixels():
    """The same electrons with a hot, a weakly hot and a dead pixel, and without."""
    clean = simulate_scan((20, 18), (48, 44), n_grains=3, electrons=2000, seed=3).datacube.data
    hot = clean.astype("u4")
    rng = np.random.default_rng(0)
    hot[..., 5, 30] = rng.poisson(50_000, (20, 18))
    hot[..., 40, 7] = rng.poisson(30, (20, 18))
    hot[..., 24, 23] = 0  # beside the direct beam
    wrong = np.zeros((48, 44), bool)
    wrong[[5, 40, 24], [30, 7, 23]] = True
    return hot, wrong, clean


@pytest.mark.parametrize("kind", ["npy", "npz", "hdf5"])
def test_hot_pixels_are_found_and_filled_wherever_a_scan_is_read(tmp_path, with_hot_pixels, kind):
    hot, wrong, clean = with_hot_pixels
    path = STACKS[kind](tmp_path, hot)
    cube = open_scan(path, hot_pixels="auto")
    name = "arina" if kind == "hdf5" else "file"
    assert_array_equal(cube.metadata[name]["bad_pixels"], wrong)
    filled = np.asarray(cube.data)
    assert_array_equal(filled[..., ~wrong], clean[..., ~wrong])
    assert filled[..., wrong].max() < 5 * clean.max()
    given = open_scan(path, hot_pixels=wrong)
    assert_array_equal(np.asarray(given.data), filled)
    missing = np.asarray(open_scan(path, hot_pixels=wrong, bad_pixels="missing").data)
    assert np.isnan(missing[..., wrong]).all()
    assert not np.isnan(missing[..., ~wrong]).any()
    averages = cube.get_clustered_datacube(cube.cluster(progress_bar=False), progress_bar=False)
    assert averages.data.max() < 1000
    with pytest.raises(ValueError, match="hot_pixels of shape"):
        open_scan(path, hot_pixels=wrong[:5])
    with pytest.raises(ValueError, match="hot_pixels='all' must be 'auto' or"):
        open_scan(path, hot_pixels="all")


def test_no_pixel_of_a_clean_detector_is_hot():
    for seed, electrons in [(0, 30), (1, 1000), (2, 100_000)]:
        data = simulate_scan((8, 40), (48, 44), n_grains=3, electrons=electrons, seed=seed).datacube
        assert not find_hot_pixels(data.data.sum(axis=(0, 1), dtype=float)).any()
    noise = np.random.default_rng(0).normal(0, 10, (40, 30))
    assert not find_hot_pixels(noise).any()


# --- messages -----------------------------------------------------------------------------------


def test_bad_input_is_one_line_that_names_the_file(tmp_path, small):
    (tmp_path / "empty.npy").touch()
    (tmp_path / "corrupt.npy").write_bytes(b"not an array of NumPy")
    np.save(tmp_path / "image.npy", small[0, 0])
    np.save(tmp_path / "none.npy", small[:0])
    np.save(tmp_path / "words.npy", np.array([[[["a"]]]]))
    whole = write_npy(tmp_path / "cut.npy", small)
    os.truncate(whole, 500)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.docx").write_text("text")
    (tmp_path / "text.h5").write_text("text")
    np.save(tmp_path / "scan.npy", small)
    os.rename(tmp_path / "scan.npy", tmp_path / "scan.dm4")
    for name, message in [
        ("no.mib", "no.mib is not a file; check the path"),
        ("empty.npy", "empty.npy is empty; copy it again"),
        ("corrupt.npy", "corrupt.npy: it does not begin like an array of NumPy; copy it again"),
        ("image.npy", r"image.npy holds no scan: an array of shape \(9, 7\)"),
        ("none.npy", "none.npy holds no scan: .* is empty"),
        ("words.npy", "words.npy holds no scan: data of type <U1"),
        ("cut.npy", "NumPy cannot open .*cut.npy: mmap length is greater than file size"),
        ("folder", "folder is a folder; give a file in it, or a zarr folder"),
        ("text.docx", "text.docx is of no kind that is known; give a file that ends in .*.hspy"),
        ("text.h5", "text.h5 is no HDF5 file, or its beginning is damaged"),
        ("scan.dm4", "py4DSTEM cannot open .*scan.dm4: "),
    ]:
        with pytest.raises((ValueError, TypeError, OSError), match=message) as error:
            open_scan(tmp_path / name)
        assert len(lines_of(error)) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions there")
def test_a_file_that_may_not_be_read(tmp_path, small, monkeypatch):
    path = write_npy(tmp_path / "scan.npy", small)
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read everything

        def refuse(*args, **options):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(PermissionError, match=r"scan.npy may not be read; ask its owner"):
        open_scan(path)
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)


def test_where_the_extra_is_missing_the_message_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr("py4dstem_clustering.scan.rosetta.find_spec", lambda name: None)
    for name in ("a.hspy", "a.mib", "a.blo", "a.app5", "a.tvips", "a.mrc", "a.prz", "a.ser"):
        (tmp_path / name).write_bytes(b"content")
        with pytest.raises(
            ValueError,
            match=rf'{name} is read by RosettaSciIO.*extra .files.*pip install rosettasciio "num',
        ):
            open_scan(tmp_path / name)
    folder = tmp_path / "a.zarr"
    folder.mkdir()
    (folder / "zarr.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a.zarr is read by zarr, .*pip install zarr"):
        open_scan(folder)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (("3", "furlong"), "has a unit that is not known; give one of A, nm, pm, um, mm, m, pix"),
        (("x", "nm"), "must be a number and a unit"),
        (("0", "nm"), "must be above 0"),
    ],
)
def test_steps_of_the_command_line(tmp_path, capsys, step, message):
    out = str(tmp_path / "out.h5")
    assert main(["cluster", "no.npy", "--out", out, "--step", *step]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


# --- axes ---------------------------------------------------------------------------------------


def calibrated(axes):
    cube = py4DSTEM.DataCube(np.zeros((5, 4, 9, 7)))
    notes = set_calibration(cube, axes)
    return cube.calibration, notes


def test_units_and_what_py4dstem_has_no_place_for():
    for spelled, unit in [("Angstrom", "A"), ("Å", "A"), ("µm", "um"), ("μm", "um"), ("NM", "nm")]:
        assert as_length(spelled) == unit
    for unit, size, expected in [
        ("1/nm", 0.5, (0.05, "A^-1")),
        ("$A^{-1}$", 0.5, (0.5, "A^-1")),
        ("rad", 0.002, (2.0, "mrad")),
        ("deg", 0.1, (pytest.approx(1.7453, abs=1e-4), "mrad")),
    ]:
        found, _ = calibrated(Axes(None, None, Axis(size, unit), Axis(size, unit)))
        assert (found.get_Q_pixel_size(), found.get_Q_pixel_units()) == expected
    for axes, message in [
        (Axes(), "the scan step is not stated"),
        (Axes(Axis(2, "nm"), Axis(3, "nm")), r"the scan step differs along the two axes \(2 nm an"),
        (Axes(Axis(2, "furlong"), Axis(2, "furlong")), "the scan step is 2 furlong, a unit that"),
        (Axes(None, None, Axis(2, "cm"), Axis(2, "cm")), "detector pixels are 2 cm, for which"),
        (Axes(Axis(-2, "nm"), Axis(2, "nm")), "an axis of the scan step counts downwards"),
    ]:
        found, notes = calibrated(axes)
        assert any(re.search(message, note) for note in notes), notes
    assert calibrated(Axes(Axis(-2, "nm"), Axis(2, "nm")))[0].get_R_pixel_size() == 2


def test_what_a_file_does_not_state_is_named(tmp_path, small):
    cube = open_scan(write_dm(tmp_path / "a.dm4", small, [(1, "")] * 4))
    assert notes_of(cube) == [
        "the scan step is not stated",
        "the size of detector pixels is not stated",
    ]
    assert cube.calibration.get_R_pixel_units() == "pixels"
