"""Files of microscopes: opened as a user does, clustered, saved and reopened.

What py4DSTEM and ncempy themselves cannot read, or read otherwise than it was written, is at the
end, so that a new version of theirs shows.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import py4DSTEM
import pytest
from arina import write_arina
from microscopes import (
    write_abtem,
    write_dm,
    write_emd,
    write_emd_berkeley,
    write_empad,
    write_mib,
    write_mrc,
    write_py4dstem_0_12,
    write_py4dstem_0_13,
)
from ncempy.io import emd as ncem_emd
from ncempy.io import mrc as ncem_mrc
from py4DSTEM.io.filereaders.read_K2 import K2DataArray

from py4dstem_clustering import ScanArray, open_scan, simulate_scan
from py4dstem_clustering.cli.main import main
from py4dstem_clustering.kernels.blocks import read_rows
from py4dstem_clustering.metrics import panoptic_quality
from py4dstem_clustering.scan.calibration import scan_step

SCAN = (25, 18)
QUIET = {"progress_bar": False}
NM = [(3.0, "nm"), (3.0, "nm")]
PER_NM = [(0.5, "1/nm"), (0.5, "1/nm")]
PER_ANGSTROM = [(0.05, "A^-1"), (0.05, "A^-1")]
UNCALIBRATED = (1, "pixels", 1, "pixels")


@pytest.fixture(scope="module")
def truth():
    """Three grains in electron counts below 64, which fit any counter."""
    truth = simulate_scan(SCAN, (36, 30), n_grains=3, electrons=1000, seed=1)
    truth.datacube.data = np.minimum(truth.datacube.data, 63)
    return truth


@pytest.fixture
def folder(tmp_path):
    """Emptied at once: frames of 256 x 256 are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def on_detector(counts, shape, dtype):
    """Counts on a larger detector, out of its middle."""
    data = np.zeros((*counts.shape[:2], *shape), dtype=dtype)
    data[..., 50:86, 61:91] = counts
    return data


def as_frames(data):
    return data.reshape(-1, *data.shape[2:])


# --- each format ----------------------------------------------------------------------------------


class Case(NamedTuple):
    """A kind of file, and how a user opens it."""

    prepare: Callable[[np.ndarray], np.ndarray]
    """Counts (Rx, Ry, 36, 30) as this camera records them."""
    write: Callable[[Path, np.ndarray], Path]
    open: Callable[[Path, str], Any]
    """A DataCube; "MEMMAP" leaves the data in the file."""
    calibration: tuple[float, str, float, str] = UNCALIBRATED
    """Size and unit of scan steps, and of detector pixels."""
    lazy: type | None = None
    """Class of data left in the file; None where that is not offered."""
    options: tuple[Any, ...] | None = ()
    """Of the command line; None where that does not open such files."""


def same(dtype):
    return lambda counts: counts.astype(dtype)


def imported(**options):
    return lambda path, mem: py4DSTEM.import_file(str(path), mem=mem, **options)


def write_spectrum_image(folder, data):
    """With the scan as the first two dimensions, as DigitalMicrograph has spectrum images."""
    swapped = np.ascontiguousarray(data.transpose(2, 3, 0, 1))
    return write_dm(folder / "scan.dm4", swapped, PER_NM + NM)


def open_spectrum_image(path, mem):
    return py4DSTEM.import_file(str(path), mem=mem).swap_RQ()


def empad(counts):
    """Floating point, 141 units for an electron, and noise."""
    noise = np.random.default_rng(0).normal(0, 4, (*SCAN, 128, 128))
    return (141 * on_detector(counts, (128, 128), "f4") + noise).astype("f4")


def write_master(folder, data):
    path = write_arina(folder, as_frames(data), per_file=100, pixel_size=3.0)
    with h5py.File(path, "r+") as file:
        file["entry"].attrs["NX_class"] = "NXentry"  # by which py4DSTEM knows it
    return path


