"""A series of scans: what is done stays done, whatever happens."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import dask.array
import emdfile
import h5py
import numpy as np
import py4DSTEM
import pytest
from conftest import STRICT, forbid, make_scan
from py4DSTEM import DataCube

from py4dstem_clustering import (
    cluster,
    cluster_series,
    filter_correlative,
    open_series,
    simulate_scan,
    simulate_series,
)
from py4dstem_clustering.cli.main import main
from py4dstem_clustering.metrics import track_quality
from py4dstem_clustering.scan.datacubes import copy_datacube
from py4dstem_clustering.series.files import journal_of, read_series
from py4dstem_clustering.series.frames import ScanOf5D
from py4dstem_clustering.series.lock import only_one_writer

QUIET = {"progress_bar": False, "n_jobs": 1}
MERGE = {**QUIET, "min_size": 2}


def frames_of(n, scan=(12, 10)):
    """Counts (n, 12, 10, 14, 11) of grains that differ from frame to frame."""
    return np.stack([make_scan(scan, seed=k) for k in range(n)])


def content(path):
    """All that a file holds, but the time of day."""
    found = {}
    with h5py.File(path, "r") as file:

        def visit(name, item):
            if isinstance(item, h5py.Dataset) and name.rsplit("/", 1)[-1] not in TIMES:
                found[name] = (item.dtype.str, item.shape, np.asarray(item[()]).tobytes())
                if item.dtype == object:
                    found[name] = item[()]

        file.visititems(visit)
    return found


TIMES = {"created", "seconds"}


@pytest.fixture(scope="module")
def frames():
    data = frames_of(4)
    data.flags.writeable = False
    return data


@pytest.fixture(scope="module")
def whole(frames, tmp_path_factory):
    """An undisturbed run."""
    path = tmp_path_factory.mktemp("whole") / "series.h5"
    cluster_series(frames, out=path, **MERGE)
    return path


class Failing:
    """Frames of which one cannot be had."""

    def __init__(self, frames, fail_at=None):
        self.frames, self.fail_at = frames, fail_at

    def __iter__(self):
        for k, frame in enumerate(self.frames):
            if k == self.fail_at:
                raise RuntimeError("the microscope is on fire")
            yield frame


@pytest.fixture(scope="module")
def stopped_once(frames, tmp_path_factory):
    """A run that was stopped when three frames were done."""
    out = tmp_path_factory.mktemp("stopped") / "s.h5"
    with pytest.raises(RuntimeError, match="on fire"):
        cluster_series(Failing(frames, fail_at=3), out=out, **MERGE)
    return out


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """Such a run, to go on with."""
    out = tmp_path / "s.h5"
    shutil.copytree(journal_of(stopped_once), journal_of(out))
    return out


# --- what it holds -------------------------------------------------------------------------------


def test_frames_are_those_of_cluster(frames, whole):
    series = open_series(whole)
    assert len(series) == 4
    assert "4 frames" in repr(series)
    assert not series.errors
    assert not journal_of(whole).exists()
    for k, clusters in enumerate(series):
        cube = DataCube(frames[k])
        expected = cube.cluster(**MERGE)
        np.testing.assert_array_equal(clusters.labels, expected.labels)
        assert clusters.settings["gain"] == expected.settings["gain"]
        if expected.n_clusters:
            averages = cube.get_clustered_datacube(expected, **QUIET)
            np.testing.assert_array_equal(series.averages(k).data, averages.data)
    table = series.frames
    assert table["n_clusters"].tolist() == [c.n_clusters for c in series]
    assert table["time"].tolist() == [0, 1, 2, 3]
    assert series.drift.shape == (4, 2)


def test_the_file_opens_with_plain_py4dstem(whole):
    code = f"""
