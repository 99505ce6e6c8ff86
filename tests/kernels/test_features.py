"""Low-rank features against a slow reference in float64, and what they must not depend on."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from py4dstem_clustering import simulate_scan
from py4dstem_clustering.kernels import binning, blocks, features, kept_rows
from py4dstem_clustering.kernels.binning import bin_factor, bin_matrix, find_hot_pixels
from py4dstem_clustering.kernels.features import (
    MAX_RADIAL_RANK,
    features_core,
    find_centre,
    noise_of_neighbours,
    nuisances,
)
from py4dstem_clustering.kernels.moments import offsets
from py4dstem_clustering.scan.calibration import whole_shifts


def run(data, q_mask=None, rank=None, centre=None, n_jobs=1):
    return features_core(
        data, q_mask=q_mask, rank=rank, centre=centre, n_jobs=n_jobs, report=lambda n: None
    )


def planted(scan=(14, 11), detector=(16, 15), n=3, electrons=2000.0, seed=0):
    """Counts of `n` unlike patterns in blocks, and which one lies where."""
    rng = np.random.default_rng(seed)
    x, y = np.indices(scan)
    grain = (x // 4 * 5 + y // 4) % n
    means = rng.gamma(0.5, 2, size=(n, *detector)) * electrons
    means *= (1.0 + np.arange(n))[:, None, None]  # so that no two eigenvalues are near
    return rng.poisson(means[grain]).astype(np.uint32), grain


def same_up_to_sign(a, b, tolerance):
    """Each map equal or negative, to `tolerance` of the largest value of all."""
    assert a.shape == b.shape
    sign = np.sign((a * b).sum(axis=(0, 1)))
    np.testing.assert_allclose(a, b * sign, rtol=0, atol=tolerance * np.abs(b).max())


def half_mask(detector):
    u, v = np.indices(detector)
    return (u > 2) & (v < detector[1] - 1) & (np.hypot(u - 5, v - 6) > 2)


# --- against loops ----------------------------------------------------------------------------


def features_by_loops(data, valid, centre, rank, max_bins):
    """What the docstrings say, in float64: all of `Features`, and the number of features."""
    rx, ry, qx, qy = data.shape
    factor = 1
    while valid.sum() > max_bins * factor**2:
        factor += 1
    n_u, n_v = max(1, round(qx / factor)), max(1, round(qy / factor))
    edges_u = np.round(np.linspace(0, qx, n_u + 1)).astype(int)
    edges_v = np.round(np.linspace(0, qy, n_v + 1)).astype(int)
    x, place, pixels = [], [], []
    for i in range(n_u):
        for j in range(n_v):
            box = slice(edges_u[i], edges_u[i + 1]), slice(edges_v[j], edges_v[j + 1])
            if valid[box].any():
                x.append(np.where(valid[box], data[(..., *box)].astype(float), 0).sum((2, 3)))
                place.append((sum(edges_u[i : i + 2]) / 2 - 0.5, sum(edges_v[j : j + 2]) / 2 - 0.5))
                pixels.append(valid[box].sum())
    x, pixels = np.stack(x, axis=2), np.array(pixels)
    p = len(pixels)

    differences = [np.diff(x, axis=axis).reshape(-1, p) for axis in (0, 1)]
    variance = (np.concatenate(differences) ** 2).mean(axis=0) / 2
    scale = 1 / np.sqrt(np.maximum(variance, 0.02 * variance.mean()))
    z = x * scale

    place = np.array(place) - centre
    radius = np.hypot(*place.T)
    profiles = []
    for node in np.arange(0, radius.max() + 2 * factor, factor):
        hat = np.maximum(1 - np.abs(radius - node) / factor, 0)
        if node <= (radius.max() // factor + 1) * factor:
            profiles.append(hat)
    far = np.maximum(radius, 1e-9)
    if 18 * len(profiles) <= p:
        profiles += [hat * place[:, axis] / far for axis in (0, 1) for hat in profiles]
    rings = np.array(profiles).T * (scale * pixels)[:, None]
    project = np.eye(p) - rings @ np.linalg.pinv(rings, rcond=1e-6)

    covariance, total = np.zeros((p, p)), 0.0
    for dx in (-2, -1, 1, 2):
        for dy in (-2, -1, 1, 2):
            weight = np.exp(-0.5 * (dx**2 + dy**2) / 1.5**2)
            total += weight
            for i in range(rx):
                for j in range(ry):
                    if 0 <= i + dx < rx and 0 <= j + dy < ry:
                        covariance += weight * np.outer(z[i, j], z[i + dx, j + dy])
    covariance = project @ (covariance / total / (rx * ry)) @ project
    level, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    found = int((level > -level.min()).sum())
    values = z @ vectors[:, ::-1][:, : rank or found]
    noise = np.empty(values.shape[2])
    for k in range(len(noise)):
        steps = np.concatenate([np.diff(values[..., k], axis=axis).ravel() for axis in (0, 1)])
        noise[k] = np.median(np.abs(steps)) / 0.6745 / np.sqrt(2)
    return values / noise, x.mean((0, 1)), variance, pixels, found


def radial_by_loops(data, centre):
    """Radial features of a scan whose bins are single pixels, from their definition."""
    rx, ry, qx, qy = data.shape
    x = data.reshape(rx, ry, -1).astype(np.float64)
    steps = [np.diff(x, axis=axis).reshape(-1, qx * qy) for axis in (0, 1)]
    variance = (np.concatenate(steps) ** 2).mean(axis=0) / 2
    scale = 1 / np.sqrt(np.maximum(variance, 0.02 * variance.mean()))
    z = x * scale
    radius = np.array([np.hypot(u - centre[0], v - centre[1]) for u, v in np.ndindex(qx, qy)])
    hats = [np.maximum(1 - np.abs(radius - k), 0) for k in range(int(radius.max()) + 2)]
    basis = np.array([hat for hat in hats if hat.any()]).T * scale[:, None]
    project = basis @ np.linalg.pinv(basis)  # on what depends on the radius alone
    covariance, total = np.zeros((qx * qy, qx * qy)), 0.0
    for dx, dy in product((-2, -1, 1, 2), repeat=2):
        weight = np.exp(-0.5 * (dx**2 + dy**2) / 1.5**2)
        total += weight
        for i, j in np.ndindex(rx, ry):
            if 0 <= i + dx < rx and 0 <= j + dy < ry:
                covariance += weight * np.outer(z[i, j], z[i + dx, j + dy])
    covariance = project @ (covariance + covariance.T) @ project / (2 * total * rx * ry)
    level, vectors = np.linalg.eigh(covariance)
    n = min(int((level > -level[0]).sum()), MAX_RADIAL_RANK)
    values = z @ vectors[:, ::-1][:, :n]
    for k in range(n):
        near = [np.diff(values[..., k], axis=axis).ravel() for axis in (0, 1)]
        values[..., k] /= np.median(np.abs(np.concatenate(near))) / 0.6745 / np.sqrt(2)
    return values


@pytest.mark.parametrize("electrons", [20, 200])
def test_radial_features_equal_loops(electrons):
    data, _ = planted(scan=(9, 11), detector=(17, 15), electrons=electrons)
    u, v = np.indices((17, 15))
    halo = np.exp(-np.hypot(u - 8.3, v - 6.9) / 4)
    rng = np.random.default_rng(2)
    data = data + rng.poisson((40 * np.indices((9, 11))[0])[..., None, None] * halo)
    result = run(data.astype(np.uint16), rank=2, centre=(8.3, 6.9))
    expected = radial_by_loops(data, (8.3, 6.9))
    assert result.radial.dtype == np.float32
    assert result.radial.shape == expected.shape
    same_up_to_sign(result.radial, expected, 1e-2)


@pytest.mark.parametrize("max_bins", [1300, 100, 60])
@pytest.mark.parametrize("masked", [False, True])
def test_features_equal_loops(monkeypatch, max_bins, masked):
    monkeypatch.setattr(binning, "MAX_BINS", max_bins)
    data, _ = planted(scan=(9, 11), detector=(17, 15))
    valid = half_mask((17, 15)) if masked else np.ones((17, 15), bool)
    q_mask = valid if masked else None
    centre = (8.3, 6.9)
    values, mean, variance, pixels, found = features_by_loops(data, valid, centre, 2, max_bins)
    result = run(data, q_mask, rank=2, centre=centre)
    assert result.values.dtype == np.float32
    assert result.values.shape == (9, 11, 2)
    np.testing.assert_array_equal(result.pixels, pixels)
    assert pixels.sum() == valid.sum()
    np.testing.assert_allclose(result.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(result.variance, variance, rtol=1e-4)
    same_up_to_sign(result.values, values, 1e-3)
    assert run(data, q_mask, centre=centre).values.shape[2] == found


def test_offsets_are_one_of_each_pair_of_diagonal_neighbours():
    pairs = offsets((5, 4))
    assert 2 * sum(weight for *_, weight in pairs) == pytest.approx(1)
    steps = {(dx, dy) for dx, dy, _ in pairs}
    both = steps | {(-dx, -dy) for dx, dy in steps}
    assert both == {(dx, dy) for dx in (-2, -1, 1, 2) for dy in (-2, -1, 1, 2)}
    assert len(steps) == 8
    along = {(dx, dy) for dx, dy, _ in offsets((1, 9))}
    assert {(0, 1), (0, 2)} <= along


def test_noise_of_neighbours():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 30, 4)) * [1, 5, 0.1, 0]
    values[10:, :, :] += [30, 10, 8, 0]  # a border is an outlier
    np.testing.assert_allclose(noise_of_neighbours(values), [1, 5, 0.1, 1], rtol=0.1)
    np.testing.assert_array_equal(noise_of_neighbours(np.zeros((1, 1, 2))), 1)
    # Half of the scan and more is empty.
    sparse = np.zeros((30, 20, 1))
    sparse[:6, :6] = rng.normal(size=(6, 6, 1))
    assert 0 < noise_of_neighbours(sparse)[0] < 1


# --- rank and strength ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["counts", "normal"])
def test_independent_noise_has_little_rank(kind):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        shape = (24, 20, 16, 15)
        data = rng.poisson(5, shape) if kind == "counts" else rng.normal(size=shape)
        result = run(data.astype(np.float32))
        # Measured: 4 to 7.
        assert result.values.shape[2] <= features.MAX_RANK // 4
        # These features are the smoothest, so they exceed their noise a little: up to 1.26.
        np.testing.assert_allclose(result.values.std(axis=(0, 1)), 1, atol=0.4)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_patterns_are_counted(n):
    for seed in range(3):
        data, grain = planted((28, 20), n=n, seed=seed)
        values = run(data).values
        # Every pattern is found; a few directions of noise may come on top.
        assert n <= values.shape[2] <= n + 4
        power = (values**2).mean(axis=(0, 1))
        assert power[n - 1] > 50
        assert power[n:].max(initial=0) < 4
        for number in range(n):
            # Blocks of 4 have so many borders that the noise is measured up to twice too large.
            spread = values[grain == number].std(axis=0)
            assert 0.35 < spread.min() <= spread.max() < 2.5


def test_rank_is_what_is_asked_for():
    data, _ = planted()
    full = run(data, rank=5).values
    for rank, n in ((1, 1), (3, 3), (500, features.MAX_RANK)):
        values = run(data, rank=rank).values
        assert values.shape[2] == n
        np.testing.assert_allclose(values[..., :3], full[..., : min(n, 3)], rtol=1e-3)
    assert run(data[..., :2, :3], rank=50).values.shape[2] == 6


def test_a_pattern_of_known_strength_has_that_strength():
    """At a disk with a weak pattern, the feature steps by the strength in units of noise."""
    rng = np.random.default_rng(0)
    scan, detector = (36, 30), (20, 18)
    x, y = np.indices(scan)
    inside = np.hypot(x - 15, y - 17) < 8
    extra = np.zeros(detector)
    extra[4:7, 3:6] = extra[12:14, 13:15] = 6
    flat = np.full(detector, 20.0)
    data = rng.poisson(flat + inside[..., None, None] * extra).astype(np.uint16)
    result = run(data, centre=(9.5, 8.5))
    # Noise has the variance of the counts; the part that is like a ring does not count.
    mean_variance = flat + inside.mean() * extra
    scale = 1 / np.sqrt(mean_variance).ravel()
    u, v = (np.indices(detector) - np.array([9.5, 8.5])[:, None, None]).reshape(2, -1)
    rings = nuisances(u, v, scale, 1.0)
    signal = extra.ravel() * scale
    expected = np.linalg.norm(signal - rings @ (rings.T @ signal))
    assert 4 < expected < 0.95 * np.linalg.norm(signal)
    step = result.values[inside].mean(axis=0) - result.values[~inside].mean(axis=0)
    np.testing.assert_allclose(np.linalg.norm(step), expected, rtol=0.1)
    first = np.abs(np.corrcoef(result.values[..., 0].ravel(), inside.ravel())[0, 1])
    assert first > 0.85


# --- the same for every array, block and number of threads ------------------------------------


def assert_same_bits(a, b):
    for name in features.Features._fields:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.float32, np.float64, ">i4"])
def test_any_array_gives_the_same_bits(scan, wrap, dtype):
    mask = half_mask(scan.shape[2:])
    data = scan.astype(dtype)
    before = data.copy()
    assert_same_bits(run(wrap(data), mask), run(scan, mask))
    np.testing.assert_array_equal(data, before)


def test_any_block_and_number_of_threads_gives_the_same_bits(monkeypatch):
    data, _ = planted((8, 130), (9, 8))  # rows longer than a tile
    expected = run(data)
    for n_jobs in (2, 3, None):
        assert_same_bits(run(data, n_jobs=n_jobs), expected)
    for n_rows in (0, 1, 2, 3, 5):
        n_bytes = 2 * n_rows * data[0].size * 4 + 1
        monkeypatch.setattr(blocks, "BLOCK_BYTES", n_bytes)
        assert_same_bits(run(data, n_jobs=2), expected)


class Counted:
    """A scan that counts how often each row is read."""

    def __init__(self, data):
        self._data, self.shape, self.dtype = data, data.shape, data.dtype
        self.reads = np.zeros(len(data), dtype=int)

    def __getitem__(self, key):
        rows = key[0] if isinstance(key, tuple) else key
        self.reads[rows] += 1
        return self._data[key]


@pytest.mark.parametrize("kind", ["counts", "fractions", "large counts"])
def test_kept_in_memory_in_a_file_or_read_again_gives_the_same_bits(monkeypatch, kind):
    data, _ = planted((9, 7), (9, 8))
    data = {
        "counts": data.astype(np.uint16),
        "fractions": (data / 7).astype(np.float32),
        "large counts": data * 1000,
    }[kind]
    expected = run(data)
    samples = Counted(data)
    binning.Binning(samples, None)
    calls = []
    monkeypatch.setattr(features, "KEPT_BYTES", 3 * 7 * 4 * 9)  # some rows in memory, some not
    for n_rows in (None, 2):
        counted = Counted(data)
        found = features_core(
            counted, q_mask=None, rank=None, centre=None, n_jobs=2, report=calls.append,
            n_rows=n_rows,
        )  # fmt: skip
        assert_same_bits(found, expected)
        np.testing.assert_array_equal(counted.reads, samples.reads + 1)  # once, but for samples

    def no_room(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept_rows.tempfile, "TemporaryFile", no_room)
    counted = Counted(data)
    assert_same_bits(run(counted), expected)
    np.testing.assert_array_equal(counted.reads, samples.reads + 2)


def test_every_row_is_reported_twice(scan):
    rows = []
    features_core(
        scan, q_mask=None, rank=None, centre=None, n_jobs=1, report=lambda n: rows.append(n)
    )
    assert sum(rows) == 2 * len(scan)


# --- what features do not depend on -----------------------------------------------------------


def test_gain_cancels():
    data, _ = planted()
    expected = run(data)
    for gain in (4, 0.25):
        result = run((data * gain).astype(np.float32))
        same_up_to_sign(result.values, expected.values, 1e-5)
        same_up_to_sign(result.radial, expected.radial, 1e-5)
        np.testing.assert_allclose(result.variance, gain**2 * expected.variance, rtol=1e-5)


@pytest.mark.parametrize("max_bins", [1300, 100])
@pytest.mark.parametrize("masked", [False, True])
def test_an_offset_cancels(monkeypatch, max_bins, masked):
    """Also where bins are of unequal size, or the mask cuts through them."""
    monkeypatch.setattr(binning, "MAX_BINS", max_bins)
    data, _ = planted(detector=(17, 15), electrons=50)
    mask = half_mask((17, 15)) if masked else None
    expected = run(data, mask, rank=3, centre=(8.3, 6.9))
    pixels = expected.pixels
    assert max_bins == 1300 or len(np.unique(pixels)) > 1
    for offset in (30, 1000):
        result = run(data + offset, mask, rank=3, centre=(8.3, 6.9))
        same_up_to_sign(result.values, expected.values, 1e-3)
        np.testing.assert_allclose(result.mean, expected.mean + offset * pixels, rtol=1e-5)


def test_thickness_of_what_has_no_direction_cancels():
    """A linear radial profile that varies over the scan changes no feature."""
    detector, centre = (17, 15), (8.0, 7.0)
    data, _ = planted(detector=detector, electrons=50)
    thick = 100 + 90 * np.sin(np.indices(data.shape[:2]).sum(axis=0) / 3)
    u, v = np.indices(detector)
    profile = np.maximum(12 - np.hypot(u - centre[0], v - centre[1]), 0)
    result = run(data + thick[..., None, None] * profile, rank=3, centre=centre)
    expected = run(data.astype(np.float64), rank=3, centre=centre)
    found, before = (
        np.corrcoef(f.values.reshape(-1, 3).T, thick.ravel())[:3, 3] for f in (result, expected)
    )
    np.testing.assert_allclose(np.abs(found), np.abs(before), atol=0.1)
    # It is in the radial features.
    n = result.radial.shape[2]
    agree = np.corrcoef(result.radial.reshape(-1, n).T, thick.ravel())[:n, n]
    assert np.abs(agree).max() > 0.9


def test_turned_scans_have_turned_features(monkeypatch):
    # Hot pixels are looked for in some rows, which are others in a turned scan; in these random
    # patterns without disks some pixels look hot.
    monkeypatch.setattr(binning, "find_hot_pixels", lambda data: np.zeros(data.shape[2:], bool))
    data, _ = planted()
    expected = run(data, rank=3).values
    moves = {
        "transposed": lambda a: a.swapaxes(0, 1),
        "up": lambda a: a[::-1],
        "left": lambda a: a[:, ::-1],
        "turned": np.rot90,
    }
    for move in moves.values():
        same_up_to_sign(run(move(data), rank=3).values, move(expected), 1e-3)
        assert run(move(data)).values.shape[2] == run(data).values.shape[2]


def test_turned_detectors_have_the_same_features():
    data, _ = planted()
    expected = run(data, rank=3, centre=(7, 8))
    result = run(data.swapaxes(2, 3)[:, :, ::-1], rank=3, centre=(14 - 8, 7))
    same_up_to_sign(result.values, expected.values, 1e-3)
    same_up_to_sign(result.radial, expected.radial, 1e-3)


def test_masked_pixels_do_not_matter():
    data, _ = planted()
    mask = half_mask(data.shape[2:])
    changed = np.where(mask, data, 7 * data[::-1] + 3)
    expected, result = (run(d, mask, centre=(8, 7)) for d in (data, changed))
    assert_same_bits(result, expected)


def test_a_wandering_beam_is_not_taken_for_grains():
    """Power of the smooth liquid: 3 to 5 with descan, 2 to 3 without it; 1 is noise alone."""
    for seed in (1, 2):
        scan = simulate_scan(
            (28, 24), (48, 44), n_grains=3, electrons=3000, descan=2, speckle=0, seed=seed
        )
        power = (run(scan.datacube.data).values ** 2).mean(axis=2)
        liquid = scan.shares[..., -1] > 0.999
        assert power[liquid].mean() < 8
        assert power[~liquid].mean() > 10 * power[liquid].mean()


# --- limits -----------------------------------------------------------------------------------


def test_missing_pixels():
    data, grain = planted((16, 12))
    broken = data.astype(np.float32)
    broken[3, 4, 5:7, 2] = np.nan
    broken[9, 1] = np.nan  # a whole pattern
    broken[11, 8, 0, 0] = np.inf
    result = run(broken, rank=3)
    for values in result:
        assert np.isfinite(values).all()
    whole = np.ones(grain.shape, bool)
    whole[[3, 9, 11], [4, 1, 8]] = False
    expected = run(data, rank=3).values[whole]
    # The missing pattern changes the noise, and so the scale; the grains stay where they are.
    for k in range(3):
        assert np.abs(np.corrcoef(result.values[whole][:, k], expected[:, k])[0, 1]) > 0.95
    # It is bridged by those on both sides.
    np.testing.assert_allclose(result.values[9, 1], result.values[[8, 10], 1].mean(axis=0), 1e-5)
    assert np.argwhere(result.lost).tolist() == np.argwhere(result.bridged).tolist() == [[9, 1]]


@pytest.mark.parametrize("value", [0, 3])
def test_data_without_contrast(value):
    for dtype in (np.uint8, np.float32):
        result = run(np.full((5, 6, 8, 7), value, dtype))
        for array in result:
            assert np.isfinite(array).all()
        # At most rounding errors, which are divided by their own standard deviation.
        assert np.abs(result.values).max() < 100
        assert np.ptp(result.values, axis=(0, 1)).max() < 20
        np.testing.assert_array_equal(result.variance, 0)


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 2), (2, 1), (2, 2), (1, 1), (3, 2)])
def test_small_scans(shape):
    rng = np.random.default_rng(0)
    means = rng.gamma(0.5, 300, size=(2, 10, 9))
    grain = (np.arange(np.prod(shape)) >= np.prod(shape) // 2).astype(int).reshape(shape)
    result = run(rng.poisson(means[grain]).astype(np.uint16))
    assert result.values.shape[:2] == result.radial.shape[:2] == shape
    for array in result:
        assert np.isfinite(array).all()
    if 40 in shape:
        means = np.array([result.values[grain == i].mean(axis=0) for i in (0, 1)])
        assert np.linalg.norm(means[0] - means[1]) > 20


def test_small_detectors_and_masks():
    data, _ = planted((10, 9), (8, 7))
    for detector in ((1, 1), (1, 7), (8, 1), (2, 2)):
        result = run(data[:, :, : detector[0], : detector[1]])
        assert result.values.shape[2] <= np.prod(detector)
        for array in result:
            assert np.isfinite(array).all()
    for pixels in ([(3, 4)], [(0, 0), (7, 6)], [(1, 1), (1, 2), (5, 3), (6, 6)]):
        mask = np.zeros((8, 7), bool)
        mask[tuple(np.transpose(pixels))] = True
        result = run(data, mask)
        np.testing.assert_array_equal(result.pixels, 1)
        assert result.mean.shape == (len(pixels),)
        for array in result:
            assert np.isfinite(array).all()


def test_few_pixels_of_a_large_detector_are_not_binned():
    data, _ = planted((6, 5), (60, 50))
    mask = np.zeros((60, 50), bool)
    mask[20:40, 10:40] = True
    result = run(data, mask, rank=2)
    np.testing.assert_array_equal(result.pixels, 1)
    assert 590 < len(result.pixels) <= 600  # a few shine alone in these random patterns
    # 3000 pixels are more than `MAX_BINS`.
    result = run(data, rank=2)
    assert len(result.pixels) <= binning.MAX_BINS
    assert set(result.pixels) <= {3, 4}


# --- parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "n_bins"), [(12, 4), (13, 4), (7, 7), (5, 1), (101, 33)])
def test_bins_share_out_the_pixels(n, n_bins):
    matrix = bin_matrix(n, n_bins)
    assert matrix.shape == (n_bins, n)
    np.testing.assert_array_equal(matrix.sum(axis=0), 1)
    widths = matrix.sum(axis=1)
    assert widths.max() - widths.min() <= 1
    assert (np.diff(matrix.argmax(axis=0)) >= 0).all()  # in order


def test_bin_factor_is_the_smallest_that_fits():
    most = binning.MAX_BINS
    assert bin_factor((100, 100), most) == 1
    assert bin_factor((100, 100), most + 1) == 2
    assert bin_factor((100, 100), 4 * most) == 2
    assert bin_factor((100, 100), 4 * most + 1) == 3
    assert bin_factor((1, 9000), 9000) == 1  # nothing to bin along one axis


def test_the_centre_is_that_of_the_direct_beam():
    u, v = np.indices((40, 50))
    disk = 1000.0 * (np.hypot(u - 17.25, v - 28.5) < 2.6)
    spot = 900.0 * (np.hypot(u - 5, v - 8) < 1.2)
    background = 20 * np.exp(-np.hypot(u - 17, v - 28) / 20)
    beam = disk + spot + background
    for mean in (beam, beam + 500, 3 * beam):
        np.testing.assert_allclose(find_centre(mean), (17.25, 28.5), atol=0.3)
    np.testing.assert_allclose(find_centre(beam[::-1]), (39 - 17.25, 28.5), atol=0.3)
    # A pattern without structure: the middle.
    assert find_centre(np.zeros((5, 8))) == (2, 3.5)
    assert find_centre(np.ones((1, 1))) == (0, 0)


def test_a_direct_beam_behind_a_stop_is_found_by_the_symmetry_of_the_pattern():
    u, v = np.indices((64, 60))
    distance = np.hypot(u - 29, v - 32.5)
    mean = 20 * np.exp(-distance / 12) + 30 * np.exp(-((distance - 11) ** 2) / 4)
    stopped = mean * (np.hypot(u - 29, v - 32.5) > 6) * ~((abs(u - 29) < 3) & (v > 30))
    stopped += 200.0 * (np.hypot(u - 46, v - 24) < 2)  # the brightest place is a reflection
    np.testing.assert_allclose(find_centre(stopped), (29, 32.5), atol=0.51)
    beam = mean + 4000.0 * (distance < 2.5) + 200.0 * (np.hypot(u - 46, v - 24) < 2)
    np.testing.assert_allclose(find_centre(beam), (29, 32.5), atol=0.3)


@pytest.mark.parametrize("width", [1.0, 2.5])
def test_nuisances_hold_rings_and_their_shifts_and_little_else(width):
    rng = np.random.default_rng(0)
    u, v = (np.indices((40, 36)) - np.array([19.2, 16.7])[:, None, None]).reshape(2, -1)
    scale = rng.uniform(0.5, 2, u.size)
    basis = nuisances(u, v, scale, width)
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-10)

    def left_over(pattern):
        pattern = pattern * scale
        return np.linalg.norm(pattern - basis @ (basis.T @ pattern)) / np.linalg.norm(pattern)

    radius, azimuth = np.hypot(u, v), np.arctan2(v, u)
    # Exactly: any profile that is linear between the nodes, also times cosine or sine.
    nodes = np.arange(0, radius.max() + width, width)
    profile = np.interp(radius, nodes, rng.normal(size=len(nodes)))
    for pattern in (profile, np.ones(u.size), profile * np.cos(azimuth), profile * np.sin(azimuth)):
        assert left_over(pattern) < 1e-5
    # Nearly: a smooth ring, and the change of this ring when the pattern moves a little.
    ring = np.exp(-0.5 * ((radius - 11) / 4) ** 2)
    moved = np.exp(-0.5 * ((np.hypot(u - 0.4, v + 0.3) - 11) / 4) ** 2)
    assert left_over(ring) < 0.02
    assert left_over(moved - ring) < 0.15
    # A spot and two- or more-fold patterns stay.
    spot = np.exp(-0.5 * ((u - 9) ** 2 + (v + 5) ** 2) / 1.5**2)
    assert left_over(spot) > 0.8
    for fold in (2, 4, 6):
        assert left_over(ring * np.cos(fold * azimuth)) > 0.8


def test_where_the_mask_leaves_little_only_rings_go():
    u, v = np.arange(30) - 14.5, np.zeros(30)
    basis = nuisances(u, v, np.ones(30), 1.0)
    assert basis.shape[1] <= 17
    odd = np.sign(u)  # what descan would do
    np.testing.assert_allclose(basis.T @ odd, 0, atol=1e-9)


# --- hot pixels -------------------------------------------------------------------------------


@pytest.mark.parametrize("electrons", [30, 1000, 10_000])
def test_hot_pixels_are_found_and_bragg_disks_are_not(electrons):
    options = {"scan_shape": (24, 20), "detector_shape": (48, 44), "n_grains": 3, "seed": 4}
    clean = simulate_scan(electrons=electrons, **options).datacube.data
    assert not find_hot_pixels(clean).any()
    hot = clean.copy()
    hot[:, :, 7, 30] += electrons // 10
    hot[:, :, 40, 5] += electrons // 10
    expected = np.zeros((48, 44), bool)
    expected[7, 30] = expected[40, 5] = True
    np.testing.assert_array_equal(find_hot_pixels(hot), expected)
    # They change nothing.
    centre = (23.5, 21.5)
    without = run(clean, ~expected, centre=centre)
    np.testing.assert_array_equal(run(hot, centre=centre).values, without.values)


def test_hot_pixels_with_a_mask():
    data = np.ones((6, 5, 20, 18))
    data[..., 9, 8] = 100
    only = np.zeros((20, 18), bool)
    only[9, 8] = True
    assert run(data, only, rank=1).pixels.tolist() == [1]  # better a hot pixel than none


def test_whole_shifts_undo_descan(monkeypatch):
    rng = np.random.default_rng(3)
    still = np.zeros((9, 11, 30, 26), dtype=np.uint16)
    inner = np.s_[..., 6:24, 5:21]  # zero at the border, which is repeated
    # Smooth, or single pixels would be taken for hot ones.
    means = 20 * gaussian_filter(rng.random((2, 1, 18, 16)), (0, 0, 2, 2)).repeat([4, 5], axis=0)
    still[inner] = rng.poisson(np.broadcast_to(means, still[inner].shape))
    moves = np.stack([rng.integers(-5, 6, (9, 11)), rng.integers(-4, 5, (9, 11))], axis=2)
    moving = np.empty_like(still)
    for x, y in np.ndindex(9, 11):
        moving[x, y] = np.roll(still[x, y], moves[x, y], axis=(0, 1))
    options = {"q_mask": None, "rank": 4, "centre": (14.5, 12.5), "report": lambda n: None}
    expected = features_core(still, n_jobs=1, **options)
    found = features_core(moving, n_jobs=1, shifts=-moves, **options)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.radial, expected.radial)
    assert np.abs(features_core(moving, n_jobs=1, **options).values - expected.values).max() > 1
    monkeypatch.setattr("py4dstem_clustering.kernels.blocks.BLOCK_BYTES", 1)
    again = features_core(moving, n_jobs=2, shifts=-moves, **options)
    np.testing.assert_array_equal(again.values, expected.values)


def test_a_calibrated_origin_is_used():
    scan = simulate_scan((20, 18), (48, 44), n_grains=2, electrons=3000, descan=6, seed=8)
    cube = scan.datacube
    centre = np.array([(n - 1) / 2 for n in cube.Qshape])
    origin = centre + scan.shifts
    assert whole_shifts(cube) is None  # the same everywhere, so far
    cube.calibration.set_origin((origin[..., 0], origin[..., 1]))
    shifts = whole_shifts(cube)
    assert shifts.dtype.kind == "i"
    assert np.abs(origin + shifts - origin.mean(axis=(0, 1))).max() <= 0.5 + 1e-9
    origin[0, 0] = np.nan
    cube.calibration.set_origin((origin[..., 0], origin[..., 1]))
    np.testing.assert_array_equal(whole_shifts(cube)[0, 0], 0)
