"""The options of clustering: one object, checked once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from py4dstem_clustering import DIRECTIONS, Similarity
from py4dstem_clustering.grains.options import check_options

SHAPES = (3, 4), (5, 6)


def ones():
    """A similarity of 1, NaN where the neighbour lies outside the scan."""
    inside = np.pad(np.ones(SHAPES[0]), 1, constant_values=np.nan)
    return np.stack([inside[1 + dx : 4 + dx, 1 + dy : 5 + dy] for dx, dy in DIRECTIONS], axis=2)


@pytest.mark.parametrize(
    ("given", "method", "threshold"),
    [
        ({}, "merge", None),
        ({"n_clusters": 3}, "merge", None),
        ({"threshold": 1}, "grow", 1.0),
        ({"sigma": 2}, "grow", 0.9),
        ({"subtract_mean": False, "n_clusters": 3}, "grow", None),
        ({"similarity": ones()}, "grow", 0.9),
        ({"method": "grow"}, "grow", 0.9),
        ({"method": "merge", "threshold": "auto"}, "merge", "auto"),
    ],
)
def test_what_is_given_decides_the_method(given, method, threshold):
    options = check_options(*SHAPES, **given)
    assert (options.method, options.threshold) == (method, threshold)
    assert options.similarity is None or isinstance(options.similarity, Similarity)


def test_values_are_plain_and_do_not_change():
    options = check_options(
        *SHAPES, method="merge", min_size=np.int64(2), rank=np.int32(7), r_mask=1,
        drop_background=np.False_,
    )  # fmt: skip
    assert (options.min_size, options.rank, options.r_mask) == (2, 7, 1.0)
    assert [type(value) for value in (options.min_size, options.rank, options.r_mask)] == [
        int, int, float,
    ]  # fmt: skip
    assert options.drop_background is False
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.min_size = 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_size": 0},
        {"n_clusters": 0},
        {"threshold": -2, "method": "grow"},
        {"rank": 99},
        {"lag": -0.1},
        {"r_mask": "none"},
        {"sigma": -1},
        {"q_mask": np.ones((2, 2), bool)},
    ],
    ids=lambda given: next(iter(given)),
)
def test_mistakes_are_found_in_one_order(wrong):
    later = {"q_mask": np.ones((9, 9), bool)}
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}"):
        check_options(*SHAPES, **{**later, **wrong})


def test_lag_is_a_share():
    assert check_options(*SHAPES).lag == check_options(*SHAPES, lag=None).lag == "auto"
    assert check_options(*SHAPES, lag=np.float32(0.5)).lag == 0.5
    assert check_options(*SHAPES, lag=0).lag == 0.0
    with pytest.raises(ValueError, match=r"lag=2.1 must be below 1: .* 2.1 positions is lag=0.68"):
        check_options(*SHAPES, lag=2.1)
    with pytest.raises(ValueError, match="lag='yes' must be a share from 0 to below 1, or 'auto'"):
        check_options(*SHAPES, lag="yes")
    with pytest.raises(TypeError, match="lag"):
        check_options(*SHAPES, lag=[0.5])
    with pytest.raises(ValueError, match=r"lag=0.5 belongs to merging"):
        check_options(*SHAPES, lag=0.5, threshold=0.9)
