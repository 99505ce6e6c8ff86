"""Checks of arguments, where the methods do not reach every branch."""

from __future__ import annotations

import dask.array as da
import numpy as np
import py4DSTEM
import pytest

from py4dstem_clustering.base.checks import (
    THRESHOLD_NAMES,
    check_compression,
    check_data,
    check_edge,
    check_mask,
    check_memory,
    check_n_jobs,
    check_name,
    check_number,
    resolve_r_mask,
)
from py4dstem_clustering.kernels.blocks import MemoryNeed


@pytest.mark.parametrize(("edge", "detector"), [(1, (3, 3)), (8, (14, 11)), (5, (30, 10))])
def test_an_edge_that_leaves_too_little(edge, detector):
    with pytest.raises(ValueError, match="leaves no pixel"):
        check_edge(edge, detector)


def test_an_edge_that_leaves_enough():
    assert check_edge(1, (4, 3)) == 1


def test_workers_of_a_client_run_one_thread_a_task_by_default():
    assert check_n_jobs(None) is None
    assert check_n_jobs(None, client="a client") == 1
    assert check_n_jobs(3, client="a client") == check_n_jobs(3) == 3


@pytest.mark.parametrize("name", THRESHOLD_NAMES)
def test_nothing_stands_out_of_a_flat_or_missing_map(name):
    assert not resolve_r_mask(name, np.full((3, 3), 0.5, np.float32)).any()
    assert not resolve_r_mask(name, np.full((1, 1), np.nan, np.float32)).any()
    rounded = np.float32([[1, 1 - 2**-24, 1]])  # one pattern, whose cosines differ by rounding
    assert not resolve_r_mask(name, rounded).any()


def test_a_number_must_be_exceeded():
    assert resolve_r_mask(0.5, np.array([[0.5, 0.6, np.nan]])).tolist() == [[False, True, False]]


@pytest.mark.parametrize("name", ["a\0", ".", "..", "dim7", "\ud800"])
def test_names_that_a_file_cannot_hold(name):
    with pytest.raises(ValueError, match=r"cannot be stored|no valid text"):
        check_name(name)


def test_masks_in_py4dstem_objects():
    mask = np.array([[True, False, True]])
    for item in (mask, mask.tolist(), py4DSTEM.RealSlice(mask), py4DSTEM.DiffractionSlice(mask)):
        np.testing.assert_array_equal(check_mask("m", item, (1, 3), "positions"), mask)


def test_dask_arrays_of_unknown_shape():
    x = da.ones((4, 3, 2, 2), chunks=2)
    with pytest.raises(ValueError, match="unknown shape"):
        check_data(x[x.mean(axis=(1, 2, 3)) > 0])


# --- memory and compression ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        (1000, 9), (np.int64(150), 1), ("1000", 9), ("1kB", 9), ("1 KB", 9), ("0.5 kB", 4),
        ("1 KiB", 9), ("2 MB", 19999), (".2 kb ", 1), ("250 b", 2),
        ("1.5 GiB", (3 * 2**29 - 50) // 100), ("1 TB", 10**10 - 1),
    ],
)  # fmt: skip
def test_rows_within_a_memory(value, rows):
    assert check_memory(value, lambda: MemoryNeed(50, 100)) == rows
    assert check_memory(value) == 1


def test_the_largest_need_counts():
    needs = (lambda: MemoryNeed(0, 10), lambda: MemoryNeed(200, 50), lambda: MemoryNeed(900))
    assert check_memory(1000, *needs) == 16
    with pytest.raises(ValueError, match="max_memory=899 must be at least 900 bytes"):
        check_memory(899, *needs)
    assert check_memory(None, lambda: pytest.fail("not asked")) is None


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (0, ValueError, "max_memory=0 must be above 0"),
        (-5, ValueError, "max_memory=-5 must be above 0"),
        ("0 GB", ValueError, "must be above 0"),
        ("", ValueError, "max_memory='' must be a number of bytes, or a text such as '1 GB'"),
        ("much", ValueError, "max_memory='much' must be"),
        ("1 GBit", ValueError, "max_memory='1 GBit' must be"),
        ("-1 GB", ValueError, "max_memory='-1 GB' must be"),
        ("1e9", ValueError, "max_memory='1e9' must be"),
        ("nan", ValueError, "max_memory='nan' must be"),
        ("1 GB 2", ValueError, "max_memory='1 GB 2' must be"),
        (1e9, TypeError, "max_memory=1000000000.0 must be .*not float"),
        (True, TypeError, "max_memory=True must be .*not bool"),
        ([1], TypeError, "not list"),
    ],
)
def test_what_is_no_memory(value, error, match):
    with pytest.raises(error, match=match):
        check_memory(value)


def test_compressions(monkeypatch):
    assert check_compression(None) == {}
    assert check_compression("gzip") == {"compression": "gzip", "shuffle": True}
    assert check_compression("bitshuffle")["compression"] == 32008
    for wrong in ("zip", 3, "", True):
        with pytest.raises(ValueError, match="must be None or one of 'gzip', 'lzf', 'bitshuffle'"):
            check_compression(wrong)
    monkeypatch.setattr("py4dstem_clustering.base.checks.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package hdf5plugin; pip install hdf5plugin"):
        check_compression("bitshuffle")


@pytest.mark.parametrize(
    ("limits", "rule"),
    [
        ((), "a finite number"),
        ((0,), "a finite number of at least 0"),
        ((0, 2), "a finite number from 0 to 2"),
    ],
)
def test_the_rule_for_a_number(limits, rule):
    with pytest.raises(ValueError, match=f"x=nan must be {rule}$"):
        check_number("x", float("nan"), *limits)
