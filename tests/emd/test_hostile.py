"""Files that are no series, hostile files, and files that are damaged at random."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from stored import DATA, POSIX, copy, lines_of

import py4dstem_clustering
from py4dstem_clustering import open_scan, open_series
from py4dstem_clustering.cli.main import main

PACKAGE = Path(py4dstem_clustering.__file__).parent
SIGNATURE = b"\x89HDF\r\n\x1a\n"


@pytest.mark.parametrize(
    "content", [b"", b"x" * 3000, b"\x89HDF\r\n\x1a\n", "cut", "emd", "foreign"]
)
def test_what_is_no_series(tmp_path, content):
    path = tmp_path / "x.h5"
    if content == "cut":
        whole = (DATA / "series_format_1.h5").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "emd":
        path.write_bytes((DATA / "release_0.1.0.h5").read_bytes())
    elif content == "foreign":
        with h5py.File(path, "w") as file:
            file["series"] = np.arange(3)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x.h5") as error:
        open_series(path)
    assert len(lines_of(error)) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("frame", 5), ("frame", "0"), ("time", np.nan), ("n_clusters", -1), ("n_clusters", 3),
     ("source", 4)],
)  # fmt: skip
def test_what_is_known_of_a_frame_is_damaged(tmp_path, key, value):
    path = copy(tmp_path, "series_format_1")
    with h5py.File(path, "r+") as file:
        group = file["series/frame_000002/metadatabundle/frame"]
        kind = "string" if isinstance(value, str) else "number"
        del group[key]
        group[key] = value.encode() if kind == "string" else value
        group[key].attrs["type"] = kind
    with pytest.raises(ValueError, match=r"series_format_1.h5.* damaged: its (\w+)") as error:
        open_series(path)[2]
    assert len(lines_of(error)) == 1


@pytest.mark.parametrize("name", ["image", "averages", "seeds", "similarity_mean"])
def test_a_frame_that_lacks_something(tmp_path, name):
    path = copy(tmp_path, "series_format_1")
    with h5py.File(path, "r+") as file:
        del file[f"series/frame_000000/metadatabundle/arrays/{name}"]
    series = open_series(path)
    with pytest.raises(ValueError, match=rf"series_format_1.h5: 'frame_000000' .* its {name} of"):
        series[0]
    assert len(series[2]) == 4


# --- hostile files ---

HOSTILE = """
import resource, sys, time
from pathlib import Path
import numpy, h5py, py4DSTEM, py4dstem_clustering as pc
from py4dstem_clustering import open_scan, open_series

def frames(path):
    for clusters in open_series(path):
        pass

def scan(path):
    open_scan(path, dataset="data").data[0]

readers = {"series": frames, "load": open_scan, "open": scan}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + 2**29,) * 2)
for name, reader in zip(sys.argv[1::2], sys.argv[2::2]):
    start = time.perf_counter()
    try:
        readers[reader](Path(name))
        print("read")
    except (ValueError, OSError) as error:
        print(type(error).__name__, error)
    print(time.perf_counter() - start)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def errors_of(files):
    """Errors of readers in a process of its own, which take little memory and time."""
    arguments = [str(part) for pair in files for part in pair]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", HOSTILE,
         *arguments],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, megabytes = done.stdout.splitlines()
    assert len(lines) == 2 * len(files), lines
    assert max(map(float, lines[1::2])) < 5
    assert float(megabytes) < 150
    for (path, _), text in zip(files, lines[::2], strict=True):
        assert re.match(r"(OSError|ValueError) ", text), (path, text)
        assert path.name in text
    return lines[::2]


def huge(group, name, **options):
    attributes = dict(group[name].attrs)
    del group[name]
    dataset = group.create_dataset(name, (2**20, 2**15), dtype="f8", **options)
    dataset.attrs.update(attributes)


def nest(group, depth=2000):
    for _ in range(depth):
        group = group.create_group("x")
        group.attrs["type"] = "dict"


