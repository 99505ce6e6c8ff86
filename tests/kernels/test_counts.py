"""Patterns of small whole numbers: the quick ways have the bits of the general ones."""

from __future__ import annotations

import numpy as np
import pytest

from py4dstem_clustering.kernels import binning, similarity
from py4dstem_clustering.kernels.binning import Binning
from py4dstem_clustering.kernels.blocks import workers
from py4dstem_clustering.kernels.similarity import similarity_core


def counts(detector, dtype=np.uint16, top=40, scan=(3, 70), seed=0):
    rng = np.random.default_rng(seed)
    data = rng.integers(0, top, (*scan, *detector), endpoint=True).astype(dtype)
    data[1, 5] = 0  # a lost frame
    return data


def disk(detector):
    u, v = np.indices(detector)
    return np.hypot(u - 0.4 * detector[0], v - 0.5 * detector[1]) < 0.4 * min(detector)


def binned(data, q_mask=None):
    bins = Binning(data, q_mask)
    with workers(2) as run:
        return bins, *bins.bin_and_sum(data, None, run, True)


@pytest.mark.parametrize("detector", [(20, 24), (96, 90), (80, 120), (77, 150), (160, 41)])
@pytest.mark.parametrize(
    ("dtype", "top"), [(np.uint8, 255), (np.uint16, 40), (np.uint16, 65535), (">u2", 9000)]
)
@pytest.mark.parametrize("masked", [False, True])
def test_bins_of_counts(monkeypatch, detector, dtype, top, masked):
    data = counts(detector, dtype, top)
    if masked:
        data[:, :, 3, 4] = np.iinfo(dtype).max  # a hot pixel
        data[1, 5] = 0
    q_mask = disk(detector) if masked else None
    bins, *found = binned(data, q_mask)
    took = []
    real = Binning._bin_counts

    def noted(self, patterns, out):
        took.append(real(self, patterns, out))
        return took[-1]

    monkeypatch.setattr(Binning, "_bin_counts", noted)
    binned(data, q_mask)
    even = detector[0] % len(bins._along_u) == 0
    assert bool(took) == even
    assert all(took) or masked or top > 255
    monkeypatch.setattr(Binning, "_bin_counts", lambda *args: False)
    _, *expected = binned(data, q_mask)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    total = data.reshape(-1, detector[0] * detector[1]).sum(axis=0, dtype=np.int64)
    np.testing.assert_array_equal(found[2].sum(axis=0), total)
    np.testing.assert_array_equal(np.argwhere(found[1]), [[1, 5]])


def test_large_counts_take_the_general_way():
    data = counts((96, 90), top=65535)
    bins, out, *_ = binned(data)
    assert bins._width_u > 1
    assert not bins._bin_counts(data[0, :4], np.empty((4, out.shape[2]), np.float32))


def test_wide_bins_stay_exact():
    assert binning._MAX_WIDTH * np.iinfo(np.uint16).max < 2**24


@pytest.mark.parametrize("dtype", ["?", "u1", "u2", ">u2"])
@pytest.mark.parametrize("top", [1, 250, 65535])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("subtract_mean", [False, True])
def test_similarity_of_counts(monkeypatch, dtype, top, masked, subtract_mean):
    detector = (36, 40)
    top = min(top, 1 if dtype == "?" else np.iinfo(dtype).max)
    data = counts(detector, dtype, top, scan=(5, 31))

    def run():
        return similarity_core(
            data,
            q_mask=disk(detector) if masked else None,
            sigma=0,
            subtract_mean=subtract_mean,
            n_jobs=2,
            report=lambda rows: None,
        )

    found = run()
    monkeypatch.setattr(similarity._Preparation, "_write_counts", lambda *args: False)
    np.testing.assert_array_equal(found, run())


def test_patterns_too_bright_for_an_exact_mean_take_the_general_way():
    preparation = similarity._Preparation((20, 30), None, 0, True)
    out = np.full((2, 600), -1, np.float32)
    bright = np.full((2, 600), 28_000, np.uint16)
    assert not preparation._write_counts(bright, out)
    assert (out == -1).all()
    assert preparation._write_counts(bright // 2, out)
    assert not out.any()
