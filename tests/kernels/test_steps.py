"""Regions that hold several crystals: a clear step parts them, a bend and a factor do not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from py4dstem_clustering import simulate_sample
from py4dstem_clustering.kernels import features as feature_kernel
from py4dstem_clustering.kernels import joining, steps
from py4dstem_clustering.kernels.disks import Disks
from py4dstem_clustering.kernels.features import noise_of_neighbours
from py4dstem_clustering.kernels.merging import merge_positions
from py4dstem_clustering.kernels.regions import consecutive, find_borders
from py4dstem_clustering.kernels.strips import Strips, border_strips, find_facing
from py4dstem_clustering.metrics import panoptic_quality

RANK = 6


def some_disks():
    """Each feature is one bright bin block, far above a weak mean."""
    grid = np.stack(np.divmod(np.arange(24 * 22), 22), axis=1)
    directions = np.zeros((len(grid), RANK))
    for k in range(RANK):
        near = (np.abs(grid - (5 + 7 * (k // 3), 4 + 7 * (k % 3))) <= 1).all(axis=1)
        directions[near, k] = 1 / 3
    error = np.sqrt((directions**2).sum(axis=1))
    return Disks(
        directions,
        error,
        grid,
        np.full(len(grid), 0.5),
        np.full(len(grid), True),
        np.full(RANK, 1e4),
    )


def lamellae(seed=0, strength=20.0, step=1.0, blur=0.6):
    """Two patterns in turn, 4 positions wide, in a strip of one region; truth and features."""
    rng = np.random.default_rng(seed)
    truth = np.broadcast_to(np.arange(28) // 4, (26, 28)).copy()
    pattern = np.zeros((2, RANK))
    pattern[:, :3] = strength
    pattern[1, 3:] += strength * step
    pattern[1, :3] -= strength * step
    values = gaussian_filter(pattern[truth % 2], (blur, blur, 0), mode="nearest")
    return truth, (values + rng.normal(size=values.shape)).astype(np.float32)


def split(values, regions):
    merges = merge_positions(values, regions >= 0)
    return steps.split_at_steps(values, merges, regions, some_disks())


def test_lamellae_come_apart_and_other_regions_stay():
    truth, values = lamellae()
    regions = np.zeros(truth.shape, dtype=np.int64)
    regions[:3], regions[23:] = 1, -1
    values[:3] = 0
    values[:3, :, 5] = 20
    found = split(values, regions)
    assert panoptic_quality(found[3:23], truth[3:23]).quality > 0.95
    assert len(np.unique(found[:3])) == 1
    np.testing.assert_array_equal(found < 0, regions < 0)


@pytest.mark.parametrize("kind", ["bend", "contours", "thickness", "weak step", "noise", "nothing"])
def test_one_crystal_stays_one_region(kind):
    rng = np.random.default_rng(3)
    truth, values = lamellae(step=0.45 if kind == "weak step" else 0)
    if kind in ("bend", "contours"):
        angle = np.deg2rad((5 if kind == "bend" else 40) * np.arange(truth.shape[1]))[:, None]
        values[..., :3] += 20 * (np.cos(angle) - 1)
        values[..., 3:] += 20 * np.sin(angle)
    if kind == "thickness":
        values *= np.where(truth % 2, 1.0, 0.2)[..., None]
    if kind == "noise":
        values = rng.normal(size=values.shape).astype(np.float32)
    regions = np.zeros(truth.shape, dtype=np.int64)
    if kind == "nothing":
        regions -= 1
    if kind != "contours":  # merging keeps their columns apart
        np.testing.assert_array_equal(split(values, regions), regions)
    if kind != "noise":  # which has no certain disks
        certain = np.ones(8, dtype=bool)
        wide = np.arange(28) // 8 + 0 * truth  # parts of 8 positions' width
        for parts in (truth, wide):
            group = steps._join_without_steps(parts, values, certain[: parts.max() + 1], 1.0 * RANK)
            assert len(np.unique(group)) == 1


def joins_by_relabelling(parts, values, certain, noise):
    """Slow: all pairs are measured anew after each join, on a map of the groups."""
    group = np.arange(parts.max() + 1)
    certain = certain.copy()
    while True:
        labels = group[parts]
        borders = find_borders(labels)[0]
        best = None
        for pair in zip(borders.first, borders.second, strict=True):
            strips = border_strips(
                find_facing(labels), np.arange(len(group)), labels, np.array([pair]), values, noise
            )
            (difference,), (strong,) = joining.difference_across(strips)
            apart = difference / strong >= steps.MIN_STEP and certain[list(pair)].all()
            apart &= np.maximum(strips.scatter, 0).sum() <= steps.MAX_STEP_SCATTER * difference
            if not apart and (best is None or difference / strong < best[0]):
                best = difference / strong, *pair
        if best is None:
            return group
        group[group == best[2]] = best[1]
        certain[best[1]] |= certain[best[2]]


def test_parts_join_until_only_steps_are_left():
    truth, values = lamellae(seed=5, blur=0.4)
    truth, values = truth[:, :17], values[:, :17]
    parts = consecutive(truth * 3 + np.arange(26)[:, None] // 9)  # each lamella in three parts
    certain = np.random.default_rng(1).random(parts.max() + 1) < 0.8
    found = steps._join_without_steps(parts, values, certain, float(RANK))
    np.testing.assert_array_equal(found, joins_by_relabelling(parts, values, certain, float(RANK)))
    assert 1 < len(np.unique(found)) <= 5
    certain[:] = True
    found = steps._join_without_steps(parts, values, certain, float(RANK))
    assert [len(np.unique(found[parts[truth == k]])) for k in range(5)] == [1] * 5
    # Where disks are not certain, nothing speaks for a step.
    assert len(np.unique(steps._join_without_steps(parts, values, ~certain, float(RANK)))) == 1


def test_difference_across_is_free_of_noise_and_of_a_factor():
    rng = np.random.default_rng(0)
    n, count = 4000, np.array([20.0, 9.0])
    true = np.array([[4.0, 0, 0, 2, 0, 0], [1.0, 0, 0, 0.5, 0, 1]])
    mean = true + rng.normal(size=(n, 2, RANK)) / np.sqrt(count)[:, None]
    strips = Strips(mean, np.tile(count, (n, 1)), np.ones((n, 2)), np.ones((n, 2)))
    difference, strong = joining.difference_across(strips)
    for k in range(5):  # slow, one by one
        a, b = mean[k]
        gain = min(max(a @ b / (b @ b), 1), joining.MAX_GAIN)
        slow = ((a - gain * b) ** 2).sum() - RANK / 20 - gain**2 * RANK / 9
        assert difference[k] == pytest.approx(slow)
        assert strong[k] == pytest.approx(a @ a - RANK / 20)
    assert strong.mean() == pytest.approx(20, rel=0.02)
    turned = strips._replace(mean=mean[:, ::-1], size=strips.size[:, ::-1])
    np.testing.assert_allclose(joining.difference_across(turned)[0], difference)


# --- noise of the feature in which lamellae differ ------------------------------------------------


def noise_by_loops(field, there, dx, dy):
    found = [
        abs(field[x, y] - field[x + dx, y + dy])
        for x in range(field.shape[0])
        for y in range(field.shape[1])
        if 0 <= x + dx < field.shape[0] and 0 <= y + dy < field.shape[1]
        and there[x, y] and there[x + dx, y + dy]
    ]  # fmt: skip
    return np.median(found) / 0.6745 / np.sqrt(2) if len(found) >= 100 else np.inf


def test_noise_is_measured_along_lamellae():
    rng = np.random.default_rng(1)
    x, y = np.indices((40, 31))
    stripes = np.sin((x - 3 * y) * 2 * np.pi / 14) * 12  # along (3, 1)
    values = np.stack([stripes, 0 * stripes], axis=2) + rng.normal(size=(40, 31, 2))
    lost = rng.random((40, 31)) < 0.1
    found = noise_of_neighbours(values, lost)
    np.testing.assert_allclose(found, 1, rtol=0.12)
    slow = min(noise_by_loops(values[..., 0], ~lost, *step) for step in feature_kernel._ALONG)
    assert found[0] == pytest.approx(slow)
    # A slope along one axis is not so clear, and stays as it is.
    slope = (values[..., 1] + 1.2 * x)[..., None]
    assert noise_of_neighbours(slope)[0] > 1.05
    assert np.isfinite(noise_of_neighbours(values[:3, :2])).all()


@pytest.mark.parametrize("electrons", [100, 1000])
def test_twin_lamellae_are_grains(electrons):
    sample = simulate_sample("twin-lamellae", (40, 36), (48, 45), electrons=electrons, seed=101)
    found = sample.datacube.cluster(progress_bar=False).labels
    assert panoptic_quality(found, sample.labels).quality > 0.9


def test_parts_that_others_enclose_do_not_reach_out():
    parts = np.full((8, 9), -1)
    parts[1:, 1:8] = 0  # ends at the border of the scan
    parts[3:5, 3:6] = 1  # enclosed
    parts[1:3, 6:8] = 2
    np.testing.assert_array_equal(steps._reach_out(parts), [True, False, True])
    parts[5:, 4] = 1
    np.testing.assert_array_equal(steps._reach_out(parts), [True, True, True])
