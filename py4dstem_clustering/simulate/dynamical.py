"""Grains that scatter dynamically: thickness, bend, and the disks at each scan position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..kernels.disk_windows import disk_windows
from .bloch import BlochCrystal, check_nodes, rocking_table
from .grains import Grains, Lattice, places_along
from .scattering import LIQUID_SHARE, Scattering
from .setup import DynamicalSetup

THERMAL_WIDTH = 0.6
"""Standard deviation of the background of absorbed electrons, 1/Angstrom.

A larger value spreads them wider, so that more of them miss the detector.
"""

MIN_REACH = 3.0
"""Length of the longest reflections in the Bloch waves, at least, 1/Angstrom.

A larger value is more exact and slower; with 1.5, disks of gold were off by up to 0.06 of the
electrons.
"""

MIN_INTENSITY = 1e-6
"""Beams that are nowhere above this share of the electrons are not drawn.

A larger value saves time and memory.
"""


def thickness_maps(
    grains: Grains, profile: str, limits: tuple[float, float], rng: np.random.Generator
) -> list[NDArray[np.float64]]:
    """Thickness ``(Rx, Ry)`` of each grain, nm: 'flat', 'wedge' or 'sphere'."""
    low, high = limits
    x, y = np.indices(grains.shares.shape[:2])
    maps = []
    for k, (centre, radius) in enumerate(zip(grains.centres, grains.radii, strict=True)):
        angle, own = rng.uniform(0, 2 * np.pi), rng.uniform(low, high)
        if profile == "wedge":
            place = places_along(grains.shares[..., k], angle)[0]
            maps.append(low + (high - low) * (place + 1) / 2)
        elif profile == "sphere":
            distance = np.hypot(x - centre[0], y - centre[1]) / radius
            maps.append(own * np.sqrt(np.maximum(1 - distance**2, 0)))
        else:
            maps.append(np.full(x.shape, own))
    return maps


class GrainDisks:
    """The disks of one grain at the scan positions at which it has a share.

    Each pixel of a disk holds one direction of the probe's cone, so intensities differ inside of a
    disk; with even disks all have the intensity of the middle of the cone.
    """

    def __init__(
        self,
        scattering: Scattering,
        crystal: BlochCrystal,
        lattice: Lattice,
        thickness: NDArray[Any],
        inside: NDArray[Any],
        even_disks: bool,
    ):
        self._number = np.full(inside.shape, -1)
        self._number[inside] = np.arange(inside.sum())
        self._n_pixels = scattering.shape[0] * scattering.shape[1]
        self.thickness = thickness[inside]
        turns = lattice.orientation.T @ lattice.matrices(lattice.angles[inside])
        cone = crystal.wavelength * scattering.pixel_size  # slope of a ray, per pixel
        rim = _rim(0 if even_disks else scattering.disk_radius)
        table = rocking_table(
            crystal,
            lattice.orientation,
            _slopes(turns[:, None], cone * rim).reshape(-1, 2),
            float(self.thickness.max()),
            _fringe_k_max(scattering),
        )
        middle = _slopes(turns, np.zeros(2))
        self.lost = table.intensity(-1, middle, self.thickness)
        """Share of the electrons that absorption took from the beams, at each position."""
        xx, yy, xy = lattice.strain
        to_pixels = np.linalg.inv([[1 + xx, xy], [xy, 1 + yy]]) / scattering.pixel_size
        drawn = []
        for beam, vector in enumerate(table.vectors @ lattice.orientation):
            # Into the axes of the image, at each position: turn^T v.
            places = scattering.centre + (vector @ turns)[:, :2] @ to_pixels.T
            position, pixel, weight, ray = _draw(places, scattering)
            if even_disks:
                bright = table.intensity(beam, middle, self.thickness)[position]
            else:
                slopes = _slopes(turns[position], cone * ray)
                bright = table.intensity(beam, slopes, self.thickness[position])
            if bright.max(initial=0) >= MIN_INTENSITY:
                drawn.append((position, pixel, (weight * bright).astype(np.float32)))
        position, pixel, value = map(np.concatenate, zip(*drawn, strict=True))
        order = np.argsort(position, kind="stable")
        self._pixels, self._values = pixel[order], value[order]
        self._starts = np.searchsorted(position[order], np.arange(len(turns) + 1))

    def at(self, position: tuple[int, int]) -> tuple[NDArray[Any], float, float]:
        """Disks with the direct beam ``(Qx * Qy,)``, the lost share, and the thickness in nm."""
        n = self._number[position]
        part = slice(self._starts[n], self._starts[n + 1])
        disks = np.bincount(self._pixels[part], self._values[part], self._n_pixels)
        return disks, float(self.lost[n]), float(self.thickness[n])


def _draw(places: NDArray[Any], scattering: Scattering) -> tuple[NDArray[Any], ...]:
    """Pixels of disks with these centres ``(P, 2)``, as far as they lie on the detector.

    Returns
    -------
    position : ndarray, (n,)
        Which of the disks the pixel belongs to.
    pixel : ndarray, (n,)
        Flat number of the pixel.
    weight : ndarray, (n,)
        Share of the disk in the pixel.
    ray : ndarray, (n, 2)
        From the centre of the disk to the pixel. At the soft edge, to the rim of the disk.
    """
    radius = scattering.disk_radius
    at, inside, offsets = disk_windows(places, radius + 0.5, scattering.shape)
    distance = np.hypot(offsets[..., 0], offsets[..., 1])
    weights = np.clip(radius + 0.5 - distance, 0, 1)
    weights /= weights.sum(axis=1, keepdims=True)
    seen = (weights > 0) & inside
    position = np.broadcast_to(np.arange(len(places))[:, None], seen.shape)[seen]
    pixel = (at[seen] @ [scattering.shape[1], 1]).astype(np.int32)
    rays = offsets[seen] * (radius / np.maximum(distance[seen], radius))[:, None]
    return position, pixel, weights[seen], rays


def _slopes(turns: NDArray[Any], rays: NDArray[Any]) -> NDArray[Any]:
    """Slopes ``(..., 2)`` of the zone axis, in the axes of the grain, for rays of the cone.

    A ray goes along (ray, -1), so that the zone axis is (-ray, 1), in the axes of the image.
    """
    found = turns[..., :, 2] - np.einsum("...ij,...j->...i", turns[..., :, :2], rays)
    slopes: NDArray[Any] = found[..., :2] / found[..., 2:]
    return slopes


def _fringe_k_max(scattering: Scattering) -> float:
    """Longest reflection whose fringes a table resolves: at the nearest border of the detector."""
    return float(scattering.pixel_size * min(scattering.shape) / 2)


def _rim(radius: float) -> NDArray[Any]:
    """Points on the rim of a disk of this radius, and its centre."""
    angles = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    # A little outside of the circle, so that the points enclose it.
    ring = radius / np.cos(np.pi / 8) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.concatenate([np.zeros((1, 2)), ring]) if radius > 0 else np.zeros((1, 2))


class DynamicalSample(NamedTuple):
    """What lies at each scan position, and how it scatters."""

    scattering: Scattering
    shares: NDArray[Any]  # (Rx, Ry, N + 1), blurred by the probe
    grains: Sequence[GrainDisks]
    thermal: NDArray[Any]  # (Qx, Qy), from `thermal_background`
    wetness: NDArray[Any]  # (Rx, Ry), thickness of the liquid, 0 to 1; 0 everywhere in vacuum
    largest_thickness: float
    speckle: float = 0.0
    film: float = 0.0

    def pattern(self, position: tuple[int, int], rng: np.random.Generator) -> NDArray[Any]:
        """Expected pattern ``(Qx, Qy)`` at a position, as shares of the electrons.

        The sum is below 1, because some electrons miss the detector.
        """
        share, wet = self.shares[position], self.wetness[position]
        scattering = self.scattering
        expected = share[-1] * self._around(wet)
        for k in np.flatnonzero(share[:-1]):
            expected += share[k] * self._grain(k, position, wet)
        if share[-1] * wet > 0 and self.speckle > 0:
            expected += scattering.speckle(0.5 * share[-1] * wet, self.speckle, rng)
        if self.film > 0:
            expected = (1 - self.film) * expected + self.film * scattering.film_ring
        return expected

    def mean_patterns(self) -> NDArray[np.float64]:
        """Patterns ``(N + 1, Qx, Qy)``: mean of each grain, weighed by its shares, and around."""
        wet = float(self.wetness.any())
        patterns = np.zeros((len(self.grains) + 1, *self.scattering.shape))
        patterns[-1] = self._around(wet)
        for k in range(len(self.grains)):
            share = self.shares[..., k]
            for position in zip(*np.nonzero(share), strict=True):
                patterns[k] += share[position] * self._grain(k, position, wet)
            patterns[k] /= share.sum()
        return patterns

    def _around(self, wet: float) -> NDArray[Any]:
        """Pattern beside the grains: liquid, or vacuum where there is none."""
        scattering = self.scattering
        return (1 - 0.5 * wet) * scattering.beam + 0.5 * wet * scattering.diffuse

    def _grain(self, k: Any, position: Any, wet: float) -> NDArray[Any]:
        """Pattern of one grain, and of the liquid above and below it."""
        scattering = self.scattering
        disks, lost, thickness = self.grains[k].at(position)
        crystal = disks.reshape(scattering.shape) + lost * self.thermal
        # The thickest grain displaces as much liquid as kinematical grains do.
        displaced = thickness / max(self.largest_thickness, 1e-12)
        amount = 0.5 * wet * (1 - (1 - LIQUID_SHARE) * displaced)
        return (1 - amount) * crystal + amount * scattering.diffuse


def thermal_background(scattering: Scattering) -> NDArray[np.float64]:
    """Background ``(Qx, Qy)`` of the electrons that absorption takes from the beams.

    The sum is below 1, because some of them miss the detector.
    """
    u, v = np.ogrid[: scattering.shape[0], : scattering.shape[1]]
    squares = (u - scattering.centre[0]) ** 2 + (v - scattering.centre[1]) ** 2
    width = THERMAL_WIDTH / scattering.pixel_size
    background: NDArray[np.float64] = np.exp(-0.5 * squares / width**2) / (2 * np.pi * width**2)
    return background


def dynamical_sample(
    setup: DynamicalSetup,
    scattering: Scattering,
    lattices: Sequence[Lattice],
    phases: NDArray[Any],
    thickness: Sequence[NDArray[Any]],
    shares: NDArray[Any],
    wetness: NDArray[Any],
) -> DynamicalSample:
    """Compute the disks of all grains, and return the sample, without speckle and film."""
    from py4DSTEM.process.utils import electron_wavelength_angstrom

    # At least as far as the corner of the detector.
    k_max = max(scattering.pixel_size * np.hypot(*scattering.shape) / 2, MIN_REACH)
    wavelength = electron_wavelength_angstrom(setup.accelerating_voltage)
    for lattice, whole in zip(lattices, thickness, strict=True):
        radius = 0 if setup.even_disks else scattering.disk_radius
        cone = wavelength * scattering.pixel_size * radius
        check_nodes(
            float(whole.max()), float(np.ptp(lattice.angles)), cone, _fringe_k_max(scattering)
        )
    crystals = {}
    for phase in np.unique(phases):
        # Structure factors reach twice as far as beams, so that each two beams are coupled.
        crystal = setup.materials[phase].dynamical(2 * k_max, setup.accelerating_voltage)
        crystals[phase] = BlochCrystal(crystal, k_max)
    grains = [
        GrainDisks(
            scattering, crystals[phase], lattice, whole, shares[..., k] > 0, setup.even_disks
        )
        for k, (phase, lattice, whole) in enumerate(zip(phases, lattices, thickness, strict=True))
    ]
    return DynamicalSample(
        scattering,
        shares,
        grains,
        thermal_background(scattering),
        wetness * (not setup.vacuum),
        setup.thickness[1],
    )
