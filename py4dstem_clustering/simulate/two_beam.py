"""Patterns of crystals whose intensities change with thickness and tilt, by the two-beam formula.

Each reflection g is on its own with the direct beam: after a thickness t it holds the share

    I_g = sin^2(pi t s_eff) / (xi_g s_eff)^2,   s_eff^2 = s^2 + 1 / xi_g^2

of the electrons; s is its excitation error, and xi_g its extinction distance. Reflections take from
one direct beam, so their sum is limited: see `Exposure.expected`. Bloch waves are more exact; the
two-beam formula has what matters for finding grains: fringes of thickness, bend contours, and
rocking curves inside disks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .scattering import Scattering

MEAN_FREE_PATH = 1500.0
"""Thickness after which 1/e of the electrons have not been scattered diffusely, Angstrom.

A larger value makes the diffuse background of thick crystals weaker.
"""

DIFFUSE_WIDTH = 0.12
"""Scattering vector over which the diffuse background of crystals falls to 1/e, 1/Angstrom."""

WEAKEST = 2e-4
"""Reflections that nowhere hold this share of the electrons are left out."""

_REST_ENERGY = 510998.95  # of an electron, volt


def extinction_distances(crystal: Any, displacement: float) -> NDArray[np.float64]:
    """Extinction distance of each reflection of a crystal, Angstrom.

    `displacement` is the root mean square displacement of its atoms along one axis, Angstrom.
    """
    relativistic = 1 + crystal.accel_voltage / _REST_ENERGY
    vibration = np.exp(-2 * (np.pi * displacement * crystal.g_vec_leng) ** 2)
    factors = np.abs(crystal.struct_factors) * vibration
    return np.asarray(np.pi / (relativistic * crystal.wavelength * factors), dtype=np.float64)


def two_beam(s: Any, extinction: Any, thickness: Any) -> Any:
    """Share of the electrons in a reflection; `s` in 1/Angstrom, both lengths in Angstrom."""
    s_eff = np.sqrt(s**2 + 1 / extinction**2)
    return (np.sin(np.pi * thickness * s_eff) / (extinction * s_eff)) ** 2


class Exposure:
    """Electrons of a scan, summed over all that lies at each scan position.

    Every addition says how much it would scatter if it were thin and alone; `expected` makes
    patterns of the sum.
    """

    def __init__(self, scattering: Scattering, scan_shape: tuple[int, int]):
        self.scattering = scattering
        self.scan_shape = scan_shape
        n = scan_shape[0] * scan_shape[1]
        n_qx, n_qy = scattering.shape
        self.scattered = np.zeros((n, n_qx * n_qy), dtype=np.float32)
        beam = scattering.beam.ravel()
        self.beam_pixels = np.flatnonzero(beam)
        self.beam = beam[self.beam_pixels]
        # Direction inside the cone of the probe, 1/Angstrom, that each pixel of the beam shows.
        place = np.stack(np.unravel_index(self.beam_pixels, scattering.shape), axis=1)
        self.directions = (place - scattering.centre) * scattering.pixel_size
        self.depth = np.zeros((n, len(self.beam)))
        u, v = np.indices(scattering.shape)
        k = np.hypot(u - scattering.centre[0], v - scattering.centre[1]) * scattering.pixel_size
        diffuse = np.exp(-k / DIFFUSE_WIDTH)
        self.diffuse = diffuse / diffuse.sum()

    def add_diffuse(self, profile: NDArray[Any], depth: NDArray[Any]) -> None:
        """Add what scatters into a pattern ``(Qx, Qy)`` with sum 1; `depth` is ``(Rx, Ry)``."""
        depth = depth.ravel()
        self.scattered += np.outer(depth, profile).astype(np.float32)
        self.depth += depth[:, None]

    def add_patterns(self, where: NDArray[Any], patterns: NDArray[Any]) -> None:
        """Add patterns ``(n, Qx, Qy)`` at the `n` positions of a mask ``(Rx, Ry)``."""
        patterns = patterns.reshape(len(patterns), -1)
        self.scattered[where.ravel()] += patterns.astype(np.float32)
        self.depth[where.ravel()] += patterns.sum(axis=1)[:, None]

    def add_crystal(
        self,
        crystal: Any,
        displacement: float,
        orientation: NDArray[Any],
        thickness: NDArray[Any],
        *,
        tilts: NDArray[Any] | None = None,
        stretch: NDArray[Any] | None = None,
        weight: float | NDArray[Any] = 1.0,
    ) -> float:
        """Add a crystal where it is thicker than 0.

        `thickness` is ``(Rx, Ry)``, Angstrom; `tilts` ``(Rx, Ry, 2)`` turn the lattice about the
        image x and y axes, radians; `stretch` ``(2, 2)`` deforms it in the plane of the image;
        `weight` multiplies the intensities. Returns the mean share of the electrons that its disks
        on the detector would hold.
        """
        where = np.flatnonzero(thickness.ravel() > 0)
        t = thickness.ravel()[where, None]
        amount = np.broadcast_to(weight, thickness.shape).ravel()[where, None]
        turns = np.zeros((len(where), 2)) if tilts is None else tilts.reshape(-1, 2)[where]
        size = self.scattering.pixel_size
        to_place = np.eye(2) if stretch is None else np.linalg.inv(stretch).T
        total = 0.0
        if where.size == 0:
            return total
        self.depth[where] += amount * t / MEAN_FREE_PATH
        self.scattered[where] += (amount * t / MEAN_FREE_PATH * self.diffuse.ravel()).astype(
            np.float32
        )
        for g, error, extinction in self._strong(
            crystal, displacement, orientation, turns, t.max()
        ):
            s = error + (turns[:, 0] * g[1] - turns[:, 1] * g[0])[:, None]
            shift = to_place @ g[:2]
            pixels, cover, inside = self._disk_at(self.scattering.centre + shift / size)
            rocking = crystal.wavelength * (self.directions @ g[:2])
            taken = amount * two_beam(s - rocking, extinction, t)
            self.depth[where] += taken
            given = two_beam(s - crystal.wavelength * (inside @ g[:2]), extinction, t)
            given *= amount * cover
            self.scattered[where[:, None], pixels] += given.astype(np.float32)
            total += given.sum() / len(where)
        return total

    def _strong(
        self,
        crystal: Any,
        displacement: float,
        orientation: NDArray[Any],
        turns: NDArray[Any],
        thickest: float,
    ) -> Any:
        """Reflections that are not weak everywhere: vector, excitation error, extinction."""
        vectors = orientation.T @ crystal.g_vec_all
        errors = crystal.excitation_errors(vectors)
        extinction = extinction_distances(crystal, displacement)
        length = np.hypot(vectors[0], vectors[1])
        # How far the lattice turns, and the cone of the probe, bring a reflection nearer.
        reach = np.abs(turns).max(initial=0) * np.sqrt(2) + crystal.wavelength * np.hypot(
            *self.directions.T
        ).max(initial=0)
        nearest = np.maximum(np.abs(errors) - reach * length, 0)
        s_eff = np.sqrt(nearest**2 + 1 / extinction**2)
        largest = np.minimum(1, (np.pi * thickest * s_eff) ** 2) / (extinction * s_eff) ** 2
        keep = (largest > WEAKEST) & (length > 1e-3)
        for k in np.flatnonzero(keep):
            yield vectors[:, k], errors[k], extinction[k]

    def _disk_at(self, place: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Pixels of a disk, their part of its intensity, and their directions in the cone."""
        radius, shape = self.scattering.disk_radius, self.scattering.shape
        axes = [
            np.arange(max(0, int(np.ceil(p - radius - 1))), min(n, int(p + radius + 2)))
            for p, n in zip(place, shape, strict=True)
        ]
        u, v = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
        cover = np.clip(radius + 0.5 - np.hypot(u - place[0], v - place[1]), 0, 1)
        u, v, cover = u[cover > 0], v[cover > 0], cover[cover > 0]
        inside = np.stack([u - place[0], v - place[1]], axis=1) * self.scattering.pixel_size
        # The sum over the pixels of a whole disk is its area, wherever its centre lies.
        return u * shape[1] + v, cover / self.area, inside

    @property
    def area(self) -> float:
        """Area of a disk, detector pixels."""
        return float(np.pi * (self.scattering.disk_radius**2 + 1 / 12))

    def expected(self) -> NDArray[np.float32]:
        """Expected patterns ``(Rx, Ry, Qx, Qy)`` of one electron; each sums to 1.

        Of a depth d in all, the share ``1 - exp(-d)`` of the electrons is scattered: d where d is
        small, and never more than all. What leaves the detector is made up for.
        """
        depth = self.depth @ self.beam
        limit = np.divide(1 - np.exp(-depth), depth, out=np.ones_like(depth), where=depth > 0)
        patterns = self.scattered * limit[:, None].astype(np.float32)
        patterns[:, self.beam_pixels] += (np.exp(-self.depth) * self.beam).astype(np.float32)
        patterns /= patterns.sum(axis=1, keepdims=True)
        return patterns.reshape(*self.scan_shape, *self.scattering.shape)
