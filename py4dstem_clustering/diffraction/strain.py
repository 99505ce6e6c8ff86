"""Strain: compare Bragg peaks of each pattern with the unstrained lattice of its cluster.

Conventions for every strain of this package:

- Axes are those of the scan: x along Rx, y along Ry. The rotation in the calibration turns the axes
  of the detector into those of the scan.
- The reference is the crystal as it was given, in the orientation of the cluster.
- ``e_xx``, ``e_yy`` and ``e_xy`` (half of the shear angle) belong to real space. They are positive
  where the lattice is wider than the reference.
- ``theta`` is the rotation of the lattice against the orientation of the cluster, in radian. It is
  positive from y to x, as in py4DSTEM.
- Strains are finite, not of first order: the deformation is ``F = (I + e) R``, with the left
  stretch ``I + e`` and the rotation R.
- Errors are standard errors, from how far the disks of a pattern lie from their fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from ..base.checks import check_flag, check_integer, check_number
from ..base.progress import progress
from ..emd.settings import add_settings
from ..kernels.lattice_fit import fit_lattices
from ..patterns.mixture import Mixture
from .disk_places import ERROR
from .orientation import (
    at_positions,
    best_positions,
    calibrated_peaks,
    check_orientation,
    plan_options,
)
from .scores import AMBIGUOUS, NOT_INDEXED, SURE, has_scores

REASONS = (
    "defined", "unclustered", "too few peaks", "mixed", "low correlation", "ambiguous",
    "not indexed",
)  # fmt: skip
"""Meaning of the numbers 0 to 6 in the slice ``reason`` of a strain map.

Strain is defined for 0 and 5.
"""

SLICES = (
    "e_xx", "e_yy", "e_xy", "theta", "mask", "reason", "n_peaks",
    "error_xx", "error_yy", "error_xy", "error_theta",
)  # fmt: skip
"""Slices of a strain map; the first five are those of py4DSTEM."""

(
    _DEFINED, _UNCLUSTERED, _TOO_FEW_PEAKS, _MIXED, _LOW_CORRELATION, _AMBIGUOUS, _NOT_INDEXED,
) = range(len(REASONS))  # fmt: skip

_MIN_SPREAD_RATIO = 0.1
"""Smallest spread of matched peaks across a line, relative to their spread along the line.

A larger ratio refuses more patterns whose peaks lie nearly on one line. A smaller ratio accepts
strains that are uncertain across this line.
"""


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
    scan = labels
    if tuple(getattr(bragg, "shape", scan.shape)) == (n, 1) != scan.shape:  # averages
        labels = np.arange(n)[:, None]
        if mixture is not None:
            raise ValueError("mixture belongs to scan positions, not to averages; leave it out")
    peaks = calibrated_peaks(bragg, labels.shape)
    matrices, corr, verdict = _orientations_at(labels, scan, orientation)

    reason = np.full(labels.shape, _DEFINED)
    reason[(corr <= 0) | (corr < min_correlation)] = _LOW_CORRELATION
    reason[verdict == NOT_INDEXED] = _NOT_INDEXED
    if mixture is not None:
        if mixture.labels.shape[:2] != labels.shape:
            raise ValueError(
                f"mixture of a scan of {mixture.labels.shape[:2]} must have the shape of the "
                f"clusters, {labels.shape}"
            )
        reason[mixture.shares_at(labels) < min_purity] = _MIXED
    reason[labels < 0] = _UNCLUSTERED

    with progress(len(labels), "Matching disks", progress_bar) as report:
        matched, n_peaks = _match_all(
            crystal, _known(peaks), matrices, reason, max_distance, sigma, report
        )
    for position, (_, reference) in list(matched.items()):
        if len(reference) < min_num_peaks or _on_a_line(reference):
            reason[position] = _TOO_FEW_PEAKS
            del matched[position]
    data = np.full((len(SLICES), *labels.shape), np.nan)
    if matched:
        x, y = np.transpose(list(matched))
        pixel = float(bragg.calibration.get_Q_pixel_size())
        data[:4, x, y], data[7:, x, y] = _fit(list(matched.values()), pixel, robust)
    data[4] = reason == _DEFINED
    # An ambiguous lattice shares its disks with the other one, so strain is the same for both.
    reason[(reason == _DEFINED) & (verdict == AMBIGUOUS)] = _AMBIGUOUS
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


def _orientations_at(
    labels: NDArray[Any], scan: NDArray[Any], orientation: Any
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Best matrix, correlation and verdict at each of `labels`, from a map of clusters or scan.

    `scan` holds the labels of the scan; `labels` is the same, or holds the labels of the averages,
    (N, 1). Values at label -1 have no meaning. Maps without verdicts count as sure.
    """
    n = int(scan.max()) + 1
    which = check_orientation(
        orientation, {"each cluster": (n, 1), "each scan position": scan.shape}
    )
    matrices, corr = orientation.matrix[:, :, 0], np.nan_to_num(orientation.corr[:, :, 0])
    verdict = orientation.verdict if has_scores(orientation) else np.full(corr.shape, SURE)
    if which == "each cluster" and labels.shape != (n, 1):
        return matrices[labels, 0], corr[labels, 0], verdict[labels, 0]
    if which == "each scan position" and labels is not scan:
        best = best_positions(scan, orientation)[:, None]
        return (
            at_positions(matrices, best),
            at_positions(corr, best),
            at_positions(verdict, best, NOT_INDEXED if has_scores(orientation) else SURE),
        )
    return matrices, corr, verdict