def virtual(group, name):
    attributes = dict(group[name].attrs)
    del group[name]
    layout = h5py.VirtualLayout((2**20, 2**15), "f8")
    layout[...] = h5py.VirtualSource("/etc/passwd", "x", shape=(2**20, 2**15))
    group.create_virtual_dataset(name, layout).attrs.update(attributes)


def raw(group, name):
    attributes = dict(group[name].attrs)
    del group[name]
    data = group.create_dataset(name, (8, 7), "f4", external=[("/etc/passwd", 0, 224)])
    data.attrs.update(attributes)


def packed(group, name):
    """Chunks of which one is written: 2**35 bytes."""
    huge(group, name, chunks=(64, 2**15), compression="gzip")
    group[name][:64] = 0


def chunk(group, name):
    """A dataset of a few values in a chunk of 4 GB."""
    attributes = dict(group[name].attrs)
    del group[name]
    data = group.create_dataset(
        name, (8, 7), "f4", maxshape=(None, None), chunks=(2**15, 2**14 - 1), compression="gzip"
    )
    data.id.write_direct_chunk((0, 0), bytes(100))
    data.attrs.update(attributes)


FRAME = "series/frame_000000"
ARRAYS_OF = f"{FRAME}/metadatabundle/arrays"
WAYS = {
    "declared": lambda f: huge(f[ARRAYS_OF], "image"),
    "declared in chunks": lambda f: huge(f[ARRAYS_OF], "image", chunks=(1, 2**15)),
    "packed": lambda f: packed(f[ARRAYS_OF], "image"),
    "a large chunk": lambda f: chunk(f[ARRAYS_OF], "image"),
    "virtual": lambda f: virtual(f[ARRAYS_OF], "image"),
    "raw": lambda f: raw(f[ARRAYS_OF], "image"),
    "external": lambda f: f[ARRAYS_OF].__setitem__("x", h5py.ExternalLink("/etc/passwd", "/")),
    "soft": lambda f: f[ARRAYS_OF].__setitem__("x", h5py.SoftLink("/series")),
    "loop": lambda f: f[ARRAYS_OF].__setitem__("x", f["series"]),
    "nested": lambda f: nest(f[f"{FRAME}/metadatabundle/settings"]),
    "objects": lambda f: f[ARRAYS_OF].create_dataset("x", (3,), h5py.string_dtype()),
    "compound": lambda f: f[ARRAYS_OF].create_dataset("x", (3,), [("a", int)]),
    "class": lambda f: f[f"{FRAME}/metadatabundle/arrays"].attrs.modify("python_class", "DataCube"),
    "attribute": lambda f: f[FRAME].attrs.create("python_class", np.arange(2000)),
}  # fmt: skip


@POSIX
@pytest.mark.slow
def test_hostile_files_take_no_memory_and_no_time(tmp_path):
    files = []
    for way, change in WAYS.items():
        path = tmp_path / f"series {way}.h5"
        path.write_bytes((DATA / "series_format_1.h5").read_bytes())
        with h5py.File(path, "r+") as file:
            change(file)
        files.append((path, "series"))
    for way in ("declared", "external", "nested"):
        path = tmp_path / f"scan {way}.h5"
        path.write_bytes((DATA / "release_0.1.0.h5").read_bytes())
        with h5py.File(path, "r+") as file:
            group = file["cube_root/cube"]
            if way == "declared":
                del group["data"]
                huge = group.create_dataset("data", (2**12, 2**12, 2**8, 2**8), "u2")
                huge.attrs["units"] = "x"
            elif way == "nested":
                nest(group["clusters/metadatabundle/settings"])
            else:
                group["x"] = h5py.ExternalLink("/etc/passwd", "/")
        files.append((path, "load"))
    # Zeros in a heap of texts, as where a disk lost a block: HDF5 goes round in it without end.
    for name, reader in (("series_format_1", "series"), ("release_0.1.0", "load")):
        path = tmp_path / f"{name} zeros.h5"
        content = bytearray((DATA / f"{name}.h5").read_bytes())
        for heap in re.finditer(b"GCOL", content):
            content[heap.start() + 16 : heap.start() + 80] = bytes(64)
        path.write_bytes(content)
        files.append((path, reader))
    path = tmp_path / "scan unwritten.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (2**14, 2**14, 2**9, 2**9), "u2", chunks=(1, 1, 2**9, 2**9))
    files.append((path, "open"))
    assert "was not written to its end" in errors_of(files)[-1]