def write_stack(folder, data):
    return write_mrc(folder / "scan.mrc", as_frames(data))


def open_stack(path, mem):
    """By ncempy, since py4DSTEM has no reader for MRC; the file does not know the scan."""
    with ncem_mrc.fileMRC(path) as file:
        stack = file.getDataset()["data"] if mem == "RAM" else file.getMemmap()
    return py4DSTEM.DataCube(stack.reshape(*SCAN, *stack.shape[1:]), name="scan")


def open_berkeley(path, mem):
    cube = open_scan(path)
    if mem == "RAM":
        cube.data = ncem_emd.emdReader(path)["data"]
    return cube


def open_native(path, mem):
    return py4DSTEM.read(path)


def open_0_12(path, mem):
    return py4DSTEM.read(path, data_id="scan", mem=mem)


DM = (3.0, "nm", 0.05, "A^-1")  # py4DSTEM converts 1/nm
SHAPE = ("--scan-shape", *SCAN)

CASES = {
    "dm4": Case(
        same("u2"),
        lambda folder, data: write_dm(folder / "scan.dm4", data, NM + PER_NM),
        imported(), DM, np.memmap,
    ),
    "dm4 float, no thumbnail": Case(
        same("f4"),
        lambda folder, data: write_dm(folder / "scan.dm4", data, NM + PER_NM, thumbnail=False),
        imported(), DM, np.memmap,
    ),
    "dm3": Case(
        same("i2"),
        lambda folder, data: write_dm(folder / "scan.dm3", data, NM + PER_NM, version=3),
        imported(), DM, np.memmap,
    ),
    "dm4 spectrum image": Case(
        same("i4"), write_spectrum_image, open_spectrum_image, UNCALIBRATED, np.memmap, None
    ),
    # The tags of the TitanX of NCEM are known from py4DSTEM only.
    "dm4 of TitanX": Case(
        same("u1"),
        lambda folder, data: write_dm(
            folder / "scan.dm4", as_frames(data), NM[1:] + PER_NM,
            tags={"4D STEM Tags": {"Scan shape X": np.uint32(18), "Scan shape Y": np.uint32(25)}},
        ),
        imported(), DM, np.memmap,
    ),
    "EMPAD": Case(
        empad,
        lambda folder, data: write_empad(folder / "scan.raw", data),
        imported(EMPAD_shape=(*SCAN, 130, 128)), UNCALIBRATED, np.memmap, SHAPE,
    ),
    "Merlin": Case(
        lambda counts: on_detector(counts, (256, 256), "u2"),
        lambda folder, data: write_mib(folder / "scan.mib", data),
        imported(), UNCALIBRATED, np.memmap, None,  # open_scan mirrors it: test_files.py
    ),
    "Arina": Case(
        lambda counts: on_detector(counts, (96, 96), "u2"),
        write_master,
        imported(scan_width=SCAN[0]), (30.0, "A", 1, "pixels"), None, SHAPE,
    ),
    "Arina, open_scan": Case(
        lambda counts: on_detector(counts, (96, 94), "u4"),
        write_master,
        lambda path, mem: open_scan(path, scan_shape=SCAN), (30.0, "A", 1, "pixels"), ScanArray,
        None,
    ),
    "MRC": Case(same("i2"), write_stack, open_stack, UNCALIBRATED, np.memmap, None),
    "abTEM": Case(
        same("f4"),
        lambda folder, data: write_abtem(
            folder / "scan.h5", data, [(0.4, "Å"), (0.4, "Å"), (1.5, "mrad"), (1.5, "mrad")]
        ),
        imported(), (0.4, "A", 1.5, "mrad"),
    ),
    "EMD 0.2": Case(
        same("u2"),
        lambda folder, data: write_emd_berkeley(folder / "scan.emd", data, NM + PER_NM),
        open_berkeley, DM, ScanArray,
    ),
    "EMD 1.0": Case(
        same("u2"),
        lambda folder, data: write_emd(folder / "scan.emd", data, NM + PER_NM),
        open_native, (3.0, "nm", 0.5, "1/nm"),
    ),
    "py4DSTEM 0.13": Case(
        same("u2"),
        lambda folder, data: write_py4dstem_0_13(folder / "scan.h5", data, NM + PER_ANGSTROM),
        open_native, DM,
    ),
    "py4DSTEM 0.12": Case(
        same("u2"),
        lambda folder, data: write_py4dstem_0_12(folder / "scan.h5", data, NM + PER_ANGSTROM),
        open_0_12, UNCALIBRATED, h5py.Dataset,
    ),
}  # fmt: skip


