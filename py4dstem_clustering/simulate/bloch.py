"""Bloch waves: intensities of Bragg disks of one grain over tilt and thickness.

The equations, the structure factors and the signs are those of py4DSTEM's
`Crystal.generate_dynamical_diffraction_pattern` with the foil normal along the beam; a test
compares both. Here many tilts are computed at once, because only the diagonal of the matrix depends
on the tilt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, spline_filter
from scipy.special import jv

MIN_AMPLITUDE = 0.01
"""Beams below this amplitude, by the formula of two beams, are left out.

A larger value is faster and less exact.
"""

NODES_PER_FRINGE = 3.0
"""Nodes of a table for each rocking fringe of the outermost beam on the detector.

A larger value makes the interpolation between tilts more exact, and takes more time and memory.
"""

THICKNESS_STEP = 0.8
"""Distance of the nodes of a table along the thickness, nm.

A larger value takes less memory; the fringes of weak beams are then lost.
"""

MARGIN = 3
"""Nodes of a table beyond the tilts and thicknesses in use.

With fewer of them, the assumption of the spline about its ends reaches the values in use.
"""

DOUBLE_STEPS = 100
"""Number of strong reflections, two of which may excite a forbidden one.

With fewer of them, forbidden reflections far from the direct beam are missing.
"""

BLOCK = 48
"""Number of tilts that are computed at once, with the same reflections.

A larger value needs more reflections, and more memory.
"""

SEGMENT = 16
"""Number of depths that are computed from the wave at the end of the depths before.

A larger value takes more memory, and more time where crystals are thick.
"""

MAX_NODES = 2_000_000
"""Nodes of the table of one grain, at most: tilts times thicknesses.

A larger value allows thicker and more bent grains; a table of 2 million takes about 1 GB.
"""


class BlochCrystal:
    """A crystal with structure factors for Bloch waves.

    Parameters
    ----------
    crystal : py4DSTEM.process.diffraction.Crystal
        With dynamical structure factors.
    k_max : float
        Longest beam, 1/Angstrom; structure factors must reach twice as far.
    """

    def __init__(self, crystal: Any, k_max: float):
        self.wavelength: float = crystal.wavelength
        hkl = np.array(list(crystal.Ug_dict)).round().astype(int)
        values = np.array(list(crystal.Ug_dict.values()))
        self._reach = np.abs(hkl).max(axis=0)
        self._factors = np.zeros(2 * self._reach + 1, dtype=complex)
        self._factors[tuple((hkl + self._reach).T)] = values
        self.mean_absorption = float(values[(hkl == 0).all(axis=1)][0].imag)
        strong = np.abs(values) > 1e-6 * np.abs(values).max()
        vectors = hkl @ np.asarray(crystal.lat_inv)
        near = np.linalg.norm(vectors, axis=1) <= k_max + 1e-9
        strengths = np.where(strong, np.abs(values), 0)
        order = np.argsort(-strengths[near])
        steps = hkl[near][order[: min(DOUBLE_STEPS, (strong & near).sum())]]
        weak = near & ~strong
        strengths[weak] = self._double(hkl[weak], steps)
        keep = near & (strengths > 0)
        self.hkl, self.vectors, self.strengths = hkl[keep], vectors[keep], strengths[keep]

    def _double(self, hkl: NDArray[Any], steps: NDArray[Any]) -> NDArray[Any]:
        """Strength of beams that only two reflections, one after the other, excite."""
        best = np.zeros(len(hkl))
        for step in steps:
            first = abs(self.factor(step[None])[0])
            np.maximum(best, np.minimum(first, np.abs(self.factor(hkl - step))), out=best)
        return np.where(best > 1e-6 * np.abs(self._factors).max(), best, 0)

    def factor(self, hkl: NDArray[Any]) -> NDArray[Any]:
        """Structure factors of indices ``(..., 3)``; 0 beyond those that are known."""
        inside = (np.abs(hkl) <= self._reach).all(axis=-1)
        index = np.where(inside[..., None], hkl, 0) + self._reach
        return np.where(inside, self._factors[tuple(np.moveaxis(index, -1, 0))], 0)

    def excitation_errors(self, vectors: NDArray[Any], beams: NDArray[Any]) -> NDArray[Any]:
        """Excitation errors ``(n, T)``, 1/Angstrom, of n vectors for T beam directions."""
        along = vectors @ beams.T
        squares = (vectors**2).sum(axis=1)[:, None]
        return (2 * along - self.wavelength * squares) / (2 - 2 * self.wavelength * along)

    def select(self, beams: NDArray[Any]) -> NDArray[Any]:
        """Reflections that count for any of these directions ``(T, 3)``: numbers in `hkl`."""
        errors = np.abs(self.excitation_errors(self.vectors, beams)).min(axis=1)
        # Two beams: amplitude 1 / sqrt(1 + (s xi)^2), with xi = k / |U|.
        distance = errors / (self.wavelength * self.strengths)
        return np.flatnonzero(1 / np.sqrt(1 + distance**2) >= MIN_AMPLITUDE)

    def intensities(
        self, chosen: NDArray[Any], beams: NDArray[Any], thickness: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Intensities ``(n, J, T)`` of the chosen reflections at J thicknesses, for T directions.

        Parameters
        ----------
        chosen : ndarray, (n,)
            From `select`.
        beams : ndarray, (T, 3)
            Unit vectors against the beam (zone axes), in crystal coordinates.
        thickness : ndarray, (J,)
            Angstrom.
        """
        hkl = self.hkl[chosen]
        matrix = self.factor(hkl[None] - hkl[:, None])
        np.fill_diagonal(matrix, 0)
        start = (hkl == 0).all(axis=1).astype(float)
        errors = self.excitation_errors(self.vectors[chosen], beams)
        waves = propagate_core(0.5 * self.wavelength * matrix, errors, start, thickness)
        # The mean absorption is the same for all reflections.
        decay = np.exp(-2 * np.pi * self.wavelength * self.mean_absorption * thickness)
        intensities: NDArray[np.float64] = np.moveaxis(np.abs(waves) ** 2, 0, 1) * decay[:, None]
        return intensities


