"""Each kernel against a slow loop written from the formula."""

from __future__ import annotations

import os
import platform
import threading
import time
import tracemalloc

import numpy as np
import pytest
import reference
from conftest import make_scan
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from threadpoolctl import threadpool_info

from py4dstem_clustering.kernels import blas, blocks, blur
from py4dstem_clustering.kernels.averaging import averaging_core
from py4dstem_clustering.kernels.correlative import correlative_core
from py4dstem_clustering.kernels.neighbours import footprint
from py4dstem_clustering.kernels.similarity import (
    DIRECTIONS,
    asymmetry,
    similarity_core,
    similarity_mean,
)
from py4dstem_clustering.kernels.unit_vectors import radial_weight, unit_vectors

FILTER = {"sigma": 1.2, "radius": 2, "corr_range": (0.3, 0.9), "edge": 2}


def no_report(rows):
    pass


def run_similarity(data, q_mask=None, sigma=0, subtract_mean=True, n_jobs=2):
    return similarity_core(
        data,
        q_mask=q_mask,
        sigma=sigma,
        subtract_mean=subtract_mean,
        n_jobs=n_jobs,
        report=no_report,
    )


def run_filter(data, n_jobs=2, **options):
    out = np.empty(data.shape, np.float32)
    correlative_core(data, out, **{**FILTER, **options}, n_jobs=n_jobs, report=no_report)
    return out


def run_averages(data, labels, n_jobs=2):
    return averaging_core(data, labels, n_jobs=n_jobs, report=no_report)


def q_mask_of(data):
    u, v = np.indices(data.shape[2:])
    return (u > 2) & (v < data.shape[3] - 1)


def labels_of(data):
    x, y = np.indices(data.shape[:2])
    return ((2 * x + 3 * y) // 12) % 4 - 1


def assert_close(result, expected, tolerance=1e-5):
    """Equal to `tolerance` of the largest magnitude, and missing at the same places."""
    assert result.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
    scale = np.nanmax(np.abs(expected), initial=1e-30)
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * scale)