def calibration_of(cube):
    found = cube.calibration
    return (
        *scan_step(cube),  # averages keep it beside their first axis, which counts clusters
        pytest.approx(found.get_Q_pixel_size()),
        found.get_Q_pixel_units(),
    )


def clustered(data, truth):
    """Labels and averages of a plain array, after a look whether they are right."""
    labels = py4DSTEM.DataCube(data).cluster(**QUIET).labels
    assert float(panoptic_quality(labels, truth.labels)) > 0.95
    assert labels.max() + 1 == truth.labels.max() + 1 == 3
    return labels, np.stack([data[labels == k].mean(axis=0, dtype=float) for k in range(3)])


@pytest.mark.parametrize("name", CASES)
def test_opened_as_it_was_written(name, truth, folder):
    case = CASES[name]
    data = case.prepare(truth.datacube.data)
    path = case.write(folder, data)
    for mem in ["RAM", "MEMMAP"] if case.lazy else ["RAM"]:
        cube = case.open(path, mem)
        if mem == "MEMMAP":
            assert type(cube.data) is case.lazy
        np.testing.assert_array_equal(np.asarray(cube.data), data)
        assert calibration_of(cube) == case.calibration


# Two kinds are clustered in every run, the others with the slow tests.
CLUSTERED_ALWAYS = ("EMD 1.0", "Arina, open_scan")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in CLUSTERED_ALWAYS else pytest.mark.slow)
        for name in CASES
    ],
)
def test_opened_clustered_saved_reopened(name, truth, folder):
    case = CASES[name]
    data = case.prepare(truth.datacube.data)
    path = case.write(folder, data)
    labels, means = clustered(data, truth)
    for mem in ["RAM", "MEMMAP"] if case.lazy else ["RAM"]:
        cube = case.open(path, mem)
        assert cube.cluster(**QUIET).n_clusters == 3
        averages = cube.get_clustered_datacube(**QUIET)
        np.testing.assert_array_equal(cube.clusters.labels, labels)
        np.testing.assert_allclose(averages.data[:, 0], means, rtol=1e-6)

        py4DSTEM.save(folder / "saved.h5", cube, mode="o")
        py4DSTEM.save(folder / "averages.h5", averages, mode="o")
        again = py4DSTEM.read(folder / "saved.h5")
        np.testing.assert_array_equal(again.data, data)
        for saved in (again, py4DSTEM.read(folder / "averages.h5")):
            np.testing.assert_array_equal(saved.tree("clusters").data, labels)
            assert calibration_of(saved) == case.calibration
        kept = again.tree("clusters").metadata["arrays"]["averages"]
        np.testing.assert_array_equal(kept, averages.data[:, 0])
        np.testing.assert_array_equal(saved.data, averages.data)

    if case.options is not None:
        out = folder / "out.h5"
        arguments = ["cluster", path, "--out", out, "--quiet", *case.options]
        assert main([str(argument) for argument in arguments]) == 0
        averages = py4DSTEM.read(out)
        np.testing.assert_array_equal(averages.tree("clusters").data, labels)
        np.testing.assert_allclose(averages.data[:, 0], means, rtol=1e-6)


# --- what a file does not say ---------------------------------------------------------------------


