"""Patterns that bitshuffle and LZ4 packed: unpacked here as HDF5 unpacks them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import h5py
import hdf5plugin
import numpy as np
import pytest
from arina import chunk_place, overwrite, write_arina

from py4dstem_clustering import open_scan
from py4dstem_clustering.scan import array, unpacking


def counts(n=12, detector=(17, 13), dtype=np.uint16, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(3, (n, *detector)).astype(dtype)


def opened(path, shape=(3, 4)):
    return open_scan(path, scan_shape=shape).data


@pytest.fixture
def forbid_hdf5(monkeypatch):
    """Fail where HDF5 itself would unpack."""
    monkeypatch.setattr(
        h5py.Dataset, "read_direct", lambda *args: pytest.fail("HDF5 unpacked a chunk")
    )


@pytest.mark.usefixtures("forbid_hdf5")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.uint64])
@pytest.mark.parametrize("detector", [(17, 13), (16, 16), (1, 5), (192, 192), (3, 3)])
def test_every_type_and_size(tmp_path, dtype, detector):
    frames = counts(detector=detector, dtype=dtype)
    data = opened(write_arina(tmp_path, frames, per_file=5))
    before = set(threading.enumerate())
    np.testing.assert_array_equal(data[...].reshape(frames.shape), frames)
    np.testing.assert_array_equal(data[1:3, 2], frames.reshape(3, 4, *detector)[1:3, 2])
    assert set(threading.enumerate()) <= before


@pytest.mark.usefixtures("forbid_hdf5")
def test_a_dataset_of_four_axes(tmp_path):
    frames = counts().reshape(3, 4, 17, 13)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        options = dict(hdf5plugin.Bitshuffle(cname="lz4"))
        file.create_dataset("scan", data=frames, chunks=(1, 1, 17, 13), **options)
    np.testing.assert_array_equal(open_scan(tmp_path / "scan.h5").data[...], frames)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (1, 17, 13)},
        {"chunks": (2, 17, 13), **hdf5plugin.Bitshuffle(cname="lz4")},
        {"chunks": (1, 8, 13), **hdf5plugin.Bitshuffle(cname="lz4")},
        {"chunks": (1, 17, 13), **hdf5plugin.Bitshuffle(cname="none")},
        {"chunks": (1, 17, 13), **hdf5plugin.Bitshuffle(cname="zstd")},
        {"chunks": (1, 17, 13), **hdf5plugin.Bitshuffle(cname="lz4"), "fletcher32": True},
        {"chunks": (1, 17, 13), "compression": "gzip"},
        {"chunks": (1, 17, 13), "dtype": ">u2", **hdf5plugin.Bitshuffle(cname="lz4")},
    ],
)
def test_hdf5_reads_what_is_stored_otherwise(tmp_path, options):
    frames = counts()
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        dataset = file.create_dataset("scan", data=frames, **options)
        assert not unpacking.can_unpack(dataset)
    np.testing.assert_array_equal(opened(tmp_path / "scan.h5")[...].reshape(frames.shape), frames)


def test_chunks_without_their_filter_are_read_by_hdf5(tmp_path):
    frames = counts()
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        options = dict(hdf5plugin.Bitshuffle(cname="lz4"))
        scan = file.create_dataset("scan", data=frames, chunks=(1, 17, 13), **options)
        scan.id.write_direct_chunk((5, 0, 0), (frames[5] + 1).tobytes(), filter_mask=1)
    expected = frames.copy()
    expected[5] += 1
    np.testing.assert_array_equal(opened(tmp_path / "scan.h5")[...].reshape(frames.shape), expected)


def test_without_hdf5plugins_function_hdf5_unpacks(tmp_path, monkeypatch):
    frames = counts()
    master = write_arina(tmp_path, frames)
    monkeypatch.setattr(unpacking, "_function", lambda: None)
    np.testing.assert_array_equal(opened(master)[...].reshape(frames.shape), frames)


def test_threads_that_read_at_once(tmp_path, monkeypatch):
    frames = counts(n=60, detector=(40, 30))
    data = opened(write_arina(tmp_path, frames, per_file=9), (6, 10))
    failed = []

    def read(seed):
        rng = np.random.default_rng(seed)
        for _ in range(20):
            row = int(rng.integers(6))
            if not np.array_equal(data[row], frames.reshape(6, 10, 40, 30)[row]):
                failed.append(row)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))  # raises what a thread raised
    assert not failed


@pytest.mark.parametrize("seed", range(30))
def test_damaged_chunks_never_reach_beyond_their_bytes(seed):
    """Any change of the sizes, or cut, is seen before anything is unpacked."""
    rng = np.random.default_rng(seed)
    frame = counts(n=1, detector=(80, 70), seed=seed)
    with h5py.File(f"memory{seed}.h5", "w", driver="core", backing_store=False) as file:
        options = dict(hdf5plugin.Bitshuffle(nelems=512, cname="lz4"))
        scan = file.create_dataset("scan", data=frame, chunks=(1, 80, 70), **options)
        (packed,) = unpacking.read_packed(scan, None, 0, 1)
    out = np.zeros_like(frame)
    assert unpacking.unpack([packed], out)
    np.testing.assert_array_equal(out, frame)
    values_a_block = int.from_bytes(packed[8:12], "big") // 2
    places, place = [0, 1, 7, 8, 11], 12
    for _ in range(80 * 70 // values_a_block):
        places += [place, place + 3]
        place += 4 + int.from_bytes(packed[place : place + 4], "big")
    at = int(rng.choice(places))
    wrong = bytearray(packed)
    wrong[at] ^= int(rng.integers(1, 256))
    assert not unpacking._is_sound(bytes(wrong), out[0], int.from_bytes(wrong[8:12], "big") // 2)
    assert not unpacking.unpack([packed, bytes(wrong)], np.repeat(out, 2, axis=0))
    for n in (0, 5, 12, len(packed) // 2, len(packed) - 1):
        assert not unpacking.unpack([packed[:n]], out)
    assert not unpacking.unpack([packed + b"x"], out)


def test_a_damaged_frame_is_named(tmp_path):
    frames = counts(detector=(40, 30))
    master = write_arina(tmp_path, frames, per_file=12)
    chunk = tmp_path / "scan_data_000001.h5"
    offset, size = chunk_place(chunk, 7)
    overwrite(chunk, offset + 12, b"\xff" * (size - 12))
    data = opened(master)
    with pytest.raises(OSError, match=r"frame 7 of .*scan position \(1, 3\), cannot be read"):
        data[...]
    np.testing.assert_array_equal(data[0], frames[:4])


def test_the_choice_is_made_anew_for_each_file(tmp_path, monkeypatch):
    """A scan has chunk files of both kinds; more of them than may be open."""
    monkeypatch.setattr(array, "_MAX_OPEN_FILES", 2)
    frames = counts()
    master = write_arina(tmp_path, frames, per_file=3)
    second = tmp_path / "scan_data_000002.h5"
    second.unlink()
    with h5py.File(second, "w") as file:
        file["entry/data/data"] = frames[3:6]
    data = opened(master)
    for _ in range(2):
        np.testing.assert_array_equal(data[...].reshape(frames.shape), frames)


# --- rows that are unpacked later ------------------------------------------------------------


def rows_of(data):
    """All rows of a scan through `packed_row`, or None where one is not packed."""
    out = np.empty(data.shape, data.dtype)
    for row in range(data.shape[0]):
        packed = data.packed_row(row)
        if packed is None:
            return None
        for columns in (slice(0, 3), slice(3, None)):
            packed.unpack(columns, out[row, columns])
    return out


@pytest.fixture
def forbid_lookups(monkeypatch):
    """Fail where HDF5 is asked for single chunks."""
    monkeypatch.setattr(
        unpacking, "read_packed", lambda *args: pytest.fail("patterns were read one by one")
    )


@pytest.mark.usefixtures("forbid_hdf5", "forbid_lookups")
@pytest.mark.parametrize("per_file", [5, 12])
@pytest.mark.parametrize("flyback", [0, 1])
def test_packed_rows(tmp_path, per_file, flyback):
    master = write_arina(tmp_path, counts(), per_file=per_file)
    data = open_scan(master, scan_shape=(3, 4 - flyback), flyback=flyback).data
    np.testing.assert_array_equal(rows_of(data), data[...])


def test_packed_rows_of_four_axes(tmp_path):
    frames = counts().reshape(3, 4, 17, 13)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        options = dict(hdf5plugin.Bitshuffle(cname="lz4"))
        file.create_dataset("scan", data=frames, chunks=(1, 1, 17, 13), **options)
    np.testing.assert_array_equal(rows_of(open_scan(tmp_path / "scan.h5").data), frames)


@pytest.mark.parametrize("bad_pixels", ["fill", "missing", "keep"])
@pytest.mark.parametrize("saturated", ["keep", "missing"])
def test_packed_rows_are_repaired(tmp_path, bad_pixels, saturated):
    frames = counts()
    frames[7, 5, 6] = 65535
    mask = np.zeros((17, 13))
    mask[3, 4] = mask[9, 9] = 1
    master = write_arina(tmp_path, frames, mask=mask)
    options = {"bad_pixels": bad_pixels, "saturated": saturated}
    data = open_scan(master, scan_shape=(3, 4), **options).data
    np.testing.assert_array_equal(rows_of(data), data[...])


def test_saturated_patterns_are_found_when_they_are_unpacked(tmp_path):
    frames = counts()
    frames[7, 5, 6] = 65535
    data = open_scan(write_arina(tmp_path, frames), scan_shape=(3, 4)).data
    with pytest.raises(ValueError, match=r"pixel \(5, 6\) at scan position \(1, 3\) is saturated"):
        rows_of(data)


def test_a_damaged_pattern_of_a_packed_row_is_named(tmp_path):
    master = write_arina(tmp_path, counts(detector=(40, 30)), per_file=12)
    offset, size = chunk_place(tmp_path / "scan_data_000001.h5", 7)
    overwrite(tmp_path / "scan_data_000001.h5", offset + 12, b"\xff" * (size - 12))
    with pytest.raises(OSError, match=r"frame 7 of .*scan position \(1, 3\), cannot be read"):
        rows_of(opened(master))


def test_a_file_that_shrank_is_named(tmp_path):
    frames = counts(n=60, detector=(40, 30))
    data = opened(write_arina(tmp_path, frames, per_file=60), (6, 10))
    np.testing.assert_array_equal(rows_of(data), data[...])
    chunk = tmp_path / "scan_data_000001.h5"
    with chunk.open("r+b") as file:
        file.truncate(chunk.stat().st_size // 2)
    with pytest.raises(OSError, match="shrank from"):
        rows_of(data)


@pytest.mark.parametrize("kind", ["plain", "gzip", "no filter"])
def test_what_is_stored_otherwise_is_no_packed_row(tmp_path, kind):
    frames = counts()
    options = {"plain": {}, "gzip": {"compression": "gzip"}}.get(
        kind, dict(hdf5plugin.Bitshuffle(cname="lz4"))
    )
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        scan = file.create_dataset("scan", data=frames, chunks=(1, 17, 13), **options)
        if kind == "no filter":
            scan.id.write_direct_chunk((5, 0, 0), frames[5].tobytes(), filter_mask=1)
    data = opened(tmp_path / "scan.h5")
    assert rows_of(data) is None
    np.testing.assert_array_equal(data[...].reshape(frames.shape), frames)


@pytest.mark.parametrize("kind", ["any order", "far apart", "user block"])
def test_patterns_lie_anywhere_in_the_file(tmp_path, kind, monkeypatch):
    frames = counts(n=12, detector=(170, 130) if kind == "far apart" else (17, 13))
    path = tmp_path / "scan.h5"
    options = dict(hdf5plugin.Bitshuffle(cname="lz4"))
    with h5py.File(path, "w", userblock_size=512 if kind == "user block" else 0) as file:
        scan = file.create_dataset(
            "scan", frames.shape, "u2", chunks=(1, *frames.shape[1:]), **options
        )
        for i in np.random.default_rng(0).permutation(12):
            scan[i] = frames[i]
            file.flush()
            if kind == "far apart":
                name = f"other_{i}"
                file[name] = np.zeros(2**18, np.uint8)
                file.flush()
    if kind == "far apart":
        monkeypatch.setattr(unpacking, "_MAX_GAP", 0)
    data = opened(path)
    np.testing.assert_array_equal(rows_of(data).reshape(frames.shape), frames)
    np.testing.assert_array_equal(data[...].reshape(frames.shape), frames)
