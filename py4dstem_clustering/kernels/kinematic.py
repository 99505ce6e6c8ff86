"""Kinematical diffraction of many orientations at once, and how well measured peaks fit it."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FAINT = 3e-4
"""Intensity, relative to the strongest reflection, from which a disk is expected to be found."""

WIDTH = 0.3
"""Standard deviation of peaks, in units of how far apart they may lie."""

FEWEST = 6
"""Peaks that strain is told from."""

_DIRECTIONS = np.array(sorted(product((-1.0, 0.0, 1.0), repeat=3), key=np.linalg.norm))


class Lattice(NamedTuple):
    """Reflections of a crystal, the direct beam left out."""

    vectors: NDArray[Any]
    """Reciprocal lattice vectors ``(3, n)``, 1/Angstrom, Cartesian coordinates of the crystal."""
    intensity: NDArray[Any]
    """Intensities ``(n,)`` at the Bragg angle, the strongest 1."""
    wavelength: float
    """Of the electrons, Angstrom."""
    sigma: float
    """Excitation error at which a reflection has lost 40 % of its intensity, 1/Angstrom."""


class Window(NamedTuple):
    """Part of the diffraction plane in which disks were looked for."""

    to_pixels: NDArray[Any]
    """``(2, 2)``: places, 1/Angstrom, times this are detector pixels from the origin."""
    low: NDArray[Any]
    """``(2,)``, pixels from the origin."""
    high: NDArray[Any]


class Peaks(NamedTuple):
    """Measured peaks of one pattern, the direct beam left out."""

    places: NDArray[Any]
    """``(n, 2)``, 1/Angstrom."""
    weights: NDArray[Any]
    """``(n,)``, of length 1."""


def predict(lattice: Lattice, matrices: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Places ``(m, n, 2)`` and intensities ``(m, n)`` of reflections in orientations ``(m, 3, 3)``.

    The excitation error is that of py4DSTEM: the distance to Ewald's sphere along the beam.
    """
    turned = np.matmul(matrices.transpose(0, 2, 1), lattice.vectors)
    along = turned[:, 2]
    squared = (lattice.vectors**2).sum(axis=0)
    error = (2 * along - lattice.wavelength * squared) / (2 - 2 * lattice.wavelength * along)
    intensity = lattice.intensity * np.exp(-0.5 * (error / lattice.sigma) ** 2)
    return turned[:, :2].transpose(0, 2, 1), intensity


def expected_weights(intensity: NDArray[Any], power: float) -> NDArray[Any]:
    """Intensities to `power`, less what disks that are too faint to be found have; at least 0."""
    if power == 0:
        return (intensity > FAINT).astype(float)
    return np.maximum(intensity, FAINT) ** power - FAINT**power


def score(
    lattice: Lattice,
    window: Window,
    matrices: NDArray[Any],
    peaks: Peaks,
    reach: float,
    power: float,
) -> NDArray[Any]:
    """How well orientations explain the peaks, 0 to 1 ``(m,)``.

    The cosine between the measured pattern and the expected one (intensities to `power`), each a
    sum of Gaussians at its peaks, with a standard deviation of ``WIDTH * reach``. An expected disk
    that is not there costs as much as a disk that is not expected; and since it is a cosine of
    functions, it is 1 for the true orientation only, however close peaks lie.
    """
    places, intensity = predict(lattice, matrices)
    some = (intensity > FAINT).any(axis=0)
    places, intensity = places[:, some], intensity[:, some]
    pixels = places @ window.to_pixels
    inside = ((pixels >= window.low) & (pixels <= window.high)).all(axis=2)
    weights = inside * expected_weights(intensity, power)
    width = WIDTH * reach
    both = (_overlap(places, peaks.places, width) @ peaks.weights * weights).sum(axis=1)
    own = _overlap(places, places, width)
    expected_norm = np.einsum("mi,mij,mj->m", weights, own, weights, optimize=True)
    measured_norm = peaks.weights @ _overlap(peaks.places, peaks.places, width) @ peaks.weights
    return both / np.sqrt(np.maximum(expected_norm * measured_norm, 1e-24))


def _overlap(a: NDArray[Any], b: NDArray[Any], width: float) -> NDArray[Any]:
    """Of Gaussians at places ``(..., n, 2)`` and ``(..., p, 2)``: ``(..., n, p)``."""
    squared = (a**2).sum(axis=-1)[..., :, None] + (b**2).sum(axis=-1)[..., None, :]
    squared -= 2 * (a @ np.swapaxes(b, -1, -2))
    # Two Gaussians of one width overlap like one that is wider by the root of 2.
    return np.exp(squared / (-4 * width**2))


def refine(
    lattice: Lattice,
    window: Window,
    matrix: NDArray[Any],
    peaks: Peaks,
    reach: float,
    power: float,
    first: float,
    last: float,
) -> tuple[float, NDArray[Any]]:
    """Climb to the best orientation near `matrix`; steps from `first` to `last`, radian.

    Strain is taken out of the peaks once that shows, and the climb goes on from there.
    """
    best = 0.0
    for measured in (peaks, None, None):
        if measured is None:
            measured = unstrained(lattice, matrix, peaks, reach)
            first = min(first, 8 * last)
        best, step = -1.0, first
        while step >= last:
            near = matrix @ _turns(step * _DIRECTIONS)
            found = score(lattice, window, near, measured, reach, power)
            k = int(found.argmax())
            if k == 0 or found[k] <= best:
                best, step = max(best, float(found[0])), step / 2
            else:
                best, matrix = float(found[k]), near[k]
    return best, matrix


def unstrained(lattice: Lattice, matrix: NDArray[Any], peaks: Peaks, reach: float) -> Peaks:
    """Peaks as they would be without the strain that they have against an orientation.

    Strain moves disks far out from under those that are expected, and would be taken for tilt.
    Where fewer than `FEWEST` peaks are near to expected ones, or all on a line, as they are.
    """
    places, intensity = predict(lattice, matrix[None])
    places = places[0, intensity[0] > FAINT]
    if len(places) == 0:
        return peaks
    gap = peaks.places[:, None] - places
    distance = np.hypot(gap[..., 0], gap[..., 1])
    nearest = distance.argmin(axis=1)
    near = distance[np.arange(len(nearest)), nearest] < reach
    expected, found = places[nearest[near]], peaks.places[near]
    weights = peaks.weights[near, None]
    if len(found) < FEWEST:
        return peaks
    left, across = np.linalg.svd(weights * expected, compute_uv=False)
    if across < 0.1 * left:
        return peaks
    deformation = np.linalg.lstsq(weights * expected, weights * found, rcond=None)[0].T
    u, stretch, _ = np.linalg.svd(deformation)
    if stretch[1] < 0.5:
        return peaks
    return Peaks(peaks.places @ (u / stretch) @ u.T, peaks.weights)


def _turns(vectors: NDArray[Any]) -> NDArray[Any]:
    """Rotations ``(n, 3, 3)`` about vectors by their lengths, Rodrigues' formula."""
    angle = np.linalg.norm(vectors, axis=1)[:, None, None]
    x, y, z = vectors.T
    zero = np.zeros_like(x)
    cross = np.array([[zero, -z, y], [z, zero, -x], [-y, x, zero]]).transpose(2, 0, 1)
    # sinc, so that no rotation needs no division by zero.
    linear, square = np.sinc(angle / np.pi), 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.eye(3) + linear * cross + square * (cross @ cross)
