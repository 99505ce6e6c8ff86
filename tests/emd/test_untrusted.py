"""Opening reads metadata only, and HDF5 never works with a damaged heap."""

from __future__ import annotations

import faulthandler
import re
import struct
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import py4DSTEM
import pytest
from arina import write_arina

from py4dstem_clustering import open_scan, open_series
from py4dstem_clustering.emd import untrusted

DATA = Path(__file__).parents[1] / "data"
IO = Path("/proc/self/io")
LINUX = pytest.mark.skipif(not IO.exists(), reason="bytes that a process has read")


@pytest.fixture
def no_hang():
    """End the process after a minute: a loop inside HDF5 cannot be stopped otherwise."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def bytes_read(work):
    """Bytes that this process reads from files meanwhile."""

    def count():
        return int(re.search(r"rchar: (\d+)", IO.read_text())[1])

    before = count()
    work()
    return count() - before


def write_large(path, shape=(400, 400, 256, 256)):
    """A scan of 20 GB that takes no room on the disk, and texts before and after it."""
    with h5py.File(path, "w") as file:
        file.attrs["before"] = "text"
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple(shape)
        h5py.h5d.create(file.id, b"data", h5py.h5t.NATIVE_UINT16, space, plist)
        for k in range(50):
            file["data"].attrs[f"after {k}"] = "text" * 100
        file["text"] = "text"
    assert path.stat().st_size > 2e10


@LINUX
def test_opening_reads_metadata_only(tmp_path):
    path = tmp_path / "large.h5"
    write_large(path)

    def check():
        with untrusted.open_file(path) as file:
            untrusted.check_stored(file, ours=False)
            assert file["text"][()] == b"text"

    assert bytes_read(check) < 2**20
    for work in (
        lambda: open_scan(path).data.close(),
        lambda: open_scan(path, dataset="data").data.close(),
    ):
        work()  # what is imported counts too
        assert bytes_read(work) < 2**20


@LINUX
def test_opening_files_of_dectris_reads_metadata_only(tmp_path):
    frames = np.random.default_rng(0).integers(0, 2**16, (36, 256, 256)).astype(np.uint16)
    master = write_arina(tmp_path, frames, per_file=18)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 4e6
    assert bytes_read(lambda: open_scan(master).data.close()) < 2**19


def zero_heaps(path, target):
    """Zeros in every heap of texts, as where a disk lost a block."""
    content = bytearray(path.read_bytes())
    heaps = [found.start() for found in re.finditer(b"GCOL", content)]
    for heap in heaps:
        content[heap + 16 : heap + 80] = bytes(64)
    target.write_bytes(content)
    return len(heaps)


@pytest.mark.parametrize(
    ("name", "reader"),
    [("series_format_1.h5", open_series), ("release_0.1.0.h5", open_scan)],
)
def test_a_heap_of_zeros_in_a_file_of_ours(tmp_path, name, reader, no_hang):
    assert zero_heaps(DATA / name, tmp_path / name)
    with pytest.raises((OSError, ValueError), match=rf"{name}.*heap of texts at byte \d+ is dam"):
        reader(tmp_path / name)


@pytest.mark.parametrize("place", ["attribute", "attributes", "text", "texts"])
def test_a_heap_of_zeros_wherever_texts_are(tmp_path, place, no_hang):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.ones((4, 3, 6, 5))
        if place == "attribute":
            file["data"].attrs["x"] = "text"
        elif place == "attributes":
            file["data"].attrs["x"] = np.array(["text", "more"], dtype=h5py.string_dtype())
        elif place == "text":
            file["x"] = "text"
        else:
            file.create_dataset("x", data=["text"] * 5, dtype=h5py.string_dtype())
    assert open_scan(tmp_path / "a.h5", dataset="data").data.shape == (4, 3, 6, 5)
    assert zero_heaps(tmp_path / "a.h5", tmp_path / "b.h5") == 1
    with pytest.raises(OSError, match=r"b.h5: the heap of texts at byte \d+ is damaged"):
        check_whole_file(tmp_path / "b.h5")
    # A dataset is opened without the texts beside it.
    assert open_scan(tmp_path / "b.h5", dataset="data").data.shape == (4, 3, 6, 5)


def check_whole_file(path):
    """The check of files that py4DSTEM is to read."""
    with untrusted.open_file(path) as file:
        untrusted.check_stored(file, ours=False)


def test_texts_that_share_their_bytes(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.ones((4, 3, 6, 5))
        file.attrs["long"] = "x" * 100_000
        for k in range(40):
            file[f"{k}"] = "y" * 77
    content = bytearray(path.read_bytes())
    start = re.search(rb"\xa0\x86\x01\x00........\x01\x00\x00\x00", content, re.DOTALL)[0]
    short = re.escape(struct.pack("<I", 77))
    places = [
        found.start() for found in re.finditer(short + rb"..........\0\0", content, re.DOTALL)
    ]
    assert len(places) == 40
    for place in places:
        content[place : place + 16] = start
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"a.h5: .* declare more than the file holds"):
        check_whole_file(path)


def test_a_mask_that_declares_more_than_the_file(tmp_path):
    master = write_arina(tmp_path, np.ones((4, 6, 5), np.uint16))
    with h5py.File(master, "r+") as file:
        file.create_dataset(
            "entry/instrument/detector/pixel_mask", (2**20, 2**20), "u4", chunks=(2**10, 2**10)
        )
    with pytest.raises(OSError, match=r"scan_master.h5: .*pixel_mask declares .* bytes"):
        open_scan(master)


def test_an_error_is_one_line_that_names_the_file(tmp_path):
    path = tmp_path / "a.h5"
    for error, kind in [
        (ValueError("two\nlines"), ValueError),
        (OSError("no room"), OSError),
        (KeyError("x"), OSError),
        (TypeError("of emdfile"), OSError),
    ]:
        with (
            pytest.raises(kind, match=rf"^{re.escape(str(path))}") as found,
            untrusted.name_in_errors(path),
        ):
            raise error
        assert "\n" not in str(found.value)
    own = TypeError(f"'data' of {path} is no scan")
    with pytest.raises(TypeError) as found, untrusted.name_in_errors(path):
        raise own
    assert found.value is own
    with pytest.raises(MemoryError), untrusted.name_in_errors(path):
        raise MemoryError


def test_a_scan_of_py4dstem_is_read_as_before(tmp_path):
    scan = py4DSTEM.DataCube(np.arange(360, dtype=np.uint16).reshape(4, 3, 6, 5), name="cube")
    py4DSTEM.save(tmp_path / "å.h5", scan)  # a name that is no ASCII
    np.testing.assert_array_equal(open_scan(tmp_path / "å.h5").data, scan.data)


@pytest.mark.parametrize("size", [3, 5, 64, 10**6])
def test_a_heap_in_pieces_of_any_size(tmp_path, size):
    path = DATA / "tree_format_1.h5"
    assert zero_heaps(path, tmp_path / "zeros.h5")

    def content(path):
        buffer, found = bytearray(size), bytearray()
        with closing(untrusted.CheckedReader(path)) as reader:
            while n := reader.readinto(buffer):
                found += buffer[:n]
        return found

    assert content(path) == path.read_bytes()
    with pytest.raises(OSError, match=r"heap of texts at byte \d+ is damaged"):
        content(tmp_path / "zeros.h5")


@pytest.mark.parametrize(
    ("key", "value", "rule"), [("length", "long", "number"), ("units", 3, "text")]
)
def test_an_attribute_of_the_wrong_kind_is_named(tmp_path, key, value, rule):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_group("root/node").attrs[key] = value
    with (
        untrusted.open_file(tmp_path / "x.h5") as file,
        pytest.raises(OSError, match=f"has an attribute '{key}' that is no single {rule}"),
    ):
        untrusted.check_stored(file, "root")
