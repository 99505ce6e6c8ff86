"""The last rounds of joins, of which each joins few regions: only what changes is looked at.

A large region, such as the background, may touch thousands of small ones and take in one of them in
each round. Its mean hardly moves. So for most of its neighbours it is certain for many rounds that
they are not the next, and that they choose the same of their own neighbours. Until then they wait,
and are not compared.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .region_graph import RegionBorders, Regions, max_cost

CROWD = 128
"""Neighbours of a region from which on most of them wait. With fewer, waiting takes longer than to
compare them."""

IN_FRONT = 32
"""Neighbours of such a region that do not wait. With more, more are compared in each round; with
fewer, those that wait are compared more often."""


class _Crowd:
    """The neighbours of a crowded region, one in each row."""

    def __init__(self) -> None:
        self.row: dict[int, int] = {}
        self.region = np.empty(0, dtype=np.int64)
        self.cost = np.empty(0)
        """Cost of the join when it was last measured; infinite above the largest cost."""
        self.other = np.empty(0)
        """Cost of joining the neighbour with the cheapest of its other neighbours."""
        self.several = np.empty(0)
        """1 if the neighbour is crowded, or beside several crowded regions: it never waits."""
        self.floor = np.empty(0)
        """The cost is certain to be above this..."""
        self.until = np.empty(0)
        """...up to this way of the crowded region."""

    def add(self, region: int) -> None:
        """A row for a neighbour, if it has none."""
        if region in self.row:
            return
        used = len(self.row)
        if used == len(self.region):
            more = max(CROWD, used)
            self.region = np.concatenate([self.region, np.full(more, -1)])
            for name in ("cost", "other", "several", "floor", "until"):
                setattr(self, name, np.concatenate([getattr(self, name), np.full(more, np.inf)]))
        self.row[region] = used
        self.region[used] = region
        self.until[used] = -np.inf

    def remove(self, region: int) -> None:
        """The last row takes the place of the row of the region."""
        place, last = self.row.pop(region), len(self.row)
        for values in (self.cost, self.other, self.several, self.floor, self.until):
            values[place], values[last] = values[last], np.inf
        self.region[place], self.region[last] = self.region[last], -1
        if place != last:
            self.row[int(self.region[place])] = place


class LateJoins:
    """Rounds of joins that go on where `RegionBorders` stops, with the same results."""

    def __init__(self, borders: RegionBorders) -> None:
        self.regions: Regions = borders.regions
        self.stop = borders.stop
        self.near: dict[int, dict[int, float]] = {}
        """Length of the border to each neighbour."""
        self.cost: dict[int, dict[int, float]] = {}
        """Cost of each join up to `stop`. It may be out of date if the neighbour is crowded; a
        crowded region has its own in `crowds`."""
        columns = (borders.first, borders.second, borders.length, borders.cost)
        for i, j, length, cost in zip(*(x.tolist() for x in columns), strict=True):
            for one, two in ((i, j), (j, i)):
                self.near.setdefault(one, {})[two] = length
                prices = self.cost.setdefault(one, {})
                if cost <= self.stop:
                    prices[two] = cost
        self.choice: dict[int, int] = {}
        self.crowds: dict[int, _Crowd] = {}
        self.pairs: list[tuple[int, int]] = []
        self._update(set(self.near), set(self.near))

    def join(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Join all regions that are each other's cheapest neighbours, like `RegionBorders.join`."""
        i, j = np.array(self.pairs).T
        level = self.regions.join(i, j, self._costs(self.pairs))
        changed: set[int] = set()
        for stays, joins in self.pairs:
            self._move(stays, joins, changed)
        grown = {stays for stays, _ in self.pairs}
        lonely = [k for k, crowd in self.crowds.items() if len(crowd.row) < CROWD // 2]
        for k in lonely:
            del self.crowds[k]
        single = list(grown.difference(self.crowds).union(lonely))
        pairs = [(k, other) for k in single for other in self.near[k] if other not in self.crowds]
        for (one, two), cost in zip(pairs, self._costs(pairs).tolist(), strict=True):
            for a, b in ((one, two), (two, one)):
                if cost <= self.stop:
                    self.cost[a][b] = cost
                else:
                    self.cost[a].pop(b, None)
        for k in single:
            changed.update(self.near[k])
        changed |= grown.union(lonely)
        self._update({k for k in changed if k in self.near}, grown)
        return i, j, level

    def _costs(self, pairs: list[tuple[int, int]]) -> NDArray[np.float64]:
        """Costs of joining pairs of neighbours."""
        if not pairs:
            return np.empty(0)
        i, j = np.array(pairs).T
        return self.regions.costs(i, j, np.array([self.near[one][two] for one, two in pairs]))

    def _move(self, stays: int, joins: int, changed: set[int]) -> None:
        """Give the borders of a region to the one that it joins."""
        crowd = self.crowds.get(stays)
        own = self.near[stays]
        del self.cost[joins]
        self.choice.pop(joins, None)
        self.crowds.pop(joins, None)
        for k, length in self.near.pop(joins).items():
            del self.near[k][joins]
            self.cost[k].pop(joins, None)
            if k in self.crowds:
                self.crowds[k].remove(joins)
            changed.add(k)
            if k == stays:
                continue
            own[k] = self.near[k][stays] = own.get(k, 0) + length
            if crowd is not None:
                crowd.add(k)
                crowd.until[crowd.row[k]] = -np.inf
            if k in self.crowds:
                self.crowds[k].add(stays)

    def _update(self, changed: set[int], grown: set[int]) -> None:
        """Choose anew for the regions that may choose another neighbour, and find new pairs."""
        for k in [k for k in changed if k not in self.crowds and len(self.near[k]) >= CROWD]:
            crowd = self.crowds[k] = _Crowd()
            for other in self.near[k]:
                crowd.add(other)
                changed.add(other)
        # What is beside a crowded region is compared with it when anything else beside it changes.
        again: dict[int, set[int]] = {k: set() for k in changed if k in self.crowds}
        for k in changed:
            if k not in self.crowds or k in grown:
                for other in self._crowds_beside(k):
                    again.setdefault(other, set()).add(k)
        for hub, some in again.items():
            changed |= self._compare_crowd(hub, some, hub in grown)
        for k in changed:
            if k not in self.crowds:
                best = min(((cost, other) for other, cost in self.cost[k].items()), default=None)
                self.choice[k] = -1 if best is None else best[1]
        found = set()
        for k in changed.union(again):
            other = self.choice[k]
            if other >= 0 and self.choice[other] == k:
                found.add((min(k, other), max(k, other)))
        self.pairs = sorted(found)

    def _crowds_beside(self, k: int) -> list[int]:
        """Crowded neighbours of a region."""
        near = self.near[k]
        if len(near) < len(self.crowds):
            return [other for other in near if other in self.crowds]
        return [other for other in self.crowds if other in near]

    def _compare_crowd(self, hub: int, some: set[int], grown: bool) -> set[int]:
        """Compare a crowded region with `some` neighbours and with those that may wait no longer.

        Returns neighbours that may choose anew.
        """
        crowd, way, used = self.crowds[hub], self.regions.way[hub], len(self.crowds[hub].row)
        for k in some:
            row = crowd.row[k]
            crowd.several[row] = k in self.crowds or len(self._crowds_beside(k)) > 1
            if not crowd.several[row]:
                costs = (cost for other, cost in self.cost[k].items() if other != hub)
                crowd.other[row] = min(costs, default=np.inf)
        known = crowd.until[:used] <= way  # measured in each round in which the region grows
        fresh = known & grown
        fresh[[crowd.row[k] for k in some]] = True
        before, rows = crowd.cost[:used].copy(), np.flatnonzero(fresh)
        least = -np.inf
        while len(rows) or least == -np.inf:
            beside = crowd.region[rows]
            length = np.array([self.near[hub][k] for k in beside.tolist()])
            cost = self.regions.costs(np.full(len(rows), hub), beside, length)
            crowd.cost[rows] = np.where(cost <= self.stop, cost, np.inf)
            fresh[rows] = known[rows] = True
            least = crowd.cost[:used][known].min(initial=np.inf)
            rows = np.flatnonzero((crowd.floor[:used] < least) & ~known)
        best = crowd.region[:used][known & (crowd.cost[:used] == least)]
        self.choice[hub] = int(best.min()) if least < np.inf else -1
        rows = np.flatnonzero(fresh)
        cost, other, beside = crowd.cost[rows], crowd.other[rows], crowd.region[rows]

        several = crowd.several[rows] > 0
        turned = ((before[rows] < other) != (cost < other)) | (cost == other) | several
        changed = some.union(beside[turned].tolist())
        for k in changed:
            now = crowd.cost[crowd.row[k]]
            if now <= self.stop:
                self.cost[k][hub] = now
            else:
                self.cost[k].pop(hub, None)

        # The cheapest neighbours do not wait, nor those for which two neighbours cost the same.
        front = np.partition(cost, IN_FRONT)[IN_FRONT] if len(cost) > IN_FRONT else np.inf
        crowd.until[rows] = crowd.floor[rows] = -np.inf
        wait = (cost == np.inf) | ((cost > front) & (cost != other))
        self._let_wait(hub, rows[wait & ~several], least)
        return changed

    def _let_wait(self, hub: int, rows: NDArray[np.int64], least: float) -> None:
        """Measure how long some neighbours of a crowded region are certain to wait.

        `least` is the cost of the cheapest neighbour.
        """
        if not len(rows):
            return
        crowd, beside = self.crowds[hub], self.crowds[hub].region[rows]
        cost, other = crowd.cost[rows], crowd.other[rows]
        floor = np.maximum((least + cost) / 2, np.where(other < cost, other, 0))
        floor = np.where(cost == np.inf, self.stop, floor)
        ceiling = np.where(other > cost, other, np.inf)
        squared, spread, weight = self.regions.differences(np.full(len(rows), hub), beside)
        length = np.array([self.near[hub][k] for k in beside.tolist()])
        unit, bend = length * max_cost(self.regions.rank), self.regions.bend
        # The crowded region grows, which makes the weight larger, up to the size of the other one.
        # A way brings the means nearer, or away, by its length, and changes the root of the spread
        # by `bend` times its length at most.
        with np.errstate(divide="ignore", invalid="ignore"):  # a floor of 0
            low, high = np.sqrt(weight / unit / floor), np.sqrt(self.regions.size[beside] / unit)
            high /= np.sqrt(ceiling)
            distance, spread = np.sqrt(squared), np.sqrt(spread)
            free = (low * distance - spread) / (low + bend)
            above = (spread - high * distance) / (high + bend)
        free = np.where(ceiling < np.inf, np.minimum(free, above), free)
        free = (1 - 1e-6) * np.where(free > 0, free, -np.inf)  # not if it is not a number
        crowd.until[rows] = self.regions.way[hub] + free
        crowd.floor[rows] = np.where(free > 0, floor, -np.inf)
