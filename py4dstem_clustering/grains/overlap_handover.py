"""Methods of grains that overlap for the analysis of diffraction: disks, orientations, strain."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_number
from ..diffraction.disk_options import DiskOptions, propose_disk_options
from ..diffraction.orientation import check_orientation
from ..patterns.mixture import Mixture
from ..scan.datacubes import marks_of
from .clusters import Clusters
from .handover import measured

RULE_ERRORS = 2.0
"""Standard errors by which the share of a grain must exceed the limit for it to rule a position. A
larger value leaves out more positions where electrons are few."""


class OverlapHandOver:
    """Methods of `OverlappingGrains` that take or make results of py4DSTEM."""

    clusters: Clusters
    supports: NDArray[np.bool_]
    shares: NDArray[np.float32]
    share_error: NDArray[np.float32]

    def propose_disk_options(
        self, pure: Any, template: NDArray[Any], *, significance: float = 4.0
    ) -> DiskOptions:
        """Options for finding Bragg disks in pure patterns, as `Clusters.propose_disk_options`.

        The noise of each pure pattern counts: that of a mean, and more for a grain that is never
        alone, whose pattern is a difference.

        Parameters
        ----------
        pure : DataCube, (N, 1, Qx, Qy)
            From `get_pure_patterns`.
        template : ndarray, (Qx, Qy)
            ``probe.kernel``, after ``probe.get_kernel(...)`` with any mode.
        significance : float
            Standard deviations of the noise by which a disk must stand out. A smaller value finds
            more weak disks and more false ones.

        Returns
        -------
        DiskOptions
            ``find(pure)`` finds the disks.

        Raises
        ------
        ValueError, TypeError
            If pure patterns or template have another shape, or the template is not a kernel.
        """
        known = self.clusters.settings
        return propose_disk_options(
            self.n_averaged,
            pure,
            template,
            gain=measured(known.get("gain"), 1.0),
            offset=measured(known.get("offset"), 0.0),
            significance=significance,
        )

    @property
    def n_averaged(self) -> NDArray[np.float64]:
        """Number of patterns, (N,), whose mean has the noise of each pure pattern.

        This is the number of patterns averaged, and less where a pure pattern is a difference.
        """
        labels = self._purest()
        n = self.clusters.n_clusters
        count = np.bincount(labels[labels >= 0], minlength=n).astype(float)
        for k in np.flatnonzero(self.never_alone).tolist():
            own = self.shares[labels == k][:, k].mean(dtype=np.float64) if count[k] else 0.0
            count[k] *= own**2
        return np.maximum(count, 1e-3)

    def _purest(self) -> NDArray[np.int64]:
        raise NotImplementedError

    @property
    def never_alone(self) -> NDArray[np.bool_]:
        """Grains (N,) that are nowhere alone."""
        raise NotImplementedError

    def expand_orientation_map(self, per_grain: Any) -> Any:
        """Make an orientation map of the scan in which each position has all of its grains.

        Parameters
        ----------
        per_grain : py4DSTEM.process.diffraction.OrientationMap, (N, 1)
            From ``crystal.match_orientations`` of the Bragg disks of the pure patterns, or from
            `refine_orientations`.

        Returns
        -------
        OrientationMap, (Rx, Ry)
            The matches of a position are the orientations of its grains, the one with the largest
            share first: ``matrix[x, y, 1]`` is that of the second grain. It has as many matches as
            grains lie above one another at most; where fewer lie, the others have the correlation 0
            and the identity as orientation. ``map.grain``, (Rx, Ry, matches), is the grain of
            each match, -1 for none, and ``map.share`` its share. Scores and verdict, see
            `orientation_scores`, are those of the first grain; those of another one are at
            ``orientation_scores(per_grain).verdict[grain, 0]``. `orientation_to_node` stores the
            map with all of this.

        Raises
        ------
        ValueError, TypeError
            If `per_grain` is not an OrientationMap with one entry for each grain.
        """
        n = self.clusters.n_clusters
        check_orientation(per_grain, {"one for each grain": (n, 1)})
        rx, ry = self.clusters.shape
        most = max(1, int(self.supports.sum(axis=2).max(initial=0)))
        own = np.where(self.supports, self.shares, -1.0)
        order = np.argsort(-own, axis=2, kind="stable")[..., :most]
        share = np.take_along_axis(own, order, 2) if n else np.full((rx, ry, most), -1.0)
        grain = np.where(share > 0, order, -1) if n else np.full((rx, ry, most), -1)
        out = type(per_grain)(rx, ry, most)
        inside = grain >= 0
        for key, value in vars(per_grain).items():
            if not isinstance(value, np.ndarray) or value.shape[:2] != (n, 1):
                continue
            if hasattr(out, key) and np.ndim(getattr(out, key)) > 2:  # one for each match
                target = np.zeros((*grain.shape, *value.shape[3:]), dtype=value.dtype)
                target[inside] = value[grain[inside], 0, 0]
            else:
                first = inside[..., 0]
                target = np.zeros((rx, ry, *value.shape[2:]), dtype=value.dtype)
                target[first] = value[grain[first][:, 0], 0]
            setattr(out, key, target)
        for key in ("runner_up", "runner_up_evidence"):  # the second match is another grain
            if hasattr(out, key):
                setattr(out, key, np.zeros((rx, ry)))
        if hasattr(out, "sigma_excitation_error"):
            out.sigma_excitation_error[~inside[..., 0]] = np.nan
        unmatched = ~np.abs(out.matrix).any(axis=(3, 4)) | ~(out.corr > 0)
        out.matrix[unmatched] = out.family[unmatched] = np.eye(3)
        out.corr[unmatched] = 0
        out.grain, out.share = grain.astype(np.int32), np.where(inside, share, 0.0)
        return out

    def calculate_strain(
        self,
        crystal: Any,
        bragg: Any,
        per_grain: Any,
        *,
        min_share: float = 0.8,
        **options: Any,
    ) -> Any:
        """Strain of each scan position where one grain rules; see `Clusters.calculate_strain`.

        Where two grains share a pattern, disks of one are taken for disks of the other, and strain
        would be wrong. A grain rules a position if its share is above `min_share` by two standard
        errors, so that with few electrons fewer positions count.

        Parameters
        ----------
        crystal : py4DSTEM.process.diffraction.Crystal
            Its cell is the lattice without strain.
        bragg : BraggVectors, (Rx, Ry)
            Those of the scan, calibrated.
        per_grain : OrientationMap, (N, 1), or PhaseMap
            Orientations of the grains, from the pure patterns.
        min_share : float
            Smallest share of the grain that rules, 0 to 1. A smaller value gives strain at more
            positions, and wrong values where disks of two grains lie side by side.
        **options
            Those of `Clusters.calculate_strain`, but for `mixture` and `min_purity`.

        Returns
        -------
        RealSlice
            As that of `Clusters.calculate_strain`. Positions where no grain rules have the reason
            3, mixed.

        Raises
        ------
        ValueError, TypeError
            If an argument is wrong, or the Bragg vectors are not calibrated.
        """
        min_share = check_number("min_share", min_share, 0, 1)
        for name in ("mixture", "min_purity"):
            if name in options:
                raise TypeError(f"{name} is no option here: shares of the grains are known; "
                                "give min_share")  # fmt: skip
        labels = self.clusters.labels
        share = self._sure_share()
        mixture = Mixture(labels[..., None], share[..., None], marks_of(self.clusters.settings))
        return self.clusters.calculate_strain(
            crystal, bragg, per_grain, mixture=mixture, min_purity=min_share, **options
        )

    def _sure_share(self) -> NDArray[np.float64]:
        """Share of the strongest grain at each position, (Rx, Ry), less `RULE_ERRORS`."""
        labels = self.clusters.labels
        own = np.take_along_axis(self.shares, np.maximum(labels, 0)[..., None], 2)[..., 0] \
            if self.shares.shape[2] else np.zeros(labels.shape)  # fmt: skip
        sure = own - RULE_ERRORS * self.share_error
        return np.where(labels >= 0, np.maximum(sure, 0), 0.0)
