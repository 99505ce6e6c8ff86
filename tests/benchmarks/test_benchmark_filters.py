"""The benchmark of filters: it runs, and its numbers are those of known cases."""

from __future__ import annotations

import numpy as np
import pytest

from py4dstem_clustering.benchmarks import filters as benchmark
from py4dstem_clustering.cli.main import main


@pytest.mark.slow
def test_it_runs(tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "out"), "--seeds", "1", "--electrons", "1000", "--small"]
    assert main(["benchmark", "filters", *arguments, "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "| particles in liquid | 1,000 |" in printed
    assert (tmp_path / "out" / "filters.md").read_text() in printed
    assert (tmp_path / "out" / "filters.png").stat().st_size > 10000


def test_tuning_seeds_are_refused(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--seeds", "2", "--first-seed", "99"]
    assert main(["benchmark", "filters", *arguments]) == 2
    assert "on which settings were tuned" in capsys.readouterr().err


def test_kinds_are_checked(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--kinds", "film", "foam"]
    assert main(["benchmark", "filters", *arguments]) == 2
    assert "--kinds foam is not known" in capsys.readouterr().err


def test_only_the_kinds_that_are_named():
    rows = benchmark.run_benchmark([300], range(1), ["film"], small=True, progress_bar=False)
    assert {row.kind for row in rows} == {"film"}
    assert [row.method for row in rows] == [
        "low rank", "correlative", "correlative, auto", "NLPAR, best", "SVD, same rank",
        benchmark.AVERAGES,
    ]  # fmt: skip


def test_nlpar_equals_loop():
    counts = np.random.default_rng(0).poisson(3, (5, 4, 7, 6))
    counts[2:] += 4
    x = counts.reshape(5, 4, -1).astype(float)
    n = x.shape[2]
    (found,) = benchmark.nlpar(counts, [0.8], reach=2)

    def near(i, j):
        for a in range(max(0, i - 2), min(5, i + 3)):
            for b in range(max(0, j - 2), min(4, j + 3)):
                yield a, b

    def noise(i, j):
        others = [p for p in near(i, j) if p != (i, j)]
        return min(((x[i, j] - x[p]) ** 2).mean() / 2 for p in others)

    for i, j in ((0, 0), (2, 1), (4, 3)):
        total, weights = np.zeros(n), 0.0
        for p in near(i, j):
            s = noise(i, j) + noise(*p)
            d = ((x[i, j] - x[p]) ** 2).sum()
            excess = 0 if p == (i, j) else max((d - n * s) / (s * np.sqrt(2 * n)), 0)
            weight = np.exp(-excess / 0.8**2)
            total += weight * x[p]
            weights += weight
        np.testing.assert_allclose(found[i, j].ravel(), total / weights, rtol=1e-4)


def test_svd_of_low_rank_data_is_exact():
    rng = np.random.default_rng(1)
    counts = rng.uniform(1, 2, (5, 4, 2)) @ rng.uniform(0, 9, (2, 30))
    found = benchmark.poisson_svd(counts.reshape(5, 4, 6, 5), 2)
    np.testing.assert_allclose(found, counts.reshape(5, 4, 6, 5), rtol=1e-4)


def test_deepest_position():
    labels = np.full((7, 9), -1)
    labels[1:6, 2:7], labels[0, 0] = 1, 0
    assert benchmark.deepest(labels) == (3, 4)


def test_table():
    row = benchmark.FilterRow("film", 1000.0, 0, "low rank", 0.2, 1.1, 1.2, 7, 0.95)
    rows = [row, row._replace(seed=1, error=0.3), row._replace(method="correlative", error=0.9)]
    rows.append(row._replace(method="true grain averages", small=2.0))
    table = benchmark.filter_table(rows)
    assert (
        "| film | 1,000 | 0.25 (0.30) | 0.90 (0.90) | 0.20 (0.20) | 1.10 (1.10) | 1.20 (1.20) "
        "| 0.95 (0.95) | 2.00 (2.00) |" in table
    )
