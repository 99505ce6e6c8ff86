"""Disks that stand out of their surroundings: against loops, on rings, borders and noise."""

from __future__ import annotations

import numpy as np
import pytest

from py4dstem_clustering.kernels import standout
from py4dstem_clustering.kernels.standout import stand_out, template_radius, zero_sum_template

SHAPE, RADIUS = (40, 47), 2.5


def disk_at(centre, shape=SHAPE, radius=RADIUS):
    u, v = np.ogrid[: shape[0], : shape[1]]
    return np.clip(radius + 0.5 - np.hypot(u - centre[0], v - centre[1]), 0, 1)


def ring(radius, width, shape=SHAPE):
    u, v = np.ogrid[: shape[0], : shape[1]]
    distance = np.hypot(u - shape[0] / 2, v - shape[1] / 2)
    return np.exp(-0.5 * ((distance - radius) / width) ** 2)


def by_loops(pattern, place, radius, noise):
    outer = radius + standout.GAP + max(2.0, radius)
    inside, area, squares = 0.0, 0.0, 0.0
    sectors = [[] for _ in range(standout.N_SECTORS)]
    for u in range(pattern.shape[0]):
        for v in range(pattern.shape[1]):
            x, y = u - place[0], v - place[1]
            distance = np.hypot(x, y)
            weight = min(max(radius + 0.5 - distance, 0), 1)
            inside, area = inside + weight * pattern[u, v], area + weight
            squares += weight**2
            if radius + standout.GAP < distance <= outer:
                turn = np.arctan2(y, x) / (2 * np.pi) * standout.N_SECTORS
                sectors[int(np.floor(turn + 0.5)) % standout.N_SECTORS].append(pattern[u, v])
    directions = []
    half = standout.N_SECTORS // 2
    for one, other in zip(sectors[:half], sectors[half:], strict=True):
        means = [np.mean(sector) for sector in (one, other) if sector]
        if means:
            directions.append(min(means))
    means = sorted(np.mean(sector) for sector in sectors if sector)
    dark = means[: standout.N_SECTORS - 2]
    background = max(0.0, *directions, np.mean(dark))
    n = sum(map(len, sectors))
    variance = noise * (background + noise / n) * (squares + area**2 / (n / len(sectors)))
    variance += 2 * noise**2
    variance += (standout.UNEVEN * background * area) ** 2
    excess = inside - background * area
    return excess, excess / np.sqrt(variance)


def test_equal_to_loops():
    rng = np.random.default_rng(3)
    pattern = rng.gamma(2, 5, SHAPE) + 300 * disk_at((20.3, 11.8))
    places = np.array([[20.3, 11.8], [0.0, 0.0], [39, 20.5], [1.7, 44.2], [30, 30]])
    found = stand_out(pattern, places, RADIUS, 0.2)
    expected = np.transpose([by_loops(pattern, place, RADIUS, 0.2) for place in places])
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert stand_out(pattern, np.empty((0, 2)), RADIUS, 0.2)[0].shape == (0,)


def test_a_disk_stands_out_and_a_ring_does_not():
    background = 10 + 20 * ring(12, 2.0)
    on_ring = np.array([20 + 12 * np.cos(1), 23.5 + 12 * np.sin(1)])
    pattern = background + 5 * disk_at((9.2, 20.4)) + 15 * disk_at(on_ring)
    angles = np.arange(2.5, 6, 0.4)
    rim = np.stack([20 + 12 * np.cos(angles), 23.5 + 12 * np.sin(angles)], axis=1)
    places = np.vstack([[9.2, 20.4], on_ring, rim])
    excess, significance = stand_out(pattern, places, RADIUS, 0.01)
    assert significance[0] > 4
    assert significance[1] > 4
    assert significance[2:].max() < 3.5
    area = disk_at((20, 20)).sum()
    assert excess[0] == pytest.approx(5 * area, rel=0.35)


def test_a_bright_neighbour_on_one_side_does_no_harm():
    alone = 10 + 8 * disk_at((20, 20))
    beside = alone + 500 * disk_at((20, 26.5))
    one, both = (stand_out(one, np.array([[20.0, 20]]), RADIUS, 0.1)[1] for one in (alone, beside))
    assert both > 0.8 * one > 4


@pytest.mark.parametrize("level", [0.05, 2.0, 300.0])
def test_noise_rarely_stands_out(level):
    rng = np.random.default_rng(5)
    places = np.stack(np.meshgrid(np.arange(4, 36, 7), np.arange(4, 43, 7)), axis=2).reshape(-1, 2)
    found = []
    for _ in range(200):
        pattern = rng.poisson(level, SHAPE).astype(float)
        found.append(stand_out(pattern, places.astype(float), RADIUS, 1.0)[1])
    found = np.concatenate(found)
    assert (found > 4).mean() < 2e-3
    # The brightest direction is the background, so that noise is below zero on average.
    assert np.median(found) <= 0


def test_the_radius_and_the_template_without_background():
    template = np.fft.ifftshift(disk_at((20, 23)))
    assert template_radius(template) == pytest.approx(RADIUS, abs=0.1)
    kernel = zero_sum_template(template, RADIUS)
    assert kernel.sum() == pytest.approx(0, abs=1e-12)
    assert kernel[kernel > 0].sum() == pytest.approx(1)
    assert np.unravel_index(kernel.argmax(), SHAPE)[0] in (0, 1, 2, 38, 39)
    # A flat background has no correlation.
    flat = np.fft.ifft2(np.fft.fft2(np.full(SHAPE, 7.0)) * np.conj(np.fft.fft2(kernel))).real
    np.testing.assert_allclose(flat, 0, atol=1e-9)