def propagate_core(
    matrix: NDArray[Any], diagonal: NDArray[Any], start: NDArray[Any], depths: NDArray[Any]
) -> NDArray[np.complex128]:
    """Waves ``(J, n, T)``: exp(2 pi i depth A) start, for T matrices that share all but a diagonal.

    Parameters
    ----------
    matrix : ndarray, (n, n)
        The part of A that all share, without diagonal, 1/Angstrom. Nearly Hermitian.
    diagonal : ndarray, (n, T)
        Diagonal of each A.
    start : ndarray, (n,)
        The wave at depth 0.
    depths : ndarray, (J,)
        Rising, Angstrom.
    """
    spread = np.linalg.norm(matrix, 2)
    low, high = diagonal.min() - spread, diagonal.max() + spread
    middle, half = (low + high) / 2, max((high - low) / 2, 1e-9)
    shared, own = 2 * matrix / half, 2 * (diagonal - middle) / half
    waves = np.empty((len(depths), *diagonal.shape), dtype=complex)
    wave = np.broadcast_to(start[:, None], diagonal.shape)
    # In segments, because the cost of each is its number of depths times its largest depth.
    for first in range(0, len(depths), SEGMENT):
        part = slice(first, first + SEGMENT)
        further = depths[part] - (depths[first - 1] if first > 0 else 0)
        found = _chebyshev(shared, own, wave, 2 * np.pi * half * further)
        waves[part] = found * np.exp(2j * np.pi * middle * further)[:, None, None]
        wave = waves[part][-1]
    return waves


def _chebyshev(
    shared: NDArray[Any], own: NDArray[Any], start: NDArray[Any], phases: NDArray[Any]
) -> NDArray[np.complex128]:
    """Waves ``(J, n, T)``: exp(i phase B) start, where 2 B is `shared` and the diagonal `own`.

    The eigenvalues of B lie between -1 and 1. Chebyshev polynomials of B are the same for all
    phases; the Bessel functions that weigh them vanish beyond an order of the largest phase.
    """
    largest = float(np.max(phases))
    # Beyond this order, Bessel functions are below 1e-12.
    order = int(largest + 10 * largest ** (1 / 3) + 20)
    terms = np.empty((order + 1, *own.shape), dtype=complex)
    terms[0] = start
    terms[1] = (shared @ start + own * start) / 2
    product = np.empty(own.shape, dtype=complex)
    for n in range(2, order + 1):
        np.matmul(shared, terms[n - 1], out=terms[n])
        np.multiply(own, terms[n - 1], out=product)
        terms[n] += product
        terms[n] -= terms[n - 2]
    orders = np.arange(order + 1)
    weights = jv(orders, phases[:, None]) * np.where(orders == 0, 1, 2) * 1j ** (orders % 4)
    waves: NDArray[np.complex128] = weights @ terms.reshape(order + 1, -1)
    return waves.reshape(len(phases), *own.shape)


def tilt_step(largest_thickness: float, k_max: float) -> float:
    """Distance of the nodes of a table along tilt, radian; thickness in nm, `k_max` in 1/Angstrom.

    A rocking fringe of a reflection g of a crystal of thickness t is 1 / (g t) wide.
    """
    return 1 / (NODES_PER_FRINGE * k_max * 10 * max(largest_thickness, 5.0))


