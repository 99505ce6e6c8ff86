"""How far disks stand out of their surroundings in a pattern, in units of its noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .disk_windows import disk_windows

N_SECTORS = 8
"""Number of sectors around a disk. More sectors follow a curved background better, but each has
fewer pixels; an even number, so that each has an opposite one.
"""

_N_OTHERS = 2
"""Number of sectors that may be bright because of other disks."""

GAP = 1.0
"""Pixels between the disk and its surroundings: the soft edge of a disk is in neither."""


UNEVEN = 0.06
"""Error of the background, relative to its brightness: it may curve within the surroundings. A
larger value finds fewer false disks where the background is bright and has much structure, and
fewer weak disks.
"""


def zero_sum_template(template: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """A template ``(Qx, Qy)``, centred on pixel (0, 0), less the mean of a ring around it.

    The correlation with it does not follow a background that varies slowly. The disk of the
    template sums to 1, the ring to -1.
    """
    n, m = template.shape
    u = np.fft.fftfreq(n, 1 / n)[:, None]
    v = np.fft.fftfreq(m, 1 / m)[None, :]
    distance = np.hypot(u, v)
    disk = np.where(distance <= radius + GAP, np.maximum(template, 0), 0)
    ring = (distance > radius + GAP) & (distance <= _outer(radius))
    return disk / disk.sum() - ring / ring.sum()


def template_radius(template: NDArray[np.float64]) -> float:
    """Radius, pixels, of the disk of a template, of a circle of the same area and height."""
    positive = np.maximum(template, 0)
    return float(np.sqrt(positive.sum() / positive.max() / np.pi))


def _outer(radius: float) -> float:
    """Outer radius of the surroundings of a disk, pixels."""
    return radius + GAP + max(2.0, radius)


def stand_out(
    pattern: NDArray[np.float64], places: NDArray[np.float64], radius: float, noise: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far disks at `places` stand out of their surroundings.

    The surroundings are a ring of `N_SECTORS` sectors. The background of a disk is the brightest
    direction, where a direction is as bright as the darker one of two opposite sectors. So the rim
    of a diffuse ring does not stand out, because it goes on to both sides, and a bright disk on
    one side does no harm. At the border of the pattern, sectors outside of it do not count.

    Parameters
    ----------
    pattern : ndarray, (Qx, Qy)
    places : ndarray, (n, 2)
        Centres of disks, pixels.
    radius : float
        Radius of the disks, pixels.
    noise : float
        Variance of a pixel, divided by its value: gain over the number of averaged positions.

    Returns
    -------
    excess : ndarray, (n,)
        What the disk has above its background, summed over the disk.
    significance : ndarray, (n,)
        The excess in standard deviations of a disk that is not there.
    """
    outer = _outer(radius)
    windows = disk_windows(places, outer + 0.5, pattern.shape)
    seen, offset = windows.inside, windows.offset
    value = windows.values_of(pattern)
    distance = np.hypot(offset[..., 0], offset[..., 1])
    angle = np.arctan2(offset[..., 1], offset[..., 0])
    sector = np.floor(angle / (2 * np.pi) * N_SECTORS + 0.5).astype(int) % N_SECTORS
    disk = np.clip(radius + 0.5 - distance, 0, 1) * seen
    around = seen & (distance > radius + GAP) & (distance <= outer)
    means = np.full((len(places), N_SECTORS), np.inf)
    for k in range(N_SECTORS):
        members = around & (sector == k)
        n = members.sum(axis=1)
        found = n > 0
        means[found, k] = (value * members).sum(axis=1)[found] / n[found]
    half = N_SECTORS // 2
    opposite = np.minimum(means[:, :half], means[:, half:])
    opposite = np.where(np.isfinite(opposite), opposite, -np.inf)
    # With few counts, all opposite sectors may be empty by chance; the ring as a whole is not. Its
    # two brightest sectors may hold other disks.
    ordered = np.sort(np.where(np.isfinite(means), means, np.nan), axis=1)[:, :-_N_OTHERS]
    known = np.isfinite(ordered)
    ring = np.where(known, ordered, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    background = np.maximum(np.maximum(opposite.max(axis=1, initial=-np.inf), ring), 0)
    area = disk.sum(axis=1)
    excess = (value * disk).sum(axis=1) - background * area
    # The ring might have had one count more.
    level = background + noise / np.maximum(around.sum(axis=1), 1)
    sector_area = np.maximum(around.sum(axis=1) / N_SECTORS, 1)
    variance = noise * level * ((disk**2).sum(axis=1) + area**2 / sector_area)
    # Of few counts, more are far from the mean than of many.
    variance += 2 * noise**2
    variance += (UNEVEN * background * area) ** 2
    return excess, excess / np.sqrt(np.maximum(variance, 1e-300))