@pytest.fixture
def small():
    return np.random.default_rng(0).integers(0, 99, (5, 4, 9, 7)).astype("u2")


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
@pytest.mark.parametrize("hdr", [None, "Frames per Trigger", "ScanX"])
def test_counters_and_header_files_of_a_merlin(small, folder, dtype, hdr):
    pytest.importorskip("rsciio")
    data = np.zeros((5, 4, 256, 256), dtype)
    data[..., 3:12, 40:47] = small
    data[1, 2, 30, 200] = np.iinfo(dtype).max
    path = write_mib(folder / "scan.mib", data, hdr)
    shown = data[..., ::-1, :]  # as on the screen of the camera
    np.testing.assert_array_equal(open_scan(path, scan_shape=(5, 4)).data, shown)
    assert open_scan(path, scan_shape=(10, 2)).shape == (10, 2, 256, 256)
    if hdr is None:
        with pytest.raises(ValueError, match=r"scan\.mib: 20 frames .*; give scan_shape: "):
            open_scan(path)
    else:
        np.testing.assert_array_equal(open_scan(path).data, shown)


def test_the_shape_of_a_scan_of_an_empad(small, folder):
    data = np.zeros((5, 4, 128, 128), "f4")
    data[..., 3:12, 40:47] = small
    path = write_empad(folder / "scan.raw", data)
    np.testing.assert_array_equal(open_scan(path, scan_shape=(5, 4)).data, data)
    with pytest.raises(
        ValueError, match=r"scan\.raw: 20 frames .* make no square; give scan_shape"
    ):
        open_scan(path)
    with pytest.raises(
        ValueError, match=r"\(5, 5\) with flyback=0 needs 25 frames and does not fit 20 frames"
    ):
        open_scan(path, scan_shape=(5, 5))
    square = write_empad(folder / "square.raw", data[:4])
    np.testing.assert_array_equal(open_scan(square).data, data[:4])
    square.write_bytes(square.read_bytes()[:-4])
    for scan_shape in (None, (4, 4)):
        with pytest.raises(
            ValueError, match=r"square\.raw is no file of an EMPAD, or is cut short"
        ):
            open_scan(square, scan_shape=scan_shape)


@pytest.mark.parametrize("version", [3, 4])
def test_a_stack_of_digital_micrograph(small, folder, version):
    path = folder / f"stack.dm{version}"
    write_dm(path, as_frames(small), NM[1:] + PER_NM, version=version)
    np.testing.assert_array_equal(open_scan(path, scan_shape=(5, 4)).data, small)
    with pytest.raises(
        ValueError, match=r"20 frames are a stack.*give scan_shape: .*\(4, 5\) or \(5, 4\)"
    ):
        open_scan(path)
    image = write_dm(folder / "image.dm4", small[0, 0], PER_NM)
    for scan_shape in (None, (3, 3)):
        with pytest.raises(ValueError, match=r"image\.dm4 holds no scan but an array of shape"):
            open_scan(image, scan_shape=scan_shape)


@pytest.mark.xfail(
    np.lib.NumpyVersion(np.__version__) >= "2.0.0",
    reason="the wavelength that py4DSTEM 0.14.18 computes leaves float32, which NumPy 2 keeps",
)
def test_milliradians_of_digital_micrograph(small, folder):
    tags = {"Microscope Info": {"Voltage": np.float32(300e3)}}
    path = write_dm(folder / "scan.dm4", small, NM + [(0.5, "mrad")] * 2, tags=tags)
    cube = open_scan(path)
    wavelength = 0.0196875  # Angstrom, at 300 kV
    assert calibration_of(cube) == (3.0, "nm", pytest.approx(0.5e-3 / wavelength, rel=1e-5), "A^-1")


