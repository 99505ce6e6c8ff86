"""What the recipes of simulated samples share: the scene they build on, and what they return."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .crystals import PRESETS, named_material
from .scattering import Scattering
from .textures import as_regions
from .two_beam import Exposure

SPECKLE = 0.5
"""Relative strength of the speckle of a film."""


class Scene(NamedTuple):
    """An empty scan, on which a recipe puts its sample."""

    scan_shape: tuple[int, int]
    scattering: Scattering
    exposure: Exposure
    k_max: float
    rng: np.random.Generator
    crystals: dict[str, Any]
    """py4DSTEM's Crystal of each material that was added."""

    def add(
        self, material: str, orientation: NDArray[Any], thickness: NDArray[Any], **options: Any
    ) -> float:
        """Add a crystal, as `Exposure.add_crystal` does."""
        return self._add_to(self.exposure, material, orientation, thickness, **options)

    def strength(self, material: str, orientation: NDArray[Any], thickness: NDArray[Any]) -> float:
        """Mean share of the electrons that the disks of a crystal would hold."""
        trial = Exposure(self.scattering, self.scan_shape)
        return self._add_to(trial, material, orientation, thickness)

    def _add_to(
        self,
        exposure: Exposure,
        material: str,
        orientation: NDArray[Any],
        thickness: NDArray[Any],
        **options: Any,
    ) -> float:
        if material not in self.crystals:
            # Disks of which only the rim reaches the corner of the detector count.
            self.crystals[material] = named_material(material).kinematical(1.5 * self.k_max)
        (displacement,) = PRESETS[material].displacements.values()
        return exposure.add_crystal(
            self.crystals[material], displacement, orientation, thickness, **options
        )

    def add_film(self, depth: NDArray[Any]) -> None:
        """Add an amorphous film with a speckled ring; `depth` ``(Rx, Ry)`` is what it scatters."""
        where = depth > 0
        rings = np.empty((where.sum(), *self.scattering.shape))
        for i, strength in enumerate(depth[where]):
            # The speckle of the liquid, on the ring of the film.
            change = self.scattering.speckle(1.0, SPECKLE, self.rng) / self.scattering.diffuse
            rings[i] = self.scattering.film_ring * (1 + change)
            rings[i] *= strength / rings[i].sum()
        self.exposure.add_patterns(where, rings)


class Sample(NamedTuple):
    """What a recipe has put on a scene, and how it is seen."""

    regions: NDArray[Any]
    """What lies where ``(Rx, Ry, N + 1)``, 1 or 0; the background is last."""
    shares: NDArray[Any]
    """Shares in the patterns ``(Rx, Ry, N + 1)``; they sum to 1."""
    orientations: NDArray[Any]
    """Orientation matrices ``(N, 3, 3)``; NaN where there is no crystal."""
    materials: tuple[str, ...]
    """Material of each grain."""
    thickness: NDArray[Any]
    """Thickness of all crystals together ``(Rx, Ry)``, Angstrom."""
    tilts: NDArray[Any]
    """Bend ``(Rx, Ry, 2)``, radians."""
    pattern_regions: NDArray[Any] | None = None
    """Regions of one pattern ``(Rx, Ry, M + 1)`` where they differ from `regions`."""
    seen: NDArray[Any] = np.ones((1, 1), dtype=np.float32)
    """Part of the electrons that each detector pixel records ``(Qx, Qy)``; all by default."""
    brightness: NDArray[Any] = np.ones((1, 1))
    """Brightness of the beam at each scan position ``(Rx, Ry)``, 0 for lost frames."""


def film(
    scene: Scene,
    material: str,
    labels: NDArray[Any],
    orientations: NDArray[Any],
    thickness: NDArray[Any],
) -> Sample:
    """A film of grains of one material that fills the scan."""
    for k, orientation in enumerate(orientations):
        scene.add(material, orientation, thickness * (labels == k))
    regions = as_regions(labels)
    tilts = np.zeros((*scene.scan_shape, 2))
    materials = (material,) * len(orientations)
    return Sample(regions, regions, orientations, materials, thickness, tilts)
