"""Rows that are kept in memory or in a temporary file come back as they were."""

from __future__ import annotations

import os
import tempfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from py4dstem_clustering.kernels import kept_rows
from py4dstem_clustering.kernels.kept_rows import KeptRows


def rows_of(kind, n=6, shape=(7, 5), seed=0):
    rng = np.random.default_rng(seed)
    top = {"8 bits": 255, "16 bits": 65535, "more": 1e6, "negative": 9, "fractions": 9}[kind]
    rows = rng.integers(0, top, (n, *shape), endpoint=True).astype(np.float32)
    rows[:, 0, 0] = top
    if kind == "negative":
        rows[:, 1, 1] = -3
    if kind == "fractions":
        rows[:, 1, 1] = 0.5
    return rows


KINDS = ("8 bits", "16 bits", "more", "negative", "fractions")


@pytest.mark.parametrize("limit", [0, 150, 10**6])
@pytest.mark.parametrize("whole_numbers", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_row_comes_back_bit_for_bit(kind, whole_numbers, limit):
    rows = rows_of(kind)
    given = rows.copy()
    with KeptRows(limit, whole_numbers) as kept:
        for row in given:
            kept.add(row)
            row[:] = -1  # a row that was added may be used for something else
        assert len(kept) == len(rows)
        assert kept.is_complete
        for i in (3, 0, 5, 5, 1):
            found = kept.read(i)
            assert found.dtype == np.float32
            assert found.tobytes() == rows[i].tobytes()
        assert (kept._file is None) == (limit > 10**5)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.lists(st.floats(-1e5, 1e5, width=32) | st.integers(0, 300), min_size=1, max_size=6),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 40),
)
def test_any_numbers_come_back(rows, limit):
    arrays = [np.array(row, dtype=np.float32) for row in rows]
    with KeptRows(limit, whole_numbers=True) as kept:
        for row in arrays:
            kept.add(row)
        for i, row in enumerate(arrays):
            np.testing.assert_array_equal(kept.read(i), row)


def test_small_whole_numbers_take_one_or_two_bytes():
    with KeptRows(10**6, whole_numbers=True) as kept:
        for kind in KINDS:
            kept.add(rows_of(kind)[0])
        sizes = [row.dtype.itemsize for row in kept._rows]
    assert sizes == [1, 2, 4, 4, 4]


def test_threads_read_from_the_file_at_once():
    rows = [rows_of("16 bits", seed=seed, n=1, shape=(50, 40))[0] for seed in range(40)]
    with KeptRows(0, whole_numbers=True) as kept, ThreadPoolExecutor(4) as pool:
        for row in rows:
            kept.add(row)
        order = np.random.default_rng(0).integers(0, 40, 400)
        for i, found in zip(order, pool.map(kept.read, order), strict=True):
            np.testing.assert_array_equal(found, rows[i])


def test_memory_stays_within_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tracemalloc.start()
    try:
        with KeptRows(200_000, whole_numbers=False) as kept:
            for row in rows_of("fractions", n=1, shape=(100, 100)).repeat(50, axis=0):
                kept.add(row)
            held = tracemalloc.get_traced_memory()[0]
            # The 50 rows themselves, and at most the limit and half of a row.
            assert held < 50 * 40_000 + 220_000
    finally:
        tracemalloc.stop()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="Linux lists open files there")
def test_nothing_is_left_after_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    numbers = []

    def work():
        with KeptRows(0, whole_numbers=False) as kept:
            kept.add(rows_of("fractions")[0])
            numbers.append(kept._file.fileno())
            assert str(tmp_path) in os.readlink(f"/proc/self/fd/{numbers[0]}")
            assert not list(tmp_path.iterdir())  # nothing is left even if Python is killed
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not os.path.exists(f"/proc/self/fd/{numbers[0]}")


def test_without_room_for_the_file_it_is_not_complete(monkeypatch):
    class Full:
        def write(self, content):
            raise OSError(28, "No space left on device")

        def flush(self):
            pass

        def close(self):
            pass

    monkeypatch.setattr(kept_rows.tempfile, "TemporaryFile", Full)
    with KeptRows(150, whole_numbers=False) as kept:
        for row in rows_of("fractions"):
            kept.add(row)
        assert not kept.is_complete
        assert len(kept) == 0


def test_a_file_that_was_cut_is_an_error():
    with KeptRows(0, whole_numbers=False) as kept:
        kept.add(rows_of("fractions")[0])
        kept._file.truncate(20)
        with pytest.raises(OSError, match="temporary file has become shorter"):
            kept.read(0)