def test_other_hdf5_files_by_key(small, folder):
    path = write_emd_berkeley(folder / "scan.emd", small, NM + PER_NM)
    assert open_scan(path).shape == (5, 4, 9, 7)
    with pytest.raises(ValueError, match=r"scan\.emd holds no 'data/other'; give .*data/scan"):
        open_scan(path, dataset="data/other")
    with pytest.raises(ValueError, match=r"scan_shape=\(5, 5\)"):
        open_scan(path, dataset="data/scan/data", scan_shape=(5, 5))
    with h5py.File(path, "r+") as file:
        file["stack"] = as_frames(small)
    for key in ("data/scan/data", "stack"):
        cube = open_scan(path, dataset=key, scan_shape=(5, 4))
        assert isinstance(cube.data, ScanArray)
        np.testing.assert_array_equal(np.asarray(cube.data), small)


def test_which_scan_of_a_file_of_py4dstem_0_12(small, folder):
    path = write_py4dstem_0_12(folder / "two.h5", small, NM + PER_ANGSTROM, ("a", "b"))
    with h5py.File(path, "r+") as file:
        file["4DSTEM_experiment/data/datacubes/b/data"][:] = small[::-1]
    with pytest.raises(
        ValueError, match=r"two\.h5 holds 2 scans; name one with dataset: .*/a/data'"
    ):
        open_scan(path)
    for key in ("b", "4DSTEM_experiment/data/datacubes/b"):
        cube = open_scan(path, dataset=key)
        np.testing.assert_array_equal(cube.data, small[::-1])
        cube.data.close()
    with pytest.raises(ValueError, match=r"two\.h5 holds no 'c'; give dataset="):
        open_scan(path, dataset="c")
    write_py4dstem_0_12(path, small, NM + PER_ANGSTROM, ())
    with pytest.raises(ValueError, match=r"two\.h5 holds no scan"):
        open_scan(path)


# --- memmaps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["copy", "astype"])
def test_a_copy_of_a_memmap_is_in_memory(truth, folder, change):
    path = write_dm(folder / "scan.dm4", truth.datacube.data, NM + PER_NM)
    cube = py4DSTEM.import_file(str(path), mem="MEMMAP")
    if change == "copy":
        cube = cube.copy()
    else:
        cube.data = cube.data.astype("f4")
    assert type(cube.data) is np.memmap
    assert float(panoptic_quality(cube.cluster(**QUIET), truth.labels)) > 0.95


@pytest.mark.parametrize("kind", ["dm4", "mib", "raw"])
def test_a_memmap_of_a_part_of_a_file_that_shrinks(small, folder, kind):
    data = np.zeros((5, 4, 256, 256) if kind == "mib" else (5, 4, 128, 128), "u2")
    path = folder / f"scan.{kind}"
    if kind == "dm4":
        write_dm(path, data, NM + PER_NM)
    elif kind == "mib":
        write_mib(path, data)
    else:
        write_empad(path, data)
    options = {"EMPAD_shape": (5, 4, 130, 128)} if kind == "raw" else {}
    cube = py4DSTEM.import_file(str(path), mem="MEMMAP", **options)
    os.truncate(path, path.stat().st_size - 6000)  # reading the last row would kill the process
    with pytest.raises(OSError, match=rf"scan.{kind} shrank from"):
        read_rows(cube.data, 0, 1)


# --- what is not read ----------------------------------------------------------------------------
# A frame of a K2 is 5.7 MB in eight files, and a scan with grains would be 2.6 GB: none is written.
# This is what py4DSTEM makes of frames once they are decoded.


class K2(K2DataArray):
    def __init__(self, data):
        self.frames = data.transpose(1, 0, 2, 3).reshape(-1, *data.shape[2:])
        self.shape, self.dtype, self.ndim = data.shape, np.int16, 4
        self._hidden_stripe_noise_reduction = self._user_noise_reduction = False
        self._Qx, self._Qy = np.indices(data.shape[2:])

    def _grab_frame(self, frame):
        return self.frames[frame]


