"""Grains that overlap: each has a support, a share at each position and a pure pattern."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import emdfile
import numpy as np
from numpy.typing import NDArray
from py4DSTEM import DataCube

from ..base.checks import (
    check_data,
    check_flag,
    check_memory,
    check_n_jobs,
    check_name,
    check_same_scan,
)
from ..base.frozen import Frozen
from ..base.progress import progress
from ..emd import nodes
from ..kernels.averaging import averaging_core, averaging_need
from ..kernels.blas import single_threaded_blas
from ..kernels.overlaps import OverlapMaps, join_cut, overlaps_core
from ..scan.calibration import carry_calibration
from ..scan.datacubes import new_datacube, warn_of_other_data
from .clusters import Clusters
from .measuring import PROPERTIES, find_outlines, measure_properties
from .node import CLUSTERS_KIND
from .options import check_options
from .overlap_handover import OverlapHandOver
from .table import ClusterTable, property_units
from .tree_of_scan import measure_merging

_ARRAYS = "overlaps"

_MAPS = ("supports", "shares", "alone", "residual", "share_error")

_OWN_FIELDS = (("alone_part", "<f8"), ("mean_share", "<f8"), ("n_covered", "<i8"))
"""Fields of `OverlappingGrains.properties` beside those of `Clusters.properties`."""


@dataclass(frozen=True, eq=False, repr=False)
class OverlappingGrains(OverlapHandOver, Frozen):
    """Grains whose supports may overlap; from ``datacube.find_overlaps()``.

    The arrays are read-only.

    Attributes
    ----------
    clusters : Clusters
        One label for each position: the grain with the largest amount, which is how bright its
        disks are relative to where it is alone. This is mostly the grain with the largest share.
        Averages, orientations and strain take it as any other `Clusters`. A grain that is nowhere
        the strongest keeps the one position where its amount is largest.
    supports : ndarray, (Rx, Ry, N), bool
        Where each grain lies, also under, inside or over others.
    shares : ndarray, (Rx, Ry, N)
        Share of each grain in what the disks of the grains hold, 0 to 1. They sum to 1 in supports.
        The probe is broad, so a grain may have a share beside its support, too. Where the probe
        does not meet the grain, its share is 0. These are shares of electrons, not of thickness.
    alone : ndarray, (Rx, Ry), bool
        Positions where the pattern is that of one grain alone.
    residual : ndarray, (Rx, Ry)
        Part of the power of the pattern, beyond noise and radial profile, that is not explained by
        the grains, 0 to 1. Large values: a further grain, bending, or disks of double diffraction.
    share_error : ndarray, (Rx, Ry)
        Standard error of the largest share, from counting noise; 0 where one grain is alone.
    """

    clusters: Clusters
    supports: NDArray[np.bool_]
    shares: NDArray[np.float32]
    alone: NDArray[np.bool_]
    residual: NDArray[np.float32]
    share_error: NDArray[np.float32]

    def __post_init__(self) -> None:
        super().__post_init__()
        maps = (*self.clusters.shape, self.clusters.n_clusters)
        for name, shape in (
            ("supports", maps), ("shares", maps), ("alone", maps[:2]), ("residual", maps[:2]),
            ("share_error", maps[:2]),
        ):  # fmt: skip
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(
                    f"{name} of shape {np.shape(getattr(self, name))} must have the shape {shape}, "
                    "that of the scan of these clusters and of their number"
                )

    @property
    def n_grains(self) -> int:
        """Number of grains, N."""
        return self.clusters.n_clusters

    @property
    def alone_part(self) -> NDArray[np.float64]:
        """Part of its support in which each grain was seen alone, (N,), 0 to 1."""
        own = (self.supports & self.alone[..., None]).sum(axis=(0, 1))
        return np.asarray(own / np.maximum(self.supports.sum(axis=(0, 1)), 1))

    @property
    def never_alone(self) -> NDArray[np.bool_]:
        """Grains (N,) that are nowhere alone: their pure pattern is a difference of patterns."""
        return self.alone_part == 0

    @property
    def n_above(self) -> NDArray[np.int64]:
        """Number of grains at each position, (Rx, Ry): 2 where two lie above one another."""
        return self.supports.sum(axis=2)

    @property
    def purity(self) -> NDArray[np.float32]:
        """Largest share at each position, (Rx, Ry); 0 where there is no grain."""
        return self.shares.max(axis=2, initial=0)

    def properties(self) -> NDArray[np.void]:
        """Size, shape and place of the support of every grain.

        Returns
        -------
        structured ndarray, (N,)
            The fields of `Clusters.properties`, measured on supports, so covered parts count. And
            ``alone_part``, see there; ``mean_share``, the mean share in the support; ``n_covered``,
            number of positions where another grain has the larger share. Seeds are those of
            `clusters`.
        """
        n = self.n_grains
        table = np.zeros(n, dtype=[*PROPERTIES.descr, *_OWN_FIELDS])
        strongest = self.shares.argmax(axis=2) if n else np.zeros(self.clusters.shape, dtype=int)
        for k in range(n):
            own = self.supports[..., k]
            table["label"][k] = k
            table["seed_rx"][k], table["seed_ry"][k] = self.clusters.seeds[k]
            if own.any():
                (row,) = measure_properties(
                    own.astype(np.int32) - 1,
                    self.clusters.seeds[k : k + 1],
                    self.clusters.similarity_mean,
                    self.clusters.pixel_size,
                )
                for name in PROPERTIES.names[1:]:  # type: ignore[index]
                    table[name][k] = row[name]
                table["mean_share"][k] = self.shares[..., k][own].mean(dtype=np.float64)
                table["n_covered"][k] = (own & (strongest != k)).sum()
        table["alone_part"] = self.alone_part
        return table

    def table(self) -> ClusterTable:
        """The rows of `properties`, as a table that prints itself, with units."""
        return ClusterTable(self.properties(), property_units(self.clusters.pixel_units))

    def contours(self, label: int) -> list[NDArray[np.float64]]:
        """Closed contours of the support of one grain, as `Clusters.contours`."""
        self.clusters.members(label)  # checks the label
        own = self.supports[..., label]
        return find_outlines(own) if own.any() else []

    def get_pure_patterns(
        self,
        datacube: DataCube,
        *,
        name: str = "pure_patterns",
        n_jobs: int | None = None,
        max_memory: int | str | None = None,
        progress_bar: bool = True,
    ) -> DataCube:
        """Mean pattern of each grain, without the grains above and below it.

        A grain that is alone somewhere is averaged there. From the mean of another one, at the
        positions where its share is large, the patterns of the other grains are subtracted, each by
        its share, and values below zero are set to zero. Patterns are sums where grains scatter one
        after the other without interference. Disks of double diffraction belong to both grains, and
        stay in the pattern of a grain that is never alone.

        Parameters
        ----------
        datacube : DataCube
            The scan, unfiltered.
        name : str
            Name of the result.
        n_jobs, max_memory, progress_bar
            See `get_clustered_datacube`.

        Returns
        -------
        DataCube, (N, 1, Qx, Qy)
            As the averages of clusters: ``find_Bragg_disks`` and ``match_orientations`` then give
            the orientation of each grain, so two where two grains lie.

        Raises
        ------
        ValueError, TypeError
            If an argument is wrong, the scan has another shape, or there are no grains.
        """
        check_data(getattr(datacube, "data", None))
        check_same_scan("grains", self.clusters.shape, datacube.Rshape)
        name = check_name(name)
        n_jobs = check_n_jobs(n_jobs)
        progress_bar = check_flag("progress_bar", progress_bar)
        if self.n_grains == 0:
            raise ValueError("there are no grains, so there is nothing to average")
        warn_of_other_data("the grains were", self.clusters.settings, datacube)
        n_rows = check_memory(
            max_memory, partial(averaging_need, datacube.data, self.n_grains, n_jobs)
        )
        labels = self._purest()
        with progress(datacube.R_Nx, "Averaging", progress_bar) as report:
            means = averaging_core(
                datacube.data, labels, n_jobs=n_jobs, report=report, n_rows=n_rows
            )
        pure = means.copy()
        for k in np.flatnonzero(self.never_alone).tolist():
            share = self.shares[labels == k].mean(axis=0, dtype=np.float64)
            own = share[k]
            share[k] = 0
            if own > 0:
                rest = means[k] - np.tensordot(share, means.astype(np.float64), 1)
                pure[k] = np.maximum(rest / own, 0)
        calibration = carry_calibration(datacube, labels)
        return new_datacube(pure[:, None], name, calibration, dict(datacube.metadata), "cluster")

    def _purest(self) -> NDArray[np.int64]:
        """Labels of the positions that are averaged for each grain; -1 elsewhere."""
        labels = np.where(self.alone, self.supports.argmax(axis=2), -1)
        hidden = np.flatnonzero(self.never_alone).tolist()
        for k in hidden:
            own = self.shares[..., k]
            labels[(own > 0.5 * own.max(initial=0)) & self.supports[..., k]] = k
        _place_all(labels, self.shares)
        return labels

    def describe(self) -> str:
        """Describe how the grains were found, for the methods section of a paper."""
        n, hidden = self.n_grains, int(self.never_alone.sum())
        both = (self.n_above > 1).sum()
        return (
            f"{self.clusters.describe()}\n\nGrains may overlap: regions of one pattern whose mean "
            f"is a sum of others nearby were taken for overlaps. {n} grains were found; at {both} "
            f"of {self.alone.size} scan positions two or more of them lie above one another. "
            "Non-negative least squares gave the amounts of at most three grains at each position; "
            "their shares are what the disks of each hold there, outside the direct beam. "
            f"{hidden} of the grains are nowhere alone; their patterns are differences."
        )

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Draw the grains, overlaps hatched, purity, or how many grains lie above one another.

        See `py4dstem_clustering.plot_overlaps`.
        """
        from ..plotting.overlaps import plot_overlaps

        return plot_overlaps(self, ax, **options)

    def to_node(self, averages: NDArray[Any] | None = None) -> emdfile.Node:
        """The clusters, and pure patterns if given, as a RealSlice; its metadata hold the maps."""
        node = self.clusters.to_node(averages)
        node.metadata = emdfile.Metadata(
            _ARRAYS,
            {name: getattr(self, name).copy() for name in _MAPS},
        )
        return node

    @classmethod
    def from_node(
        cls, node: emdfile.Node, step: tuple[float, str] | None = None
    ) -> OverlappingGrains:
        """Read the grains from a node of a datacube, such as ``datacube.tree("overlaps")``.

        `step` is the pixel size of the scan and its unit, by default from the calibration.

        Raises
        ------
        ValueError
            If the node holds no overlapping grains, or is damaged.
        """
        clusters = Clusters.from_node(node, step)
        metadata = node.metadata.get(_ARRAYS)
        if not isinstance(metadata, emdfile.Metadata):
            raise ValueError(
                f"{nodes.in_one_line(node.name)} holds clusters without overlaps; make some with "
                "datacube.find_overlaps()"
            )
        arrays = metadata._params
        maps = (*clusters.shape, clusters.n_clusters)
        for name, shape, kind, high in (
            ("supports", maps, "b", 1), ("shares", maps, "f", 1.001),
            ("alone", maps[:2], "b", 1), ("residual", maps[:2], "f", 1.001),
            ("share_error", maps[:2], "f", 1.001),
        ):  # fmt: skip
            nodes.check_array(node, name, arrays.get(name), shape, kind, 0, high)
        return cls(clusters, *(arrays[name] for name in _MAPS))

    def __repr__(self) -> str:
        both = (self.n_above > 1).mean() if self.alone.size else 0.0
        rx, ry = self.clusters.shape
        return (
            f"OverlappingGrains({self.n_grains} grains, {rx} x {ry} scan positions, "
            f"{both:.0%} of them in overlaps)"
        )


