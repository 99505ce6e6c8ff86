"""Faults: a full disk, files that shrink, vanish or rot, Ctrl-C and SIGKILL; no half result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import py4DSTEM
import pytest
from arina import chunk_place, overwrite, write_arina
from conftest import forbid, make_scan

from py4dstem_clustering import open_scan
from py4dstem_clustering.emd import writing as emd
from py4dstem_clustering.kernels import blocks

FILTER = {"sigma": 1, "radius": 1, "edge": 2, "progress_bar": False}
SLOW = pytest.mark.slow
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


def start(code, *arguments):
    """This package in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )


# A scan that takes at least eight seconds to read, however quick the machine: time to interrupt.
# A process in the background of a shell inherits that Ctrl-C is ignored.
ENDLESS = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import numpy as np, py4DSTEM, py4dstem_clustering as pc
import emdfile
from py4dstem_clustering.kernels.averaging import averaging_core

class Endless:
    shape, dtype, ndim = (4000, 24, 64, 60), np.dtype("uint16"), 4
    rows = np.random.default_rng(0).poisson(2, (8, *shape[1:])).astype("uint16")
    begin = 0.0
    def __getitem__(self, key):
        if isinstance(key, tuple):  # of one row
            return self.rows[key[0].start % 8][None, key[1]]
        rows = range(*key.indices(4000))
        if rows.start == 0:
            self.begin = time.monotonic()
        time.sleep(max(0, self.begin + rows.stop * 0.002 - time.monotonic()))
        return np.resize(self.rows, (len(rows), *self.shape[1:]))

class Bar:
    def __init__(self, *arguments, **options):
        self.running = False
    def update(self, n):
        if not self.running:
            print("running", flush=True)
        self.running = True
    def close(self):
        pass

emdfile.tqdmnd = Bar
cube = py4DSTEM.DataCube(np.zeros((2, 2, 2, 2)))
cube.data = Endless()
"""

INTERRUPTED = (
    ENDLESS
    + """
labels = np.arange(4000 * 24).reshape(4000, 24) // 9 % 7
shifts = np.random.default_rng(0).normal(size=(4000, 24, 2))
quiet, jobs = {"progress_bar": False}, {"n_jobs": 2}

def averages(**options):
    averaging_core(cube.data, labels, report=Bar().update, **jobs, **options)

todo = {
    "filter": lambda: cube.filter_correlative(out=sys.argv[1], **quiet, **jobs),
    "packed": lambda: cube.filter_correlative(out=sys.argv[1], compression="gzip", **quiet, **jobs),
    "similarity": lambda: cube.get_similarity(sigma=1, **quiet, **jobs),
    "merge": lambda: cube.cluster(**quiet, **jobs),
    "grow": lambda: cube.cluster(threshold=0.5, **quiet, **jobs),
    "averages": lambda: averages(),
    "moved": lambda: averages(shifts=shifts),
}
for name in sys.argv[2:]:
    try:
        todo[name]()
        print("ended", name, flush=True)
    except KeyboardInterrupt:
        threads = [t for t in threading.enumerate() if type(t).__name__ != "TMonitor"]
        print("stopped", name, len(threads), *os.listdir(os.path.dirname(sys.argv[1])), flush=True)
