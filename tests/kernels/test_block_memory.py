"""Rows that stay packed, blocks that are filled again, and sums of whole numbers."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from py4dstem_clustering.kernels.averaging import averaging_core
from py4dstem_clustering.kernels.blas import sum_counts
from py4dstem_clustering.kernels.block_memory import PackedRows, SpareBlocks
from py4dstem_clustering.kernels.blocks import iterate_blocks, read_window, workers
from py4dstem_clustering.kernels.features import features_core
from py4dstem_clustering.kernels.noise import noise_moments
from py4dstem_clustering.kernels.similarity import similarity_core

QUIET = {"report": lambda rows: None}


class Row:
    """A row that can be unpacked; the threads that do it are noted."""

    def __init__(self, patterns, threads):
        self._patterns, self._threads = patterns, threads

    def unpack(self, columns, out):
        self._threads.add(threading.current_thread())
        if (self._patterns[columns] == 9999).any():
            raise ValueError(f"9999 in {np.argwhere(self._patterns == 9999)[0].tolist()}")
        out[...] = self._patterns[columns]


class Packed:
    """A scan whose rows are packed, but for those that are `unpacked`."""

    ndim = 4

    def __init__(self, data, unpacked=()):
        self._data, self._unpacked = data, unpacked
        self.shape, self.dtype = data.shape, data.dtype
        self.threads = set()
        self.n_read = 0

    def __getitem__(self, key):
        self.n_read += 1
        return self._data[key].copy()

    def packed_row(self, row):
        return None if row in self._unpacked else Row(self._data[row], self.threads)


def scan(dtype=np.uint16, shape=(9, 21, 20, 18), mean=3.0, seed=0):
    rng = np.random.default_rng(seed)
    means = rng.gamma(0.5, 2 * mean, (3, *shape[2:]))
    grain = np.indices(shape[:2]).sum(axis=0) // 5 % 3
    return rng.poisson(means[grain]).astype(dtype)


KERNELS = {
    "features": lambda data, **options: features_core(
        data, q_mask=None, rank=2, centre=None, **QUIET, **options
    ),
    "averages": lambda data, **options: [
        averaging_core(data, np.indices(data.shape[:2])[0] // 2 - 1, **QUIET, **options)
    ],
    "similarity": lambda data, **options: [
        similarity_core(
            data, q_mask=None, sigma=0, subtract_mean=True, **QUIET, **options
        )
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("unpacked", [(), (4,)])
def test_packed_rows_give_the_bits_of_an_array(name, dtype, unpacked):
    data = scan(dtype)
    expected = KERNELS[name](data, n_jobs=1)
    for n_jobs, n_rows in ((1, None), (3, 2), (2, 5)):
        found = KERNELS[name](Packed(data, unpacked), n_jobs=n_jobs, n_rows=n_rows)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_threads_that_work_unpack():
    packed = Packed(scan())
    KERNELS["similarity"](packed, n_jobs=2)
    assert packed.n_read == 0
    assert packed.threads
    assert threading.main_thread() not in packed.threads


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_that_of_the_first_wrong_pattern(name, seed):
    data = scan(seed=seed)
    data[3, 17, 4, 5] = data[3, 18, 1, 1] = data[6, 0, 2, 2] = data[8, 20, 0, 0] = 9999
    packed = Packed(data)
    if name == "features":  # which looks at some rows first, to find hot pixels
        packed._data = np.where(data == 9999, 9999, data)
    with pytest.raises(ValueError, match=r"9999 in \[17, 4, 5\]"):
        KERNELS[name](packed, n_jobs=3)


def test_windows_are_unpacked_to_the_buffer():
    data = scan(shape=(9, 70, 8, 7))
    buffer = np.zeros((3, 50, *data.shape[2:]), data.dtype)
    with workers(2) as run:
        found = read_window(Packed(data), (2, 5), (4, 54), buffer=buffer, run=run)
        assert found is buffer
        np.testing.assert_array_equal(found, data[2:5, 4:54])
        for other in (data, Packed(data, unpacked=(3,))):
            found = read_window(other, (2, 5), (4, 54), buffer=buffer, run=run)
            np.testing.assert_array_equal(found, data[2:5, 4:54])


@pytest.mark.parametrize("top", [3, 9000, 40000])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_noise_of_packed_counts(dtype, top):
    data = np.minimum(scan(shape=(9, 30, 12, 11), mean=top / 4), 30000)
    data[data == 9999] = 9998  # which stands for an error here
    data = np.minimum(data, np.iinfo(dtype).max if dtype != np.float32 else 30000).astype(dtype)
    expected = noise_moments(data.astype(np.int32), n_jobs=1, **QUIET)
    for given_data in (data, Packed(data)):
        found = noise_moments(given_data, n_jobs=2, **QUIET)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_blocks_that_nobody_uses_are_filled_again():
    spare = SpareBlocks()
    first = spare.take((4, 3), np.uint16)
    place = first.ctypes.data
    second = spare.take((4, 3), np.uint16)
    assert second.ctypes.data != place
    part = first[1:, 2]
    del first
    assert spare.take((4, 3), np.uint16).ctypes.data != place  # `part` still uses it
    del part, second
    spare = SpareBlocks()
    place = spare.take((4, 3), np.uint16).ctypes.data
    assert spare.take((2, 3), np.uint16).ctypes.data == place
    assert spare.take((2, 3), np.int16).ctypes.data != place
    assert spare.take((5, 3), np.uint16).shape == (5, 3)


@pytest.mark.parametrize("keep", [False, True])
def test_blocks_that_the_loop_keeps_are_not_overwritten(tmp_path, keep):
    data = scan(shape=(30, 6, 10, 9))
    np.save(tmp_path / "scan.npy", data)
    kept, places = [], set()
    for start, rows in iterate_blocks(np.load(tmp_path / "scan.npy", mmap_mode="r"), n_rows=4):
        np.testing.assert_array_equal(rows, data[start : start + 4])
        kept.append(rows[1:, 0] if keep else None)
        places.add(rows.ctypes.data)
    assert keep or len(places) <= 3
    for i, rows in enumerate(kept):
        if keep:
            np.testing.assert_array_equal(rows, data[4 * i + 1 : 4 * i + 4, 0])


def test_packed_rows_look_like_an_array():
    data = scan()
    rows = PackedRows([Row(row, set()) for row in data[2:5]], data.shape[1:], data.dtype)
    assert (len(rows), *rows.shape) == (3, 3, *data.shape[1:])
    assert rows.dtype == data.dtype
    np.testing.assert_array_equal(rows[1, 3:8], data[3, 3:8])
    np.testing.assert_array_equal(rows[2, 19:30], data[4, 19:30])


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from(["?", "u1", "i1", "u2", "i2", ">u2", "f4"]),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2**16)), min_size=0, max_size=12),
    st.integers(0, 2**32 - 1),
)
def test_sums_of_counts_are_exact(dtype, parts, seed):
    rng = np.random.default_rng(seed)
    kind = np.dtype("u2") if dtype == "f4" else np.dtype(dtype)
    low, high = (0, 1) if dtype == "?" else (np.iinfo(kind).min, np.iinfo(kind).max)
    groups = [rng.integers(max(low, -most), min(high, most) + 1, (n, 7)) for n, most in parts]
    expected = sum((group.sum(axis=0) for group in groups), np.zeros(7, int))
    found = sum_counts((group.astype(dtype) for group in groups), 7)
    np.testing.assert_array_equal(found, expected)
