"""Simulated series: the frames agree with the truth, and the truth is as documented."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from py4dstem_clustering import simulate_scan
from py4dstem_clustering.simulate.particles import NUCLEUS_AREA
from py4dstem_clustering.simulate.series import simulate_series

SMALL = {"scan_shape": (30, 24), "detector_shape": (32, 30), "n_frames": 12, "n_particles": 4}
TRUTH = (
    "labels",
    "times",
    "drift",
    "areas",
    "growth_rates",
    "rotation_rates",
    "orientations",
    "events",
)
SEEDS = range(6)


def quiet(**options):
    """A series in which nothing happens but what is asked for."""
    still = ("nucleation", "rotation", "coalescence", "dissolution", "drift", "jitter")
    return simulate_series(**{**SMALL, **dict.fromkeys(still, 0), **options})


def assert_same_truth(a, b, names=TRUTH):
    for name in names:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


# --- frames --------------------------------------------------------------------------------------


def test_shapes_and_calibration():
    series = simulate_series(**SMALL, time_step=0.5, seed=1)
    n = series.n_particles
    assert (n, series.n_frames, len(series)) == (4, 12, 12)
    assert series.labels.shape == (12, 30, 24)
    assert series.labels.dtype == np.int32
    np.testing.assert_array_equal(series.times, 0.5 * np.arange(12))
    assert series.drift.shape == (12, 2)
    assert series.areas.shape == (12, n)
    assert series.growth_rates.shape == series.rotation_rates.shape == (n,)
    assert series.orientations.shape == (12, n, 3, 3)
    assert series.events.dtype.names == ("frame", "event", "track", "other")
    assert repr(series) == "SimulatedSeries(12 frames of 30 x 24 x 32 x 30, 4 particles)"
    cube, scan = series.frame(3), simulate_scan((30, 24), (32, 30)).datacube
    assert cube.shape == (30, 24, 32, 30)
    assert cube.data.dtype == np.uint16
    assert cube.name == "simulated_frame_3"
    for quantity in ("R_pixel_size", "R_pixel_units", "Q_pixel_size", "Q_pixel_units", "origin"):
        got, expected = (getattr(c.calibration, f"get_{quantity}")() for c in (cube, scan))
        np.testing.assert_array_equal(got, expected)


def test_frames_are_the_same_each_time_and_in_any_order():
    options = {**SMALL, "scan_shape": (15, 12), "detector_shape": (20, 18)}
    series, again = simulate_series(**options, seed=3), simulate_series(**options, seed=3)
    frames = [cube.data for cube in series]
    assert len(frames) == 12
    for i in (7, 2, 7, 11, 0):
        np.testing.assert_array_equal(again.frame(i).data, frames[i])
    assert_same_truth(series, again)
    assert (simulate_series(**options, seed=4).labels != series.labels).any()


def test_frames_have_noise_of_their_own():
    still = quiet(n_frames=2, seed=1)
    np.testing.assert_array_equal(still.labels[0], still.labels[1])
    expected = 1000 * np.tensordot(still.shares(0), still.patterns(0), 1)
    noise = [(still.frame(i).data - expected).ravel() for i in range(2)]
    assert abs(np.corrcoef(noise)[0, 1]) < 5 / np.sqrt(expected.size)


def test_a_seed_means_the_same_particles():
    series = simulate_series(**SMALL, seed=5)
    other = {"detector_shape": (40, 44), "electrons": 10, "speckle": 0, "disk_radius": 1}
    assert_same_truth(simulate_series(**{**SMALL, **other}, seed=5), series)
    names = set(TRUTH)
    slow = simulate_series(**SMALL, rotation=0.1, seed=5)
    assert_same_truth(slow, series, names - {"rotation_rates", "orientations"})
    np.testing.assert_array_equal(slow.orientations[0], series.orientations[0])
    steady = simulate_series(**SMALL, jitter=0, seed=5)
    assert_same_truth(steady, series, names - {"drift", "labels", "areas", "events"})
    sharp = simulate_series(**SMALL, probe_blur=0.7, seed=5)
    assert_same_truth(sharp, series, names - {"labels", "events"})


def test_the_arrays_are_read_only():
    series = simulate_series(**SMALL, seed=0)
    copy = pickle.loads(pickle.dumps(series))
    assert_same_truth(copy, series)
    np.testing.assert_array_equal(copy.frame(1).data, series.frame(1).data)
    for one in (series, copy):
        for name in TRUTH:
            with pytest.raises(ValueError, match="read-only"):
                getattr(one, name)[...] = 0


def test_counts_are_as_expected():
    # Mean, and chi squared of a Poisson distribution, of some thousand pixels together.
    series = quiet(electrons=3000, speckle=0, probe_blur=0.6, n_frames=1, seed=2)
    counts = series.frame(0).data.astype(float)
    expected = 3000 * np.tensordot(series.shares(0), series.patterns(0), 1)
    assert counts.mean() == pytest.approx(expected.mean(), rel=5e-3)
    chi = ((counts - expected) ** 2)[expected > 1] / expected[expected > 1]
    assert chi.mean() == pytest.approx(1, abs=6 * np.sqrt(2.5 / chi.size))


def test_the_liquid_is_that_of_a_scan():
    options = {"scan_shape": (16, 15), "detector_shape": (32, 30), "electrons": 1e5}
    series = quiet(n_particles=0, n_frames=1, **options)
    scan = simulate_scan(**options, n_grains=0)
    assert (series.labels == -1).all()
    np.testing.assert_array_equal(series.patterns(0), scan.patterns)
    # The speckle is as strong: how much more counts vary than Poisson counts.
    spreads = []
    for cube in (series.frame(0), scan.datacube):
        counts = cube.data.astype(float)
        mean, variance = counts.mean(axis=(0, 1)), counts.var(axis=(0, 1))
        spreads.append(np.mean(variance[mean > 50] / mean[mean > 50]))
    assert spreads[1] > 10
    assert spreads[0] == pytest.approx(spreads[1], rel=0.1)


def test_bright_frames_are_not_cut_off():
    cube = quiet(n_frames=1, scan_shape=(3, 4), electrons=1e7, disk_radius=0.5).frame(0)
    assert cube.data.dtype == np.uint32
    assert cube.data.max() > 65535


# --- where and how large -------------------------------------------------------------------------


def test_labels_are_the_largest_share():
    for blur in (0, 0.8):
        series = simulate_series(**SMALL, probe_blur=blur, seed=2)
        for i in (0, 6, 11):
            shares = series.shares(i)
            np.testing.assert_allclose(shares.sum(axis=2), 1)
            expected = np.append(np.arange(series.n_particles), -1)[shares.argmax(axis=2)]
            np.testing.assert_array_equal(series.labels[i], expected)


def test_shares_point_by_point():
    # 8 x 8 points in each position; where discs overlap, the one with the smaller power counts.
    options = {**SMALL, "scan_shape": (17, 14), "coalescence": 1, "dissolution": 0, "seed": 1}
    series = simulate_series(**options)
    discs, n = series._scene.particles, series.n_particles
    assert n >= 2
    for i in (int(series.events["frame"].max()) - 1, 11):
        expected = np.zeros((17, 14, n + 1))
        for x, y, a, b in np.ndindex(17, 14, 8, 8):
            point = np.array([x, y]) + (np.array([a, b]) + 0.5) / 8 - 0.5
            power = ((point - discs.centres[i]) ** 2).sum(axis=1) - discs.radii[i] ** 2
            inside = power.min() < 0
            expected[x, y, discs.owners[i][power.argmin()] if inside else n] += 1 / 64
        np.testing.assert_allclose(series.shares(i), expected, atol=1e-12)


def test_areas_are_sums_of_shares():
    series = simulate_series(**SMALL, seed=2)
    for i in range(12):
        shares = series.shares(i)
        np.testing.assert_allclose(series.areas[i], shares.sum(axis=(0, 1))[:-1])
    absent = np.isnan(series.orientations[..., 0, 0])
    assert (series.areas[absent] == 0).all()
    assert (series.areas[~absent] > 0).all()


def test_the_sample_drifts_by_fractions_of_a_position():
    series = quiet(scan_shape=(60, 50), drift=0.21, jitter=0.15, seed=3)
    assert (series.drift[0] == 0).all()
    places = np.indices((60, 50))
    for k in range(series.n_particles):
        centres = np.empty((12, 2))
        for i in range(12):
            share = series.shares(i)[..., k]
            centres[i] = (places * share).sum(axis=(1, 2)) / share.sum()
        if np.ptp(series.areas[:, k]) > 0.5:
            continue  # cut by the border
        np.testing.assert_allclose(centres - centres[0], series.drift, atol=0.02)
    steps = np.diff(series.drift, axis=0)
    assert np.hypot(*steps.mean(axis=0)) == pytest.approx(0.21, abs=0.06)
    assert np.std(np.diff(steps, axis=0)) == pytest.approx(0.15 * np.sqrt(6), rel=0.4)
    # Without jitter, it is steady.
    steady = quiet(drift=0.21, seed=3).drift
    np.testing.assert_allclose(steady, np.outer(np.arange(12), steady[1]), atol=1e-12)
    assert np.hypot(*steady[1]) == pytest.approx(0.21)


def test_what_is_outside_does_not_count():
    # The sample leaves the scan: all is visible in frame 0, less and less later.
    series = quiet(drift=2.0, n_frames=20, seed=1)
    radii = series._scene.particles.radii[0]
    np.testing.assert_allclose(series.areas[0], np.pi * radii**2, rtol=0.03)
    assert (series.areas[-1] == 0).any()
    gone = series.events[series.events["event"] == "death"]
    assert gone.size > 0
    for event in gone:
        assert (series.labels[event["frame"]] != event["track"]).all()


def test_the_probe_sees_what_is_just_outside():
    options = {"n_frames": 12, "drift": 1.0, "probe_blur": 1.3, "seed": 2}
    series = quiet(**options)
    scene = series._scene
    wide = scene._replace(
        setup=scene.setup._replace(scan_shape=(50, 44)),
        particles=scene.particles._replace(centres=scene.particles.centres + 10),
    )
    for i in (0, 11):
        expected = wide.shares(wide.coverage(i))[10:-10, 10:-10]
        np.testing.assert_allclose(series.shares(i), expected, atol=1e-12)
    sharp = quiet(**options | {"probe_blur": 0})
    assert np.abs(series.shares(11) - sharp.shares(11)).max() > 0.1


# --- what happens to particles -------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_area_grows_steadily(seed):
    series = quiet(nucleation=0.5, growth=3, time_step=0.7, seed=seed)
    births = series.events[series.events["event"] == "birth"]
    assert len(births) == 2
    assert (births["frame"] <= 6).all()
    full = np.pi * series._scene.particles.radii[-1] ** 2
    for k in range(4):
        rate = series.growth_rates[k]
        if k not in births["track"]:
            assert rate == 0
            np.testing.assert_allclose(series.areas[:, k], full[k], atol=0.6)
            continue
        assert 1.5 <= rate <= 4.5
        begin = births["frame"][births["track"] == k][0]
        since = series.times - series.times[begin]
        expected = np.minimum(NUCLEUS_AREA + rate * since, full[k])
        assert (series.areas[:begin, k] == 0).all()
        # The whole particle is in the scan; its area is that of 64 points in each position.
        np.testing.assert_allclose(series.areas[begin:, k], expected[begin:], atol=0.6)
        growing = np.arange(12)[(since >= 0) & (expected < full[k])]
        slope = np.polyfit(series.times[growing], series.areas[growing, k], 1)[0]
        assert slope == pytest.approx(rate, rel=0.05)


@pytest.mark.parametrize("seed", SEEDS)
def test_particles_turn_steadily(seed):
    series = simulate_series(**SMALL, time_step=0.4, rotation=5, seed=seed)
    assert ((series.rotation_rates >= 0) & (series.rotation_rates <= 5)).all()
    for k in range(4):
        there = np.flatnonzero(np.isfinite(series.orientations[:, k, 0, 0]))
        matrices = series.orientations[there, k]
        unit = np.broadcast_to(np.eye(3), matrices.shape)
        np.testing.assert_allclose(matrices @ matrices.transpose(0, 2, 1), unit, atol=1e-12)
        assert (np.linalg.det(matrices) > 0).all()
        # Rotations of the particle, in the axes of the image and the beam.
        turns = matrices[1:].transpose(0, 2, 1) @ matrices[:-1]
        vectors = np.rad2deg(Rotation.from_matrix(turns).as_rotvec())
        np.testing.assert_allclose(vectors, vectors[:1] + np.zeros((len(vectors), 1)), atol=1e-9)
        speed = np.linalg.norm(vectors, axis=1) / 0.4
        np.testing.assert_allclose(speed, series.rotation_rates[k], atol=1e-9)


def test_particles_turn_about_axes_of_all_directions():
    many = {"scan_shape": (120, 120), "detector_shape": (16, 16), "n_particles": 60}
    series = quiet(**many, rotation=5, n_frames=2, seed=1)
    turns = series.orientations[1].transpose(0, 2, 1) @ series.orientations[0]
    axes = Rotation.from_matrix(turns).as_rotvec()
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    n = len(axes)
    assert n > 40
    np.testing.assert_allclose(axes.T @ axes / n, np.eye(3) / 3, atol=4 * np.sqrt(0.1 / n))
    assert np.linalg.norm(axes.mean(axis=0)) < 3 / np.sqrt(n)


def test_patterns_follow_the_orientation():
    series = quiet(rotation=3, seed=1)
    for i in (0, 11):
        for k in range(4):
            disks = series._scene.scattering.bragg(series.orientations[i, k])
            expected = 0.6 * series.patterns(i)[-1] + 0.4 * disks
            np.testing.assert_allclose(series.patterns(i)[k], expected / expected.sum())
    assert np.abs(series.patterns(11)[0] - series.patterns(0)[0]).max() > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_two_become_one(seed):
    series = quiet(coalescence=1, nucleation=0.5, drift=0.1, seed=seed)
    merges = series.events[series.events["event"] == "merge"]
    assert len(merges) == series.n_particles // 2 >= 1
    for frame, _, small, large in merges:
        assert frame >= 7
        before, after = series.areas[frame - 1], series.areas[frame]
        assert (series.areas[frame:, small] == 0).all()
        assert np.isnan(series.orientations[frame:, small]).all()
        assert np.isfinite(series.orientations[frame - 1, small]).all()
        radii = series._scene.particles.radii[frame]
        assert radii[small] <= radii[large]
        # The sum of both areas, up to their overlap and their growth in the last frame.
        whole = np.pi * (radii[small] ** 2 + radii[large] ** 2)
        assert 0.85 * whole < after[large] < 1.01 * whole
        assert before[small] > 0.5 * np.pi * radii[small] ** 2 - 10
        # Where the small one was, the pattern is that of the large one.
        was = series.labels[frame - 1] == small
        assert (series.labels[frame][was] == large).mean() > 0.7
        # It stays in one piece, which no longer grows.
        np.testing.assert_allclose(series.areas[frame:, large], after[large], atol=8)
    # Far from it in time, they are apart.
    n = series.n_particles
    both = np.zeros((n, n), bool)
    labels = series.labels[0]
    for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        both[a[(a >= 0) & (b >= 0)], b[(a >= 0) & (b >= 0)]] = True
    assert not (both & ~np.eye(n, dtype=bool)).any()


@pytest.mark.parametrize("seed", SEEDS)
def test_one_moves_to_the_other_during_six_frames(seed):
    series = quiet(coalescence=1, seed=seed)
    centres, radii = series._scene.particles.centres, series._scene.particles.radii[0]
    for frame, _, small, large in series.events[series.events["event"] == "merge"]:
        distance = np.hypot(*(centres[:, small] - centres[:, large]).T)
        np.testing.assert_allclose(distance[: frame - 5], distance[0])
        assert (np.diff(distance[frame - 6 : frame + 1]) < -0.1).all()
        np.testing.assert_allclose(distance[frame:], 0.85 * (radii[small] + radii[large]))


def test_merged_particles_are_connected():
    from scipy.ndimage import label

    for seed in SEEDS:
        series = simulate_series(n_frames=12, detector_shape=(16, 16), seed=seed)
        for frame, _, _, large in series.events[series.events["event"] == "merge"]:
            assert label(series.labels[frame] == large)[1] == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_particles_dissolve(seed):
    series = quiet(dissolution=0.5, n_frames=20, seed=seed)
    deaths = series.events[series.events["event"] == "death"]
    assert len(deaths) == len(series.events) == 2
    for frame, _, k, other in deaths:
        assert other == -1
        areas = series.areas[:, k]
        end = np.flatnonzero(areas)[-1] + 1
        assert frame in (end, end - 1)  # the last part may have no label
        assert 11 <= end <= 19
        shrinking = np.flatnonzero((areas < areas[0] - 1) & (areas > 0))
        steps = np.diff(areas[shrinking])
        np.testing.assert_allclose(steps, steps.mean(), atol=1)
        assert 4 <= areas[0] / -steps.mean() <= 8.2  # 0.2 to 0.4 of 20 frames
        assert np.isnan(series.orientations[end:, k]).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_events_are_what_the_labels_show(seed):
    series = simulate_series(n_frames=14, detector_shape=(16, 16), drift=0.5, seed=seed)
    events = {}
    for k in range(series.n_particles):
        frames = [i for i in range(14) if k in series.labels[i]]
        if frames and frames[0] > 0:
            events[frames[0], k] = "birth"
        if frames and frames[-1] < 13:
            events[frames[-1] + 1, k] = "gone"
    assert [(e["frame"], e["track"]) for e in series.events] == sorted(events)
    for frame, event, k, other in series.events:
        assert events[frame, k] == ("birth" if event == "birth" else "gone")
        if event == "merge":
            assert (series._scene.particles.owners[frame:, k] == other).all()
            assert series._scene.particles.owners[frame - 1, k] == k
        else:
            assert other == -1
    names = series.events["event"].tolist()
    assert {"birth", "death", "merge"} == set(names)


def test_the_options_are_shares_of_the_particles():
    many = {"scan_shape": (60, 50), "n_particles": 20, "n_frames": 10, "seed": 1}
    for nucleation, coalescence, dissolution in [(0.5, 0.4, 0.3), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        series = quiet(
            **many, nucleation=nucleation, coalescence=coalescence, dissolution=dissolution
        )
        n, names = series.n_particles, series.events["event"].tolist()
        assert n >= 15
        assert names.count("birth") == int(nucleation * n + 0.5)
        assert names.count("merge") <= int(coalescence * 20 / 2 + 0.5)
        assert names.count("merge") >= 0.6 * coalescence * 20 / 2
        assert names.count("death") == int(dissolution * n + 0.5)


@given(
    scan_shape=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    n_frames=st.integers(1, 7),
    n_particles=st.integers(0, 7),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    growth=st.floats(0, 50),
    drift=st.floats(0, 1),
    probe_blur=st.sampled_from([0, 0.1, 0.9]),
    seed=st.integers(0, 2**40),
)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_any_series_is_consistent(shares, drift, scan_shape, probe_blur, **options):
    nucleation, coalescence, part = shares
    series = simulate_series(
        scan_shape,
        (16, 17),
        nucleation=nucleation,
        coalescence=coalescence,
        dissolution=part * (1 - coalescence),
        drift=drift,
        jitter=drift,
        probe_blur=min(probe_blur, *scan_shape),
        **options,
    )
    n = series.n_particles
    assert n <= options["n_particles"]
    assert set(np.unique(series.labels)) <= set(range(-1, n))
    assert (series.areas.sum(axis=1) <= series.labels[0].size + 1e-9).all()
    assert (np.isfinite(series.orientations[..., 0, 0]) | (series.areas == 0)).all()
    i = series.n_frames - 1
    shares = series.shares(i)
    np.testing.assert_allclose(shares.sum(axis=2), 1)
    assert shares.min() >= 0
    born = series.events["track"][series.events["event"] == "birth"]
    ended = series.events["track"][series.events["event"] != "birth"]
    assert len(set(born)) == len(born)
    assert len(set(ended)) == len(ended)
    assert (np.diff(series.events["frame"]) >= 0).all()
    if n:
        assert np.nansum(series.patterns(i)[:n].sum(axis=(1, 2))) == pytest.approx(
            np.isfinite(series.orientations[i, :, 0, 0]).sum()
        )
    assert series.frame(i).shape == (*scan_shape, 16, 17)


def test_few_frames():
    assert len(simulate_series(**SMALL | {"n_frames": 1}, nucleation=1).events) == 0
    two = simulate_series(**SMALL | {"n_frames": 2}, nucleation=0.5, coalescence=1, dissolution=0)
    assert two.events["event"].tolist() == ["birth"] * 2
    three = quiet(n_frames=3, coalescence=1, nucleation=1)
    assert {"merge"} == set(three.events["event"][three.events["frame"] == 2])


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"scan_shape": (0, 5)}, ValueError, "scan_shape=0 must be at least 1"),
        ({"scan_shape": 5}, TypeError, "scan_shape=5 must be two whole numbers"),
        ({"detector_shape": (8, 40)}, ValueError, "detector_shape=8 must be at least 16"),
        ({"n_frames": 0}, ValueError, "n_frames=0 must be at least 1"),
        ({"n_particles": -1}, ValueError, "n_particles=-1 must be at least 0"),
        ({"electrons": 1e10}, ValueError, "electrons=10000000000.0 .* from 0 to 1e"),
        ({"time_step": 0}, ValueError, "time_step=0 must be a finite number of at least 1e-12"),
        ({"nucleation": 1.1}, ValueError, "nucleation=1.1 .* from 0 to 1"),
        ({"growth": -1}, ValueError, "growth=-1 .* of at least 0"),
        ({"rotation": np.inf}, ValueError, "rotation=inf .* of at least 0"),
        ({"coalescence": -0.1}, ValueError, "coalescence=-0.1 .* from 0 to 1"),
        ({"dissolution": "1"}, TypeError, "dissolution='1' must be a number"),
        ({"coalescence": 0.6, "dissolution": 0.5}, ValueError, "coalescence=0.6 and dissolution="),
        ({"drift": 31}, ValueError, "drift=31 .* from 0 to 30"),
        ({"jitter": -1}, ValueError, "jitter=-1 .* from 0 to 30"),
        ({"speckle": -1}, ValueError, "speckle=-1"),
        ({"k_max": 0}, ValueError, "k_max=0"),
        ({"disk_radius": 5}, ValueError, "disk_radius=5 .* from 0.5 to 3.75"),
        ({"scan_step": 0}, ValueError, "scan_step=0"),
        ({"probe_blur": 25}, ValueError, "probe_blur=25 .* from 0 to 24"),
        ({"seed": None}, TypeError, "seed=None must be a whole number"),
        ({"seed": -1}, ValueError, "seed=-1 must be at least 0"),
    ],
)
def test_bad_options(options, error, match):
    with pytest.raises(error, match=match):
        simulate_series(**{**SMALL, **options})


def test_frames_that_are_not_there():
    series = simulate_series(**SMALL)
    for method in (series.frame, series.shares, series.patterns):
        with pytest.raises(IndexError, match="i=12 must be below 12, the number of frames"):
            method(12)
        with pytest.raises(ValueError, match="i=-1 must be at least 0"):
            method(-1)
        with pytest.raises(TypeError, match=r"i=1\.5 must be a whole number"):
            method(1.5)