"""
)


@POSIX
@pytest.mark.parametrize(
    "names",
    [
        ("filter",),
        pytest.param(("packed", "similarity", "merge", "grow", "averages", "moved"), marks=SLOW),
    ],
)
def test_ctrl_c_stops_soon_and_leaves_nothing(tmp_path, names):
    process = start(INTERRUPTED, tmp_path / "out.h5", *names)
    seconds = {}
    try:
        for name in names:
            line = process.stdout.readline().strip()
            assert line == "running", (name, line, process.stderr.read() if not line else "")
            time.sleep(0.3)
            begin = time.perf_counter()
            process.send_signal(signal.SIGINT)
            # One thread, the main one, and no file.
            assert process.stdout.readline().split() == ["stopped", name, "1"]
            seconds[name] = time.perf_counter() - begin
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, errors
    # The aim is one second; 0.01 to 0.3 were measured. It takes longer where the cores are busy.
    assert max(seconds.values()) < 5, seconds


def test_a_loop_that_ends_early_stops_reading():
    reads, before = [], threading.active_count()

    class Slow:
        shape, dtype = (50, 3, 4, 5), np.dtype("uint8")

        def __getitem__(self, rows):
            reads.append(rows)
            time.sleep(0.02)
            return np.zeros((rows.stop - rows.start, 3, 4, 5), np.uint8)

    piece, blocks._PIECE_BYTES = blocks._PIECE_BYTES, 1  # a row at a time
    try:
        for _ in blocks.iterate_blocks(Slow(), n_rows=25):
            break
    finally:
        blocks._PIECE_BYTES = piece
    n = len(reads)
    assert n < 35
    time.sleep(0.1)
    assert len(reads) == n
    assert threading.active_count() == before


# --- SIGKILL ---------------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("old", ["old", pytest.param(None, marks=SLOW)])
def test_sigkill_leaves_the_target_as_it_was_and_the_next_run_cleans_up(tmp_path, old):
    path = tmp_path / "out.h5"
    if old is not None:
        path.write_text(old)
    code = "cube.filter_correlative(out=sys.argv[1], overwrite=True, progress_bar=False)"
    process = start(ENDLESS + code, path)
    assert process.stdout.readline().strip() == "running"
    process.kill()
    process.communicate()
    assert (path.read_text() if path.exists() else None) == old
    (left,) = (p for p in tmp_path.iterdir() if p != path)
    assert left.name.startswith(".out.h5.")
    assert left.suffix == ".partial"
    assert left.stat().st_size > 1000

    cube = py4DSTEM.DataCube(make_scan())
    cube.filter_correlative(**FILTER, out=path, overwrite=True)
    assert left.exists()  # new: its process may be alive in another container
    os.utime(left, (0, 0))
    other = tmp_path / "other.h5"
    cube.filter_correlative(**FILTER, out=other)
    assert left.exists()  # belongs to another file
    cube.filter_correlative(**FILTER, out=path, overwrite=True)
    assert sorted(tmp_path.iterdir()) == [other, path]
    assert py4DSTEM.read(path).shape == cube.shape


@POSIX
def test_what_a_living_process_writes_is_left_alone(tmp_path):
    with emd.complete_or_absent(tmp_path / "x.h5") as partial:
        os.utime(partial, (0, 0))
        emd._remove_leftovers((tmp_path / "x.h5").resolve())
        assert partial.exists()
        partial.write_text("done")
    for name in (".x.h5.partial", ".x.h5.abc.partial", f".x.h5.{emd._host()}-1e-a.partial"):
        (tmp_path / name).write_text("not ours")
    emd._remove_leftovers((tmp_path / "x.h5").resolve())
    assert len(list(tmp_path.iterdir())) == 4


# --- a full disk -----------------------------------------------------------------------------

FULL = """
import resource, signal, sys
import numpy as np, py4DSTEM, py4dstem_clustering
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
cube = py4DSTEM.DataCube(np.random.default_rng(0).poisson(3, (30, 20, 32, 30)).astype("uint16"))
options = {"sigma": 1, "radius": 1, "edge": 2, "progress_bar": False}
try:
    cube.filter_correlative(out=sys.argv[1], overwrite=True, **options)
    print("written")
except OSError as error:
    print("OSError", error)
