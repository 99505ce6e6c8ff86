"""How well a lattice explains the disks of a pattern, as the logarithm of a likelihood ratio.

The model was fitted to dynamical patterns (Bloch waves). A reflection is lit the more, the stronger
it is in kinematical theory and the nearer it is to the Ewald sphere, but its intensity scatters by
a factor of about six: intensities say little. Whether a disk is found at all, and where, says
much. So each reflection that is found multiplies the likelihood by its chance to have that
intensity and to lie that near to its expected place; each that is not found, by its chance to be
too weak. A disk that belongs to no reflection is a foreign one, of a neighbour or of noise.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .kinematic import Lattice, Window, brightness, near_sphere, pick, predict
from .lattice_fit import usual_deformation

SCATTER = 1.0
"""Scale of the logistic scatter of the logarithm of intensities about the expected one.

A larger value trusts intensities less.
"""

N_FOREIGN = 2.7
"""Expected number of foreign disks of a pattern. A larger value believes more readily that a disk
does not belong to the lattice.
"""

FOREIGN_DECAY = 1.2
"""Foreign disks are weak: the mean logarithm of their intensity above that of the weakest disk."""

MAX_STRAIN = 0.06
"""Largest strain that is taken out of a pattern. A larger one forgives a wrong pixel size, but
lets wrong lattices fit."""

STRAIN_PRIOR = 0.02
"""Standard deviation of the strains that are expected before anything is measured."""

FAINTEST = -6.0
"""Logarithm of the expected intensity, above that of the weakest disk, from which on a reflection
is considered. A smaller value considers more that have hardly a chance to be found."""

WIDTHS = np.geomspace(0.004, 0.064, 9)
"""Widths of relrods, 1/Angstrom, from which the pattern chooses."""

SCALES = np.arange(0.0, 10.0)
"""Logarithms of the strongest expected intensity above the weakest disk: the choices."""

SURE_MARGIN = 4.0
"""Evidence by which an orientation must be better than every other one to be sure.

Calibrated on dynamical simulations, see the page on accuracy. A larger value leaves fewer wrong
orientations among the sure ones, and fewer sure ones.
"""

SURE_DISKS = 5
"""Number of disks below which no orientation is sure."""

SURE_EXPLAINED = 0.6
"""Share of the intensity that the lattice must explain to be sure."""

MIN_EVIDENCE = 12.0
"""Evidence below which a pattern is not indexed: as much as a wrong lattice finds by chance."""

MIN_EXPLAINED = 0.5
"""Share of the intensity that the lattice must explain, or the pattern is not indexed.

