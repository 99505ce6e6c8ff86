"""Fit the places of Bragg disks that are lit unevenly inside.

Correlation with a template finds the middle of the light. In a crystal of more than a few
nanometres each direction of the probe's cone has an intensity of its own, so the middle of the
light is not the middle of the disk. Here the outline of the disk is fitted: its light is the probe
times a smooth surface of second degree, on a background that may tilt.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, spline_filter, uniform_filter
from scipy.optimize import least_squares

from .disk_windows import disk_windows

MARGIN = 2.5
"""Pixels around the radius of the disk that belong to a fit: they hold the background.

A larger margin gives more exact backgrounds, and more of the neighbouring disks.
"""

N_STEPS = 18
"""Most steps of a fit. Most fits are done after six."""

LARGEST_STEP = 0.5
"""Largest change of a place in one step, in radii. A larger one may jump to a neighbouring disk."""

FARTHEST = 0.75
"""Largest distance between the fitted and the first place, in radii.

Farther fits have left their disk; such disks stay where they were.
"""

MIN_SIGNIFICANCE = 3.0
"""Light of a disk in standard deviations of its noise, from which on its place is fitted.

A smaller value also moves disks that are hardly more than noise.
"""

UNEVEN = 0.7
"""How uneven the light of a disk is expected to be: standard deviation of slopes and curvatures,
over the radius, relative to the mean.

A larger value follows stronger changes inside of a disk, but noise moves weak disks more.
"""

LEAST_ERROR = 0.03
"""Error of every place, pixels, beside noise: light may change less smoothly than is fitted.

