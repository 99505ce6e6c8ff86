"""One scan on the workers of a dask cluster: the same bits as in this process."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import py4DSTEM
import pytest

from py4dstem_clustering import open_scan, simulate_scan
from py4dstem_clustering.patterns import on_workers
from py4dstem_clustering.patterns.on_workers import Block, Rows, cut_in_blocks, map_blocks

distributed = pytest.importorskip("distributed")
dask_array = pytest.importorskip("dask.array")

QUIET = {"progress_bar": False}

pytestmark = pytest.mark.filterwarnings("default")  # dask's own


@pytest.fixture(scope="module")
def scan():
    cube = simulate_scan((23, 14), (24, 22), n_grains=4, electrons=3000, seed=102).datacube
    return np.asarray(cube.data).astype(np.uint16)


@pytest.fixture(scope="module")
def client():
    """Two workers in this process."""
    with distributed.Client(
        processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0"
    ) as client:
        yield client


def cube_of(data):
    return py4DSTEM.DataCube(data)


def of_kind(kind, scan, folder, client):
    """The same counts in every kind of array."""
    if kind == "array":
        return scan
    if kind == "fractions":
        return (scan / 7).astype(np.float32)
    if kind == "missing":
        found = scan.astype(np.float32)
        found[3, 4, 5, 6] = found[9, 2] = np.nan
        return found
    if kind == "masked":
        mask = np.zeros(scan.shape, dtype=bool)
        mask[2, 3, 4, 5] = mask[20] = True
        return np.ma.masked_array(scan, mask)
    if kind == "memmap":
        np.save(folder / "scan.npy", scan)
        return np.load(folder / "scan.npy", mmap_mode="r")
    if kind == "part of a memmap":
        np.save(folder / "longer.npy", np.concatenate([scan[:2] + 1, scan]))
        return np.load(folder / "longer.npy", mmap_mode="r")[2:]
    if kind == "dask":
        return dask_array.from_array(scan, chunks=(5, 6, -1, -1))
    if kind == "on the workers":
        return client.persist(dask_array.from_array(scan, chunks=(5, 6, -1, -1)))
    with h5py.File(folder / "scan.h5", "w") as file:
        file["scan"] = scan
    if kind == "h5py":
        return h5py.File(folder / "scan.h5", "r")["scan"]
    assert kind == "ScanArray"
    return open_scan(folder / "scan.h5").data


KINDS = (
    "array", "fractions", "missing", "masked", "memmap", "part of a memmap", "dask",
    "on the workers", "h5py", "ScanArray",
)  # fmt: skip


SLOW = ("dask", "on the workers", "part of a memmap", "ScanArray")


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if k in SLOW else k for k in KINDS]
)
def test_all_methods_give_the_same_bits(kind, scan, client, tmp_path):
    cube = cube_of(of_kind(kind, scan, tmp_path, client))
    here = cube_of(np.ma.copy(cube.data) if kind == "masked" else np.asarray(cube.data))
    same = np.testing.assert_array_equal
    if kind == "masked":
        # A block in which pixels are masked becomes floating point, and is rounded otherwise.
        same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    for options in ({}, {"sigma": 1.2, "noise_correct": True, "gain": 1}):
        found = cube.get_similarity(client=client, **options, **QUIET)
        same(found.data, here.get_similarity(**options, **QUIET).data)
    options = {"sigma": 1, "radius": 2, "edge": 2, "corr_range": (0.3, 0.8)}
    found = cube.filter_correlative(client=client, **options, **QUIET)
    same(found.data, here.filter_correlative(**options, **QUIET).data)
    found = cube.get_cluster_tree(client=client, **QUIET)
    expected = here.get_cluster_tree(**QUIET)
    if kind != "masked":
        for name in ("first", "second", "level", "features"):
            same(getattr(found, name), getattr(expected, name))
    clusters = cube.cluster(client=client, min_size=3, **QUIET)
    np.testing.assert_array_equal(clusters.labels, here.cluster(min_size=3, **QUIET).labels)
    averages = cube.get_clustered_datacube(client=client, **QUIET).data
    expected = here.get_clustered_datacube(**QUIET).data
    if kind in ("fractions", "missing", "masked"):
        np.testing.assert_allclose(averages, expected, rtol=1e-6)
    else:
        np.testing.assert_array_equal(averages, expected)


def test_growth_and_the_filter_to_a_file(scan, client, tmp_path):
    cube = cube_of(scan)
    grown = cube.cluster(threshold=0.9, min_size=3, client=client, **QUIET)
    np.testing.assert_array_equal(
        grown.labels, cube.cluster(threshold=0.9, min_size=3, **QUIET).labels
    )
    options = {"sigma": 1, "radius": 1.5, "edge": 2, "corr_range": "auto"}
    found = cube.filter_correlative(client=client, out=tmp_path / "a.h5", **options, **QUIET)
    expected = cube.filter_correlative(**options, **QUIET)
    np.testing.assert_array_equal(found.data[:], expected.data)
    found.data.file.close()


def test_averages_of_patterns_that_are_moved(scan, client):
    cube = cube_of(scan)
    x, y = np.indices(scan.shape[:2])
    cube.calibration.set_origin((11 + 0.1 * x, 10 + 0.2 * y))
    clusters = cube.cluster(min_size=3, client=client, **QUIET)
    np.testing.assert_array_equal(clusters.labels, cube.cluster(min_size=3, **QUIET).labels)
    found = cube.get_clustered_datacube(clusters, client=client, **QUIET).data
    expected = cube.get_clustered_datacube(clusters, **QUIET).data
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("n_rows", [1, 2, 5, 40])
@pytest.mark.parametrize("halo", [0, 1, 4])
def test_blocks_cover_the_scan_with_the_rows_around_them(monkeypatch, client, n_rows, halo):
    data = np.empty((23, 3, 4, 5))
    monkeypatch.setattr(on_workers, "_BLOCK_BYTES", 4 * n_rows * 60)
    blocks = cut_in_blocks(client, data, halo)
    rows = [row for block in blocks for row in range(block.start, block.stop)]
    assert rows == list(range(23))
    for block in blocks:
        assert block.stop - block.start <= n_rows
        assert block.first <= max(0, block.start - halo)
        assert block.last == min(23, block.stop + halo)
        assert block.first % 2 == 0 or halo == 0
        assert list(range(block.first, block.last))[block.inside] == list(
            range(block.start, block.stop)
        )


def test_rows_are_indexed_like_a_scan(scan):
    rows = Rows(scan, 5, 12)
    part = scan[5:12]
    assert (rows.shape, rows.dtype, len(rows), rows.ndim) == (part.shape, part.dtype, 7, 4)
    for key in (2, slice(1, 4), slice(None), (slice(2, 6), slice(3, 9)), slice(-3, None), (3, 4)):
        np.testing.assert_array_equal(rows[key], part[key])


def fail(rows, block):
    raise ValueError(f"block {block.start} is bad")


def first_row(rows, block):
    return np.asarray(rows[block.start - block.first]).sum()


def test_an_error_on_a_worker_is_raised_here(scan, client):
    with pytest.raises(ValueError, match="block 0 is bad"):
        list(map_blocks(client, fail, scan, cut_in_blocks(client, scan, 1)))


def test_blocks_that_are_not_wanted_are_cancelled(scan, client):
    found = map_blocks(client, first_row, scan, cut_in_blocks(client, scan, 1))
    next(found)
    found.close()
    assert not any("py4dstem" in str(key) for key in client.futures)


@pytest.mark.parametrize("method", ["get_similarity", "filter_correlative", "cluster"])
def test_what_is_no_client_is_refused_before_any_work(scan, method):
    options = {"edge": 2} if method == "filter_correlative" else {}
    with pytest.raises(TypeError, match=r"client=3 must be a dask.distributed.Client"):
        getattr(cube_of(scan), method)(client=3, **options, **QUIET)


def test_a_client_without_workers_is_refused(scan):
    with (
        distributed.Client(processes=False, n_workers=0, dashboard_address=":0") as client,
        pytest.raises(ValueError, match="has no workers; start some"),
    ):
        cube_of(scan).get_similarity(client=client, **QUIET)


# --- processes, one of which is killed ------------------------------------------------------------


def kill_once(work, mark, rows, block, **options):
    """As a machine that dies at the second block."""
    if block.start > 0 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return work(rows, block, **options)


@pytest.fixture(scope="module")
def processes():
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1",
            dashboard_address=":0", memory_limit=0,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        yield client


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("kind", ["array", "ScanArray", "dask"])
def test_blocks_of_a_lost_worker_are_done_again(kind, scan, processes, tmp_path, monkeypatch):
    cube = cube_of(of_kind(kind, scan, tmp_path, processes))
    here = cube_of(scan)
    steps = {
        "similarity": lambda cube, **o: cube.get_similarity(**o).data,
        "filter": lambda cube, **o: (
            cube.filter_correlative(sigma=1, radius=2, edge=2, corr_range=(0.3, 0.8), **o).data
        ),
        "labels": lambda cube, **o: cube.cluster(min_size=3, **o).labels,
        "averages": lambda cube, **o: cube.get_clustered_datacube(**o).data,
    }
    for name, step in steps.items():
        expected = step(here, **QUIET)
        mark = tmp_path / f"{name}.died"
        monkeypatch.setattr(on_workers, "_on_worker", partial(_dying, mark))
        found = step(cube, client=processes, **QUIET)
        assert mark.exists()
        np.testing.assert_array_equal(found, expected)


def _dying(mark: Path, work, rows, block: Block, arguments):
    """As `on_workers._on_worker`; the worker dies once."""
    from py4dstem_clustering.patterns.on_workers import _on_worker

    return _on_worker(partial(kill_once, work, mark), rows, block, arguments)
