"""How far crystals reach over the background."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from py4dstem_clustering.kernels import extent

SHAPE = (26, 34)


def scan(strength=12.0, *, slope=0.0, support=0.0, seed=0):
    """Radial features of one crystal, a rectangle, on an even or uneven support; and the crystal.

    The crystal is a wedge with a slope, and the support grows along Ry.
    """
    rx, ry = np.indices(SHAPE)
    truth = (rx >= 6) & (rx < 19) & (ry >= 7) & (ry < 27)
    values = np.random.default_rng(seed).normal(size=(*SHAPE, 3))
    values[..., 0] += 5 + support * ry
    values[..., 1] += np.where(truth, strength * (1 - slope * (ry - 7)), 0)
    return values.astype(np.float32), truth


def part_of(truth):
    """Labels of a part of the crystal, with a hole in it."""
    labels = np.where(truth, 0, -1)
    labels[:, 20:] = -1
    labels[10:13, 11:14] = -1
    return labels


@pytest.mark.parametrize(
    "options", [{}, {"slope": 0.03}, {"support": 0.3}, {"strength": 300.0}], ids=str
)
def test_a_crystal_takes_in_what_scatters_as_it_does(options):
    radial, truth = scan(**options)
    found = extent.extend_crystals(part_of(truth), radial, np.ones(SHAPE, dtype=bool))
    assert set(np.unique(found)) == {-1, 0}
    wrong = (found == 0) != truth
    assert wrong.sum() <= 0.02 * truth.sum()


def test_nothing_is_taken_in_where_the_profile_says_nothing():
    radial, truth = scan(strength=0.0)
    labels = part_of(truth)
    found = extent.extend_crystals(labels, radial, np.ones(SHAPE, dtype=bool))
    np.testing.assert_array_equal(found, labels)


def test_each_of_two_crystals_takes_its_own_part():
    radial, truth = scan()
    half = truth & (np.indices(SHAPE)[1] >= 17)
    radial[half, 2] += 25  # the second one has another profile
    labels = np.where(truth, 0, -1)
    labels[half] = 1
    labels[:, 13:21] = -1
    found = extent.extend_crystals(labels, radial, np.ones(SHAPE, dtype=bool))
    right = np.where(half, 1, np.where(truth, 0, -1))
    assert (found != right).mean() < 0.01


def test_positions_outside_the_mask_stay_outside():
    radial, truth = scan()
    mask = np.ones(SHAPE, dtype=bool)
    mask[:, 22:] = False
    found = extent.extend_crystals(part_of(truth), radial, mask)
    assert (found[:, 22:] == -1).all()
    assert (found[truth & mask] == 0).mean() > 0.98


@pytest.mark.parametrize("labels", [np.full(SHAPE, -1), np.zeros(SHAPE, dtype=int)])
def test_without_crystals_or_background_nothing_changes(labels):
    radial, _ = scan()
    mask = np.ones(SHAPE, dtype=bool)
    np.testing.assert_array_equal(extent.extend_crystals(labels, radial, mask), labels)
    assert extent.radial_excess(labels, radial, mask).shape == (*SHAPE, 3 * int(labels.max() < 0))


def extent_core(labels):
    """Background more than two positions from any crystal."""
    rx, ry = labels.shape
    near = np.zeros(labels.shape, dtype=bool)
    for x, y in np.argwhere(labels >= 0):
        near[max(x - 2, 0) : min(x + 3, rx), max(y - 2, 0) : min(y + 3, ry)] = True
    return ~near


def test_the_background_is_followed_from_place_to_place():
    radial, truth = scan(support=0.5)
    labels = np.where(truth, 0, -1)
    found = extent.find_surroundings(labels, radial, np.ones(SHAPE, dtype=bool))
    far = np.indices(SHAPE)[1]
    # Below the crystal it goes on; at the border of the scan the window is one-sided.
    inside = (far >= 5) & (far < 29)
    np.testing.assert_allclose(found.profile[inside, 0], 5 + 0.5 * far[inside], atol=2.0)
    # The scatter is that from place to place: noise, or the uneven background.
    np.testing.assert_allclose(found.scatter[1:], 1, atol=0.1)
    far_away = radial[extent_core(labels), 0]
    deviation = np.median(np.abs(far_away - np.median(far_away))) / 0.6745
    assert found.scatter[0] == pytest.approx(deviation, rel=1e-6)


def extend_by_loops(labels, radial, mask):
    """One position after the other, from the definition."""
    labels = labels.copy()
    excess = extent.radial_excess(labels, radial, mask).astype(float)
    rx, ry = labels.shape
    steps = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if (dx, dy) != (0, 0)]
    length = {step: 1.0 if 0 in step else 0.5 for step in steps}
    reach = int(2 * extent.LOCAL_SIGMA)

    def at(x, y):
        return min(max(x, 0), rx - 1), min(max(y, 0), ry - 1)

    for _ in range(extent.MAX_ROUNDS):
        new = labels.copy()
        best = {}
        for x in range(rx):
            for y in range(ry):
                if labels[x, y] >= 0 or not mask[x, y]:
                    continue
                near = {labels[x + dx, y + dy] for dx, dy in steps
                        if 0 <= x + dx < rx and 0 <= y + dy < ry} - {-1}  # fmt: skip
                for k in sorted(near):
                    sums = {True: [0.0, 0.0], False: [0.0, 0.0]}
                    for i in range(max(x - reach, 0), min(x + reach + 1, rx)):
                        for j in range(max(y - reach, 0), min(y + reach + 1, ry)):
                            if labels[i, j] != k:
                                continue
                            deep = all(labels[i + dx, j + dy] >= 0 for dx, dy in steps
                                       if 0 <= i + dx < rx and 0 <= j + dy < ry)  # fmt: skip
                            weight = np.exp(
                                -((i - x) ** 2 + (j - y) ** 2) / 2 / extent.LOCAL_SIGMA**2
                            )
                            sums[deep][0] += weight
                            sums[deep][1] = sums[deep][1] + weight * excess[i, j]
                    weight, total = sums[True]
                    if not weight:
                        weight, total = sums[False]
                    mean = total / weight
                    power = (mean**2).sum()
                    share = (excess[x, y] * mean).sum() / power
                    border = 0.0
                    for dx, dy in steps:
                        i, j = at(x + dx, y + dy)
                        free = labels[i, j] < 0 and mask[i, j]
                        border += length[dx, dy] * (float(labels[i, j] == k) - free)
                    likelihood = power * (share - 0.5) + extent.SMOOTHNESS * border
                    strong = power > extent.MIN_EXCESS**2 and share > extent.MIN_SHARE
                    if strong and likelihood > 0 and share > best.get((x, y), -np.inf):
                        best[x, y], new[x, y] = share, k
        labels = new
    return labels


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 100))
def test_extending_equals_loops(seed):
    rng = np.random.default_rng(seed)
    radial, truth = scan(6.0, seed=seed)
    # Two crystals of one kind that touch, with holes, a rim that is missing, and a blurred border.
    labels = np.where(truth & (np.indices(SHAPE)[1] >= 17), 1, np.where(truth, 0, -1))
    labels[rng.random(SHAPE) < 0.1] = -1
    labels[:9] = labels[:, 14:20] = labels[:, 25:] = -1
    radial[5, 7:27, 1] += 3
    mask = rng.random(SHAPE) < 0.97
    labels[~mask] = -1
    found = extent.extend_crystals(labels, radial, mask)
    assert (found != labels).sum() > 50
    np.testing.assert_array_equal(found, extend_by_loops(labels, radial, mask))