A larger value makes bright disks count less, and standard errors larger.
"""

ROUND = 0.06
"""Root mean square difference between a probe and a round disk, relative to its height, up to which
it counts as round. A larger value describes more probes by a radius and an edge.
"""

DONE = 0.1
"""Change of a place, in standard errors, below which a fit has ended."""

_MIN_EDGE = 0.5
"""Smallest width of the edge of a probe, pixels: a pixel smears every edge."""

_STEP = 0.05
"""Distance, pixels, over which the slope of the probe is measured."""


class Probe(NamedTuple):
    """The disk of the probe, at any place between pixels."""

    centre: NDArray[np.float64]
    """Its centre in the image of the probe, pixels."""
    radius: float
    """Radius of the disk, pixels, at half of its height."""
    edge: float
    """Width of the edge of a round disk, pixels; 0 for other probes."""
    spline: NDArray[np.float64]
    """Coefficients of cubic splines of the image, for probes that are not round."""

    def at(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
        """Brightness at a distance ``x, y`` from the centre, about 1 inside."""
        if self.edge > 0:
            return _round_disk(np.hypot(x, y), self.radius, self.edge)
        found: NDArray[np.float64] = map_coordinates(
            self.spline, [x + self.centre[0], y + self.centre[1]], prefilter=False, cval=0.0
        )
        return found


def _round_disk(distance: NDArray[Any], radius: float, edge: float) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.clip(0.5 + (radius - distance) / edge, 0, 1)
    return found


def probe_of(image: NDArray[Any]) -> Probe:
    """The disk of a pattern without specimen ``(Qx, Qy)``, background removed.

    A round disk is described by its radius and its edge, because an image of sharp edges cannot be
    moved by parts of a pixel without errors of up to 0.05 pixels.
    """
    image = np.maximum(np.asarray(image, dtype=float), 0)
    half = image > 0.5 * np.quantile(image[image > 0.25 * image.max()], 0.9)
    radius = float(np.sqrt(half.sum() / np.pi))
    u, v = np.indices(image.shape)
    middle = np.array([(place * half).sum() / half.sum() for place in (u, v)])
    near = np.hypot(u - middle[0], v - middle[1]) < radius + MARGIN
    height = float(image[half].mean())

    def rest(values: NDArray[Any]) -> NDArray[Any]:
        x, y, own_radius, edge, own_height, floor = values
        distance = np.hypot(u[near] - x, v[near] - y)
        disk = own_height * _round_disk(distance, own_radius, max(edge, _MIN_EDGE)) + floor
        difference: NDArray[np.float64] = (disk - image[near]) / height
        return difference

    first = np.array([*middle, radius, 1.0, height, 0.0])
    fitted = least_squares(rest, first, x_scale=[1, 1, 1, 1, height, height], diff_step=1e-3)
    x, y, radius, edge, height, floor = fitted.x
    inside = np.where(near, np.maximum(image - floor, 0), 0) / height
    is_round = np.sqrt(np.mean(fitted.fun**2)) < ROUND
    return Probe(np.array([x, y]), float(radius), max(float(edge), _MIN_EDGE) * is_round,
                 spline_filter(inside))  # fmt: skip


class Places(NamedTuple):
    """Fitted disks of one pattern."""

    places: NDArray[np.float64]
    """``(n, 2)``, pixels."""
    errors: NDArray[np.float64]
    """Standard error ``(n,)`` of a place along one axis, pixels; infinite where no fit succeeded
    and the place is the first one."""


def fit_places(pattern: NDArray[Any], first: NDArray[Any], probe: Probe) -> Places:
    """Fit the disks of a pattern ``(Qx, Qy)`` near the places `first` ``(n, 2)``, pixels."""
    if len(first) == 0:
        return Places(np.empty((0, 2)), np.empty(0))
    pattern = np.asarray(pattern, dtype=float)
    at, value, weight = _windows(pattern, first, probe.radius)
    places, done = np.array(first, dtype=float), np.zeros(len(first), dtype=bool)
    errors = np.full(len(first), np.inf)
    significance = np.zeros(len(first))
    for k in range(N_STEPS):
        go = np.flatnonzero(~done)
        if len(go) == 0:
            break
        step, covariance, significance[go] = _step(at[go], value[go], weight[go], places[go], probe)
        errors[go] = np.sqrt(np.trace(covariance, axis1=1, axis2=2) / 2)
        length = np.linalg.norm(step, axis=1)
        # The edge of a disk has kinks, at which whole steps may jump to and fro.
        damping = 1.0 if k < N_STEPS // 3 else 0.5
        longest = LARGEST_STEP * probe.radius
        step *= damping * np.minimum(1, longest / np.maximum(length, 1e-12))[:, None]
        places[go] += step
        done[go] = (length < np.maximum(DONE * errors[go], _STEP / 50)) | (
            _distance(places[go], first[go]) > FARTHEST * probe.radius
        )
    good = (_distance(places, first) <= FARTHEST * probe.radius) & done & np.isfinite(errors)
    good &= (significance > MIN_SIGNIFICANCE) & (errors < probe.radius)
    errors = np.hypot(errors, LEAST_ERROR)
    return Places(np.where(good[:, None], places, first), np.where(good, errors, np.inf))


def _distance(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.hypot(*(a - b).T)
    return found


def _windows(
    pattern: NDArray[Any], first: NDArray[Any], radius: float
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Pixels ``(n, p, 2)`` around each place, their values and their weights ``(n, p)``.

    A pixel that is nearer to another disk has no weight, nor has one beside the detector.
    """
    windows = disk_windows(first, radius + MARGIN, pattern.shape, square=False)
    at, value = windows.at, windows.values_of(pattern)
    inside = windows.inside & np.isfinite(value)
    value = np.where(inside, value, 0)
    # Counting noise: the variance is the expected value; its scale follows from the fit.
    smooth = uniform_filter(np.nan_to_num(np.maximum(pattern, 0)), 3, mode="nearest")
    expected = windows.values_of(smooth)
    floor = 0.1 * (expected * inside).sum(axis=1) / np.maximum(inside.sum(axis=1), 1)
    floor = np.where(floor > 0, floor, 1)  # where all is zero, any scale will do
    variance = np.maximum(expected, floor[:, None])
    gaps = np.hypot(*np.moveaxis(at[:, :, None] - first, 3, 0))  # (n, p, n)
    own = gaps[np.arange(len(first)), :, np.arange(len(first))]
    inside &= own <= gaps.min(axis=2)
    return at.astype(float), value, np.where(inside, 1 / np.sqrt(variance), 0)


