"""The low-rank filter against slow loops, known structure and known noise."""

from __future__ import annotations

from typing import NamedTuple

import dask.array as da
import h5py
import numpy as np
import pytest

from py4dstem_clustering.kernels.blocks import workers
from py4dstem_clustering.kernels.lowrank import model_core
from py4dstem_clustering.kernels.lowrank_basis import Sums
from py4dstem_clustering.kernels.lowrank_filter import (
    _gain_of_rest,
    _lack,
    lowrank_core,
    whole_noise,
)
from py4dstem_clustering.kernels.noise import Noise
from py4dstem_clustering.kernels.shrinkage import (
    kept_share,
    noise_edge,
    shrink_windows,
    window_starts,
)

SCAN, DETECTOR = (22, 17), (44, 39)  # bins of 2 x 2 pixels
COUNTED = Noise(1.0, 0.0)


class Found(NamedTuple):
    """Maps of the filter."""

    noise: np.ndarray
    residual: np.ndarray
    kept: np.ndarray
    whole_noise: np.ndarray


def planted(electrons=3000.0, scan=SCAN, detector=DETECTOR, seed=0):
    """Expected patterns of three grains in stripes, with disks of two pixels, and counts."""
    rng = np.random.default_rng(seed)
    x, y = np.indices(scan)
    grain = ((x + 2 * y) // 12) % 3
    u, v = np.indices(detector)
    ring = np.exp(-np.hypot(u - 20, v - 18) / 12)
    means = np.stack([ring.copy() for _ in range(3)])
    for mean in means:
        for a, b in rng.uniform(5, 34, (8, 2)):
            mean += 3 * (np.hypot(u - a, v - b) < 2.4)
    means *= electrons / means.sum(axis=(1, 2), keepdims=True)
    truth = means[grain]
    return truth, rng.poisson(truth).astype(np.uint16)


def run(data, rank=None, noise=COUNTED, shifts=None, local=True, n_jobs=1, n_rows=None, mask=None):
    options = {"shifts": shifts, "n_jobs": n_jobs, "n_rows": n_rows, "report": lambda n: None}
    model = model_core(data, q_mask=mask, rank=rank, noise=noise, local=local, **options)
    out = np.full(data.shape, np.nan, dtype=np.float32)
    left = lowrank_core(data, out, model, **options)
    return out, Found(model.noise, left.residual, left.kept, whole_noise(model, left)), model


def error(result, truth, where=...):
    return float(np.sqrt(((np.asarray(result, dtype=float) - truth)[where] ** 2).mean()))


# --- theory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scan", "n_bins"), [((30, 20), 150), ((12, 10), 200)])
def test_noise_ends_at_the_edge(scan, n_bins):
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((*scan, n_bins))
    padded = np.pad(noise, ((1, 1), (1, 1), (0, 0)))
    mean = sum(
        wx * wy * padded[1 + dx : 1 + dx + scan[0], 1 + dy : 1 + dy + scan[1]]
        for dx, wx in ((-1, 0.25), (0, 0.5), (1, 0.25))
        for dy, wy in ((-1, 0.25), (0, 0.5), (1, 0.25))
    )
    n = scan[0] * scan[1]
    covariance = noise.reshape(n, -1).T @ mean.reshape(n, -1) / n
    largest = np.linalg.eigvalsh((covariance + covariance.T) / 2)[-1]
    # The sum is cut at the border of a scan, and so is noise.
    assert 0.85 * noise_edge(n, n_bins) < largest < 1.02 * noise_edge(n, n_bins)


def test_share_of_noise_is_zero_and_of_structure_one():
    edge = (1 + np.sqrt(0.5)) ** 2
    np.testing.assert_array_equal(kept_share(np.array([0.0, 1.0, edge - 1e-6]), 0.5), 0)
    assert kept_share(np.array(1e6), 0.5) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("n", [7, 30])
def test_shrunk_windows_equal_loop(n):
    rng = np.random.default_rng(3)
    k = 12
    shape = rng.standard_normal((2, k, k))
    noise = shape @ shape.swapaxes(1, 2) / k + 0.3 * np.eye(k)
    values = np.stack([rng.multivariate_normal(np.zeros(k), c, n) for c in noise])
    values[0] += 9 * rng.standard_normal(k) + np.outer(rng.standard_normal(n), 9 * np.ones(k))
    found = shrink_windows(values.astype(np.float32), noise.astype(np.float32))
    for i in range(2):
        full = noise[i] + 0.05 * np.trace(noise[i]) / k * np.eye(k)
        root = np.linalg.cholesky(full)
        x = np.linalg.solve(root, values[i].T).T
        mean = x.mean(axis=0)
        power = n * (mean**2).sum()
        share = 1 - k / power if power > k + 2 * np.sqrt(2 * k) else 0
        u, size, v = np.linalg.svd(x - mean, full_matrices=False)
        counted, ratio = (k, (n - 1) / k) if n <= k else (n - 1, k / (n - 1))
        shares = kept_share(size**2 / counted, ratio)
        expected = ((u * (shares * size)) @ v + share * mean) @ root.T
        np.testing.assert_allclose(found.values[i], expected, atol=2e-3)
        # Squared error of a direction of true level t, kept with the share s, is t - s^2 level
        # (Gavish and Donoho); that of the noise in it, if nothing were shrunk, 1 + ratio.
        level = size[shares > 0] ** 2 / counted
        b = level - 1 - ratio
        true = (b + np.sqrt(b**2 - 4 * ratio)) / 2
        part = (true - shares[shares > 0] ** 2 * level) / (1 + ratio)
        inside = u[:, shares > 0]
        own = np.minimum((inside**2 * part).sum(axis=1) + share / n, 1)
        np.testing.assert_allclose(found.own[i], own, atol=1e-3)
        # The floor under the noise is no noise: what is left of its power, in units of `full`.
        left = np.trace(np.linalg.solve(full, noise[i])) / k
        kept = root @ v[shares > 0].T
        space = left * (kept * part) @ kept.T
        np.testing.assert_allclose(found.space[i], space, atol=2e-2)
        np.testing.assert_allclose(found.noise[i], left * full, rtol=1e-3, atol=1e-3)
    assert (found.space[0] > 0).any()
    assert not found.values[1].any()  # noise alone leaves nothing


@pytest.mark.parametrize(("rank", "strength"), [(1, 1.0), (3, 1.0), (3, 0.3), (10, 0.3), (10, 2.0)])
@pytest.mark.parametrize(("n", "k"), [(81, 53), (49, 53), (49, 12)])
def test_error_of_shrunk_windows(n, k, rank, strength):
    rng = np.random.default_rng(5)
    windows = 40
    truth = rng.standard_normal((windows, n, rank)) @ rng.standard_normal((windows, rank, k))
    truth = strength * truth + rng.standard_normal((windows, 1, k))
    noise = np.tile(np.eye(k, dtype=np.float32), (windows, 1, 1))
    found = shrink_windows((truth + rng.standard_normal(truth.shape)).astype(np.float32), noise)
    true = ((found.values - truth) ** 2).mean()
    own = (found.own + found.lost[:, None]).mean() * np.trace(found.noise[0]) / k
    space = ((1 - found.own) * np.trace(found.space, axis1=1, axis2=2)[:, None]).mean() / k
    assert own + space == pytest.approx(true, rel=0.2)


def test_what_is_lost_with_noise_is_counted():
    rng = np.random.default_rng(4)
    n, k, windows = 40, 20, 400
    noise = np.tile(np.diag(rng.uniform(0.5, 2, k)).astype(np.float32), (windows, 1, 1))
    values = rng.standard_normal((windows, n, k)) * np.sqrt(noise[0].diagonal())
    for strength in (0.0, 0.5):
        hidden = strength * rng.standard_normal((windows, n, 1)) * rng.standard_normal(k)
        # The floor under the noise is no noise.
        unit = noise[0] + 0.05 * np.trace(noise[0]) / k * np.eye(k)
        power = (hidden**2 / unit.diagonal()).mean()
        lost = shrink_windows((values + 0.3 * hidden).astype(np.float32), noise).lost
        assert lost.mean() == pytest.approx(0.09 * power, rel=0.25, abs=0.01)


def test_noise_that_cannot_be_is_mended():
    values = np.ones((1, 5, 3), dtype=np.float32)
    noise = np.diag([1, 1, -5]).astype(np.float32)[None]
    assert np.isfinite(shrink_windows(values, noise).values).all()
    assert np.isfinite(shrink_windows(values[:, :1], 0 * noise).values).all()


@pytest.mark.parametrize(("n", "size", "step"), [(5, 5, 4), (7, 7, 4), (20, 7, 4), (8, 7, 4)])
def test_windows_cover_an_axis(n, size, step):
    starts = window_starts(n, size, step)
    covered = np.zeros(n)
    for start in starts:
        covered[start : start + size] += 1
    assert covered.min() >= 1
    assert starts[-1] + size == n
    assert (np.diff(starts) <= step).all()


def test_sums_equal_loop():
    rows = np.random.default_rng(6).poisson(3, (5, 4, 7)).astype(np.float32)
    sums = Sums(7)
    with workers(1) as run_tasks:
        for row in rows:
            sums.add(row, run_tasks)
    expected, squares, n = np.zeros((7, 7)), np.zeros(7), 0
    for x, y in np.ndindex(5, 4):
        for dx, dy in np.ndindex(3, 3):
            a, b = x + dx - 1, y + dy - 1
            if 0 <= a < 5 and 0 <= b < 4:
                weight = (0.25, 0.5, 0.25)[dx] * (0.25, 0.5, 0.25)[dy]
                expected += weight * np.outer(rows[x, y], rows[a, b])
        for a, b in ((x + 1, y), (x, y + 1)):
            if a < 5 and b < 4:
                squares += (rows[x, y] - rows[a, b]) ** 2
                n += 1
    both = (sums.covariance + sums.covariance.T) / 2
    np.testing.assert_allclose(both, expected, rtol=1e-5)
    np.testing.assert_allclose(sums.variance((5, 4)), squares / (2 * n))
    np.testing.assert_allclose(sums.mean(20), rows.mean(axis=(0, 1)), rtol=1e-6)


# --- scans of known structure --------------------------------------------------------------------


def test_rank_of_planted_grains():
    truth, counts = planted()
    assert run(counts)[2].rank == 3
    assert run(np.random.default_rng(0).poisson(truth.mean(axis=(0, 1)), truth.shape))[2].rank == 1


def test_the_mean_pattern_stays():
    # Corners hold so little that no window shows it.
    _, counts = planted(30)
    out, _, _ = run(counts)
    corner = np.s_[..., 36:, :6]
    assert out[corner].mean() == pytest.approx(counts[corner].mean(), rel=0.02)


@pytest.mark.parametrize("electrons", [300, 3000, 30000])
def test_error_and_its_estimate(electrons):
    truth, counts = planted(electrons)
    for local in (True, False):
        out, left, _ = run(counts, local=local)
        assert error(out, truth) < 0.2 * error(counts, truth)
        estimate = np.sqrt((left.noise.astype(float) ** 2).mean())
        # Regions differ by a pixel in size.
        assert estimate == pytest.approx(error(out, truth), rel=0.35 if local else 0.15)
        assert np.median(left.residual) == pytest.approx(1, abs=0.15)
    assert (left.kept > 0).mean() < 0.01


def test_patterns_without_noise_stay():
    truth, _ = planted(1e5)
    out, _, _ = run(truth, noise=COUNTED)
    np.testing.assert_allclose(out, truth, rtol=0, atol=0.01 * truth.max())


def test_a_single_odd_pattern_is_kept():
    truth, _ = planted(3000)
    u, v = np.indices(DETECTOR)
    disk = np.hypot(u - 30, v - 9) < 2.4
    truth[9, 5] += 12.0 * disk
    counts = np.random.default_rng(7).poisson(truth).astype(np.uint16)
    out, left, _ = run(counts, rank=3)
    assert left.kept[9, 5] > 0.005
    assert left.residual[9, 5] == left.residual.max() > 1.5
    inside = out[9, 5][disk].mean()
    assert inside == pytest.approx(truth[9, 5][disk].mean(), rel=0.2)
    # The neighbours do not get it.
    assert out[9, 6][disk].mean() == pytest.approx(truth[9, 6][disk].mean(), rel=0.3)


def test_what_no_other_position_has_is_noise_of_the_result():
    truth, _ = planted(30000)
    rng = np.random.default_rng(5)
    speckled = np.s_[:, :8]
    truth[speckled] *= rng.gamma(8, 1 / 8, truth[speckled].shape)
    counts = rng.poisson(truth).astype(np.uint16)
    out, left, _ = run(counts)
    for part in (speckled, np.s_[:, 12:]):
        true = error(out[part], truth[part])
        assert error(left.whole_noise[part], 0) == pytest.approx(true, rel=0.3)
    inside = np.s_[:, 2:6]
    assert error(left.noise[inside], 0) < 0.7 * error(out[inside], truth[inside])


def test_gain_of_what_is_left():
    rng = np.random.default_rng(8)
    error = np.full(64, 0.004)
    error[:10] = 0.1  # dark regions
    ratio = 0.97 + error * rng.standard_normal(64)
    ratio[40:] += rng.uniform(0.05, 2, 24)  # the model lacks something there
    assert _gain_of_rest(ratio, error) == pytest.approx(0.97, abs=0.004)
    assert _gain_of_rest(ratio + 1, error) == pytest.approx(1.02)  # the gain is known that well
    assert _gain_of_rest(ratio, np.full(64, np.inf)) == 1


def test_what_the_model_lacks_by_position():
    rng = np.random.default_rng(9)
    single = 0.2 * rng.standard_normal((40, 36))
    single[:, :10] += 1.0
    found = _lack(single, 0.25)
    assert found[:, :6].mean() == pytest.approx(1, abs=0.05)
    assert (found[:, 18:] < 0.2).mean() > 0.95  # not the mean of the scan, which is wrong here
    weak = _lack(rng.standard_normal((40, 36)) + 0.1, 0.1)
    assert np.median(weak) == 0.1  # chance hides it at single positions, not in the whole scan


@pytest.mark.parametrize("gain", [1.0, 1.3])
def test_a_gain_that_is_too_large_is_seen(gain):
    truth, counts = planted(3000)
    out, left, _ = run(counts, noise=Noise(gain, 0.0))
    assert error(left.whole_noise, 0) == pytest.approx(error(out, truth), rel=0.2)


def test_missing_and_hot_pixels():
    truth, counts = planted(3000)
    data = counts.astype(np.float32)
    data[:, :, 30, 30] = 60000
    data[4, 4, 20:24, 15] = np.nan
    data[7, 3] = np.inf
    out, _, model = run(data)
    assert model.rank == 3
    assert model.bins.hot.sum() == 1
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[4, 4, 20:24, 15], truth[4, 4, 20:24, 15], atol=1.5)
    inside = np.broadcast_to(~model.bins.hot, truth.shape).copy()
    inside[7, 3] = False  # nothing was recorded
    assert error(out, truth, inside) < 0.25 * error(counts, truth)