def check_nodes(largest_thickness: float, bending: float, cone: float, k_max: float) -> None:
    """Raise an error where the table of a grain would be too large.

    `bending` is that of the whole grain, degrees; `cone` is the radius of the probe's, radian.
    """
    step = tilt_step(largest_thickness, k_max)
    across = 2 * cone / step + 2 * MARGIN
    along = across + np.deg2rad(bending) / step
    nodes = along * across * (largest_thickness / THICKNESS_STEP + MARGIN)
    if nodes > MAX_NODES:
        raise ValueError(
            f"grains of {largest_thickness:g} nm that bend by {bending:g} degrees, with a cone of "
            f"{1e3 * cone:.2g} mrad, need a table of {nodes / 1e6:.1f} million tilts and "
            f"thicknesses, but {MAX_NODES / 1e6:g} million are possible; give a smaller thickness, "
            "bending or disk_radius, or even_disks=True"
        )


class RockingTable(NamedTuple):
    """Intensities of the beams of one grain over tilt and thickness."""

    hkl: NDArray[np.int64]
    """Indices of the beams ``(n, 3)``."""
    vectors: NDArray[np.float64]
    """Their vectors ``(n, 3)`` in crystal coordinates, 1/Angstrom."""
    splines: NDArray[np.float32]
    """Spline coefficients ``(n + 1, J, A, B)``; the last: the electrons that no beam holds."""
    to_nodes: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
    """From slopes ``(..., 2)`` and thickness ``(...)``, nm, to the place ``(3, ...)`` in it."""

    def intensity(
        self, beam: int, slopes: NDArray[Any], thickness: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Intensity of a beam at slopes ``(..., 2)`` and thickness ``(...)``, nm."""
        places = self.to_nodes(slopes, thickness)
        found = map_coordinates(
            self.splines[beam], places, order=3, prefilter=False, mode="mirror", output=float
        )
        return np.maximum(found, 0)


def rocking_table(
    crystal: BlochCrystal,
    orientation: NDArray[Any],
    slopes: NDArray[Any],
    largest_thickness: float,
    k_max: float,
) -> RockingTable:
    """Table of one grain, over the tilts that it uses.

    Parameters
    ----------
    crystal : BlochCrystal
    orientation : ndarray, (3, 3)
        Its columns are the axes of slopes, and the zone axis at slope 0, in crystal coordinates.
    slopes : ndarray, (n, 2)
        Slopes of all zone axes in use: x / z and y / z in the axes of `orientation`.
    largest_thickness : float
        nm.
    k_max : float
        Beams up to this length need exact fringes, 1/Angstrom.
    """
    middle = slopes.mean(axis=0)
    axes = np.linalg.svd(slopes - middle, full_matrices=False)[2] if len(slopes) > 1 else np.eye(2)
    step = tilt_step(largest_thickness, k_max)
    along = (slopes - middle) @ axes.T
    low, high = along.min(axis=0), along.max(axis=0)
    nodes = []
    for a, b in zip(low, high, strict=True):
        # Along an axis without extent, one node is exact.
        n = 0 if b - a < 1e-3 * step else int(np.ceil((b - a) / step)) + 2 * MARGIN
        nodes.append((a + b) / 2 + step * (np.arange(n + 1) - n / 2))
    n_depths = int(np.ceil(largest_thickness / THICKNESS_STEP)) + MARGIN + 1
    grid = np.stack(np.meshgrid(*nodes, indexing="ij"), axis=2).reshape(-1, 2)
    beams = np.column_stack([grid @ axes + middle, np.ones(len(grid))]) @ orientation.T
    beams /= np.linalg.norm(beams, axis=1, keepdims=True)
    depths = 10 * THICKNESS_STEP * np.arange(n_depths)
    # Each block of neighbouring tilts has reflections of its own, as in py4DSTEM each pattern has.
    blocks = [slice(first, first + BLOCK) for first in range(0, len(beams), BLOCK)]
    chosen = [crystal.select(beams[block]) for block in blocks]
    together = np.unique(np.concatenate(chosen))
    splines = np.zeros((len(together) + 1, n_depths, len(beams)), dtype=np.float32)
    for block, own in zip(blocks, chosen, strict=True):
        values = crystal.intensities(own, beams[block], depths)
        splines[np.searchsorted(together, own), :, block] = values
        splines[-1, :, block] = 1 - values.sum(axis=0)
    splines = splines.reshape(-1, n_depths, *map(len, nodes))
    for table in splines:
        table[:] = spline_filter(table, order=3, mode="mirror")
    origin = np.array([axis[0] for axis in nodes])

    def to_nodes(slopes: NDArray[Any], thickness: NDArray[Any]) -> NDArray[Any]:
        tilts = ((slopes - middle) @ axes.T - origin) / step
        return np.stack([thickness / THICKNESS_STEP, tilts[..., 0], tilts[..., 1]])

    return RockingTable(crystal.hkl[together], crystal.vectors[together], splines, to_nodes)
