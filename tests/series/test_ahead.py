"""Frames in files are clustered while the next ones are read or waited for."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from py4dstem_clustering import cluster_series, open_series, simulate_series
from py4dstem_clustering.kernels.blocks import Stopped, iterate_blocks, stop_with, workers
from py4dstem_clustering.series import frames as frames_module
from py4dstem_clustering.series.files import journal_of

OPTIONS = {"min_size": 3, "n_jobs": 1, "progress_bar": False}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    movie = simulate_series(
        (12, 10), (24, 22), n_frames=4, n_particles=2, electrons=2000, disk_radius=1, seed=101
    )
    found = []
    for i, cube in enumerate(movie):
        found.append(folder / f"frame_{i}.npy")
        np.save(found[-1], cube.data)
    return found


@pytest.fixture
def together(monkeypatch):
    """Counts how many frames are in work at once."""
    lock, state = threading.Lock(), {"now": 0, "most": 0, "threads": set()}
    real = frames_module._cluster_datacube

    def counted(*args):
        with lock:
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
            state["threads"].add(threading.current_thread())
        try:
            time.sleep(0.2)
            return real(*args)
        finally:
            with lock:
                state["now"] -= 1

    monkeypatch.setattr(frames_module, "_cluster_datacube", counted)
    return state


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def labels(series):
    return [clusters.labels for clusters in series]


def test_two_files_are_in_work_at_once_with_the_same_result(paths, tmp_path, together):
    ahead = cluster_series(paths, out=tmp_path / "ahead.h5", **OPTIONS)
    assert together["most"] == 2
    together["most"] = 0
    one = cluster_series(paths, out=tmp_path / "one.h5", on_error="raise", **OPTIONS)
    assert together["most"] == 1
    for a, b in zip(labels(ahead), labels(one), strict=True):
        np.testing.assert_array_equal(a, b)
    for i in range(4):
        np.testing.assert_array_equal(ahead.averages(i).data, one.averages(i).data)


def test_scans_in_memory_are_done_one_at_a_time(paths, tmp_path, together):
    cluster_series([np.load(p) for p in paths], out=tmp_path / "a.h5", **OPTIONS)
    assert together["most"] == 1
    assert together["threads"] == {threading.main_thread()}


def test_a_frame_is_stored_while_the_next_one_is_waited_for(paths, tmp_path):
    out = tmp_path / "series.h5"
    seen = []

    def camera():
        for i, path in enumerate(paths):
            yield path
            if i > 0:  # the first one is done before the second one is asked for
                wait_for(lambda i=i: (journal_of(out) / f"frame_{i:06d}.h5").is_file())
            seen.append(len(open_series(out)))

    cluster_series(camera(), out=out, **OPTIONS)
    assert seen == [1, 2, 3, 4]


def test_ctrl_c_ends_the_frames_in_work_and_stores_no_error(paths, tmp_path, monkeypatch):
    out = tmp_path / "series.h5"
    started = threading.Event()
    real = frames_module.cluster

    def endless(source, **options):
        if threading.current_thread() is threading.main_thread():
            return real(source, **options)
        started.set()
        while True:
            for _ in iterate_blocks(source.data):
                time.sleep(0.01)

    monkeypatch.setattr(frames_module, "cluster", endless)

    def camera():
        yield from paths[:2]
        assert started.wait(30)
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        cluster_series(camera(), out=out, **OPTIONS)
    assert time.monotonic() - start < 20
    assert len(open_series(out)) == 1  # without a record of the frame that was stopped
    monkeypatch.setattr(frames_module, "cluster", real)
    assert len(cluster_series(paths, out=out, **OPTIONS).errors) == 0


def test_frames_that_were_given_are_kept_if_the_next_one_fails(paths, tmp_path, together):
    out = tmp_path / "series.h5"

    def camera():
        yield from paths[:3]
        raise RuntimeError("the microscope is off")

    with pytest.raises(RuntimeError, match="the microscope is off"):
        cluster_series(camera(), out=out, **OPTIONS)
    assert len(open_series(out)) == 3


def test_an_error_of_one_frame_is_recorded_and_does_not_stop_the_other(paths, tmp_path):
    bad = tmp_path / "bad.npy"
    bad.write_bytes(b"no array")
    out = tmp_path / "series.h5"
    series = cluster_series([paths[0], bad, paths[1], paths[2]], out=out, **OPTIONS)
    assert list(series.errors) == [1]
    assert len(series) == 4


def test_work_ends_soon_after_it_is_cancelled():
    data = np.ones((8, 3, 4, 5))
    cancelled = threading.Event()
    with stop_with(cancelled):
        with workers(1) as run:
            run(print, [])
            cancelled.set()
            with pytest.raises(Stopped):
                run(print, [1])
        with pytest.raises(Stopped):
            next(iterate_blocks(data))
    assert len(list(iterate_blocks(data, n_rows=2))) == 4