def test_an_array_that_cannot_be_sliced(small):
    cube = py4DSTEM.DataCube(K2(small))
    np.testing.assert_array_equal(cube.data[3, 2, :, :], small[3, 2])
    for call in (cube.cluster, cube.get_similarity, cube.filter_correlative):
        with pytest.raises(TypeError, match="class K2 cannot be read in blocks; copy it"):
            call(**QUIET)


@pytest.mark.parametrize("name", ["scan.gtg", "scan.bin", "scan.kitware_counted"])
def test_files_that_only_py4dstem_knows_by_name(small, folder, name, capsys):
    write_mrc(folder / name, as_frames(small))
    assert main(["cluster", str(folder / name), "--out", str(folder / "out.h5")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{folder / name} is of no kind that is known; give a file that ends in" in line


# --- faults of py4DSTEM 0.14.18 and ncempy 1.11.1 -------------------------------------------------
# Where one of these fails, a new version has mended it.


def test_arina_of_a_detector_that_is_not_square(small, folder):
    path = write_master(folder, small)
    with pytest.raises(ValueError, match=r"could not broadcast .* \(9,7\) into shape \(7,9\)"):
        py4DSTEM.import_file(str(path), scan_width=5)
    np.testing.assert_array_equal(np.asarray(open_scan(path, scan_shape=(5, 4)).data), small)


def test_arina_of_32_bits_and_by_its_path(small, folder):
    data = np.zeros((5, 4, 9, 9), "u4")
    data[0, 0, 1, 2] = 70_000
    path = write_master(folder, data)
    read = py4DSTEM.import_file(path, scan_width=5)
    assert read.data.max() == 70_000 - 2**16
    assert read.calibration.get_R_pixel_units() == "pixels"  # of a str: A, as in the file


def test_merlin_by_its_path_or_without_the_scan(small, folder):
    data = np.zeros((5, 4, 256, 256), "u2")
    path = write_mib(folder / "scan.mib", data, "Frames per Trigger")
    with pytest.raises(AttributeError, match="split"):
        py4DSTEM.import_file(path)
    with pytest.raises(TypeError, match="not subscriptable"):
        py4DSTEM.import_file(str(path), scan=(5, 4))
    path.with_suffix(".hdr").unlink()
    with pytest.raises(ValueError, match=r"into shape \(256,256,256,256\)"):
        py4DSTEM.import_file(str(path))


def test_a_spectrum_image_comes_with_its_axes_swapped(small, folder):
    read = py4DSTEM.import_file(str(write_spectrum_image(folder, small)))
    np.testing.assert_array_equal(read.data, small.transpose(2, 3, 0, 1))
    assert calibration_of(read) == UNCALIBRATED  # 3 nm and 0.5 / nm in the file


def test_old_files_that_read_does_not_find_its_way_in(small, folder):
    path = write_py4dstem_0_12(folder / "scan.h5", small, NM + PER_ANGSTROM)
    assert py4DSTEM.read(path) is None
    with pytest.raises(AssertionError, match="no data named D/S/T/E/M"):
        py4DSTEM.read(path, datapath="4DSTEM_experiment/scan")
    path = write_emd_berkeley(folder / "scan.emd", small, NM + PER_NM)
    with pytest.raises(Exception, match="not supported `h5` data type"):
        py4DSTEM.read(path)


def test_mrc(small, folder):
    path = write_mrc(folder / "scan.mrc", as_frames(small))
    with pytest.raises(AssertionError, match="filetype not recognized"):
        py4DSTEM.import_file(str(path))
    path = write_mrc(folder / "big.mrc", as_frames(small), order=">")
    with pytest.raises(ValueError, match="cannot reshape"):
        ncem_mrc.mrcReader(path)


def test_slices_of_a_k2_have_their_axes_swapped(small):
    part = K2(small)[0:3, 0:2, :, :]
    np.testing.assert_array_equal(part, small[:3, :2].transpose(1, 0, 2, 3))
