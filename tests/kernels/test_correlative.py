"""The short cuts of the filter, against the slow way; what it does is tested with all kernels."""

import tracemalloc

import dask.array as da
import numpy as np
import pytest
import reference
from conftest import first_quick
from scipy.ndimage import gaussian_filter

from py4dstem_clustering.kernels import blocks
from py4dstem_clustering.kernels.correlative import correlative_core, correlative_need
from py4dstem_clustering.kernels.unit_vectors import radial_weight, unit_vectors

OPTIONS = {"sigma": 3, "radius": 4, "corr_range": (0.2, 0.9), "edge": 4}


def make_scan(scan, detector, seed=0):
    """Two grains of counts."""
    rng = np.random.default_rng(seed)
    mean = rng.gamma(0.5, 8, (2, *detector))
    grain = (np.indices(scan).sum(axis=0) // 5) % 2
    return rng.poisson(mean[grain]).astype(np.uint16)


def run(data, n_jobs=2, n_rows=None, **options):
    out = np.empty(data.shape, np.float32)
    options = {**OPTIONS, **options}
    correlative_core(data, out, **options, n_jobs=n_jobs, n_rows=n_rows, report=lambda n: None)
    return out


def assert_close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.nanmax(np.abs(b)))


@pytest.mark.parametrize("detector", [(60, 52), (61, 52), (60, 53), (47, 61)])
@pytest.mark.parametrize("kind", ["noise", "hot", "lines"])
def test_folded_patterns_correlate_as_they_are(detector, kind):
    data = np.random.default_rng(1).poisson(3, (6, *detector)).astype(np.uint16)
    if kind == "hot":
        data[:, 9, 11] = 60000
    elif kind == "lines":
        data[:, :, ::4] += 50  # nearly gone when blurred
    vectors = unit_vectors(detector, 3, 4)
    assert vectors.size < data[0].size / 2
    unit = np.empty((6, vectors.size), np.float32)
    vectors.write(data.reshape(6, -1), unit)
    weight = radial_weight(detector, 4)
    blurred = gaussian_filter(data.astype(float), (0, 3, 3))
    mean = (weight * blurred).sum(axis=(1, 2)) / weight.sum()
    exact = (weight * (blurred - mean[:, None, None])).reshape(6, -1)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose(unit @ unit.T, exact @ exact.T, atol=1e-5)


@pytest.mark.parametrize("scan", [(3, 2), (14, 3), (9, 21), (3, 50)])
@pytest.mark.parametrize("missing", [False, True])
def test_the_published_footprint_equals_loop(scan, missing):
    data = make_scan(scan, (36, 31)).astype(np.float32)  # more than one piece of pixels
    if missing:
        data[2, 1, 3, 5] = data[0, 0] = np.nan
        data[:, :, 30, 30] = np.inf
    expected = reference.correlative_filter(data, **OPTIONS)
    assert_close(run(data), expected, 3e-5)
    assert_close(run(data, sigma=0), reference.correlative_filter(data, **OPTIONS | {"sigma": 0}))


@pytest.mark.parametrize("missing", [False, True])
def test_any_grouping_of_rows_gives_the_same_bits(missing):
    data = make_scan((15, 53), (36, 31)).astype(np.float32) * np.float32(0.1)
    if missing:
        data[6, 4, 3, 5] = data[0, 0] = np.nan
    expected = run(data, n_jobs=1)
    lazy = da.from_array(data, chunks=(4, -1, -1, -1))  # rows are kept in a window that goes round
    for n_rows in (1, 2, 5, 7, 15):
        for n_jobs in (1, 4):
            options = {"n_jobs": n_jobs, "n_rows": n_rows}
            np.testing.assert_array_equal(run(data, **options), expected)
            np.testing.assert_array_equal(run(lazy, **options), expected)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "i8", "f2", "f4", "f8", ">u2", ">f4", ">i4"])
def test_every_order_and_layout_gives_the_same_bits(dtype):
    data = (make_scan((6, 9), (30, 28)) % 200).astype(dtype)
    expected = run(data.astype(data.dtype.newbyteorder("=")), sigma=0)
    assert_close(expected, run(data.astype(np.float32), sigma=0), 1e-6)
    np.testing.assert_array_equal(run(data, sigma=0), expected)
    strided = np.ascontiguousarray(data.transpose(3, 1, 0, 2)).transpose(2, 1, 3, 0)
    np.testing.assert_array_equal(run(strided, sigma=0), expected)
    apart = np.repeat(data, 2, axis=-1)[..., ::2]
    np.testing.assert_array_equal(run(apart, sigma=0), expected)


class Source:
    """A scan of ones that is not kept in memory."""

    def __init__(self, dtype):
        self.shape, self.dtype = (60, 40, 64, 64), np.dtype(dtype)

    def __getitem__(self, rows):
        return np.ones((len(range(*rows.indices(60))), *self.shape[1:]), self.dtype)


class Nowhere:
    def __setitem__(self, rows, values):
        pass


@pytest.mark.parametrize("dtype", first_quick(["u2", "f4", "u1", "f8"], 2))
@pytest.mark.parametrize("n_rows", first_quick([4, 1, 11]))
@pytest.mark.parametrize("sigma", [0, 3])
def test_memory_is_what_it_says(dtype, n_rows, sigma, monkeypatch):
    monkeypatch.setattr(blocks, "_PIECE_BYTES", 2**16)  # a part of the memory that is not counted
    data = Source(dtype)
    options = {**OPTIONS, "sigma": sigma}
    report = {"n_jobs": 1, "n_rows": n_rows, "report": lambda n: None}
    need = correlative_need(data, sigma, 4, 4, 1)
    said = need.fixed - blocks._OVERHEAD + n_rows * need.row
    tracemalloc.start()
    try:
        correlative_core(data, Nowhere(), **options, **report)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.6 * said < peak <= said


def test_memory_of_an_array_that_is_not_copied():
    data = np.ones((30, 40, 64, 64), np.float32)
    out = np.empty(data.shape, np.float32)
    for x in (data, data.transpose(0, 1, 3, 2)):
        need = correlative_need(x, 3, 4, 4, 1)
        tracemalloc.start()
        try:
            correlative_core(x, out, **OPTIONS, n_jobs=1, n_rows=2, report=lambda n: None)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak <= need.fixed - blocks._OVERHEAD + 2 * need.row
