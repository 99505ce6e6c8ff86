"""Grains that scatter kinematically: a grain looks the same from end to end, but for its bend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .grains import Lattice
from .scattering import Scattering


def bent_disks(
    scattering: Scattering, lattices: Sequence[Lattice], bending: float
) -> NDArray[np.float64]:
    """Bragg disks ``(N, n_turns, Qx, Qy)`` of each grain along its bend, from end to end."""
    turns = np.linspace(-0.5, 0.5, 1 + 2 * int(np.ceil(2 * bending)))
    disks = np.empty((len(lattices), len(turns), *scattering.shape))
    for k, t in np.ndindex(*disks.shape[:2]):
        orientation = lattices[k].matrices(bending * turns[t])
        disks[k, t] = scattering.bragg(orientation, lattices[k].strain)
    return disks


class KinematicalSample(NamedTuple):
    """What lies at each scan position, and how it scatters."""

    scattering: Scattering
    shares: NDArray[Any]  # (Rx, Ry, N + 1), blurred by the probe
    thickness: NDArray[Any]  # (Rx, Ry, 2) of grains and of the liquid, 0 to 1
    disks: NDArray[Any]  # (N, n_turns, Qx, Qy), of each grain along its bend
    bends: list[NDArray[Any]]  # of each grain, (Rx, Ry): place along its bend, -1 to 1
    liquid: NDArray[Any]  # (Qx, Qy), pattern of the liquid
    speckle: float = 0.0
    film: float = 0.0

    def pattern(self, position: tuple[int, int], rng: np.random.Generator) -> NDArray[Any]:
        """Expected pattern ``(Qx, Qy)`` at a position; the sum is 1."""
        share, (thick, wet) = self.shares[position], self.thickness[position]
        scattering = self.scattering
        expected = np.zeros(scattering.shape)
        for k in np.flatnonzero(share[:-1]):
            bragg = self._disks_at(k, position)
            # Electrons that a thin grain does not scatter stay in the direct beam.
            grain = scattering.grain(thick * bragg + (1 - thick) * scattering.beam)
            # The sum is below 1 where the lattice has no disk on the detector.
            expected += share[k] * (grain / grain.sum())
        expected += share[-1] * self.liquid
        if wet < 1:
            amount = 0.3 + 0.2 * share[-1]
            expected += amount * (1 - wet) * (scattering.beam - scattering.diffuse)
        if share[-1] > 0 and self.speckle > 0:
            expected += scattering.speckle(0.5 * share[-1] * wet, self.speckle, rng)
        if self.film > 0:
            expected = (1 - self.film) * expected + self.film * scattering.film_ring
        return expected

    def _disks_at(self, k: int, position: tuple[int, int]) -> NDArray[Any]:
        """Bragg disks of grain `k`, between the two turns that are nearest."""
        last = self.disks.shape[1] - 1
        turn, part = divmod((self.bends[k][position] + 1) / 2 * last, 1)
        bragg = self.disks[k, int(turn)] * (1 - part)
        if part > 0:
            bragg += self.disks[k, int(turn) + 1] * part
        return bragg
