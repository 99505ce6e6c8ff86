"""The benchmark of overlaps: its scans are what they say, its measures are right, and it runs."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from conftest import first_quick

from py4dstem_clustering.benchmarks import overlaps as benchmark
from py4dstem_clustering.benchmarks.overlap_samples import KINDS, SCATTERING, make_overlaps
from py4dstem_clustering.benchmarks.overlaps import Row
from py4dstem_clustering.cli.main import main

SMALL = {"scan_shape": (26, 22), "detector_shape": (32, 30)}


def test_the_command(tmp_path, capsys):
    code = main([
        "benchmark", "overlaps", "--out", str(tmp_path), "--small", "--quiet", "--seeds", "1",
        "--electrons", "3000", "--kinds", "stacked", "--scattering", "kinematical",
    ])  # fmt: skip
    captured = capsys.readouterr()
    assert code == 0, captured.err
    with (tmp_path / "overlaps.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == Row._fields
    titles = [method.title for method in benchmark.METHODS.values()]
    assert [(r["kind"], r["electrons"], r["method"]) for r in rows] == [
        ("stacked", "3000", title) for title in titles
    ]
    assert all(0 <= float(row["quality"]) <= 1 for row in rows)
    text = (tmp_path / "overlaps.md").read_text(encoding="utf-8")
    assert "| kind | scattering | electrons | find_overlaps() |" in text
    assert "| stacked | kinematical | 3,000 |" in text


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--kinds", "film x", "--kinds x is not known; there are stacked, core-shell, film"),
        ("--scattering", "x", "--scattering x is not known"),
        ("--methods", "x", "--methods x is not known"),
        ("--first-seed", "100", "on which settings were tuned"),
    ],
)
def test_wrong_options(tmp_path, capsys, option, value, message):
    assert main(["benchmark", "overlaps", "--out", str(tmp_path), option, *value.split()]) != 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", first_quick(KINDS))
def test_samples(kind):
    """The truth belongs together, and the dose changes nothing but noise."""
    few, many = make_overlaps(kind, "kinematical", (100, 1e5), 3, **SMALL)
    np.testing.assert_array_equal(few.supports, many.supports)
    np.testing.assert_array_equal(few.scattered, many.scattered)
    assert few.datacube.data.sum(axis=(2, 3)).mean() == pytest.approx(100, rel=0.05)
    assert (few.supports.sum(axis=2) > 1).any()
    shares = many.shares
    np.testing.assert_allclose(shares.sum(axis=2), many.supports.any(axis=2), atol=1e-9)
    # Kinematical grains scatter in proportion to thickness.
    inside = many.supports.any(axis=2)
    if len(set(many.materials)) == 1:
        close = np.abs(shares - many.shares_of_thickness)[inside].max()
        assert close < 0.15
    labels = many.labels
    np.testing.assert_array_equal(labels >= 0, inside)
    own = np.take_along_axis(many.supports, np.maximum(labels, 0)[..., None], 2)[..., 0]
    assert own[inside].all()


@pytest.mark.parametrize("scattering", first_quick(SCATTERING))
def test_patterns_are_sums(scattering):
    """Where one grain is alone, its pattern without the direct beam is what was measured."""
    (sample,) = make_overlaps("stacked", scattering, [1e6], 3, **SMALL)
    truth = benchmark.disks_only(sample.pure)
    single = sample.supports.sum(axis=2) == 1
    cosines = []
    for k in range(len(sample.pure)):
        own = single & sample.supports[..., k]
        if own.sum() > 30:
            mean = sample.datacube.data[own].mean(axis=0, dtype=float)
            (found,) = benchmark.disks_only(mean[None])
            cosines.append(found @ truth[k] / np.linalg.norm(found) / np.linalg.norm(truth[k]))
    assert np.median(cosines) > 0.95


def test_measures():
    truth = np.zeros((8, 7, 3), dtype=bool)
    truth[1:5, 1:6, 0] = truth[3:7, 2:6, 1] = True  # the third is empty
    assert benchmark.support_quality(truth, truth) == 1
    assert benchmark.support_quality(truth[..., ::-1], truth) == 1
    assert benchmark.support_quality(truth[..., :1], truth) == pytest.approx(2 / 3)
    assert benchmark.support_quality(~truth[..., :1], truth) == 0
    half = truth[..., :2].copy()
    half[1:3, :, 0] = False  # 10 of 20 positions: not more than half
    assert benchmark.support_quality(half, truth) == pytest.approx(0.5)
    pairs = benchmark.match_supports(truth[..., [1, 0]], truth)
    assert pairs == [(0, 1), (1, 0)]
    shares = np.where(truth, 1.0, 0) / np.maximum(truth.sum(axis=2, keepdims=True), 1)
    found = shares[..., [1, 0]]
    assert benchmark.share_error(found, shares, truth, pairs) == pytest.approx(0)
    assert benchmark.share_error(found + 0.1, shares, truth, pairs) == pytest.approx(0.1)
    # A grain that was not found has the share 0.
    assert benchmark.share_error(found, shares, truth, pairs[:1]) == pytest.approx(np.sqrt(0.125))
    assert np.isnan(benchmark.share_error(found, shares, truth[..., :1], pairs[:1]))
