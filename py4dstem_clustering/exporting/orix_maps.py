"""Orientation maps as CrystalMap of orix."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.checks import check_number
from ..diffraction.orientation import check_orientation
from ..diffraction.phases import PhaseMap
from .indexed import index_map


def to_orix(
    orientation: Any, crystal: Any, *, pixel_size: float | None = None, pixel_units: str = "px"
) -> Any:
    """Convert orientations of a scan to a CrystalMap of orix.

    ``crystal.orientation_map_to_orix_CrystalMap`` of py4DSTEM 0.14.18 takes one crystal, and turns
    positions without an orientation into a perfect one. Here they are not indexed (phase -1).

    Parameters
    ----------
    orientation : OrientationMap, (Rx, Ry), or PhaseMap
        From `Clusters.expand_orientation_map`, or from `Clusters.map_phases`; then each position
        has its own phase, and undecided clusters are not indexed.
    crystal : py4DSTEM.process.diffraction.Crystal, or a dictionary of names and Crystals
        The crystal, or for phases all crystals: ``{"gold": gold, "silicon": silicon}``.
    pixel_size : float, optional
        Distance of scan positions; by default that of the phases, or 1.
    pixel_units : str
        Unit of `pixel_size`: "A" becomes nm, others stay.

    Returns
    -------
    orix.crystal_map.CrystalMap
        x runs along Ry and y along Rx; the axes of the specimen are x to the right, y downwards
        and z into the picture, as in `export`. ``prop["score"]`` is the score or correlation.
        Point groups are Laue classes, because diffraction patterns know no more.

    Raises
    ------
    ImportError
        If orix is not installed (``pip install orix``).
    ValueError, TypeError
        If an argument is wrong.

    Examples
    --------
    >>> phases = clusters.map_phases({"gold": gold}, bragg, progress_bar=False)  # doctest: +SKIP
    >>> to_orix(phases, {"gold": gold}).plot()  # doctest: +SKIP
    """
    if isinstance(orientation, PhaseMap):
        if pixel_size is None:
            pixel_size, pixel_units = orientation.pixel_size, orientation.pixel_units
    else:
        check_orientation(orientation, {"": tuple(np.shape(getattr(orientation, "matrix", 0))[:2])})
    size = check_number("pixel_size", 1.0 if pixel_size is None else pixel_size, 1e-12)
    try:
        from diffpy.structure import Atom, Lattice, Structure
        from orix.crystal_map import CrystalMap, Phase, PhaseList
        from orix.quaternion import Rotation
    except ImportError as error:
        raise ImportError("to_orix needs orix: pip install orix") from error
    indexed = index_map(orientation, crystal)
    if pixel_units == "A":
        size, pixel_units = size / 10, "nm"
    phases = []
    for phase in indexed.phases:
        atoms, lattice = [], Lattice(*phase.cell) if phase.cell else Lattice()
        if phase.crystal is not None:
            from py4DSTEM.process.diffraction.utils import element_symbols

            atoms = [
                Atom(element_symbols[int(number) - 1], place)
                for number, place in zip(
                    phase.crystal.numbers, phase.crystal.positions, strict=True
                )
            ]
        structure = Structure(title=phase.name, atoms=atoms, lattice=lattice)
        phases.append(Phase(name=phase.name, point_group=phase.laue_class, structure=structure))
    y, x = np.indices(indexed.phase.shape) * size
    return CrystalMap(
        rotations=Rotation.from_matrix(indexed.matrices.reshape(-1, 3, 3)),
        phase_id=indexed.phase.ravel(),
        x=x.ravel(),
        y=y.ravel(),
        phase_list=PhaseList(phases, ids=list(range(len(phases)))),
        prop={"score": indexed.score.ravel()},
        scan_unit={"pixels": "px"}.get(pixel_units, pixel_units),
    )
