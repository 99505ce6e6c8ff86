"""The last rounds of merging against rounds that compare all borders, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from py4dstem_clustering.kernels import late_joins, merging
from py4dstem_clustering.kernels.merging import merge_positions
from py4dstem_clustering.kernels.region_graph import max_cost
from py4dstem_clustering.kernels.regions import GRAIN_VARIATION, grid_pairs


def costs_of(mean, size, a, b, length):
    """Costs of joins as in the formula, all of them anew."""
    rank = mean.shape[1]
    power = np.maximum((mean**2).sum(axis=1) - rank / size, 0)
    squared = ((mean[a] - mean[b]) ** 2).sum(axis=1)
    spread = 1 + GRAIN_VARIATION**2 * np.maximum(power[a], power[b]) / rank
    return size[a] * size[b] / (size[a] + size[b]) * squared / spread / length / max_cost(rank)


def rounds_of_all(values, mask, stop):
    """Rounds that sort and compare all borders: children and levels of all merges."""
    inside = np.flatnonzero(mask)
    number = np.cumsum(mask) - 1
    mean = values.reshape(mask.size, -1)[inside].astype(float)
    size, level, node = np.ones(len(inside)), np.zeros(len(inside)), inside.copy()
    a, b, length = grid_pairs(mask)
    a, b = number[a], number[b]
    children, levels = [], []
    while len(a):
        cost = costs_of(mean, size, a, b, length)
        best = {}
        for edge in np.argsort(cost, kind="stable")[::-1].tolist():
            best[a[edge]] = best[b[edge]] = edge
        mutual = [e for e in range(len(a)) if best[a[e]] == best[b[e]] == e and cost[e] <= stop]
        if not mutual:
            break
        target = np.arange(len(mean))
        for e in mutual:
            i, j = a[e], b[e]
            both = size[i] + size[j]
            mean[i] = (size[i] * mean[i] + size[j] * mean[j]) / both
            level[i] = max(cost[e], level[i], level[j])
            size[i], target[j] = both, i
            children.append((node[i], node[j]))
            levels.append(level[i])
            node[i] = mask.size + len(levels) - 1
        total = {}
        for i, j, border in zip(target[a].tolist(), target[b].tolist(), length, strict=True):
            if i != j:
                key = min(i, j), max(i, j)
                total[key] = total.get(key, 0) + border
        a, b = np.array(sorted(total), dtype=int).reshape(-1, 2).T
        length = np.array([total[key] for key in sorted(total)])
    return np.array(children).reshape(-1, 2), np.array(levels)


def scan_of(seed, kind):
    """Small regions in noise around a few grains; `kind` 1 has ties, 2 a large background."""
    rng = np.random.default_rng(seed)
    shape = 11 + seed, 19
    x, y = np.indices(shape)
    means = rng.normal(size=(5, 4)) * 2
    grain = ((2 * x + 3 * y) // 11) % 5
    if kind == 2:
        grain = np.where((x // 4 + y // 3) % 3 > 0, 0, grain)
    values = (means[grain] * (kind != 0) + rng.normal(size=(*shape, 4))).astype(np.float32)
    return np.round(values) if kind == 1 else values, rng.random(shape) > 0.1


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize(("crowd", "in_front", "few"), [(128, 32, 2048), (6, 2, 1), (3, 0, 2)])
def test_late_joins_are_those_of_all_rounds(monkeypatch, crowd, in_front, few, kind):
    monkeypatch.setattr(late_joins, "CROWD", crowd)
    monkeypatch.setattr(late_joins, "IN_FRONT", in_front)
    monkeypatch.setattr(merging, "_FEW_JOINS", few)
    for seed in range(2):
        values, mask = scan_of(seed, kind)
        for stop in (0.0, 0.1, 1.0, np.inf):
            merges = merge_positions(values, mask, stop)
            children, level = rounds_of_all(values, mask, stop)
            np.testing.assert_array_equal(merges.children, children)
            np.testing.assert_array_equal(merges.level, level)
            assert len(level) or stop == 0


def test_neighbours_of_a_crowded_region_wait(monkeypatch):
    """Most of them are not compared in a round; those that are give the same result."""
    monkeypatch.setattr(late_joins, "CROWD", 24)
    monkeypatch.setattr(late_joins, "IN_FRONT", 4)
    monkeypatch.setattr(merging, "_FEW_JOINS", 64)
    compared, beside = [], []
    compare = late_joins.LateJoins._compare_crowd

    def count(self, hub, some, grown):
        found = compare(self, hub, some, grown)
        crowd = self.crowds[hub]
        used = len(crowd.row)
        compared.append(int((crowd.until[:used] <= self.regions.way[hub]).sum()))
        beside.append(used)
        return found

    monkeypatch.setattr(late_joins.LateJoins, "_compare_crowd", count)
    rng = np.random.default_rng(0)
    x, y = np.indices((36, 40))
    spot = (x % 4 < 2) & (y % 4 < 2)
    strength = rng.uniform(2, 5, size=(10, 11))[x // 4, y // 4]
    values = rng.normal(size=(36, 40, 3)) * 0.3
    values[..., 0] += np.where(spot, strength, 0)
    values = values.astype(np.float32)
    mask = np.ones((36, 40), bool)
    merges = merge_positions(values, mask)
    assert len(compared) > 20
    assert np.sum(compared) < 0.5 * np.sum(beside)
    children, level = rounds_of_all(values, mask, 1.0)
    np.testing.assert_array_equal(merges.children, children)
    np.testing.assert_array_equal(merges.level, level)


def test_neighbours_that_wait_between_others(monkeypatch):
    """While they wait, the crowded region stays cheaper, or dearer, than their other neighbours."""
    monkeypatch.setattr(late_joins, "CROWD", 20)
    monkeypatch.setattr(late_joins, "IN_FRONT", 3)
    monkeypatch.setattr(merging, "_FEW_JOINS", 16)
    values = np.random.default_rng(0).normal(size=(30, 34, 4)).astype(np.float32)
    mask = np.ones((30, 34), bool)
    merges = merge_positions(values, mask)
    children, level = rounds_of_all(values, mask, 1.0)
    np.testing.assert_array_equal(merges.children, children)
    np.testing.assert_array_equal(merges.level, level)


def test_rows_of_a_crowd_are_added_and_removed():
    crowd, rng, inside = late_joins._Crowd(), np.random.default_rng(0), set()
    for _ in range(2000):
        k = int(rng.integers(300))
        if k in inside and rng.random() < 0.6:
            crowd.remove(k)
            inside.remove(k)
        else:
            crowd.add(k)
            inside.add(k)
            crowd.cost[crowd.row[k]] = k
        assert set(crowd.row) == inside
    rows = np.array([crowd.row[k] for k in sorted(inside)])
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(inside)))
    np.testing.assert_array_equal(crowd.region[rows], sorted(inside))
    np.testing.assert_array_equal(crowd.cost[rows], sorted(inside))
    assert np.isinf(crowd.cost[len(inside) :]).all()
