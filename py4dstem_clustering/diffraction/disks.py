"""Bragg disks gained: how many, and how far out, in averages against single patterns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

BEAM = 0.1
"""Farthest from the origin that the direct beam is looked for, 1/Angstrom."""


@dataclass(frozen=True, eq=False, repr=False)
class GainedDisks(Frozen):
    """Disks in the averages and in the single patterns; from ``clusters.gained_disks()``.

    Attributes
    ----------
    average : tuple of ndarray
        Scattering vectors, 1/Angstrom, of the disks in the average of each cluster. None for a
        cluster without an orientation, where disks cannot be told from noise.
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
            ``pandas.DataFrame(gained.table())`` takes it. ``label``; ``n_average``, number of disks
            in the average; ``n_single``, median over the members; ``q_average``, the largest
            scattering vector of a disk, 1/Angstrom, NaN without any; ``q_single``, its median over
            the members, where one without disks counts as 0; NaN if that is the median. All NaN for
            a cluster without an orientation.
        """
        table = np.zeros(len(self.average), dtype=GAINED)
        table["label"] = np.arange(len(table))
        for field in GAINED.names[1:]:
            table[field] = np.nan
        for row, average, single in zip(table, self.average, self.single, strict=True):
            if average is None:
                continue
            row["n_average"] = len(average)
            row["n_single"] = np.median([len(q) for q in single])
            row["q_average"] = average.max(initial=0)
            row["q_single"] = np.median([q.max(initial=0) for q in single])
            for field in ("q_average", "q_single"):
                row[field] = row[field] or np.nan
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
    lattices: list[NDArray[Any] | None] = [None] * n
    if crystal is None:
        max_distance = BEAM if max_distance is None else max_distance
        max_distance = check_number("max_distance", max_distance, 0)
    else:
        max_distance, sigma = plan_options(crystal, max_distance)
        matrices = cluster_orientations(labels, orientation)
    averages = calibrated_peaks(bragg_averages, (n, 1))
    scan = calibrated_peaks(bragg_scan, labels.shape)
    if crystal is not None:
        for label in np.flatnonzero(matrices.any(axis=(1, 2))):
            lattices[label] = reference_peaks(crystal, matrices[label], sigma)
    average: list[NDArray[Any] | None] = []
    single: list[tuple[NDArray[Any], ...] | None] = []
    for label, lattice in enumerate(lattices):
        if crystal is not None and lattice is None:
            average.append(None)
            single.append(None)
            continue
        average.append(_lengths(averages[label], lattice, max_distance))
        members = np.flatnonzero(labels == label)
        single.append(tuple(_lengths(scan[k], lattice, max_distance) for k in members))
    return GainedDisks(tuple(average), tuple(single))


def _lengths(
    peaks: NDArray[Any], lattice: NDArray[Any] | None, max_distance: float
) -> NDArray[Any]:
    """Scattering vectors of the disks that count: on the lattice, or all but the direct beam."""
    if lattice is not None:
        peaks, _ = match_peaks(peaks, lattice, max_distance)
        return np.hypot(peaks["qx"], peaks["qy"])
    length = np.hypot(peaks["qx"], peaks["qy"])
    if len(length) and length.min() <= max_distance:
        length = np.delete(length, length.argmin())
    return length
