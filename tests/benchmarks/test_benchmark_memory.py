"""Benchmark of memory: runs on tiny data, and refuses what does not fit."""

from __future__ import annotations

import os

import h5py
import numpy as np
import pytest

from py4dstem_clustering.benchmarks import memory as benchmark_memory
from py4dstem_clustering.benchmarks.memory import pieces_of_scan
from py4dstem_clustering.cli.main import main


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="getrusage")
def test_it_prints_a_line_for_each_step(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_memory.tempfile, "tempdir", str(tmp_path))
    command = ["benchmark", "memory", "--scan", "10", "12", "--detector", "48", "44"]
    assert main([*command, "--max-memory", "200 MB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-5:]] == [
        "step", "filter", "lowrank", "merge", "averages",
    ]  # fmt: skip
    for line in lines[-4:]:
        assert all(float(number) >= 0 for number in line.split()[1:])
    assert not list(tmp_path.iterdir())


def test_the_scan_is_the_one_asked_for(tmp_path):
    benchmark_memory.write_scan(tmp_path / "scan.h5", (40, 5), (36, 34))
    with h5py.File(tmp_path / "scan.h5") as file:
        data = file["data"]
        assert (data.shape, data.dtype, data.chunks) == ((40, 5, 36, 34), np.uint16, (1, 1, 36, 34))
        assert data[:].any(axis=(2, 3)).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--scan", "3", "8"], "--scan=3 must be at least 4"),
        (["--detector", "48", "8"], "--detector=8 must be at least 32"),
        (["--max-memory", "much"], "max_memory='much' must be a number of bytes"),
        (["--scan", "1000000", "1000000"], "takes .* GB in .*take smaller ones"),
    ],
)
def test_what_it_refuses(capsys, options, match):
    assert main(["benchmark", "memory", *options]) == 2
    import re

    assert re.search(match, capsys.readouterr().err)


def test_each_position_has_noise_of_its_own():
    scan = np.zeros((40, 37, 32, 33), np.uint16)
    for row, start, piece in pieces_of_scan((40, 37), (32, 33)):
        scan[row, start : start + len(piece)] = piece
    electrons = scan.sum(axis=(2, 3))
    assert abs(electrons.mean() - 1000) < 5
    assert abs(electrons.std() / np.sqrt(1000) - 1) < 0.15
    flat = scan.reshape(-1, 32 * 33)
    assert len(np.unique(flat, axis=0)) == len(flat)
    # Side by side, copies of one position are as unlike as noise makes them.
    difference = (flat[:-1].astype(float) - flat[1:]).var(axis=1)
    assert 1.5 < np.median(difference) / flat.mean() < 3