@pytest.fixture
def tiny_blocks(monkeypatch):
    """Blocks of a single row."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)


# --- matrix products --------------------------------------------------------------------------


@pytest.fixture(params=["scipy", "numpy"])
def either_blas(request, monkeypatch):
    """The BLAS of scipy, which stands in for NumPy's where that is slow, and NumPy's."""
    monkeypatch.setattr(blas, "_sgemm", None)
    if request.param == "scipy":
        monkeypatch.setattr(blas, "_sgemm", blas._scipy_sgemm())
        assert blas._sgemm is not None


def test_scipys_blas_is_taken_where_numpys_does_not_know_the_processor():
    def says(*pools):
        found = [{"filepath": f"/x/{a}.libs/lib.so", "architecture": b} for a, b in pools]
        return blas._numpy_is_slow(found)

    assert says(("numpy", "Prescott"), ("scipy", "SkylakeX"))
    assert not says(("numpy", "Haswell"), ("scipy", "SkylakeX"))
    assert not says(("numpy", "Prescott"), ("scipy", "Katmai"))
    assert not says(("numpy", "Prescott"))
    # One BLAS for both, as in conda; MKL, which names no architecture; Accelerate, not listed.
    assert not says(("lib", "Prescott"))
    assert not blas._numpy_is_slow([{"filepath": "/x/lib/mkl.so"}])
    assert not says()


AVX2 = {"AVX2": True, "FMA3": True, "AVX512_SKX": False}
AVX512 = AVX2 | {"AVX512_SKX": True}


def remedy(*pools, instructions=AVX512):
    found = [{"filepath": f"/x/{a}.libs/lib.so", "architecture": b} for a, b in pools]
    return blas._remedy(found, instructions)


def test_the_remedy_for_a_slow_blas_names_a_core_type_that_the_processor_has(monkeypatch):
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    slow = ("numpy", "Prescott")
    mixed = remedy(slow, ("scipy", "SkylakeX"))
    assert "OPENBLAS_CORETYPE=SkylakeX" in mixed
    assert "the BLAS of scipy" in mixed
    alone = remedy(slow, ("scipy", "Prescott"), instructions=AVX2)
    assert "OPENBLAS_CORETYPE=Haswell" in alone
    assert "scipy" not in alone
    assert remedy(slow, instructions=AVX2 | {"FMA3": False}) == ""  # Prescott may be right
    assert remedy(slow, instructions={}) == ""
    assert remedy(("numpy", "Haswell"), ("scipy", "Prescott")) == ""
    assert remedy() == ""


def test_no_remedy_for_a_core_type_that_was_chosen_by_hand(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    assert remedy(("numpy", "Prescott")) == ""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="sets of Intel")
def test_numpy_says_what_the_processor_has():
    assert {"AVX2", "FMA3", "AVX512_SKX"} <= set(blas._instructions())


@pytest.mark.usefixtures("either_blas")
@pytest.mark.parametrize("seed", range(20))
def test_matmul_equals_numpy_for_every_layout(seed):
    rng = np.random.default_rng(seed)
    n, m, k = rng.integers(1, 9, 3)
    a, b = rng.random((2 * n, k), dtype=np.float32), rng.random((k, m + 2), dtype=np.float32)
    for left in (a, a[::2], a[:n], a[::-1], np.asfortranarray(a), np.repeat(a, 2, axis=1)[:, ::2]):
        for right in (b, b[:, 1:-1], b[:, :1], np.asfortranarray(b), b[:, ::2], b[::-1]):
            expected = left.astype(float) @ right
            np.testing.assert_allclose(blas.matmul(left, right), expected, rtol=1e-5)


@pytest.mark.usefixtures("either_blas")
def test_matmul_of_stacks():
    rng = np.random.default_rng(0)
    a = rng.random((5, 3, 9), dtype=np.float32)[:, :, :7]
    b = rng.random((5, 9, 11), dtype=np.float32)[:, 1:8, 2:]
    turned = np.ascontiguousarray(b.swapaxes(1, 2)).swapaxes(1, 2)
    pairs = (a, b), (a[0], b), (a, b[1]), (a[:, :1], b), (a[..., :1], b[:, :1]), (a, turned)
    for x, y in (*pairs, (a[:, ::-1, ::-1], b[..., ::2]), (a[:1], b[:1])):
        exact = x.astype(float) @ y
        np.testing.assert_allclose(blas.matmul(x, y), exact, rtol=1e-6)
        n, rows, columns = exact.shape
        wide = np.ones((n + 2, rows, columns + 3), np.float32)
        out = wide[1:-1, :, 2:-1]
        assert blas.matmul(x, y, out=out) is out
        np.testing.assert_allclose(out, exact, rtol=1e-6)
        out[:] = 1
        assert (wide == 1).all()


# --- blur ------------------------------------------------------------------------------------


@given(n=st.integers(1, 40), sigma=st.floats(0.05, 12), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_blur_matrix_equals_scipy(n, sigma, seed):
    x = np.random.default_rng(seed).normal(size=n)
    expected = gaussian_filter1d(x, sigma, mode="reflect", truncate=4)
    np.testing.assert_allclose(blur.blur_matrix(n, sigma) @ x, expected, atol=1e-5)


def test_blur_keeps_the_axes_apart():
    x = np.random.default_rng(0).random((3, 14, 11)).astype(np.float32)
    result = blur.Blur(blur.blur_matrix(14, 0.7), blur.blur_matrix(11, 2.1))(x)
    np.testing.assert_allclose(result, gaussian_filter(x, (0, 0.7, 2.1)), atol=1e-5)


def test_blur_by_bands_equals_scipy_and_takes_parts():
    x = np.random.default_rng(0).random((2, 200, 140)).astype(np.float32)
    matrix_u, matrix_v = blur.blur_matrix(200, 2), blur.blur_matrix(140, 3.3)
    expected = gaussian_filter(x, (0, 2, 3.3))
    np.testing.assert_allclose(blur.Blur(matrix_u, matrix_v)(x), expected, atol=1e-5)
    part = blur.Blur(matrix_u[12:-12], matrix_v[5:])
    out = np.empty((2, 176, 135), np.float32)
    assert part(x, out=out) is out
    np.testing.assert_allclose(out, expected[:, 12:-12, 5:], atol=1e-5)


@pytest.mark.usefixtures("either_blas")
def test_matmul_writes_between_other_columns():
    rng = np.random.default_rng(0)
    a, b = rng.random((4, 5), dtype=np.float32), rng.random((5, 3), dtype=np.float32)
    whole = np.full((4, 9), 7, np.float32)
    assert blas.matmul(a, b, out=whole[:, 2:5]).base is whole
    np.testing.assert_allclose(whole[:, 2:5], a.astype(float) @ b, rtol=1e-5)
    assert (np.delete(whole, range(2, 5), axis=1) == 7).all()


@pytest.mark.usefixtures("either_blas")
@pytest.mark.parametrize("pixels", [1, 1024, 1500, 30000])
def test_sums_and_products_of_rows(pixels):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 60000, (n, pixels)).astype(np.float32) for n in (3, 5))
    exact = a.astype(float) @ b.T.astype(float)
    np.testing.assert_allclose(blas.row_sums(a), a.sum(axis=1, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(blas.products_of_rows(a, b), exact, rtol=1e-6)


# --- similarity ------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0, 1.3])
@pytest.mark.parametrize("subtract_mean", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_similarity_equals_loop(scan, sigma, subtract_mean, masked):
    q_mask = q_mask_of(scan) if masked else None
    result = run_similarity(scan, q_mask, sigma, subtract_mean)
    assert_close(result, reference.similarity(scan, q_mask, sigma, subtract_mean))


def test_similarity_of_every_kind_of_array(scan, wrap, tiny_blocks):
    result = run_similarity(wrap(scan), q_mask_of(scan), 1.3)
    assert_close(result, reference.similarity(scan, q_mask_of(scan), 1.3))


def test_similarity_is_symmetric_to_the_bit(scan):
    assert asymmetry(run_similarity(scan)) == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (2, 2), (5, 130)])
def test_similarity_of_small_and_long_scans(shape):
    data = make_scan(shape, (6, 5))
    assert_close(run_similarity(data), reference.similarity(data))


def test_similarity_mean_equals_loop(scan):
    s = run_similarity(scan)
    assert_close(similarity_mean(s), reference.similarity_mean(s))
    assert np.isnan(similarity_mean(np.full((1, 1, 8), np.nan, np.float32))).all()


def test_directions_are_opposite_in_pairs():
    assert [(-x, -y) for x, y in DIRECTIONS[:4]] == list(DIRECTIONS[4:])
    assert list(DIRECTIONS) == reference.DIRECTIONS


# --- filter ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"radius": 4},
        {"radius": 0},
        {"radius": 1.6},
        {"sigma": 0},
        {"edge": 0},
        {"corr_range": (-1, 1)},
        {"corr_range": (0.85, 0.95)},
    ],
)
def test_filter_equals_loop(scan, options):
    result = run_filter(scan, **options)
    assert_close(result, reference.correlative_filter(scan, **{**FILTER, **options}))


def test_filter_of_every_kind_of_array(scan, wrap, tiny_blocks):
    assert_close(run_filter(wrap(scan)), reference.correlative_filter(scan, **FILTER))


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (3, 40)])
def test_filter_of_small_and_long_scans(shape):
    data = make_scan(shape, (9, 8))
    assert_close(run_filter(data), reference.correlative_filter(data, **FILTER))


def test_the_filter_in_modes_equals_loop():
    """Where blur leaves few numbers of a pattern, these are compared instead of its pixels."""
    data = make_scan((5, 6), (60, 52))
    data[1, 2] = 0
    data[2, 2] = 9
    data[3, 3, 0, 0] = 60000
    options = {"sigma": 3, "radius": 2, "corr_range": (0.3, 0.9), "edge": 4}
    vectors = unit_vectors((60, 52), 3, 4)
    assert vectors.size < 52 * 44 / 2
    expected = reference.correlative_filter(data, **options)
    assert_close(run_filter(data, **options), expected, 3e-5)
    # Correlations themselves, of noise alone, which fills all modes.
    noise = np.random.default_rng(1).poisson(3, (6, 60 * 52)).astype(np.uint16)
    unit = np.empty((6, vectors.size), np.float32)
    vectors.write(noise, unit)
    weight = radial_weight((60, 52), 4)
    blurred = gaussian_filter(noise.reshape(6, 60, 52).astype(float), (0, 3, 3))
    mean = (weight * blurred).sum(axis=(1, 2)) / weight.sum()
    exact = (weight * (blurred - mean[:, None, None])).reshape(6, -1)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose(unit @ unit.T, exact @ exact.T, atol=2e-5)


@pytest.mark.parametrize("value", [0, 7, 0.1, 1e8 + 0.3])
def test_a_flat_pattern_has_no_modes(value):
    data = np.full((2, 60 * 52), value, np.float32)
    vectors = unit_vectors((60, 52), 3, 4)
    unit = np.empty((2, vectors.size), np.float32)
    vectors.write(data, unit)
    assert not unit.any()


@pytest.mark.parametrize("n_jobs", [1, 2, 5])
def test_the_filter_in_modes_gives_the_same_bits(monkeypatch, n_jobs):
    data = make_scan((7, 20), (60, 52))
    options = {"sigma": 3, "radius": 2, "corr_range": (0.3, 0.9), "edge": 4}
    expected = run_filter(data, n_jobs=1, **options)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    np.testing.assert_array_equal(run_filter(data, n_jobs=n_jobs, **options), expected)


def test_a_filter_that_is_written_elsewhere_is_the_same():
    data = make_scan((5, 6), (16, 14))
    out = np.empty((5, 6, 16, 28), np.float32)[..., ::2]
    correlative_core(data, out, **FILTER, n_jobs=2, report=no_report)
    np.testing.assert_array_equal(out, run_filter(data))


def test_footprint_of_the_paper_has_69_positions():
    assert len(footprint(4)) == 69
    assert len(footprint(0.5)) == 5  # a distance of radius + 1/2 is inside
    assert [0, 0] in footprint(0).tolist()
    assert len(footprint(0)) == 1


def test_radial_weight_is_zero_in_the_edge_only():
    weight = radial_weight((8, 6), 1)
    assert not weight[[0, -1]].any()
    assert not weight[:, [0, -1]].any()
    assert (weight[1:-1, 1:-1] > 0).all()
    assert weight[1, 1] == pytest.approx((2.5**2 + 1.5**2) / 48)


def test_filter_averages_within_a_grain_and_not_across():
    data = np.zeros((4, 8, 16, 14), np.float32)
    data[:, :4, 3, 4] = 100
    data[:, 4:, 11, 9] = 100
    noisy = data + np.random.default_rng(0).normal(0, 1, data.shape).astype(np.float32)
    result = run_filter(noisy, corr_range=(0.5, 0.8))
    assert result[:, :4, 11, 9].max() < 5
    assert np.std(result - data) < 0.5 * np.std(noisy - data)


# --- averages --------------------------------------------------------------------------------


def test_averages_of_every_kind_of_array(scan, wrap, tiny_blocks):
    labels = labels_of(scan)
    assert_close(run_averages(wrap(scan), labels), reference.averages(scan, labels), 1e-6)


@pytest.mark.parametrize(("dtype", "value"), [("u2", 65535), ("i2", -32768), ("u1", 255)])
def test_averages_do_not_overflow(dtype, value):
    data = np.full((40, 50, 2, 3), value, dtype)
    assert (run_averages(data, np.zeros((40, 50), int)) == value).all()
    data = np.full((1, 2**16, 1, 2), value, dtype)  # more than 32 bits hold
    assert (run_averages(data, np.zeros((1, 2**16), int)) == value).all()


# --- blocks, threads, bits -------------------------------------------------------------------


@pytest.mark.parametrize("n_jobs", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_any_block_size_and_number_of_threads_gives_the_same_bits(monkeypatch, scan, n_jobs, rows):
    data = scan.astype(np.float32) * np.float32(0.1)
    labels = labels_of(scan)
    expected = run_similarity(data, None, 1.3, n_jobs=1), run_filter(data, n_jobs=1)
    expected_averages = run_averages(data, labels, n_jobs=1)
    monkeypatch.setattr(
        blocks,
        "row_blocks",
        lambda shape, copies=1: [(i, min(i + rows, shape[0])) for i in range(0, shape[0], rows)],
    )
    np.testing.assert_array_equal(run_similarity(data, None, 1.3, n_jobs=n_jobs), expected[0])
    np.testing.assert_array_equal(run_filter(data, n_jobs=n_jobs), expected[1])
    np.testing.assert_array_equal(run_averages(data, labels, n_jobs), expected_averages)


def test_a_scan_wider_than_a_tile_gives_the_same_bits():
    data = make_scan((6, 150), (12, 11)).astype(np.float32) * np.float32(0.1)
    expected = run_filter(data, n_jobs=1), run_similarity(data, n_jobs=1)
    assert_close(expected[0], reference.correlative_filter(data, **FILTER))
    for _ in range(5):
        np.testing.assert_array_equal(run_filter(data, n_jobs=8), expected[0])
        np.testing.assert_array_equal(run_similarity(data, n_jobs=8), expected[1])


class CountedScan:
    """A scan of zeros that is not kept in memory."""

    shape, dtype = (120, 8, 32, 32), np.dtype(np.uint16)

    def __getitem__(self, rows):
        return np.zeros((len(range(*rows.indices(120))), *self.shape[1:]), self.dtype)


class Nowhere:
    def __setitem__(self, rows, values):
        pass


@pytest.mark.parametrize("kernel", ["similarity", "filter", "averages"])
def test_memory_is_bounded_by_the_block(monkeypatch, kernel):
    # The scan is 3.9 MB in float32; a block and what is made of it may hold 1 MB.
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2**20)
    options = {"n_jobs": 1, "report": no_report}
    run = {
        "similarity": lambda: run_similarity(CountedScan(), n_jobs=1),
        "filter": lambda: correlative_core(CountedScan(), Nowhere(), **FILTER, **options),
        "averages": lambda: averaging_core(CountedScan(), np.zeros((120, 8), int), **options),
    }[kernel]
    run()
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * 2**20


def test_row_blocks_cover_the_scan_once_within_the_budget(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4 * 5 * 6 * 7 * 3)
    found = list(blocks.row_blocks((11, 5, 6, 7)))
    assert found == [(0, 3), (3, 6), (6, 9), (9, 11)]
    assert list(blocks.row_blocks((2, 5, 6, 7), copies=3)) == [(0, 1), (1, 2)]


def test_report_counts_every_row_once(scan):
    for run in (
        lambda report: similarity_core(
            scan, q_mask=None, sigma=0, subtract_mean=True, n_jobs=1, report=report
        ),
        lambda report: correlative_core(
            scan, np.empty(scan.shape, np.float32), **FILTER, n_jobs=1, report=report
        ),
        lambda report: averaging_core(scan, labels_of(scan), n_jobs=1, report=report),
    ):
        done = []
        run(done.append)
        assert sum(done) == len(scan)


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


BLAS_THREADS = blas_threads()


def test_blas_is_released_after_work(scan):
    run_similarity(scan)
    assert blas_threads() == BLAS_THREADS


@pytest.mark.parametrize("moment", [0, 1])  # while the thread starts, while it takes hold
def test_ctrl_c_on_entry_lets_blas_go(monkeypatch, moment):
    waits = iter(range(10))

    class Interrupted(threading.Event):
        def wait(self, timeout=None):
            done = super().wait(timeout)
            if threading.current_thread() is threading.main_thread() and next(waits) == moment:
                raise KeyboardInterrupt
            return done

    monkeypatch.setattr(blas.threading, "Event", Interrupted)
    with pytest.raises(KeyboardInterrupt), blas.single_threaded_blas:
        pass
    monkeypatch.undo()
    blas.single_threaded_blas._keeper.join(10)
    with blas.single_threaded_blas:
        pass
    assert blas_threads() == BLAS_THREADS


def test_blas_is_held_to_one_thread_and_released_in_any_order():
    before = blas_threads()
    first_in, second_in = threading.Event(), threading.Event()
    inside = []

    def first():
        with blocks.workers(1):
            first_in.set()
            second_in.wait(10)
        inside.append(blas_threads())  # the second is still inside

    thread = threading.Thread(target=first)
    thread.start()
    assert first_in.wait(10)
    with blocks.workers(1):
        second_in.set()
        thread.join(10)
        assert blas_threads() == [1] * len(before)
    assert inside == [[1] * len(before)]
    assert blas_threads() == before


def test_workers_raise_the_error_of_a_task():
    def fail(item):
        if item == 3:
            raise ValueError("item 3")

    with blocks.workers(2) as run, pytest.raises(ValueError, match="item 3"):
        run(fail, range(100))


def test_after_an_error_what_has_not_started_is_dropped():
    ran = []

    def task(item):
        if item == 0:
            raise ValueError("first")
        time.sleep(1e-3)
        ran.append(item)

    with blocks.workers(1) as run, pytest.raises(ValueError, match="first"):
        run(task, range(300))
    assert len(ran) < 100


def test_count_jobs(monkeypatch):
    assert blocks.count_jobs(5) == 5
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert blocks.count_jobs(None) == 3


def test_a_reading_error_is_raised(scan):
    class Broken:
        shape, dtype = scan.shape, scan.dtype

        def __getitem__(self, key):
            raise OSError("chunk lost")

    with pytest.raises(OSError, match="chunk lost"):
        run_similarity(Broken())


# --- types and odd values --------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["?", "u1", "u2", "i4", "i8", "u8", "f2", "f4", "f8", ">u2", ">f4"]
)
def test_every_type(scan, dtype):
    data = (scan > 8 if dtype == "?" else scan).astype(dtype)
    as_float = data.astype(np.float64)
    assert_close(run_similarity(data), reference.similarity(as_float))
    assert_close(run_filter(data), reference.correlative_filter(as_float, **FILTER))
    labels = labels_of(scan)
    assert_close(run_averages(data, labels), reference.averages(as_float, labels), 1e-6)


@pytest.mark.parametrize("subtract_mean", [True, False])
def test_similarity_is_exact_on_a_large_detector(subtract_mean):
    data = np.random.default_rng(0).poisson(3, (1, 2, 1024, 700)).astype(np.uint16)
    result = run_similarity(data, subtract_mean=subtract_mean)
    assert_close(result, reference.similarity(data, subtract_mean=subtract_mean))


def test_the_filter_is_exact_on_a_large_detector():
    data = np.random.default_rng(0).poisson(3, (1, 2, 900, 700)).astype(np.uint16)
    options = {"sigma": 0, "radius": 1, "corr_range": (-0.01, 0.01), "edge": 2}
    expected = reference.correlative_filter(data, **options)
    assert_close(run_filter(data, **options), expected)


@pytest.mark.parametrize(
    ("dtype", "offset"),
    # float32 data do not hold a larger offset and the counts.
    [("f4", 1e4), ("f4", 1e6)] + [(d, o) for d in ("u4", "i8", "f8") for o in (1e4, 1e6, 1e9)],
)
def test_an_offset_does_not_matter(scan, dtype, offset):
    data = (scan + np.uint32(offset)).astype(dtype)
    assert_close(run_similarity(data, sigma=1), reference.similarity(scan, sigma=1))
    filtered = run_filter(data).astype(np.float64) - offset
    expected = reference.correlative_filter(scan, **FILTER)
    np.testing.assert_allclose(filtered, expected, atol=1e-6 * offset + 1e-5 * scan.max())


def test_similarity_never_leaves_the_range_of_a_cosine():
    data = np.random.default_rng(0).random((40, 1, 60, 60)).astype(np.float32)
    assert np.nanmax(run_similarity(np.repeat(data, 3, axis=1))) <= 1


def test_negative_values_of_any_scale(scan):
    data = -scan.astype(np.float64) * 1e25
    assert_close(run_similarity(data), reference.similarity(scan))


def test_zeros_with_a_missing_pixel(scan):
    data = scan.astype(np.float32)
    data[2, 3] = 0
    data[2, 3, 1, 1] = np.nan
    assert_close(run_similarity(data), reference.similarity(data))


def test_what_is_masked_is_missing(scan):
    mask = np.zeros(scan.shape, bool)
    mask[:, :, 4, 5] = mask[2, 3] = True
    hot = scan.copy()
    hot[mask] = 60000
    masked = np.ma.array(hot, mask=mask)
    missing = np.where(mask, np.nan, scan).astype(np.float32)
    labels = labels_of(scan)
    np.testing.assert_array_equal(run_similarity(masked), run_similarity(missing))
    np.testing.assert_array_equal(run_filter(masked), run_filter(missing))
    np.testing.assert_array_equal(run_averages(masked, labels), run_averages(missing, labels))


@pytest.mark.parametrize("missing", [False, True])
def test_float16_is_summed_in_float64(missing):
    data = np.full((1, 50, 2, 3), 60000, np.float16)
    if missing:
        data[0, 0, 0, 0] = np.nan
    assert (run_averages(data, np.zeros((1, 50), int)) == np.float32(np.float16(60000))).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e9, 1e25, 1e35])
def test_every_scale(scan, scale):
    data = scan.astype(np.float64) * scale
    assert_close(run_similarity(data), reference.similarity(scan))
    assert_close(run_filter(data) / scale, reference.correlative_filter(scan, **FILTER))
    labels = labels_of(scan)
    assert_close(run_averages(data, labels) / scale, reference.averages(scan, labels))


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_a_scale_beyond_float32(scan, scale):
    data = scan.astype(np.float64) * scale
    assert_close(run_similarity(data), reference.similarity(scan))
    with pytest.raises(ValueError, match=r"row 0 to 6 of the scan holds values that float32"):
        run_filter(data)
    with pytest.raises(ValueError, match=r"a cluster average holds values that float32"):
        run_averages(data, labels_of(scan))


def test_a_negative_background_does_not_matter(scan):
    data = scan.astype(np.float32) - 1000
    assert_close(run_similarity(data), reference.similarity(scan), 1e-4)


def holes(scan):
    data = scan.astype(np.float32)
    data[2, 3, 4, 5] = np.nan
    data[:, :, 9, 2] = np.nan  # a dead detector pixel
    data[5, 6, 0, 0] = np.inf
    data[4, 4, 1, 1] = -np.inf
    data[3, 7] = np.nan  # a lost pattern
    return data


def test_missing_pixels_follow_the_rule():
    data = holes(make_scan())
    assert_close(run_similarity(data, sigma=1), reference.similarity(data, sigma=1))
    assert_close(run_filter(data), reference.correlative_filter(data, **FILTER))
    labels = labels_of(data)
    assert_close(run_averages(data, labels), reference.averages(data, labels), 1e-6)


def test_neighbours_fill_a_missing_pixel(scan):
    data = np.full((3, 4, 16, 14), 5, np.float32)
    data[:, :, 4:6, 3] = 50
    data[1, 2, 4, 3] = np.nan
    assert run_filter(data, corr_range=(0.1, 0.5))[1, 2, 4, 3] == pytest.approx(50)


@pytest.mark.parametrize("value", [0, 7, 0.1, 1e8 + 0.3])
def test_empty_and_constant_patterns_are_like_nothing(scan, value):
    data = scan.astype(np.float32)
    data[2, 3] = value
    data[4] = value  # a dead row
    s = run_similarity(data, sigma=1)
    assert (s[2, 3] == 0).all()
    assert (s[4][~np.isnan(s[4])] == 0).all()
    assert_close(s, reference.similarity(data, sigma=1))
    assert_close(run_filter(data), reference.correlative_filter(data, **FILTER))
    np.testing.assert_allclose(run_filter(data)[2, 3], value, rtol=1e-6)


def test_a_pattern_with_contrast_in_the_edge_only_is_empty_to_the_filter():
    data = make_scan((3, 3), (30, 30)).astype(np.float32)
    data[1, 1] = 1000.1
    data[1, 1, 0, 0] = 1001  # blurred, it reaches 4 sigma
    result = run_filter(data, sigma=1, edge=8, corr_range=(0.01, 0.02))
    np.testing.assert_allclose(result[1, 1], data[1, 1], rtol=1e-6)


@pytest.mark.usefixtures("either_blas")
def test_similarity_has_the_same_bits_in_any_strips_and_blocks():
    data = make_scan((7, 45), (50, 47))  # a detector of two pieces
    options = {"q_mask": None, "sigma": 0, "subtract_mean": True, "report": no_report}
    expected = similarity_core(data, n_jobs=1, **options)
    np.testing.assert_allclose(expected, reference.similarity(data, None, 0), atol=2e-6)
    for n_jobs, n_rows in ((2, 3), (5, 1), (3, None)):
        found = similarity_core(data, n_jobs=n_jobs, n_rows=n_rows, **options)
        np.testing.assert_array_equal(found, expected)
