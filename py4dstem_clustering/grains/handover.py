"""Methods of clusters for the analysis of diffraction: shares, orientations, strain, disks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_number
from ..base.progress import warn_user
from ..diffraction.disk_options import DiskOptions, propose_disk_options
from ..diffraction.disks import GainedDisks, gained_disks
from ..diffraction.orientation import expand_bragg, expand_orientation_map, find_boundaries
from ..diffraction.phases import (
    MIN_MARGIN,
    PhaseMap,
    boundaries_of_phases,
    map_phases,
    strain_of_phases,
)
from ..diffraction.strain import calculate_strain
from ..emd.settings import Settings
from ..patterns.mixture import Mixture, measure_mixture
from ..patterns.similarity import Similarity
from ..scan.datacubes import marks_of


class HandOver:
    """Methods of `Clusters` that take or make results of py4DSTEM."""

    labels: NDArray[np.int32]
    settings: Mapping[str, Any]
    similarity: Similarity | None
    pixel_size: float
    pixel_units: str

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
            Largest distance, in scan positions, at which another cluster can have a share. Choose
            it as large as the probe and the overlap of stacked grains. A position that is farther
            from all other clusters counts as pure.
        n_jobs : int, optional
            Number of threads; by default all cores that the process may use.
        max_memory : int or str, optional
            Bytes, or a text such as "1 GB", that the work may take; see `filter_correlative`.
        progress_bar : bool
            Show progress.

        Returns
        -------
        Mixture
            Shares of clusters at each position; ``purity`` is the largest one.

        Raises
        ------
        ValueError, TypeError
            If an argument is wrong, or the scan has another shape.
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
        """Make an orientation map of the scan from the orientations of the clusters.

        Parameters
        ----------
        per_cluster : py4DSTEM.process.diffraction.OrientationMap, (N, 1)
            From ``crystal.match_orientations`` of the Bragg peaks of the averages.

        Returns
        -------
        OrientationMap, (Rx, Ry)
            Each position has all matches of its cluster, and its verdict and scores, see
            `orientation_scores`. Functions of py4DSTEM accept the map, such
            as ``crystal.plot_orientation_maps`` and ``save_ang_file``. Positions outside clusters,
            or in a cluster without a match, have the correlation 0 and the identity as orientation.

        Raises
        ------
        ValueError, TypeError
            If `per_cluster` is not an OrientationMap with one entry for each cluster.
        """
        return expand_orientation_map(self.labels, per_cluster)

    def expand_bragg(self, per_cluster: Any) -> Any:
        """Make Bragg vectors of the scan from the Bragg vectors of the clusters.

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
            If `per_cluster` does not have one entry for each cluster.
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
        """Strain of each scan position relative to the lattice of its cluster.

        As in the paper, the orientation of the cluster gives the lattice without strain, because it
        is more precise than the orientation of a single pattern. The strain is then fitted to the
        Bragg peaks of each pattern.

        In crystals of more than a few nanometres, disks are lit unevenly inside, and peaks are not
        at the middle of their disk: use `refine_disks` first. Where a crystal is bent inside a
        cluster, the disks of its average are turned about the beam by different angles; then
        the fit goes by how far disks are from the direct beam, and standard errors are larger.

        Parameters
        ----------
        crystal : py4DSTEM.process.diffraction.Crystal, or a dictionary of names and Crystals
            Its cell is the lattice without strain. A dictionary goes with phases, see below. If the
            pixel size of the detector or the camera length is wrong, ``e_xx`` and ``e_yy`` have the
            same wrong value everywhere.
        bragg : BraggVectors, (Rx, Ry), or (N, 1)
            Those of the scan, from ``datacube.find_Bragg_disks(...)``, give the strain at each
            position. Those of the averages give one strain, with less noise, for each cluster. They
            must be calibrated: origin, pixel size in 1/Angstrom, and ellipse and rotation if known.
        orientation : OrientationMap, (N, 1) or (Rx, Ry), or PhaseMap
            From `refine_orientations` or ``crystal.match_orientations`` of the averages, as it is
            or expanded; or from `map_phases`, so that each cluster has its own crystal. If a map of
            the scan meets Bragg vectors of the averages, a cluster takes the orientation as in
            `get_boundaries`.
        min_num_peaks : int
            Number of Bragg peaks that must be matched, without the direct beam; at least 3.
        max_distance : float, optional
            Distance up to which a peak is matched to a reflection of the lattice without strain,
            1/Angstrom. Choose more than ``strain * q`` at the outermost peaks, and less than half
            the distance between reflections. Default: ``corr_kernel_size`` of the orientation plan.
        sigma_excitation_error : float, optional
            Width of the excitation errors of the lattice without strain, 1/Angstrom. By default
            the width in the orientation plan.
        min_correlation : float
            Positions whose orientation has a lower correlation are left out.
        mixture : Mixture, optional
            From ``clusters.get_mixture(datacube)``. Positions where the cluster has a share below
            `min_purity` are left out; they are at borders and in stacked grains.
        min_purity : float
            Smallest share with `mixture`, 0 to 1.
        robust : bool
            Give peaks far from the fit less weight, and peaks of small error, from `refine_disks`,
            more. Without, all peaks have the same weight.
        progress_bar : bool
            Show progress.

        Returns
        -------
        RealSlice, the shape of `bragg`
            The slices ``e_xx``, ``e_yy``, ``e_xy``, ``theta`` (radian) and ``mask`` (1 where the
            strain is defined) are for ``py4DSTEM.visualize.show_strain``. Undefined strain is NaN.
            ``reason`` says why: 0 defined, 1 outside clusters, 2 too few peaks, 3 mixed, 4 low
            correlation or no orientation, 5 defined, but the orientation is ambiguous (strain is
            mostly the same for both lattices), 6 not indexed. ``n_peaks`` is
            the number of matched peaks. ``error_xx``, ``error_yy``, ``error_xy`` and
            ``error_theta`` are standard errors: they tell what noise and uneven disks do, but not
            a wrong pixel size. Store the result with ``datacube.attach(strain)``.
            ``py4dstem_clustering.diffraction.strain`` explains axes, signs and reference.

        Raises
        ------
        ValueError, TypeError
            If an argument is wrong, or the Bragg vectors are not calibrated.
        """
        ours, theirs = set(marks_of(self.settings)), getattr(mixture, "made_from", ())
        if ours and theirs and ours.isdisjoint(theirs):
            warn_user(
                "the mixture was made from clusters of other data; give the mixture that "
                "clusters.get_mixture() of these clusters returns"
            )
        calculate = strain_of_phases if isinstance(orientation, PhaseMap) else calculate_strain
        return calculate(
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
        orientation : OrientationMap, (N, 1) or (Rx, Ry), or PhaseMap
            Of the clusters or of the scan. With a map of the scan, a cluster takes the orientation
            of the position with the best verdict, of these the one with the highest correlation.
            With a PhaseMap, from `map_phases`, each cluster has its own crystal.
        crystal : py4DSTEM.process.diffraction.Crystal, or a dictionary of names and Crystals
            Gives the symmetry and the lattice directions. A dictionary goes with a PhaseMap.
        twin : (degrees, (u, v, w)), "auto" or None
            Misorientation of a twin: an angle about a lattice direction. "auto" is sigma 3 (60
            degrees about <111>) for cubic crystals, and None for others. For {10-12} twins in
            magnesium give ``(86.3, (1, 0, 0))``: 86.3 degrees about <11-20>.
        tolerance : float
            Largest deviation of a twin boundary from the misorientation `twin`, degrees. By default
            Brandon's 15 / sqrt(3) for sigma 3.

        Returns
        -------
        structured ndarray, a row for each pair of clusters that touch
            ``label_a`` and ``label_b``, the lower label first; ``length`` of the boundary in
            `pixel_units` (counted in four directions, accurate to 6 %); ``angle`` of the
            misorientation, degrees; ``axis_x``, ``axis_y``, ``axis_z``, the axis of the
            misorientation in Cartesian coordinates of the crystal, one of all equivalent axes;
            ``twin_deviation``, degrees; ``twin``, whether this deviation is within `tolerance`. If
            a cluster has no orientation, angle, axis and deviation are NaN. ``verdict`` is the
            less sure one of both clusters, in words, see `orientation_scores`; empty where it is
            not known. With a PhaseMap, the angle is NaN between two crystals, too, and ``phase_a``
            and ``phase_b`` are the names of the crystals, "" where there is none or where it is
            undecided.

        Raises
        ------
        ValueError, TypeError
            If an argument is wrong.
        """
        tolerance = check_number("tolerance", tolerance, 0, 180)
        if isinstance(orientation, PhaseMap):
            return boundaries_of_phases(
                self.labels, crystal, orientation, twin, tolerance, self.pixel_size
            )
        return find_boundaries(self.labels, orientation, crystal, twin, tolerance, self.pixel_size)

    def map_phases(
        self,
        crystals: Mapping[str, Any],
        bragg: Any,
        *,
        min_margin: float = MIN_MARGIN,
        num_matches: int = 3,
        progress_bar: bool = True,
    ) -> PhaseMap:
        """Find out which of several crystals each cluster is.

        The average of each cluster is matched with each crystal, and refined (see
        `refine_orientations`). The crystal with the most evidence is its phase: above all, the
        places of disks count, and which of those that a crystal should have are missing. So two
        structures of one element can be told apart, too.

        Parameters
        ----------
        crystals : dictionary of str and py4DSTEM.process.diffraction.Crystal
            Such as ``{"gold": gold, "silicon": silicon}``. Each has an orientation plan, best with
            the same options. A single crystal is allowed: the question then is whether a cluster is
            this crystal or not.
        bragg : BraggVectors, (N, 1)
            From ``averages.find_Bragg_disks``, calibrated; see `calculate_strain`.
        min_margin : float
            A cluster is undecided if the evidence for the second crystal is lower by less than
            this. By default 5: the best crystal is then at least 150 times as likely. With a
            larger value more clusters are undecided, and fewer are wrong.
        num_matches : int
            Number of matches with each crystal from which refining starts.
        progress_bar : bool
            Show progress.

        Returns
        -------
        PhaseMap
            ``table()`` has phase, score, margin and whether it is undecided for each cluster;
            ``orientation`` is the orientation as the winning crystal; ``expand()`` makes a map
            of the scan, ``plot()`` draws it, and ``to_node()`` stores it. Give it to
            `calculate_strain` and `get_boundaries` in place of the orientation.

        Raises
        ------
        ValueError, TypeError
            If an argument is wrong, a crystal has no orientation plan, or the Bragg vectors are not
            calibrated.
        """
        return map_phases(
            self.labels,
            crystals,
            bragg,
            min_margin=min_margin,
            num_matches=num_matches,
            progress_bar=progress_bar,
            pixel_size=self.pixel_size,
            pixel_units=self.pixel_units,
        )

    def propose_disk_options(
        self,
        averages: Any,
        template: Any,
        *,
        significance: float = 4.0,
        gain: float | None = None,
        offset: float | None = None,
    ) -> DiskOptions:
        """Options of disk detection that follow from the noise of the averages.

        A disk is what stands out of the noise of its average. The noise is known from the gain of
        the detector and the number of positions in each cluster.

        Parameters
        ----------
        averages : DataCube, (N, 1, Qx, Qy)
            From ``datacube.get_clustered_datacube(clusters)``.
        template : ndarray, (Qx, Qy)
            ``probe.kernel``, after ``probe.get_kernel(...)`` with any mode.
        significance : float
            Standard deviations of the noise by which a disk must stand out, by default 4. A smaller
            value finds more weak disks and more false ones.
        gain, offset : float, optional
            Recorded value of one electron, and value without electrons. By default what `cluster`
            has measured; without that 1 and 0, which is right for counted electrons.

        Returns
        -------
        DiskOptions
            ``find(averages)`` finds the disks; ``plot_averages(averages, bragg=...)`` shows them.

        Raises
        ------
        ValueError, TypeError
            If averages or template have another shape, or the template is not a kernel.

        Examples
        --------
        >>> from py4DSTEM import Probe
        >>> clusters = datacube.cluster(threshold=0.98, min_size=5, progress_bar=False)
        >>> averages = datacube.get_clustered_datacube(progress_bar=False)
        >>> probe = Probe.generate_synthetic_probe(radius=1.5, width=1, Qshape=datacube.Qshape)
        >>> kernel = probe.get_kernel(mode="flat", origin=(16, 15), returncalc=True)
        >>> clusters.propose_disk_options(averages, kernel).options["minRelativeIntensity"]
        0
        """
        known = Settings(self.settings).everything
        if gain is None:
            gain = measured(known.get("gain"), 1.0)
        if offset is None:
            offset = measured(known.get("offset"), 0.0)
        sizes = np.bincount(self.labels[self.labels >= 0])
        return propose_disk_options(
            sizes, averages, template, gain=gain, offset=offset, significance=significance
        )

    def gained_disks(
        self,
        bragg_averages: Any,
        bragg_scan: Any,
        *,
        crystal: Any = None,
        orientation: Any = None,
        max_distance: float | None = None,
    ) -> GainedDisks:
        """Compare the number and the reach of Bragg disks in averages and in single patterns.

        Parameters
        ----------
        bragg_averages : BraggVectors, (N, 1)
            From ``averages.find_Bragg_disks``, with origin and pixel size (1/Angstrom) calibrated.
        bragg_scan : BraggVectors, (Rx, Ry)
            From ``datacube.find_Bragg_disks``, with the same options.
        crystal : py4DSTEM.process.diffraction.Crystal, optional
            A crystal with an orientation plan. With `crystal` and `orientation`, only disks near a
            reflection of the cluster count, each reflection once. Without them every peak counts,
            although most peaks in single patterns of few electrons are noise.
        orientation : OrientationMap, (N, 1) or (Rx, Ry), optional
            From ``crystal.match_orientations`` of the averages, as it is or expanded.
        max_distance : float, optional
            Distance from a reflection up to which a disk counts, 1/Angstrom; with a larger one more
            noise counts. Default: ``corr_kernel_size`` of the orientation plan. Without a crystal
            it is the largest distance of the direct beam from the origin, by default 0.1; the
            nearest disk within it is the direct beam.

        Returns
        -------
        GainedDisks
            ``table()`` has a row for each cluster; ``plot()`` draws disks over scattering vectors.
            The direct beam is not counted.

        Raises
        ------
        ValueError, TypeError
            If an argument is wrong, the Bragg vectors are not calibrated, or there are no clusters.
        """
        return gained_disks(
            self.labels,
            bragg_averages,
            bragg_scan,
            crystal=crystal,
            orientation=orientation,
            max_distance=max_distance,
        )


def measured(value: Any, default: float) -> float:
    """An estimate among the settings, or the default where none was possible."""
    return default if value is None or not np.isfinite(value) else float(value)
