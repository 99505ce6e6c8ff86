"""Kernels of tracking: drift, likeness and links against slow references and known answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from py4DSTEM.process.diffraction import Crystal
from scipy.spatial.transform import Rotation

from py4dstem_clustering.diffraction.misorientation import get_symmetry
from py4dstem_clustering.kernels import drift, linking, rotations
from py4dstem_clustering.kernels.drift import correlate, find_drift_core
from py4dstem_clustering.kernels.linking import Comparer, Linker, Patterns, similarities
from py4dstem_clustering.kernels.rotations import steady_rotation

SCAN, DETECTOR = (26, 21), (40, 36)
CENTRE = (19.0, 18.5)
FCC = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]


@pytest.fixture(scope="module")
def cubic():
    return get_symmetry(Crystal(np.array(FCC), 79, 4.0782))


def disks(places, shape=SCAN):
    """Image of round particles (x, y, radius), positions covered in part."""
    x, y = np.indices(shape)
    return sum(np.clip(r + 0.5 - np.hypot(x - u, y - v), 0, 1) for u, v, r in places)


def pattern(seed):
    """Direct beam, a ring, and disks at random places."""
    rng = np.random.default_rng(seed)
    u, v = np.indices(DETECTOR)
    radius = np.hypot(u - CENTRE[0], v - CENTRE[1])
    out = 20.0 * (radius < 2.5) + 0.5 * np.exp(-((radius - 9) ** 2) / 12)
    for _ in range(10):
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(6, 16)
        place = CENTRE[0] + far * np.cos(angle), CENTRE[1] + far * np.sin(angle)
        out += np.hypot(u - place[0], v - place[1]) < 2
    return out / out.sum()


def mixture(parts):
    return pattern(parts) if isinstance(parts, int) else sum(w * pattern(k) for k, w in parts)


# --- drift -----------------------------------------------------------------------------------


def slow_correlation(a, b, move):
    """Correlation of what both show when `b` has moved by whole positions."""
    pairs = [
        (a[x, y], b[x + move[0], y + move[1]])
        for x, y in np.ndindex(*a.shape)
        if 0 <= x + move[0] < b.shape[0] and 0 <= y + move[1] < b.shape[1]
    ]
    pairs = np.array([p for p in pairs if np.isfinite(p).all()])
    return np.corrcoef(pairs.T)[0, 1] if len(pairs) >= 0.5 * a.size - 8 else -1


def test_correlate_finds_the_best_of_all_moves():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(11, 9))
    b = np.roll(a, (2, -1), axis=(0, 1)) + 0.5 * rng.normal(size=a.shape)
    a[3, 4] = b[5, 5] = np.nan
    moves = [(i, j) for i in range(-4, 5) for j in range(-4, 5)]
    best = max(moves, key=lambda move: slow_correlation(a, b, move))
    valid = np.isfinite(a), np.isfinite(b)
    found = correlate(np.nan_to_num(a), np.nan_to_num(b), *valid, 4.0)
    assert best == (2, -1)
    np.testing.assert_allclose(found, best, atol=0.5)
    assert np.abs(correlate(np.nan_to_num(a), np.nan_to_num(b), *valid, 1.0)).max() <= 1.5


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5)), min_size=2, max_size=6))
def test_drift_of_particles_that_only_move(steps):
    drift = np.cumsum([(0, 0), *steps], axis=0)
    drift = np.clip(drift, -3, 3)
    images = [disks([(12 + x, 8 + y, 3.2), (18 + x, 13 + y, 2.4)]) for x, y in drift]
    np.testing.assert_allclose(find_drift_core(images, 7.0), drift, atol=0.08)


def test_images_correlate_by_half_of_them_at_least():
    for seed in range(20):
        a, b = np.random.default_rng(seed).normal(size=(2, 8, 6))
        one = np.ones((8, 6), dtype=bool)
        x, y = np.abs(np.round(correlate(a, b, one, one, 7.0)))
        assert (8 - x) * (6 - y) >= 20  # 24, but for parts of a position


def test_growth_is_no_drift():
    # The first grows out of the scan, so that its centroid moves inwards.
    images = [disks([(2, 10, 3 + 0.4 * t), (18, 12, 4 - 0.2 * t)]) for t in range(8)]
    assert np.abs(find_drift_core(images, 5.0)).max() < 0.1
    centroid = [np.average(np.indices(SCAN)[0], weights=image) for image in images]
    assert np.abs(np.array(centroid) - centroid[0]).max() > 1


def test_one_particle_that_moves_alone_is_no_drift():
    still = [(5, 5, 3), (20, 6, 3), (6, 15, 3)]
    images = [disks([*still, (19 - 0.5 * t, 14, 3)]) for t in range(6)]
    assert np.abs(find_drift_core(images, 5.0)).max() < 0.12


def test_errors_do_not_add_up(monkeypatch):
    still = disks([(6, 6, 3), (18, 14, 4), (19, 4, 2)])
    spread = {}
    for distances in (drift.FRAME_DISTANCES, (1,)):
        monkeypatch.setattr(drift, "FRAME_DISTANCES", distances)
        found = []
        for seed in range(3, 6):
            rng = np.random.default_rng(seed)
            images = [rng.poisson(20 + 10 * still).astype(float) for _ in range(24)]
            found.append(find_drift_core(images, 5.0).std(axis=0))  # the error of frame 0 is in all
        spread[len(distances)] = np.mean(found)
    assert spread[4] < 0.85 * spread[1]
    assert spread[4] < 0.2


def test_drift_bears_a_bright_particle_that_shows_up_for_two_frames():
    """Measured: 0.08; 0.11 if pairs of frames that do not fit had full weight."""
    still = disks([(6, 6, 3), (18, 14, 4), (19, 4, 2)])
    worst = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        images = [still + 0.02 * rng.normal(size=SCAN) for _ in range(12)]
        x, y = rng.uniform(5, 20), rng.uniform(4, 16)
        for k in (4, 5):
            images[k] = still + 4 * disks([(x + k - 4, y, 2)])
        others = np.delete(find_drift_core(images, 5.0), [4, 5], axis=0)
        worst.append(np.abs(others).max())
    assert np.median(worst) < 0.095


def test_missing_flat_and_partly_unknown_images():
    images = [disks([(12 + 0.5 * t, 10, 4)]) for t in range(6)]
    images[1] = None
    images[3] = np.full(SCAN, 7.0)
    images[4][11:14, 3:6] = np.nan
    found = find_drift_core(images, 5.0)
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[[0, 2, 4, 5], 0], [0, 1, 2, 2.5], atol=0.1)
    assert np.isfinite(found[3]).all()
    assert np.isnan(find_drift_core([None, None], 5.0)).all()
    assert (find_drift_core([np.ones((3, 4))] * 3, 5.0) == 0).all()
    line = [np.exp(-((np.arange(30) - 10 - t) ** 2) / 8)[None] for t in range(3)]
    np.testing.assert_allclose(find_drift_core(line, 5.0), [[0, 0], [0, 1], [0, 2]], atol=0.1)


# --- likeness --------------------------------------------------------------------------------


def test_similarity_is_free_of_noise_and_of_what_all_share():
    rng = np.random.default_rng(0)
    means = np.array([pattern(1), pattern(2)])
    comparer = Comparer(means.mean(axis=0), None, 1.0)
    for electrons, most in ((1e6, 0.15), (3e3, 0.25), (300.0, 1.5)):
        counts = rng.poisson(electrons * means[[0, 0, 1] * 20]) / electrons
        value, error = similarities(comparer(counts), comparer(counts))
        same = np.r_[0:60] % 3 < 2
        pairs = np.triu(np.outer(same, same), 1)
        np.testing.assert_allclose(np.median(value[pairs]), 1, atol=0.15)
        assert np.abs(np.median(value[np.outer(same, ~same)])) < 0.25
        # The error is never too small; it is too large where sharp disks are taken for noise.
        assert value[np.outer(same, ~same)].std() / 1.2 < error.mean() < most


def test_similarity_ignores_scale_gaps_and_a_shifted_beam():
    a, b = pattern(1), pattern(2)
    comparer = Comparer((a + b) / 2, CENTRE, 1.0)
    gap = a.copy()
    gap[3, 4] = np.nan
    rows = comparer(np.array([a, 7 * a, gap, b, np.zeros(DETECTOR)]))
    value, error = similarities(rows, rows)
    assert value[0, 1] > 0.98
    assert value[0, 2] > 0.95
    assert abs(value[0, 3]) < 0.3
    assert (value[4] == 0).all()
    assert np.isinf(error[4]).all()


# --- links -----------------------------------------------------------------------------------


def slow_overlap(places, labels, drift, n):
    out = np.zeros(n)
    for x, y in places + drift:
        for (u, v), label in np.ndenumerate(labels):
            if label >= 0:
                out[label] += max(0, 1 - abs(u - x)) * max(0, 1 - abs(v - y))
    return out


@settings(max_examples=30, deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3), st.integers(0, 100))
def test_overlap_by_parts_of_a_position(dx, dy, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 3, (5, 7))
    groups = [np.argwhere(rng.random((5, 7)) < 0.4).astype(float) for _ in range(2)]
    drift = np.array([dx, dy])
    expected = [slow_overlap(g, labels, drift, 3) for g in groups]
    np.testing.assert_allclose(linking._overlaps(groups, labels, drift, 3), expected, atol=1e-7)


def label_map(*boxes):
    labels = np.full((12, 10), -1)
    for k, (x, y, nx, ny) in enumerate(boxes):
        labels[x : x + nx, y : y + ny] = k
    return labels


def run(frames, memory=1, patterns=None, drift=None, background=(), numbers=None):
    linker = Linker(memory, 2.0, 0.2)
    comparer = None if patterns is None else Comparer(pattern(1) + pattern(2), CENTRE, 1.0)
    out = []
    for t, labels in enumerate(frames):
        if labels is None:
            out.append(None)
            continue
        skip = np.isin(np.arange(labels.max() + 1), background)
        rows = None
        if comparer is not None:
            rows = comparer(np.array([mixture(k) for k in patterns[t]]).reshape(-1, *DETECTOR))
        moved = np.zeros(2) if drift is None else np.array(drift[t])
        out.append(linker.add(t, labels, skip, rows, moved).tolist())
    return out, [tuple(event) for event in linker.finish()]


A, B = (1, 1, 4, 3), (7, 4, 3, 4)


def test_tracks_keep_their_number_whatever_the_label():
    tracks, events = run([label_map(A, B), label_map(B, A), label_map(B), label_map(A, B)])
    assert tracks == [[0, 1], [1, 0], [1], [0, 1]]
    assert events == []


def test_birth_and_death():
    tracks, events = run([label_map(A), label_map(A, B), label_map(B), label_map(B)])
    assert tracks == [[0], [0, 1], [1], [1]]
    assert events == [(1, "birth", 1, -1), (2, "death", 0, -1)]
    # Missing at the end: it ends, although it might have come back.
    assert run([label_map(A, B), label_map(A)])[1] == [(1, "death", 1, -1)]


@pytest.mark.parametrize(("memory", "expected"), [(0, 1), (1, 1), (2, 0), (3, 0)])
def test_memory(memory, expected):
    frames = [label_map(A, B), label_map(B), label_map(B), label_map(A, B)]
    tracks, events = run(frames, memory)
    assert tracks[3] == [0 if expected == 0 else 2, 1]
    assert len(events) == 2 * expected


def test_failed_frames_end_nothing():
    frames = [label_map(A, B), None, None, None, label_map(B, A)]
    tracks, events = run(frames, memory=0)
    assert tracks == [[0, 1], None, None, None, [1, 0]]
    assert events == []
    # Nor do they count as missing.
    tracks, _ = run([label_map(A, B), label_map(B), None, label_map(B, A)], memory=1)
    assert tracks[3] == [1, 0]


def test_merge_and_split():
    whole, left, right = (2, 1, 8, 4), (2, 1, 5, 4), (7, 1, 3, 4)
    merged = run([label_map(left, right), label_map(whole), label_map(whole)])
    assert merged == ([[0, 1], [0], [0]], [(1, "merge", 1, 0)])
    split = run([label_map(whole), label_map(right, left)])
    assert split == ([[0], [1, 0]], [(1, "split", 1, 0)])


def test_the_lattice_says_who_goes_on_after_a_merge():
    whole, left, right = (2, 1, 8, 4), (2, 1, 4, 4), (6, 1, 4, 4)
    frames = [label_map(left, right), label_map(whole)]
    for survivor in (0, 1):
        tracks, events = run(frames, patterns=[(1, 2), (1 + survivor,)])
        assert tracks[1] == [survivor]
        assert events == [(1, "merge", 1 - survivor, survivor)]


def test_the_more_similar_goes_on_where_both_could():
    frames = [label_map((2, 1, 4, 4), (6, 1, 4, 4)), label_map((2, 1, 8, 4))]
    for shares, survivor in (((0.6, 0.4), 0), ((0.4, 0.6), 1)):
        mixed = tuple(zip((1, 2), shares, strict=True))
        tracks, _ = run(frames, patterns=[(1, 2), (mixed,)])
        assert tracks[1] == [survivor]


def test_another_lattice_at_the_same_place_is_another_particle():
    frames = [label_map(A, B), label_map(A, B), label_map(A, B)]
    tracks, events = run(frames, patterns=[(1, 2), (1, 2), (3, 2)])
    assert tracks == [[0, 1], [0, 1], [2, 1]]
    # A death, not a merge: no older track went on at its place.
    assert events == [(2, "birth", 2, -1), (2, "death", 0, -1)]


def test_alike_and_near_is_enough_without_overlap():
    frames = [label_map((1, 1, 2, 2), B), label_map((1, 4, 2, 2), B)]
    assert run(frames, patterns=[(1, 2), (1, 2)])[0][1] == [0, 1]
    assert run(frames, patterns=[(1, 2), (3, 2)])[0][1] == [2, 1]
    assert run(frames)[0][1] == [2, 1]


def test_drift_is_taken_off():
    boxes = [[(1 + 3 * t, 1, 2, 2), (1 + 3 * t, 4, 2, 2)] for t in range(3)]
    drift = [(3 * t, 0) for t in range(3)]
    frames = [label_map(*pair) for pair in boxes]
    assert run(frames, drift=drift)[0] == [[0, 1]] * 3
    assert run(frames)[0] != [[0, 1]] * 3


def test_background_has_no_track():
    tracks, events = run([label_map(A, B), label_map(A, B)], background=(0,))
    assert tracks == [[-1, 0], [-1, 0]]
    assert events == []
    assert run([label_map(A), label_map()])[0] == [[0], []]
    assert run([label_map(), label_map(A)])[1] == [(1, "birth", 0, -1)]


def test_a_tenth_of_the_smaller_cluster_must_overlap():
    for box, tracks in (((4, 2, 4, 3), [0]), ((4, 3, 4, 3), [1])):  # 2 and 1 of 12 positions
        assert run([label_map(A), label_map(box)])[0][1] == tracks


def test_a_track_that_was_missing_yields_to_one_that_was_there():
    whole = label_map((1, 1, 9, 4))
    for split, track in ((5, 1), (6, 0)):  # unless the missing one covered far more
        left, right = (1, 1, split, 4), (1 + split, 1, 9 - split, 4)
        frames = [label_map(left, right), label_map(right), whole]
        assert run(frames, memory=2)[0] == [[0, 1], [1], [track]]


def run_rows(frames, memory=1, noise=0.0, freedom=100.0):
    """Tracks of clusters with features (N, n) given as rows of length 1."""
    linker = Linker(memory, 2.0, 0.2)
    out = []
    for t, (boxes, rows) in enumerate(frames):
        patterns = Patterns(np.array(rows, np.float32), np.full(len(rows), noise), freedom)
        skip = np.zeros(len(boxes), dtype=bool)
        out.append(linker.add(t, label_map(*boxes), skip, patterns, np.zeros(2)).tolist())
    return out


def like(similarity):
    """Features with this similarity to [1, 0, 0], and none to [0, 0, 1]."""
    return [similarity, np.sqrt(1 - similarity**2), 0]


@pytest.mark.parametrize(
    ("n_missed", "similarity", "track"), [(0, 0.25, 0), (0, 0.15, 2), (2, 0.05, 0), (2, -0.05, 2)]
)
def test_a_particle_may_have_turned_while_it_was_missing(n_missed, similarity, track):
    """Less and less similarity is enough for its old track, the longer it was missing."""
    other = [0, 0, 1]
    gap = [((B,), [other])] * n_missed
    frames = [((A, B), [[1, 0, 0], other]), *gap, ((A, B), [like(similarity), other])]
    assert run_rows(frames, memory=3)[-1] == [track, 1]


@pytest.mark.parametrize(("similarity", "track"), [(0.45, 0), (0.35, 1)])
def test_how_similar_clusters_apart_must_be(similarity, track):
    frames = [(((1, 1, 2, 2),), [[1, 0, 0]]), (((1, 4, 2, 2),), [like(similarity)])]
    assert run_rows(frames)[1] == [track]


@pytest.mark.parametrize(("similarity", "goes_on"), [(-0.1, True), (-0.6, False)])
def test_where_all_particles_turn_fast_overlap_is_enough(similarity, goes_on):
    """Unless the patterns are nearly the opposite of each other."""
    before, after = np.eye(4)[:2], np.zeros((2, 4))
    for k in range(2):
        after[k, [k, k + 2]] = similarity, np.sqrt(1 - similarity**2)
    tracks = run_rows([((A, B), before), ((A, B), after)])
    assert tracks[1] == ([0, 1] if goes_on else [2, 3])


def test_a_slow_past_is_forgotten_after_some_links():
    """The similarities of the last 200 sure links count: 10 % of them must be low."""
    boxes = [(2 * k + 1, 1, 2, 6) for k in range(5)]
    slow, turned = np.eye(10)[:5], np.eye(10)[5:]
    fast = [turned, slow] * 3
    tracks = run_rows([(boxes, rows) for rows in [slow] * 100 + fast], memory=0)
    assert tracks[99] == [0, 1, 2, 3, 4]
    assert [row[0] for row in tracks[99:]] == [0, 5, 10, 15, 20, 20, 20]


@pytest.mark.parametrize(("error", "survivor"), [(0.3, 0), (0.9, 1)])
def test_overlap_decides_where_noise_hides_the_similarity(error, survivor):
    """Of two clusters, the first is more similar to the later one, the second overlaps more."""
    noise = 0.5  # half of the power: the similarity is twice the product of two rows
    freedom = (1 - (1 - noise) ** 2) / ((1 - noise) * error) ** 2
    rows = [[0.5, np.sqrt(0.75), 0], [0.15, 0, np.sqrt(0.9775)]]
    frames = [(((1, 1, 4, 4), (5, 1, 5, 4)), rows), (((1, 1, 9, 4),), [[1, 0, 0]])]
    assert run_rows(frames, noise=noise, freedom=freedom)[1] == [survivor]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
@example(380)  # two ways to link have the same score
def test_order_of_labels_does_not_matter(seed):
    """The same partition whatever the numbers of clusters; each track once a frame."""
    rng = np.random.default_rng(seed)
    frames, shuffled, orders = [], [], []
    for _ in range(4):
        labels = np.full((12, 10), -1)
        for _ in range(4):
            x, y = rng.integers(0, 10), rng.integers(0, 8)
            labels[x : x + rng.integers(2, 5), y : y + rng.integers(2, 5)] = rng.integers(0, 99)
        found = np.unique(labels[labels >= 0])
        order = rng.permutation(len(found))
        number = np.searchsorted(found, labels)
        frames.append(np.where(labels >= 0, number, -1))
        shuffled.append(np.where(labels >= 0, np.append(order, -1)[number], -1))
        orders.append(order)
    drift = rng.uniform(-0.4, 0.4, (4, 2))  # no two overlaps are equal
    (one, _), (other, _) = run(frames, drift=drift), run(shuffled, drift=drift)
    assert all(len(set(tracks)) == len(tracks) for tracks in one)
    pairs = {(a, other[t][orders[t][k]]) for t, row in enumerate(one) for k, a in enumerate(row)}
    first, second = zip(*pairs, strict=True)
    assert len(set(first)) == len(first) == len(set(second))


# --- rotation --------------------------------------------------------------------------------


def turning(rate, axis, times, start=None):
    """Orientation matrices of a crystal that turns in the axes of the image."""
    start = np.eye(3) if start is None else start
    axis = np.array(axis) / np.linalg.norm(axis)
    return np.array(
        [(Rotation.from_rotvec(rate * t * axis).as_matrix() @ start.T).T for t in times]
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 0.6))
def test_steady_rotation_is_exact(cubic, seed, rate):
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.uniform(0.4, 1.0, 12))
    axis, start = rng.normal(size=3), Rotation.from_quat(rng.normal(size=4)).as_matrix()
    matrices = turning(rate, axis, times, start)
    # What is found may be any of the equivalent orientations.
    matrices = cubic[rng.integers(0, len(cubic), 12)] @ matrices
    found = steady_rotation(matrices, times, cubic, 0.09)
    np.testing.assert_allclose(found.velocity, rate * axis / np.linalg.norm(axis), atol=1e-6)
    np.testing.assert_allclose(found.angles, rate * (times - times[0]), atol=1e-5)
    assert found.used.all()


def test_steady_rotation_with_noise_and_wrong_frames(cubic):
    """The standard error is as large as the errors are."""
    off = []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        times = np.arange(16.0)
        matrices = turning(0.05, (1, 2, -1), times)
        noise = Rotation.from_rotvec(0.015 * rng.normal(size=(16, 3))).as_matrix()
        matrices = matrices @ noise
        wrong = rng.choice(16, 4, replace=False)
        matrices[wrong] = Rotation.from_quat(rng.normal(size=(4, 4))).as_matrix()
        found = steady_rotation(matrices, times, cubic, np.deg2rad(5))
        assert not found.used[wrong].all()
        off.append((np.linalg.norm(found.velocity) - 0.05) / found.error)
    assert 0.6 < np.sqrt(np.mean(np.square(off))) < 1.7
    assert np.abs(off).max() < 4.5


def test_angles_of_a_rotation_are_measured_frame_by_frame(cubic):
    angles = 0.05 * np.arange(12.0)
    angles[5] += 0.02
    found = steady_rotation(turning(1.0, (1, 2, -1), angles), np.arange(12.0), cubic, 0.09)
    np.testing.assert_allclose(found.angles, angles, atol=2e-3)


def test_left_jacobian():
    vectors = np.array([[0.3, -0.2, 0.9], [0, 0, 0], [2.0, 1.0, 0.5]])
    change = 1e-6 * np.array([1.0, -2.0, 0.5])
    before, after = Rotation.from_rotvec(vectors), Rotation.from_rotvec(vectors + change)
    expected = (after * before.inv()).as_rotvec()
    np.testing.assert_allclose(rotations._left_jacobian(vectors) @ change, expected, atol=1e-11)


def test_too_few_orientations(cubic):
    assert np.isnan(steady_rotation(np.eye(3)[None], np.zeros(1), cubic, 0.1).velocity).all()
    still = steady_rotation(np.array([np.eye(3)] * 2), np.arange(2.0), cubic, 0.1)
    assert np.linalg.norm(still.velocity) < 1e-12
    assert np.isnan(still.error)