def test_descan_is_undone_and_done_again():
    truth, _ = planted(3000)
    shifts = np.zeros((*SCAN, 2), dtype=int)
    shifts[:, 9:] = (2, -1)
    moved = truth.copy()
    for position in np.argwhere(shifts.any(axis=2)):
        moved[tuple(position)] = np.roll(truth[tuple(position)], -shifts[tuple(position)], (0, 1))
    counts = np.random.default_rng(5).poisson(moved).astype(np.uint16)
    out, _, model = run(counts, shifts=shifts)
    assert model.rank <= 5  # the border that comes in is structure, too
    inner = np.s_[..., 3:-3, 3:-3]
    assert error(out[inner], moved[inner]) < 0.25 * error(counts[inner], moved[inner])
    # What leaves the detector when patterns are moved stays as it was recorded.
    np.testing.assert_array_equal(out[:, 9:, -2:], counts[:, 9:, -2:])
    np.testing.assert_array_equal(out[:, 9:, :, 0], counts[:, 9:, :, 0])
    assert (out[:, 9:, :-2, 1:] != counts[:, 9:, :-2, 1:]).all()


# --- what it must not depend on -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["numpy", "dask", "h5py"])
def test_any_blocks_and_threads_give_the_same_bits(kind, tmp_path):
    _, counts = planted(500, scan=(11, 70), detector=(20, 18))
    expected = run(counts)
    if kind == "dask":
        data = da.from_array(counts, chunks=(3, -1, -1, -1))
    elif kind == "h5py":
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["scan"] = counts
        data = h5py.File(tmp_path / "a.h5", "r")["scan"]
    else:
        data = counts
    for n_rows, n_jobs in ((1, 1), (2, 3), (4, 2), (11, 1)):
        out, left, _ = run(data, n_rows=n_rows, n_jobs=n_jobs)
        np.testing.assert_array_equal(out, expected[0])
        for a, b in zip(left, expected[1], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float64, ">u2"])
