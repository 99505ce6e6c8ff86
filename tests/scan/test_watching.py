"""Scans from files: known again by their content, and waited for."""

from __future__ import annotations

import itertools
import os
import threading
import time

import h5py
import numpy as np
import pytest

from py4dstem_clustering.scan.datacubes import fingerprint
from py4dstem_clustering.scan.watching import watch_folder


@pytest.fixture
def data():
    return np.random.default_rng(0).integers(0, 99, (20, 7, 5, 6)).astype(np.uint16)


def test_fingerprint_is_that_of_the_content(data, tmp_path):
    mark = fingerprint(data)
    assert len(mark) == 32
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = data
        assert fingerprint(file["data"]) == mark
    assert fingerprint(np.asfortranarray(data)) == mark
    others = [data[:, ::-1], data.astype(np.int16), data[:-1], data.reshape(7, 20, 5, 6), data + 1]
    assert len({fingerprint(other) for other in others} | {mark}) == 6


def test_fingerprint_of_a_huge_scan_is_cheap():
    reads = []

    class Huge:
        shape, dtype = (512, 512, 192, 192), np.dtype(np.uint16)

        def __getitem__(self, key):
            reads.append([(part.start, part.stop) for part in key])
            return np.zeros((1, 1, 192, 192), np.uint16)

    fingerprint(Huge())
    assert all(stop - start == 1 for key in reads for start, stop in key)
    assert len(reads) == len({row for row, _ in reads}) == 16
    assert len({column for _, column in reads}) == 16


FAST = {"settle": 0.2, "poll": 0.02, "timeout": 0.6}


def test_files_that_are_there_come_in_the_order_of_writing(tmp_path):
    import os

    for k, name in enumerate(["c.h5", "a.h5", "b.h5", "a.txt"]):
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (1000 + k, 1000 + k))
    (tmp_path / ".hidden.h5").write_text("x")
    (tmp_path / "empty.h5").write_text("")
    (tmp_path / "folder.h5").mkdir()
    names = [path.name for path in watch_folder(tmp_path, **FAST)]
    assert names == ["c.h5", "a.h5", "b.h5"]


def test_a_file_that_grows_is_not_taken(tmp_path):
    done = threading.Event()

    def write():
        with (tmp_path / "scan.h5").open("wb") as file:
            for _ in range(8):
                file.write(b"x" * 100)
                file.flush()
                time.sleep(0.08)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    found = [(path, path.stat().st_size, done.is_set()) for path in watch_folder(tmp_path, **FAST)]
    thread.join()
    assert found == [(tmp_path / "scan.h5", 800, True)]


def test_a_master_file_waits_for_its_chunks(tmp_path):
    (tmp_path / "scan_master.h5").write_text("x")
    start = time.monotonic()

    def write():
        for k in range(6):
            time.sleep(0.08)
            (tmp_path / f"scan_data_{k}.h5").write_text("x")

    thread = threading.Thread(target=write)
    thread.start()
    found = list(itertools.islice(watch_folder(tmp_path, "*_master.h5", **FAST), 1))
    assert found == [tmp_path / "scan_master.h5"]
    assert time.monotonic() - start > 0.48 + 0.2 - 0.1
    thread.join()


def test_watching_ends(tmp_path):
    assert list(watch_folder(tmp_path, settle=0, poll=0.01, timeout=0.05)) == []


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"path": "nowhere"}, ValueError, "'nowhere' is not a folder"),
        ({"pattern": "a/b"}, ValueError, "without '/'"),
        ({"pattern": 3}, TypeError, "pattern=3 must be a text"),
        ({"settle": -1}, ValueError, "settle=-1 must be"),
        ({"poll": "1"}, TypeError, "poll='1' must be a number"),
        ({"settle": 5, "timeout": 2}, ValueError, "timeout=2 must be .* of at least 5"),
    ],
)
def test_what_watch_folder_refuses(tmp_path, options, error, text):
    with pytest.raises(error, match=text):
        watch_folder(options.pop("path", tmp_path), **options)


def test_a_fingerprint_of_a_file_that_shrank(tmp_path):
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["scan"] = np.ones((20, 9, 14, 11), np.uint16)
    with h5py.File(path, "r") as file:
        fingerprint(file["scan"])
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(OSError, match=r"shrank|read"):
            fingerprint(file["scan"])


def test_fingerprints_of_masked_data():
    data = np.ma.masked_array(np.ones((4, 5, 6, 7)))
    whole = fingerprint(data)
    assert whole == fingerprint(data.filled())
    data[:, :, 2, 3] = np.ma.masked
    assert fingerprint(data) != whole