def _step(
    at: NDArray[Any],
    value: NDArray[Any],
    weight: NDArray[Any],
    places: NDArray[Any],
    probe: Probe,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """One Gauss-Newton step ``(n, 2)``, covariances ``(n, 2, 2)`` and significances ``(n,)``."""
    x, y = np.moveaxis(at - places[:, None], 2, 0)
    shape = probe.at(x, y)
    slopes = [
        (probe.at(x + dx, y + dy) - probe.at(x - dx, y - dy)) / (2 * _STEP)
        for dx, dy in ((_STEP, 0), (0, _STEP))
    ]
    u, v = x / probe.radius, y / probe.radius
    background = [np.ones_like(x), u, v]
    surface = [np.ones_like(x), u, v, u * u, u * v, v * v]
    linear = np.stack([*background, *(shape * term for term in surface)], axis=2)
    linear *= weight[..., None]
    # Weak disks tell little about slopes and curvatures, so they are drawn to what is usual.
    flat = _solve(linear[..., : len(background) + 1], value * weight)[0]
    rest = value * weight - np.einsum("npk,nk->np", linear[..., : len(background) + 1], flat)
    count = (weight > 0).sum(axis=1)
    noise = (rest**2).sum(axis=1) / np.maximum(count - len(background) - 1, 1)
    brightness = np.maximum(flat[:, -1], 1e-6 * np.abs(flat).max(axis=1) + 1e-30)
    ridge = np.zeros((len(x), linear.shape[2] + 2))
    ridge[:, len(background) + 1 : -2] = (noise / (UNEVEN * brightness) ** 2)[:, None]
    coefficients = _solve(linear, value * weight, ridge[:, :-2])[0][:, len(background) :]
    light = np.einsum("nk,knp->np", coefficients, np.array(surface))
    moved = np.stack([-slope * light * weight for slope in slopes], axis=2)
    columns = np.concatenate([linear, moved], axis=2)
    solution, inverse = _solve(columns, value * weight, ridge)
    residual = value * weight - np.einsum("npk,nk->np", columns, solution)
    freedom = np.maximum(count - columns.shape[2], 1)
    noise = (residual**2).sum(axis=1) / freedom
    covariance = inverse * noise[:, None, None]
    # Light of the whole disk: the mean of u * u and of v * v over a disk is 1/4.
    whole = np.zeros(columns.shape[2])
    whole[len(background) : len(background) + 6] = (1, 0, 0, 0.25, 0, 0.25)
    error = np.sqrt(np.maximum(np.einsum("j,njk,k->n", whole, covariance, whole), 1e-300))
    return solution[:, -2:], covariance[:, -2:, -2:], solution @ whole / error


def _solve(
    columns: NDArray[Any], target: NDArray[Any], ridge: Any = 0.0
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Least squares of many small problems ``(n, p, k)``: solutions and inverse normal matrices.

    `ridge` ``(n, k)`` draws the solution to 0.
    """
    scale = np.sqrt(np.maximum((columns**2).sum(axis=1), 1e-60))
    scaled = columns / scale[:, None]
    normal = np.einsum("npj,npk->njk", scaled, scaled)
    index = np.arange(columns.shape[2])
    normal[:, index, index] += 1e-9 + ridge / scale**2
    inverse = np.linalg.inv(normal)
    solution = np.einsum("njk,npk,np->nj", inverse, scaled, target)
    return solution / scale, inverse / (scale[:, :, None] * scale[:, None])
