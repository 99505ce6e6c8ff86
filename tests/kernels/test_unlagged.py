"""A scan whose camera lags, read without its lag."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

from py4dstem_clustering.kernels.lag import Lag
from py4dstem_clustering.kernels.unlagged import WithoutLag, search_lag

SHAPE = (9, 7, 6, 5)


def recorded(truth, lag):
    """Patterns of a camera that leaves a share of each in the next, position by position."""
    out = np.moveaxis(truth.copy(), lag.axis, 0)[:: lag.direction]
    for i in range(1, len(out)):
        out[i] = (1 - lag.decay) * out[i] + lag.decay * out[i - 1]
    return np.moveaxis(out[:: lag.direction], 0, lag.axis)


@pytest.mark.parametrize("lag", [Lag(a, d, 0.6) for a in (0, 1) for d in (1, -1)], ids=str)
def test_the_lag_is_gone_whatever_rows_are_read(lag):
    truth = np.random.default_rng(0).uniform(1, 100, SHAPE)
    scan = WithoutLag(recorded(truth, lag), lag)
    assert scan.shape == SHAPE
    assert scan.dtype == np.float64
    np.testing.assert_allclose(scan[:], truth, rtol=1e-9)
    for rows in (slice(0, 1), slice(3, 5), slice(8, 9), slice(2, 2)):
        np.testing.assert_array_equal(scan[rows], scan[:][rows])
        np.testing.assert_array_equal(scan[rows, 2:5], scan[:][rows, 2:5])


def test_counts_become_float32_and_files_are_read_in_rows():
    lag = Lag(0, 1, 0.5)
    counts = np.random.default_rng(1).poisson(9, SHAPE).astype(np.uint16)
    expected = counts.astype(float)
    expected[1:] = 2 * expected[1:] - expected[:-1]
    for data in (counts, da.from_array(counts, chunks=(2, 3, 6, 5))):
        found = WithoutLag(data, lag)[4:8]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[4:8], rtol=1e-6)


def test_lost_frames_and_those_behind_them_stay():
    lag = Lag(1, 1, 0.5)
    data = np.random.default_rng(2).uniform(1, 2, SHAPE)
    data[3, 2] = 0
    data[5, 4, 1, 1] = np.nan
    found = WithoutLag(data, lag)[:]
    for place in ((3, 2), (3, 3)):
        np.testing.assert_array_equal(found[place], data[place])
    np.testing.assert_allclose(found[3, 4], 2 * data[3, 4] - data[3, 3])
    assert np.argwhere(np.isnan(found)).tolist() == [[5, 4, 1, 1], [5, 5, 1, 1]]


def test_no_lag_in_noise():
    rng = np.random.default_rng(3)
    assert search_lag(rng.standard_normal((20, 18, 4)).astype(np.float32)) is None
