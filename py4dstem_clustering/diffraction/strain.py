"""Strain: Bragg peaks of each pattern against the lattice that its cluster has without strain.

Conventions, for every strain of this package. Axes are those of the scan: x along Rx, y along Ry;
`rotate` in the calibration turns the detector's into them. The reference is the crystal as it was
given, in the orientation of the cluster. ``e_xx``, ``e_yy`` and ``e_xy`` (half of the shear angle)
are positive where the lattice is wider than that, in real space. ``theta`` is in radian, the
rotation of the lattice against the orientation of the cluster, from y to x positive, which is the
sign of py4DSTEM. Deformations are finite: the left stretch and the rotation of ``F = (I + e) R``.
"""

from __future__ import annotations

from typing import Any

import emdfile
import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_flag, check_integer, check_number
from ..emd.settings import add_settings
from ..patterns.mixture import Mixture
from .orientation import calibrated_peaks, check_orientation, cluster_orientations, plan_options

REASONS = ("defined", "unclustered", "too few peaks", "mixed", "low correlation")
"""What the numbers in the slice ``reason`` of a strain map mean."""

SLICES = ("e_xx", "e_yy", "e_xy", "theta", "mask", "reason", "n_peaks")
"""Slices of a strain map; the first five are those of py4DSTEM."""

_FLAT = 0.1
"""Least spread of matched peaks across the direction of their largest one, relative to that."""


class _Peaks:
    """Calibrated peaks as crystal.calculate_strain asks for them, (n, 1)."""

    def __init__(self, peaks: list[NDArray[Any]]):
        self.peaks = peaks
        self.shape = (len(peaks), 1)
        self.calstate = {"ellipse": True, "rotate": True}  # done; False would only warn

    def get_vectors(self, scan_x: int, scan_y: int, **_: bool) -> emdfile.PointList:
        return emdfile.PointList(self.peaks[scan_x])


def calculate_strain(
    labels: NDArray[Any],
    crystal: Any,
    bragg: Any,
    orientation: Any,
    *,
    min_num_peaks: int,
    max_distance: float | None,
    sigma_excitation_error: float | None,
    min_correlation: float,
    mixture: Mixture | None,
    min_purity: float,
    robust: bool,
    progress_bar: bool,
) -> Any:
    """Core of `Clusters.calculate_strain`."""
    from py4DSTEM import RealSlice

    min_num_peaks = check_integer("min_num_peaks", min_num_peaks, 3)
    min_correlation = check_number("min_correlation", min_correlation, 0)
    min_purity = check_number("min_purity", min_purity, 0, 1)
    robust = check_flag("robust", robust)
    progress_bar = check_flag("progress_bar", progress_bar)
    max_distance, sigma = plan_options(crystal, max_distance, sigma_excitation_error)
    n = int(labels.max(initial=-1)) + 1
    if n == 0:
        raise ValueError("there are no clusters, so no lattice to measure strain against")
    if mixture is not None and not isinstance(mixture, Mixture):
        raise TypeError(
            f"mixture must be a Mixture from clusters.get_mixture(), not {type(mixture).__name__}"
        )
    shape, scan = tuple(getattr(bragg, "shape", labels.shape)), labels
    if shape == (n, 1) != labels.shape:  # averages
        labels = np.arange(n)[:, None]
        if mixture is not None:
            raise ValueError("mixture belongs to scan positions, not to averages; leave it out")
    peaks = calibrated_peaks(bragg, labels.shape)
    which = check_orientation(
        orientation, {"each cluster": (n, 1), "each scan position": scan.shape}
    )
    matrices, corr = orientation.matrix[:, :, 0], np.nan_to_num(orientation.corr[:, :, 0])
    if which == "each cluster" and labels.shape != (n, 1):
        matrices, corr = matrices[labels, 0], corr[labels, 0]  # of label -1 nobody asks
    elif which == "each scan position" and labels is not scan:
        matrices, best = cluster_orientations(scan, orientation)[:, None], np.zeros(n)
        np.maximum.at(best, scan[scan >= 0], corr[scan >= 0])
        corr = best[:, None] * matrices.any(axis=(2, 3))

    reason = np.full(labels.shape, REASONS.index("defined"))
    reason[(corr <= 0) | (corr < min_correlation)] = REASONS.index("low correlation")
    if mixture is not None:
        if mixture.labels.shape[:2] != labels.shape:
            raise ValueError(
                f"mixture of a scan of {mixture.labels.shape[:2]} must have the shape of the "
                f"clusters, {labels.shape}"
            )
        reason[mixture.shares_at(labels) < min_purity] = REASONS.index("mixed")
    reason[labels < 0] = REASONS.index("unclustered")

    n_peaks = np.zeros(labels.shape, dtype=int)
    matched: list[tuple[NDArray[Any], NDArray[Any]]] = []
    places = []
    known: dict[bytes, NDArray[Any]] = {}
    for place in map(tuple, np.argwhere(reason == REASONS.index("defined"))):
        matrix = matrices[place]
        key = matrix.tobytes()  # a cluster has one
        if key not in known:
            known[key] = reference_peaks(crystal, matrix, sigma)
        found = peaks[np.ravel_multi_index(place, labels.shape)]
        found, reference = match_peaks(found, known[key], max_distance)
        n_peaks[place] = len(found)
        spread = np.linalg.svd(reference, compute_uv=False) if len(found) else np.zeros(2)
        if len(found) < min_num_peaks or spread[-1] < _FLAT * spread[0]:
            reason[place] = REASONS.index("too few peaks")
        else:
            matched.append((found, reference))
            places.append(place)

    data = np.full((len(SLICES), *labels.shape), np.nan)
    if places:
        index = tuple(np.transpose(places))
        data[(slice(0, 4), *index)] = _fit(
            crystal, matched, matrices[index], max_distance, sigma, robust, progress_bar
        )
    data[4] = reason == REASONS.index("defined")
    data[5], data[6] = reason, n_peaks
    strain = RealSlice(data=data, slicelabels=list(SLICES), name="strain")
    settings = {
        "min_num_peaks": min_num_peaks,
        "max_distance": max_distance,
        "sigma_excitation_error": sigma,
        "min_correlation": min_correlation,
        "min_purity": None if mixture is None else min_purity,
        "robust": robust,
        "reasons": REASONS,
    }
    add_settings(strain, settings)
    return strain


