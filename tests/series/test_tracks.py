"""Tracks: results, their rules, and quality on simulated series with known particles."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from py4DSTEM.process.diffraction import Crystal
from py4DSTEM.process.diffraction.utils import OrientationMap
from scipy.spatial.transform import Rotation as Turn

from py4dstem_clustering import Clusters
from py4dstem_clustering.metrics import track_quality
from py4dstem_clustering.series.linking import link_frames
from py4dstem_clustering.series.motion import find_drift, rotation_rate
from py4dstem_clustering.series.tracks import EVENTS_DTYPE, TABLE_DTYPE, Tracks
from py4dstem_clustering.simulate.series import simulate_series

FCC = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]


@pytest.fixture(scope="module")
def gold():
    return Crystal(np.array(FCC), 79, 4.0782)


@pytest.fixture(scope="module")
def series():
    return simulate_series(n_frames=12, seed=100)


def label_map(*boxes, shape=(9, 12)):
    labels = np.full(shape, -1)
    for k, (x, y, nx, ny) in enumerate(boxes):
        labels[x : x + nx, y : y + ny] = k
    return labels


def clusters_of(labels, pixel_size=1.0, background=()):
    seeds = np.array([np.argwhere(labels == k)[0] for k in range(labels.max() + 1)])
    mean = np.linspace(0, 1, labels.size).reshape(labels.shape)
    seeds = seeds.reshape(-1, 2)
    return Clusters(labels, seeds, mean, pixel_size=pixel_size, background=background)


LABELS = [
    label_map((1, 1, 3, 2), (4, 7, 4, 3)),
    label_map((0, 7, 9, 5), (1, 1, 3, 3), (5, 0, 2, 2)),
    None,
    label_map((1, 1, 4, 3), (4, 7, 4, 4)),
]
TIMES = [0.5, 1.0, 2.0, 4.0]


def frames_of(labels=LABELS, background=((), (2,), (), ()), pixel_size=2.0):
    for item, flags in zip(labels, background, strict=True):
        if item is None:
            yield None
            continue
        clusters = clusters_of(item, pixel_size, flags)
        yield clusters.labels, None, clusters.properties(), clusters.background


# --- results ---------------------------------------------------------------------------------


def test_table():
    drift = [[0, 0], [0.25, -0.5], [np.nan, np.nan], [0.75, -1.5]]
    tracks = link_frames(frames_of(), times=TIMES, drift=drift)
    assert tracks.table.dtype == TABLE_DTYPE
    assert tracks["frame"].tolist() == [0, 0, 1, 1, 1, 3, 3]
    assert tracks["time"].tolist() == [0.5, 0.5, 1, 1, 1, 4, 4]
    assert tracks["label"].tolist() == [0, 1, 0, 1, 2, 0, 1]
    assert tracks["track"].tolist() == [0, 1, 1, 0, -1, 0, 1]
    assert tracks["size"].tolist() == [6, 12, 45, 9, 4, 12, 16]
    assert tracks["area"].tolist() == [24, 48, 180, 36, 16, 48, 64]
    assert tracks["centroid_rx"].tolist() == [2, 5.5, 4, 2, 5.5, 2.5, 5.5]
    assert tracks["place_rx"].tolist() == [2, 5.5, 3.75, 1.75, 5.25, 1.75, 4.75]
    assert tracks["place_ry"].tolist() == [1.5, 8, 9.5, 2.5, 1, 3.5, 10]
    assert tracks["touches_border"].tolist() == [False, False, True, False, True, False, False]
    assert tracks["background"].tolist() == [False] * 4 + [True] + [False] * 2
    assert np.isfinite(tracks["similarity"]).all()
    assert (tracks.n_tracks, tracks.n_frames, len(tracks)) == (2, 4, 7)
    assert repr(tracks) == "Tracks(2 tracks, 7 clusters in 4 frames)"


def test_unknown_drift_is_interpolated():
    frames = [(label_map((1 + t, 1, 3, 2)), None) for t in range(4)]
    tracks = link_frames(frames, drift=[[0, 0], [np.nan, np.nan], [2, 0], [np.nan, 0]])
    assert tracks["place_rx"].tolist() == [2, 2, 2, 3]
    assert link_frames(frames, drift=np.full((4, 2), np.nan))["place_rx"].tolist() == [2, 3, 4, 5]


def test_without_properties_what_labels_say():
    given = list(frames_of())
    bare = [None if f is None else (f[0], f[1], None, f[3]) for f in given]
    one, other = link_frames(given), link_frames(bare)
    assert (other["area"] == other["size"]).all()
    assert np.isnan(other["similarity"]).all()
    for name in ("track", "size", "centroid_rx", "centroid_ry", "touches_border"):
        np.testing.assert_array_equal(one[name], other[name])


def test_events_have_times():
    frames = [label_map((1, 1, 3, 3)), label_map((1, 1, 3, 3), (4, 7, 3, 3)), label_map()]
    tracks = link_frames([(f, None) for f in frames], times=[0.0, 10.0, 30.0])
    assert tracks.events.dtype == EVENTS_DTYPE
    expected = [(1, 10, "birth", 1, -1), (2, 30, "death", 0, -1), (2, 30, "death", 1, -1)]
    assert tracks.events.tolist() == expected
    assert repr(tracks) == "Tracks(2 tracks, 3 clusters in 3 frames, 1 birth, 2 deaths)"
    assert tracks.track(1).events["event"].tolist() == ["birth", "death"]


def test_maps():
    tracks = link_frames(frames_of())
    maps = tracks.maps(LABELS)
    assert maps.shape == (4, 9, 12)
    assert (maps[2] == -1).all()
    assert maps[1, 5, 0] == -1  # background
    assert maps[1, 2, 2] == 0
    assert maps[1, 5, 9] == 1
    with pytest.raises(ValueError, match="3 label maps do not fit 4 frames"):
        tracks.maps(LABELS[:3])
    with pytest.raises(ValueError, match="frame 3 hold 0 clusters, of which 2"):
        tracks.maps([*LABELS[:3], None])
    with pytest.raises(ValueError, match="at least one label map"):
        link_frames([None]).maps([None])


def test_a_track():
    tracks = link_frames(frames_of(), times=TIMES)
    track = tracks.track(0)
    assert track.frames.tolist() == [0, 1, 3]
    assert track.times.tolist() == [0.5, 1, 4]
    assert track.labels.tolist() == [0, 1, 0]
    assert track.sizes.tolist() == [6, 9, 12]
    assert track.areas.tolist() == [24, 36, 48]
    assert track.places.shape == (3, 2)
    assert (len(track), track.lifetime) == (3, 3.5)
    assert repr(track) == "Track(0, 3 frames, 0 to 3)"
    assert [t.number for t in tracks] == [0, 1]
    with pytest.raises(ValueError, match="track 2 does not exist; the tracks here are: 0 to 1"):
        tracks.track(2)
    with pytest.raises(TypeError, match="whole number"):
        tracks.track("a")
    with pytest.raises(ValueError, match="tracks here are: none"):
        link_frames([]).track(0)


def test_growth_rate():
    tracks = link_frames(frames_of(), times=TIMES)
    track = tracks.track(0)
    (slope, _), covariance = np.polyfit(track.times, track.areas, 1, cov=True)
    rate = track.growth_rate()
    np.testing.assert_allclose(rate, (slope, covariance[0, 0] ** 0.5))
    two = track.growth_rate(stop=2)
    assert two.rate == 24
    assert np.isnan(two.error)
    assert track.growth_rate(stop=3).rate == 24  # frame 3 is not included
    assert track.growth_rate(1, 4).rate == 4
    assert np.isnan(track.growth_rate(2)).all()
    with pytest.raises(ValueError, match="start=-1"):
        track.growth_rate(-1)


def test_results_cannot_be_changed_and_are_arrays():
    tracks = link_frames(frames_of())
    with pytest.raises(ValueError, match="read-only"):
        tracks.table["track"] = 1
    with pytest.raises(AttributeError):
        tracks.table = None
    again = pickle.loads(pickle.dumps(tracks))
    assert not again.table.flags.writeable
    np.testing.assert_array_equal(np.asarray(again), tracks.table)
    with pytest.raises(TypeError, match="take a column"):
        np.asarray(tracks, dtype=float)


def test_nothing_to_link():
    for frames in ([], [None, None], [(label_map(), None)], [(label_map(), np.zeros((0, 8, 9)))]):
        tracks = link_frames(frames)
        assert (len(tracks), tracks.n_tracks, len(tracks.events)) == (0, 0, 0)
        assert tracks.n_frames == len(frames)
    assert repr(Tracks(np.zeros(0, TABLE_DTYPE), np.zeros(0, EVENTS_DTYPE), 0)) == (
        "Tracks(0 tracks, 0 clusters in 0 frames)"
    )


def test_one_frame_at_a_time():
    alive = []

    def frames():
        for _ in range(4):
            alive.append(1)
            assert len(alive) == 1
            yield label_map((1, 1, 3, 3)), np.ones((1, 16, 18))
            alive.pop()

    assert link_frames(frames())["track"].tolist() == [0] * 4


GOOD = (label_map((1, 1, 3, 3)), np.ones((1, 16, 18)))


@pytest.mark.parametrize(
    ("frames", "options", "match"),
    [
        ([GOOD], {"memory": -1}, "memory=-1 must be at least 0"),
        ([GOOD], {"reach": -1}, "reach=-1 must be a finite number"),
        ([GOOD], {"min_similarity": 2}, "min_similarity=2"),
        ([GOOD], {"blur": np.nan}, "blur=nan"),
        ([GOOD], {"times": [0, 1]}, "times has 2 entries for 1 frames"),
        (iter([GOOD]), {"times": [0, 1]}, "times has 2 entries for 1 frames"),
        (iter([GOOD] * 3), {"times": [0, 1]}, "times has 2 entries for more frames"),
        ([GOOD] * 2, {"times": [1, 1]}, "rising"),
        ([GOOD], {"drift": [[0, 0, 0]]}, "must be \\(T, 2\\)"),
        ([GOOD], {"drift": [[0, 0], [1, 1]]}, "drift has 2 entries for 1 frames"),
        ([GOOD, (np.zeros((3, 4), int), None)], {}, "labels of frame 1 of shape \\(3, 4\\)"),
        ([(GOOD[0].astype(float), None)], {}, "2D map of whole numbers, not float64"),
        ([(GOOD[0] * 2 + 2, None)], {}, "without gaps"),
        ([(GOOD[0], np.ones((2, 16, 18)))], {}, "one pattern for each of the 1 clusters"),
        ([GOOD, (GOOD[0], np.ones((1, 16, 17)))], {}, "averages of frame 1 of \\(16, 17\\)"),
        ([(GOOD[0], None, np.zeros(2))], {}, "2 rows for 1 clusters"),
        ([(GOOD[0], None, None, [1])], {}, "background=1 of frame 0 is none"),
    ],
)
def test_rules_of_link_frames(frames, options, match):
    with pytest.raises(ValueError, match=match):
        link_frames(frames, **options)


def test_types_of_link_frames():
    with pytest.raises(TypeError, match="frame 0 must be \\(labels, averages"):
        link_frames([GOOD[0]])
    with pytest.raises(TypeError, match=r"memory=1\.5"):
        link_frames([GOOD], memory=1.5)


# --- drift -----------------------------------------------------------------------------------


def test_rules_of_find_drift():
    image = np.ones((5, 6))
    with pytest.raises(ValueError, match="image 1 of shape \\(6, 5\\) must have the shape"):
        find_drift([image, image.T])
    with pytest.raises(ValueError, match="image 0 of shape \\(5,\\) must be a 2D map"):
        find_drift([image[:, 0]])
    with pytest.raises(TypeError, match="image 0 of type complex128"):
        find_drift([image * 1j])
    with pytest.raises(ValueError, match="reach=-1"):
        find_drift([image], reach=-1)
    assert find_drift([]).shape == (0, 2)
    assert find_drift([image, image]).tolist() == [[0, 0], [0, 0]]
    assert np.isnan(find_drift([image, image * np.nan, None])[1:]).all()


def images_of(series, electrons, seed):
    """Intensity outside of the direct beam, without making the patterns of each position."""
    qx, qy = series.patterns(0).shape[1:]
    u, v = np.indices((qx, qy))
    outside = np.hypot(u - (qx - 1) / 2, v - (qy - 1) / 2) > 5
    rng = np.random.default_rng(seed)
    for i in range(len(series)):
        part = np.nan_to_num(series.patterns(i)[:, outside].sum(axis=1))
        yield rng.poisson(electrons * (series.shares(i) @ part))


@pytest.mark.slow
def test_drift_of_a_series(series):
    found = find_drift(images_of(series, 1000, 0))
    assert np.abs(series.drift).max() > 1.5
    assert np.sqrt(((found - series.drift) ** 2).sum(axis=1).mean()) < 0.3


# --- tracks of simulated series --------------------------------------------------------------


def frames_from(series, electrons, seed):
    """True labels with averages as noisy as their particles are small."""
    rng = np.random.default_rng(seed)
    for i, labels in enumerate(series.labels):
        found, number = np.unique(labels, return_inverse=True)
        number = number.reshape(labels.shape)
        inside = found >= 0
        dose = electrons * np.bincount(number.ravel())[inside][:, None, None]
        averages = rng.poisson(dose * series.patterns(i)[found[inside]]) / dose
        yield number - int(not inside[0]), averages


@pytest.mark.parametrize("electrons", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_tracks_of_a_series(series, electrons):
    frames = list(frames_from(series, electrons, 1))
    failed = next(t for t in range(2, 12) if t not in series.events["frame"])
    frames[failed] = None
    tracks = link_frames(frames, drift=series.drift, times=series.times)
    maps = tracks.maps([None if f is None else f[0] for f in frames])
    there = np.arange(len(frames)) != failed
    quality = track_quality(maps[there], series.labels[there])
    assert quality.idf1 == quality.mota == 1
    # Numbered by first appearance; the truth has its own numbers.
    true = {}
    for number, particle in zip(maps.ravel(), series.labels.ravel(), strict=True):
        if number >= 0:
            true.setdefault(int(number), int(particle))
    true[-1] = -1
    known = [tuple(e) for e in series.events.tolist()]
    found = [
        (int(e["frame"]), str(e["event"]), true[int(e["track"])], true[int(e["other"])])
        for e in tracks.events
    ]
    assert sorted(found) == sorted(known)
    assert {"birth", "death", "merge"} <= {event[1] for event in known}
    for k, particle in sorted(true.items())[1:]:
        track = tracks.track(k)
        rising = np.diff(series.areas[:, particle]) > 0.8 * series.growth_rates[particle]
        if series.growth_rates[particle] > 0 and rising.sum() >= 6:
            stop = int(np.flatnonzero(rising).max()) + 2
            assert abs(track.growth_rate(stop=stop).rate / series.growth_rates[particle] - 1) < 0.15


# --- rotation --------------------------------------------------------------------------------


def turning(rate, axis, times, start):
    axis = np.array(axis) / np.linalg.norm(axis)
    turns = Turn.from_rotvec(np.deg2rad(rate) * np.outer(times, axis)).as_matrix()
    return start @ np.swapaxes(turns, 1, 2)


def test_rotation_rate(gold):
    times = np.arange(10) * 0.5
    axis = np.array([1.0, -2.0, 0.5])
    start = Turn.from_rotvec([0.3, 0.8, -0.2]).as_matrix()
    matrices = turning(40, axis, times, start)
    matrices[3] = np.nan
    matrices[6] = 0
    matrices[7] = Turn.from_rotvec([1, 1, 0.3]).as_matrix()
    found = rotation_rate(matrices, times, gold)
    assert abs(found.rate - 40) < 1e-6
    assert found.error < 1e-6
    np.testing.assert_allclose(found.axis, axis / np.linalg.norm(axis), atol=1e-6)
    good = np.array([0, 1, 2, 4, 5, 8, 9])
    np.testing.assert_allclose(found.angles[good], 40 * times[good], atol=1e-6)
    assert np.isnan(found.angles[[3, 6]]).all()
    assert found.used.tolist() == np.isin(np.arange(10), good).tolist()


def test_rotation_rate_of_an_orientation_map(gold):
    times = np.arange(6.0)
    matrices = turning(3, (0, 0, 1), times, np.eye(3))
    orientation = OrientationMap(6, 1, 1)
    orientation.matrix[:, 0, 0] = matrices
    orientation.corr[:] = 1
    orientation.corr[2] = 0  # no match
    found = rotation_rate(orientation, times, gold)
    assert abs(found.rate - 3) < 1e-6
    assert np.isnan(found.angles[2])
    np.testing.assert_allclose(found.axis, [0, 0, 1], atol=1e-6)


def test_rotation_of_simulated_particles(series):
    """The axes and signs are those of the simulation."""
    k = int(series.rotation_rates.argmax())
    found = rotation_rate(series.orientations[:, k], series.times, series.crystal)
    assert abs(found.rate / series.rotation_rates[k] - 1) < 1e-6
    first, last = np.flatnonzero(found.used)[[0, -1]]
    turn = Turn.from_rotvec(np.deg2rad(found.angles[last]) * found.axis).as_matrix()
    there = series.orientations[first, k] @ turn.T
    np.testing.assert_allclose(there, series.orientations[last, k], atol=1e-6)


def test_rules_of_rotation_rate(gold):
    matrices = np.array([np.eye(3)] * 3)
    with pytest.raises(ValueError, match="must be \\(n, 3, 3\\)"):
        rotation_rate(np.eye(3), [0], gold)
    with pytest.raises(ValueError, match="each of the 3 orientations, not 2"):
        rotation_rate(matrices, [0, 1], gold)
    with pytest.raises(ValueError, match="rising"):
        rotation_rate(matrices, [0, 2, 1], gold)
    with pytest.raises(ValueError, match="no rotations"):
        rotation_rate(2 * matrices, [0, 1, 2], gold)
    with pytest.raises(ValueError, match="tolerance=0"):
        rotation_rate(matrices, [0, 1, 2], gold, tolerance=0)
    with pytest.raises(TypeError, match="Crystal"):
        rotation_rate(matrices, [0, 1, 2], "gold")
    alone = rotation_rate(matrices[:1], [0], gold)
    assert np.isnan([alone.rate, alone.error]).all()
    still = rotation_rate(matrices, [0, 1, 2], gold)
    assert still.rate == 0
    assert still.angles.tolist() == [0, 0, 0]
