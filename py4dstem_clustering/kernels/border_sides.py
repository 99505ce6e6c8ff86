"""Features on both sides of the borders between regions, as each region has them without noise.

At a position, a region has the mean of its members in a window about the position. This mean holds
at the middle of the members; the gradient of the region carries it from there to the position. All
of this is linear in the features. So what a side of a border takes from each member is measured
first, with windows of many sides at once, and then multiplied with the features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter
from scipy.sparse import csr_array

from .blas import single_threaded_blas
from .blocks import tiles
from .regions import FEATURES_AT_ONCE, GRAIN_VARIATION, Borders, find_borders, region_means

WINDOW_SIGMA = 3.0
"""Standard deviation of the window about a position whose features are averaged, scan positions.

A larger value averages more noise away, but also takes in what lies farther from the border.
"""

INNER_DEPTH = 2.0
"""Distance from a border, scan positions, from which on the other grain hardly blurs patterns.

A larger value keeps wider probes out of the gradients; small regions then have no gradient.
"""

GRADIENT_SHARE = 0.1
"""Share of the power allowed by `GRAIN_VARIATION` that a grain may gain over `WINDOW_SIGMA`.

A larger value lets grains bend more before their parts differ, but adds noise at the border.
"""

_REACH = int(3 * WINDOW_SIGMA + 0.5)
"""Scan positions from the middle of a window to its end."""

_TILE = 32
"""Long borders are worked on in tiles of so many scan positions, so that the area around a part of
a border does not grow with the square of its length."""

_STEP = 4
"""Areas of similar size are worked on together: their sizes are rounded up to this many positions.
With a larger step there are fewer, larger products."""

_AREA_AT_ONCE = 2**18
"""Positions of areas that are worked on together; more of them take more memory."""


class _Areas(NamedTuple):
    """Areas of one size around parts of borders, and the places at the border in each of them."""

    size: tuple[int, int]
    start: NDArray[np.int64]
    """First row and column ``(n, 2)`` of each area."""
    group: NDArray[np.int64]
    """Number of each area among those that were asked for, ``(n,)``."""
    place: NDArray[np.int64]
    """Which of the places that were asked for lie in these areas, ``(m,)``."""
    at: NDArray[np.int64]
    """Flat index of each of them in the areas ``(n, *size)``."""


def gradient_ridge(labels: NDArray[Any], values: NDArray[Any]) -> NDArray[np.float64]:
    """Ridge of the regression for the gradient of each region; a large ridge holds it near zero.

    It is the power of the noise in a window, divided by the expected power of gradients.
    """
    rank = values.shape[2]
    mean, size = region_means(labels, values)
    power = np.maximum((mean**2).sum(axis=1) / rank - 1 / size, 0)
    expected = np.maximum(GRADIENT_SHARE * GRAIN_VARIATION**2 * power, 1e-6)
    return 1e-3 + 1 / (4 * np.pi * WINDOW_SIGMA**2 * expected)


def border_sides(
    labels: NDArray[Any], values: NDArray[Any], ridge: NDArray[np.float64]
) -> tuple[Borders, NDArray[np.float64]]:
    """Borders, and the mean features ``(2, n_borders, rank)`` on their first and second sides.

    Only members deeper than `INNER_DEPTH` give the gradient, since no other grain blurs them. A
    lattice that bends has the same slope inside and at its border, so the gradient carries it right
    up to the border. A ramp between two grains is steep at the border only, so the gradient leaves
    the ramp out. `ridge` is from `gradient_ridge`.
    """
    borders, which, first, second = find_borders(labels)
    n, rank = len(borders.first), values.shape[2]
    if n == 0:
        return borders, np.empty((2, 0, rank))
    scan = _Scan(labels)
    place = np.concatenate([first, second])
    share = np.empty((4, labels.size))
    with single_threaded_blas:
        share[:, scan.border] = _shares(scan, ridge)
        side = np.concatenate([which, which + n])
        region = np.concatenate([borders.first, borders.second])
        weight = 1 / np.bincount(side, minlength=2 * n)
        parts = list(_members(scan, share, place, side, region, weight))
    flat = values.reshape(labels.size, rank)
    total = np.zeros((2 * n, rank))
    for some in tiles(rank, FEATURES_AT_ONCE):
        columns = flat[:, some].astype(np.float64)
        for sides, member in parts:
            np.add.at(total[:, some], sides, member @ columns)
    return borders, total.reshape(2, n, rank)


class _Scan:
    """A label map, with a margin for areas that reach beyond the scan."""

    def __init__(self, labels: NDArray[Any]) -> None:
        reach = int(INNER_DEPTH)
        disk = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) <= INNER_DEPTH
        deep = minimum_filter(labels, footprint=disk) == maximum_filter(labels, footprint=disk)
        self.columns = labels.shape[1]
        self.labels = labels.ravel()
        margin = (0, _TILE + 2 * _REACH + _STEP)
        self.padded = np.pad(labels, margin, constant_values=-1)
        self.deep = np.pad(deep, margin)
        first, second = find_borders(labels)[2:]
        on_border = np.zeros(labels.size, dtype=bool)
        on_border[first] = on_border[second] = True
        self.border = np.flatnonzero(on_border)
        n = int(labels.max(initial=-1)) + 1
        inside = np.flatnonzero(self.labels >= 0)
        self.low, self.high = _bounds(self.labels[inside], inside, n, self.columns)

    def areas(
        self, place: NDArray[Any], group: NDArray[Any], region: NDArray[Any]
    ) -> Iterator[_Areas]:
        """Areas around groups of places: all members of their `region` that windows reach."""
        low, high = _bounds(group, place, len(region), self.columns)
        low = np.maximum(low - _REACH, self.low[region])
        size = np.minimum(high + _REACH + 1, self.high[region] + 1) - low
        size = -(-size // _STEP) * _STEP
        kind = size[:, 0] * (_TILE + 3 * _REACH + _STEP) + size[:, 1]
        by_kind = np.argsort(kind, kind="stable")
        rank = np.empty_like(by_kind)
        rank[by_kind] = np.arange(len(by_kind))
        order = np.argsort(rank[group], kind="stable")
        end = np.cumsum(np.bincount(rank[group], minlength=len(region)))
        edges = np.flatnonzero(np.diff(kind[by_kind], prepend=-1, append=-1))
        for left, right in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            h, w = size[by_kind[left]].tolist()
            for some in tiles(right - left, max(1, _AREA_AT_ONCE // (h * w))):
                here = by_kind[left + some.start : left + some.stop]
                begin = int(end[left + some.start - 1]) if left + some.start else 0
                places = order[begin : int(end[left + some.stop - 1])]
                x, y = np.divmod(place[places], self.columns)
                number = rank[group[places]] - left - some.start
                start = low[here]
                at = (number * h + x - start[number, 0]) * w + y - start[number, 1]
                yield _Areas((h, w), start, here, places, at)

    def members(
        self, areas: _Areas, region: NDArray[Any]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
        """Positions of each area in its region, those that are deep inside, and flat indices."""
        x = areas.start[:, 0, None, None] + np.arange(areas.size[0])[:, None]
        y = areas.start[:, 1, None, None] + np.arange(areas.size[1])
        index = x * self.padded.shape[1] + y
        own = self.padded.ravel()[index] == region[areas.group][:, None, None]
        return own, own & self.deep.ravel()[index], x * self.columns + y


def _bounds(
    group: NDArray[Any], place: NDArray[Any], n: int, columns: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lowest and highest row and column ``(n, 2)`` of groups of positions."""
    low, high = np.full((2, n), np.iinfo(np.int64).max), np.full((2, n), -1)
    for axis, at in enumerate(np.divmod(place, columns)):
        np.minimum.at(low[axis], group, at)
        np.maximum.at(high[axis], group, at)
    return low.T, high.T


