"""Read damaged copies of the files beside this, and say what came of each.

``python tests/data/fuzz.py FIRST COUNT``: one line before each case and one after it, so that
whoever started this sees in which case it crashed or hangs. Cases are the same in every run.
"""

from __future__ import annotations

import faulthandler
import random
import re
import resource
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import h5py
import numpy as np
import py4DSTEM

import py4dstem_clustering as pc
from py4dstem_clustering.cli.main import main
from py4dstem_clustering.emd import nodes
from py4dstem_clustering.scan.opening import open_scan

HERE = Path(__file__).parent
MEMORY = 2 * 2**30
"""Address space beyond that of the process when it starts; what a case may take at most."""


SECONDS = 8
"""What a case may take; five, but the machine may be busy."""


class NotOurs(Exception):
    """Raised inside py4DSTEM.read."""


# --- what can happen to the bytes of a file ------------------------------------------------------


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 2, 5, 20, 200])):
        data[rng.randrange(len(data))] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])


def flip_near(data: bytearray, rng: random.Random) -> None:
    """Some bytes near each other, near the headers of HDF5."""
    marks = [m.start() for m in re.finditer(rb"TREE|HEAP|SNOD|GCOL|OHDR|NUMPY|PK", data)]
    start = rng.choice(marks or [0]) + rng.randrange(64)
    for _ in range(rng.choice([1, 2, 4])):
        data[min(start + rng.randrange(32), len(data) - 1)] = rng.randrange(256)


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def swap(data: bytearray, rng: random.Random) -> None:
    n = rng.choice([8, 64, 512, 4096])
    a, b = (rng.randrange(max(1, len(data) - n)) for _ in range(2))
    data[a : a + n], data[b : b + n] = data[b : b + n], data[a : a + n]


def zero(data: bytearray, rng: random.Random) -> None:
    n = rng.choice([1, 8, 64, 512, 4096])
    a = rng.randrange(max(1, len(data) - n))
    data[a : a + n] = bytes(len(data[a : a + n]))


def insert(data: bytearray, rng: random.Random) -> None:
    a = rng.randrange(len(data))
    data[a:a] = rng.randbytes(rng.choice([1, 8, 512]))


BYTES = (flip, flip_near, flip_near, truncate, swap, zero, insert)


# --- what can happen to what a file says ---------------------------------------------------------

VALUES = (
    np.nan, np.inf, -np.inf, -1, -7, 0, 1, 2, 99, 1e30, 2**31, 2**62, -(2**62), "text", True,
    b"\xff",
)  # fmt: skip
TYPES = ("i1", "u8", ">i4", "f2", ">f8", "c8", "bool", "S3", "vlen", "object", "compound", "enum")


