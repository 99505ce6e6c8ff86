"""Checks of arguments, where the methods do not reach every branch."""

from __future__ import annotations

import dask.array as da
import numpy as np
import py4DSTEM
import pytest

from py4dstem_clustering.checks import (
    THRESHOLD_NAMES,
    check_data,
    check_edge,
    check_mask,
    check_name,
    resolve_r_mask,
)


@pytest.mark.parametrize(("edge", "detector"), [(1, (3, 3)), (8, (14, 11)), (5, (30, 10))])
def test_an_edge_that_leaves_too_little(edge, detector):
    with pytest.raises(ValueError, match="leaves no pixel"):
        check_edge(edge, detector)


def test_an_edge_that_leaves_enough():
    assert check_edge(1, (4, 3)) == 1


@pytest.mark.parametrize("name", THRESHOLD_NAMES)
def test_nothing_stands_out_of_a_flat_or_missing_map(name):
    assert not resolve_r_mask(name, np.full((3, 3), 0.5, np.float32)).any()
    assert not resolve_r_mask(name, np.full((1, 1), np.nan, np.float32)).any()


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
