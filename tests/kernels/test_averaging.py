"""Averages: sums in float32 that are exact, tiles, memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from py4dstem_clustering.kernels import averaging, blocks
from py4dstem_clustering.kernels.averaging import averaging_core, averaging_need


def run(data, labels, n_jobs=2, **options):
    return averaging_core(data, labels, n_jobs=n_jobs, report=lambda rows: None, **options)


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "u2", "i2", ">u2"])
@pytest.mark.parametrize("large", [False, True])
def test_small_whole_numbers_equal_float64_to_the_bit(dtype, large):
    rng = np.random.default_rng(0)
    low, high = (0, 2) if dtype == "?" else (np.iinfo(dtype).min, np.iinfo(dtype).max + 1)
    low = high - 3 if large and dtype != "?" else low
    data = rng.integers(low, high, (9, 301, 3, 5)).astype(dtype)
    labels = rng.integers(-1, 3, data.shape[:2])
    labels[2:5] = 1  # more members than are added before the sum goes on in float64
    found = run(data, labels)
    np.testing.assert_array_equal(found, run(data.astype(np.float64), labels))
    for n_rows in (1, 4):
        np.testing.assert_array_equal(run(data, labels, n_rows=n_rows, n_jobs=1), found)


def test_as_many_numbers_as_are_added_in_float32_are_exact():
    assert averaging.EXACT_TERMS * np.iinfo(np.uint16).max <= 2**24
    assert averaging.EXACT_TERMS * -np.iinfo(np.int16).min <= 2**24


def test_sums_of_floats_keep_float64_and_leave_out_what_is_missing():
    x = np.array([[1e8, 1, np.nan], [1, 1, 2], [-1e8, 1, 4]], np.float32)
    found = run(x.reshape(1, 3, 1, 3), np.zeros((1, 3), int))
    np.testing.assert_array_equal(found, np.float32([[[1 / 3, 1, 3]]]))


@pytest.mark.parametrize("by_row", [False, True])
def test_groups_hold_every_member_once_in_order(by_row):
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(-1, 4, (7, 12)), 3, axis=1)[:, 1:-1]
    labels[3] = 2  # longer than a group
    groups = averaging._members_by_label(labels, 8, by_row)
    assert sorted(groups) == [0, 1, 2, 3]
    for label, of_label in groups.items():
        members = []
        for group in of_label:
            places = [(i, j) for i, run in group for j in range(run.start, run.stop)]
            assert 0 < len(places) <= 8
            assert not by_row or len({i for i, _ in places}) == 1
            members += places
        assert members == list(zip(*np.nonzero(labels == label), strict=True))


@pytest.mark.parametrize("dtype", ["u2", "u4", "f4", "f8"])
@pytest.mark.parametrize("moved", [False, True])
def test_memory_is_what_was_announced(monkeypatch, dtype, moved):
    monkeypatch.setattr(blocks, "_OVERHEAD", 2**18)  # memory of Python; none for stacks of threads
    rng = np.random.default_rng(0)
    data = rng.poisson(3, (5, 150, 96, 96)).astype(dtype)
    labels = rng.integers(0, 3, data.shape[:2])
    shifts = rng.normal(size=(5, 150, 2)) if moved else None
    run(data[:1], labels[:1])
    tracemalloc.start()
    out = run(data, labels, shifts=shifts)
    peak = tracemalloc.get_traced_memory()[1] - out.nbytes
    tracemalloc.stop()
    need = averaging_need(data, 3, 2)
    assert peak <= need.fixed + 5 * need.row
