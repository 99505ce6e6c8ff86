"""Whether neighbouring pieces are of one crystal, and the order in which pieces join.

Two pieces join if they share disks, and if their patterns change across the border as gradually
as on each side of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .disks import Disks, shared_disks
from .pieces import find_uniform, mixture_shares
from .regions import find_borders, join_pairs, region_means
from .strips import Strips, border_strips, find_facing, noise_power

# For the scans on which the constants were tuned, see `pieces.py`.
MIN_SHARED = 0.15
"""Score from which on two pieces join: the share of disks in common beyond that of unrelated
pieces, times factors below 1 for a step. A smaller value joins more."""

GRADIENT_RATIO = 0.18
"""Scatter of the patterns inside two strips, relative to the squared difference of their means,
from which on nothing speaks against a common lattice. A uniform gradient gives 1/6, a step 0."""

BENT_SCATTER = 0.06
"""Scatter of the patterns inside two strips, relative to the power of their means, from which on a
lattice may bend. In films of flat grains it is 0.03, in bent wedges mostly above 0.06."""

MAX_GAIN = 3.0
"""Factor of intensity up to which two patterns differ in thickness only."""

STEP_DEPTH = 5.0
"""Depth of both strips together, scan positions, from which on the place of a change is judged."""

MAX_STEP = 1.5
"""Change between direct neighbours across a border, relative to an even change from the middle of
one strip to that of the other, up to which it is no step."""

FULL_BORDER = 8.0
"""Length of a border, in the unit of `Borders`, from which on its evidence counts in full."""

BRIDGE_SHARE = 0.1
"""Share of the power of a piece that a second crystal must have for the piece to be a mixture."""


def join_numbers(pairs: NDArray[Any], n: int) -> NDArray[np.int64]:
    """Number of the group of each of `n` items after joining pairs of them."""
    first, second = np.reshape(pairs, (-1, 2)).T
    return join_pairs(first, second, n).astype(np.int64)


def difference_across(strips: Strips) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Squared difference ``(n,)`` of the means of both strips, and the power of the stronger mean.

    The part of the noise is subtracted from both. A factor between the means of up to `MAX_GAIN` is
    no difference, since a thinner part of a crystal differs by such a factor.
    """
    power = (strips.mean**2).sum(axis=2)
    product = (strips.mean[:, 0] * strips.mean[:, 1]).sum(axis=1)
    weaker = power.argmin(axis=1)
    rows = np.arange(len(power))
    weak, strong = power[rows, weaker], power[rows, 1 - weaker]
    gain = np.clip(product / np.maximum(weak, 1e-9), 1, MAX_GAIN)
    difference = strong - 2 * gain * product + gain**2 * weak
    noise = strips.mean.shape[2] / strips.size
    of_strong, of_weak = noise[rows, 1 - weaker], noise[rows, weaker]
    return difference - of_strong - gain**2 * of_weak, strong - of_strong


