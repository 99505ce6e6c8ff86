"""Clusters: which scan positions belong together, and what is known of each cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import emdfile
import numpy as np
from numpy.typing import NDArray
from skimage.measure import find_contours, regionprops

from ..base.checks import check_integer, check_name, check_number
from ..base.frozen import Frozen
from ..diffraction.disks import GainedDisks, gained_disks
from ..diffraction.orientation import expand_bragg, expand_orientation_map, find_boundaries
from ..diffraction.strain import calculate_strain
from ..emd import nodes
from ..emd.settings import PROVENANCE, Settings, add_settings, read_settings
from ..kernels.tree import growth_steps
from ..patterns.mixture import Mixture, measure_mixture
from ..patterns.similarity import Similarity
from ..scan.calibration import scan_step
from .describe import describe_clusters

CLUSTERS_KIND = "clusters"

NOTED = (
    "gain", "offset", "noise", "level", "lag", "lag_axis", "n_background", "edits",
    *PROVENANCE,
)  # fmt: skip
"""Settings of clusters that are no options of `cluster`: what was found, and where it is from."""

PROPERTIES = np.dtype(
    [
        ("label", np.int32),
        ("size", np.int64),
        ("area", np.float64),
        ("centroid_rx", np.float64),
        ("centroid_ry", np.float64),
        ("seed_rx", np.int64),
        ("seed_ry", np.int64),
        ("equivalent_diameter", np.float64),
        ("major_axis", np.float64),
        ("minor_axis", np.float64),
        ("orientation", np.float64),
        ("eccentricity", np.float64),
        ("solidity", np.float64),
        ("perimeter", np.float64),
        ("similarity", np.float64),
        ("touches_border", bool),
    ]
)
"""Fields of `Clusters.properties`."""


@dataclass(frozen=True, eq=False, repr=False)
class Clusters(Frozen):
    """A label map of the scan with what is known of each cluster.

    Made by ``datacube.cluster()``. Never changes: `relabel`, `remove` and `join` return new ones.

    Parameters
    ----------
    labels : ndarray, (Rx, Ry), int
        Number of the cluster of each scan position, from 0; -1 where it is in no cluster.
    seeds : ndarray, (N, 2), int
        Scan position (rx, ry) from which each cluster grew: the member with the highest mean
        similarity.
    similarity_mean : ndarray, (Rx, Ry)
        Mean similarity of each position with its neighbours, -1 to 1; NaN where there are none.
    settings : mapping, optional
        Every argument that made the clusters, and the versions of both packages.
    similarity : Similarity, optional
        What the clusters were grown on. It travels with them, so that another threshold never needs
        the scan again: ``datacube.cluster(threshold=0.8, similarity=clusters.similarity)``.
    name : str
        Name in the tree of the datacube.
    pixel_size : float
        Distance of neighbouring scan positions.
    pixel_units : str
        Unit of `pixel_size`.
    background : sequence of int
        Labels of clusters without Bragg peaks: liquid, vacuum, amorphous film.

    Raises
    ------
    ValueError
        If labels are not numbered 0 to N - 1 without gaps, or shapes do not fit together.

    Examples
    --------
    >>> clusters = datacube.cluster(threshold=0.995, min_size=5, progress_bar=False)
    >>> clusters
    Clusters('clusters', 2 clusters, 76 of 80 scan positions of 8 x 10, sizes 10 to 66)
    >>> clusters.members(1)[:2].tolist()
    [[3, 7], [3, 8]]
    >>> clusters.properties()["size"].tolist()
    [66, 10]
    """

    labels: NDArray[Any]
    seeds: NDArray[Any]
    similarity_mean: NDArray[Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    similarity: Similarity | None = None
    name: str = "clusters"
    pixel_size: float = 1.0
    pixel_units: str = "pixels"
    background: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name)
        labels = np.array(self.labels)
        if labels.ndim != 2 or labels.dtype.kind not in "iu":
            raise ValueError(
                f"labels must be a 2D map of whole numbers, not {labels.dtype} of shape "
                f"{labels.shape}"
            )
        labels = labels.astype(np.int32)
        seeds = np.array(self.seeds, dtype=np.int64).reshape(-1, 2)
        mean = np.array(self.similarity_mean, dtype=np.float32)
        found = np.unique(labels)
        if not np.array_equal(found[found >= 0], np.arange(len(seeds))) or found[:1] < -1:
            raise ValueError(
                f"labels must hold each number from 0 to {len(seeds) - 1} (one for each of the "
                f"{len(seeds)} seeds), and -1 elsewhere"
            )
        inside = ((seeds >= 0) & (seeds < labels.shape)).all()
        if not inside or (labels[tuple(seeds.T)] != np.arange(len(seeds))).any():
            raise ValueError("each seed must be a member of its cluster")
        if mean.shape != labels.shape:
            raise ValueError(
                f"similarity_mean of shape {mean.shape} must have the shape of the labels, "
                f"{labels.shape}"
            )
        if self.similarity is not None and self.similarity.shape[:2] != labels.shape:
            raise ValueError(
                f"similarity of a scan of {self.similarity.shape[:2]} must have the shape of the "
                f"labels, {labels.shape}"
            )
        settings = Settings(self.settings, NOTED)
        self._set(labels=labels, seeds=seeds, similarity_mean=mean, settings=settings)
        self._set(background=tuple(self._check_labels(self.background)))

    # --- what there is -----------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """(Rx, Ry)"""
        return self.labels.shape

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return len(self.seeds)

    @property
    def sizes(self) -> NDArray[Any]:
        """Number of scan positions in each cluster, (N,)."""
        return np.bincount(self.labels[self.labels >= 0], minlength=self.n_clusters)

    def __len__(self) -> int:
        return self.n_clusters

    def __repr__(self) -> str:
        rx, ry = self.shape
        n = self.n_clusters
        what = f"{n} cluster{'s' * (n != 1)}"
        inside = f"{self.sizes.sum()} of {rx * ry} scan positions of {rx} x {ry}"
        sizes = f", sizes {self.sizes.min()} to {self.sizes.max()}" if n else ""
        return f"Clusters({self.name!r}, {what}, {inside}{sizes})"

    def _check_label(self, label: Any) -> int:
        label = check_integer("label", label, 0)
        if label >= self.n_clusters:
            known = f"0 to {self.n_clusters - 1}" if self.n_clusters else "none"
            raise ValueError(f"label {label} does not exist; the labels here are: {known}")
        return label

    def _check_labels(self, labels: Any) -> list[int]:
        labels = list(labels) if isinstance(labels, Iterable) else [labels]
        return sorted({self._check_label(label) for label in labels})

    def members(self, label: int) -> NDArray[Any]:
        """Scan positions (rx, ry) of one cluster, (n, 2), row by row."""
        return np.argwhere(self.labels == self._check_label(label))

    def contours(self, label: int) -> list[NDArray[Any]]:
        """Closed contours of one cluster.

        Parameters
        ----------
        label : int
            Number of the cluster.

        Returns
        -------
        list of ndarray, (n, 2)
            Points (rx, ry) in scan positions, half-way between members and others; the last point
            is the first. The outline comes with one contour more for each hole, and one for each
            piece where clusters were joined. Diagonal neighbours are connected, as in growth.
        """
        member = self.labels == self._check_label(label)
        rows, columns = (np.flatnonzero(member.any(axis=axis)) for axis in (1, 0))
        box = member[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        found = find_contours(np.pad(box, 1).astype(np.float32), 0.5, fully_connected="high")
        corner = np.array([rows[0] - 1, columns[0] - 1])
        return [points + corner for points in found]

    def properties(self) -> NDArray[Any]:
        """Size, shape and place of every cluster.

        Returns
        -------
        structured ndarray, (N,)
            ``pandas.DataFrame(clusters.properties())`` takes it. Lengths are in `pixel_units`,
            areas in its square, places in scan positions. Fields:

            ``label``; ``size``, number of positions; ``area``; ``centroid_rx``, ``centroid_ry``;
            ``seed_rx``, ``seed_ry``; ``equivalent_diameter``, of the circle of the same area;
            ``major_axis``, ``minor_axis``, of the ellipse with the same second moments;
            ``orientation``, angle from the Rx axis to the major axis, counter-clockwise towards Ry,
            -pi/2 to pi/2, radian; ``eccentricity`` of the ellipse, 0 to 1; ``solidity``, share of
            the convex hull that is filled; ``perimeter``; ``similarity``, mean over the members of
            the mean similarity with neighbours; ``touches_border`` of the scan, so that it may go
            on outside.

            Shapes are those of `skimage.measure.regionprops`.
        """
        table = np.zeros(self.n_clusters, dtype=PROPERTIES)
        rx, ry = self.shape
        step = self.pixel_size
        for region in regionprops(self.labels + 1):
            k = region.label - 1
            top, left, bottom, right = region.bbox
            similarity = self.similarity_mean[tuple(region.coords.T)]
            similarity = similarity[np.isfinite(similarity)]
            table[k] = (
                k,
                region.area,
                region.area * step**2,
                *region.centroid,
                *self.seeds[k],
                region.equivalent_diameter_area * step,
                region.axis_major_length * step,
                region.axis_minor_length * step,
                region.orientation,
                region.eccentricity,
                region.solidity,
                region.perimeter * step,
                similarity.mean(dtype=np.float64) if similarity.size else np.nan,
                top == 0 or left == 0 or bottom == rx or right == ry,
            )
        return table

    def expand(self, values: Any) -> NDArray[Any]:
        """Put one value a cluster on the scan grid.

        Parameters
        ----------
        values : array-like, (N, ...)
            Numbers, one entry for each cluster.

        Returns
        -------
        ndarray, (Rx, Ry, ...)
            Each position has the value of its cluster; NaN outside clusters. Whole numbers become
            floating point, since they know no NaN.
        """
        values = np.asarray(values)
        if values.dtype.kind not in "buifc":
            raise TypeError(f"values of type {values.dtype} cannot be expanded: give numbers")
        if values.ndim == 0 or len(values) != self.n_clusters:
            raise ValueError(
                f"values of shape {values.shape} must have one entry for each of the "
                f"{self.n_clusters} clusters"
            )
        dtype = values.dtype if values.dtype.kind in "fc" else np.float64
        out = np.full(self.shape + values.shape[1:], np.nan, dtype=dtype)
        inside = self.labels >= 0
        out[inside] = values[self.labels[inside]]
        return out

    def growth_steps(self, label: int) -> NDArray[Any]:
        """Step at which each position joined a cluster that was grown.

        Parameters
        ----------
        label : int
            Number of the cluster.

        Returns
        -------
        ndarray, (Rx, Ry), int
            0 at the seed; a position joins one step after the first neighbour that takes it in. -1
            outside the cluster, and where `join` added pieces that growth does not reach.
        """
        members = self.labels == self._check_label(label)
        # Files of 0.1.0 have no level, but always a threshold.
        threshold = self.settings.get("level", self.settings.get("threshold"))
        if threshold is None or isinstance(threshold, str) or self.similarity is None:
            raise ValueError(
                f"how {self.name!r} grew is not known: it holds no one threshold or no similarity"
            )
        return growth_steps(self.similarity.data, members, tuple(self.seeds[label]), threshold)

    def growth_order(self, label: int) -> NDArray[Any]:
        """Scan positions (rx, ry) of a cluster in the order in which they joined, (n, 2).

        The seed comes first; positions of one step are in reading order. See `growth_steps`.
        """
        steps = self.growth_steps(label)
        members = np.argwhere(steps >= 0)
        return members[np.argsort(steps[steps >= 0], kind="stable")]

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
            A position is compared with the clusters within this many positions: as far as probe
            and stacked grains reach. Farther inside a cluster it counts as pure.
        n_jobs : int, optional
            Number of threads; by default all cores that the process may use.
        max_memory : int or str, optional
            Bytes, or a text such as "1 GB", within which the scan is read in blocks of rows; see
            ``datacube.filter_correlative``.
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
        settings = self.settings.everything
        if self.similarity is not None and settings.get("q_mask") is None:
            settings["q_mask"] = self.similarity.settings.get("q_mask")
        return measure_mixture(
            datacube, self.labels, settings, reach, n_jobs=n_jobs, max_memory=max_memory,
            progress_bar=progress_bar,
        )  # fmt: skip

    # --- orientations ------------------------------------------------------------------------

    def expand_orientation_map(self, per_cluster: Any) -> Any:
        """Orientations of clusters as a map of the scan.

        Parameters
        ----------
        per_cluster : py4DSTEM.process.diffraction.OrientationMap, (N, 1)
            From ``crystal.match_orientations`` of the Bragg peaks of the averages.

        Returns
        -------
        OrientationMap, (Rx, Ry)
            Every field and every match, one orientation for all positions of a cluster; it takes
            what maps of py4DSTEM take (``crystal.plot_orientation_maps``, ``save_ang_file``).
            Outside clusters, and where a cluster found no match, correlation 0 and the identity.

        Raises
        ------
        ValueError, TypeError
            If it is no OrientationMap with one entry for each cluster.
        """
        return expand_orientation_map(self.labels, per_cluster)

    def expand_bragg(self, per_cluster: Any) -> Any:
        """Bragg vectors of clusters as those of the scan.

        Parameters
        ----------
        per_cluster : BraggVectors, (N, 1)
            From ``averages.find_Bragg_disks``.

        Returns
        -------
        BraggVectors, (Rx, Ry)
            Each position has the peaks of its cluster, and none outside clusters, with a copy of
            the calibration in which each position has the origin of its cluster.

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

        The paper's way: the orientation of the cluster, which is the better known, is that of the
        lattice without strain, and the Bragg peaks of each single pattern tell how far the lattice
        is from it. Fitted by ``crystal.calculate_strain``.

        Parameters
        ----------
        crystal : py4DSTEM.process.diffraction.Crystal
            The lattice without strain; strain is relative to its cell, so that a wrong pixel size
            of the detector or camera length shows as equal ``e_xx`` and ``e_yy`` everywhere.
        bragg : BraggVectors, (Rx, Ry), or (N, 1)
            Of the scan, ``datacube.find_Bragg_disks(...)``; or of the averages, for one strain a
            cluster, less noisy, and for clusters without gradients just as good. Calibrated: origin
            and pixel size in 1/Angstrom, ellipse and rotation where there are any.
        orientation : OrientationMap, (N, 1) or (Rx, Ry)
            From ``crystal.match_orientations`` of the averages, as it is or expanded.
        min_num_peaks : int
            Fewest Bragg peaks, direct beam not counted, that must be matched; at least 3.
        max_distance : float, optional
            Farthest that a peak may lie from where the lattice without strain has it, 1/Angstrom:
            more than ``strain * q`` at the outermost peaks, less than half the distance of
            neighbouring ones. Default: ``corr_kernel_size`` of the orientation plan.
        sigma_excitation_error : float, optional
            Of the reference, 1/Angstrom. Default: that of the orientation plan.
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
            ``datacube.attach(strain)``. Axes, signs and reference: ``py4dstem_clustering.strain``.

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
            Of clusters, or of the scan: then each cluster has that of its position with the highest
            correlation.
        crystal : py4DSTEM.process.diffraction.Crystal
        twin : (degrees, (u, v, w)), "auto" or None
            Misorientation of a twin: an angle about a lattice direction. "auto" is sigma 3, 60
            degrees about <111>, for cubic crystals and none for others; in magnesium, for example,
            {10-12} twins are 86.3 degrees about <11-20>, which is (1, 0, 0) or an equivalent.
        tolerance : float
            Deviation from the twin, degrees. Default: Brandon's 15 / sqrt(3) for sigma 3.

        Returns
        -------
        structured ndarray, a row for each pair of clusters that touch
            ``label_a``, ``label_b``, the lower first; ``length`` of the boundary in `pixel_units`
            (counted in four directions, within 6 %); ``angle``, the misorientation, degrees;
            ``axis_x``, ``axis_y``, ``axis_z``, its axis in Cartesian coordinates of the crystal,
            one of all equivalent ones; ``twin_deviation``, degrees, and whether it is a ``twin``.
            NaN where a cluster has no orientation.

        Raises
        ------
        ValueError, TypeError
            If an argument breaks its rule.
        """
        tolerance = check_number("tolerance", tolerance, 0, 180)
        return find_boundaries(self.labels, orientation, crystal, twin, tolerance, self.pixel_size)

    def join_by_misorientation(
        self, orientation: Any, crystal: Any, *, max_angle: float = 5.0
    ) -> Clusters:
        """Join clusters that touch and have nearly the same orientation: pieces of one grain.

        Parameters
        ----------
        orientation, crystal
            See `get_boundaries`.
        max_angle : float
            Misorientation up to which neighbours join, degrees. Chains join: also clusters that
            differ more from end to end. Above the error of the orientations, below the smallest
            angle between grains.

        Returns
        -------
        Clusters
            Numbered like those here, without gaps. Average anew, with `get_clustered_datacube`.
        """
        max_angle = check_number("max_angle", max_angle, 0, 180)
        table = self.get_boundaries(orientation, crystal, twin=None)
        target = np.arange(self.n_clusters)
        for row in table[table["angle"] <= max_angle]:
            low, high = np.sort(target[[row["label_a"], row["label_b"]]])
            target[target == high] = low
        number = np.unique(target, return_inverse=True)[1].astype(np.int32)
        return self._renumbered(number, f"join_by_misorientation({max_angle})")

    def gained_disks(
        self,
        bragg_averages: Any,
        bragg_scan: Any,
        *,
        crystal: Any = None,
        orientation: Any = None,
        max_distance: float | None = None,
    ) -> GainedDisks:
        """How many Bragg disks averages show, and how far out, against single patterns.

        Parameters
        ----------
        bragg_averages : BraggVectors, (N, 1)
            From ``averages.find_Bragg_disks``; calibrated: origin and pixel size in 1/Angstrom.
        bragg_scan : BraggVectors, (Rx, Ry)
            From ``datacube.find_Bragg_disks``, with the same options.
        crystal : py4DSTEM.process.diffraction.Crystal, optional
            With an orientation plan. With it and `orientation`, only disks near to a reflection of
            the cluster count, each reflection once. Without, every peak counts, in single patterns
            of few electrons mostly noise.
        orientation : OrientationMap, (N, 1) or (Rx, Ry), optional
            From ``crystal.match_orientations`` of the averages, as it is or expanded.
        max_distance : float, optional
            Farthest from a reflection, 1/Angstrom; noise hits less when it is small. Default:
            ``corr_kernel_size`` of the orientation plan. Without a crystal: the disk nearest to the
            origin is the direct beam when it is within this, by default 0.1.

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

    # --- new from old ------------------------------------------------------------------------

    def _renumbered(self, number: NDArray[Any], edit: str) -> Clusters:
        """New clusters: cluster `k` becomes ``number[k]``, several one, or -1."""
        labels = np.append(number, -1)[self.labels]
        count = number.max(initial=-1) + 1
        height = np.nan_to_num(self.similarity_mean[tuple(self.seeds.T)], nan=-np.inf)
        seeds = np.zeros((count, 2), dtype=np.int64)
        for k in np.argsort(height, kind="stable"):  # the best seed is written last
            if number[k] >= 0:
                seeds[number[k]] = self.seeds[k]
        edits = (*self.settings.get("edits", ()), edit)
        # Background joined with a grain is no background.
        crystalline = np.setdiff1d(np.arange(self.n_clusters), self.background)
        background = set(number[list(self.background)].tolist()) - {-1}
        background -= set(number[crystalline].tolist())
        return replace(
            self,
            labels=labels,
            seeds=seeds,
            settings={**self.settings.everything, "edits": edits},
            background=tuple(background),
        )

    def relabel(self, order: str | Iterable[int] = "size") -> Clusters:
        """Number the clusters anew.

        Parameters
        ----------
        order : "size" or sequence of int
            "size" puts the largest first. A sequence holds every present label once: its first
            entry becomes 0.

        Returns
        -------
        Clusters
        """
        if isinstance(order, str):
            if order != "size":
                raise ValueError(f"order={order!r} must be 'size' or a sequence of all labels")
            sequence = np.argsort(-self.sizes, kind="stable")
            text = "relabel('size')"
        else:
            sequence = np.array([self._check_label(label) for label in order], dtype=int)
            if len(sequence) != self.n_clusters or len(set(sequence)) != self.n_clusters:
                raise ValueError(f"order must hold each of the {self.n_clusters} labels once")
            text = f"relabel({sequence.tolist()})"
        number = np.empty(self.n_clusters, dtype=np.int32)
        number[sequence] = np.arange(self.n_clusters)
        return self._renumbered(number, text)

    def remove(self, labels: int | Iterable[int]) -> Clusters:
        """Drop clusters: their positions become -1, and the others close the gaps.

        Parameters
        ----------
        labels : int or sequence of int

        Returns
        -------
        Clusters
        """
        gone = self._check_labels(labels)
        keep = np.ones(self.n_clusters, dtype=bool)
        keep[gone] = False
        number = np.where(keep, np.cumsum(keep) - 1, -1).astype(np.int32)
        return self._renumbered(number, f"remove({gone})")

    def join(self, labels: Iterable[int]) -> Clusters:
        """Make one cluster of several.

        Parameters
        ----------
        labels : sequence of int
            At least two. They need not touch.

        Returns
        -------
        Clusters
            The joined cluster has the lowest of the numbers and the best of the seeds; the others
            close the gaps.
        """
        together = self._check_labels(labels)
        if len(together) < 2:
            raise ValueError(f"join needs at least two different labels, not {together}")
        target = np.arange(self.n_clusters)
        target[together] = together[0]
        _, number = np.unique(target, return_inverse=True)
        return self._renumbered(number.astype(np.int32), f"join({together})")

    def describe(self) -> str:
        """A paragraph for the methods of a paper: how the clusters were made, and from what.

        Returns
        -------
        str
            Sentences with the numbers of these clusters, and the references. ``print`` it, and
            shorten it.

        Examples
        --------
        >>> print(datacube.cluster(progress_bar=False).describe()[:71])
        Diffraction patterns of 8 x 10 scan positions (20 A apart) with 32 x 30
        """
        return describe_clusters(self)

    # --- pictures ----------------------------------------------------------------------------

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Draw the label map; see `py4dstem_clustering.plot_clusters`."""
        from ..plotting.maps import plot_clusters

        return plot_clusters(self, ax, **options)

    # --- EMD ---------------------------------------------------------------------------------

    def to_node(self, averages: NDArray[Any] | None = None) -> emdfile.Node:
        """The clusters as one stock RealSlice of the labels; all else is in its metadata.

        One node, since a clustering must be stored or replaced as a whole: appending to a file,
        emdfile puts the children of a new node beside it instead of below it (0.0.16).
        """
        from py4DSTEM import RealSlice

        node = RealSlice(self.labels, name=self.name)
        nodes.tag(node, CLUSTERS_KIND)
        add_settings(node, self.settings)
        background = np.isin(np.arange(self.n_clusters), self.background)
        arrays = {
            "seeds": self.seeds,
            "similarity_mean": self.similarity_mean,
            "background": background,
        }
        if averages is not None:
            arrays["averages"] = averages.copy()
        if self.similarity is not None:
            arrays["similarity"] = self.similarity.data
            add_settings(node, self.similarity.settings, "similarity_settings")
        node.metadata = emdfile.Metadata("arrays", arrays)
        return node

    @classmethod
    def from_node(cls, node: emdfile.Node, step: tuple[float, str] | None = None) -> Clusters:
        """The clusters in a node of a datacube's tree, also one read from a file.

        `step` is the pixel size of the scan and its unit, by default as the tree is calibrated.
        """
        nodes.check_kind(node, CLUSTERS_KIND, "clusters", "some with datacube.cluster()")
        arrays = nodes.read_arrays(node)
        step = scan_step(node) if step is None else step
        # Labels and seeds of other types would be cut to these.
        labels = nodes.check_array(
            node, "labels", getattr(node, "data", None), (None, None), "iu", -1, 2**31 - 1
        )
        n = len(arrays["seeds"]) if np.ndim(arrays.get("seeds")) == 2 else 0
        found = {
            "seeds": ((None, 2), "iu", 0, max(labels.shape, default=0)),
            "similarity_mean": (labels.shape, "f", -1.001, 1.001),
            "background": ((n,), "b"),
            "similarity": ((*labels.shape, 8), "f", -1.001, 1.001),
        }
        for name, rule in found.items():
            # Files of 0.1.0 have no background, merging no similarity.
            if name in arrays or name in ("seeds", "similarity_mean"):
                nodes.check_array(node, name, arrays.get(name), *rule, nan=rule[1] == "f")
        settings = read_settings(node)
        edits = settings.get("edits", ())
        if not isinstance(edits, tuple) or not all(isinstance(edit, str) for edit in edits):
            raise nodes.damaged(node, "its settings hold edits that are no texts")
        similarity = None
        try:
            if "similarity" in arrays:
                made = read_settings(node, "similarity_settings")
                similarity = Similarity(arrays["similarity"], made, *step)
            return cls(
                labels,
                arrays["seeds"],
                arrays["similarity_mean"],
                settings,
                similarity,
                node.name,
                *step,
                np.flatnonzero(arrays.get("background", ())),
            )
        except (ValueError, TypeError) as error:
            raise nodes.damaged(node, str(error)) from error
