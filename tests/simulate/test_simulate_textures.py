"""Regions that touch, and angles that differ between them."""

from __future__ import annotations

import numpy as np

from py4dstem_clustering.simulate import textures


def test_touching_regions_by_a_slow_loop():
    labels = textures.cells((17, 14), (2, 3), np.random.default_rng(1))
    found = np.zeros((labels.max() + 1,) * 2, dtype=bool)
    for x, y in np.ndindex(*labels.shape):
        for dx, dy in np.ndindex(3, 3):
            i, j = x + dx - 1, y + dy - 1
            if 0 <= i < 17 and 0 <= j < 14 and labels[i, j] != labels[x, y]:
                found[labels[x, y], labels[i, j]] = True
    np.testing.assert_array_equal(textures.touching(labels), found)


def test_angles_of_touching_regions_differ():
    rng = np.random.default_rng(0)
    labels = textures.cells((40, 36), (3, 5), rng)
    angles = textures.distinct_angles(labels, 180, 20, rng)
    gap = np.abs((angles[:, None] - angles + 90) % 180 - 90)
    assert gap[textures.touching(labels)].min() >= 20
    # Where there is no room for all, the best of what was tried.
    angles = textures.distinct_angles(labels, 180, 80, rng)
    assert np.isfinite(angles).all()


def test_corners_touch():
    assert (textures.touching(np.array([[0, 1], [2, 3]])) == ~np.eye(4, dtype=bool)).all()
    assert not textures.touching(np.array([[0, 1, 2]]))[0, 2]