def _known(peaks: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """The peaks whose place is known: all, or those that `refine_disks` could fit."""
    return [
        found[np.isfinite(found[ERROR])] if ERROR in (found.dtype.names or ()) else found
        for found in peaks
    ]


_Matched = tuple[NDArray[Any], NDArray[Any]]
"""Peaks of a pattern, and the reflection of each peak, ``(n, 2)``; see `match_peaks`."""


def _match_all(
    crystal: Any,
    peaks: list[NDArray[Any]],
    matrices: NDArray[Any],
    reason: NDArray[np.int64],
    max_distance: float,
    sigma: float,
    report: Callable[[int], Any],
) -> tuple[dict[tuple[int, ...], _Matched], NDArray[np.int64]]:
    """Matched peaks of each position without a reason against it, and their number ``(Rx, Ry)``."""
    matched = {}
    n_peaks = np.zeros(reason.shape, dtype=int)
    references: dict[bytes, NDArray[Any]] = {}  # positions of a cluster share a matrix
    row = 0
    for position in map(tuple, np.argwhere(reason == _DEFINED)):
        report(position[0] - row)
        row = position[0]
        matrix = matrices[position]
        key = matrix.tobytes()
        if key not in references:
            references[key] = reference_peaks(crystal, matrix, sigma)
        found = peaks[np.ravel_multi_index(position, reason.shape)]
        matched[position] = match_peaks(found, references[key], max_distance)
        n_peaks[position] = len(matched[position][0])
    report(len(reason) - row)
    return matched, n_peaks


def _on_a_line(places: NDArray[Any]) -> bool:
    """Whether places ``(n, 2)``, two or more, lie nearly on one line through the origin."""
    along, across = np.linalg.svd(places, compute_uv=False)
    return bool(across < _MIN_SPREAD_RATIO * along)


def reference_peaks(crystal: Any, matrix: NDArray[Any], sigma: float) -> NDArray[Any]:
    """Bragg peaks (n, 2) of the lattice without strain, without the direct beam."""
    peaks = crystal.generate_diffraction_pattern(
        orientation_matrix=matrix, sigma_excitation_error=sigma
    ).data
    peaks = np.stack([peaks["qx"], peaks["qy"]], axis=1)
    return peaks[np.hypot(*peaks.T) > 1e-6]


def match_peaks(
    peaks: NDArray[Any], reference: NDArray[Any], max_distance: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pairs of a peak and a reference peak ``(n, 2)``; each is the nearest to the other.

    `peaks` have fields "qx" and "qy", `reference` is ``(m, 2)``, all in 1/Angstrom. Peaks that are
    nearer to the direct beam than to a reference peak are taken for the direct beam.
    """
    places = np.stack([peaks["qx"], peaks["qy"]], axis=1)
    if len(places) == 0 or len(reference) == 0:
        return peaks[:0], reference[:0]
    distance = cdist(places, reference)
    nearest = distance.argmin(axis=1)
    shortest = distance[np.arange(len(places)), nearest]
    mutual = distance.argmin(axis=0)[nearest] == np.arange(len(places))
    take = mutual & (shortest <= max_distance) & (shortest < np.hypot(*places.T))
    return peaks[take], reference[nearest[take]]


def _fit(
    matched: list[_Matched], pixel: float, robust: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``e_xx, e_yy, e_xy, theta`` (4, n) and their standard errors (4, n).

    `pixel` is the pixel size of the detector, 1/Angstrom. ``crystal.calculate_strain`` of py4DSTEM
    0.14.18 is not used: its strain is of first order, its robust weights have no effect if the
    lattice is turned by a degree, and it has no errors.
    """
    longest = max(len(reference) for _, reference in matched)
    found, expected = np.zeros((2, len(matched), longest, 2))
    error = np.zeros((len(matched), longest))
    used = np.zeros((len(matched), longest), dtype=bool)
    for k, (peaks, reference) in enumerate(matched):
        part = (k, slice(len(reference)))
        found[part] = np.stack([peaks["qx"], peaks["qy"]], axis=1)
        expected[part] = reference
        used[part] = True
        if ERROR in (peaks.dtype.names or ()):
            error[part] = pixel * peaks[ERROR]
    m, errors = fit_lattices(found, expected, error, used, robust)
    # The fit was q = m q_ref in reciprocal space; the deformation of real space is F = m^-T.
    deformation = np.linalg.inv(m).transpose(0, 2, 1)
    u, stretch, v = np.linalg.svd(deformation)
    left = (u * stretch[:, None]) @ u.transpose(0, 2, 1)
    turn = u @ v
    strain = np.array(
        [
            left[:, 0, 0] - 1,
            left[:, 1, 1] - 1,
            left[:, 0, 1],
            np.arctan2(turn[:, 0, 1], turn[:, 0, 0]),
        ]
    )
    return strain, errors.T