@pytest.mark.parametrize("way", WAYS)
def test_a_hostile_series(tmp_path, way):
    path = copy(tmp_path, "series_format_1")
    with h5py.File(path, "r+") as file:
        WAYS[way](file)
    start = time.perf_counter()
    with pytest.raises((OSError, ValueError), match=r"series_format_1.h5") as error:
        open_series(path)[0]
    assert time.perf_counter() - start < 5
    assert len(lines_of(error)) == 1


def test_a_chunk_is_refused_before_it_takes_memory(tmp_path):
    path = copy(tmp_path, "series_format_1")
    with h5py.File(path, "r+") as file:
        chunk(file[ARRAYS_OF], "image")
    with pytest.raises((OSError, ValueError), match=f"image declares {4 * 2**15 * (2**14 - 1)} b"):
        open_series(path)[0]


def test_a_chunk_that_was_never_written_is_not_read_as_zeros(tmp_path):
    path = copy(tmp_path, "series_format_1")
    with h5py.File(path, "r+") as file:
        arrays = file[ARRAYS_OF]
        attributes = dict(arrays["image"].attrs)
        del arrays["image"]
        data = arrays.create_dataset("image", (8, 7), "f4", chunks=(1, 7), compression="gzip")
        data.attrs.update(attributes)
        data[:7] = 1
    with pytest.raises((OSError, ValueError), match="image declares 224 bytes"):
        open_series(path)[0]


