"""Use the package at random: scans, damage, calibrations, options and calls are drawn from a seed.

    python tests/random_use.py --seconds 60 --first-seed 0

Every call must return what slow code agrees with, or refuse in one clear line. Raw data must stay
as they are, and no thread, file or memory may be left. A failure prints its seed; `--only SEED`
repeats it.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import dask.array as da
import dask.threaded
import h5py
import matplotlib as mpl
import numpy as np
import py4DSTEM

mpl.use("agg")

import matplotlib.pyplot as plt

import py4dstem_clustering as p
from py4dstem_clustering.cli.main import main as command_line

QUIET = {"progress_bar": False}
UNCLEAR = re.compile(
    r"NoneType|broadcast|out of bounds|unhashable|has no attribute|not subscriptable|unpack|"
    r"zero-size|index \d|object is not|reshape array|invalid literal"
)
"""Words of errors that Python or NumPy raised, and not this package."""


class Wrong(AssertionError):
    """A result that cannot be right, or an error that helps nobody."""


def pick(rng, *values):
    return values[rng.integers(len(values))]


# --- scans -----------------------------------------------------------------------------------


def make_data(rng):
    shape = tuple(int(n) for n in (*rng.integers(1, 13, 2), *rng.integers(2, 25, 2)))
    grain = (
        rng.integers(0, pick(rng, 1, 2, 4), shape[:2])
        if rng.random() < 0.2
        else ((np.indices(shape[:2]).sum(axis=0) // 4) % 3)
    )
    means = rng.gamma(0.5, 10.0 ** rng.uniform(-2, 3), (4, *shape[2:]))
    data = rng.poisson(means[grain]).astype(float)
    dtype = pick(rng, np.uint8, np.uint16, np.int16, np.int32, np.uint32, np.float32, np.float64)
    if np.dtype(dtype).kind in "iu":
        data = np.clip(data, 0, np.iinfo(dtype).max)
    data = data.astype(dtype)
    for _ in range(rng.integers(0, 3)):
        damage(rng, data)
    return data


def damage(rng, data):
    where = tuple(rng.integers(0, n) for n in data.shape[:2])
    pixel = tuple(rng.integers(0, n) for n in data.shape[2:])
    kind = rng.integers(6)
    is_float = data.dtype.kind == "f"
    if kind == 0:
        data[where] = 0
    elif kind == 1:
        data[(..., *pixel)] = np.iinfo(data.dtype).max if not is_float else 6e4
    elif kind == 2 and is_float:
        data[where] = np.nan
    elif kind == 3 and is_float:
        data[(..., *pixel)] = pick(rng, np.nan, np.inf, -np.inf)
    elif kind == 4:
        data[:] = data[0, 0, 0, 0]
    elif kind == 5 and is_float:
        data *= pick(rng, 1e-20, 1e-6, 1e6, -1)


def wrap(rng, data, folder):
    kind = pick(rng, "numpy", "numpy", "strided", "memmap", "h5py", "dask")
    if kind == "strided":
        return np.repeat(data, 2, axis=1)[:, ::2]
    if kind == "memmap":
        np.save(folder / "memmap.npy", data)
        return np.load(folder / "memmap.npy", mmap_mode="r")
    if kind == "h5py":
        with h5py.File(folder / "data.h5", "w") as file:
            file["data"] = data
        return h5py.File(folder / "data.h5", "r")["data"]
    if kind == "dask":
        return da.from_array(data, chunks=tuple(max(1, n // 2) for n in data.shape))
    return data.copy()


def calibrate(rng, cube):
    calibration = cube.calibration
    if rng.random() < 0.5:
        calibration.set_R_pixel_size(float(pick(rng, 0.1, 2.5, 1e3)))
        calibration.set_R_pixel_units(pick(rng, "nm", "A", "pixels", ""))
    if rng.random() < 0.4:
        centre = (np.array(cube.Qshape) - 1) / 2
        kind = rng.integers(4)
        if kind == 0:
            calibration.set_origin(tuple(centre))
        elif kind == 1:
            calibration.set_origin([q + rng.normal(size=cube.Rshape) for q in centre])
        elif kind == 2:  # of another scan
            calibration.set_origin([q + rng.normal(size=(3, 5)) for q in centre])
        else:
            maps = [q + rng.normal(size=cube.Rshape) for q in centre]
            maps[0][0, 0] = np.nan
            calibration.set_origin(maps)
    if rng.random() < 0.2:
        calibration.set_ellipse((pick(rng, 1.02, np.full(cube.Rshape, 1.1), np.ones((2, 3))), 1, 0))


# --- options ---------------------------------------------------------------------------------


def some(rng, **choices):
    """Some of the options, each with one of its values, mostly of the first half of them."""
    found = {}
    for name, values in choices.items():
        if rng.random() < 0.35:
            likely = values[: (len(values) + 1) // 2]
            found[name] = pick(rng, *(likely if rng.random() < 0.8 else values))
    return found


def masks(rng, shape):
    return [
        np.ones(shape, bool), rng.random(shape) < 0.7, np.zeros(shape, bool), np.ones(shape),
        np.ones(shape[::-1], bool), None,
    ]  # fmt: skip


def cluster_options(rng, cube):
    options = some(
        rng,
        method=["merge", "grow", "merge", "grow", "shrink"],
        threshold=[0.5, 0.9, "auto", -1, 1.5, np.nan, "x", None],
        n_clusters=[1, 2, 5, 0, 10**6],
        min_size=[1, 2, 5, 0, 1.5],
        rank=["auto", 1, 3, 60, 61, 0],
        drop_background=[True, False, None, 1],
        r_mask=[*masks(rng, cube.Rshape), 0.2, "triangle", "otsu", "none"],
        q_mask=masks(rng, cube.Qshape),
        sigma=[0, 1.2, -1, 100],
        subtract_mean=[True, False],
        n_jobs=[1, 2, 0],
        max_memory=["1 GB", "1 kB", 10**8, "lots"],
        name=["clusters", "a/b", "other", ""],
    )
    grows = options.get("method") == "grow" or {"threshold", "sigma", "subtract_mean"} & {*options}
    if rng.random() < 0.85:  # options that go together
        for name in ("rank", "drop_background") if grows else ("sigma", "subtract_mean"):
            options.pop(name, None)
        if "n_clusters" in options:
            options.pop("threshold", None)
        if grows:
            options["method"] = "grow"
    return options


# --- calls -----------------------------------------------------------------------------------


def do_cluster(rng, cube, raw, folder):
    clusters = cube.cluster(**cluster_options(rng, cube), **QUIET)
    check_clusters(clusters, cube)


def do_tree(rng, cube, raw, folder):
    options = cluster_options(rng, cube)
    allowed = ("method", "rank", "r_mask", "q_mask", "sigma", "subtract_mean", "n_jobs", "name")
    tree = cube.get_cluster_tree(**{k: v for k, v in options.items() if k in allowed}, **QUIET)
    counts = tree.n_clusters(min_size=2)
    level = tree.levels[rng.integers(len(counts))] if len(counts) else 1.0
    clusters = tree.cut(float(level), min_size=2)
    check_clusters(clusters, cube)
    if len(counts) and clusters.n_clusters != counts[tree.levels.tolist().index(level)]:
        at = tree.method == "merge" and level == 1  # the automatic cut has refined borders
        if not at:
            raise Wrong(f"cut at {level} has {clusters.n_clusters} clusters, not as announced")


def do_filter(rng, cube, raw, folder):
    options = some(
        rng, sigma=[0, 1, 3, -1], radius=[0, 1, 2.5, 50], edge=[0, 1, 2, 30], n_jobs=[1, 2],
        corr_range=[(0.2, 0.9), (-1, 1), "auto", (1, 0)], out=[folder / "filtered.h5", "no/x.h5"],
        overwrite=[True], compression=["gzip", "lzf", "zip"],
    )  # fmt: skip
    options.setdefault("edge", 0)
    filtered = cube.filter_correlative(**options, **QUIET)
    try:
        values = np.asarray(filtered.data[:])
        finite = np.isfinite(raw)
        if values.shape != raw.shape or values.dtype != np.float32:
            raise Wrong(f"filtered scan of {values.shape}, {values.dtype}")
        if finite.all() and raw.size:
            low, high = float(raw.min()), float(raw.max())
            slack = 1e-5 * max(abs(low), abs(high))
            if values.min() < low - slack or values.max() > high + slack:
                raise Wrong("an average lies outside the values that were averaged")
        filtered.cluster(threshold=0.5, **QUIET)
    finally:
        if isinstance(filtered.data, h5py.Dataset):
            filtered.data.file.close()


def do_similarity(rng, cube, raw, folder):
    options = some(
        rng, q_mask=masks(rng, cube.Qshape), sigma=[0, 1, -1], subtract_mean=[True, False, 3],
        noise_correct=[True, False], gain=[1.0, 0, 5], offset=[0.0, 3.0], n_jobs=[1, 2],
    )  # fmt: skip
    if not options.get("noise_correct") and rng.random() < 0.85:
        options = {k: v for k, v in options.items() if k not in ("gain", "offset")}
    similarity = cube.get_similarity(**options, **QUIET)
    values = similarity.data
    if (np.abs(values[np.isfinite(values)]) > 1.0001).any():
        raise Wrong("a similarity above 1")
    if not set(options) & {"sigma", "noise_correct", "gain", "offset", "q_mask"}:
        check_similarity(raw, values, options.get("subtract_mean", True))
    if rng.random() < 0.5:
        check_clusters(cube.cluster(threshold=0.7, similarity=similarity, **QUIET), cube)


def check_similarity(raw, values, subtract):
    """Compare one pair with the formula, in float64."""
    if values.shape[1] < 2 or not np.isfinite(raw[0, :2]).all():
        return
    a, b = (raw[0, k].astype(np.float64) for k in (0, 1))
    if subtract:
        a, b = a - a.mean(), b - b.mean()
    scale = max(np.abs(raw[0, :2]).max(), 1e-300)
    norms = np.linalg.norm(a / scale), np.linalg.norm(b / scale)
    if min(norms) < 1e-3:  # nearly flat: rounding decides
        return
    expected = ((a / scale) * (b / scale)).sum() / np.prod(norms)
    if abs(values[0, 0, 7] - expected) > 1e-3:
        raise Wrong(f"similarity {values[0, 0, 7]} and not {expected}")


def do_averages(rng, cube, raw, folder):
    if rng.random() < 0.7:
        cube.cluster(threshold=0.5, **QUIET)
    options = some(
        rng, min_purity=[0.5, 0.9, 2], align=[True, False], n_jobs=[1, 2], name=["a", "x/y"],
        clusters=["clusters", None, "none", 3],
    )  # fmt: skip
    averages = cube.get_clustered_datacube(**options, **QUIET)
    clusters = averages.clusters
    if averages.shape != (clusters.n_clusters, 1, *cube.Qshape) or averages.dim_units[0] != "":
        raise Wrong(f"averages of {averages.shape} in {averages.dim_units}")
    origin = cube.calibration.get_origin()
    moved = origin is not None and any(np.ndim(q) for q in origin)
    if "min_purity" in options or (moved and options.get("align") is not False):
        return
    for k in range(min(3, clusters.n_clusters)):
        patterns = raw[clusters.labels == k].astype(np.float64)
        patterns[~np.isfinite(patterns)] = np.nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = np.nanmean(patterns, axis=0)
        scale = np.nanmax(np.abs(expected), initial=1e-300)
        if not np.allclose(averages.data[k, 0], expected, rtol=1e-5, atol=1e-6 * scale,
                           equal_nan=True):  # fmt: skip
            raise Wrong(f"average {k} is not the mean of its patterns")


def do_edit(rng, cube, raw, folder):
    clusters = cube.cluster(threshold=0.5, **QUIET)
    n = clusters.n_clusters
    label = pick(rng, 0, n - 1, n, -1, "x", [0, 1])
    edit = pick(rng, "join", "remove", "members", "relabel", "contours", "growth_order")
    made = getattr(clusters, edit)(label)
    if isinstance(made, p.Clusters):
        check_clusters(made, cube)


def do_mixture(rng, cube, raw, folder):
    cube.cluster(threshold=0.5, **QUIET)
    mixture = cube.clusters.get_mixture(cube, **some(rng, reach=[1, 3, 0]), **QUIET)
    if mixture.purity.min() < 0 or mixture.purity.max() > 1 + 1e-5:
        raise Wrong("a share outside 0 to 1")


def do_file(rng, cube, raw, folder):
    cube.cluster(threshold=0.5, **QUIET)
    mean = np.array(cube.calibration.get_origin_mean(), float)
    if cube.calibration.get_origin() is not None and not np.isfinite(mean).all():
        return  # py4DSTEM cannot save such a scan (0.14.18)
    path = folder / "saved.h5"
    py4DSTEM.save(path, cube, mode="o")
    if rng.random() < 0.5:
        read = py4DSTEM.read(path)
        np.testing.assert_array_equal(read.clusters.labels, cube.clusters.labels)
        return
    content = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 4)):
        start = rng.integers(len(content))
        content[start : start + pick(rng, 1, 8, 400)] = bytes(pick(rng, 1, 8))
    path.write_bytes(content[: rng.integers(len(content) // 2, len(content) + 1)])
    run_command(["cluster", path, "--out", folder / "o.h5", "--overwrite", "--threshold", "0.5"])


def do_series(rng, cube, raw, folder):
    out = folder / f"series_{rng.integers(2)}.h5"
    frames = [raw, pick(rng, raw, raw[:, ::-1], raw[..., :1], "no.npy", 3), raw]
    options = some(
        rng, times=[0.5, [0, 1, 2], [0, 1]], drift=["auto", None, np.zeros((3, 2))],
        min_size=[1, 3],
        filter=[{"edge": 0, "sigma": 1, "radius": 1}, 3], resume=[True, False],
        overwrite=[True, False], q_mask=masks(rng, cube.Qshape), threshold=[0.5, 2],
    )  # fmt: skip
    series = p.cluster_series(frames, out=out, n_jobs=1, **options, **QUIET)
    if len(series) - len(series.errors) and not np.array_equal(
        series.drift.shape, (len(series), 2)
    ):
        raise Wrong(f"drift of shape {series.drift.shape}")
    series.tracks()
    for clusters in series:
        if clusters is not None:
            clusters.describe()


def do_figures(rng, cube, raw, folder):
    clusters = cube.cluster(threshold=0.5, **QUIET)
    call = pick(
        rng,
        lambda: clusters.plot(),
        lambda: p.plot_similarity(cube.get_similarity(**QUIET)),
        lambda: p.plot_patterns(cube, [(0, 0), (99, 0)][: rng.integers(1, 3)]),
        lambda: cube.get_cluster_tree(**QUIET).plot(),
        lambda: p.plot_averages(cube.get_clustered_datacube(**QUIET)),
        lambda: cube.explore_clusters(**QUIET).set(threshold=1.0),
    )
    call()
    plt.close("all")


def do_command(rng, cube, raw, folder):
    np.save(folder / "scan.npy", raw)
    arguments = ["cluster", folder / "scan.npy", "--out", folder / "out.h5", "--overwrite"]
    for option in (
        ["--threshold", pick(rng, 0.5, 2)], ["--min-size", pick(rng, 0, 3)], ["--filter"],
        ["--q-range", 1, pick(rng, 0, 9)], ["--step", pick(rng, 3, "x"), "nm"],
        ["--r-mask", pick(rng, "otsu", 0.1, 7)], ["--keep-background"], ["--max-memory", "1GB"],
        ["--figures", folder / "figures"], ["--scan-shape", 2, 3],
    ):  # fmt: skip
        if rng.random() < 0.2:
            arguments += option
    run_command(arguments)


def run_command(arguments):
    """Run a command; its errors must be one line."""
    lines = []
    out, sys.stdout, sys.stderr = (sys.stdout, sys.stderr), Lines([]), Lines(lines)
    try:
        code = command_line([str(a) for a in [*arguments, "--quiet"]])
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.stdout, sys.stderr = out
    text = "".join(lines).strip()
    if code == 2 and (len(text.splitlines()) != 1 or UNCLEAR.search(text)):
        raise Wrong(f"the command said: {text}")
    if code not in (0, 2):
        raise Wrong(f"exit code {code}: {text}")


class Lines:
    """A file that keeps what is written to it."""

    def __init__(self, found):
        self.write, self.flush = found.append, lambda: None


def check_clusters(clusters, cube):
    labels, n = clusters.labels, clusters.n_clusters
    if labels.shape != tuple(cube.Rshape) or labels.min() < -1 or labels.max() != n - 1:
        raise Wrong(f"labels of {labels.shape} from {labels.min()} to {labels.max()}, {n} clusters")
    table = clusters.properties()
    if table["size"].sum() != (labels >= 0).sum() or not (table["perimeter"] > 0).all():
        raise Wrong("properties that do not fit the labels")
    inside = np.isfinite(clusters.expand(np.arange(n)))
    np.testing.assert_array_equal(inside, labels >= 0)
    clusters.describe()


CALLS = (
    do_cluster, do_cluster, do_tree, do_filter, do_similarity, do_averages, do_edit, do_mixture,
    do_file, do_series, do_figures, do_command,
)  # fmt: skip


# --- the run ---------------------------------------------------------------------------------


def use(seed, counts):
    """Some calls on one scan; raises an error for what must not be."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = make_data(rng)
        data = wrap(rng, raw, folder)
        cube = py4DSTEM.DataCube(data, name="cube")
        calibrate(rng, cube)
        try:
            for _ in range(rng.integers(1, 5)):
                call = pick(rng, *CALLS)
                with warnings.catch_warnings(record=True) as warned:
                    warnings.simplefilter("always")
                    try:
                        call(rng, cube, raw, folder)
                        counts[f"{call.__name__} done"] += 1
                    except (ValueError, TypeError, OSError, IndexError) as error:
                        check_error(error)
                        counts[f"{call.__name__} refused"] += 1
                for warning in warned:
                    check_warning(warning)
                kept = np.asarray(data[:]) if not hasattr(data, "compute") else data.compute()
                np.testing.assert_array_equal(kept, raw)
        finally:
            plt.close("all")
            if isinstance(data, h5py.Dataset):
                data.file.close()