"""


@POSIX
@pytest.mark.parametrize(
    "limit", [1_000_000, *(pytest.param(n, marks=SLOW) for n in (40_000, 2_304_000))]
)
def test_a_full_disk(tmp_path, limit):
    # The scan has 2,304,000 bytes: with this as the limit only the end of the file has no room.
    path = tmp_path / "out.h5"
    path.write_text("old")
    process = start(FULL, path, limit)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert out.startswith(f"OSError {path} cannot be written"), (out, errors)
    assert "Make room" in out
    assert [p.name for p in tmp_path.iterdir()] == ["out.h5"]
    assert path.read_text() == "old"


def test_a_disk_that_is_too_small_is_seen_before_any_work(tmp_path, monkeypatch):
    forbid(monkeypatch, "correlative_core")
    monkeypatch.setattr(emd.shutil, "disk_usage", lambda path: type("", (), {"free": 1000}))
    cube = py4DSTEM.DataCube(make_scan())
    with pytest.raises(OSError, match=r"needs .* GB and its disk has 1e-06 GB free; make room"):
        cube.filter_correlative(**FILTER, out=tmp_path / "x.h5")
    assert not list(tmp_path.iterdir())


# --- files that change while they are read ---------------------------------------------------


def shrink_after(rows, path, size):
    """A report of the filter that cuts the file short."""
    done = []

    def report(n):
        done.append(n)
        if sum(done) >= rows and path.stat().st_size > size:
            os.truncate(path, size)

    return report


@pytest.mark.parametrize("chunks", [None, (1, 1, 14, 11), (2, 4, 14, 11)])
def test_an_hdf5_file_that_shrinks(tmp_path, monkeypatch, chunks):
    # Only the size of the file shows it: HDF5 reads zeros beyond the end.
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("scan", data=make_scan((40, 9)), chunks=chunks)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    cut(monkeypatch, shrink_after(5, path, path.stat().st_size // 2))
    with h5py.File(path, "r") as file:
        cube = py4DSTEM.DataCube(file["scan"])
        with pytest.raises(OSError, match=r"shrank|truncated|read"):
            cube.filter_correlative(**FILTER, out=tmp_path / "out.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["scan.h5"]


def cut(monkeypatch, report):
    """Updates of the progress bar go to `report`."""
    bar = SimpleNamespace(update=report, close=lambda: None)
    monkeypatch.setattr("emdfile.tqdmnd", lambda *arguments, **options: bar)


MEMMAP = """
import os, sys
import numpy as np, py4DSTEM, py4dstem_clustering
from py4dstem_clustering.kernels import blocks
from test_faults import FILTER, cut, shrink_after
from pathlib import Path
import pytest
path = Path(sys.argv[1])
blocks.BLOCK_BYTES = 1
cut(pytest.MonkeyPatch(), shrink_after(5, path, path.stat().st_size // 2))
cube = py4DSTEM.DataCube(np.load(path, mmap_mode="r"))
try:
    cube.filter_correlative(**FILTER, out=sys.argv[2])
    print("written")
except OSError as error:
    print(error)
"""


@POSIX
def test_a_memmap_that_shrinks(tmp_path):
    np.save(tmp_path / "scan.npy", make_scan((40, 9)))
    process = start(MEMMAP, tmp_path / "scan.npy", tmp_path / "out.h5")
    out, errors = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGBUS), errors  # between the check and the read
    if process.returncode == 0:
        assert "scan.npy shrank from" in out
    assert not (tmp_path / "out.h5").exists()


@pytest.fixture
def scan_of_chunks(tmp_path, monkeypatch):
    frames = make_scan((12, 9)).reshape(-1, 14, 11)
    master = write_arina(tmp_path, frames, per_file=20)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    cube = open_scan(master, scan_shape=(12, 9))
    yield cube, tmp_path
    cube.data.close()
    assert not list(tmp_path.glob("out.h5*"))
    assert not list(tmp_path.glob(".out.h5*"))


def test_a_chunk_file_that_is_missing(scan_of_chunks):
    cube, folder = scan_of_chunks
    (folder / "scan_data_000004.h5").unlink()
    with pytest.raises(OSError, match=r"scan_data_000004.h5 is missing"):
        cube.filter_correlative(**FILTER, out=folder / "out.h5")


def test_a_chunk_file_that_shrinks(scan_of_chunks, monkeypatch):
    cube, folder = scan_of_chunks
    path = folder / "scan_data_000005.h5"
    cut(monkeypatch, shrink_after(2, path, 3000))
    with pytest.raises(OSError, match=r"scan_data_000005.h5 shrank from"):
        cube.filter_correlative(**FILTER, out=folder / "out.h5")


def test_a_chunk_that_is_corrupt(scan_of_chunks):
    cube, folder = scan_of_chunks
    path = folder / "scan_data_000003.h5"
    offset, size = chunk_place(path, 7)
    overwrite(path, offset + 12, b"\xff" * (size - 12))
    with pytest.raises(OSError, match=r"frame 7 .*scan_data_000003.h5, scan position \(5, 2\)"):
        cube.filter_correlative(**FILTER, out=folder / "out.h5")


def test_a_chunk_of_hdf5_that_is_corrupt(tmp_path):
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("d", data=make_scan(), chunks=(1, 1, 14, 11), fletcher32=True)
    overwrite(path, chunk_place(path, 20, "d")[0] + 5, b"\xff")
    with h5py.File(path, "r") as file, pytest.raises(OSError, match="read data"):
        py4DSTEM.DataCube(file["d"]).filter_correlative(**FILTER, out=tmp_path / "out.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["scan.h5"]
