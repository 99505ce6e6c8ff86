"""Borders between crystals and background."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import (
    binary_dilation,
    binary_erosion,
    distance_transform_edt,
    find_objects,
    gaussian_filter,
)

from .disks import DISK_ERRORS
from .merging import dissolve
from .pieces import CORE_WIDTH, MIN_PART, empty_pattern, mixture_shares, with_empty
from .regions import consecutive, find_borders, grown_box, region_means

MIN_EVEN = 0.9
"""Strength one to three positions behind a border, relative to that deeper inside, below which a
crystal grows thin towards the border. A larger value lets more crystals grow."""


def place_borders(
    labels: NDArray[Any], values: NDArray[Any], mask: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Dissolve thin mixtures, and place borders to the background (`move_borders`)."""
    whole = with_empty(labels, mask)
    dissolved = dissolve(whole, values)
    outside = (labels < 0) & mask
    if outside.any():
        empty = int(np.bincount(dissolved[outside]).argmax())
        dissolved = np.where(dissolved == empty, -1, dissolved)
    return move_borders(_drop_pockets(consecutive(dissolved), values), values, mask)


def _drop_pockets(labels: NDArray[Any], values: NDArray[Any]) -> NDArray[np.int64]:
    """Label -1 for regions that hold less than half of the patterns of larger ones around them."""
    if labels.max(initial=-1) < 1:
        return labels.astype(np.int64)
    mean, size = region_means(labels, values)
    near: list[list[int]] = [[] for _ in size]
    borders = find_borders(labels)[0]
    for i, j in zip(borders.first.tolist(), borders.second.tolist(), strict=True):
        small, large = (i, j) if size[i] < size[j] else (j, i)
        near[small].append(large)
    gone = np.zeros(len(size) + 1, dtype=bool)
    for k in np.argsort(size, kind="stable").tolist():
        around = [j for j in near[k] if not gone[j]]
        if around:
            share, explained = mixture_shares(mean, size, around, mean[k], size[k])
            gone[k] = explained and share.sum() < 0.5
    gone[-1] = True
    return consecutive(np.where(gone[labels], -1, labels))


def move_borders(
    labels: NDArray[Any], values: NDArray[Any], mask: NDArray[np.bool_], rounds: int = 6
) -> NDArray[np.int64]:
    """Move borders between crystals and background.

    Where a crystal is as strong one to three positions behind the border as deeper inside, its
    border is where half of this strength is left, since the probe blurs a sharp edge. Where the
    crystal grows thin towards its border, as a sphere does, half of the strength is not its border.
    There, it takes in the next position as long as this has half of the strength of those beside it
    and half of its power lies in their pattern. A border that begins outside of a blurred edge
    looks the same and stays; `refine_borders` places borders at half of the strength before.

    Parameters
    ----------
    labels : ndarray, (Rx, Ry), int
        Crystals; -1 is background, or outside the mask.
    values : ndarray, (Rx, Ry, rank)
    mask : ndarray, (Rx, Ry), bool
    rounds : int
        Positions by which a border may move.
    """
    around = np.ones((3, 3))
    shifted = values - empty_pattern(labels, values, mask)
    grows = binary_erosion((labels < 0) & mask, np.ones((CORE_WIDTH, CORE_WIDTH))).any()
    for _ in range(rounds):
        empty = (labels < 0) & mask
        beside = binary_dilation(empty, around)
        new, best = labels.copy(), np.full(labels.shape, -np.inf)
        for label, box in enumerate(find_objects(labels + 1)):
            area = grown_box(box, labels.shape, 6)
            own, field = labels[area] == label, values[area]
            depth = distance_transform_edt(np.pad(own, 1, mode="edge"))[1:-1, 1:-1]
            inner = own & (depth > 2.1)
            if inner.sum() < MIN_PART:
                continue
            gained = empty[area] & binary_dilation(own, around)
            at = np.nonzero((own & beside[area]) | gained)
            inside, has_inside = _local_mean(field, inner, at, 2.0)
            deep, has_deep = _local_mean(field, own & (depth > 3.1), at, 2.0)
            middle, has_middle = _local_mean(field, own & (depth > 1.1) & (depth < 3.1), at, 2.0)
            product, power = (deep * middle).sum(axis=1), (deep**2).sum(axis=1)
            known = has_inside & has_deep & has_middle
            share = (field[at] * inside).sum(axis=1) / np.maximum((inside**2).sum(axis=1), 1e-9)
            x, y = at[0] + area[0].start, at[1] + area[1].start
            mine = own[at]
            even = known & (product >= MIN_EVEN * power)
            lost = even & mine & (share < 0.5)
            new[x[lost], y[lost]] = -1
            if grows:
                share = np.where(even, share, _share_of_neighbours(shifted[area], own, at))
            won = (even | grows) & ~mine & (share >= 0.5) & (share > best[x, y])
            new[x[won], y[won]] = label
            best[x[won], y[won]] = share[won]
        if np.array_equal(new, labels):
            break
        labels = consecutive(new)
    return consecutive(labels)


def _share_of_neighbours(
    field: NDArray[Any], own: NDArray[np.bool_], at: tuple[NDArray[Any], ...]
) -> NDArray[np.float64]:
    """Strength at places relative to that of members beside them; 0 where it is not certain, or
    where most of the power lies in another pattern.
    """
    beside, has_beside = _local_mean(field, own, at, 0.7)
    norm = np.maximum(np.sqrt((beside**2).sum(axis=1)), 1e-9)
    strength = (field[at] * beside).sum(axis=1) / norm
    power = (field[at].astype(np.float64) ** 2).sum(axis=1) - field.shape[2]
    certain = has_beside & (strength >= DISK_ERRORS) & (strength**2 >= 0.5 * power)
    return np.where(certain, strength / norm, 0.0)


def _local_mean(
    field: NDArray[Any],
    members: NDArray[np.bool_],
    at: tuple[NDArray[Any], ...],
    sigma: float,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Mean of the members near places, and whether there are any."""
    weight = gaussian_filter(members.astype(np.float64), sigma, mode="constant", truncate=3)[at]
    total = gaussian_filter(
        np.where(members[..., None], field, 0).astype(np.float64),
        (sigma, sigma, 0),
        mode="constant",
        truncate=3,
    )[at]
    return total / np.maximum(weight, 1e-9)[:, None], weight > 1e-3
