"""Files that RosettaSciIO reads: opened, compared with its own reading, clustered, saved.

Real files lie beside the project, in ../shared/data/real; without them these tests are skipped. All
others are written here, by RosettaSciIO or from the description of the format.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import struct
import zipfile
from pathlib import Path

import dask
import h5py
import numpy as np
import py4DSTEM
import pytest
from conftest import first_quick
from microscopes import write_dm, write_mib, write_mrc
from numpy.testing import assert_array_equal
from stored import lines_of

from py4dstem_clustering import ScanArray, open_scan, simulate_scan
from py4dstem_clustering.cli.main import main
from py4dstem_clustering.metrics import panoptic_quality
from py4dstem_clustering.scan.opening import notes_of

rsciio = pytest.importorskip("rsciio")

# Old dependencies of RosettaSciIO warn of each other.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # Its reader of .mrc closes its file only when that is collected.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

REAL = Path(os.environ.get("REAL_FILES", Path(__file__).parents[3] / "shared" / "data" / "real"))
SCAN, DETECTOR = (14, 11), (36, 36)  # .blo holds square detectors only
STEP, PIXEL, CENTRE = 3.03, 0.5, (17.5, 16.0)  # nm, 1/nm, pixels


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)  # RosettaSciIO says that header files are missing
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def truth():
    truth = simulate_scan(SCAN, DETECTOR, n_grains=2, electrons=3000, seed=4)
    truth.datacube.data = np.minimum(truth.datacube.data, 255).astype("u1")
    return truth


def reading(path, kind, **options):
    """The datasets of a file as RosettaSciIO itself gives them."""
    return importlib.import_module(f"rsciio.{kind}").file_reader(str(path), **options)


def write(path, kind, data):
    """By RosettaSciIO, with steps, units and the place of the direct beam."""
    described = [("y", STEP, 0, "nm"), ("x", STEP, 0, "nm")]
    described += [(n, PIXEL, -PIXEL * q, "1/nm") for n, q in zip(("ky", "kx"), CENTRE, strict=True)]
    axes = [
        {
            "_type": "UniformDataAxis", "name": name, "scale": scale, "offset": float(offset),
            "units": units, "size": n, "index_in_array": k, "navigate": k < 2, "is_binned": False,
        }
        for k, ((name, scale, offset, units), n) in enumerate(
            zip(described, data.shape, strict=True)
        )
    ]  # fmt: skip
    signal = {
        "data": data,
        "axes": axes,
        "metadata": {
            "General": {"title": "of a test"},
            "Signal": {"signal_type": ""},
            "Acquisition_instrument": {"TEM": {"beam_energy": 200.0, "camera_length": 80.0}},
        },
        "original_metadata": {},
        "attributes": {"_lazy": False, "ragged": False},
        "learning_results": {},
        "models": {},
        "package_info": {"package": "tests", "package_version": "0"},
        "tmp_parameters": {},
    }
    if kind == "blockfile":  # it holds the size of pixels on the screen
        for axis in axes[2:]:
            axis["units"] = "cm"
    importlib.import_module(f"rsciio.{kind}").file_writer(str(path), signal)
    return path


def write_zspy(path, kind, data):
    """The groups and attributes of an .hspy in zarr, as RosettaSciIO writes them with zarr 2."""
    zarr = pytest.importorskip("zarr")
    version = {"zarr_format": 2} if zarr.__version__ >= "3" else {}
    root = zarr.open_group(str(path), mode="w", **version)

    def copy(name, item):
        values = {k: v.item() if isinstance(v, np.generic) else v for k, v in item.attrs.items()}
        values = {k: v for k, v in values.items() if not isinstance(v, np.ndarray)}
        if isinstance(item, h5py.Dataset):
            target = root.require_group(name.rpartition("/")[0])
            last = name.rpartition("/")[2]
            make = target.create_array if version else target.create_dataset
            kept = make(last, shape=item.shape, dtype=item.dtype, chunks=(2, 3, *item.shape[2:]))
            kept[...] = item[...]
        else:
            kept = root.require_group(name)
        kept.attrs.update(values)

    with h5py.File(write(path.with_suffix(".hspy"), "hspy", data), "r") as file:
        root.attrs.update({k: str(v) for k, v in file.attrs.items()})
        group = file["Experiments"]
        copy("Experiments", group)
        (title,) = group
        copy(f"Experiments/{title}", group[title])
        for key in group[title]:
            if key == "data" or key.startswith("axis-"):
                copy(f"Experiments/{title}/{key}", group[title][key])
        for key in ("metadata", "original_metadata", "learning_results"):
            if key in group[title]:
                copy_metadata(root, f"Experiments/{title}/{key}", group[title][key])
    return path


def copy_metadata(root, name, group):
    kept = root.require_group(name)
    kept.attrs.update(
        {k: v.item() if isinstance(v, np.generic) else v for k, v in group.attrs.items()}
    )
    for key in group:
        if isinstance(group[key], h5py.Group):
            copy_metadata(root, f"{name}/{key}", group[key])


def write_merlin(path, kind, data):
    frames = np.zeros((*data.shape[:2], 256, 256), "u2")
    frames[..., :36, :36] = data
    return write_mib(path, frames[..., ::-1, :])


def write_stack(path, kind, data):
    return write_mrc(path, data.reshape(-1, *data.shape[2:]).astype("i2"))


ALL = {"R": (STEP, "nm"), "Q": (pytest.approx(PIXEL / 10), "A^-1"), "origin": CENTRE}
NONE = {"R": (1, "pixels"), "Q": (1, "pixels"), "origin": None}
FORMATS = {
    "scan.hspy": ("hspy", write, ALL),
    "scan.zspy": ("zspy", write_zspy, ALL),
    "scan.blo": ("blockfile", write, NONE | {"R": (pytest.approx(STEP, rel=1e-3), "nm")}),
    "scan.prz": ("pantarhei", write, NONE),
    # Its writer takes the size of pixels from the step.
    "scan_000.tvips": ("tvips", write, NONE | {"Q": (pytest.approx(0.3), "A^-1")}),
    "scan.emd": ("emd", write, ALL),
    "scan.mib": ("quantumdetector", write_merlin, NONE),
    "scan.mrc": ("mrc", write_stack, NONE),
}  # fmt: skip
LACK_SHAPE = ("scan_000.tvips", "scan.mrc")


def calibration_of(cube):
    found = cube.calibration
    origin = found.get_origin()
    return {
        "R": (found.get_R_pixel_size(), found.get_R_pixel_units()),
        "Q": (found.get_Q_pixel_size(), found.get_Q_pixel_units()),
        "origin": origin if origin is None else pytest.approx(origin),
    }


def as_read(path, kind):
    """The scan that RosettaSciIO reads, on the part of the detector that was written."""
    (signal,) = reading(path, kind)
    data = np.asarray(signal["data"])
    return data.reshape(*SCAN, *data.shape[-2:])


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_opened_as_rosettasciio_reads_it(tmp_path, truth, name):
    kind, writer, calibration = FORMATS[name]
    path = writer(tmp_path / name, kind, truth.datacube.data)
    cube = open_scan(path, scan_shape=SCAN if name in LACK_SHAPE else None)
    expected = as_read(path, kind)
    assert isinstance(cube.data, np.ndarray if name == "scan.prz" else ScanArray)
    assert cube.data.dtype == expected.dtype.newbyteorder("=")
    assert_array_equal(np.asarray(cube.data), expected)
    assert_array_equal(np.asarray(cube.data)[..., :36, :36], truth.datacube.data)
    assert calibration_of(cube) == calibration
    if name in LACK_SHAPE:
        with pytest.raises(ValueError, match=rf"{name}: 154 frames are a stack.*\(11, 14\)"):
            open_scan(path)
    if isinstance(cube.data, ScanArray):
        sent = pickle.dumps(cube.data)
        assert len(sent) < 20_000
        assert_array_equal(pickle.loads(sent)[3:5, 2], expected[3:5, 2])
        cube.data.close()


@pytest.mark.parametrize("name", first_quick(FORMATS))
def test_a_file_is_clustered_saved_and_read_again(tmp_path, truth, name):
    kind, writer, calibration = FORMATS[name]
    path = writer(tmp_path / name, kind, truth.datacube.data)
    shape = ["--scan-shape", *map(str, SCAN)] if name in LACK_SHAPE else []
    out = tmp_path / "out.h5"
    assert main(["cluster", str(path), "--out", str(out), "--quiet", *shape]) == 0
    averages = py4DSTEM.read(out)
    cube = open_scan(path, scan_shape=SCAN if name in LACK_SHAPE else None)
    whole = py4DSTEM.DataCube(np.asarray(cube.data), calibration=cube.calibration.copy())
    assert_array_equal(averages.clusters.labels, whole.cluster(progress_bar=False).labels)
    assert float(panoptic_quality(averages.clusters, truth.labels)) > 0.7
    py4DSTEM.save(tmp_path / "saved.h5", cube)
    again = open_scan(tmp_path / "saved.h5")
    assert_array_equal(np.asarray(again.data), np.asarray(cube.data))
    assert calibration_of(again)["R"] == calibration["R"]
    assert calibration_of(again)["Q"] == calibration["Q"]


def test_what_else_a_file_says(tmp_path, truth):
    path = write(tmp_path / "scan.hspy", "hspy", truth.datacube.data)
    facts = open_scan(path).metadata["file"]
    assert facts["beam_energy_keV"] == 200
    assert facts["camera_length_mm"] == 80
    assert facts["metadata"]["General"]["title"] == "of a test"
    py4DSTEM.save(tmp_path / "saved.h5", open_scan(path))
    assert open_scan(tmp_path / "saved.h5").metadata["file"]["beam_energy_keV"] == 200
    path = write(tmp_path / "scan.blo", "blockfile", truth.datacube.data)
    notes = notes_of(open_scan(path))
    assert "the voltage is not stated" in notes
    assert any(note.startswith("detector pixels are 0.5 cm, for which") for note in notes)


def test_several_signals_in_a_file(tmp_path, truth):
    path = write(tmp_path / "two.hspy", "hspy", truth.datacube.data)
    with h5py.File(path, "r+") as file:
        group = file["Experiments"]
        file.copy(group["of a test"], group, "another")
        group["another/metadata/General"].attrs["title"] = "another"
        group["another/data"][...] = truth.datacube.data[::-1]
    with pytest.raises(ValueError, match=r"two.hspy holds 2 scans; name one with dataset: .*'an"):
        open_scan(path)
    cube = open_scan(path, dataset="another")
    assert_array_equal(np.asarray(cube.data), truth.datacube.data[::-1])


@pytest.mark.parametrize("name", [n for n in FORMATS if not n.endswith("zspy")])
def test_a_file_that_was_cut_short(tmp_path, truth, name):
    kind, writer, _ = FORMATS[name]
    path = writer(tmp_path / name, kind, truth.datacube.data)
    os.truncate(path, path.stat().st_size - 3000)
    with pytest.raises((ValueError, OSError), match=name) as error:
        open_scan(path, scan_shape=SCAN)
    assert len(lines_of(error)) == 1
    path.write_bytes(b"x" * 5000)
    with pytest.raises((ValueError, OSError), match=name) as error:
        open_scan(path, scan_shape=SCAN)
    assert len(lines_of(error)) == 1


def test_a_merlin_that_was_stopped(tmp_path, truth):
    path = write_merlin(tmp_path / "scan.mib", "quantumdetector", truth.datacube.data)
    os.truncate(path, 140 * (384 + 2 * 256 * 256))
    with pytest.raises(
        ValueError, match=r"140 frames, but the file announces .*\(14, 11\).*10, 14"
    ):
        open_scan(path)
    cube = open_scan(path, scan_shape=(12, 11), skip_frames=(0, 8))
    assert_array_equal(np.asarray(cube.data)[..., :36, :36], truth.datacube.data[:12])
    path.with_suffix(".hdr").write_text("HDR,\t\nEnd\t\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"scan.mib: ") as error:
        open_scan(path)
    assert len(lines_of(error)) == 1


def test_a_file_that_shrinks_after_it_was_opened(tmp_path, truth):
    path = write(tmp_path / "scan.blo", "blockfile", truth.datacube.data)
    cube = open_scan(path)
    os.truncate(path, path.stat().st_size - 3000)
    with pytest.raises(OSError, match=r"scan.blo shrank from"):
        cube.cluster(progress_bar=False)


def test_hot_pixels_and_frames_to_skip(tmp_path, truth):
    data = truth.datacube.data.copy()
    data[..., 3, 30] = 255
    cube = open_scan(write(tmp_path / "scan.hspy", "hspy", data), hot_pixels="auto")
    assert np.argwhere(cube.metadata["file"]["bad_pixels"]).tolist() == [[3, 30]]
    assert np.asarray(cube.data)[..., 3, 30].max() < 100
    rows = open_scan(tmp_path / "scan.hspy", scan_shape=(12, 9), skip_frames=(22, 0), flyback=2)
    assert_array_equal(np.asarray(rows.data), data[2:, :9])


def write_empad_xml(folder, data):
    """As the software of the EMPAD before 1.2: the scan, its field of view, and the calibration."""
    frames = np.full((*data.shape[:2], 130, 128), -1e6, "<f4")
    frames[..., :36, :36] = data
    frames[..., :128, 36:] = frames[..., 36:128, :36] = 0
    (folder / "scan_x11_y14.raw").write_bytes(frames.tobytes())
    path = folder / "scan.xml"
    path.write_text(
        "<root><raw_file filename='scan_x11_y14.raw'/><pix_x>11</pix_x><pix_y>14</pix_y>"
        "<iom_measurements><optics><get_full_scan_field_of_view>[42.42e-9, 33.33e-9]"
        "</get_full_scan_field_of_view></optics><calibrated_pixelsize>0.5</calibrated_pixelsize>"
        "</iom_measurements></root>",
        encoding="utf-8",
    )
    return path


def test_an_empad_with_its_xml(tmp_path, truth):
    path = write_empad_xml(tmp_path, truth.datacube.data)
    (signal,) = reading(path, "empad")
    cube = open_scan(path)
    assert isinstance(cube.data, ScanArray)
    assert_array_equal(np.asarray(cube.data), signal["data"])
    assert_array_equal(np.asarray(cube.data)[..., :36, :36], truth.datacube.data)
    assert cube.calibration.get_R_pixel_size() == pytest.approx(3.03)
    assert cube.calibration.get_R_pixel_units() == "nm"
    assert cube.calibration.get_origin() is None  # the middle of the detector is no beam
    path.rename(tmp_path / "scan_x11_y14.xml")
    assert_array_equal(np.asarray(open_scan(tmp_path / "scan_x11_y14.raw").data), signal["data"])


def test_a_movie_of_direct_electron(tmp_path, truth):
    """MRC has no fourth axis; the scan stands in a text file beside it."""
    path = write_stack(tmp_path / "20250101_00001_movie.mrc", "mrc", truth.datacube.data)
    info = tmp_path / "20250101_00001_info.txt"
    lines = ["Scan - Enable = Enable", "Scan - Type = Raster", "Image Size X (pixels) = 36"]
    lines += ["Scan - Size X = 11", "Scan - Size Y = 14", "Image Size Y (pixels) = 36"]
    lines += ["Specimen Pixel Size X (nanometers) = 3.03"]
    lines += ["Specimen Pixel Size Y (nanometers) = 3.03", "Diffraction Pixel Size X = -1"]
    info.write_text("\n".join(lines), encoding="utf-8")
    (signal,) = reading(path, "mrc")
    cube = open_scan(path)
    assert_array_equal(np.asarray(cube.data), signal["data"])
    assert_array_equal(np.asarray(cube.data), truth.datacube.data)
    assert cube.calibration.get_R_pixel_size() == pytest.approx(3.03)  # and not 1 nm
    assert "the size of detector pixels is not stated" in notes_of(cube)


# --- abTEM --------------------------------------------------------------------------------------


def write_abtem_zarr(path, data, fftshift=True):
    """As ArrayObject.to_zarr of abTEM 1.0.9 does, for DiffractionPatterns of a scan."""
    zarr = pytest.importorskip("zarr")
    root = zarr.open(str(path), mode="w")
    make = root.create_array if zarr.__version__ >= "3" else root.create_dataset
    array = make("array0", shape=data.shape, dtype=data.dtype, chunks=(3, 4, *data.shape[2:]))
    array[...] = data
    scan_axis = {
        "type": "ScanAxis", "_concatenate": True, "_ensemble_mean": False, "units": "Å",
        "sampling": 0.4, "offset": 0.0, "endpoint": False,
    }  # fmt: skip
    root.attrs["kwargs0"] = {
        "sampling": [0.05, 0.05],
        "fftshift": fftshift,
        "ensemble_axes_metadata": [scan_axis | {"label": "x"}, scan_axis | {"label": "y"}],
        "metadata": {"energy": 300e3, "units": "arb. unit", "label": "intensity"},
    }
    root.attrs["type0"] = "DiffractionPatterns"
    return path


def test_abtem(tmp_path, truth):
    data = truth.datacube.data[..., :35].astype("f4")
    cube = open_scan(write_abtem_zarr(tmp_path / "scan.zarr", data))
    assert isinstance(cube.data, ScanArray)
    assert_array_equal(np.asarray(cube.data), data)
    found = {"R": (0.4, "A"), "Q": (0.05, "A^-1"), "origin": (18, 17)}
    assert calibration_of(cube) == found
    assert cube.metadata["file"]["beam_energy_keV"] == 300
    corner = open_scan(write_abtem_zarr(tmp_path / "b.zarr", data, fftshift=False))
    assert calibration_of(corner)["origin"] is None
    out = tmp_path / "out.h5"
    assert main(["cluster", str(tmp_path / "scan.zarr"), "--out", str(out), "--quiet"]) == 0
    assert float(panoptic_quality(py4DSTEM.read(out).clusters, truth.labels)) > 0.7


def test_plain_zarr(tmp_path, truth):
    zarr = pytest.importorskip("zarr")
    zarr.save_array(str(tmp_path / "one.zarr"), truth.datacube.data)
    assert_array_equal(np.asarray(open_scan(tmp_path / "one.zarr").data), truth.datacube.data)
    zarr.save_group(str(tmp_path / "two.zarr"), a=truth.datacube.data, b=truth.datacube.data[::2])
    with pytest.raises(ValueError, match=r"two.zarr holds 2 scans; name one with dataset: .*'b'"):
        open_scan(tmp_path / "two.zarr")
    cube = open_scan(tmp_path / "two.zarr", dataset="b")
    assert_array_equal(np.asarray(cube.data), truth.datacube.data[::2])
    (tmp_path / "bad.zarr").mkdir()
    (tmp_path / "bad.zarr" / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match=r"zarr cannot open .*bad.zarr: ") as error:
        open_scan(tmp_path / "bad.zarr")
    assert len(lines_of(error)) == 1


# --- files of microscopes -------------------------------------------------------------------------

NANOMEGAS = {
    "test1.blo": ("blockfile", 0),
    "topspin_test_A.app5": ("topspin", 1),
    "topspin_test_B.app5": ("topspin", 0),
    "topspin_test_C.app5": ("topspin", 1),
}


def needs(path):
    if not path.exists():
        pytest.skip("the real files are not here")
    return path


def equals(cube, signal):
    """Whether shape, type, values and steps are those of RosettaSciIO."""
    expected = np.asarray(signal["data"])
    shape = expected.shape if expected.ndim == 4 else (1,) * (4 - expected.ndim) + expected.shape
    assert cube.data.dtype == expected.dtype.newbyteorder("=")
    assert_array_equal(np.asarray(cube.data).reshape(shape), expected.reshape(shape))
    step = signal["axes"][0]
    if expected.ndim == 4 and step["units"]:
        assert cube.calibration.get_R_pixel_size() == pytest.approx(step["scale"])
        assert cube.calibration.get_R_pixel_units() == step["units"]
    else:
        assert cube.calibration.get_R_pixel_units() == "pixels"


def by_command(path, tmp_path, capsys, *options):
    """Open a file by the command line, as far as to its first line."""
    main(
        ["cluster", str(path), "--out", str(tmp_path / "o.h5"), "--overwrite", "--quiet", *options]
    )
    found = capsys.readouterr()
    return found.out.splitlines()[0] if found.out else found.err


@pytest.mark.parametrize("name", NANOMEGAS)
def test_real_files_of_nanomegas(tmp_path, name, capsys):
    kind, number = NANOMEGAS[name]
    path = needs(REAL / "nanomegas" / name)
    options = {"show_progressbar": False} if kind == "topspin" else {}
    signal = reading(path, kind, **options)[number]
    cube = open_scan(path)
    equals(cube, signal)
    shape = " x ".join(map(str, cube.data.shape))
    assert f"{name}: {shape}, {cube.data.dtype}, opened" in by_command(path, tmp_path, capsys)


MERLIN = ("Merlin_Single_Quad", "Merlin_navigation4x2_ROI", "Merlin_navigation4x2_signalNx256_ROI")


@pytest.mark.parametrize("name", MERLIN)
def test_real_files_of_merlin(tmp_path, name, capsys):
    """Single and quad, 1, 6, 12 and 24 bits, regions of interest; raw ones are refused."""
    with zipfile.ZipFile(needs(REAL / "merlin" / f"{name}.zip")) as archive:
        archive.extractall(tmp_path)
    paths = sorted(tmp_path.rglob("*.mib"))
    assert len(paths) == {MERLIN[0]: 20, MERLIN[1]: 2, MERLIN[2]: 2}[name]
    for path in paths:
        try:
            (signal,) = reading(path, "quantumdetector")
        except NotImplementedError as error:
            assert "RAW" in path.name
            with pytest.raises(ValueError, match=rf"{path.name}: {error}"):
                open_scan(path)
            continue
        frames = int(np.prod(signal["data"].shape[:-2]))
        options, message = [], ""
        try:
            cube = open_scan(path)
        except ValueError as error:
            message = str(error)
            cube = open_scan(path, scan_shape=(3, 3))
            options = ["--scan-shape", "3", "3"]
            signal["data"] = signal["data"].reshape(3, 3, *signal["data"].shape[-2:])
            signal["axes"] = [{"units": ""}] * 4
        expected = "9 frames are a stack, without rows; give scan_shape: (1, 9) or (3, 3)"
        assert expected in message or not message, path.name
        equals(cube, signal)
        if frames > 1 and cube.Qshape[0] < 512:
            shape = " x ".join(map(str, cube.data.shape))
            assert f": {shape}, " in by_command(path, tmp_path, capsys, *options)


def test_a_real_file_of_arina(tmp_path, capsys):
    path = needs(REAL / "arina" / "test_00_master.h5")
    (signal,) = reading(path, "arina")
    cube = open_scan(path)
    assert_array_equal(np.asarray(cube.data), signal["data"])
    assert (cube.data.shape, cube.data.dtype) == ((4, 4, 192, 192), np.uint32)
    assert cube.calibration.get_R_pixel_size() == pytest.approx(1.39152, rel=1e-5)
    assert cube.calibration.get_R_pixel_units() == "A"
    step = signal["axes"][0]
    if step["units"] in ("A", "Å", "nm"):
        factor = 10 if step["units"] == "nm" else 1
        assert step["scale"] * factor == pytest.approx(1.39152, rel=1e-5)
    line = by_command(path, tmp_path, capsys)
    assert "test_00_master.h5: 4 x 4 x 192 x 192, uint32, opened" in line


def test_real_patterns_of_nickel_and_of_another_simulator(tmp_path, capsys):
    path = needs(REAL / "ebsd_ni_3x3" / "patterns.h5")
    with pytest.raises(ValueError, match=r"holds 2 scans; name one.*'Scan 1/EBSD/Data/patterns'"):
        open_scan(path)
    for scan in ("Scan 1", "Scan 2"):
        cube = open_scan(path, dataset=f"{scan}/EBSD/Data/patterns")
        with h5py.File(path, "r") as file:
            expected = file[f"{scan}/EBSD/Data/patterns"][...].reshape(3, 3, 60, 60)
        assert_array_equal(np.asarray(cube.data), expected)
    path = needs(REAL / "foreign_simulated" / "scan_32.npz")
    assert open_scan(path).shape == (32, 32, 64, 64)
    line = by_command(path, tmp_path, capsys)
    assert "scan_32.npz: 32 x 32 x 64 x 64, uint16, opened" in line


def test_dask_is_told_of_chunks_only_while_a_file_is_opened(tmp_path, truth):
    before = dask.config.get("array.chunk-size")
    open_scan(write(tmp_path / "scan.blo", "blockfile", truth.datacube.data))
    assert dask.config.get("array.chunk-size") == before


def write_ser(path, data, step=3.03e-9, pixel=0.5e9):
    """A series of images of TIA, by the description of Chris Boothroyd; steps in metres."""
    rows, columns, qx, qy = data.shape
    n = rows * columns
    text = b"Position"
    dimensions = b""
    for size in (columns, rows):
        dimensions += struct.pack("<iddii", size, 0.0, step, 0, len(text)) + text
        dimensions += struct.pack("<i", 6) + b"meters"
    start = 2 * 3 + 4 * 2 + 4 * 2 + 8 + 4
    place = start + len(dimensions)
    element = struct.pack("<ddiddihii", 0, pixel, 0, 0, pixel, 0, 1, qy, qx)
    tag = struct.pack("<HHidd", 0x4142, 0, 0, 0.0, 0.0)
    first = place + 16 * n
    offsets = [first + k * (len(element) + qx * qy) for k in range(n)]
    tags_at = first + n * (len(element) + qx * qy)
    head = struct.pack("<HHHiiiiqi", 0x4949, 0x0197, 0x0220, 0x4122, 0x4142, n, n, place, 2)
    assert len(head) == start
    content = head + dimensions + struct.pack(f"<{n}q", *offsets)
    content += struct.pack(f"<{n}q", *(tags_at + k * len(tag) for k in range(n)))
    for frame in data.reshape(n, qx, qy):
        content += element + frame.tobytes()
    path.write_bytes(content + tag * n)
    return path


def test_a_series_of_images_of_tia(tmp_path, truth):
    path = write_ser(tmp_path / "scan_1.ser", truth.datacube.data[..., :30])
    (signal,) = reading(path, "tia")
    cube = open_scan(path, scan_shape=None if signal["data"].ndim == 4 else SCAN)
    assert cube.data.shape == (*SCAN, 36, 30)
    assert_array_equal(np.asarray(cube.data), np.asarray(signal["data"]).reshape(cube.data.shape))
    assert cube.calibration.get_R_pixel_size() == pytest.approx(3.03)
    assert cube.calibration.get_R_pixel_units() == "nm"
    assert sorted(np.asarray(cube.data)[3, 5].ravel()) == sorted(
        truth.datacube.data[3, 5, :, :30].ravel()
    )


def test_digital_micrograph_as_rosettasciio_reads_it(tmp_path, truth):
    """py4DSTEM reads it, also where the file has a thumbnail, at which RosettaSciIO 0.15 stops."""
    scales = [(STEP, "nm")] * 2 + [(PIXEL, "1/nm")] * 2
    path = write_dm(tmp_path / "scan.dm4", truth.datacube.data, scales, thumbnail=False)
    (signal,) = reading(path, "digitalmicrograph")
    cube = open_scan(path)
    assert_array_equal(np.asarray(cube.data), signal["data"])
    assert [axis["navigate"] for axis in signal["axes"]] == [True, True, False, False]
    assert cube.calibration.get_R_pixel_size() == pytest.approx(signal["axes"][0]["scale"])
    assert cube.calibration.get_Q_pixel_size() == pytest.approx(signal["axes"][2]["scale"] / 10)