def check_error(error):
    text = str(error)
    ours = any("py4dstem_clustering" in line.filename for line in traceback.extract_tb(
        error.__traceback__)[1:])  # fmt: skip
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    if UNCLEAR.search(text) or len(text) > 900 or "\n" in text.strip():
        raise Wrong(f"unclear: {type(error).__name__}: {text}") from error
    if not ours or "py4dstem_clustering" not in last:
        raise Wrong(f"raised by {last}: {type(error).__name__}: {text}") from error


def check_warning(warning):
    """Only warnings of this package are allowed."""
    text = str(warning.message)
    known = ("lies outside the detector", "made from", "failed, see series.errors", "fills the")
    if not any(part in text for part in known):
        raise Wrong(f"warning of {warning.filename}: {warning.category.__name__}: {text}")


def resources():
    """Threads, open files and resident memory in MB."""
    gc.collect()
    files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    pages = 0
    if os.path.exists("/proc/self/statm"):
        pages = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20
    # dask keeps the threads of its pools for the next time.
    pools = [dask.threaded.default_pool]
    pools += [pool for of_thread in dask.threaded.pools.values() for pool in of_thread.values()]
    kept = {thread for pool in pools for thread in getattr(pool, "_threads", ())}
    threads = sum(thread not in kept for thread in threading.enumerate())
    return threads, files, pages


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    options = parser.parse_args()
    counts = Counter()
    if options.only is not None:
        use(options.only, counts)
        return 0
    start, seed, failed = time.monotonic(), options.first_seed, []
    before = None
    while time.monotonic() - start < options.seconds:
        try:
            use(seed, counts)
        except Exception as error:
            failed.append(seed)
            where = traceback.extract_tb(error.__traceback__)[-1]
            print(f"seed {seed}: {type(error).__name__}: {error} ({where.name})", flush=True)
        seed += 1
        if seed - options.first_seed == 30:  # caches are filled
            before = resources()
    after = resources()
    n = seed - options.first_seed
    print(f"{n} scans, seeds {options.first_seed} to {seed - 1}, {len(failed)} failed: {failed}")
    for name in sorted(counts):
        print(f"  {name}: {counts[name]}")
    print(f"threads, files, MB: {before} after 30 scans, {after} at the end")
    leaked = before is not None and (
        after[0] > before[0] + 1 or after[1] > before[1] + 2 or after[2] > before[2] + 300
    )
    return 1 if failed or leaked else 0


if __name__ == "__main__":
    sys.exit(main())
