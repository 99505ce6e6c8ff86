"""Fit the deformation of lattices to the places of their disks, with standard errors.

Where a crystal is bent inside a cluster, each reflection is lit at another place of the bend. A
turn about the beam then moves its disk along the circle around the direct beam, but never along the
radius. So places along the radius and along the circle have scatters of their own, which the
residuals tell: disks of bent crystals count by their radius only, and disks of flat crystals by
both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

N_FITS = 15
"""Number of fits; each takes its weights from the one before. More fits change little."""

OUTLIER_DISTANCE = 3.0
"""Distance from the fit at which a disk has a weight of 61 %, in units of the median distance.

A larger value gives outliers more weight.
"""

COMMON = 2.0
"""How much the mean scatter of all lattices counts in that of each one, in degrees of freedom.

A larger value makes standard errors of a few disks steadier, and more alike.
"""

_MIN_WEIGHT = 1e-6
"""Smallest weight of a disk: an outlier may be the only disk off a line."""

_MIN_VARIANCE = 1e-24
"""Smallest variance of a place, 1/Angstrom^2: exact places must not have an infinite weight."""

_AT_A_TIME = 2**14
"""Lattices that are fitted together; more take more memory."""


class Deformations(NamedTuple):
    """Fits of ``q = m q_ref`` in reciprocal space."""

    m: NDArray[np.float64]
    """``(P, 2, 2)``."""
    errors: NDArray[np.float64]
    """Standard errors ``(P, 4)`` of ``e_xx, e_yy, e_xy, theta``; NaN if the number of disks is no
    larger than that of the parameters."""


def usual_deformation(
    found: NDArray[Any], reference: NDArray[Any], error: float, usual: float
) -> NDArray[np.float64]:
    """Fit ``q = m q_ref`` to a few disks, both ``(n, 2)``, drawn to no deformation: m ``(2, 2)``.

    `error` is the error of a place, 1/Angstrom, and `usual` the standard deviation of the strains
    that are expected before anything is measured.
    """
    prior = (error / usual) ** 2 * np.eye(2)
    m: NDArray[np.float64] = np.linalg.solve(
        reference.T @ reference + prior, reference.T @ found + prior
    ).T
    return m


def fit_lattices(
    found: NDArray[Any],
    reference: NDArray[Any],
    error: NDArray[Any],
    used: NDArray[Any],
    robust: bool,
) -> Deformations:
    """Fit the places `found` of disks to their reflections `reference`, both ``(P, n, 2)``.

    Parameters
    ----------
    found, reference : ndarray, (P, n, 2)
        Places of P lattices, 1/Angstrom.
    error : ndarray, (P, n)
        Standard errors of the places, 1/Angstrom; 0 where they are not known.
    used : ndarray, (P, n), bool
        Which of the places exist.
    robust : bool
        Give outliers less weight, and measure both scatters. Without, all disks have the same.
    """
    if len(found) > _AT_A_TIME:
        pieces = [slice(k, k + _AT_A_TIME) for k in range(0, len(found), _AT_A_TIME)]
        parts = [fit_lattices(found[k], reference[k], error[k], used[k], robust) for k in pieces]
        return Deformations(*(np.concatenate(each) for each in zip(*parts, strict=True)))
    length = np.maximum(np.linalg.norm(reference, axis=2), 1e-12)
    along = reference / length[..., None]
    across = np.stack([-along[..., 1], along[..., 0]], axis=2)
    # How a place along the radius, and across it, depends on m_xx, m_xy, m_yx and m_yy.
    slopes = np.stack(
        [(axis[..., :, None] * reference[..., None, :]).reshape(*used.shape, 4)
         for axis in (along, across)], axis=2,
    )  # fmt: skip
    target = np.stack([(found * axis).sum(axis=2) for axis in (along, across)], axis=2)
    own = error**2 if robust else np.zeros_like(error)
    weight = used.astype(float)
    variance, square = np.ones_like(target), np.zeros_like(target)
    for step in range(N_FITS if robust else 1):
        if step > 0:
            weight = used * _outlier_weights((square / variance).sum(axis=2), used)
        m, inverse = _solve(slopes, target, weight[..., None] / variance)
        square = (target - _apply(slopes, m)) ** 2
        radial, turn, freedom = _scatters(
            square, slopes, inverse, weight, variance, own, length, used
        )
        if robust:
            both = own + radial[:, None]
            variance = np.stack([both, both + turn[:, None] * length**2], axis=2)
            variance = np.maximum(variance, _MIN_VARIANCE)
    if robust:
        inverse = _solve(slopes, target, weight[..., None] / variance)[1]
    else:
        inverse = inverse * radial[:, None, None]
    # e_xx, e_yy, e_xy and theta to first order of m_xx, m_xy, m_yx, m_yy.
    to_strain = np.array([[-1, 0, 0, 0], [0, 0, 0, -1], [0, -0.5, -0.5, 0], [0, 0.5, -0.5, 0]])
    spread = np.einsum("ij,pjk,ik->pi", to_strain, inverse, to_strain)
    # With few degrees of freedom 68 % lie within a little more than one standard deviation.
    enough = freedom > 0.5
    wider = np.where(enough, stdtrit(np.where(enough, freedom, 1), 0.8413447), np.nan)
    errors = np.sqrt(np.maximum(spread, 0)) * wider[:, None]
    return Deformations(m.reshape(-1, 2, 2), errors)


def _apply(slopes: NDArray[Any], m: NDArray[Any]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.einsum("pnaj,pj->pna", slopes, m)
    return found


def _solve(
    slopes: NDArray[Any], target: NDArray[Any], weight: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weighted least squares: ``m`` ``(P, 4)`` and its covariance ``(P, 4, 4)``."""
    # Weights are scaled, so that inverses are exact for every size of the variances.
    size = np.maximum(weight.max(axis=(1, 2)), 1e-300)
    weight = weight / size[:, None, None]
    weighted = slopes * weight[..., None]
    inverse = np.linalg.pinv(np.einsum("pnaj,pnak->pjk", weighted, slopes), hermitian=True)
    # From the undeformed lattice, so that small numbers are exact.
    start = np.array([1.0, 0, 0, 1])
    rest = target - slopes @ start
    m = start + np.einsum("pjk,pnak,pna->pj", inverse, weighted, rest)
    return m, inverse / size[:, None, None]