def _tiled(
    group: NDArray[Any], place: NDArray[Any], columns: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Groups of places, cut into tiles of the scan: the old group of each, and the new ones."""
    x, y = np.divmod(place, columns)
    width = -(-columns // _TILE)
    tile = x // _TILE * width + y // _TILE
    n_tiles = int(tile.max()) + 1
    key, number = np.unique(group * n_tiles + tile, return_inverse=True)
    return key // n_tiles, number


def _window(size: int, power: int) -> NDArray[np.float64]:
    """Matrix of a window along an axis: a row for its middle, a column for each position.

    The offsets to the power are in units of `WINDOW_SIGMA`.
    """
    away = np.arange(size) - np.arange(size)[:, None]
    offset = np.arange(-_REACH, _REACH + 1) / WINDOW_SIGMA
    weight = np.exp(-((away / WINDOW_SIGMA) ** 2) / 2) / np.exp(-(offset**2) / 2).sum()
    return np.where(np.abs(away) <= _REACH, weight * (away / WINDOW_SIGMA) ** power, 0)


def _along_rows(fields: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row of each field times a matrix, as one product."""
    return (fields.reshape(-1, fields.shape[2]) @ matrix).reshape(fields.shape)


def _moments(
    mask: NDArray[np.bool_], areas: _Areas, powers: tuple[tuple[int, int], ...]
) -> list[NDArray[np.float64]]:
    """Sums about each place in the areas: the mask times powers of the offsets along Rx and Ry."""
    field = mask.astype(np.float64)
    height, width = areas.size
    rows = [_along_rows(field, _window(width, k).T) for k in range(max(powers)[0] + 1)]
    return [(_window(height, p) @ rows[q]).ravel()[areas.at] for p, q in powers]


def _shares(scan: _Scan, ridge: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors ``(4, n)`` of what a position at a border takes from the window about it.

    They are for the sum of the features of all members, of the inner ones times their offsets along
    Rx and Ry, and of the inner ones.
    """
    out = np.empty((4, len(scan.border)))
    region, group = _tiled(scan.labels[scan.border], scan.border, scan.columns)
    for areas in scan.areas(scan.border, group, region):
        own, inner, _ = scan.members(areas, region)
        count, middle_x, middle_y = _moments(own, areas, ((0, 0), (1, 0), (0, 1)))
        middle_x, middle_y = middle_x / count, middle_y / count
        total, x, y, xx, xy, yy = _moments(
            inner, areas, ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))
        )
        # Least squares about the middle of the inner members; no gradient where there are none.
        x, y = (moment / np.maximum(total, 1e-12) for moment in (x, y))
        stiff = ridge[scan.labels[scan.border[areas.place]]]
        xx = xx - total * x**2 + stiff
        yy = yy - total * y**2 + stiff
        xy = xy - total * x * y
        # The gradient times the way from the middle of the members to the position.
        determinant = xx * yy - xy**2
        shift_x = (yy * middle_x - xy * middle_y) / determinant
        shift_y = (xx * middle_y - xy * middle_x) / determinant
        out[:, areas.place] = 1 / count, -shift_x, -shift_y, shift_x * x + shift_y * y
    return out


def _members(
    scan: _Scan,
    share: NDArray[np.float64],
    place: NDArray[np.int64],
    side: NDArray[np.int64],
    region: NDArray[np.int64],
    weight: NDArray[np.float64],
) -> Iterator[tuple[NDArray[np.int64], Any]]:
    """What sides take from each position of the scan: numbers of sides, and a sparse matrix."""
    of_group, group = _tiled(side, place, scan.columns)
    for areas in scan.areas(place, group, region[of_group]):
        own, inner, index = scan.members(areas, region[of_group])
        sides, taken = of_group[areas.group], share[:, place[areas.place]]
        fields: list[NDArray[np.float64]] = [
            np.bincount(areas.at, factor, own.size).astype(np.float64, copy=False)
            for factor in taken
        ]
        fields = [field.reshape(own.shape) for field in fields]
        (x0, x1), (y0, y1) = ([_window(size, power) for power in range(2)] for size in areas.size)
        level = x0.T @ _along_rows(fields[0], y0)
        slope = x1.T @ _along_rows(fields[1], y0)
        slope += x0.T @ (_along_rows(fields[2], y1) + _along_rows(fields[3], y0))
        level[inner] += slope[inner]
        level *= weight[sides][:, None, None]
        start = np.concatenate([[0], np.cumsum(own.sum(axis=(1, 2)))])
        shape = len(sides), len(scan.labels)
        yield sides, csr_array((level[own], index[own].astype(np.int32), start), shape=shape)
