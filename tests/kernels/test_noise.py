"""Noise: gain and offset from the data, similarity corrected for it, a range that suits it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import py4DSTEM
import pytest
import reference
from conftest import first_quick, forbid, make_scan
from py4DSTEM import DataCube
from scipy.ndimage import convolve, gaussian_filter

from py4dstem_clustering import simulate_scan
from py4dstem_clustering.kernels import blocks, noise
from py4dstem_clustering.kernels.corr_range import NO_AVERAGE, auto_range, expected_change
from py4dstem_clustering.kernels.noise import (
    Noise,
    fit_noise,
    noise_core,
    noise_moments,
    noise_windows,
)
from py4dstem_clustering.kernels.similarity import MAX_NOISE_SHARE, noise_weight, similarity_core

QUIET = {"progress_bar": False}
HARD = {"probe_blur": 0.8, "bending": 2, "uneven": 0.5, "twins": 0.5, "hot_pixels": 0.001}
SCAN, DETECTOR = (24, 20), (48, 44)


def no_report(rows):
    pass


def run_moments(data, n_jobs=2):
    return noise_moments(data, n_jobs=n_jobs, report=no_report)


def run_noise(data, n_jobs=2, offset=None):
    return noise_core(data, n_jobs=n_jobs, report=no_report, offset=offset)


def run_similarity(data, noise, q_mask=None, sigma=0, n_jobs=2):
    return similarity_core(
        data, q_mask=q_mask, sigma=sigma, subtract_mean=True, n_jobs=n_jobs, report=no_report,
        noise=noise,
    )  # fmt: skip


def annulus(detector=DETECTOR, inner=4, outer=20):
    u, v = np.indices(detector)
    radius = np.hypot(u - (detector[0] - 1) / 2, v - (detector[1] - 1) / 2)
    return (radius > inner) & (radius < outer)


def inside_pairs(labels):
    """Pairs of neighbours of one grain, in the shape of a similarity."""
    same = np.zeros((*labels.shape, 8), bool)
    for x, y in np.ndindex(labels.shape):
        for k, (dx, dy) in enumerate(reference.DIRECTIONS):
            if labels[x, y] >= 0 and reference.inside(labels.shape, x + dx, y + dy):
                same[x, y, k] = labels[x, y] == labels[x + dx, y + dy]
    return same


# --- gain and offset -------------------------------------------------------------------------


def reference_moments(data, quiet):
    """Triples one by one, over windows of three rows; see the docstring of `noise_moments`."""
    rx, ry, qx, qy = data.shape
    data = np.asarray(data, dtype=np.float64)
    n = min(rx // 3, max(16, -(-8192 // (3 * (ry - 2) + ry))))
    starts = np.linspace(0, rx - 3, n).astype(int)
    mean = np.nanmean([np.nanmean(data[s], axis=0) for s in starts[:: -(-n // 8)]], axis=0)
    dark = np.quantile(mean, 0.01)
    bright = np.maximum(mean - dark, 0)
    weight = 1 / (bright + bright.mean())
    half = np.add.outer(np.arange(qx), np.arange(qy)) % 2
    found = []
    for s in starts:
        threes = [((x, y), (x, y + 1), (x, y + 2)) for x in range(s, s + 3) for y in range(ry - 2)]
        threes += [((s, y), (s + 1, y), (s + 2, y)) for y in range(ry)]
        for three in threes:
            a, b, c = (data[position] for position in three)
            square, centre = (a - 2 * b + c) ** 2 / 6, (a + b + c) / 3
            loud = []
            for which in (0, 1):
                use = (half == which) & np.isfinite(square)
                signal = (weight * np.maximum(centre - dark, 0))[use].sum()
                loud.append((weight * square)[use].sum() / signal if signal > 0 else np.inf)
            found.append((loud, centre, square))
    ratios = np.array([loud for loud, _, _ in found])
    limits = np.quantile(ratios[np.isfinite(ratios).all(axis=1)], quiet, axis=0)
    means, squares = np.full((2, qx, qy), np.nan)
    for which in (0, 1):
        chosen = [item for item in found if item[0][1 - which] <= limits[1 - which]]
        pixels = half == which
        means[pixels] = np.nanmean([np.where(np.isfinite(q), m, np.nan) for _, m, q in chosen],
                                   axis=0)[pixels]  # fmt: skip
        squares[pixels] = np.nanmean([q for _, _, q in chosen], axis=0)[pixels]
    return means, squares


def test_moments_are_those_of_the_quiet_triples(monkeypatch):
    monkeypatch.setattr("py4dstem_clustering.kernels.noise._QUIET_SHARE", 0.4)
    data = make_scan((10, 8), seed=3).astype(np.float32)
    data[4, 3, 5, 6] = data[2, 2] = np.nan
    for result, expected in zip(run_moments(data), reference_moments(data, 0.4), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-9)


def test_second_differences_are_the_nugget_of_the_variogram():
    """Their mean is (4 gamma_1 - gamma_2) / 3, and an even change cancels."""
    rng = np.random.default_rng(1)
    line = rng.poisson(50, 4000) + 3.0 * np.arange(4000)
    a, b, c = line[:-2], line[1:-1], line[2:]
    gamma = [np.mean((line[h:] - line[:-h]) ** 2) / 2 for h in (1, 2)]
    nugget = (4 * gamma[0] - gamma[1]) / 3
    np.testing.assert_allclose(np.mean((a - 2 * b + c) ** 2) / 6, nugget, rtol=2e-3)
    np.testing.assert_allclose(nugget, 50, rtol=0.1)


@pytest.mark.parametrize("hard", [{}, HARD], ids=["easy", "hard"])
@pytest.mark.parametrize("electrons", first_quick([1000, 100, 10000]))
def test_gain_of_counted_electrons(electrons, hard):
    for seed in (210, 211, 212):
        scan = simulate_scan(SCAN, DETECTOR, electrons=electrons, seed=seed, **hard)
        gain, offset = run_noise(scan.datacube.data)
        assert abs(gain - 1) < 0.06
        assert abs(offset) < 0.02 * scan.datacube.data.mean() + 1e-6


@pytest.mark.parametrize("hard", [{}, HARD], ids=["easy", "hard"])
def test_gain_and_offset_of_a_camera(hard):
    for seed in (210, 211, 212):
        scan = simulate_scan(SCAN, DETECTOR, electrons=1000, gain=7, offset=30, seed=seed, **hard)
        gain, offset = run_noise(scan.datacube.data)
        assert abs(gain / 7 - 1) < 0.06
        assert abs(offset - 30) < 0.1
        assert abs(run_noise(scan.datacube.data, offset=30).gain / 7 - 1) < 0.06


def test_fit_is_exact_without_noise_and_structure_spoils_nothing():
    mean = np.geomspace(12.01, 500, 600)
    signal = mean - 12
    for curve in (0, 0.02):
        gain, offset = fit_noise(mean, 3 * signal + curve * signal**2)
        np.testing.assert_allclose((gain, offset), (3, 12), rtol=1e-3)
    variance = 3 * signal
    variance[::9] *= 4  # pixels that follow another law
    shuffled = np.random.default_rng(0).permutation(600)
    gain, offset = fit_noise(mean[shuffled], np.r_[variance][shuffled])
    assert 3 <= gain < 4.5
    np.testing.assert_allclose(offset, 12, atol=0.1)
    # A missing pixel has no influence.
    mean, variance = np.r_[mean, np.nan], np.r_[3 * signal, np.nan]
    np.testing.assert_allclose(fit_noise(mean, variance), (3, 12), rtol=1e-3)


def test_noise_of_every_kind_of_array(scan, wrap):
    for result, expected in zip(run_moments(wrap(scan)), run_moments(scan), strict=True):
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("n_jobs", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_any_block_size_and_number_of_threads_gives_the_same_bits(monkeypatch, n_jobs, rows):
    data = make_scan((9, 70), (8, 7), seed=5)
    noise = run_noise(data, 1)
    expected = run_similarity(data, noise, sigma=1.3, n_jobs=1)
    expected_range = auto_range(data, sigma=1, edge=1, n_jobs=1)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", rows * 70 * 8 * 7 * 4 * 3)
    assert run_noise(data, n_jobs) == noise
    np.testing.assert_array_equal(run_similarity(data, noise, None, 1.3, n_jobs), expected)
    assert auto_range(data, sigma=1, edge=1, n_jobs=n_jobs) == expected_range


def test_windows_cover_the_scan_without_reading_it_twice():
    assert noise_windows((7, 9)) == [(0, 3), (4, 7)]
    assert noise_windows((2, 5)) == [(0, 1), (1, 2)]
    windows = noise_windows((512, 512))
    assert windows[0] == (0, 3)
    assert windows[-1] == (509, 512)
    assert all(a[1] <= b[0] for a, b in pairwise(windows))
    assert sum(stop - start for start, stop in windows) < 60
    with pytest.raises(ValueError, match=r"measured in a scan of 2 x 2.*give the gain"):
        noise_windows((2, 2))


@pytest.mark.parametrize(
    ("shape", "width"), [((7, 9), 9), ((96, 96), 96), ((512, 512), 130), ((1, 20000), 8194)]
)
def test_windows_of_wide_rows_hold_enough_triples_all_over_the_scan(shape, width):
    windows = noise_windows(shape)
    height = windows[0][1] - windows[0][0]
    columns = noise._window_columns(shape[1], height, len(windows))
    assert len(columns) == len(windows)
    assert {stop - start for start, stop in columns} == {width}
    assert all(0 <= start < stop <= shape[1] for start, stop in columns)
    if width < shape[1] and len(windows) > 1:
        triples = len(windows) * len(noise._triples(height, width))
        assert 8192 <= triples < 1.05 * 8192
        places = np.sort([start for start, _ in columns])
        assert np.diff([0, *places, shape[1] - width]).max() < 0.2 * shape[1]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
def test_moments_do_not_depend_on_the_type(dtype):
    """Whole numbers of 8 and 16 bits are added in float32, all others in float64."""
    counts = np.random.default_rng(0).poisson(9, (9, 8, 12, 11))
    expected = run_moments(counts.astype(np.float64))
    for result, known in zip(run_moments(counts.astype(dtype)), expected, strict=True):
        np.testing.assert_allclose(result, known, rtol=1e-12)


@pytest.mark.slow
def test_gain_from_windows_of_a_wide_scan():
    rng = np.random.default_rng(5)
    means = rng.gamma(2, 3, (4, 24, 22))
    data = rng.poisson(means[np.arange(400) // 100], (54, 400, 24, 22)).astype(np.uint16)
    # 1,640 triples of 528 pixels give a variance to 0.2 %; the offset, fitted with it, costs more.
    assert abs(run_noise(3 * data + 7).gain / 3 - 1) < 0.02


@pytest.mark.parametrize("shape", [(1, 60), (60, 1), (2, 40), (40, 2)])
def test_gain_of_a_thin_scan(shape):
    data = np.random.default_rng(2).poisson(
        np.linspace(0, 9, 400).reshape(20, 20), (*shape, 20, 20)
    )
    assert abs(run_noise(data.astype(np.uint16)).gain - 1) < 0.1


@pytest.mark.parametrize("value", [0, 5])
def test_a_scan_without_noise_has_no_gain(value):
    with pytest.raises(ValueError, match=r"gain cannot be measured.*give it"):
        run_noise(np.full((5, 6, 8, 8), value, np.uint8))


# --- corrected similarity --------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0, 1.3])
def test_noise_weight_is_the_square_of_the_blur(sigma):
    rng = np.random.default_rng(0)
    shape, mask = (17, 15), rng.random((17, 15)) < 0.6
    expected = np.zeros(shape)
    for q in np.ndindex(shape):  # the effect of the noise of one pixel
        pulse = np.zeros(shape)
        pulse[q] = 1
        blurred = gaussian_filter(pulse, sigma, mode="reflect", truncate=4) if sigma else pulse
        expected[q] = (blurred[mask] ** 2).sum()
    np.testing.assert_allclose(noise_weight(shape, mask, sigma), expected, rtol=1e-5, atol=1e-9)
    if sigma:
        # Away from the border: the mean convolved with the square of the kernel.
        pulse = np.zeros((13, 13))
        pulse[6, 6] = 1
        kernel = gaussian_filter(pulse, sigma, truncate=4) ** 2
        image = rng.random((40, 40))
        mask = np.zeros((40, 40), bool)
        mask[14:26, 15:25] = True
        power = convolve(image, kernel)[mask].sum()
        np.testing.assert_allclose((noise_weight((40, 40), mask, sigma) * image).sum(), power, 1e-5)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64])
def test_corrected_similarity_follows_the_formula(dtype):
    data = make_scan((4, 5), (9, 8), seed=2).astype(dtype)
    data[1, 1] = 0
    if dtype != np.uint16:
        data[2, 3, 4, 4] = np.nan
    q_mask = annulus((9, 8), 1, 4)
    result = run_similarity(data, Noise(2.0, 0.5), q_mask, 0.8)
    expected = reference.corrected_similarity(data, 2.0, 0.5, q_mask, 0.8)
    np.testing.assert_allclose(result, expected, atol=2e-5)
    assert MAX_NOISE_SHARE == 0.7


def test_units_do_not_matter():
    """Values far from 1 are rescaled on the way; gain and offset come in the same units."""
    data = make_scan((4, 5), (9, 8), seed=2).astype(np.float64)
    expected = run_similarity(data, Noise(1.0, 0.2))
    for unit in (1e-14, 1e14):
        result = run_similarity(data * unit, Noise(unit, 0.2 * unit))
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_no_correction_gives_the_same_bits(cube):
    plain = cube.get_similarity(sigma=1, **QUIET)
    same = cube.get_similarity(sigma=1, noise_correct=False, **QUIET)
    np.testing.assert_array_equal(plain, same)
    assert plain.settings["noise_correct"] is False
    assert plain.settings["gain"] is None
    without_noise = run_similarity(cube.data, Noise(1e-30, 0.0), None, 1)
    np.testing.assert_array_equal(plain, without_noise)


@pytest.mark.parametrize("electrons", [100, 1000, 10000])
def test_similarity_inside_a_grain_is_near_1_at_any_dose(electrons):
    scan = simulate_scan((30, 24), DETECTOR, n_grains=4, electrons=electrons, seed=213)
    same = inside_pairs(scan.labels)
    options = {"q_mask": annulus(), "sigma": 1.5, **QUIET}
    plain = np.median(scan.datacube.get_similarity(**options).data[same])
    corrected = np.median(scan.datacube.get_similarity(**options, noise_correct=True).data[same])
    print(f"{electrons} electrons: plain {plain:.3f}, corrected {corrected:.3f}")
    assert 0.95 <= corrected <= 1
    if electrons == 100:
        assert plain < 0.75


def test_corrected_similarity_of_every_kind_of_array(scan, wrap):
    options = {"sigma": 1, "noise_correct": True, **QUIET}
    result = DataCube(wrap(scan)).get_similarity(**options)
    expected = DataCube(scan).get_similarity(**options)
    np.testing.assert_array_equal(result, expected)
    assert dict(result.settings) == dict(expected.settings)


def test_gain_and_offset_survive_a_file(cube, tmp_path):
    similarity = cube.get_similarity(noise_correct=True, **QUIET)
    given = cube.get_similarity(noise_correct=True, gain=2, name="given", **QUIET)
    assert given.settings["gain"] == 2
    assert given.settings["offset"] == 0
    assert tuple(run_noise(cube.data)) == (similarity.settings["gain"],
                                           similarity.settings["offset"])  # fmt: skip
    py4DSTEM.save(tmp_path / "cube.h5", cube, mode="o")
    read = py4DSTEM.read(tmp_path / "cube.h5")
    for made, name in ((similarity, "similarity"), (given, "given")):
        again = type(made).from_node(read.tree(name))
        assert dict(again.settings) == dict(made.settings)
        np.testing.assert_array_equal(again, made)


def test_a_given_offset_is_kept(cube):
    settings = cube.get_similarity(noise_correct=True, offset=0.1, **QUIET).settings
    assert settings["offset"] == 0.1
    assert settings["gain"] == run_noise(cube.data, offset=0.1).gain


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"noise_correct": 1}, TypeError, "noise_correct=1 must be True or False"),
        ({"gain": 2}, ValueError, "gain=2.* does nothing without noise_correct=True"),
        ({"offset": 2}, ValueError, "offset=2.* does nothing without noise_correct=True"),
        ({"noise_correct": True, "gain": 0}, ValueError, "gain=0 must be above 0"),
        ({"noise_correct": True, "gain": -1}, ValueError, "gain=-1 must be above 0"),
        ({"noise_correct": True, "gain": np.nan}, ValueError, "gain=nan"),
        ({"noise_correct": True, "gain": "1"}, TypeError, "gain='1' must be a number"),
        ({"noise_correct": True, "offset": np.inf}, ValueError, "offset=inf"),
    ],
)
def test_similarity_refuses(cube, monkeypatch, options, error, match):
    forbid(monkeypatch, "noise_core")
    forbid(monkeypatch, "similarity_core")
    with pytest.raises(error, match=match):
        cube.get_similarity(**options, **QUIET)


def test_a_scan_too_small_asks_for_the_gain():
    small = DataCube(make_scan((2, 2)))
    with pytest.raises(ValueError, match="gain=None cannot be measured in a scan of 2 x 2"):
        small.get_similarity(noise_correct=True, **QUIET)
    assert small.get_similarity(noise_correct=True, gain=1, **QUIET).shape == (2, 2, 8)


# --- automatic range of the filter -----------------------------------------------------------


def rms(scan, filtered, electrons):
    inside = scan.labels >= 0
    error = filtered.data[inside] - electrons * scan.patterns[scan.labels[inside]]
    return np.sqrt(np.mean(error**2))


# At 10,000 electrons the speckle of the liquid decides, which the fixed range blurs (see below).
@pytest.mark.parametrize(("electrons", "most"), [(100, 0.6), (1000, 1.0), (10000, 1.05)])
def test_the_automatic_range_is_better_at_low_dose_and_no_worse_at_high(electrons, most):
    scan = simulate_scan(SCAN, DETECTOR, n_grains=4, electrons=electrons, seed=212)
    options = {"sigma": 1.5, "edge": 4, **QUIET}
    fixed = scan.datacube.filter_correlative(**options)
    auto = scan.datacube.filter_correlative(**options, corr_range="auto")
    assert rms(scan, auto, electrons) <= most * rms(scan, fixed, electrons)
    low, high = auto.metadata["filter_correlative"]["corr_range"]
    again = scan.datacube.filter_correlative(**options, corr_range=(low, high))
    np.testing.assert_array_equal(auto.data, again.data)
    assert fixed.metadata["filter_correlative"]["corr_range"] == (0.85, 0.95)


def wedge(electrons, step):
    """A ring that moves by `step` pixels a column and is brighter on a side that turns, counts."""
    u, v = np.indices((24, 20)) - np.array([11.5, 9.5])[:, None, None]
    x, y = np.indices((12, 14))[..., None, None]
    truth = np.exp(-0.5 * ((np.hypot(u, v) - 4 - step * y) / 1.2) ** 2)
    truth = truth * (1.1 + np.cos(np.arctan2(u, v) - step * x)) + 0.05
    truth *= electrons / truth.sum(axis=(2, 3), keepdims=True)
    return truth, np.random.default_rng(3).poisson(truth).astype(np.uint32)


def test_expected_change_is_the_true_one():
    truth, counts = wedge(2000, 0.3)
    ranges = [(0.0, 0.3), (0.5, 0.8), (0.9, 0.99)]
    options = {"sigma": 1.0, "radius": 2, "edge": 1}
    found = expected_change(counts, ranges, noise=Noise(1.0, 0.0), n_jobs=2, **options)
    raw = ((counts - truth) ** 2).mean()
    for change, corr_range in zip(found, ranges, strict=True):
        out = DataCube(counts).filter_correlative(corr_range=corr_range, **options, **QUIET).data
        assert change == pytest.approx(((out - truth) ** 2).mean() / raw - 1, rel=0.2, abs=0.1)


def test_nothing_is_averaged_where_every_range_makes_patterns_worse():
    counts = wedge(3e7, 0.8)[1]
    out = DataCube(counts).filter_correlative(sigma=1, radius=2, edge=1, corr_range="auto", **QUIET)
    assert out.metadata["filter_correlative"]["corr_range"] == NO_AVERAGE
    np.testing.assert_allclose(out.data, counts, rtol=1e-6)


def test_automatic_range_of_every_kind_of_array(scan, wrap):
    assert auto_range(wrap(scan), sigma=1, edge=1, n_jobs=2) == auto_range(
        scan, sigma=1, edge=1, n_jobs=1
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 9), (9, 1), (2, 2)])
@pytest.mark.parametrize("value", [None, 3])
def test_automatic_range_of_any_scan_rises(shape, value):
    data = make_scan(shape) if value is None else np.full((*shape, 9, 8), value, np.uint8)
    low, high = auto_range(data, sigma=1, edge=1, n_jobs=1)
    assert -1 <= low < high <= 1
    filtered = DataCube(data).filter_correlative(sigma=1, edge=1, corr_range="auto", **QUIET)
    assert filtered.shape == data.shape