def _outlier_weights(distance: NDArray[Any], used: NDArray[Any]) -> NDArray[np.float64]:
    """Weights of disks with these squared distances ``(P, n)`` from the fit."""
    median = np.nanmedian(np.where(used, distance, np.nan), axis=1)[:, None]
    weight = np.exp(-distance / (2 * OUTLIER_DISTANCE**2 * np.maximum(median, 1e-300)))
    return np.where(median > 0, np.maximum(weight, _MIN_WEIGHT), 1)


_KEPT = 1 / (1 + 1 / (OUTLIER_DISTANCE**2 * 2 * np.log(2)))
"""Share of the variance that outlier weights leave in places without outliers."""


def _scatters(
    square: NDArray[Any],
    slopes: NDArray[Any],
    inverse: NDArray[Any],
    weight: NDArray[Any],
    variance: NDArray[Any],
    own: NDArray[Any],
    length: NDArray[Any],
    used: NDArray[Any],
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Variances of places beyond their own errors: along the radius, and of turns, radian^2.

    The third result is the number of degrees of freedom of the first. `square` are the squares of
    residuals ``(P, n, 2)``. Each is made larger by what the fit took from it.
    """
    leverage = np.einsum("pnaj,pjk,pnak->pna", slopes, inverse, slopes)
    leverage *= weight[..., None] / variance
    free = np.clip(1 - leverage, 0.02, 1) * used[..., None]
    square = square / np.maximum(free, 0.02) / _KEPT
    count = weight[..., None] * free
    freedom = count.sum(axis=(1, 2)) / 2
    along = count[..., 0] / variance[..., 0] ** 2
    radial = _pooled(along, square[..., 0] - own, freedom)
    both = own + radial[:, None]
    across = count[..., 1] * length**4 / variance[..., 1] ** 2
    turn = _pooled(across, (square[..., 1] - both) / length**2, count[..., 1].sum(axis=1))
    return radial, turn, freedom + COMMON * (len(square) > 1)


def _pooled(weight: NDArray[Any], values: NDArray[Any], freedom: NDArray[Any]) -> NDArray[Any]:
    """Weighted means ``(P,)`` of `values`, not below 0, drawn to what is common to all."""
    single = (weight * values).sum(axis=1) / np.maximum(weight.sum(axis=1), 1e-300)
    single = np.maximum(single, 0)
    usual = single <= 4 * np.median(single)
    common = np.average(single[usual], weights=np.maximum(freedom[usual], 1e-6))
    if len(single) == 1:
        return single
    return (freedom * single + COMMON * common) / (freedom + COMMON)
