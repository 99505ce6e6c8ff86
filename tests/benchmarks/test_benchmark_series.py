"""The benchmark of series: it runs, and its numbers are those of known cases."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from py4dstem_clustering import simulate_series
from py4dstem_clustering.benchmarks import series as benchmark
from py4dstem_clustering.cli.main import main


@pytest.mark.slow
def test_it_runs(tmp_path, capsys):
    pytest.importorskip("pymatgen")
    arguments = ["--out", str(tmp_path / "out"), "--seeds", "1", "--electrons", "3000", "--small"]
    assert main(["benchmark", "series", *arguments, "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "| electrons a pattern | IDF1 | MOTA |" in printed
    with (tmp_path / "out" / "series.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["idf1_of_true"]) == 1
    assert float(row["drift"]) < 0.3
    with (tmp_path / "out" / "particles.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3
    assert (tmp_path / "out" / "series.md").read_text() in printed


def test_tuning_seeds_are_refused(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--seeds", "2", "--first-seed", "99"]
    assert main(["benchmark", "series", *arguments]) == 2
    assert "on which settings were tuned" in capsys.readouterr().err


def test_growing_frames():
    truth = simulate_series(n_frames=20, n_particles=6, drift=0, jitter=0, seed=1)
    growing = [k for k in range(6) if truth.growth_rates[k] > 0]
    assert growing
    for k in growing:
        frames = benchmark.growing_frames(truth, k)
        areas, times = truth.areas[frames, k], truth.times[frames]
        assert len(frames) >= 3
        np.testing.assert_allclose(
            np.diff(areas) / np.diff(times), truth.growth_rates[k], rtol=0.05
        )


def test_tables():
    rows = [
        benchmark.SeriesRow(1000.0, k, 0.8, 0.9 - 0.1 * k, 1.0, 1.0, 0.1 + 0.2 * k, 0.5)
        for k in range(2)
    ]
    table = benchmark.series_table(rows)
    assert "| 1,000 | 0.85 (0.80) | 0.80 (0.80) | 1.00 (1.00) | 0.20 (0.30) |" in table
    particles = [
        benchmark.ParticleRow(1000.0, 0, 0, 10.0, 11.0, 2.0, 2.5),
        benchmark.ParticleRow(1000.0, 0, 1, 0.0, np.nan, 2.0, np.nan),
    ]
    assert "| 1,000 | 10.0 (10.0) | 1 | 0.50 (0.50) | 1 |" in benchmark.particle_table(particles)
    assert "| - | 0 | - | 0 |" in benchmark.particle_table(particles[1:])
