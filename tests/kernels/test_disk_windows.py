"""Pixels around disks equal loops over all pixels of the detector."""

from __future__ import annotations

import numpy as np
import pytest

from py4dstem_clustering.kernels.disk_windows import disk_windows

SHAPE = (11, 8)
PLACES = np.array([[5.2, 3.7], [0.4, 7.4], [10.49, -0.3], [4.5, 2.5]])


@pytest.mark.parametrize("radius", [1.0, 2.4])
@pytest.mark.parametrize("square", [True, False])
def test_pixels_equal_loops(radius, square):
    image = np.random.default_rng(0).random(SHAPE)
    found = disk_windows(PLACES, radius, SHAPE, square=square)
    values = found.values_of(image)
    for k, place in enumerate(PLACES):
        middle = np.rint(place)
        expected = {}
        for x, y in np.ndindex(*SHAPE):
            away = np.abs((x, y) - middle)
            near = away.max() <= np.ceil(radius) if square else np.hypot(*away) <= radius
            if near:
                expected[x, y] = image[x, y]
        inside = found.inside[k]
        pixels = map(tuple, found.at[k][inside].tolist())
        assert dict(zip(pixels, values[k][inside].tolist(), strict=True)) == expected
        np.testing.assert_allclose(found.offset[k], found.at[k] - place, atol=1e-12)
        # Outside, the border goes on.
        clipped = np.clip(found.at[k], 0, np.array(SHAPE) - 1)
        np.testing.assert_array_equal(values[k], image[tuple(clipped.T)])


def test_no_places():
    found = disk_windows(np.empty((0, 2)), 2.0, SHAPE)
    assert found.values_of(np.ones(SHAPE)).shape == found.inside.shape == (0, 25)
