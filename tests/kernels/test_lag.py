"""Camera lag is found, with its direction and size, only where there is one, and is undone."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from conftest import first_quick
from scipy.ndimage import gaussian_filter
from scipy.signal import lfilter
from scipy.special import ndtr

from py4dstem_clustering import simulate_scan
from py4dstem_clustering.kernels import lag as kernel
from py4dstem_clustering.kernels.features import Features, features_core
from py4dstem_clustering.kernels.lag import (
    Lag,
    crossings,
    find_lag,
    fit_step,
    undo_lag,
    without_lag,
)
from py4dstem_clustering.kernels.merging import find_regions, merge_positions

QUIET = {"progress_bar": False}
RANK = 6
MOVES = {
    # How each move changes a scan, and the name that a lag along +Ry then has.
    "transposed": (lambda a: a.swapaxes(0, 1), "+Rx"),
    "left": (lambda a: a[:, ::-1], "-Ry"),
    "up": (lambda a: a[::-1], "+Ry"),
    "turned": (lambda a: a[:, ::-1].swapaxes(0, 1), "-Rx"),
}


def tiles(shape=(60, 63), size=(20, 21), seed=0, strength=40.0):
    """Regions in rows and columns, and features as they are without blur, lag and noise."""
    x, y = np.indices(shape)
    labels = (x // size[0]) * -(-shape[1] // size[1]) + y // size[1]
    mean = np.random.default_rng(seed).normal(size=(labels.max() + 1, RANK))
    mean *= strength / np.linalg.norm(mean, axis=1)[:, None]
    mean *= np.linspace(0.3, 1, len(mean))[np.random.default_rng(seed).permutation(len(mean)), None]
    return labels, mean[labels]


def lagging(values, decay):
    """Values with lag along +Ry; before each row, the camera already holds its first pattern."""
    start = decay * values[:, :1]
    return lfilter([1 - decay], [1, -decay], values, axis=1, zi=start)[0]


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, RANK))


def scan(decay, blur=0.8, level=1.0, seed=0, **options):
    """Features with lag, and the regions that merging finds in them."""
    _, values = tiles(seed=seed, **options)
    values = gaussian_filter(values, (blur, blur, 0)) if blur else values
    values = lagging(values, decay) + level * noise(values.shape[:2], seed)
    return values.astype(np.float32), regions_of(values)


def regions_of(values):
    values = values.astype(np.float32)
    return find_regions(values, merge_positions(values, np.ones(values.shape[:2], bool)))


def features_with(values):
    brightness = values.sum(axis=2).astype(np.float32)
    rank = values.shape[2]
    return Features(
        values.astype(np.float32),
        brightness,
        *(np.ones(3),) * 3,
        directions=np.ones((3, rank), dtype=np.float32),
        bin_grid=np.zeros((3, 2), dtype=np.int64),
    )


# --- crossings --------------------------------------------------------------------------------


def crossings_by_loops(values, labels):
    clear, core = kernel.SIDE_POSITIONS, kernel.CORE_DISTANCE
    members = {k: [] for k in range(labels.max() + 1)}
    for x, y in np.argwhere(labels >= 0):
        around = labels[max(0, x - core) : x + core + 1, max(0, y - core) : y + core + 1]
        if (around == labels[x, y]).all():
            members[labels[x, y]].append(values[x, y].astype(float))
    found = []
    for x in range(labels.shape[0]):
        for y in range(clear, labels.shape[1] - clear + 1):
            one, two = labels[x, y - clear : y].tolist(), labels[x, y : y + clear].tolist()
            a, b = one[0], two[0]
            same = one == [a] * clear and two == [b] * clear
            if not same or a == b or min(a, b) < 0 or not members[a] or not members[b]:
                continue
            first, second = (np.mean(members[k], axis=0) for k in (a, b))
            power = ((second - first) ** 2).sum()
            profile = (values[x, y - clear : y + clear] - first) @ (second - first) / power
            weight = 1 / (1 / power + kernel.CROSSING_SCATTER**2)
            found.append((profile, weight, (second**2).sum() > (first**2).sum(), (a, b)))
    return found


@pytest.mark.parametrize("masked", [False, True])
def test_crossings_equal_loops(masked):
    labels, values = tiles((26, 52), (9, 13))
    labels[3:6, 16:24] = labels.max() + 1  # all its positions lie near other regions
    labels = np.where((np.indices(labels.shape)[0] < 2) & masked, -1, labels)
    values = values + noise(labels.shape)
    profile, weight, rises, pair = crossings(values, labels)
    expected = crossings_by_loops(values, labels)
    assert len(expected) == len(profile) > 20
    for k, (p, w, rise, ends) in enumerate(expected):
        np.testing.assert_allclose(profile[k], p, atol=1e-6)
        assert weight[k] == pytest.approx(w)
        assert rises[k] == rise
        assert tuple(pair[k]) == ends
    assert 0 < rises.mean() < 1


@pytest.mark.parametrize("decay", [0, 0.3, 0.5, 0.66, 0.8])
@pytest.mark.parametrize("blur", [0.3, 0.8, 2.0])
def test_a_step_is_fitted(decay, blur):
    """The step starts far before the profile; its levels are not 0 and 1."""
    n = np.arange(-200, kernel.SIDE_POSITIONS + 1)
    step = lfilter([1 - decay], [1, -decay], ndtr((n + 0.6) / blur))[-2 * kernel.SIDE_POSITIONS :]
    fit = fit_step(0.1 + 0.7 * step)
    assert fit.decay == pytest.approx(decay, abs=0.02)
    assert fit.error < 1e-6
    assert fit.error <= fit.even_error
    if decay >= 0.3:
        assert fit.even_error > 30 * fit.error
        # From the other end there is no tail.
        assert fit_step(-step[::-1]).decay < 0.05


# --- found ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", first_quick([1.0, 0.0, 3.0]))
@pytest.mark.parametrize("blur", first_quick([0.8, 0, 1.5]))
@pytest.mark.parametrize("decay", [0.5, 0.66, 0.8])
def test_a_known_lag_is_found(decay, blur, level):
    labels, values = tiles()
    values = gaussian_filter(values, (blur, blur, 0)) if blur else values
    values = lagging(values, decay) + level * noise(labels.shape)
    found = find_lag(values.astype(np.float32), labels)
    assert found is not None
    assert found.name == "+Ry"
    assert found.decay == pytest.approx(decay, abs=0.06)
    assert found.mean == found.decay / (1 - found.decay)


@pytest.mark.parametrize("decay", [0.5, 0.66])
def test_a_known_lag_is_found_from_regions_that_it_displaced(decay):
    values, labels = scan(decay)
    found = find_lag(values, labels)
    assert found is not None
    assert found.name == "+Ry"
    assert found.decay == pytest.approx(decay, abs=0.08)


@pytest.mark.parametrize("move", first_quick(MOVES, 2))
def test_lag_turns_with_the_scan(move):
    turn, name = MOVES[move]
    values, labels = scan(0.66)
    lag = find_lag(values, labels)
    found = find_lag(np.ascontiguousarray(turn(values)), np.ascontiguousarray(turn(labels)))
    assert found.name == name
    assert found.decay == lag.decay
    plain, turned = (
        undo_lag(features_with(v), at) for v, at in ((values, lag), (turn(values), found))
    )
    np.testing.assert_allclose(turned.values, turn(plain.values), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(turned.brightness, turn(plain.brightness), rtol=1e-4, atol=1e-4)


# --- not found --------------------------------------------------------------------------------


@pytest.mark.parametrize("blur", first_quick([1, 0, 0.5, 2, 3]))
@pytest.mark.parametrize("level", first_quick([1.0, 0.0, 5.0]))
def test_even_blur_is_no_lag(blur, level):
    for seed in range(2):
        values, labels = scan(0, blur, level, seed)
        assert find_lag(values, labels) is None


def test_weak_lag_is_left_alone():
    values, labels = scan(0.2)
    assert find_lag(values, labels) is None


@pytest.mark.parametrize("axis", [0, 1])
def test_blur_along_one_axis_and_long_grains_are_no_lag(axis):
    labels, values = tiles((60, 64), (60, 16))
    for blur in ((0.5, 2.0, 0), (0.5, 0.5, 0)):
        found = (gaussian_filter(values, blur) + noise(labels.shape)).astype(np.float32)
        if axis == 0:
            assert find_lag(found.swapaxes(0, 1), labels.T) is None
        else:
            assert find_lag(found, labels) is None


def test_wedges_are_no_lag():
    """The grain thins out to the left: the tail is in the grain, whether it is left or entered."""
    y = np.indices((60, 63))[1]
    labels = (y // 21).clip(0, 2)
    share = np.where(labels == 1, 1 - np.exp(-(y - 20.5) / 2), 0)[..., None]
    values = share * np.array([40.0, 0, 0, 0, 0, 0]) + noise(labels.shape)
    assert find_lag(values.astype(np.float32), labels) is None
    assert find_lag(values[:, ::-1].astype(np.float32), labels[:, ::-1]) is None
    # The profiles into the grain, alone, look like a lag.
    profile, weight, rises, _ = crossings(values, labels)
    assert fit_step(weight[rises] @ profile[rises] / weight[rises].sum()).decay > kernel.MIN_DECAY


def test_tails_along_both_axes_are_no_lag():
    labels, values = tiles()
    values = lagging(lagging(values, 0.66).swapaxes(0, 1), 0.66).swapaxes(0, 1)
    values = values + noise(labels.shape)
    assert find_lag(values.astype(np.float32), labels) is None


@pytest.mark.parametrize(
    ("shape", "size"),
    [((30, 30), (30, 30)), ((1, 200), (1, 20)), ((200, 1), (20, 1)), ((3, 3), (1, 1))],
)
def test_no_borders_or_few_are_no_lag(shape, size):
    labels, values = tiles(shape, size)
    values = (lagging(values, 0.66) + noise(shape)).astype(np.float32)
    assert find_lag(values, labels) is None
    assert find_lag(values, np.full(shape, -1)) is None


def test_noise_and_nothing_are_no_lag():
    labels, values = tiles()
    assert find_lag(noise(labels.shape).astype(np.float32), labels) is None
    assert find_lag(np.zeros_like(values, dtype=np.float32), labels) is None


# --- undone -----------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.1, 0.5, 0.8])
def test_without_noise_the_inverse_is_exact(decay):
    for seed in range(2):
        values = noise((5, 9), seed)
        values[:, 0] = values[:, 1]  # the pattern before the first position is unknown
        found = without_lag(lagging(values, decay), Lag(1, 1, decay))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, values, atol=1e-4)


@pytest.mark.parametrize("name", ["+Rx", "-Rx", "+Ry", "-Ry"])
def test_undoing_equals_loops(name):
    values = noise((4, 5)).astype(np.float32)
    lag = Lag.from_name(name, 1.5)
    assert lag.name == name
    assert lag.decay == pytest.approx(0.6)
    assert lag.mean == pytest.approx(1.5)
    dx, dy = {"+Rx": (-1, 0), "-Rx": (1, 0), "+Ry": (0, -1), "-Ry": (0, 1)}[name]

    def undone(x, y):
        if not (0 <= x + dx < 4 and 0 <= y + dy < 5):
            return undone(x - dx, y - dy)
        return (values[x, y] - 0.6 * values[x + dx, y + dy]) / 0.4

    expected = np.array([[undone(x, y) for y in range(5)] for x in range(4)])
    np.testing.assert_allclose(without_lag(values, lag), expected, rtol=1e-4, atol=1e-5)
    assert without_lag(values[:1, :1], lag) == pytest.approx(values[:1, :1])


def test_undone_features_have_unit_noise_and_one_scale():
    values = np.array([3.0, 1, 1, 1, 1, 9]) * noise((60, 60))
    features = features_with(values)
    found = undo_lag(features, Lag(1, 1, 0.6))
    assert np.isfinite(found.values).all()
    assert np.isfinite(found.brightness).all()
    differences = np.diff(np.concatenate([found.values, found.values.swapaxes(0, 1)], 1), axis=1)
    np.testing.assert_allclose(differences.std(axis=(0, 1)), np.sqrt(2), rtol=0.2)
    # Brightness stays in the unit of the features: that of those with the same noise.
    plain = features_with(noise((60, 60)))
    found = undo_lag(plain, Lag(1, 1, 0.6))
    np.testing.assert_allclose(found.brightness, found.values.sum(axis=2), rtol=0.2, atol=0.4)
    np.testing.assert_array_equal(features.values, values.astype(np.float32))


# --- in the whole -----------------------------------------------------------------------------


@cache
def simulated(lag):
    return simulate_scan(
        (64, 56), (48, 45), n_grains=6, electrons=2000, probe_blur=0.8, lag=lag, seed=100
    )


def test_a_lagging_scan_is_clustered_as_one_that_does_not():
    scans = {lag: simulated(lag) for lag in (0, 2)}
    clusters = {lag: scan.datacube.cluster(**QUIET) for lag, scan in scans.items()}
    assert clusters[0].settings["lag"] == 0.0
    assert clusters[0].settings["lag_axis"] is None
    assert clusters[2].settings["lag"] == pytest.approx(2, abs=0.4)
    assert clusters[2].settings["lag_axis"] == "+Ry"
    wrong = {lag: ((c.labels >= 0) != (scans[0].labels >= 0)).mean() for lag, c in clusters.items()}
    assert wrong[2] < wrong[0] + 0.01
    assert clusters[2].n_clusters == clusters[0].n_clusters


@pytest.mark.slow
def test_mixtures_undo_the_lag_that_was_found():
    scan = simulated(2)
    clusters = scan.datacube.cluster(**QUIET)
    mixture = clusters.get_mixture(scan.datacube, **QUIET)
    tree = scan.datacube.get_cluster_tree(**QUIET)
    assert tree.settings["lag"] == clusters.settings["lag"]
    plain = features_core(
        scan.datacube.data, q_mask=None, rank=None, centre=None, n_jobs=1, report=lambda n: None
    )
    lag = Lag.from_name(clusters.settings["lag_axis"], clusters.settings["lag"])
    assert (undo_lag(plain, lag).values.shape) == tree.features.shape
    # Most positions are pure: a lag that is left would make mixtures behind each border.
    assert (mixture.purity > 0.9).mean() > 0.8
    assert (mixture.labels[..., 0] == clusters.labels).mean() > 0.93
