"""The benchmark of a simulated camera: what it writes, at which pace, and what it prints."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

from py4dstem_clustering import open_scan
from py4dstem_clustering.benchmarks import live
from py4dstem_clustering.benchmarks.memory import pieces_of_scan
from py4dstem_clustering.cli.main import main

SCAN, DETECTOR = (9, 6), (36, 34)


@pytest.fixture
def recorded(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    return live.record(source, SCAN, DETECTOR)


def test_the_camera_writes_the_whole_scan_under_other_names_and_in_time(tmp_path, recorded):
    folder = tmp_path / "microscope"
    folder.mkdir()
    camera = live.Camera(recorded, folder, 2, 0.3)
    camera.start()
    time.sleep(0.12)  # in the first frame, of which not all is there
    master = folder / "scan_0000_master.h5"
    partial = sum(file.stat().st_size for file in folder.glob("scan_0000_data_*.h5"))
    assert master.is_file()
    assert partial < recorded.n_bytes
    assert not list(folder.glob("scan_0001*"))
    camera.join()
    assert camera.error is None
    first, second = np.array(camera.finished) - camera.start_time
    assert 0.3 <= first < 0.6 <= second
    whole = np.zeros((*SCAN, *DETECTOR), dtype=np.uint16)
    for row, start, piece in pieces_of_scan(SCAN, DETECTOR):
        whole[row, start : start + len(piece)] = piece
    assert whole.any(axis=(2, 3)).all()
    for frame in (0, 1):
        cube = open_scan(folder / f"scan_{frame:04d}_master.h5", scan_shape=SCAN)
        assert np.array_equal(np.asarray(cube.data), whole)
        assert all(f"scan_{frame:04d}" in file.name for file in cube.data.files)
        cube.data.close()


def test_a_camera_that_is_stopped_ends_at_once(tmp_path, recorded):
    camera = live.Camera(recorded, tmp_path, 1, 60.0)
    camera.start()
    camera.stopped.set()
    camera.join(timeout=5)
    assert not camera.is_alive()
    assert camera.finished == []


def test_an_error_of_the_camera_is_raised(tmp_path, recorded, monkeypatch):
    def fail(self, prefix, begin):
        raise OSError("no space left")

    monkeypatch.setattr(live.Camera, "_record", fail)
    camera = live.Camera(recorded, tmp_path, 1, 0.1)
    camera.start()
    camera.join()
    assert "no space left" in str(camera.error)


def test_the_rate_is_the_slope_of_the_delays():
    rows = [live.Row(k, 2.0 * k, 2.0 * k + 1.5 + 0.5 * k) for k in range(5)]
    assert live.falls_behind(rows) == pytest.approx(0.25)
    assert "falls behind by 0.25 s in each second" in live.summary(rows, 100)
    assert "one pattern in 2.5e+04 microseconds" in live.summary(rows, 100)
    even = [live.Row(k, 2.0 * k, 2.0 * k + 1.5) for k in range(5)]
    assert live.summary(even, 100).startswith("keeps up with the camera")
    shrinks = [live.Row(k, 2.0 * k, 2.0 * k + 1.5 - 0.1 * k) for k in range(5)]
    assert "falls behind by 0.00 s a second" in live.summary(shrinks, 100)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_command(capsys, workers):
    options = ["--scan", "9", "6", "--detector", "36", "34", "--frames", "3", "--rate", "150"]
    options += ["--settle", "0.2", "--workers", str(workers), "--n-jobs", "1"]
    assert main(["benchmark", "live", *options]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("frames of 9 x 6 x 36 x 34, bitshuffle/LZ4, 6.67e+03 microseconds")
    table = np.array([line.split() for line in said[3:6]], dtype=float)
    assert table[:, 0].tolist() == [0, 1, 2]
    assert np.allclose(table[:, 2] - table[:, 1], table[:, 3], atol=0.011)
    assert (table[:, 3] > 0.19).all()  # a frame is never done before its files have settled
    assert (table[:, 1] >= 0.36 * (1 + table[:, 0]) - 0.01).all()
    assert re.search("keeps up|falls behind", said[6])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--scan", "3", "8"], "--scan=3 must be at least 4"),
        (["--detector", "48", "8"], "--detector=8 must be at least 32"),
        (["--frames", "1"], "--frames=1 must be at least 2"),
        (["--rate", "0"], "--rate=0.0 must be"),
        (["--settle", "0.01"], "--settle=0.01 must be"),
        (["--workers", "-1"], "--workers=-1 must be"),
        (["--n-jobs", "0"], "n_jobs=0 must be"),
    ],
)
def test_what_it_refuses(capsys, options, match):
    assert main(["benchmark", "live", *options]) == 2
    assert re.search(match, capsys.readouterr().err)
