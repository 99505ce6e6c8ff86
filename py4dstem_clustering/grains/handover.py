"""What clusters hand over to the analysis of diffraction: shares, orientations, strain, disks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_number
from ..diffraction.disks import GainedDisks, gained_disks
from ..diffraction.orientation import expand_bragg, expand_orientation_map, find_boundaries
from ..diffraction.strain import calculate_strain
from ..emd.settings import Settings
from ..patterns.mixture import Mixture, measure_mixture
from ..patterns.similarity import Similarity


class HandOver:
    """Methods of `Clusters` that take or make results of py4DSTEM."""

    labels: NDArray[np.int32]
    settings: Mapping[str, Any]
    similarity: Similarity | None
    pixel_size: float

    def get_mixture(
        self,
        datacube: Any,
        *,
        reach: int = 4,
        n_jobs: int | None = None,
        max_memory: int | str | None = None,
        progress_bar: bool = True,
    ) -> Mixture:
        """Share of each cluster in the pattern of each scan position.

        Parameters
        ----------
        datacube : DataCube
            The scan that was clustered, unfiltered.
        reach : int
            Distance in scan positions at which another cluster can have a share: as far as the
            probe and stacked grains reach. A position farther from all others counts as pure.
        n_jobs : int, optional
            Number of threads; by default all cores that the process may use.
        max_memory : int or str, optional
            Bytes, or a text such as "1 GB", that the work may take; see `filter_correlative`.
        progress_bar : bool
            Show progress.

        Returns
        -------
        Mixture
            Shares, and ``purity``, the largest share of each position.

        Raises
        ------
        ValueError, TypeError
            If an argument breaks its rule, or the scan has another shape.
        """
        settings = Settings(self.settings).everything
        if self.similarity is not None and settings.get("q_mask") is None:
            settings["q_mask"] = self.similarity.settings.get("q_mask")
        return measure_mixture(
            datacube,
            self.labels,
            settings,
            reach,
            n_jobs=n_jobs,
            max_memory=max_memory,
            progress_bar=progress_bar,
        )

    def expand_orientation_map(self, per_cluster: Any) -> Any:
        """Orientations of clusters as a map of the scan.

        Parameters
        ----------
        per_cluster : py4DSTEM.process.diffraction.OrientationMap, (N, 1)
            From ``crystal.match_orientations`` of the Bragg peaks of the averages.

        Returns
        -------
        OrientationMap, (Rx, Ry)
            Each position has all matches of its cluster. The map goes where other maps of py4DSTEM
            go, such as ``crystal.plot_orientation_maps`` and ``save_ang_file``. Outside clusters,
            and where a cluster found no match: correlation 0 and the identity.

        Raises
        ------
        ValueError, TypeError
            If it is no OrientationMap with one entry for each cluster.
        """
        return expand_orientation_map(self.labels, per_cluster)

    def expand_bragg(self, per_cluster: Any) -> Any:
        """Bragg vectors of clusters as Bragg vectors of the scan.

        Parameters
        ----------
        per_cluster : BraggVectors, (N, 1)
            From ``averages.find_Bragg_disks``.

        Returns
        -------
        BraggVectors, (Rx, Ry)
            Each position has the peaks of its cluster; positions outside clusters have none. The
            calibration is a copy in which each position has the origin of its cluster.

        Raises
        ------
        ValueError, TypeError
            If there is not one entry for each cluster.
        """
        return expand_bragg(self.labels, per_cluster)

    def calculate_strain(
        self,
        crystal: Any,
        bragg: Any,
        orientation: Any,
        *,
        min_num_peaks: int = 6,
        max_distance: float | None = None,
        sigma_excitation_error: float | None = None,
        min_correlation: float = 0.0,
        mixture: Mixture | None = None,
        min_purity: float = 0.8,
        robust: bool = True,
        progress_bar: bool = True,
    ) -> Any:
        """Strain of each scan position against the lattice of its cluster.

        As in the paper: the cluster, whose orientation is known better than that of a single
        pattern, gives the lattice without strain, and ``crystal.calculate_strain`` fits the strain
        to the Bragg peaks of each pattern.

        Parameters
        ----------
        crystal : py4DSTEM.process.diffraction.Crystal
            Its cell is the lattice without strain. A wrong pixel size of the detector, or a wrong
            camera length, shows as equal ``e_xx`` and ``e_yy`` everywhere.
        bragg : BraggVectors, (Rx, Ry), or (N, 1)
            Of the scan, from ``datacube.find_Bragg_disks(...)``, for the strain at each position;
            or of the averages, for one less noisy strain for each cluster. Calibrated: origin and
            pixel size in 1/Angstrom, ellipse and rotation where there are any.
        orientation : OrientationMap, (N, 1) or (Rx, Ry)
            From ``crystal.match_orientations`` of the averages, as it is or expanded.
        min_num_peaks : int
            Number of Bragg peaks that must be matched, without the direct beam; at least 3.
        max_distance : float, optional
            Distance up to which a peak is matched to a reflection of the lattice without strain,
            1/Angstrom: more than ``strain * q`` at the outermost peaks, less than half the distance
            of neighbouring reflections. Default: ``corr_kernel_size`` of the orientation plan.
        sigma_excitation_error : float, optional
            Width of the excitation errors of the lattice without strain, 1/Angstrom. Default: that
            of the orientation plan.
        min_correlation : float
            Positions whose orientation has a lower correlation are left out.
        mixture : Mixture, optional
            From ``clusters.get_mixture(datacube)``: positions where the cluster holds less than
            `min_purity` of the pattern are left out, at borders and under stacked grains.
        min_purity : float
            See `mixture`, 0 to 1.
        robust : bool
            Peaks far from the fit lose weight.
        progress_bar : bool
            Show progress.

        Returns
        -------
        RealSlice, the shape of `bragg`
            Slices ``e_xx``, ``e_yy``, ``e_xy``, ``theta`` (radian), ``mask`` (1 where defined), for
            ``py4DSTEM.visualize.show_strain``; ``reason``, a number for each position: 0 defined, 1
            unclustered, 2 too few peaks, 3 mixed, 4 low correlation or no orientation; and
            ``n_peaks``, how many were matched. NaN where undefined. Keep it with
            ``datacube.attach(strain)``. Axes, signs and reference:
            ``py4dstem_clustering.diffraction.strain``.

        Raises
        ------
        ValueError, TypeError
            If an argument breaks its rule, or the Bragg vectors are not calibrated.
        """
        return calculate_strain(
            self.labels,
            crystal,
            bragg,
            orientation,
            min_num_peaks=min_num_peaks,
            max_distance=max_distance,
            sigma_excitation_error=sigma_excitation_error,
            min_correlation=min_correlation,
            mixture=mixture,
            min_purity=min_purity,
            robust=robust,
            progress_bar=progress_bar,
        )

    def get_boundaries(
        self,
        orientation: Any,
        crystal: Any,
        *,
        twin: tuple[float, tuple[float, float, float]] | str | None = "auto",
        tolerance: float = 15 / 3**0.5,
    ) -> NDArray[Any]:
        """Boundaries between clusters that touch: length, misorientation, twins.

        Parameters
        ----------
        orientation : OrientationMap, (N, 1) or (Rx, Ry)
            Of the clusters, or of the scan: then each cluster has the orientation of its position
            with the highest correlation.
        crystal : py4DSTEM.process.diffraction.Crystal
            Whose symmetry and lattice directions count.
        twin : (degrees, (u, v, w)), "auto" or None
            Misorientation of a twin: an angle about a lattice direction. "auto" is sigma 3, 60
            degrees about <111>, for cubic crystals and none for others; in magnesium, for example,
            {10-12} twins are 86.3 degrees about <11-20>, which is (1, 0, 0) or an equivalent.
        tolerance : float
            Deviation from the twin up to which a boundary is one, degrees. Default: Brandon's
            15 / sqrt(3) for sigma 3.

        Returns
        -------
        structured ndarray, a row for each pair of clusters that touch
            ``label_a``, ``label_b``, the lower first; ``length`` of the boundary in `pixel_units`
            (counted in four directions, within 6 %); ``angle``, the misorientation, degrees;
            ``axis_x``, ``axis_y``, ``axis_z``, its axis in Cartesian coordinates of the crystal,
            one of all equivalent ones; ``twin_deviation``, degrees; ``twin``, whether it is within
            the tolerance. NaN where a cluster has no orientation.

        Raises
        ------
        ValueError, TypeError
            If an argument breaks its rule.
        """
        tolerance = check_number("tolerance", tolerance, 0, 180)
        return find_boundaries(self.labels, orientation, crystal, twin, tolerance, self.pixel_size)

    def gained_disks(
        self,
        bragg_averages: Any,
        bragg_scan: Any,
        *,
        crystal: Any = None,
        orientation: Any = None,
        max_distance: float | None = None,
    ) -> GainedDisks:
        """Compare the Bragg disks in averages with those in single patterns: how many, how far out.

        Parameters
        ----------
        bragg_averages : BraggVectors, (N, 1)
            From ``averages.find_Bragg_disks``; calibrated: origin and pixel size in 1/Angstrom.
        bragg_scan : BraggVectors, (Rx, Ry)
            From ``datacube.find_Bragg_disks``, with the same options.
        crystal : py4DSTEM.process.diffraction.Crystal, optional
            With an orientation plan. With `crystal` and `orientation`, only disks near to a
            reflection of the cluster count, each reflection once. Without them every peak counts;
            in single patterns of few electrons most peaks are noise.
        orientation : OrientationMap, (N, 1) or (Rx, Ry), optional
            From ``crystal.match_orientations`` of the averages, as it is or expanded.
        max_distance : float, optional
            Distance from a reflection up to which a disk counts, 1/Angstrom; the larger, the more
            noise counts. Default: ``corr_kernel_size`` of the orientation plan. Without a crystal:
            distance from the origin up to which the nearest disk is the direct beam, by default
            0.1.

        Returns
        -------
        GainedDisks
            ``table()`` has a row for each cluster; ``plot()`` draws disks over scattering vector.
            The direct beam is not counted.

        Raises
        ------
        ValueError, TypeError
            If an argument breaks its rule, the Bragg vectors are not calibrated, or there are no
            clusters.
        """
        return gained_disks(
            self.labels,
            bragg_averages,
            bragg_scan,
            crystal=crystal,
            orientation=orientation,
            max_distance=max_distance,
        )
