"""The benchmark of orientations: it runs, and its tables say what its rows say."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from py4dstem_clustering import simulate_scan
from py4dstem_clustering.benchmarks import orientation as benchmark
from py4dstem_clustering.benchmarks import orientation_dynamical as dynamical
from py4dstem_clustering.cli.main import main


@pytest.mark.slow
def test_command(tmp_path, capsys):
    folder = tmp_path / "out"
    arguments = ["--out", str(folder), "--small", "--seeds", "1", "--quiet"]
    assert main(["benchmark", "orientation", *arguments, "--electrons", "3000"]) == 0
    said = capsys.readouterr()
    assert "1 scans at each dose, seeds 0 to 0" in said.out
    assert said.err == ""
    with (folder / "orientation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["source"] for row in rows} == set(benchmark.SOURCES)
    assert np.median([float(row["refined"]) for row in rows]) < 2
    strain = [float(row["e_xx"]) for row in rows if row["source"] == "averages"]
    assert np.median(np.abs(strain)) < 0.5
    assert "| 3,000 | averages |" in (folder / "orientation.md").read_text(encoding="utf-8")


def test_nothing_found_is_an_error(tmp_path, capsys, monkeypatch):
    def liquid(*shapes, **options):
        return simulate_scan(*shapes, **{**options, "n_grains": 0})

    monkeypatch.setattr("py4dstem_clustering.benchmarks.orientation.simulate_scan", liquid)
    arguments = ["--out", str(tmp_path), "--small", "--seeds", "1", "--quiet"]
    assert main(["benchmark", "orientation", *arguments, "--electrons", "100"]) == 2
    assert "no grain was found at any dose" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--first-seed", "35"], "seeds 35 to 44 include some of 40 to 59"),
        (["--seeds", "0"], "--seeds"),
        (["--electrons", "0"], "--electrons"),
    ],
)
def test_bad_arguments(tmp_path, capsys, arguments, message):
    assert main(["benchmark", "orientation", "--out", str(tmp_path / "x"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def row(source, electrons, **values):
    fields = dict.fromkeys(benchmark.Row._fields, 0.0)
    return benchmark.Row(**{**fields, "source": source, "electrons": electrons, **values})


def test_tables():
    rows = [
        row("averages", 100.0, matched=angle, refined=angle / 10, e_xx=0.1, theta=-0.2)
        for angle in (1.0, 2.0, 3.0, float("nan"))
    ]
    rows.append(row("single patterns", 1000.0, matched=7.0, e_xx=float("nan")))
    table = benchmark.orientation_table(rows).splitlines()
    assert table[2].startswith("| 100 | 2.50 / 153.4 / 25 % | 0.25 / 153.0 / 25 % | - | - |")
    assert table[3] == "| 1,000 | - | - | 7.00 / 7.0 / 100 % | 0.00 / 0.0 / 0 % |"
    strain = benchmark.strain_table(rows).splitlines()
    assert "| 100 | averages | +0.100 ± 0.000 | +0.000 ± 0.000 |" in strain[2]
    assert strain[-1].startswith("| 1,000 | single patterns | - |")


def average(verdict, matched, refined, runner_up=60.0):
    return dynamical.Row(
        "gold", 1000.0, "own", 0, 1, 40, matched, refined, runner_up, verdict, 0.9, 50.0, 8, 0.95
    )


def test_table_of_verdicts():
    rows = [
        average("sure", 1.0, 0.2),
        average("sure", 6.0, 7.0),
        average("ambiguous", 2.0, 60.0, 0.3),
        average("not indexed", float("nan"), float("nan")),
    ]
    lines = dynamical.verdict_table(rows).splitlines()
    assert len(lines) == 3
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert cells[:4] == ["gold", "1,000", "own", "4"]
    assert cells[4] == "4.00 / 50 %"
    assert cells[5] == "33.50 / 162.0 / 75 %"
    assert cells[6:] == ["50 %", "1 of 2", "1 of 3"]


@pytest.mark.slow
def test_dynamical_patterns():
    rows = dynamical.run_benchmark(
        [10000.0], range(1), materials=["silicon"], small=True, progress_bar=False
    )
    assert {row.labels for row in rows} == {"true", "own"}
    assert all(np.isfinite(row.refined) for row in rows)
    assert not any(row.verdict == "sure" and row.refined > 5 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--dynamical", "--materials", "gold", "lead"], "'lead' must be among gold, "),
        (["--materials", "gold"], "--materials needs --dynamical"),
    ],
)
def test_unknown_materials(tmp_path, capsys, arguments, match):
    assert main(["benchmark", "orientation", "--out", str(tmp_path / "x"), *arguments]) == 2
    assert match in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_tuning_seeds_of_dynamical_patterns_are_refused(tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "x"), "--dynamical", "--first-seed", "101"]
    assert main(["benchmark", "orientation", *arguments]) == 2
    assert "seeds 101 to 110 include some of 100 to 105" in capsys.readouterr().err
