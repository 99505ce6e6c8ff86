"""Kinematical diffraction of many orientations at once, and how well it fits measured peaks."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN_INTENSITY = 3e-4
"""Intensity, relative to the strongest reflection, from which on a disk should be found.

A larger value expects fewer disks, so that a missing weak disk costs nothing.
"""

PEAK_SIGMA = 0.3
"""Standard deviation of the Gaussian of each peak, in units of the `reach` of the matching.

A larger value forgives larger distances between measured and expected peaks.
"""

MIN_STRAIN_PEAKS = 6
"""Number of matched peaks from which on strain is measured; it has four parameters.

A larger value leaves the strain in patterns with few disks.
"""

MIN_STRAIN_SPREAD = 0.1
"""Width of the matched peaks, relative to their length, from which on strain is measured.

A larger value leaves the strain in more patterns whose disks lie nearly on a line.
"""

MIN_STRETCH = 0.5
"""Stretch below which a deformation is taken for a wrong match, not for strain."""

_DIRECTIONS = np.array(sorted(product((-1.0, 0.0, 1.0), repeat=3), key=np.linalg.norm))


class Lattice(NamedTuple):
    """Reflections of a crystal, the direct beam left out."""

    vectors: NDArray[Any]
    """Reciprocal lattice vectors ``(3, n)``, 1/Angstrom, Cartesian coordinates of the crystal."""
    intensity: NDArray[Any]
    """Intensities ``(n,)`` at the Bragg angle, the strongest 1."""
    wavelength: float
    """Wavelength of the electrons, Angstrom."""
    sigma: float
    """Excitation error, 1/Angstrom, that leaves 61 % of the intensity (one standard deviation)."""


class Window(NamedTuple):
    """Rectangle of the detector in which disks were searched."""

    to_pixels: NDArray[Any]
    """``(2, 2)``: places in 1/Angstrom times this matrix are detector pixels from the origin."""
    low: NDArray[Any]
    """Lowest corner ``(2,)``, pixels from the origin."""
    high: NDArray[Any]
    """Highest corner ``(2,)``, pixels from the origin."""


class Peaks(NamedTuple):
    """Measured peaks of one pattern, the direct beam left out."""

    places: NDArray[Any]
    """``(n, 2)``, 1/Angstrom."""
    weights: NDArray[Any]
    """``(n,)``, as a vector of length 1."""


def predict(
    lattice: Lattice, matrices: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places ``(m, n, 2)`` and intensities ``(m, n)`` of reflections in orientations ``(m, 3, 3)``.

    The excitation error is the distance to the Ewald sphere along the beam, as in py4DSTEM.
    """
    turned = np.matmul(matrices.transpose(0, 2, 1), lattice.vectors)
    along = turned[:, 2]
    squared = (lattice.vectors**2).sum(axis=0)
    error = (2 * along - lattice.wavelength * squared) / (2 - 2 * lattice.wavelength * along)
    intensity = lattice.intensity * np.exp(-0.5 * (error / lattice.sigma) ** 2)
    return turned[:, :2].transpose(0, 2, 1), intensity


def expected_weights(intensity: NDArray[Any], power: float) -> NDArray[np.float64]:
    """Weights of expected disks: ``intensity**power`` above that of `MIN_INTENSITY`, else 0."""
    if power == 0:
        return (intensity > MIN_INTENSITY).astype(float)
    return np.maximum(intensity, MIN_INTENSITY) ** power - MIN_INTENSITY**power


