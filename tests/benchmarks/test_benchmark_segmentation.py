"""The benchmark of segmentation: scans, rules, tables, figure and command."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from py4dstem_clustering.benchmarks import methods
from py4dstem_clustering.benchmarks import segmentation as benchmark
from py4dstem_clustering.benchmarks import segmentation_figure as figure
from py4dstem_clustering.benchmarks.common import check_seeds
from py4dstem_clustering.benchmarks.methods import METHODS
from py4dstem_clustering.benchmarks.segmentation import Example, Results, Row
from py4dstem_clustering.cli.main import main

DOSE = 3000


def run(*arguments):
    return main(["benchmark", "segmentation", *(str(a) for a in arguments)])


def error_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(scope="module")
def small():
    return benchmark.make_scan(0, DOSE, easy=False, small=True)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- the command -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_three_files(tmp_path, capsys):
    out = tmp_path / "new" / "results"
    code = run("--out", out, "--small", "--seeds", 1, "--electrons", DOSE, "--quiet")
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert captured.err == ""  # no progress bar
    files = {path.name for path in out.iterdir()}
    assert files == {"segmentation.csv", "segmentation.md", "segmentation.png"}

    rows = rows_of(out / "segmentation.csv")
    titles = [method.title for method in METHODS.values()]
    assert tuple(rows[0]) == Row._fields
    assert [row["method"] for row in rows] == titles
    for row in rows:
        assert (row["electrons"], row["seed"], row["grains"]) == ("3000", "0", "2")
        assert 0 <= float(row["panoptic_quality"]) <= 1
        assert 0 <= float(row["adapted_rand_error"]) <= 1
        assert int(row["clusters"]) >= 0
        assert float(row["seconds"]) > 0
    thresholds = {row["method"]: row["threshold"] for row in rows}
    assert thresholds["paper"] == "0.9"
    assert 0 < float(thresholds["paper, best threshold"]) < 1
    assert thresholds["auto threshold"] == "auto"  # each cluster has its own
    assert {thresholds[title] for title in ("merge", "k-means", "NMF", "Ward")} == {""}
    quality = {row["method"]: float(row["panoptic_quality"]) for row in rows}
    assert quality["k-means"] > 0.9  # told the number of grains, on an easy scan
    assert quality["paper, best threshold"] >= quality["paper"]

    lines = (out / "segmentation.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "| method | told by the truth | 3,000 |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {title}" for title in titles]
    assert (out / "segmentation.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    for title in titles:
        assert f"\n{title} " in captured.out


def test_chosen_methods_doses_and_seeds(tmp_path, capsys):
    code = run(
        "--out", tmp_path, "--small", "--easy", "--first-seed", 3, "--seeds", 2, "--quiet",
        "--electrons", 500, 200, 500, "--methods", "NMF", "paper",
    )  # fmt: skip
    assert code == 0
    rows = rows_of(tmp_path / "segmentation.csv")
    assert [(r["seed"], r["electrons"], r["method"]) for r in rows] == [
        (seed, electrons, method)
        for seed in "34"
        for electrons in ("200", "500")
        for method in ("paper", "NMF")
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 scans at each dose, seeds 3 to 4"
    assert [line.split()[:2] for line in lines[2:6]] == [
        ["paper", "200"], ["paper", "500"], ["NMF", "200"], ["NMF", "500"],
    ]  # fmt: skip


def test_the_progress_bar_shows_unless_quiet(tmp_path, capsys):
    run("--out", tmp_path, "--small", "--seeds", 1, "--electrons", 100, "--methods", "nmf")
    assert "Segmenting" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "paper", "magic"], "--methods magic is not known; there are paper, "),
        (["--electrons", "100", "0"], "--electrons=0.0 must be a finite number from 1 to 1e+09"),
        (["--electrons", "nan"], "--electrons=nan"),
        (["--seeds", "0"], "--seeds=0 must be at least 1"),
        (["--first-seed", "-1"], "--first-seed=-1 must be at least 0"),
        (["--first-seed", "105", "--seeds", "1"], "on which settings were tuned"),
        (["--first-seed", "90"], "seeds 90 to 109 include some of 100 to 163"),
    ],
)
def test_wrong_arguments(tmp_path, capsys, arguments, message):
    out = tmp_path / "out"
    assert run("--out", out, "--small", *arguments) == 2
    assert message in error_line(capsys)
    assert not out.exists()


@pytest.mark.parametrize("arguments", [[], ["segmentation"], ["segmentation", "--out"]])
def test_missing_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(["benchmark", *arguments])
    assert error.value.code == 2
    assert "error: " in error_line(capsys)


def test_out_is_a_file(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run("--out", tmp_path / "file", "--small") == 2
    assert "is not a folder" in error_line(capsys)


# --- scans and seeds -------------------------------------------------------------------------


def test_tuning_seeds_are_refused():
    for first, number in ((110, 1), (100, 1), (0, 101), (0, 1000)):
        with pytest.raises(ValueError, match="tuned"):
            check_seeds(first, number, benchmark.TUNING_SEEDS)
    assert check_seeds(0, 100, benchmark.TUNING_SEEDS) == range(100)
    assert check_seeds(164, 5, benchmark.TUNING_SEEDS) == range(164, 169)


def test_a_seed_means_the_same_grains_at_every_dose(small):
    other = benchmark.make_scan(0, 50, easy=False, small=True)
    np.testing.assert_array_equal(other.labels, small.labels)
    assert small.datacube.shape == (20, 18, 40, 36)


def test_hard_scans_are_blurred_and_easy_ones_are_not(small):
    easy = benchmark.make_scan(0, DOSE, easy=True, small=True)
    assert set(np.unique(easy.shares)) == {0.0, 1.0}
    assert ((small.shares > 0.01) & (small.shares < 0.99)).any()


# --- methods ---------------------------------------------------------------------------------


def test_clusters_of_mostly_liquid_become_background():
    truth = np.array([[-1, -1, -1, 0, 0], [-1, 0, 0, 0, 0]])
    labels = np.array([[0, 0, 0, 1, 1], [2, 2, 3, 3, 0]])
    # 0: three of four liquid; 2: one of two, no more than half; 1 and 3: none.
    expected = [[-1, -1, -1, 1, 1], [2, 2, 3, 3, -1]]
    np.testing.assert_array_equal(methods.drop_liquid(labels, truth), expected)


def test_every_liquid_cluster_becomes_background():
    truth = np.full((2, 3), -1)
    assert (methods.drop_liquid(np.array([[0, 0, 1], [1, 2, 2]]), truth) == -1).all()
    no_liquid = np.zeros((1, 3), int)
    np.testing.assert_array_equal(methods.drop_liquid(no_liquid + 2, no_liquid), [[2, 2, 2]])


def test_the_direct_beam_is_left_out(small):
    mask = methods.annulus(small.datacube)
    u, v = np.indices(mask.shape)
    radius = np.hypot(u - 19.5, v - 17.5)
    assert not mask[radius < 5.5].any()
    assert mask[(radius > 6.5) & (radius < 16.5)].all()


def test_binned_counts_keep_all_counts_outside_the_direct_beam(small):
    mask = methods.annulus(small.datacube)
    binned = methods.binned_counts(small)
    expected = small.datacube.data[..., mask].sum(axis=2)
    np.testing.assert_allclose(binned.sum(axis=2), expected, rtol=1e-6)


def test_a_method_repeats(small):
    for name in ("k-means", "nmf"):
        method = METHODS[name]
        start = method.prepare(small)
        first, second = (method.run(start, small.labels, 5).labels for _ in range(2))
        np.testing.assert_array_equal(first, second)


# --- tables and figure -----------------------------------------------------------------------


def test_tables_by_hand():
    rows = [
        Row("merge", 100.0, 0, 4, 5, 0.5, 0.2, 1.0, None),
        Row("merge", 100.0, 1, 4, 4, 1.0, 0.0, 2.0, None),
        Row("merge", 100.0, 2, 4, 4, 0.9, 0.1, 6.0, None),
        *(Row("merge", 30.0, seed, 4, 1, 0.0, 0.9, 1.0, None) for seed in range(3)),
    ]
    example = Example(30.0, 0, np.zeros((2, 2), int), {}, {})
    results = Results(("merge",), rows, example)
    one = benchmark.summarise(rows)["merge", 100.0]
    np.testing.assert_allclose(one, (0.8, 0.5, 1.0, 0.1, 1 / 3, 2.0))
    assert benchmark.markdown_table(results).splitlines()[2] == (
        "| merge | nothing | 0.00 (0.00) | 0.80 (0.50) |"
    )
    lines = benchmark.text_table(results).splitlines()
    assert lines[1].split() == ["merge", "30", "0.00", "0.00", "0.900", "-3.0", "1"]
    assert lines[2].split() == ["merge", "100", "0.80", "0.50", "0.100", "+0.3", "2"]
    assert len({len(line) for line in lines}) == 1


def test_the_example_is_typical_among_scans_of_many_grains():
    def example(seed, n_grains, quality):
        return Example(100.0, seed, np.arange(n_grains)[None], {}, {"merge": quality})

    scans = [example(*one) for one in ((0, 2, 0.5), (1, 6, 0.9), (2, 8, 0.2), (3, 7, 0.6))]
    scans.append(example(4, 3, 0.1))
    assert benchmark.typical_example(scans).seed == 3  # of 0.2, 0.6 and 0.9
    assert benchmark.typical_example(scans[:1]).seed == 0


def test_colours_tell_matches():
    truth = np.array([[0, 0, 1, 1]])
    colors = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    found = figure.matched_colors(np.array([[1, 1, 0, 2]]), truth, colors)
    assert found[1].tolist() == [1, 0, 0]
    assert found[0].tolist() == found[2].tolist() == [0.62] * 3  # half of a grain matches nothing
    assert figure.matched_colors(np.full((1, 4), -1), truth, colors).shape == (0, 3)


def test_border_lines():
    lines = figure.border_lines(np.array([[0, 0], [0, 1]]))
    assert {tuple(line.ravel()) for line in lines} == {(0.5, 0.5, 1.5, 0.5), (0.5, 0.5, 0.5, 1.5)}
