"""Camera lag is found, with its direction and size, only where there is one, and is undone."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from conftest import first_quick
from scipy.ndimage import gaussian_filter
from scipy.signal import lfilter
from scipy.special import ndtr

from py4dstem_clustering import simulate_sample, simulate_scan
from py4dstem_clustering.kernels import lag as kernel
from py4dstem_clustering.kernels.features import Features, features_core
from py4dstem_clustering.kernels.lag import (
    Crossings,
    Lag,
    crossings,
    find_lag,
    fit_step,
    join_tails,
    measure_decay,
    settle_lag,
    undo_lag,
    without_lag,
)
from py4dstem_clustering.kernels.merging import find_regions, merge_positions
from py4dstem_clustering.kernels.regions import consecutive

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
    rank = values.shape[2]
    return Features(
        values.astype(np.float32),
        radial=values[..., :1].astype(np.float32),
        **dict.fromkeys(("mean", "variance", "pixels"), np.ones(3)),
        directions=np.ones((3, rank), dtype=np.float32),
        bin_grid=np.zeros((3, 2), dtype=np.int64),
        lost=np.zeros(values.shape[:2], dtype=bool),
        bridged=np.zeros(values.shape[:2], dtype=bool),
    )


# --- crossings --------------------------------------------------------------------------------


def crossings_by_loops(values, labels, before, after):
    core = kernel.CORE_DISTANCE
    members = {k: [] for k in range(labels.max() + 1)}
    for x, y in np.argwhere(labels >= 0):
        around = labels[max(0, x - core) : x + core + 1, max(0, y - core) : y + core + 1]
        if (around == labels[x, y]).all():
            members[labels[x, y]].append(values[x, y].astype(float))
    found = []
    for x in range(labels.shape[0]):
        for y in range(before, labels.shape[1] - after + 1):
            one, two = labels[x, y - before : y].tolist(), labels[x, y : y + after].tolist()
            a, b = one[0], two[0]
            same = one == [a] * before and two == [b] * after
            if not same or a == b or min(a, b) < 0 or not members[a] or not members[b]:
                continue
            first, second = (np.mean(members[k], axis=0) for k in (a, b))
            power = ((second - first) ** 2).sum()
            profile = (values[x, y - before : y + after] - first) @ (second - first) / power
            weight = 1 / (1 / power + kernel.CROSSING_SCATTER**2)
            found.append((profile, weight, (second**2).sum() > (first**2).sum(), (a, b)))
    return found


@pytest.mark.parametrize("sides", [(7, 7), (5, 10)])
@pytest.mark.parametrize("masked", [False, True])
def test_crossings_equal_loops(masked, sides):
    labels, values = tiles((26, 52), (9, 13))
    labels[3:6, 16:24] = labels.max() + 1  # all its positions lie near other regions
    labels = np.where((np.indices(labels.shape)[0] < 2) & masked, -1, labels)
    values = values + noise(labels.shape)
    profile, weight, rises, pair = crossings(values, labels, *sides)
    expected = crossings_by_loops(values, labels, *sides)
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
    if decay == 0.5 and blur == 1.5:  # so wide a probe hides so short a tail
        assert found is None
        return
    assert found is not None
    assert found.name == "+Ry"
    assert found.decay == pytest.approx(decay, abs=0.06)


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
    np.testing.assert_allclose(turned.radial, turn(plain.radial), rtol=1e-4, atol=1e-4)


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


def profiles_of_pairs(decays):
    """A profile for each pair of regions; a negative decay is a tail before the border."""
    n = np.arange(-100, kernel.SIDE_POSITIONS + 1)
    profiles = []
    for decay in decays:
        step = lfilter([1 - abs(decay)], [1, -abs(decay)], ndtr(n + 0.5))[-14:]
        profiles.append(step if decay >= 0 else 1 - step[::-1])
    pair = np.stack([np.arange(len(decays)), np.arange(len(decays)) + 1], axis=1)
    rises = np.arange(len(decays)) % 2 == 0
    return Crossings(np.array(profiles), np.ones(len(decays)), rises, pair)


def test_tails_of_some_pairs_only_are_a_bend_and_no_lag():
    assert kernel._is_one_sided(profiles_of_pairs([0.6, 0.5, 0.7, 0.6, 0.5]), 1)
    assert not kernel._is_one_sided(profiles_of_pairs([0.6, 0.5, 0.7, 0.6, 0.5]), -1)
    assert kernel._is_one_sided(profiles_of_pairs([-0.6, -0.5, -0.7, 0.2]), -1)
    for mixed in ([0.9, 0.9, -0.5, -0.5, -0.3], [0.8, 0, 0, 0, 0, 0], [0, 0, 0.1]):
        assert not kernel._is_one_sided(profiles_of_pairs(mixed), 1)
        assert not kernel._is_one_sided(profiles_of_pairs(mixed), -1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [103, 107])
def test_bend_contours_are_no_lag(seed):
    """The mean profiles of these foils look like a lag."""
    sample = simulate_sample("bent-foil", (96, 90), (40, 36), electrons=10000, seed=seed)
    assert sample.datacube.cluster(level="pattern", **QUIET).settings["lag_share"] == 0


# --- its size, and what it leaves ---------------------------------------------------------------


@pytest.mark.parametrize("decay", first_quick([0.8, 0.5, 0.66]))
def test_the_size_is_measured_over_a_long_tail(decay):
    labels, values = tiles()
    values = gaussian_filter(values, (0.8, 0.8, 0))
    values = (lagging(values, decay) + noise(labels.shape)).astype(np.float32)
    for guess in (0.4, 0.9):
        found = measure_decay(values, labels, Lag(1, 1, guess))
        assert found.decay == pytest.approx(decay, abs=0.03)
    # Turned round, or from too few borders.
    back = measure_decay(values[:, ::-1], labels[:, ::-1], Lag(1, -1, 0.4))
    assert back.decay == found.decay
    few = measure_decay(values[:5], labels[:5], Lag(1, 1, 0.4))
    assert few == Lag(1, 1, 0.4)


def test_tails_join_what_lies_below_and_weak_grains_stay():
    """From left to right: film, grain, its tail, film; below it a weak grain, and a thin part."""
    labels = np.zeros((40, 60), dtype=np.int64)
    labels[:20, 20:35], labels[:20, 35:48] = 1, 2
    labels[20:, 20:35], labels[20:, 35:48] = 3, 4
    labels[20:, 7:20] = 5
    film, grain, other, weak = 4 * np.eye(6)[:4] * np.array([1, 12, 14, 3])[:, None]
    mean = np.stack([film, grain, film + 0.2 * grain, other, film + weak, film + 0.2 * other])
    values = (mean[labels] + noise(labels.shape)).astype(np.float32)
    expected = np.where(labels == 2, 0, labels)
    found = join_tails(labels, values, Lag(1, 1, 0.6))
    np.testing.assert_array_equal(found, consecutive(expected))
    # In the other direction, the thin part before the second grain is its tail.
    found = join_tails(labels, values, Lag(1, -1, 0.6))
    np.testing.assert_array_equal(found, consecutive(np.where(labels == 5, 0, labels)))
    # A share of more than a half may be a grain.
    mean[2] = film + 0.7 * grain
    values = (mean[labels] + noise(labels.shape)).astype(np.float32)
    np.testing.assert_array_equal(join_tails(labels, values, Lag(1, 1, 0.6)), labels)
    for n in (0, 1):
        few = np.full((40, 60), n - 1)
        np.testing.assert_array_equal(join_tails(few, values, Lag(1, 1, 0.6)), few)


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
    lag = Lag.from_name(name, 0.6)
    assert lag.name == name
    assert lag.decay == 0.6
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
    for maps in (found.values, found.radial):
        assert np.isfinite(maps).all()
        differences = np.diff(np.concatenate([maps, maps.swapaxes(0, 1)], 1), axis=1)
        np.testing.assert_allclose(differences.std(axis=(0, 1)), np.sqrt(2), rtol=0.2)
    np.testing.assert_array_equal(features.values, values.astype(np.float32))


@pytest.mark.parametrize("name", ["+Ry", "-Rx"])
def test_nothing_is_taken_from_lost_frames(name):
    features = features_with(20 + noise((9, 10)))
    lost = np.zeros((9, 10), bool)
    lost[3:7, 2:7] = True
    values = np.where(lost[..., None], 0, features.values)
    lag = Lag.from_name(name, 0.6)
    found = undo_lag(features._replace(values=values, lost=lost), lag).values
    assert (found[lost] == 0).all()
    behind = np.s_[3:7, 7] if name == "+Ry" else np.s_[2, 2:7]
    np.testing.assert_allclose(found[behind].mean(), found[0].mean(), rtol=0.15)


# --- in the whole -----------------------------------------------------------------------------


@cache
def simulated(lag):
    return simulate_scan(
        (64, 56), (48, 45), n_grains=6, electrons=2000, probe_blur=0.8, lag=lag, seed=100
    )


def test_a_lagging_scan_is_clustered_as_one_that_does_not():
    scans = {lag: simulated(lag) for lag in (0, 2)}
    clusters = {lag: scan.datacube.cluster(**QUIET) for lag, scan in scans.items()}
    assert clusters[0].settings["lag"] == clusters[2].settings["lag"] == "auto"
    assert clusters[0].settings["lag_share"] == 0.0
    assert clusters[0].settings["lag_axis"] is None
    assert clusters[2].settings["lag_share"] == pytest.approx(2 / 3, abs=0.03)
    assert clusters[2].settings["lag_axis"] == "+Ry"
    wrong = {lag: ((c.labels >= 0) != (scans[0].labels >= 0)).mean() for lag, c in clusters.items()}
    assert wrong[2] < wrong[0] + 0.01
    assert clusters[2].n_clusters == clusters[0].n_clusters


@pytest.mark.parametrize(
    ("measured", "tried", "settled"),
    [
        ([0.61], [0.6], 0.6),
        ([0.7, 0.71], [0.6, 0.7], 0.7),
        ([0.7, 0.8, 0.9], [0.6, 0.7], 0.8),  # no more passes
    ],
)
def test_the_decay_is_measured_until_it_stays(monkeypatch, measured, tried, settled):
    """With the regions that are found without the lag of before."""
    found, seen, values = iter(measured), [], object()

    def measure(of, regions, lag):
        assert of is values
        assert regions == f"without {lag.decay}"
        return lag._replace(decay=next(found))

    def regions_without(lag):
        seen.append(lag.decay)
        return f"without {lag.decay}"

    monkeypatch.setattr(kernel, "measure_decay", measure)
    assert settle_lag(values, Lag(0, -1, 0.6), regions_without) == Lag(0, -1, settled)
    assert seen == tried


@pytest.mark.parametrize("lag", [0, 0.6])
def test_a_lag_may_be_given_or_forbidden(monkeypatch, lag):
    monkeypatch.setattr("py4dstem_clustering.grains.tree_of_scan.find_lag", None)  # not asked
    scan = simulated(2)
    clusters = scan.datacube.cluster(lag=lag, **QUIET)
    assert clusters.settings["lag"] == clusters.settings["lag_share"] == lag
    assert clusters.settings["lag_axis"] == (None if lag == 0 else "+Ry")
    assert "lag" in dict(clusters.settings)  # an option, which repeats the work
    right = ((clusters.labels >= 0) == (scan.labels >= 0)).mean()
    # The tails of grains move their borders to the liquid.
    assert (right > 0.97) == (lag > 0)
    text = clusters.describe()
    assert ("a share of 0.6 of each pattern is left in the next one along +Ry (given)" in text) == (
        lag > 0
    )


@pytest.mark.slow
def test_mixtures_undo_the_lag_that_was_found():
    scan = simulated(2)
    clusters = scan.datacube.cluster(**QUIET)
    mixture = clusters.get_mixture(scan.datacube, **QUIET)
    tree = scan.datacube.get_cluster_tree(**QUIET)
    assert tree.settings["lag_share"] == clusters.settings["lag_share"]
    plain = features_core(
        scan.datacube.data, q_mask=None, rank=None, centre=None, n_jobs=1, report=lambda n: None
    )
    lag = Lag.from_name(clusters.settings["lag_axis"], clusters.settings["lag_share"])
    assert (undo_lag(plain, lag).values.shape) == tree.features.shape
    # Most positions are pure: a lag that is left would make mixtures behind each border.
    assert (mixture.purity > 0.9).mean() > 0.8
    assert (mixture.labels[..., 0] == clusters.labels).mean() > 0.93
