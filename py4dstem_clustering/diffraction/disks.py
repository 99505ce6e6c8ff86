"""Compare averages with single patterns: how many Bragg disks they have, and how far out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import value_indices

from ..base.checks import check_number
from ..base.frozen import Frozen
from .orientation import calibrated_peaks, cluster_orientations, plan_options
from .strain import match_peaks, reference_peaks

GAINED = np.dtype(
    [
        ("label", np.int32),
        ("n_average", np.float64),
        ("n_single", np.float64),
        ("q_average", np.float64),
        ("q_single", np.float64),
    ]
)
"""Fields of `GainedDisks.table`."""

MAX_BEAM_DISTANCE = 0.1
"""Largest distance of the direct beam from the origin, 1/Angstrom; used without a crystal.

A larger distance allows a less exact origin, but a disk may be taken for the beam.
"""


@dataclass(frozen=True, eq=False, repr=False)
class GainedDisks(Frozen):
    """Disks in the averages and in the single patterns; from ``clusters.gained_disks()``.

    Attributes
    ----------
    average : tuple of ndarray
        Lengths of the scattering vectors, 1/Angstrom, of the disks in the average of each cluster.
        None for a cluster without an orientation, because disks and noise then look alike.
    single : tuple of tuple of ndarray
        The same for each member of each cluster, row by row.
    """

    average: tuple[NDArray[Any] | None, ...]
    single: tuple[tuple[NDArray[Any], ...] | None, ...]

    def table(self) -> NDArray[Any]:
        """Number of disks and how far out they are, for each cluster.

        Returns
        -------
        structured ndarray, (N,)
            For pandas: ``pandas.DataFrame(gained.table())``. Fields:

            ``label``;
            ``n_average``, number of disks in the average of the cluster;
            ``n_single``, number of disks in single patterns, the median over the members;
            ``q_average``, the largest scattering vector of a disk in the average, 1/Angstrom, NaN
            without disks;
            ``q_single``, the same in single patterns, the median over the members. A member without
            disks counts as 0, and a median of 0 is given as NaN.

            All but the label are NaN for a cluster without an orientation.
        """
        table = np.zeros(len(self.average), dtype=GAINED)
        rows = zip(self.average, self.single, strict=True)
        for label, (average, single) in enumerate(rows):
            if average is None or single is None:
                table[label] = (label, *[np.nan] * 4)
                continue
            farthest = average.max(initial=0)
            farthest_single = np.median([q.max(initial=0) for q in single])
            table[label] = (
                label,
                len(average),
                np.median([len(q) for q in single]),
                farthest or np.nan,
                farthest_single or np.nan,
            )
        return table

    def __repr__(self) -> str:
        table = self.table()
        table = table[np.isfinite(table["n_average"])]
        n, known = len(self.average), len(table)
        text = f"{n} cluster{'s' * (n != 1)}"
        if known < n:
            text += f", {n - known} without orientation"
        if known:
            text += "; medians: " + ", ".join(
                f"{np.median(table[f'n_{key}']):g} disks in {name}"
                for key, name in (("average", "averages"), ("single", "single patterns"))
            )
        return f"GainedDisks({text})"

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Draw disks over scattering vector; see `py4dstem_clustering.plot_disks`."""
        from ..plotting.results import plot_disks

        return plot_disks(self, ax, **options)


def gained_disks(
    labels: NDArray[Any],
    bragg_averages: Any,
    bragg_scan: Any,
    *,
    crystal: Any,
    orientation: Any,
    max_distance: float | None,
) -> GainedDisks:
    """Core of `Clusters.gained_disks`."""
    n = int(labels.max(initial=-1)) + 1
    if n == 0:
        raise ValueError("there are no clusters, so no averages to compare with single patterns")
    if (crystal is None) != (orientation is None):
        given, missing = "crystal", "orientation"
        if crystal is None:
            given, missing = missing, given
        raise ValueError(
            f"{given} without {missing} does not say where reflections are; give both, or neither"
        )
    if crystal is None:
        max_distance = MAX_BEAM_DISTANCE if max_distance is None else max_distance
        max_distance = check_number("max_distance", max_distance, 0)
    else:
        max_distance, sigma = plan_options(crystal, max_distance)
        matrices = cluster_orientations(labels, orientation)
    averages = calibrated_peaks(bragg_averages, (n, 1))
    scan = calibrated_peaks(bragg_scan, labels.shape)
    members = value_indices(labels, ignore_value=-1)
    average: list[NDArray[Any] | None] = []
    single: list[tuple[NDArray[Any], ...] | None] = []
    for label in range(n):
        reflections = None
        if crystal is not None:
            if not matrices[label].any():
                average.append(None)
                single.append(None)
                continue
            reflections = reference_peaks(crystal, matrices[label], sigma)
        average.append(_scattering_vectors(averages[label], reflections, max_distance))
        single.append(
            tuple(
                _scattering_vectors(scan[k], reflections, max_distance)
                for k in np.ravel_multi_index(members[label], labels.shape)
            )
        )
    return GainedDisks(tuple(average), tuple(single))


def _scattering_vectors(
    peaks: NDArray[Any], reflections: NDArray[Any] | None, max_distance: float
) -> NDArray[Any]:
    """Lengths of the scattering vectors of the disks that count, 1/Angstrom.

    With `reflections`, disks near one of them count; without, all disks but the direct beam count.
    """
    if reflections is not None:
        peaks, _ = match_peaks(peaks, reflections, max_distance)
        return np.hypot(peaks["qx"], peaks["qy"])
    length = np.hypot(peaks["qx"], peaks["qy"])
    if len(length) and length.min() <= max_distance:
        length = np.delete(length, length.argmin())
    return length