class Joining:
    """Pieces on their way to crystals."""

    def __init__(
        self,
        pieces: NDArray[Any],
        values: NDArray[Any],
        disks: Disks,
        shows_disks: NDArray[np.bool_] | None = None,
    ) -> None:
        self.pieces, self.values, self.disks = pieces, values, disks
        self.n = int(pieces.max(initial=-1)) + 1
        self.facing = find_facing(pieces)
        self.noise = noise_power(pieces, values)
        self.mean, self.size = region_means(pieces, values)
        borders, which, first, second = find_borders(pieces)
        self.touching = np.stack([borders.first, borders.second], axis=1)
        self.lengths = borders.length
        # What a piece reaches over without disks has another pattern than the piece.
        shown = pieces if shows_disks is None else np.where(shows_disks, pieces, -1)
        self.wide, flat = find_uniform(shown, values)
        self.flat = borders.length * flat[self.touching].all(axis=1)
        ry = pieces.shape[1]
        straight = np.isin(np.abs(first - second), (1, ry))
        self.straight = which[straight], first[straight], second[straight]
        self.unrelated = self._unrelated()

    def _unrelated(self) -> float:
        """Share of disks in common of pieces that do not touch, lower quartile."""
        if self.n < 4:
            return 0.0
        rng = np.random.default_rng(0)
        some = rng.integers(self.n, size=(min(self.n**2, 4000), 2))
        some = np.unique(np.sort(some, axis=1), axis=0)
        some = some[some[:, 0] != some[:, 1]]
        touching = np.isin(
            some[:, 0] * self.n + some[:, 1], self.touching[:, 0] * self.n + self.touching[:, 1]
        )
        some = some[~touching]
        if len(some) < 3:
            return 0.0
        shared = shared_disks(self.disks, self.mean[some], self.size[some])
        return min(float(np.quantile(shared, 0.25)), 0.9)

    def scores(self, region: NDArray[Any], pairs: NDArray[Any]) -> NDArray[np.float64]:
        """Score of each of `pairs` ``(n, 2)`` of regions, the lower number first; sorted."""
        if not len(pairs):
            return np.empty(0)
        strips = border_strips(self.facing, region, self.pieces, pairs, self.values, self.noise)
        mean, size = self._means_of(region)
        # Disks of a bent crystal that are not near the border may be excited again elsewhere.
        shared = (
            shared_disks(self.disks, strips.mean, strips.size)
            + shared_disks(self.disks, mean[pairs], size[pairs])
        ) / 2
        shared = (shared - self.unrelated) / (1 - self.unrelated)
        ends = region[self.touching]
        code = np.minimum(*ends.T) * self.n + np.maximum(*ends.T)
        key = pairs[:, 0] * self.n + pairs[:, 1]
        at = np.minimum(np.searchsorted(key, code), len(key) - 1)
        hit = (key[at] == code) & (ends[:, 0] != ends[:, 1])
        length, flat = (
            np.bincount(at[hit], part[hit], len(key)) for part in (self.lengths, self.flat)
        )
        long = np.minimum(1, (length + 2) / FULL_BORDER) * (1 - flat / np.maximum(length, 1e-9))
        return shared * long * self._gradual(strips) * self._step(region, pairs, strips)

    def _means_of(self, region: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean features and sizes of regions that pieces have joined to."""
        size = np.bincount(region, self.size, self.n).astype(np.float64)
        total = [np.bincount(region, part * self.size, self.n) for part in self.mean.T]
        return np.stack(total, axis=1) / np.maximum(size, 1)[:, None], size

    def _gradual(self, strips: Strips) -> NDArray[np.float64]:
        """1 where strips scatter as much as a gradient would make them, 0 where they do not."""
        power = (strips.mean**2).sum(axis=2)
        difference, _ = difference_across(strips)
        scatter = np.maximum(strips.scatter, 0).sum(axis=1)
        gradual = np.minimum(1, scatter / np.maximum(difference, 1e-3) / GRADIENT_RATIO)
        return gradual * np.minimum(1, scatter / np.maximum(power.sum(axis=1), 1e-9) / BENT_SCATTER)

    def _step(
        self, region: NDArray[Any], pairs: NDArray[Any], strips: Strips
    ) -> NDArray[np.float64]:
        """Below 1 where patterns change right at the border and not from strip to strip."""
        across = strips.mean[:, 1] - strips.mean[:, 0]
        distance = np.linalg.norm(across, axis=1)
        unit = across / np.maximum(distance, 1e-9)[:, None]
        which, first, second = self.straight
        ends = region[self.touching[which]]
        low, high = ends.min(axis=1), ends.max(axis=1)
        key = pairs[:, 0] * self.n + pairs[:, 1]
        code = low * self.n + high
        at = np.minimum(np.searchsorted(key, code), len(key) - 1)
        hit = (key[at] == code) & (low != high)
        turned = np.where(ends[:, 0] > ends[:, 1], -1.0, 1.0)[hit]
        flat = self.values.reshape(-1, self.values.shape[2])
        change = (flat[second[hit]] - flat[first[hit]]) * unit[at[hit]]
        total = np.bincount(at[hit], change.sum(axis=1) * turned, len(key))
        count = np.bincount(at[hit], minlength=len(key))
        depth = strips.depth.sum(axis=1)
        step = total / np.maximum(count, 1) / np.maximum(distance, 1e-9) * depth
        factor = np.minimum(1, MAX_STEP / np.maximum(step, 1e-9)) ** 2
        return np.where((depth >= STEP_DEPTH) & (count > 0), factor, 1.0)


def join_pieces(
    pieces: NDArray[Any],
    values: NDArray[Any],
    disks: Disks,
    shows_disks: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Joins of pieces ``(n, 2)`` and their scores, falling, down to `MIN_SHARED`.

    `shows_disks` ``(Rx, Ry)`` are the positions where disks were found, at least one in each piece;
    None stands for all.

    In each round, regions that are each other's best neighbour join if their score is near the best
    of all. The scores of changed regions are then measured again.
    """
    n = int(pieces.max(initial=-1)) + 1
    joins: list[tuple[int, int]] = []
    levels: list[float] = []
    if n > 1:
        state = Joining(pieces, values, disks, shows_disks)
        region = np.arange(n)
        mean, size = state.mean.copy(), state.size.copy()
        wide = state.wide.copy()
        score: dict[tuple[int, int], float] = {}
        bridges: set[tuple[int, int]] = set()
        level = np.inf
        while True:
            ends = np.sort(region[state.touching], axis=1)
            pairs = np.unique(ends[ends[:, 0] != ends[:, 1]], axis=0)
            keys = list(map(tuple, pairs.tolist()))
            new = np.array([key not in score for key in keys], dtype=bool)
            score.update(
                zip(
                    (key for key, is_new in zip(keys, new, strict=True) if is_new),
                    state.scores(region, pairs[new]).tolist(),
                    strict=True,
                )
            )
            current = np.array([0.0 if key in bridges else score[key] for key in keys])
            current[wide[pairs].all(axis=1)] = 0.0
            best = np.full(n, -np.inf)
            for end in pairs.T:
                np.maximum.at(best, end, current)
            top = float(current.max(initial=-np.inf))
            if top < MIN_SHARED:
                break
            level = min(level, top)
            near: list[dict[int, float]] = [{} for _ in range(n)]
            for key in keys:
                near[key[0]][key[1]] = near[key[1]][key[0]] = score[key]
            mutual = (current == best[pairs[:, 0]]) & (current == best[pairs[:, 1]])
            mutual &= current >= max(0.9 * level, MIN_SHARED)
            changed: set[int] = set()
            for k in np.flatnonzero(mutual)[np.argsort(-current[mutual], kind="stable")]:
                i, j = keys[k]
                if i in changed or j in changed:
                    continue
                small, large = (i, j) if size[i] < size[j] else (j, i)
                if _is_bridge(small, large, near, mean, size):
                    bridges.add((i, j))
                    continue
                joins.append((i, j))
                levels.append(min(level, float(current[k])))
                both = size[i] + size[j]
                mean[i] = (size[i] * mean[i] + size[j] * mean[j]) / both
                size[i] = both
                wide[i] |= wide[j]
                region[region == j] = i
                changed |= {i, j}
            if changed:
                score = {key: s for key, s in score.items() if not changed & set(key)}
                bridges = {key for key in bridges if not changed & set(key)}
    pairs = np.array(joins, dtype=np.int64).reshape(-1, 2)
    return pairs, np.minimum.accumulate(np.array(levels, dtype=np.float64))


def _is_bridge(
    small: int, large: int, near: list[dict[int, float]], mean: NDArray[Any], size: NDArray[Any]
) -> bool:
    """Whether a region mixes `large` and another one that is known not to belong to `large`."""
    for other in near[small]:
        if other == large or size[other] <= size[small]:
            continue
        if near[large].get(other, 1.0) >= 0.4 * MIN_SHARED:
            continue
        share, explained = mixture_shares(mean, size, [large, other], mean[small], size[small])
        power = max(float((mean[small] ** 2).sum() - mean.shape[1] / size[small]), 1e-9)
        if explained and share[1] ** 2 * (mean[other] ** 2).sum() > BRIDGE_SHARE * power:
            return True
    return False