In the Bloch-wave patterns of the tuning seeds (five materials, wedges of 5 to 40 nm, bent by 2
degrees; see the page on accuracy) the right crystal explained 0.87 or more, a wrong one 0.5 or
less, each in the median of a material.
"""

VERDICTS = ("not indexed", "ambiguous", "sure")
"""Meaning of the numbers 0 to 2 of a verdict."""

NOT_INDEXED, AMBIGUOUS, SURE = range(len(VERDICTS))

_CUT = 6.0
"""Distance, in errors of place, beyond which a disk cannot belong to a reflection."""

_DIRECTIONS = np.array(sorted(product((-1.0, 0.0, 1.0), repeat=3), key=np.linalg.norm))


class Peaks(NamedTuple):
    """Measured peaks of one pattern, the direct beam left out."""

    places: NDArray[Any]
    """``(n, 2)``, 1/Angstrom."""
    intensity: NDArray[Any]
    """``(n,)``, logarithm of the intensity above that of the weakest disk that can be found."""


class Model(NamedTuple):
    """What a pattern may choose."""

    scale: float
    """Logarithm of the strongest expected intensity above that of the weakest disk."""
    width: float
    """Width of relrods, 1/Angstrom; see `TAIL_POWER`."""
    error: float
    """Standard deviation of the places of disks, 1/Angstrom, in each direction."""
    scatter: float = SCATTER
    """Scale of the logistic scatter of the logarithm of intensities."""


def make_peaks(places: NDArray[Any], intensity: NDArray[Any]) -> Peaks:
    """Peaks at `places` ``(n, 2)``; the weakest disk that can be found is the second weakest."""
    logarithm = np.log(np.maximum(intensity, 1e-300))
    weakest = np.sort(logarithm)[: min(2, len(logarithm))][-1]
    return Peaks(places, np.maximum(logarithm - weakest + 0.05, 0.0))


def evidence(
    lattice: Lattice,
    window: Window,
    area: float,
    matrices: NDArray[Any],
    peaks: Peaks,
    model: Model,
) -> NDArray[np.float64]:
    """Evidence ``(m,)`` for orientations ``(m, 3, 3)``.

    It is the natural logarithm of the likelihood ratio: against all disks being foreign, and no
    lattice there. A difference of 3 between two orientations means that one is twenty times as
    likely as the other.

    Parameters
    ----------
    lattice : Lattice
    window : Window
    area : float
        Area of the window, 1/Angstrom^2: foreign disks may lie anywhere in it.
    matrices : ndarray, (m, 3, 3)
    peaks : Peaks
    model : Model
    """
    places, error = predict(lattice, matrices)
    expected = model.scale + brightness(lattice, error, model.width)
    pattern, disk, reflection, near = _near_pairs(places, peaks, model.error)
    inside = window.holds(places)
    hidden = np.where(inside, -np.logaddexp(0, expected / model.scatter), 0.0)
    kept = inside[pattern, reflection]
    pattern, disk, reflection, near = (one[kept] for one in (pattern, disk, reflection, near))
    odds = _odds(expected[pattern, reflection], near, peaks.intensity[disk], area, model.scatter)
    n_disks = len(peaks.places)
    explained = np.zeros((len(matrices), n_disks))
    _largest(explained.reshape(-1), pattern * n_disks + disk, odds)
    total: NDArray[np.float64] = hidden.sum(axis=1) + explained.sum(axis=1)
    return total


def _near_pairs(places: NDArray[Any], peaks: Peaks, error: float) -> tuple[NDArray[Any], ...]:
    """Pairs of a disk and a reflection, `_CUT` errors apart at most, sorted by pattern and disk.

    Pattern, disk and reflection of each pair, and the logarithm of the density of disks of the
    reflection at the place of the disk, 1/Angstrom^2.
    """
    squared = (places**2).sum(axis=2)[:, None] + (peaks.places**2).sum(axis=1)[:, None]
    squared -= 2 * (peaks.places @ places.transpose(0, 2, 1))
    pattern, disk, reflection = np.nonzero(squared < (_CUT * error) ** 2)
    near = -0.5 * squared[pattern, disk, reflection] / error**2 - np.log(2 * np.pi * error**2)
    return pattern, disk, reflection, near


def _odds(
    expected: NDArray[Any],
    near: NDArray[Any],
    intensity: NDArray[Any],
    area: float,
    scatter: float,
) -> NDArray[np.float64]:
    """Evidence that disks belong to a reflection, instead of being foreign and it being hidden."""
    above = (intensity - expected) / scatter
    lit = -above - 2 * np.logaddexp(0, -above) - np.log(scatter)
    hidden = -np.logaddexp(0, expected / scatter)
    foreign = np.log(N_FOREIGN / area) - intensity / FOREIGN_DECAY - np.log(FOREIGN_DECAY)
    odds: NDArray[np.float64] = np.logaddexp(0, lit + near - hidden - foreign)
    return odds


def _largest(out: NDArray[Any], group: NDArray[Any], values: NDArray[Any]) -> None:
    """Write the largest of the values ``(..., n)`` of each group ``(n,)``, sorted, to `out`."""
    if len(group):
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        out[..., group[starts]] = np.maximum.reduceat(values, starts, axis=-1)


def choose_model(
    lattice: Lattice,
    window: Window,
    area: float,
    matrix: NDArray[Any],
    peaks: Peaks,
    widths: NDArray[Any],
    error: float,
    scatter: float = SCATTER,
) -> tuple[float, Model]:
    """The best evidence for an orientation ``(3, 3)``, and the model of `widths` that gives it."""
    # The faintest reflection that any of the choices considers.
    lattice = near_sphere(lattice, matrix, 0, float(widths.max()), FAINTEST - float(SCALES.max()))
    places, errors = predict(lattice, matrix[None])
    inside = window.holds(places[0])
    places, errors = places[:, inside], errors[0, inside]
    lattice = pick(lattice, inside)
    light = np.array([brightness(lattice, errors, width) for width in widths])
    expected = SCALES[:, None, None] + light
    _, disk, reflection, near = _near_pairs(places, peaks, error)
    odds = _odds(expected[..., reflection], near, peaks.intensity[disk], area, scatter)
    explained = np.zeros((*expected.shape[:2], len(peaks.places)))
    _largest(explained, disk, odds)
    found = explained.sum(axis=2) - np.logaddexp(0, expected / scatter).sum(axis=2)
    scale, width = np.unravel_index(found.argmax(), found.shape)
    model = Model(float(SCALES[scale]), float(widths[width]), error, scatter)
    return float(found[scale, width]), model


def climb(
    lattice: Lattice,
    window: Window,
    area: float,
    matrix: NDArray[Any],
    peaks: Peaks,
    model: Model,
    first: float,
    last: float,
) -> tuple[float, NDArray[np.float64]]:
    """The best evidence near `matrix`, and its orientation; steps `first` to `last`, radian."""
    best, step = -np.inf, first
    while step >= last:
        # A diagonal step is longer than a straight one by the root of 3.
        near = near_sphere(lattice, matrix, 1.8 * step, model.width, FAINTEST - model.scale)
        turned = matrix @ small_turns(step * _DIRECTIONS)
        found = evidence(near, window, area, turned, peaks, model)
        k = int(found.argmax())
        if k == 0 or found[k] <= best + 1e-9:
            best, step = max(best, float(found[0])), step / 2
        else:
            best, matrix = float(found[k]), turned[k]
    return best, matrix


def unstrained(lattice: Lattice, matrix: NDArray[Any], peaks: Peaks, model: Model) -> Peaks:
    """Peaks without the strain that they have relative to an orientation ``(3, 3)``.

    Strain moves the outer disks away from the expected places. It is fitted to the disks near to
    lit reflections, three at least, and drawn towards zero where they are few.
    """
    places, error = predict(lattice, matrix[None])
    visible = model.scale + brightness(lattice, error[0], model.width) > -1.5 * SCATTER
    places = places[0, visible]
    if len(places) == 0 or len(peaks.places) == 0:
        return peaks
    gap = peaks.places[:, None] - places
    distance = np.hypot(gap[..., 0], gap[..., 1])
    nearest = distance.argmin(axis=1)
    near = distance[np.arange(len(nearest)), nearest] < 4 * model.error
    if near.sum() < 3:
        return peaks
    expected, found = places[nearest[near]], peaks.places[near]
    u, stretch, _ = np.linalg.svd(usual_deformation(found, expected, model.error, STRAIN_PRIOR))
    stretch = np.clip(stretch, 1 - MAX_STRAIN, 1 + MAX_STRAIN)
    return Peaks(peaks.places @ (u / stretch) @ u.T, peaks.intensity)


class Agreement(NamedTuple):
    """How an orientation agrees with a pattern, in numbers to look at."""

    cosine: float
    """Cosine between measured and expected disks, 0 to 1."""
    n_disks: int
    """Number of measured disks at lit reflections."""
    explained: float
    """Share of the measured intensity in these disks."""


def agreement(
    lattice: Lattice,
    window: Window,
    matrix: NDArray[Any],
    peaks: Peaks,
    model: Model,
    power: float,
) -> Agreement:
    """Compare expected and measured disks, as vectors of intensities to `power`.

    A reflection that is hardly bright enough to be found has less weight. A disk belongs to a
    reflection up to three errors of place away, and each to one only.
    """
    places, error = predict(lattice, matrix[None])
    inside = window.holds(places[0])
    places = places[0, inside]
    expected = (model.scale + brightness(lattice, error[0], model.width))[inside]
    chance = 1 / (1 + np.exp(-expected / SCATTER))
    weight = np.exp(power * (expected - model.scale)) * chance
    bright = peaks.intensity.max(initial=0)
    measured = np.exp(power * (peaks.intensity - bright))
    gap = peaks.places[:, None] - places
    squared = (gap**2).sum(axis=2) / model.error**2
    # The likelier reflections first, so that a disk takes the brighter one of two near ones.
    rank = np.where(squared <= 9, expected - 0.5 * squared, -np.inf)
    both, n_disks, explained = 0.0, 0, 0.0
    share = np.exp(peaks.intensity - bright)
    for disk in np.argsort(-peaks.intensity, kind="stable"):
        k = int(rank[disk].argmax()) if rank.shape[1] else 0
        if rank.shape[1] == 0 or rank[disk, k] < -4:
            continue
        both += measured[disk] * weight[k]
        n_disks, explained = n_disks + 1, explained + float(share[disk])
        rank[:, k] = -np.inf
    norm = np.sqrt((weight**2).sum() * (measured**2).sum())
    return Agreement(
        float(both / max(norm, 1e-300)), n_disks, float(explained / max(share.sum(), 1e-300))
    )


def small_turns(vectors: NDArray[Any]) -> NDArray[Any]:
    """Rotations ``(n, 3, 3)`` by vectors ``(n, 3)``, radian, from Rodrigues' formula."""
    angle = np.linalg.norm(vectors, axis=1)[:, None, None]
    x, y, z = vectors.T
    zero = np.zeros_like(x)
    cross = np.array([[zero, -z, y], [z, zero, -x], [-y, x, zero]]).transpose(2, 0, 1)
    # sinc avoids a division by zero for a vector of length 0.
    linear, square = np.sinc(angle / np.pi), 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.eye(3) + linear * cross + square * (cross @ cross)


def verdict_of(evidence: float, runner_up: float, n_disks: int, explained: float) -> int:
    """The verdict on an orientation; `runner_up` is the evidence of the next one, 0 for none."""
    if evidence < MIN_EVIDENCE or n_disks < 3 or explained < MIN_EXPLAINED:
        return NOT_INDEXED
    clear = evidence - max(runner_up, 0) >= SURE_MARGIN
    if clear and n_disks >= SURE_DISKS and explained >= SURE_EXPLAINED:
        return SURE
    return AMBIGUOUS
