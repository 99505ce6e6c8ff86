"""Regions that touch while positions merge, and what joining each pair of them costs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import tiles
from .regions import GRAIN_VARIATION

MAX_COST = 40.0
"""Largest cost of a join in step 1, in units of the noise; less with few features.

A larger value merges more in step 1: small or weak grains are lost to their neighbours.
"""

MAX_COST_PER_FEATURE = 3.0
"""Largest cost of a join per feature, where this gives less than `MAX_COST` (up to 13 features).

A larger value merges more in step 1 when the patterns have few features.
"""

_PAIRS_AT_ONCE = 2**12
"""Pairs of regions that are compared together; more of them do not fit into the cache."""


def max_cost(rank: int) -> float:
    """Cost up to which step 1 merges `rank` features: fewer features hold less noise."""
    return min(MAX_COST, MAX_COST_PER_FEATURE * rank)


class Regions:
    """Regions, each under the number of its first position.

    Parameters
    ----------
    values : ndarray, (n, rank)
        Features of the positions, which are the first regions.
    """

    def __init__(self, values: NDArray[Any]) -> None:
        n, self.rank = values.shape
        self.mean = values.astype(np.float64)
        self.square = (self.mean**2).sum(axis=1)
        self.size = np.ones(n)
        self.level = np.zeros(n)
        self.way = np.zeros(n)
        """Length of the way that each mean has moved so far, or a little more."""

    def join(
        self, i: NDArray[np.int64], j: NDArray[np.int64], cost: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Add regions `j` to regions `i`; returns the levels of these joins."""
        one, two = self.size[i], self.size[j]
        before = self.mean[i]
        after = (one[:, None] * before + two[:, None] * self.mean[j]) / (one + two)[:, None]
        self.mean[i], self.square[i] = after, (after**2).sum(axis=1)
        # As a region grows, less of its power is noise. The second term is a way that adds as much
        # to the root of the spread.
        self.way[i] += np.sqrt(((after - before) ** 2).sum(axis=1))
        self.way[i] += GRAIN_VARIATION**2 / 2 * (1 / one - 1 / (one + two)) / self.bend
        self.size[i] = one + two
        self.level[i] = np.maximum(cost, np.maximum(self.level[i], self.level[j]))
        level: NDArray[np.float64] = self.level[i]
        return level

    def costs(
        self, i: NDArray[np.int64], j: NDArray[np.int64], length: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Cost of joining regions `i` with regions `j`, in units of `max_cost`."""
        out = np.empty(len(i))
        for piece in tiles(len(i), _PAIRS_AT_ONCE):
            squared, spread, weight = self.differences(i[piece], j[piece])
            out[piece] = weight * squared / spread / length[piece]
        return out / max_cost(self.rank)

    def differences(
        self, i: NDArray[np.int64], j: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Squared differences of regions, their spread, and the weight of both regions."""
        one, two = self.size[i], self.size[j]
        apart = np.take(self.mean, i, axis=0)
        apart -= np.take(self.mean, j, axis=0)
        squared = np.square(apart, out=apart).sum(axis=1)
        # Noise, and the variation of a grain as strong as the stronger of the two.
        strong = np.maximum(self.square[i] - self.rank / one, self.square[j] - self.rank / two)
        spread = 1 + GRAIN_VARIATION**2 * np.maximum(strong, 0) / self.rank
        return squared, spread, one * two / (one + two)

    @property
    def bend(self) -> float:
        """Largest growth of the root of the spread for each unit of `way`."""
        return float(GRAIN_VARIATION / np.sqrt(self.rank))


class RegionBorders:
    """Borders of regions, and rounds of joins, all of a round at once.

    Parameters
    ----------
    regions : Regions
    first, second, length : ndarray, (m,)
        Borders of positions, the lower number first.
    stop : float
        Cost, in units of `max_cost`, above which regions do not join.
    """

    def __init__(
        self,
        regions: Regions,
        first: NDArray[np.int64],
        second: NDArray[np.int64],
        length: NDArray[np.float64],
        stop: float,
    ) -> None:
        n = len(regions.size)
        self.regions, self.stop = regions, stop
        self.first, self.second, self.length = first, second, length
        self.cost = regions.costs(first, second, length)
        self._target = np.arange(n)
        self._mark = np.zeros(n, dtype=bool)  # all False between calls
        self._cheapest = np.empty(n)  # valid only where it has just been written, like the next
        self._choice = np.empty(n, dtype=np.int64)
        self._is_first = True

    def mutual(self) -> NDArray[np.int64]:
        """Borders, with a cost up to `stop`, of regions that are each other's cheapest neighbours.

        Of equally cheap neighbours, the first in reading order is chosen.
        """
        live = np.flatnonzero(self.cost <= self.stop)
        ends, cost = (self.first[live], self.second[live]), self.cost[live]
        for end in ends:
            self._cheapest[end], self._choice[end] = np.inf, len(live)
        for end in ends:
            np.minimum.at(self._cheapest, end, cost)
        for end in ends:
            best = np.flatnonzero(cost == self._cheapest[end])
            np.minimum.at(self._choice, end[best], best)
        order = np.arange(len(live))
        both = (self._choice[ends[0]] == order) & (self._choice[ends[1]] == order)
        found: NDArray[np.int64] = live[both]
        return found

    def join(
        self, chosen: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Join the regions on both sides of the `chosen` borders, which share no region.

        Returns the numbers of the regions that stay and of those that join them, and the levels.
        """
        i, j = self.first[chosen], self.second[chosen]
        level = self.regions.join(i, j, self.cost[chosen])
        self._target[j] = i
        # After the first round, borders are sorted by their regions. Those of regions that are gone
        # move to where they belong now.
        moves = np.full(len(self.first), self._is_first)
        moves[self._touching(j)] = True
        self._is_first = False
        here, stays, n = np.flatnonzero(moves), np.flatnonzero(~moves), len(self._target)
        one, two = self._target[self.first[here]], self._target[self.second[here]]
        low, high = np.minimum(one, two), np.maximum(one, two)
        apart = low != high
        key, at, which = np.unique((low * n + high)[apart], return_index=True, return_inverse=True)
        length = np.bincount(which, self.length[here][apart], len(key))
        known = self.first[stays] * n + self.second[stays]
        place = np.asarray(np.searchsorted(known, key))
        is_known = np.append(known, -1)[place] == key
        self.length[stays[place[is_known]]] += length[is_known]
        new = ~is_known
        order = np.insert(stays, place[new], len(moves) + np.arange(int(new.sum())))
        first, second = np.divmod(key[new], n)
        self.first = np.concatenate([self.first, first])[order]
        self.second = np.concatenate([self.second, second])[order]
        self.length = np.concatenate([self.length, length[new]])[order]
        self.cost = np.concatenate([self.cost, self.cost[here[apart][at]][new]])[order]
        near = self._touching(i)
        self.cost[near] = self.regions.costs(self.first[near], self.second[near], self.length[near])
        return i, j, level

    def _touching(self, regions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Borders of some regions."""
        self._mark[regions] = True
        found = np.flatnonzero(self._mark[self.first] | self._mark[self.second])
        self._mark[regions] = False
        return found
