"""Clusters: the label map of a scan, and the properties of each cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import emdfile
import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_integer, check_name, check_number
from ..base.frozen import Frozen
from ..emd import nodes
from ..emd.settings import PROVENANCE, Settings
from ..kernels.regions import join_pairs
from ..kernels.tree import growth_steps
from ..patterns.similarity import Similarity
from .describe import describe_clusters
from .editing import renumber
from .grain import Grain
from .handover import HandOver
from .measuring import find_outlines, measure_properties
from .node import read_clusters, write_clusters
from .viewing import Viewing

NOTED = (
    "gain", "offset", "noise", "level", "automatic_level", "finest_level", "lag_share",
    "lag_axis", "n_background", "n_lost", "edits", "names", *PROVENANCE,
)  # fmt: skip
"""Settings of clusters that are not options of `cluster`: estimates, edits of the clusters, and the
source of the data."""


@dataclass(frozen=True, eq=False, repr=False)
class Clusters(HandOver, Viewing, Frozen):
    """A label map of the scan, with the properties of each cluster.

    ``datacube.cluster()`` makes it. Clusters never change: `relabel`, `remove` and `join` return
    new ones. ``len(clusters)`` is their number, ``clusters[3]`` is one of them, a `Grain`, and
    ``for grain in clusters`` goes through all.

    Parameters
    ----------
    labels : ndarray, (Rx, Ry), int
        Label of the cluster of each scan position, from 0; -1 outside clusters.
    seeds : ndarray, (N, 2), int
        Scan position (rx, ry) from which each cluster grew: the member with the highest mean
        similarity.
    similarity_mean : ndarray, (Rx, Ry)
        Mean similarity of each position with its neighbours, -1 to 1; NaN without neighbours.
    settings : mapping, optional
        Options that made the clusters, and the versions of this package and py4DSTEM.
    similarity : Similarity, optional
        Similarity from which the clusters grew. With it, another threshold needs no new measurement
        of the scan: ``datacube.cluster(threshold=0.8, similarity=clusters.similarity)``.
    name : str
        Name in the tree of the datacube.
    pixel_size : float
        Distance of neighbouring scan positions.
    pixel_units : str
        Unit of `pixel_size`.
    background : sequence of int
        Labels of clusters without Bragg peaks: liquid, vacuum, amorphous film.
    averages : ndarray, (N, Qx, Qy), optional
        Average pattern of each cluster. ``datacube.clusters`` and ``averages.clusters`` have them
        once `get_clustered_datacube` has made them.

    Raises
    ------
    ValueError
        If labels are not numbered from 0 to N - 1 without gaps, or shapes do not match.

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

    labels: NDArray[np.int32]
    seeds: NDArray[np.int64]
    similarity_mean: NDArray[np.float32]
    settings: Mapping[str, Any] = field(default_factory=dict)
    similarity: Similarity | None = None
    name: str = "clusters"
    pixel_size: float = 1.0
    pixel_units: str = "pixels"
    background: tuple[int, ...] = ()
    averages: NDArray[np.float32] | None = None

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
        averages = self.averages
        if averages is not None:
            averages = np.asarray(averages).view()  # no copy: they may be large
            if averages.ndim != 3 or len(averages) != len(seeds):
                raise ValueError(
                    f"averages of shape {averages.shape} must be {len(seeds)} patterns, one for "
                    "each cluster: (N, Qx, Qy)"
                )
            self._set(averages=averages)
        settings = Settings(self.settings, NOTED)
        self._set(labels=labels, seeds=seeds, similarity_mean=mean, settings=settings)
        self._set(background=tuple(self._check_labels(self.background)))

    # --- properties --------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """(Rx, Ry)"""
        rx, ry = self.labels.shape
        return rx, ry

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return len(self.seeds)

    @property
    def sizes(self) -> NDArray[np.int64]:
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
        label = check_integer("label", label.label if isinstance(label, Grain) else label, 0)
        if label >= self.n_clusters:
            known = f"0 to {self.n_clusters - 1}" if self.n_clusters else "none"
            raise ValueError(f"label {label} does not exist; the labels here are: {known}")
        return label

    def _check_labels(self, labels: Any) -> list[int]:
        labels = list(labels) if isinstance(labels, Iterable) else [labels]
        return sorted({self._check_label(label) for label in labels})

    def members(self, label: int) -> NDArray[np.int64]:
        """Scan positions (rx, ry) of one cluster, (n, 2), row by row."""
        return np.argwhere(self.labels == self._check_label(label))

    def contours(self, label: int) -> list[NDArray[np.float64]]:
        """Closed contours of one cluster.

        Parameters
        ----------
        label : int
            Label of the cluster.

        Returns
        -------
        list of ndarray, (n, 2)
            Points (rx, ry) in scan positions, half-way between members and other positions; the
            last point equals the first. There is one contour for each connected piece (joined
            clusters may have several), and one for each hole. Diagonal neighbours are connected.
        """
        return find_outlines(self.labels == self._check_label(label))

    def properties(self) -> NDArray[np.void]:
        """Size, shape and position of every cluster.

        Returns
        -------
        structured ndarray, (N,)
            A table for ``pandas.DataFrame``. Lengths are in `pixel_units`, areas in their square,
            centroids and seeds in scan positions. Fields:

            ``label``; ``size``, number of positions; ``area``; ``centroid_rx``, ``centroid_ry``;
            ``seed_rx``, ``seed_ry``; ``equivalent_diameter``, diameter of the circle of the same
            area; ``major_axis``, ``minor_axis``, axes of the ellipse with the same second moments;
            ``orientation``, angle from the Rx axis to the major axis, counter-clockwise towards Ry,
            -pi/2 to pi/2, radian; ``eccentricity`` of the ellipse, 0 to 1; ``solidity``, share of
            the convex hull that is filled; ``perimeter``, measured like the lengths of
            `get_boundaries`, and counting the border of the scan: round grains of a radius of 1,
            1.5 and 2 positions come out 6, 3 and 2 % short on average, larger ones less;
            ``similarity``, mean of `similarity_mean` over the members; ``touches_border``, whether
            the cluster reaches the border of the scan and may continue outside.

            Shapes are measured by `skimage.measure.regionprops`.
        """
        return measure_properties(self.labels, self.seeds, self.similarity_mean, self.pixel_size)

    def expand(self, values: Any) -> NDArray[Any]:
        """Make a map of the scan from one value for each cluster.

        Parameters
        ----------
        values : array-like, (N, ...)
            Numbers, one entry for each cluster.

        Returns
        -------
        ndarray, (Rx, Ry, ...)
            Each position has the value of its cluster; NaN outside clusters. Whole numbers become
            floating point numbers, which can be NaN.

        Raises
        ------
        ValueError, TypeError
            If there is not one number for each cluster.
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

    def growth_steps(self, label: int) -> NDArray[np.int64]:
        """Step at which each position joined a cluster of growth.

        Parameters
        ----------
        label : int
            Label of the cluster.

        Returns
        -------
        ndarray, (Rx, Ry), int
            0 at the seed. A position joins one step after the first neighbour that is similar
            enough. -1 outside the cluster, and in pieces that `join` added if growth from the seed
            does not reach them.

        Raises
        ------
        ValueError
            If the clusters did not grow at one threshold, or hold no similarity.
        """
        members = self.labels == self._check_label(label)
        # Files of version 0.1.0 have a threshold but no level.
        threshold = self.settings.get("level", self.settings.get("threshold"))
        if threshold is None or isinstance(threshold, str) or self.similarity is None:
            raise ValueError(
                f"how {self.name!r} grew is not known: it holds no one threshold or no similarity"
            )
        return growth_steps(self.similarity.data, members, tuple(self.seeds[label]), threshold)

    def growth_order(self, label: int) -> NDArray[np.int64]:
        """Scan positions (rx, ry) of a cluster in the order in which they joined, (n, 2).

        The seed is first. Positions of one step are in reading order. See `growth_steps`.
        """
        steps = self.growth_steps(label)
        members = np.argwhere(steps >= 0)
        return members[np.argsort(steps[steps >= 0], kind="stable")]

    # --- edits ------------------------------------------------------------------------

    def _renumbered(self, number: NDArray[Any], edit: str) -> Clusters:
        """Renumber cluster ``k`` as ``number[k]``, and note `edit` in the settings."""
        labels, seeds, background = renumber(
            self.labels, self.seeds, self.similarity_mean, self.background, number
        )
        settings = Settings(self.settings).everything
        settings["edits"] = (*settings.get("edits", ()), edit)
        return replace(
            self,
            labels=labels,
            seeds=seeds,
            settings=settings,
            background=background,
            averages=None,
        )

    def join_by_misorientation(
        self, orientation: Any, crystal: Any, *, max_angle: float = 5.0
    ) -> Clusters:
        """Join clusters that touch and have nearly the same orientation, as pieces of a grain do.

        Parameters
        ----------
        orientation, crystal
            See `get_boundaries`.
        max_angle : float
            Misorientation up to which neighbours join, degrees. Choose it above the error of the
            orientations and below the smallest angle between grains. If several neighbours join in
            a chain, the first and the last may differ by more.

        Returns
        -------
        Clusters
            In the same order, numbered without gaps. Make their averages again with
            `get_clustered_datacube`.
        """
        max_angle = check_number("max_angle", max_angle, 0, 180)
        table = self.get_boundaries(orientation, crystal, twin=None)
        near = table[table["angle"] <= max_angle]
        number = join_pairs(near["label_a"], near["label_b"], self.n_clusters)
        return self._renumbered(number, f"join_by_misorientation({max_angle})")

    def relabel(self, order: str | Iterable[int] = "size") -> Clusters:
        """Number the clusters in another order.

        Parameters
        ----------
        order : "size" or sequence of int
            "size" puts the largest cluster first. A sequence holds each label once; its first label
            becomes cluster 0.

        Returns
        -------
        Clusters
        """
        if isinstance(order, str):
            if order != "size":
                raise ValueError(f"order={order!r} must be 'size' or a sequence of all labels")
            sequence = np.argsort(-self.sizes, kind="stable")
            text = "relabel('size')"
        elif not isinstance(order, Iterable):
            raise TypeError(
                f"order={order!r} must be 'size' or a sequence of all labels, not "
                f"{type(order).__name__}"
            )
        else:
            sequence = np.array([self._check_label(label) for label in order], dtype=int)
            if len(sequence) != self.n_clusters or len(set(sequence)) != self.n_clusters:
                raise ValueError(f"order must hold each of the {self.n_clusters} labels once")
            text = f"relabel({sequence.tolist()})"
        number = np.empty(self.n_clusters, dtype=np.int32)
        number[sequence] = np.arange(self.n_clusters)
        return self._renumbered(number, text)

    def remove(self, labels: int | Iterable[int]) -> Clusters:
        """Remove clusters: their positions get label -1.

        Parameters
        ----------
        labels : int or sequence of int
            Clusters to remove.

        Returns
        -------
        Clusters
            The clusters that stay, in the same order, numbered without gaps.
        """
        gone = self._check_labels(labels)
        keep = np.ones(self.n_clusters, dtype=bool)
        keep[gone] = False
        number = np.where(keep, np.cumsum(keep) - 1, -1).astype(np.int32)
        return self._renumbered(number, f"remove({gone})")

    def join(self, labels: Iterable[int]) -> Clusters:
        """Join several clusters into one.

        Parameters
        ----------
        labels : sequence of int
            At least two. They need not touch.

        Returns
        -------
        Clusters
            The joined cluster has the lowest of the labels, and the seed with the highest mean
            similarity. The other clusters keep their order and are numbered without gaps.
        """
        together = self._check_labels(labels)
        if len(together) < 2:
            raise ValueError(f"join needs at least two different labels, not {together}")
        first = np.full(len(together), together[0])
        number = join_pairs(first, np.array(together), self.n_clusters)
        return self._renumbered(number, f"join({together})")

    def describe(self) -> str:
        """Describe how the clusters were made, for the methods section of a paper.

        Returns
        -------
        str
            Sentences with the numbers of these clusters, and references. Show it with ``print``. If
            something speaks against the clusters being grains (no background at all, a cluster that
            fills the field of view), a last paragraph says what to check.

        Examples
        --------
        >>> print(datacube.cluster(progress_bar=False).describe()[:66])
        The diffraction patterns of 8 x 10 scan positions (20 Å apart), re
        """
        return describe_clusters(self)

    # --- EMD ---------------------------------------------------------------------------------

    def to_node(self, averages: NDArray[Any] | None = None) -> emdfile.Node:
        """The clusters, and the averages of their patterns if given, as one RealSlice."""
        return write_clusters(self, averages)

    @classmethod
    def from_node(cls, node: emdfile.Node, step: tuple[float, str] | None = None) -> Clusters:
        """Read the clusters from a node of a datacube; the node may come from a file.

        `step` is the pixel size of the scan and its unit, by default from the calibration.
        """
        values = read_clusters(node, step)
        try:
            return cls(**values)
        except (ValueError, TypeError) as error:
            raise nodes.damaged(node, str(error)) from error