def find_overlaps(
    self: DataCube,
    *,
    q_mask: NDArray[np.bool_] | None = None,
    r_mask: NDArray[np.bool_] | float | str | None = None,
    name: str = "overlaps",
    returncalc: bool = True,
    n_jobs: int | None = None,
    max_memory: int | str | None = None,
    progress_bar: bool = True,
) -> OverlappingGrains | None:
    """Find grains that may lie on top of each other, inside each other, or side by side.

    `cluster` gives each position one label. Where grains are stacked, or a particle has a core and
    a shell, patterns are sums; here each grain has a support of its own, and a share at each
    position. Where nothing overlaps, the labels are those of `cluster`.

    Parameters
    ----------
    q_mask : ndarray of bool, (Qx, Qy), optional
        Detector pixels that count; by default all. See `cluster`.
    r_mask : ndarray of bool (Rx, Ry), number, name, or None
        Positions that can be in a grain; by default all. See `cluster`.
    name : str
        Name in the tree of this datacube. There, ``datacube.clusters`` then are the labels of the
        strongest grains, and ``OverlappingGrains.from_node(datacube.tree(name))`` all.
    returncalc : bool
        Return the result. The tree of the datacube keeps it in any case.
    n_jobs : int, optional
        Number of threads; by default all cores that the process may use.
    max_memory : int or str, optional
        Bytes, or a text such as "1 GB", that the work may take; see `filter_correlative`. The maps
        of the grains, about 22 bytes for each grain and position, are not counted.
    progress_bar : bool
        Show progress.

    Returns
    -------
    OverlappingGrains

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong. The check comes before any work.

    Notes
    -----
    Regions of one pattern are the start, as `cluster` finds them before it cuts those whose
    patterns vary. A region whose mean pattern is a non-negative sum of those of other regions
    nearby is an overlap or a piece of a grain, and is dropped, the smallest first. If a grain lies
    inside another one, as much of the pattern of the other is subtracted as its disks allow.
    Non-negative least squares, with at most three grains nearby, then
    give the amount of each grain, relative to where it is alone; a support is where amount and
    share of amounts stand out, connected to the region of the grain. Overlaps narrower than three
    positions are taken for borders that the probe blurs. Pieces of one bent crystal are one grain.

    The share of a grain is its part of what the disks of all grains hold at a position, outside the
    direct beam. Where two grains have disks at the same place, each has about half of it. Shares
    are shares of thickness only where all grains scatter equally strongly, which is rare. A grain
    of which no region is led by its own disks is not found.

    Examples
    --------
    >>> from py4dstem_clustering import simulate_sample
    >>> sample = simulate_sample("stacked", (24, 20), (32, 30), seed=1)
    >>> grains = sample.datacube.find_overlaps(progress_bar=False)
    >>> grains.supports.shape == (24, 20, grains.n_grains)
    True
    """
    name = check_name(name)
    returncalc = check_flag("returncalc", returncalc)
    nodes.check_free(self, name, CLUSTERS_KIND)
    check_data(self.data)
    options = check_options(self.Rshape, self.Qshape, method="merge", q_mask=q_mask, r_mask=r_mask)
    tree, disks, regions = measure_merging(
        self, options, n_jobs=n_jobs, max_memory=max_memory, progress_bar=progress_bar
    )
    crystals = tree.cut(name=name)
    with single_threaded_blas, progress(2 * self.R_Nx, "Finding overlaps", progress_bar) as report:
        maps = overlaps_core(
            np.asarray(tree.features),  # without the lag of the camera
            join_cut(tree.cut(level="pattern").labels, regions, crystals.labels),
            crystals.labels,
            tree.mask,
            disks,
            report,
        )
    result = _result(maps, crystals)
    nodes.put(self, result.to_node())
    return result if returncalc else None


