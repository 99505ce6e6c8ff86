"""Places of unevenly lit disks: found by their outline, with honest errors."""

from __future__ import annotations

import numpy as np
import pytest

from py4dstem_clustering.kernels.disk_places import fit_places, probe_of

SHAPE, RADIUS = (70, 61), 3.0


def disk(place, light=(1, 0, 0), shape=SHAPE, radius=RADIUS):
    """A disk with a soft edge, lit by a plane."""
    u, v = np.ogrid[: shape[0], : shape[1]]
    x, y = u - place[0], v - place[1]
    inside = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    return inside * np.maximum(light[0] + (light[1] * x + light[2] * y) / radius, 0)


PROBE = probe_of(disk((34.3, 30.6)))


def middle_of_light(pattern, near):
    u, v = np.indices(pattern.shape)
    around = np.hypot(u - near[0], v - near[1]) < RADIUS + 2
    return np.array([(w * pattern)[around].sum() for w in (u, v)]) / pattern[around].sum()


def test_the_probe_is_measured():
    np.testing.assert_allclose(PROBE.centre, (34.3, 30.6), atol=0.05)
    assert PROBE.radius == pytest.approx(RADIUS, rel=0.05)
    # A faint background is not part of it, and its brightness does not matter.
    other = probe_of(700 * (disk((20.2, 33.9)) + 0.004))
    np.testing.assert_allclose(other.centre, (20.2, 33.9), atol=0.05)
    assert other.radius == pytest.approx(PROBE.radius, rel=0.03)


@pytest.mark.parametrize("light", [(1, 0, 0), (1, 0.8, 0), (1, -0.3, 0.7), (0.6, -0.6, -0.6)])
def test_the_outline_counts_not_the_light(light):
    place = np.array([20.37, 33.81])
    pattern = 100 * disk(place, light) + 2
    first = middle_of_light(pattern - 2, place)
    found = fit_places(pattern, first[None], PROBE)
    off = np.hypot(*(found.places[0] - place))
    if light[1:] == (0, 0):
        assert off < 0.001
    else:
        assert np.hypot(*(first - place)) > 0.3
        assert off < 0.2 * np.hypot(*(first - place))
    assert found.errors[0] < 0.3


def test_errors_are_honest():
    rng = np.random.default_rng(0)
    pulls = []
    for _ in range(25):
        places = np.array([[14.0, 12.0], [15.0, 45.0], [50.0, 14.0], [52.0, 43.0]])
        places += rng.uniform(-0.5, 0.5, places.shape)
        expected = 3 + sum(
            rng.uniform(5, 60) * disk(place, (1, *rng.normal(0, 0.4, 2))) for place in places
        )
        found = fit_places(rng.poisson(expected), places + rng.normal(0, 0.3, places.shape), PROBE)
        assert np.isfinite(found.errors).mean() >= 0.75
        pulls.append(((found.places - places) / found.errors[:, None])[found.errors < 1])
    pulls = np.abs(np.concatenate(pulls))
    assert 0.62 < (pulls < 1).mean() < 0.85
    assert (pulls < 2).mean() > 0.9


def test_neighbours_borders_and_missing_pixels():
    places = np.array([[20.3, 20.6], [20.1, 28.2], [66.4, 30.2], [40.2, 40.9]])
    pattern = 1 + sum(
        height * disk(place) for height, place in zip((20, 400, 50, 50), places, strict=True)
    )
    pattern[41, 42] = np.nan
    found = fit_places(pattern, places + 0.4, PROBE)
    np.testing.assert_allclose(found.places, places, atol=0.05)
    assert np.isfinite(found.errors).all()


def test_where_there_is_no_disk_the_place_stays():
    rng = np.random.default_rng(1)
    first = np.array([[20.0, 20.0], [45.0, 33.0]])
    found = fit_places(rng.poisson(np.full(SHAPE, 4.0)), first, PROBE)
    np.testing.assert_array_equal(found.places, first)
    assert np.isinf(found.errors).all()
    empty = fit_places(np.zeros(SHAPE), first, PROBE)
    np.testing.assert_array_equal(empty.places, first)
    assert np.isinf(empty.errors).all()
    assert fit_places(np.ones(SHAPE), np.empty((0, 2)), PROBE).places.shape == (0, 2)


def test_a_probe_that_is_not_round():
    """A patterned probe is moved as an image."""
    u, v = np.ogrid[: SHAPE[0], : SHAPE[1]]

    def ring(place):
        distance = np.hypot(u - place[0], v - place[1])
        return np.exp(-0.5 * (distance / 4) ** 8) - 0.8 * np.exp(-0.5 * (distance / 2) ** 4)

    probe = probe_of(ring((34.0, 30.0)))
    assert probe.edge == 0
    place = np.array([25.3, 30.8])
    found = fit_places(1 + 50 * ring(place), place[None] + 0.4, probe)
    np.testing.assert_allclose(found.places[0], place, atol=0.05)
