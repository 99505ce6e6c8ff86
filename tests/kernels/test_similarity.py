"""The similarity: pixels taken in chunks, strips of columns, rounding, memory."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import reference
from conftest import make_scan

from py4dstem_clustering.kernels import blocks, similarity
from py4dstem_clustering.kernels.noise import Noise
from py4dstem_clustering.kernels.similarity import Chunks, similarity_core, similarity_need


def run(data, q_mask=None, sigma=0, n_jobs=2, **options):
    return similarity_core(
        data,
        q_mask=q_mask,
        sigma=sigma,
        subtract_mean=True,
        n_jobs=n_jobs,
        report=lambda rows: None,
        **options,
    )


def disk(shape, radius):
    u, v = np.indices(shape)
    return np.hypot(u - shape[0] / 2, v - shape[1] / 2) < radius


@pytest.mark.parametrize("shape", [(32, 32), (12, 11), (13, 11), (6, 9)])
@pytest.mark.parametrize("kind", ["disk", "scattered", "one", "none", "all"])
def test_chunks_hold_the_pixels_of_the_mask_once_and_else_zeros(shape, kind):
    rng = np.random.default_rng(0)
    mask = {
        "disk": disk(shape, min(shape) / 2.2),
        "scattered": rng.random(shape) < 0.2,
        "one": np.arange(shape[0] * shape[1]).reshape(shape) == 17,
        "none": np.zeros(shape, bool),
        "all": np.ones(shape, bool),
    }[kind]
    x = rng.permutation(np.arange(1, 2 * mask.size + 1)).astype(np.float32).reshape(2, -1)
    chunks = Chunks(mask)
    assert mask.sum() <= chunks.size <= 1.25 * mask.sum()
    out = np.full((2, chunks.size), np.nan, np.float32)
    assert chunks.take(x, out=out) is out
    chunks.clear(out)
    for row, pattern in zip(out, x, strict=True):
        np.testing.assert_array_equal(np.sort(row[row != 0]), np.sort(pattern[mask.ravel()]))


@pytest.mark.parametrize("sigma", [0, 1])
@pytest.mark.parametrize("masked", [True, False])
def test_chunks_and_strips_equal_single_pixels_and_the_whole_row(monkeypatch, sigma, masked):
    data = make_scan((7, 23), (24, 24))
    q_mask = disk((24, 24), 9) if masked else None
    noise = Noise(1.0, 0.0)
    monkeypatch.setattr(similarity, "at_once", lambda number, pixels: number)
    monkeypatch.setattr(similarity, "_STRIP_COLUMNS", 100)
    expected = run(data, q_mask, sigma, n_jobs=1), run(data, q_mask, sigma, n_jobs=1, noise=noise)
    for strip, tile, n_rows, n_jobs in [(4, 1, 1, 1), (5, 2, 2, 2), (16, 8, 3, 3), (1, 3, 7, 9)]:
        monkeypatch.setattr(similarity, "_STRIP_COLUMNS", strip)
        monkeypatch.setattr(similarity, "_COLUMNS_AT_ONCE", tile)
        options = {"n_rows": n_rows, "n_jobs": n_jobs}
        np.testing.assert_array_equal(run(data, q_mask, sigma, **options), expected[0])
        found = run(data, q_mask, sigma, noise=noise, **options)
        np.testing.assert_array_equal(found, expected[1])

    # The order of the pixels in a sum changes its rounding, whichever BLAS adds them up.
    class Single(Chunks):
        def __init__(self, q_mask):
            self._width, self._chosen = 1, np.flatnonzero(q_mask)
            self.size, self._border = self._chosen.size, np.empty(0, np.float32)

    monkeypatch.setattr(similarity, "Chunks", Single)
    atol = 2 * rounding(24 * 24)
    np.testing.assert_allclose(run(data, q_mask, sigma), expected[0], rtol=0, atol=atol)


def rounding(pixels):
    """How far a similarity may be from its exact value, on any processor: `similarity_core`."""
    return 4 * np.sqrt(min(pixels, similarity.FLOAT32_TERMS)) * 2.0**-24


@pytest.mark.parametrize("detector", [(5, 7), (24, 23), (64, 60), (130, 120)])
@pytest.mark.parametrize("masked", [True, False])
def test_rounding_is_what_was_promised(detector, masked):
    data = make_scan((6, 9), detector, seed=detector[0])
    q_mask = disk(detector, min(detector) / 2.2) if masked else None
    expected = reference.similarity(data, q_mask)
    found = run(data, q_mask)
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding(np.prod(detector)))


def test_no_pixel_at_all_is_like_nothing():
    found = run(make_scan((2, 3), (8, 8)), np.zeros((8, 8), bool))
    assert np.nanmax(np.abs(found)) == 0


@pytest.mark.parametrize("n_columns", [1, 3, 4, 17, 64, 200])
@pytest.mark.parametrize("n_jobs", [1, 3, 64])
@pytest.mark.parametrize("pixels", [1, 36864, 2**20])
def test_strips_cover_a_row_and_share_one_column(n_columns, n_jobs, pixels):
    strips = similarity._strips(n_columns, pixels, n_jobs)
    assert strips[0].start == 0
    assert strips[-1].stop == n_columns
    assert all(a.stop == b.start + 1 for a, b in pairwise(strips))


def test_long_sums_are_exact_where_every_rounding_goes_one_way():
    # A background that is everywhere the same, and so its square.
    rng = np.random.default_rng(0)
    data = np.where(rng.random((2, 3, 192, 192)) < 0.01, 60, 1).astype(np.uint16)
    x = data.reshape(2, 3, -1).astype(float)
    x -= x.mean(axis=2, keepdims=True)
    x /= np.linalg.norm(x, axis=2, keepdims=True)
    found = run(data)
    np.testing.assert_allclose(found[0, :, 5], (x[0] * x[1]).sum(axis=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["u2", "f4", "f8"])
@pytest.mark.parametrize("sigma", [0, 2])
@pytest.mark.parametrize("masked", [True, False])
def test_memory_is_what_was_announced(monkeypatch, dtype, sigma, masked):
    monkeypatch.setattr(blocks, "_OVERHEAD", 2**18)  # memory of Python; none for stacks of threads
    data = np.random.default_rng(0).poisson(3, (5, 40, 96, 96)).astype(dtype)
    for noise, wanted in (
        (None, data),
        (Noise(1.0, 0.0), data),
        (None, data.transpose(0, 1, 3, 2)),
    ):
        q_mask = disk(data.shape[2:], 40) if masked else None
        need = similarity_need(wanted, q_mask, noise is not None, 2)
        run(wanted, q_mask, sigma, noise=noise)
        tracemalloc.start()
        out = run(wanted, q_mask, sigma, noise=noise)
        peak = tracemalloc.get_traced_memory()[1] - out.nbytes
        tracemalloc.stop()
        assert peak <= need.fixed + 5 * need.row