def _result(maps: OverlapMaps, crystals: Clusters) -> OverlappingGrains:
    """Grains numbered by the size of their labels, the largest first."""
    labels, home = strongest_labels(maps, crystals.labels)
    n = maps.supports.shape[2]
    size = np.bincount(labels[labels >= 0], minlength=n)
    order = np.lexsort((home, -size))
    number = np.append(np.argsort(order), -1)
    labels = number[labels]
    supports = maps.supports[..., order]
    mean = np.where(np.isfinite(crystals.similarity_mean), crystals.similarity_mean, -2)
    seeds = [
        np.unravel_index(int(np.where(labels == k, mean, -3).argmax()), labels.shape)
        for k in range(n)
    ]
    clusters = replace(
        crystals,
        labels=labels.astype(np.int32),
        seeds=np.array(seeds, dtype=np.int64).reshape(-1, 2),
        background=(),
    )
    shares = maps.shares[..., order]
    return OverlappingGrains(
        clusters, supports, shares, maps.alone, maps.residual, maps.share_error
    )


def strongest_labels(
    maps: OverlapMaps, crystals: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Label of the strongest grain at each position, and the crystal in which each grain lies.

    Where a crystal holds one grain, and outside of overlaps, the grain takes its positions.
    """
    n = maps.supports.shape[2]
    home = np.full(n, -1, dtype=np.int64)
    for k in range(n):
        found, count = np.unique(crystals[maps.cores == k], return_counts=True)
        home[k] = found[count.argmax()]
    amounts = np.where(maps.supports, maps.amounts, 0) if n else np.zeros((*crystals.shape, 1))
    # Inside a crystal but in no support, the strongest grain counts, however weak.
    amounts = np.where(amounts.any(axis=2, keepdims=True), amounts, maps.amounts if n else 0)
    labels = np.where((crystals >= 0) & amounts.any(axis=2), amounts.argmax(axis=2), -1)
    clear = maps.supports.sum(axis=2) <= 1
    for crystal in range(int(crystals.max(initial=-1)) + 1):
        own = np.flatnonzero(home == crystal)
        if len(own) == 1:
            labels[(crystals == crystal) & clear] = own[0]
    _place_all(labels, maps.amounts)
    return labels, home


def _place_all(labels: NDArray[np.int64], strength: NDArray[Any]) -> None:
    """Give each grain without a position the one where it is strongest, in place.

    No grain loses its only position.
    """
    n = strength.shape[2]
    for k in np.setdiff1d(np.arange(n), labels).tolist():
        count = np.bincount(labels[labels >= 0], minlength=n)
        free = (labels < 0) | (np.append(count, 2)[labels] > 1)
        labels.flat[np.where(free, strength[..., k], -1).argmax()] = k