import sys
sys.modules["py4dstem_clustering"] = None  # cannot be imported
import py4DSTEM
root = py4DSTEM.read({str(whole)!r})
assert list(root.treekeys) == [f"frame_{{k:06d}}" for k in range(4)], list(root.treekeys)
node = root.tree("frame_000002")
assert type(node).__name__ == "RealSlice"
assert node.data.shape == (12, 10)
assert node.metadata["frame"]["source"] == "item 2"
"""
    subprocess.run([sys.executable, *STRICT, "-c", code], check=True)


def test_calibration_and_similarity_come_back(tmp_path):
    scan = simulate_scan((10, 9), (32, 30), n_grains=2, seed=1)
    scan.datacube.calibration.set_R_pixel_size(2.5)
    series = cluster_series(
        [scan.datacube], out=tmp_path / "s.h5", threshold=0.5, times=[3.5], time_units="s", **QUIET
    )
    assert (series[0].pixel_size, series[0].pixel_units) == (2.5, "A")
    expected = scan.datacube.cluster(threshold=0.5, **QUIET)
    np.testing.assert_array_equal(series[0].labels, expected.labels)
    np.testing.assert_array_equal(series[0].similarity.data, expected.similarity.data)
    averages = series.averages(0)
    assert averages.calibration.get_Q_pixel_size() == scan.datacube.calibration.get_Q_pixel_size()
    np.testing.assert_allclose(averages.calibration.get_origin_mean(), (15.5, 14.5))
    assert averages.clusters.n_clusters == series[0].n_clusters
    assert series.times.tolist() == [3.5]
    assert series.time_units == "s"
    assert series.settings["cluster"]["threshold"] == 0.5
    assert series.settings["cluster"]["method"] == "grow"


def test_the_users_datacube_is_left_alone(frames, tmp_path):
    cube = DataCube(frames[0])
    before = frames[0].tobytes()
    cluster_series([cube], out=tmp_path / "s.h5", **MERGE)
    assert list(cube.treekeys) == []
    assert frames[0].tobytes() == before


def test_low_rank_filter(frames, tmp_path):
    growth = {"threshold": 0.5, "min_size": 2}
    options = {"method": "lowrank", "rank": 4}
    series = cluster_series(frames[:1], out=tmp_path / "a.h5", filter=options, **growth, **QUIET)
    cube = DataCube(frames[0])
    expected = cube.filter_lowrank(rank=4, **QUIET).cluster(**growth, **QUIET)
    np.testing.assert_array_equal(series[0].labels, expected.labels)
    assert not np.array_equal(series[0].labels, cube.cluster(**growth, **QUIET).labels)
    assert series.settings["filter"]["method"] == "lowrank"
    assert series.settings["filter"]["rank"] == 4
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["scan"] = frames[:1]
    with h5py.File(tmp_path / "scan.h5", "r") as file:
        lazy = cluster_series(
            file["scan"], out=tmp_path / "b.h5", filter=options, **growth, **QUIET
        )
    np.testing.assert_array_equal(lazy[0].labels, expected.labels)
    by_name = cluster_series(frames[:1], out=tmp_path / "c.h5", filter="lowrank", **growth, **QUIET)
    assert by_name.settings["filter"]["rank"] == "auto"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "b.h5", "c.h5", "scan.h5"]


def test_filter_and_image(frames, tmp_path):
    options = {"sigma": 1, "radius": 1, "corr_range": (0.1, 0.6), "edge": 1}
    q_mask = np.ones((14, 11), bool)
    q_mask[:2] = False
    growth = {"threshold": 0.9, "q_mask": q_mask}
    series = cluster_series(frames[:1], out=tmp_path / "a.h5", filter=options, **growth, **QUIET)
    cube = DataCube(frames[0])
    filtered = cube.filter_correlative(**options, **QUIET)
    expected = filtered.cluster(**growth, **QUIET)
    np.testing.assert_array_equal(series[0].labels, expected.labels)
    assert not np.array_equal(series[0].labels, cube.cluster(**growth, **QUIET).labels)
    averages = cube.get_clustered_datacube(expected, **QUIET)
    np.testing.assert_array_equal(series.averages(0).data, averages.data)
    image = frames[0][..., q_mask].sum(axis=-1)
    np.testing.assert_allclose(series.image(0), image, rtol=1e-6)
    # A scan on disk is filtered through a file that goes again.
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["scan"] = frames[:1]
    with h5py.File(tmp_path / "scan.h5", "r") as file:
        lazy = cluster_series(
            file["scan"], out=tmp_path / "b.h5", filter=options, **growth, **QUIET
        )
    np.testing.assert_array_equal(lazy[0].labels, expected.labels)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "b.h5", "scan.h5"]


def test_a_mask_stays(frames, tmp_path):
    data = np.ma.masked_array(frames.astype(np.float32))
    data[:, 3, 4, 5, 6] = np.ma.masked
    data.data[:, 3, 4, 5, 6] = 1e6
    series = cluster_series(data, out=tmp_path / "s.h5", **MERGE)
    alone = cluster_series(list(data), out=tmp_path / "t.h5", **MERGE)
    for k in range(len(frames)):
        np.testing.assert_array_equal(series[k].labels, alone[k].labels)
        np.testing.assert_array_equal(series.image(k), alone.image(k))
        averages = series.averages(k).data
        np.testing.assert_array_equal(averages, alone.averages(k).data)
        assert averages[np.isfinite(averages)].max() < 1000


def test_a_memmap_stays_on_disk(frames, tmp_path, monkeypatch):
    np.save(tmp_path / "scan.npy", frames)
    given = []
    original = filter_correlative

    def spy(self, **options):
        given.append((type(self.data), options.get("out")))
        return original(self, **options)

    monkeypatch.setattr("py4dstem_clustering.series.frames.filter_correlative", spy)
    cluster_series(np.load(tmp_path / "scan.npy", mmap_mode="r"), out=tmp_path / "s.h5",
                   filter={"sigma": 1, "radius": 1, "edge": 1}, threshold=0.5, **QUIET)  # fmt: skip
    assert [kind for kind, _ in given] == [np.memmap] * 4
    assert None not in [out for _, out in given]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.h5", "scan.npy"]


SLOW_KINDS = [
    pytest.param(kind, marks=pytest.mark.slow)
    for kind in ("list", "cubes", "memmap", "h5py", "dask")
]


@pytest.mark.parametrize("kind", ["generator", "paths", *SLOW_KINDS])
def test_frames_of_every_kind(frames, whole, tmp_path, kind):
    file = None
    if kind == "list":
        given = list(frames)
    elif kind == "cubes":
        given = [DataCube(frame) for frame in frames]
    elif kind == "generator":
        given = (frame for frame in frames)
    elif kind == "h5py":
        file = h5py.File(tmp_path / "scan.h5", "w")
        given = file.create_dataset("scan", data=frames)
        file.flush()
    elif kind == "dask":
        given = dask.array.from_array(frames, chunks=(2, 5, 10, 14, 11))
    elif kind == "memmap":
        np.save(tmp_path / "scan.npy", frames)
        given = np.load(tmp_path / "scan.npy", mmap_mode="r")
    else:
        given = []
        for k, frame in enumerate(frames):
            np.save(tmp_path / f"scan_{k}.npy", frame)
            given.append(tmp_path / f"scan_{k}.npy")
    series = cluster_series(given, out=tmp_path / "s.h5", **MERGE)
    if file is not None:
        file.close()
    found, expected = content(series.path), content(whole)
    assert set(found) == set(expected)
    other = {key for key in found if found[key] != expected[key]}
    if kind == "paths":
        assert {key.rsplit("/", 1)[1] for key in other} <= {"source", "size", "stamp"}
        assert series.infos[1].source == "scan_1.npy"
    else:
        assert not other


def test_one_frame_is_in_memory_at_a_time(frames, tmp_path):
    import weakref

    alive = []

    class Frame(np.ndarray):
        pass

    def make():
        for frame in frames:
            assert not any(ref() is not None for ref in alive)
            own = frame.copy().view(Frame)
            alive.append(weakref.ref(own))
            item = [own]
            del own
            yield item.pop()

    assert len(cluster_series(make(), out=tmp_path / "s.h5", **MERGE)) == 4


# --- through time --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def movie():
    return simulate_series((30, 26), (40, 36), n_frames=5, n_particles=3, nucleation=0.0,
                           coalescence=0.0, dissolution=0.0, electrons=3000, seed=2)  # fmt: skip


@pytest.fixture(scope="module")
def followed(movie, tmp_path_factory):
    path = tmp_path_factory.mktemp("movie") / "movie.h5"
    return cluster_series(movie, out=path, times=0.5, time_units="s", min_size=5, **QUIET)


def test_tracks_of_a_series(movie, followed):
    tracks = followed.tracks(memory=2)
    assert tracks.n_tracks == 3
    assert track_quality(tracks.maps(followed), movie).idf1 > 0.9
    assert np.abs(followed.drift - movie.drift).max() < 0.5
    assert tracks["time"].tolist() == [0.5 * k for k in range(5) for _ in range(3)]
    np.testing.assert_allclose(tracks["area"], tracks["size"] * 20.0**2)


def test_a_frame_that_failed_ends_no_track(movie, tmp_path):
    frames = [movie.frame(0), "missing", movie.frame(2)]
    series = cluster_series(frames, out=tmp_path / "s.h5", min_size=5, **QUIET)
    tracks = series.tracks(memory=0)
    assert tracks.n_tracks == 3
    assert tracks.track(0).frames.tolist() == [0, 2]
    assert series.get_track_datacube(tracks.track(0)).shape == (2, 1, 40, 36)


def test_datacube_of_a_track(movie, followed):
    track = followed.tracks().track(1)
    cube = followed.get_track_datacube(track)
    assert cube.shape == (5, 1, 40, 36)
    for k, (frame, label) in enumerate(zip(track.frames, track.labels, strict=True)):
        averages = followed.averages(frame)
        np.testing.assert_array_equal(cube.data[k, 0], averages.data[label, 0])
        for got, expected in zip(
            cube.calibration.get_origin(), averages.calibration.get_origin(), strict=True
        ):
            assert np.broadcast_to(got, (5, 1))[k, 0] == expected[label, 0]
    assert cube.calibration.get_Q_pixel_size() == movie.frame(0).calibration.get_Q_pixel_size()
    assert cube.clusters.labels.tolist() == [[0], [1], [2], [3], [4]]
    mean = sum(cube.data[k, 0] * track.sizes[k] for k in range(5)) / track.sizes.sum()
    np.testing.assert_allclose(followed.get_track_pattern(track), mean, rtol=1e-6)


@cache
def scan_of_one_grain():
    return simulate_scan((8, 7), (32, 30), n_grains=1, seed=1).datacube


def calibrated(**params):
    """A scan of one grain whose calibration holds these."""
    cube = copy_datacube(scan_of_one_grain())
    cube.calibration._params.update(params)
    return cube


def without_origin(cube):
    params = cube.calibration._params
    for key in [key for key in params if key.startswith(("qx0", "qy0"))]:
        del params[key]
    return cube


def track_of(tmp_path, cubes):
    """The first cluster of each frame as a track."""
    series = cluster_series(cubes, out=tmp_path / "s.h5", min_size=5, **QUIET)
    n = len(cubes)
    track = SimpleNamespace(frames=np.arange(n), labels=np.zeros(n, int), sizes=np.ones(n))
    return series.get_track_datacube(track)


MAP = np.full((8, 7), 16.5)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (15.5, MAP + 2),
        pytest.param(15.5, 18.5, marks=pytest.mark.slow),
        pytest.param(MAP - 1, 18.5, marks=pytest.mark.slow),
        pytest.param(MAP - 1, MAP + 2, marks=pytest.mark.slow),
    ],
)
def test_origin_of_a_track_is_that_of_each_frame(tmp_path, first, second):
    cubes = [calibrated(), calibrated()]
    cubes[0].calibration.set_origin((first, 14.5))
    cubes[1].calibration.set_origin((second, 14.5))
    cube = track_of(tmp_path, cubes)
    x, y = cube.calibration.get_origin()
    np.testing.assert_allclose(x, [[15.5], [18.5]])
    np.testing.assert_allclose(y, [[14.5], [14.5]])
    assert cube.calibration.get_origin_mean() == (17, 14.5)
    np.testing.assert_allclose(cube.calibration.get_origin_shift()[0], [[-1.5], [1.5]])
    # What takes averages takes it.
    assert cube.get_clustered_datacube(cube.clusters, **QUIET).shape == (2, 1, 32, 30)


def test_origin_of_a_track_is_unknown_where_a_frame_has_none(tmp_path):
    cubes = [without_origin(calibrated()), calibrated()]
    x, _ = track_of(tmp_path, cubes).calibration.get_origin()
    np.testing.assert_array_equal(x, [[np.nan], [15.5]])
    assert track_of(tmp_path, cubes).calibration.get_origin_mean() == (15.5, 14.5)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ({"Q_pixel_size": 0.1}, {"Q_pixel_size": 0.2}),
        ({"QR_rotation": 0.5}, {}),
        ({}, {"R_pixel_units": "nm"}),
    ],
)
def test_a_track_has_one_pixel_size_and_rotation(tmp_path, was, now):
    (key,) = {**was, **now}
    key = key.replace("R_pixel", "scan_pixel")
    with pytest.raises(ValueError, match=f"{key} is .* in frame 0 and .* in frame 1: .*averages"):
        track_of(tmp_path, [calibrated(**was), calibrated(**now)])


def test_ellipse_and_probe_of_a_track(tmp_path):
    alike = {"b": 1.0, "theta": 0.5, "probe_center": (15.5, 14.5)}
    cubes = [calibrated(a=1.0 + 0.1 * k, probe_semiangle=2.0 + k, **alike) for k in range(2)]
    calibration = track_of(tmp_path, cubes).calibration
    np.testing.assert_allclose(calibration.get_ellipse(1, 0), (1.1, 1.0, 0.5))
    assert calibration._params["probe_center"] == (15.5, 14.5)
    assert "probe_semiangle" not in calibration._params


def test_the_centre_is_that_of_the_first_frame_that_knows_it(tmp_path):
    cubes = [without_origin(calibrated()), calibrated()]
    series = cluster_series(cubes, out=tmp_path / "s.h5", min_size=5, **QUIET)
    assert series._centre() == (15.5, 14.5)


# --- bad frames ----------------------------------------------------------------------------------


def bad_frames(frames, tmp_path):
    paths = [tmp_path / f"scan_{k}.npy" for k in range(4)]
    for k in (0, 3):
        np.save(paths[k], frames[k])
    paths[1].write_bytes(b"no scan")
    return paths  # and 2 is missing


def test_a_bad_frame_is_recorded(frames, tmp_path):
    paths = bad_frames(frames, tmp_path)
    series = cluster_series(paths, out=tmp_path / "s.h5", **MERGE)
    assert set(series.errors) == {1, 2}
    assert "cannot open" in series.errors[1]
    assert "not a file" in series.errors[2]
    assert series.frames["failed"].tolist() == [False, True, True, False]
    with pytest.raises(ValueError, match=r"frame 1 \(scan_1.npy\) has no clusters: ValueError"):
        series[1]
    assert [c is None for c in series] == [False, True, True, False]
    assert "2 of them failed" in repr(series)
    assert py4DSTEM.read(str(series.path)).tree("frame_000001") is not None
    # Mended, and done again; the others are not.
    np.save(paths[1], frames[1])
    series = cluster_series(paths, out=tmp_path / "s.h5", **MERGE)
    assert set(series.errors) == {2}
    np.testing.assert_array_equal(series[1].labels, DataCube(frames[1]).cluster(**MERGE).labels)


def test_a_frame_that_failed_is_done_again(frames, tmp_path):
    path = tmp_path / "scan.npy"
    np.save(path, frames[0])

    def fail(path):
        raise OSError("the file server is away")

    with pytest.warns(UserWarning, match="the only frame failed.* file server is away"):
        failed = cluster_series([path], out=tmp_path / "s.h5", load=fail, **MERGE)
    assert list(failed.errors) == [0]
    series = cluster_series([path], out=tmp_path / "s.h5", **MERGE)  # of the same size
    assert not series.errors
    assert series[0].shape == (12, 10)


def test_a_bad_frame_is_raised(frames, tmp_path):
    paths = bad_frames(frames, tmp_path)
    with pytest.raises(ValueError, match="cannot open"):
        cluster_series(paths, out=tmp_path / "s.h5", on_error="raise", **MERGE)
    assert not (tmp_path / "s.h5").exists()
    assert len(open_series(tmp_path / "s.h5")) == 1  # what is done stays done


@pytest.mark.parametrize("chunks", [None, pytest.param((1, 1, 10, 14, 11), marks=pytest.mark.slow)])
def test_a_file_of_five_axes_that_shrank(frames, tmp_path, chunks):
    # HDF5 reads zeros behind the end of a file: a scan without clusters, and no error.
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("scan", data=frames, chunks=chunks)
    with h5py.File(path, "r") as file:
        os.truncate(path, path.stat().st_size * 2 // 3)
        with pytest.warns(UserWarning, match="all 4 frames failed"):
            series = cluster_series(file["scan"], out=tmp_path / "s.h5", **MERGE)
        assert set(series.errors) == {0, 1, 2, 3}
        assert "scan.h5 shrank from" in series.errors[3]
        with pytest.raises(OSError, match=r"scan.h5 shrank from"):
            np.asarray(ScanOf5D(file["scan"], 3))


def test_frames_that_are_no_scans(frames, tmp_path):
    series = cluster_series([frames[0], "x", 3, frames[0][0]], out=tmp_path / "s.h5", **MERGE)
    assert set(series.errors) == {1, 2, 3}
    assert "of type int is no scan" in series.errors[2]


def test_an_empty_frame_has_no_clusters(frames, tmp_path):
    empty = np.zeros_like(frames[0])
    series = cluster_series([frames[0], empty], out=tmp_path / "s.h5", **MERGE)
    assert series[1].n_clusters == 0
    with pytest.raises(ValueError, match="no clusters, so it has no averages"):
        series.averages(1)
    assert series.image(1).shape == (12, 10)


# --- going on ------------------------------------------------------------------------------------


def test_a_generator_that_fails_keeps_what_was_done(frames, whole, tmp_path, monkeypatch):
    out = tmp_path / "s.h5"
    with pytest.raises(RuntimeError, match="on fire"):
        cluster_series(Failing(frames, fail_at=2), out=out, **MERGE)
    partial = open_series(out)
    assert len(partial) == 2
    assert partial.drift.shape == (2, 2)
    for file in journal_of(out).glob("frame_*.h5"):
        assert py4DSTEM.read(str(file)) is not None
    done = []
    monkeypatch.setattr(
        "py4dstem_clustering.series.frames.cluster",
        lambda self, **o: (done.append(o["name"]), cluster(self, **o))[1],
    )
    cluster_series(Failing(frames), out=out, **MERGE)
    assert done == ["frame_000002", "frame_000003"]
    assert content(out) == content(whole)
    # And nothing is left to do.
    before = out.stat().st_mtime_ns
    cluster_series(Failing(frames), out=out, **MERGE)
    assert done == ["frame_000002", "frame_000003"]
    assert out.stat().st_mtime_ns == before


def test_an_open_series_outlives_the_end_of_the_run(frames, stopped):
    out = stopped
    live = open_series(out)
    cluster_series(frames, out=out, **MERGE)
    assert not journal_of(out).exists()
    np.testing.assert_array_equal(live[1].labels, open_series(out)[1].labels)
    assert len(live.tracks()) == sum(clusters.n_clusters for clusters in live)


def test_tracks_of_a_series_with_gaps(stopped):
    # As workers leave it that end in another order, when the run is stopped.
    out = stopped
    (journal_of(out) / "frame_000000.h5").unlink()
    (journal_of(out) / "frame_000001.h5").unlink()
    series = open_series(out)
    assert series.frames["frame"].tolist() == [2]
    assert len(series.tracks()) == series[0].n_clusters


def test_more_frames_than_before(frames, whole, tmp_path):
    out = tmp_path / "s.h5"
    cluster_series(frames[:2], out=out, **MERGE)
    with pytest.raises(RuntimeError, match="on fire"):
        cluster_series(Failing(frames, fail_at=3), out=out, **MERGE)
    live = open_series(out)
    assert len(live) == 3
    assert live.drift.shape == (3, 2)
    cluster_series(frames, out=out, **MERGE)
    assert content(out) == content(whole)


def test_a_frame_in_the_folder_is_newer_than_in_the_file(frames, whole, tmp_path):
    out = tmp_path / "s.h5"
    shutil.copy(whole, out)
    other = frames.copy()
    other[0] = frames[0][::-1]
    with pytest.raises(RuntimeError, match="on fire"):
        cluster_series(Failing(other, fail_at=1), out=out, **MERGE)
    found = open_series(out)[0].labels
    assert not np.array_equal(found, open_series(whole)[0].labels)
    np.testing.assert_array_equal(found, DataCube(other[0]).cluster(**MERGE).labels)


def test_a_file_of_another_size_is_clustered_again(frames, tmp_path):
    path = tmp_path / "scan.npy"
    np.save(path, frames[0])
    was = cluster_series([path], out=tmp_path / "s.h5", **MERGE)[0]
    np.save(path, frames[0, ::-1, :9])
    found = cluster_series([path], out=tmp_path / "s.h5", **MERGE)[0]
    assert was.shape == (12, 10)
    assert found.shape == (12, 9)


def test_other_data_at_the_place_of_a_frame_are_clustered_again(frames, whole, tmp_path):
    shutil.copy(whole, tmp_path / "s.h5")
    other = frames.copy()
    other[1] = frames[1][::-1]  # the stripes run in another direction
    was = open_series(whole)
    series = cluster_series(other, out=tmp_path / "s.h5", **MERGE)
    expected = DataCube(other[1]).cluster(**MERGE).labels
    assert not np.array_equal(expected, was[1].labels)
    np.testing.assert_array_equal(series[1].labels, expected)
    same = [a.fingerprint == b.fingerprint for a, b in zip(series.infos, was.infos, strict=True)]
    assert same == [True, False, True, True]


def test_each_file_is_opened_once(frames, tmp_path, monkeypatch):
    paths = [tmp_path / f"scan_{k}.npy" for k in range(3)]
    for path, frame in zip(paths, frames, strict=False):
        np.save(path, frame)
    opened = Counter()
    original = h5py.File.__init__

    def spy(self, name, mode="r", *args, **options):
        if isinstance(name, (str, os.PathLike)) and not str(name).endswith(".partial"):
            opened[Path(name).name] += 1
        original(self, name, mode, *args, **options)

    def spy_on_path(self, *args, **options):  # h5py is handed an open file
        if self.suffix == ".h5":
            opened[self.name] += 1
        return original_open(self, *args, **options)

    def load(path):
        opened[path.name] += 1
        return DataCube(np.load(path))

    original_open = Path.open
    monkeypatch.setattr(Path, "open", spy_on_path)
    monkeypatch.setattr(h5py.File, "__init__", spy)
    out = tmp_path / "s.h5"
    with pytest.raises(RuntimeError, match="on fire"):
        cluster_series(Failing(paths, fail_at=2), out=out, load=load, **MERGE)
    assert opened == {"scan_0.npy": 1, "scan_1.npy": 1}
    opened.clear()
    assert len(open_series(out)) == 2
    assert opened == {"frame_000000.h5": 1, "frame_000001.h5": 1}
    out.unlink(missing_ok=True)
    shutil.rmtree(journal_of(out))

    opened.clear()
    cluster_series(paths, out=out, load=load, **MERGE)
    del opened["skeleton.h5"]  # what the file is begun with
    names = [path.name for path in paths] + [f"frame_{k:06d}.h5" for k in range(3)]
    assert opened == dict.fromkeys([*names, "s.h5"], 1)
    opened.clear()
    series = open_series(out)
    assert opened == {"s.h5": 1}
    assert len(list(series)) == 3
    assert opened == {"s.h5": 1 + 3}
    opened.clear()
    cluster_series(paths, out=out, load=load, **MERGE)
    assert opened == {"s.h5": 2}  # before, and for the result


def test_files_may_come_in_another_order(frames, tmp_path):
    paths = [tmp_path / f"scan_{k}.npy" for k in range(4)]
    for path, frame in zip(paths, frames, strict=True):
        np.save(path, frame)
    cluster_series(paths[:3], out=tmp_path / "s.h5", **MERGE)
    first = content(tmp_path / "s.h5")
    series = cluster_series([paths[k] for k in (2, 3, 0, 1)], out=tmp_path / "s.h5", **MERGE)
    assert [info.source for info in series.infos] == [path.name for path in paths]
    second = content(tmp_path / "s.h5")
    of_series = "drift", "frames"
    assert all(second[key] == value for key, value in first.items() if not key.endswith(of_series))


@pytest.fixture(scope="module")
def two_files(frames, tmp_path_factory):
    """Three scans in files, of which two are done."""
    folder = tmp_path_factory.mktemp("two")
    paths = [folder / f"scan_{k}.npy" for k in range(3)]
    for path, frame in zip(paths, frames, strict=False):
        np.save(path, frame)
    cluster_series(paths[:2], out=folder / "s.h5", **MERGE)
    return paths, folder / "s.h5"


GIVEN = {"times": {"times": [0, 1, 2]}, "drift": {"drift": np.zeros((3, 2))}}
QUICK = [(list, (2, 0, 1), "times"), (iter, (0, 2, 1), "drift"), (iter, (1, 0, 2), "times")]
ALL = product((list, iter), ((2, 0, 1), (0, 2, 1), (1, 0, 2)), GIVEN)
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in QUICK]


@pytest.mark.parametrize(("kind", "order", "given"), QUICK + SLOW)
def test_times_one_by_one_need_scans_in_order(two_files, tmp_path, monkeypatch, kind, order, given):
    paths, done = two_files
    options = GIVEN[given]
    out = tmp_path / "s.h5"
    shutil.copy(done, out)
    before = content(out)
    with monkeypatch.context() as patch:
        patch.setattr("py4dstem_clustering.series.frames._cluster_datacube", None)
        with pytest.raises(ValueError, match=r"is frame . of out.* give new scans after the old"):
            cluster_series(kind([paths[k] for k in order]), out=out, on_error="raise", **options,
                           **MERGE)  # fmt: skip
    assert content(out) == before
    series = cluster_series(kind(paths), out=out, **options, **MERGE)
    assert [info.source for info in series.infos] == [path.name for path in paths]
    assert series.times.tolist() == [0, 1, 2]


def test_time_units_may_change(frames, whole, tmp_path, monkeypatch):
    shutil.copy(whole, tmp_path / "s.h5")
    monkeypatch.setattr("py4dstem_clustering.series.frames.cluster", None)
    series = cluster_series(frames, out=tmp_path / "s.h5", time_units="s", **MERGE)
    assert series.time_units == "s"
    assert series.times.tolist() == [0, 1, 2, 3]


def test_times_and_drift_may_change(frames, whole, tmp_path, monkeypatch):
    out = tmp_path / "s.h5"
    shutil.copy(whole, out)
    monkeypatch.setattr("py4dstem_clustering.series.frames.cluster", None)
    drift = np.arange(8.0).reshape(4, 2)
    series = cluster_series(frames, out=out, times=[1, 2, 4, 8], drift=drift, **MERGE)
    assert series.times.tolist() == [1, 2, 4, 8]
    np.testing.assert_array_equal(series.drift, drift)
    series = cluster_series(frames, out=out, times=[1, 2, 4, 8], drift=2 * drift, **MERGE)
    np.testing.assert_array_equal(series.drift, 2 * drift)
    series = cluster_series(frames, out=out, times=0.5, drift=None, time_units="s", **MERGE)
    assert series.times.tolist() == [0, 0.5, 1, 1.5]
    assert series.time_units == "s"
    assert not series.drift.any()
    assert not cluster_series(frames, out=out, drift=None, **MERGE).drift.any()
    cluster_series(frames, out=out, **MERGE)
    assert content(out) == content(whole)  # times and drift by default again


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"min_size": 3}, "cluster min_size was 2 and is 3"),
        ({"filter": {"edge": 2}, "min_size": 2}, "filter edge was None and is 2"),
        ({"q_mask": np.eye(14, 11) > 0, "min_size": 2}, "cluster q_mask was None and is another"),
        ({"min_purity": 0.5, "min_size": 2}, "averages min_purity was None and is 0.5"),
    ],
)
@pytest.mark.parametrize("finished", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_other_options_are_refused(frames, tmp_path, options, text, finished):
    out = tmp_path / "s.h5"
    if finished:
        cluster_series(frames[:1], out=out, **MERGE)
    else:
        with pytest.raises(RuntimeError, match="on fire"):
            cluster_series(Failing(frames, fail_at=1), out=out, **MERGE)
    with pytest.raises(ValueError, match=text):
        cluster_series(frames[:1], out=out, **QUIET, **options)
    with pytest.raises(ValueError, match="has frames already; resume=True goes on"):
        cluster_series(frames[:1], out=out, resume=False, **QUIET, **options)
    series = cluster_series(frames[:1], out=out, resume=False, overwrite=True, **QUIET, **options)
    assert len(series) == 1


def test_a_file_that_is_no_series_is_kept(frames, tmp_path):
    (tmp_path / "s.h5").write_bytes(b"something dear")
    with pytest.raises(ValueError, match="holds no series"):
        cluster_series(frames, out=tmp_path / "s.h5", **MERGE)
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["data"] = 3
    for resume in (True, False):
        with pytest.raises(ValueError, match="holds no series"):
            cluster_series(
                frames, out=tmp_path / "t.h5", resume=resume, overwrite=not resume, **MERGE
            )
    assert (tmp_path / "s.h5").read_bytes() == b"something dear"


def test_a_frame_file_that_is_damaged_is_done_again(frames, whole, stopped):
    out = stopped
    file = journal_of(out) / "frame_000001.h5"
    file.write_bytes(file.read_bytes()[:1000])
    cluster_series(frames, out=out, **MERGE)
    assert content(out) == content(whole)


def test_one_process_at_a_time(frames, tmp_path):
    out = tmp_path / "s.h5"
    with (
        only_one_writer(out),
        pytest.raises(OSError, match=r"another process is writing .*s\.h5"),
    ):
        cluster_series(frames[:1], out=out, **MERGE)
    assert not journal_of(out).exists()
    assert len(cluster_series(frames[:1], out=out, **MERGE)) == 1


def test_files_are_locked_where_there_is_no_fcntl(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def locking(descriptor, mode, n_bytes):
        """As Windows does."""
        assert (mode, n_bytes) == (2, 1)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking))
    out = tmp_path / "s.h5"
    with (
        only_one_writer(out),
        pytest.raises(OSError, match="another process is writing"),
        only_one_writer(out),
    ):
        raise AssertionError("two at a time")
    with only_one_writer(out):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_warning_says_where_files_cannot_be_locked(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def fail(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with (
        pytest.warns(UserWarning, match=r"s\.h5 cannot be locked .*No locks .*no other process"),
        only_one_writer(tmp_path / "s.h5"),
    ):
        pass
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", None)
    with (
        pytest.warns(UserWarning, match="neither fcntl nor msvcrt"),
        only_one_writer(tmp_path / "s.h5"),
    ):
        pass


# --- killed --------------------------------------------------------------------------------------


def run_to_be_killed(folder):
    cluster_series(np.load(Path(folder) / "frames.npy"), out=Path(folder) / "s.h5", **MERGE)


N_KILLS = int(os.environ.get("SERIES_KILLS", "6"))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_at_any_moment_it_ends_with_the_same_file(frames, whole, tmp_path):
    np.save(tmp_path / "frames.npy", frames)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["py4dstem_clustering", __name__])
    expected = content(whole)
    out = tmp_path / "s.h5"
    rng = np.random.default_rng(int(os.environ.get("SERIES_SEED", "0")))
    start = time.perf_counter()
    child = context.Process(target=run_to_be_killed, args=(tmp_path,))
    child.start()
    child.join()
    duration = time.perf_counter() - start
    assert child.exitcode == 0
    assert content(out) == expected
    states = []
    for _ in range(N_KILLS):
        out.unlink(missing_ok=True)
        while True:  # killed again and again, on the average three times
            child = context.Process(target=run_to_be_killed, args=(tmp_path,))
            child.start()
            child.join(rng.uniform(0.02, 1.1) * duration)
            child.kill()  # SIGKILL
            child.join()
            if out.exists():
                assert content(out) == expected
            states.append((out.exists(), len(list(tmp_path.glob("s.h5.frames/frame_*")))))
            if states[-1] == (False, 0):  # the machine has become slower
                duration *= 1.5
            if rng.random() < 0.3:
                break
        cluster_series(np.load(tmp_path / "frames.npy"), out=out, **MERGE)
        assert content(out) == expected
        assert not journal_of(out).exists()
    print(states)
    assert len(set(states)) > 1


# --- many machines -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster = distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            memory_limit=0,
        )
        client = distributed.Client(cluster)
        yield client
        client.close()
        cluster.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_workers_give_the_same_file(frames, whole, tmp_path, client):
    cluster_series(frames, out=tmp_path / "s.h5", client=client, min_size=2, progress_bar=False)
    assert content(tmp_path / "s.h5") == content(whole)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["scan"] = frames
    with h5py.File(tmp_path / "scan.h5", "r") as file:
        cluster_series(
            file["scan"], out=tmp_path / "t.h5", client=client, min_size=2, progress_bar=False
        )
    assert content(tmp_path / "t.h5") == content(whole)
    lazy = dask.array.from_array(frames, chunks=(1, 12, 10, 14, 11))
    cluster_series(lazy, out=tmp_path / "u.h5", client=client, min_size=2, progress_bar=False)
    assert content(tmp_path / "u.h5") == content(whole)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_bad_frame_on_a_worker(frames, tmp_path, client):
    paths = bad_frames(frames, tmp_path)
    series = cluster_series(paths, out=tmp_path / "s.h5", client=client, min_size=2,
                            progress_bar=False)  # fmt: skip
    assert set(series.errors) == {1, 2}
    with pytest.raises((ValueError, OSError), match=r"cannot open|not a file"):
        cluster_series(paths, out=tmp_path / "t.h5", client=client, on_error="raise",
                       progress_bar=False)  # fmt: skip


def load_and_kill_once(path):
    """As a machine that dies at the second frame."""
    mark = Path(path).with_suffix(".died")
    if "scan_1" in str(path) and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return DataCube(np.load(path))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_what_a_lost_worker_did_is_done_again(frames, whole, tmp_path, client):
    paths = [tmp_path / f"scan_{k}.npy" for k in range(4)]
    for path, frame in zip(paths, frames, strict=True):
        np.save(path, frame)
    series = cluster_series(paths, out=tmp_path / "s.h5", client=client, load=load_and_kill_once,
                            min_size=2, progress_bar=False)  # fmt: skip
    assert (tmp_path / "scan_1.died").exists()
    assert not series.errors
    expected = open_series(whole)
    for k in range(4):
        np.testing.assert_array_equal(series[k].labels, expected[k].labels)


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"frames": "scan.h5"}, TypeError, "is one path; give a list of paths"),
        ({"frames": np.zeros((3, 4, 5, 6))}, ValueError, "must have five axes"),
        ({"frames": np.zeros((3, 4, 5, 6, 0))}, ValueError, "is empty"),
        ({"frames": []}, ValueError, "frames is empty"),
        ({"frames": 3}, TypeError, "frames of type int must be"),
        ({"out": 3}, TypeError, "out=3 must be a path"),
        ({"out": "no/where.h5"}, ValueError, "folder that does not exist"),
        ({"filter": 3}, TypeError, "filter=3 must be True, 'correlative', 'lowrank', or options"),
        ({"filter": "median"}, ValueError, "the method of filter='median' must be one of"),
        ({"filter": {"method": "lowrank", "rank": 0}}, ValueError, "rank=0 must be at least 1"),
        (
            {"filter": {"method": "lowrank", "sigma": 1}},
            TypeError,
            "'sigma' is no option of filter_l",
        ),
        ({"filter": {"sigma": -1}}, ValueError, "sigma=-1 must be"),
        ({"filter": {"out": "x"}}, TypeError, "'out' is no option of filter_correlative"),
        ({"filter": {"corr_range": (1, 0)}}, ValueError, "corr_range"),
        ({"filter": {"edge": 0.5}}, TypeError, "edge=0.5 must be a whole number"),
        ({"min_purity": 2}, ValueError, "min_purity=2 must be"),
        ({"align": 1}, TypeError, "align=1 must be True or False"),
        ({"load": 3}, TypeError, "load=3 must be a function"),
        ({"times": 0}, ValueError, "times=0 must be above 0"),
        ({"times": -1.5}, ValueError, "times=-1.5 must be above 0"),
        ({"times": [1, 2]}, ValueError, "times holds 2 numbers for 4 frames"),
        ({"times": [1, 2, 2, 3]}, ValueError, "times must rise"),
        ({"times": [[1, 2, 3, 4]]}, ValueError, "times must be one number"),
        ({"time_units": 3}, TypeError, "time_units=3 must be a text"),
        ({"drift": "no"}, ValueError, "drift='no' must be 'auto', None"),
        ({"drift": np.zeros((3, 2))}, ValueError, "there are 4"),
        ({"drift": np.full((4, 2), np.nan)}, ValueError, "must be 'auto', None"),
        ({"image_mask": np.ones((3, 3))}, TypeError, "must be boolean"),
        ({"resume": 1}, TypeError, "resume=1 must be True or False"),
        ({"on_error": "no"}, ValueError, "on_error='no' must be one of 'record', 'raise'"),
        ({"client": 3}, TypeError, "client=3 must be a dask.distributed.Client"),
        ({"n_jobs": 0}, ValueError, "n_jobs=0 must be at least 1"),
        ({"max_memory": "much"}, ValueError, "max_memory='much' must be"),
        ({"name": "x"}, TypeError, "'name' is no option of cluster_series"),
        ({"treshold": 0.9}, TypeError, "'treshold' is no option"),
        ({"threshold": 7}, ValueError, "threshold=7 must be"),
        ({"method": "merge", "sigma": 1}, ValueError, "sigma belongs to growth"),
        ({"method": "x"}, ValueError, "method='x' must be one of"),
        ({"rank": 0}, ValueError, "rank=0 must be at least 1"),
        ({"threshold": 0.9, "sigma": -1}, ValueError, "sigma=-1 must be"),
        ({"threshold": 0.9, "subtract_mean": 1}, TypeError, "subtract_mean=1 must be"),
        ({"q_mask": np.zeros((14, 11), bool)}, ValueError, "q_mask is empty"),
        ({"r_mask": "bad"}, ValueError, "r_mask='bad' must be one of"),
        ({"min_size": 0}, ValueError, "min_size=0 must be at least 1"),
    ],
)
def test_what_is_refused_before_any_work(frames, tmp_path, monkeypatch, options, error, text):
    forbid(monkeypatch, "cluster_frame")
    given = {"frames": frames, "out": tmp_path / "s.h5", "progress_bar": False, **options}
    with pytest.raises(error, match=text):
        cluster_series(given.pop("frames"), **given)
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_a_time_step_of_zero(frames, tmp_path, capsys):
    np.save(tmp_path / "scan.npy", frames[0])
    out = tmp_path / "s.h5"
    arguments = ["series", str(tmp_path / "scan.npy"), "--out", str(out), "--time-step", "0", "s"]
    assert main([*arguments, "--quiet"]) == 2
    assert "must be above 0" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["scan.npy"]


def test_a_generator_without_frames(tmp_path):
    with pytest.raises(ValueError, match="yielded no scan"):
        cluster_series(iter(()), out=tmp_path / "s.h5", **MERGE)


def test_times_too_short_for_a_generator(frames, tmp_path):
    with pytest.raises(ValueError, match="times holds 2 numbers and there is a frame 2"):
        cluster_series(iter(frames), out=tmp_path / "s.h5", times=[1, 2], **MERGE)


def test_opening_what_is_no_series(tmp_path):
    with pytest.raises(ValueError, match="holds no series"):
        open_series(tmp_path / "nothing.h5")
    with pytest.raises(TypeError, match="path=3 must be a path"):
        open_series(3)
    emdfile.save(str(tmp_path / "other.h5"), emdfile.Root("series"), mode="o")
    with pytest.raises(ValueError, match="holds no series"):
        open_series(tmp_path / "other.h5")


def test_frames_by_number(whole):
    series = open_series(whole)
    np.testing.assert_array_equal(series[-1].labels, series[3].labels)
    with pytest.raises(IndexError, match="frame 4 does not exist; this series has 4"):
        series[4]
    with pytest.raises(TypeError, match="must be a whole number"):
        series["a"]
    assert pickle.loads(pickle.dumps(series))[0].n_clusters == series[0].n_clusters
    assert read_series(whole).infos[2].source == "item 2"
    assert json.dumps(dict(series.settings["cluster"]))


def test_progress_is_shown(frames, tmp_path, capsys):
    cluster_series(frames[:2], out=tmp_path / "s.h5", min_size=2)
    assert "Clustering: 100%" in capsys.readouterr().err


def test_a_lag_is_an_option_of_each_frame(tmp_path):
    frames = [DataCube(make_scan(seed=seed)) for seed in (0, 1)]
    with pytest.raises(ValueError, match=r"lag=2 must be below 1: .* is lag=0.67"):
        cluster_series(frames, out=tmp_path / "a.h5", lag=2, **QUIET)
    series = cluster_series(frames, out=tmp_path / "a.h5", lag=0.5, **QUIET)
    assert series.settings["cluster"]["lag"] == 0.5
    assert [clusters.settings["lag_share"] for clusters in series] == [0.5, 0.5]