def test_types(dtype):
    _, counts = planted(500, scan=(9, 8))
    counts = np.minimum(counts, 255)
    np.testing.assert_allclose(run(counts.astype(dtype))[0], run(counts)[0], atol=1e-3)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e12])
def test_unit_and_dark_level(unit):
    truth, counts = planted(2000)
    data = unit * (counts.astype(np.float64) * 3 + 500)
    out, left, _ = run(data, noise=Noise(3 * unit, 500 * unit))
    expected, expected_left, _ = run(counts)
    # A dark level makes other patterns the strongest, so that the last digits differ.
    assert error((out.astype(float) / unit - 500) / 3, expected) < 0.1 * error(expected, truth)
    ratio = error(left.noise / unit / 3, 0) / error(expected_left.noise, 0)
    assert ratio == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("kind", ["zeros", "flat", "one", "line"])
def test_scans_without_structure(kind):
    rng = np.random.default_rng(0)
    shape = {"one": (1, 1, 9, 12), "line": (1, 9, 12, 9)}.get(kind, (4, 5, 9, 12))
    data = rng.poisson(4, shape).astype(np.float32)
    if kind in ("zeros", "flat"):
        data[:] = 7.0 * (kind == "flat")
    out, left, _ = run(data, noise=None)
    assert np.isfinite(out).all()
    assert np.isfinite(left.noise).all()
    if kind != "one":  # which leaves no more than noise
        assert out.mean() == pytest.approx(data.mean(), rel=0.05, abs=1e-6)


def test_mask_chooses_where_structure_counts():
    truth, counts = planted(3000)
    mask = np.zeros(DETECTOR, dtype=bool)
    mask[:, :20] = True
    out, _, model = run(counts, mask=mask)
    assert model.rank == 3
    assert error(out, truth) < 0.3 * error(counts, truth)