def score(
    lattice: Lattice,
    window: Window,
    matrices: NDArray[Any],
    peaks: Peaks,
    reach: float,
    power: float,
) -> NDArray[np.float64]:
    """Score ``(m,)``, 0 to 1, of orientations ``(m, 3, 3)``: how well they explain the peaks.

    The measured and the expected pattern are sums of Gaussians with a standard deviation of
    ``PEAK_SIGMA * reach`` at their peaks; expected peaks have their intensity to `power`. The score
    is the cosine between both functions. A missing disk costs as much as an unexpected one, and
    only the true orientation scores 1, however close peaks lie.

    Parameters
    ----------
    lattice : Lattice
    window : Window
    matrices : ndarray, (m, 3, 3)
    peaks : Peaks
    reach : float
        Largest distance between a measured and an expected peak that match, 1/Angstrom.
    power : float
        Exponent of the intensities; 0 gives all disks the same weight.
    """
    places, intensity = predict(lattice, matrices)
    seen = (intensity > MIN_INTENSITY).any(axis=0)
    places, intensity = places[:, seen], intensity[:, seen]
    pixels = places @ window.to_pixels
    inside = ((pixels >= window.low) & (pixels <= window.high)).all(axis=2)
    weights = inside * expected_weights(intensity, power)
    width = PEAK_SIGMA * reach
    both = (_overlap(places, peaks.places, width) @ peaks.weights * weights).sum(axis=1)
    own = _overlap(places, places, width)
    expected_norm = np.einsum("mi,mij,mj->m", weights, own, weights, optimize=True)
    measured_norm = peaks.weights @ _overlap(peaks.places, peaks.places, width) @ peaks.weights
    return both / np.sqrt(np.maximum(expected_norm * measured_norm, 1e-24))


def _overlap(a: NDArray[Any], b: NDArray[Any], width: float) -> NDArray[Any]:
    """Overlap ``(..., n, p)`` of Gaussians at places ``(..., n, 2)`` and ``(..., p, 2)``."""
    squared = (a**2).sum(axis=-1)[..., :, None] + (b**2).sum(axis=-1)[..., None, :]
    squared -= 2 * (a @ np.swapaxes(b, -1, -2))
    # The overlap of two equal Gaussians is a Gaussian that is wider by the root of 2.
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
) -> tuple[float, NDArray[np.float64]]:
    """Climb to the best score near `matrix`; returns this score and its orientation.

    Steps are halved from `first` down to `last`, radian. Then strain is taken out of the peaks, and
    the climb starts again, twice. For the other parameters see `score`.
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
    """Peaks without the strain that they have relative to an orientation ``(3, 3)``.

    Strain moves the outer disks away from the expected places, as a tilt of the crystal would.
    The peaks stay as they are where fewer than `MIN_STRAIN_PEAKS` match expected peaks within
    `reach`, or where all lie on a line.
    """
    places, intensity = predict(lattice, matrix[None])
    places = places[0, intensity[0] > MIN_INTENSITY]
    if len(places) == 0:
        return peaks
    gap = peaks.places[:, None] - places
    distance = np.hypot(gap[..., 0], gap[..., 1])
    nearest = distance.argmin(axis=1)
    near = distance[np.arange(len(nearest)), nearest] < reach
    expected, found = places[nearest[near]], peaks.places[near]
    weights = peaks.weights[near, None]
    if len(found) < MIN_STRAIN_PEAKS:
        return peaks
    along, across = np.linalg.svd(weights * expected, compute_uv=False)
    if across < MIN_STRAIN_SPREAD * along:
        return peaks
    deformation = np.linalg.lstsq(weights * expected, weights * found, rcond=None)[0].T
    u, stretch, _ = np.linalg.svd(deformation)
    if stretch[1] < MIN_STRETCH:
        return peaks
    return Peaks(peaks.places @ (u / stretch) @ u.T, peaks.weights)


def _turns(vectors: NDArray[Any]) -> NDArray[Any]:
    """Rotations ``(n, 3, 3)`` by vectors ``(n, 3)``, radian, from Rodrigues' formula."""
    angle = np.linalg.norm(vectors, axis=1)[:, None, None]
    x, y, z = vectors.T
    zero = np.zeros_like(x)
    cross = np.array([[zero, -z, y], [z, zero, -x], [-y, x, zero]]).transpose(2, 0, 1)
    # sinc avoids a division by zero for a vector of length 0.
    linear, square = np.sinc(angle / np.pi), 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.eye(3) + linear * cross + square * (cross @ cross)
