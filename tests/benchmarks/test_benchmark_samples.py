"""The benchmark of kinds of sample: it runs, and its table is that of known rows."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from py4dstem_clustering import SAMPLE_KINDS
from py4dstem_clustering.benchmarks import samples as benchmark
from py4dstem_clustering.benchmarks.methods import METHODS
from py4dstem_clustering.benchmarks.samples import COMPARED, Row
from py4dstem_clustering.cli.main import main


def run(*arguments):
    return main(["benchmark", "samples", *(str(a) for a in arguments)])


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_chosen_kinds_methods_and_doses(tmp_path, capsys):
    code = run(
        "--out", tmp_path / "out", "--small", "--seeds", 2, "--first-seed", 1, "--quiet",
        "--electrons", 3000, 500, "--kinds", "Stacked", "bent-foil", "--methods", "ward", "merge",
    )  # fmt: skip
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert captured.err == ""
    rows = rows_of(tmp_path / "out" / "samples.csv")
    assert tuple(rows[0]) == Row._fields
    assert [(r["kind"], r["seed"], r["electrons"], r["method"]) for r in rows] == [
        (kind, seed, electrons, method)
        for kind in ("bent-foil", "stacked")
        for seed in "12"
        for electrons in ("500", "3000")
        for method in ("merge", "Ward")
    ]
    for row in rows:
        assert 0 <= float(row["panoptic_quality"]) <= 1
        if row["kind"] == "bent-foil":
            assert row["grains"] == "1"
            # Told that there is one grain and no background, Ward cannot miss it.
            assert row["method"] == "merge" or float(row["panoptic_quality"]) == 1
    text = (tmp_path / "out" / "samples.md").read_text(encoding="utf-8")
    assert text in captured.out
    assert "| kind | electrons | merge | Ward |" in text
    assert "2 scans of 2 kinds at each dose, seeds 1 to 2" in captured.out


@pytest.mark.slow
@pytest.mark.parametrize("kind", SAMPLE_KINDS)
def test_every_method_takes_every_kind(kind):
    rows = benchmark.run_benchmark(
        [kind], [1000.0], range(1), tuple(METHODS), small=True, progress_bar=False
    )
    assert [row.method for row in rows] == [method.title for method in METHODS.values()]
    assert all(0 <= row.panoptic_quality <= 1 for row in rows)


def test_the_table_by_hand():
    rows = [
        Row("hole", "merge", dose, seed, 4, 5, quality, 0.2, 1.0, None)
        for dose, seed, quality in ((100.0, 0, 0.5), (100.0, 1, 1.0), (10000.0, 0, 0.25))
    ]
    assert benchmark.markdown_table(rows, ("merge",)).splitlines() == [
        "| kind | electrons | merge |",
        "| --- | ---: | ---: |",
        "| hole | 100 | 0.75 (0.50) |",
        "| hole | 10,000 | 0.25 (0.25) |",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kinds", "hole", "jelly"], "--kinds jelly is not known; there are random-film, "),
        (["--methods", "magic"], "--methods magic is not known; there are paper, "),
        (["--electrons", "0"], "--electrons=0.0 must be a finite number from 1 to 1e+09"),
        (["--first-seed", "99", "--seeds", "2"], "on which settings were tuned"),
    ],
)
def test_wrong_arguments(tmp_path, capsys, arguments, message):
    assert run("--out", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_seed_means_the_same_sample_at_every_dose():
    low, high = (benchmark.make_sample("stacked", 3, e, small=True) for e in (50, 5000))
    np.testing.assert_array_equal(low.labels, high.labels)
    assert low.datacube.shape == (20, 18, 40, 36)
    assert benchmark.make_sample("hole", 3, 10, small=False).datacube.shape == (64, 56, 64, 60)
    assert set(COMPARED) <= set(METHODS)