def reference_peaks(crystal: Any, matrix: NDArray[Any], sigma: float) -> NDArray[Any]:
    """Bragg peaks (n, 2) of the lattice without strain, the direct beam left out."""
    peaks = crystal.generate_diffraction_pattern(
        orientation_matrix=matrix, sigma_excitation_error=sigma
    ).data
    peaks = np.stack([peaks["qx"], peaks["qy"]], axis=1)
    return peaks[np.hypot(*peaks.T) > 1e-6]


def match_peaks(
    peaks: NDArray[Any], reference: NDArray[Any], max_distance: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Peaks near to one of the reference, the nearest to each; and those of the reference."""
    places = np.stack([peaks["qx"], peaks["qy"]], axis=1)
    if len(places) == 0 or len(reference) == 0:
        return peaks[:0], reference[:0]
    distance = np.hypot(*np.moveaxis(places[:, None] - reference, 2, 0))
    # What lies nearer to the direct beam than to any reflection is the direct beam.
    nearest = distance.argmin(axis=1)
    shortest = distance[np.arange(len(places)), nearest]
    mutual = distance.argmin(axis=0)[nearest] == np.arange(len(places))
    take = mutual & (shortest <= max_distance) & (shortest < np.hypot(*places.T))
    return peaks[take], reference[nearest[take]]


def _fit(
    crystal: Any,
    matched: list[tuple[NDArray[Any], NDArray[Any]]],
    matrices: NDArray[Any],
    max_distance: float,
    sigma: float,
    robust: bool,
    progress_bar: bool,
) -> NDArray[Any]:
    """``e_xx, e_yy, e_xy, theta`` (4, n) by crystal.calculate_strain.

    Works around what that does in py4DSTEM 0.14.18: it changes the correlation of the map it is
    given; counts peaks instead of matched ones, and returns 0 or 1 where they are too few; adds
    Euler angles to theta; is of first order, 0.04 % short at a strain of 2 %; and takes its robust
    weights from the transposed fit, so that they do nothing where the lattice is turned by a
    degree, and fail where a fit is exact.
    """
    from py4DSTEM.process.diffraction.utils import OrientationMap

    own = OrientationMap(len(matched), 1, 1)
    own.matrix[:, 0, 0] = matrices  # all angles are 0
    first_order = crystal.calculate_strain(
        _Peaks([found for found, _ in matched]),
        own,
        corr_kernel_size=max_distance,
        sigma_excitation_error=sigma,
        min_num_peaks=1,
        robust=False,
        mask_from_corr=False,
        progress_bar=progress_bar,
    ).data[:4, :, 0]
    xx, yy, xy, theta = first_order
    # What was fitted, q = m q_ref, and the deformation F = m^-T that it means.
    m = np.moveaxis(np.array([[1 - xx, theta - xy], [-theta - xy, 1 - yy]]), 2, 0)
    if robust:
        m = np.array([_robust(*pair) for pair in zip(m, matched, strict=True)])
    deformation = np.linalg.inv(m).transpose(0, 2, 1)
    u, stretch, v = np.linalg.svd(deformation)
    left = (u * stretch[:, None]) @ u.transpose(0, 2, 1)
    turn = u @ v
    return np.array(
        [
            left[:, 0, 0] - 1,
            left[:, 1, 1] - 1,
            left[:, 0, 1],
            np.arctan2(turn[:, 0, 1], turn[:, 0, 0]),
        ]
    )


def _robust(m: NDArray[Any], matched: tuple[NDArray[Any], NDArray[Any]]) -> NDArray[Any]:
    """A fit ``q = m q_ref`` once more, with the weights that py4DSTEM means."""
    found, reference = matched
    found = np.stack([found["qx"], found["qy"]], axis=1)
    for _ in range(5):
        squared = ((found - reference @ m.T) ** 2).sum(axis=1)
        usual = np.median(squared)
        if usual == 0:  # exact
            break
        # Never nothing: an outlier may be all that lies off a line.
        weight = np.maximum(np.exp(-squared / (2 * 3**2 * usual)), 1e-6)[:, None]
        m = np.linalg.lstsq(reference * weight, found * weight, rcond=None)[0].T
    return m