def everything(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visit(names.append)
    return names


def replace(file: h5py.File, name: str, data: object, **options: object) -> None:
    attributes = dict(file[name].attrs)
    del file[name]
    made = file.create_dataset(name, data=data, **options)
    made.attrs.update(attributes)


def change_structure(path: Path, rng: random.Random) -> str:
    with h5py.File(path, "r+") as file:
        # Parts of each kind as often, and those behind others too.
        names = everything(file)
        last = rng.choice(sorted({n.rpartition("/")[2] for n in names}))
        name = rng.choice([n for n in names if n.rpartition("/")[2] == last])
        data = [n for n in names if isinstance(file[n], h5py.Dataset)]
        if rng.random() < 0.7 and not isinstance(file[name], h5py.Dataset):
            name = rng.choice(data)
        how = rng.choice(STRUCTURE)
        how(file, name, rng)
        return f"{how.__name__} {name}"


def remove(file: h5py.File, name: str, rng: random.Random) -> None:
    del file[name]


def rename(file: h5py.File, name: str, rng: random.Random) -> None:
    other = rng.choice(["other", "", "frame_000007", "data", "é", "a" * 500, "__class__", "matrix"])
    target = f"{name.rpartition('/')[0]}/{other or rng.randrange(9)}"
    if target.strip("/") not in file:
        file.move(name, target)


def retype(file: h5py.File, name: str, rng: random.Random) -> None:
    item = file[name]
    if not isinstance(item, h5py.Dataset) or item.dtype.kind == "O":
        return value(file, name, rng)
    kind = rng.choice(TYPES)
    array = np.asarray(item[()])
    if kind == "vlen":
        made = np.empty(array.shape, object)
        for place in np.ndindex(*array.shape):
            made[place] = np.zeros(2, np.int32)
        return replace(file, name, made, dtype=h5py.vlen_dtype(np.int32))
    if kind == "object":
        texts = np.full(array.shape, "text", dtype=object)
        return replace(file, name, texts, dtype=h5py.string_dtype())
    if kind == "compound":
        return replace(file, name, np.zeros(array.shape, [("a", int), ("b", float)]))
    if kind == "enum":
        return replace(
            file, name, np.zeros(array.shape, "i4"), dtype=h5py.enum_dtype({"x": 0}, "i4")
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return replace(file, name, array.astype(kind))


def reshape(file: h5py.File, name: str, rng: random.Random) -> None:
    item = file[name]
    if not isinstance(item, h5py.Dataset) or item.dtype.kind == "O":
        return value(file, name, rng)
    array = np.asarray(item[()])
    ways = [array.T, array[None], array.ravel(), array[:0] if array.ndim else array]
    ways += [array.reshape(-1)[0] if array.size else array, np.repeat(array.ravel(), 3)]
    ways += [array[:-1] if array.ndim else array, np.zeros((0, *array.shape))]
    return replace(file, name, rng.choice(ways))


def value(file: h5py.File, name: str, rng: random.Random) -> None:
    item = file[name]
    if not isinstance(item, h5py.Dataset):
        return
    new = rng.choice(VALUES)
    try:
        if item.shape and item.size and rng.random() < 0.7:
            item[tuple(rng.randrange(n) for n in item.shape)] = new
        elif item.size:
            item[...] = new
    except (TypeError, ValueError, OSError, OverflowError):
        replace(file, name, new)


def add(file: h5py.File, name: str, rng: random.Random) -> None:
    """Shift numbers: labels beyond the last one, seeds in other clusters."""
    item = file[name]
    if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf":
        array = np.asarray(item[()])
        with np.errstate(all="ignore"):
            item[...] = (array + rng.choice([1, -1, 3, 100, 2**32])).astype(array.dtype)
        if rng.random() < 0.3 and array.dtype.kind in "iu":
            replace(file, name, array.astype(np.int64) + 2**32)


def attribute(file: h5py.File, name: str, rng: random.Random) -> None:
    keys = list(file[name].attrs) or ["type"]
    key = rng.choice(keys)
    new = rng.choice(
        [None, "other", 5, np.arange(4), b"\xff\xfe", "Metadata", "PointList", "array"]
    )
    if new is None and key in file[name].attrs:
        del file[name].attrs[key]
    elif new is not None:
        file[name].attrs[key] = new


def into_group(file: h5py.File, name: str, rng: random.Random) -> None:
    attributes = dict(file[name].attrs)
    del file[name]
    file.create_group(name).attrs.update(attributes)


def link(file: h5py.File, name: str, rng: random.Random) -> None:
    del file[name]
    other = HERE / "release_0.1.0.h5"
    ways = [h5py.SoftLink("/"), h5py.SoftLink("/nowhere"), h5py.ExternalLink("/etc/passwd", "/")]
    ways += [h5py.ExternalLink(str(other), "/cube_root/cube/data"), h5py.SoftLink(f"/{name}")]
    file[name] = rng.choice(ways)


def loop(file: h5py.File, name: str, rng: random.Random) -> None:
    file[f"{name.rpartition('/')[0]}/again"] = file[name.partition("/")[0]]


def gigantic(file: h5py.File, name: str, rng: random.Random) -> None:
    if not isinstance(file[name], h5py.Dataset):
        return
    attributes = dict(file[name].attrs)
    n = max(1, file[name].ndim)
    dtype = file[name].dtype if file[name].dtype.kind in "iufb" else "f8"
    del file[name]
    options: dict = rng.choice([{}, {"chunks": (1,) * n}, {"chunks": True, "compression": "gzip"}])
    file.create_dataset(name, (2 ** (40 // n),) * n, dtype=dtype, **options)
    file[name].attrs.update(attributes)


def too_new(file: h5py.File, name: str, rng: random.Random) -> None:
    for place in everything(file):
        if place.endswith(f"{nodes.TAG}/format"):
            file[place][()] = rng.choice([2, 99, -1, 0])


STRUCTURE = (
    remove, remove, rename, retype, retype, reshape, reshape, value, value, value, add, add,
    attribute, into_group, link, loop, gigantic, too_new,
)  # fmt: skip


# --- reading -------------------------------------------------------------------------------------


def read_tree(path: Path) -> None:
    """All nodes of a file by all our readers; at least one reads, or the first error counts."""
    try:
        read = py4DSTEM.read(str(path))
        nodes = [read, *(read.tree(name) for name in getattr(read, "treekeys", ()))]
    except MemoryError:
        raise NotOurs("memory") from None
    except Exception as error:
        raise NotOurs(str(error)) from None
    found = errors = 0
    first = None
    readers = (
        pc.Clusters.from_node, pc.Similarity.from_node, pc.ClusterTree.from_node,
        pc.orientation_from_node, from_cube,
    )  # fmt: skip
    for node in nodes:
        for reader in readers:
            try:
                check(reader(node))
                found += 1
            except (ValueError, TypeError, OSError) as error:
                check_error(error)
                foreign = re.search(r" holds no |has no clusters", str(error))
                errors += not foreign
                first = first or (None if foreign else error)
    if errors or not found:
        raise first or ValueError("holds nothing of ours")


def from_cube(node: object) -> object:
    if not isinstance(node, py4DSTEM.DataCube):
        raise ValueError("it holds no DataCube")
    try:
        return node.clusters
    except AttributeError as error:  # so that hasattr(cube, "clusters") tells
        raise ValueError(str(error)) from error


def read_series(path: Path) -> None:
    series = pc.open_series(path)
    assert len(series.frames) == len(series)
    assert repr(series)
    assert series.times is not None
    first = None
    for place, info in enumerate(series.infos):
        if info.error:
            continue
        try:
            clusters = series[place]
            check(clusters)
            image, averages = series.image(place), series.averages(place)
            assert image.shape == clusters.shape
            assert len(averages.data) == len(clusters)
        except (ValueError, OSError) as error:
            check_error(error, path)
            first = first or error
    assert series.drift.shape == (len(series), 2)
    if first is not None:
        raise first


def read_scan(path: Path) -> None:
    cube = open_scan(path)
    assert cube.data.ndim == 4
    assert np.isfinite(np.asarray(cube.data, dtype=float).sum()) is not None


def read_arina(path: Path) -> None:
    scan = pc.open_scan(path, scan_shape=(4, 3))
    assert np.asarray(scan.data).shape[:2] == (4, 3)
    scan.data.close()


def check(found: object) -> None:
    """An object is what it says, and what it is asked first works."""
    assert repr(found)
    if isinstance(found, pc.Clusters):
        n = len(found)
        assert found.sizes.sum() <= found.labels.size
        assert len(found.sizes) == n
        assert (found.labels[tuple(found.seeds.T)] == np.arange(n)).all()
        assert found.properties().shape == (n,)
        assert found.settings.everything is not None
        assert set(found.background) <= set(range(n))
    elif isinstance(found, pc.Similarity):
        assert not (np.abs(found.data) > 1.01).any()
        assert found.mean.shape == found.shape[:2]
    elif isinstance(found, pc.ClusterTree):
        assert found.cut(min_size=1).shape == found.shape
        assert len(found.n_clusters()) == len(found.levels)
    else:
        assert found.matrix.shape == (found.num_x, found.num_y, found.num_matches, 3, 3)
        assert found.get_orientation(0, 0) is not None if found.matrix.size else True


def check_error(error: BaseException, path: Path | None = None) -> None:
    text = str(error)
    assert len(text) > 10, (type(error), text)
    assert "\n" not in text, text
    assert path is None or path.name in text, text


READERS = {
    "release_0.1.0.h5": read_tree,
    "clusters_format_1.h5": read_tree,
    "tree_format_1.h5": read_tree,
    "series_format_1.h5": read_series,
    "series_format_1.h5 ": read_series,
    "scan.npy": read_scan,
    "scan.npz": read_scan,
    "release_0.1.0.h5 ": read_scan,
    "scan_master.h5": read_arina,
    "command.h5": None,
}


def write_originals(folder: Path) -> None:
    """The files that are mutated."""
    for name in {name.strip() for name in READERS}:
        if (HERE / name).exists():
            (folder / name).write_bytes((HERE / name).read_bytes())
    counts = np.arange(4 * 3 * 6 * 5, dtype=np.uint16).reshape(4, 3, 6, 5)
    np.save(folder / "scan.npy", counts)
    np.savez_compressed(folder / "scan.npz", counts)
    sys.path.insert(0, str(HERE.parent))
    from arina import write_arina

    write_arina(folder, counts.reshape(12, 6, 5), per_file=12)
    (folder / "command.h5").write_bytes((HERE / "release_0.1.0.h5").read_bytes())


def run_command(path: Path) -> None:
    """The command line: done, or 2 and one line."""
    import contextlib
    import io

    errors, out = io.StringIO(), path.with_name("out.h5")
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        done = main(["cluster", str(path), "--out", str(out), "--overwrite", "--quiet"])
    lines = errors.getvalue().splitlines()
    if done == 2:
        assert len(lines) == 1, lines
        raise ValueError(lines[0])
    assert done == 0


def run_case(number: int, folder: Path, originals: dict[str, bytes]) -> tuple[str, str]:
    rng = random.Random(number)  # noqa: S311
    name = rng.choice(list(READERS))
    reader = READERS[name] or run_command
    target = name.strip()
    path = folder / target
    for other, content in originals.items():
        (folder / other).write_bytes(content)
    if target == "scan_master.h5" and rng.random() < 0.7:
        target = "scan_data_000001.h5"
    if not target.startswith("scan.np") and rng.random() < 0.55:
        what = change_structure(folder / target, rng)
    else:
        how = rng.choice(BYTES)
        what = how.__name__
        data = bytearray(originals[target])
        how(data, rng)
        (folder / target).write_bytes(data)
    what = f"{name.strip()}: {what}"
    try:
        reader(path)
    except NotOurs:
        return "refused by py4DSTEM", what
    except (ValueError, TypeError, OSError) as error:
        try:
            check_error(error, path if reader in (read_series, read_scan) else None)
        except AssertionError as wrong:
            return "BAD", f"{what}: message {wrong}"
        return "refused", f"{what}: {type(error).__name__}: {error}"
    except BaseException as error:
        return "BAD", f"{what}: {type(error).__name__} {' '.join(str(error).split())[:300]}"
    return "read", what


def fuzz(first: int, count: int) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_originals(folder)
        originals = {p.name: p.read_bytes() for p in folder.iterdir()}
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
        for number in range(first, first + count):
            print("start", number, flush=True)
            # A loop inside HDF5 cannot be stopped otherwise; says on stderr where it was.
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            own = folder / str(number)
            own.mkdir()
            outcome, what = run_case(number, own, originals)
            shutil.rmtree(own)
            print("end", number, outcome.replace(" ", "_"), ascii(what), flush=True)


if __name__ == "__main__":
    faulthandler.enable()
    fuzz(int(sys.argv[1]), int(sys.argv[2]))