def test_arrays_that_share_their_bytes(tmp_path):
    path = copy(tmp_path, "series_format_1")
    n_bytes = 800_008
    with h5py.File(path, "r+") as file:
        arrays = file[ARRAYS_OF]
        arrays["first"] = np.ones(n_bytes // 8)
        address = arrays["first"].id.get_offset()
        for k in range(3):
            arrays.create_dataset(f"x{k}", (n_bytes // 8,), "f8")
    size = n_bytes.to_bytes(8, "little")
    content = path.read_bytes().replace(b"\xff" * 8 + size, address.to_bytes(8, "little") + size)
    path.write_bytes(content)
    with h5py.File(path) as file:
        assert file[f"{ARRAYS_OF}/x2"][-1] == 1
    with pytest.raises((OSError, ValueError), match="declare more than the file holds"):
        open_series(path)[0]


@pytest.mark.parametrize("link", [h5py.SoftLink("/other"), h5py.ExternalLink("other.h5", "series")])
def test_a_link_for_the_series_itself(tmp_path, link):
    path = copy(tmp_path, "series_format_1")
    with h5py.File(path, "r+") as file:
        file.move("series", "other")
        file["series"] = link
    (tmp_path / "other.h5").write_bytes((DATA / "series_format_1.h5").read_bytes())
    with pytest.raises(ValueError, match=r"series_format_1.h5.*is a link to .*not followed"):
        open_series(path)


def test_many_attributes_and_names(tmp_path):
    path = copy(tmp_path, "series_format_1")
    with h5py.File(path, "r+") as file:
        for k in range(300):
            file["series"].attrs[f"a{k}"] = "x" * 50
            file[f"series/frame_{k}x"] = k
            file[f"series/frame_٠٠٠{k:03d}"] = k  # digits of another script
    start = time.perf_counter()
    assert len(open_series(path)) == 3
    assert time.perf_counter() - start < 5


def test_names_in_a_journal_are_no_paths(tmp_path):
    path = tmp_path / "s.h5"
    journal = tmp_path / "s.h5.frames"
    journal.mkdir()
    (journal / "frame_000000.h5").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(journal / "frame_000001.h5")  # opening one waits for ever
    (journal / "frame_000002.h5").write_bytes(SIGNATURE)
    with pytest.raises(ValueError, match="holds no series"):
        open_series(path)


def test_a_master_file_that_leads_elsewhere(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    with h5py.File(tmp_path / "out.h5", "w") as file:
        file["entry/data/data"] = np.ones((4, 5, 6), "u2")
    with h5py.File(folder / "a_master.h5", "w") as file:
        file["entry/data/data_000001"] = h5py.ExternalLink("../out.h5", "entry/data/data")
        file["entry"].attrs["NX_class"] = "NXentry"
    with pytest.raises(OSError, match=r"a_master.h5.*'../out.h5' outside its folder.*not followed"):
        open_scan(folder / "a_master.h5")


# --- no code from files ---


def test_nothing_of_a_file_is_run():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for pattern in (
            r"\bpickle\b(?!d)", r"\bmarshal\b", r"\bshelve\b", r"\bjoblib\b", r"(?<![\w.])eval\(",
            r"(?<![\w.])exec\(", r"__import__\(", r"allow_pickle\s*=\s*True", r"yaml\.load",
        ):  # fmt: skip
            assert not re.search(pattern, text), f"{pattern} in {path}"
        for call in re.findall(r"(?:np|numpy)\.(?:load|fromfile)\(.*", text):
            assert "allow_pickle=False" in call, call


# --- damaged at random ---


def fuzz(first, count):
    """How cases of tests/data/fuzz.py end, also by a crash or never; and those that are bad."""
    outcomes, bad = Counter(), []
    number, end = first, first + count
    while number < end:
        done = subprocess.run(
            [sys.executable, str(DATA / "fuzz.py"), str(number), str(end - number)],
            capture_output=True, text=True, timeout=120 + 2 * count, check=False,
        )  # fmt: skip
        started = number
        # emdfile prints what it tries.
        for line in re.findall(r"^(?:start|end) \d+.*$", done.stdout, re.MULTILINE):
            what, place, *rest = line.split(maxsplit=3)
            number = int(place) + 1
            if what == "start":
                started = number
                continue
            started, (outcome, text) = None, rest
            if outcome == "BAD":
                bad.append(f"case {place}: {text}")
            outcomes[outcome] += 1
        if done.returncode or started is not None:
            # Which function was at work; HDF5 has loops and faults of its own.
            main_thread = re.split(r"\n(?=Thread|Current thread)", done.stderr)[-1]
            files = re.findall(r'File "(.*?)", line', main_thread)
            in_hdf5 = bool(files) and "h5py" in files[0]
            what = "hang" if done.stderr.startswith("Timeout") else "crash"
            own = next((f for f in files if "/emdfile/" in f or f.startswith(str(PACKAGE))), "")
            whose = "this package" if own.startswith(str(PACKAGE)) else "py4DSTEM"
            outcomes[f"{what} in HDF5, called by {whose}" if in_hdf5 else what] += 1
            print(f"case {number - 1}: {what}", *files[:6], sep="\n  ")
            if not in_hdf5:
                bad.append(f"case {number - 1} ended with {done.returncode}: {done.stderr[-1500:]}")
    return outcomes, bad


@POSIX
@pytest.mark.slow
def test_files_that_are_damaged_at_random():
    count = int(os.environ.get("FUZZ_CASES", "150"))
    first = int(os.environ.get("FUZZ_FIRST", "0"))
    outcomes, bad = fuzz(first, count)
    print(dict(outcomes))
    assert not bad, "\n".join(bad)
    assert outcomes.total() == count
    assert outcomes["read"] > count / 10
    assert outcomes["refused"] > count / 10


def test_a_command_on_a_damaged_file(tmp_path, capsys):
    path = copy(tmp_path, "release_0.1.0")
    whole = path.read_bytes()
    for content in (whole[: len(whole) - 100], b"no HDF5", whole[2000:]):
        path.write_bytes(content)
        assert main(["cluster", str(path), "--out", str(tmp_path / "out.h5"), "--quiet"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(path) in line
        with pytest.raises((OSError, ValueError), match=r"release_0.1.0.h5"):
            open_scan(path, dataset="cube_root/cube/data")
