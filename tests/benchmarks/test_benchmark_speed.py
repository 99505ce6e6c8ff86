"""The benchmark of speed: it runs, and what it compares is the same. Speed is not asserted."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import reference

from py4dstem_clustering.benchmarks import slow
from py4dstem_clustering.benchmarks import speed as benchmark_speed
from py4dstem_clustering.cli.main import main
from py4dstem_clustering.kernels.unit_vectors import radial_weight


def test_command(capsys):
    arguments = ["--positions", "16", "--detector", "24", "--turns", "1", "--n-jobs", "2"]
    assert main(["benchmark", "speed", *arguments]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    for text in (
        "BLAS: ",
        "GFLOP/s",
        "scan 4 x 4 x 24 x 24, uint16; medians of 1",
        "similarity           published",
        "similarity, blur 2   this package",
        "filter               slow loop",
        "averages             reading once",
        "blur 2               scipy",
        "of the roofline",
        "growth               32 x 32 positions",
    ):
        assert text in said.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--positions", "4"], "--positions"),
        (["--detector", "2"], "--detector"),
        (["--turns", "0"], "--turns"),
        (["--n-jobs", "0"], "n_jobs"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    assert main(["benchmark", "speed", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_published_code_finds_the_same_similarity():
    data, _ = benchmark_speed.make_scan(25, 20)
    mask = benchmark_speed.annulus(20)
    places = benchmark_speed.slow_places(5)
    expected = reference.similarity(data, mask, 2)
    found = slow.published_similarity(data, places, mask, 2)
    np.testing.assert_allclose(found, [expected[place] for place in places], atol=1e-5)


def test_the_slow_loop_is_the_published_filter():
    data, _ = benchmark_speed.make_scan(25, 20)
    options = {"sigma": 3, "radius": 4, "corr_range": (0.85, 0.95), "edge": 2}
    weight = radial_weight((20, 20), 2)
    features = {
        place: slow.unit(slow.filter_feature(data[place], weight, 3)) for place in np.ndindex(5, 5)
    }
    places = benchmark_speed.slow_places(5)
    found = benchmark_speed.slow_filter(data, places, features, weight)
    expected = reference.correlative_filter(data, **options)
    np.testing.assert_allclose(found, [expected[place] for place in places], rtol=1e-4)


def test_sums_of_labels():
    data, labels = benchmark_speed.make_scan(100, 6)
    labels[2:4] = -1
    expected = [data[labels == k].sum(axis=0) for k in range(labels.max() + 1)]
    np.testing.assert_array_equal(slow.label_sums(data, labels), expected)


def test_ways_are_compared_by_pattern_and_in_turn():
    order = []
    ways = [benchmark_speed.Way(name, lambda name=name: order.append(name), 2) for name in "ab"]
    machine = benchmark_speed.Machine("cpu", 1, "blas", 1, bandwidth=1e9, flops=1e9)
    rows = list(benchmark_speed.run_tasks([benchmark_speed.Task("task", ways, 1, 1)], machine, 3))
    assert order == list("abababab")
    assert [row.way for row in rows] == ["a", "b"]
    assert rows[0].ratio == 1
    assert rows[0].share > 0
    assert np.isnan(rows[1].share)


@pytest.mark.slow
def test_another_package_in_a_process_of_its_own(tmp_path, capsys):
    (tmp_path / "kikuchipy.py").write_text(
        "import numpy as np\n"
        "class signals:\n"
        "    class EBSD:\n"
        "        def __init__(self, data): self.data = data\n"
        "        def get_neighbour_dot_product_matrices(self, window, dtype_out):\n"
        "            return np.zeros(self.data.shape[:2])\n"
        "class filters:\n"
        "    Window = staticmethod(lambda name, shape: name)\n"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    small = ["--positions", "16", "--detector", "24", "--turns", "1"]
    assert main(["benchmark", "speed", *small, "--kikuchipy", str(python)]) == 0
    assert "similarity           kikuchipy" in capsys.readouterr().out
    for bad in (sys.executable, str(tmp_path / "none")):
        assert main(["benchmark", "speed", *small, "--kikuchipy", bad]) == 2
        assert "--kikuchipy" in capsys.readouterr().err
