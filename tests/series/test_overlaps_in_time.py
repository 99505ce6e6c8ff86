"""Grains that overlap, through time: particles that slide over one another keep their tracks."""

from __future__ import annotations

import numpy as np
import py4DSTEM
import pytest

from py4dstem_clustering import cluster_series, link_frames, open_series
from py4dstem_clustering.simulate.scattering import Scattering, random_orientations

SCAN, DETECTOR = (30, 24), (32, 30)
QUIET = {"progress_bar": False}


def sliding(n_frames=5, seed=3):
    """Two round particles; the second slides over the first, from one side to the other."""
    rng = np.random.default_rng(seed)
    optics = Scattering(DETECTOR, 1.3, 1.5)
    patterns = optics.patterns(np.array([optics.bragg(m) for m in random_orientations(2, rng)]))
    x, y = np.indices(SCAN)
    frames, supports = [], []
    for place in np.linspace(7, 21, n_frames):
        chords = np.stack(
            [
                np.sqrt(np.maximum(6.4**2 - (x - 14) ** 2 - (y - 10) ** 2, 0)),
                np.sqrt(np.maximum(5.2**2 - (x - place) ** 2 - (y - 14) ** 2, 0)),
            ],
            axis=2,
        )
        total = chords.sum(axis=2, keepdims=True)
        shares = np.concatenate([chords / np.maximum(total, 1e-9), total == 0], axis=2)
        frames.append(rng.poisson(3000 * np.tensordot(shares, patterns, 1)).astype(np.uint16))
        supports.append(chords > 0)
    return np.array(frames), np.array(supports)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.fixture(scope="module")
def movie():
    return sliding()


def test_particles_that_slide_over_one_another_keep_their_tracks(movie, tmp_path):
    frames, supports = movie
    out = tmp_path / "series.h5"
    series = cluster_series(
        [py4DSTEM.DataCube(frame) for frame in frames], out=out, overlap=True, drift=None, **QUIET
    )
    tracks = series.tracks()
    assert tracks.n_tracks == 2
    assert len(tracks.events) == 0
    again = open_series(out)
    for t in range(len(frames)):
        grains = again.overlaps(t)
        assert grains.n_grains == 2
        rows = np.asarray(tracks)[tracks["frame"] == t]
        np.testing.assert_array_equal(rows["size"], grains.supports.sum(axis=(0, 1))[rows["label"]])
        # The same particle is the same track in all frames.
        truth = [
            int(np.argmax([iou(grains.supports[..., k], supports[t][..., j]) for j in (0, 1)]))
            for k in rows["label"]
        ]
        if t == 0:
            first = dict(zip(rows["track"].tolist(), truth, strict=True))
        assert dict(zip(rows["track"].tolist(), truth, strict=True)) == first
    assert (again.overlaps(2).n_above > 1).sum() > 10
    assert again.averages(2).shape == (2, 1, *DETECTOR)
    # Resuming with the same options does nothing; with others it is refused.
    kept = cluster_series(
        [py4DSTEM.DataCube(frame) for frame in frames], out=out, overlap=True, drift=None, **QUIET
    )
    assert len(kept) == len(frames)
    with pytest.raises(ValueError, match="made with other options: overlap was True and is None"):
        cluster_series(list(frames), out=out, drift=None, **QUIET)


def test_supports_link_as_labels_do():
    """Where nothing overlaps, supports and labels give the same tracks."""
    rng = np.random.default_rng(5)
    labels = np.full((4, 12, 9), -1)
    for t in range(4):
        labels[t, 1 + t : 5 + t, 1:4] = 0
        labels[t, 2:6, 5:8] = 1
    labels[2, 9:, 6:] = 2
    drift = rng.normal(size=(4, 2))
    by_label = link_frames([(frame, None) for frame in labels], drift=drift)
    supports = [frame[..., None] == np.arange(frame.max() + 1) for frame in labels]
    by_support = link_frames([(frame, None) for frame in supports], drift=drift)
    for name in np.asarray(by_label).dtype.names:
        np.testing.assert_array_equal(by_label[name], by_support[name])
    np.testing.assert_array_equal(by_label.events, by_support.events)


def test_one_support_within_another():
    """A small particle that crosses a large one is linked by its own places."""
    supports = np.zeros((5, 14, 11, 2), dtype=bool)
    supports[:, 2:11, 2:10, 0] = True
    for t in range(5):
        supports[t, 2 * t + 1 : 2 * t + 4, 4:7, 1] = True
        if t % 2:  # numbers do not matter
            supports[t] = supports[t][..., ::-1]
    tracks = link_frames([(frame, None) for frame in supports], reach=0)
    assert tracks.n_tracks == 2
    sizes = np.asarray(tracks)
    for k in (0, 1):
        assert len(set(sizes["size"][sizes["track"] == k])) == 1


def test_wrong_arguments(tmp_path):
    frames = np.zeros((2, 6, 5, 16, 15))
    for options, what in (
        ({"threshold": 0.5}, "threshold cannot go with overlap=True"),
        ({"min_purity": 0.9}, "min_purity cannot go with overlap=True"),
    ):
        with pytest.raises(ValueError, match=what):
            cluster_series(frames, out=tmp_path / "a.h5", overlap=True, **options, **QUIET)
    with pytest.raises(TypeError, match="overlap"):
        cluster_series(frames, out=tmp_path / "a.h5", overlap="yes", **QUIET)
    empty = np.zeros((6, 5, 2), dtype=bool)
    empty[1:3, 1:3, 0] = True
    with pytest.raises(ValueError, match=r"supports of frame 0 .* \[1\] have none"):
        link_frames([(empty, None)])
    with pytest.raises(ValueError, match="must have that of the frames before"):
        link_frames([(empty[..., :1], None), (empty[1:, :, :1], None)])
