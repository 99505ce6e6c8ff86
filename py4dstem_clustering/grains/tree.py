"""ClusterTree: in which order positions and regions join, to be cut at any level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import emdfile
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..base.checks import check_choice, check_integer
from ..base.frozen import Frozen
from ..emd import nodes
from ..emd.settings import Settings, add_settings, read_settings
from ..kernels.merging import Merges, cut_merges
from ..kernels.regions import consecutive
from ..kernels.similarity import similarity_mean
from ..kernels.tree import Forest, cut_at, label_nodes, link, most_stable, numbered
from ..patterns.similarity import Similarity
from ..scan.calibration import scan_step
from .background import is_background, powers, sum_nodes
from .clusters import NOTED, Clusters
from .options import METHODS, check_cut

TREE_KIND = "cluster_tree"

STABLE_SIZE = 40
"""Positions of the smallest cluster whose stability ``threshold="auto"`` of growth measures, in
scans of 20 times as many positions or more. Smaller branches of noise last long by chance."""

_ARRAYS = ("first", "second", "level", "mask", "automatic", "features", "brightness", "similarity")


@dataclass(frozen=True, eq=False, repr=False)
class ClusterTree(Frozen):
    """The order in which scan positions join to clusters.

    Made by ``datacube.get_cluster_tree()``. `cut` makes `Clusters` of it without touching the scan.

    Parameters
    ----------
    method : "grow" or "merge"
        How it was made.
    first, second : ndarray, (n,), int
        The joins from the finest to the coarsest: flat indices of a position in either part.
    level : ndarray, (n,)
        Level of each join. Growth: the similarity of the two positions, falling. Merging: the cost
        of the join, rising; 1 is where noise and the variation inside a grain end.
    mask : ndarray of bool, (Rx, Ry)
        Positions in the tree.
    settings : mapping
        How it was made, and what was estimated.
    similarity : Similarity or ndarray (Rx, Ry, 8)
        Similarity of neighbours; for merging, of their features.
    automatic : ndarray, (Rx, Ry), int, optional
        Merging: labels at level 1 with their borders refined; joins above 1 are of these.
    features : ndarray, (Rx, Ry, rank), optional
        Merging: what was compared, with noise of standard deviation 1.
    brightness : ndarray, (Rx, Ry), optional
        Merging: the mean radial profile in each pattern, in the same unit.
    pixel_size : float
        Distance of neighbouring scan positions.
    pixel_units : str
        Unit of `pixel_size`.

    Examples
    --------
    >>> tree = datacube.get_cluster_tree(method="grow", progress_bar=False)
    >>> [tree.cut(threshold, min_size=5).n_clusters for threshold in (0.95, 0.98)]
    [1, 2]
    """

    method: str
    first: NDArray[Any]
    second: NDArray[Any]
    level: NDArray[Any]
    mask: NDArray[Any]
    settings: Mapping[str, Any]
    similarity: Any
    automatic: NDArray[Any] | None = None
    features: NDArray[Any] | None = None
    brightness: NDArray[Any] | None = None
    pixel_size: float = 1.0
    pixel_units: str = "pixels"

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        arrays = {key: getattr(self, key) for key in _ARRAYS}
        # Features may be large, so nothing is copied.
        self._set(**{key: a.view() for key, a in arrays.items() if isinstance(a, np.ndarray)})
        self._set(settings=Settings(self.settings, NOTED))

    # --- what there is -----------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """(Rx, Ry)"""
        return self.mask.shape

    @property
    def levels(self) -> NDArray[Any]:
        """Levels at which anything changes, from the finest to the coarsest."""
        if self.method == "grow":
            return np.unique(self.level)[::-1]
        return np.unique(np.append(self.level, 1.0))  # where the automatic cut lies

    @cached_property
    def similarity_mean(self) -> NDArray[Any]:
        """Mean similarity of each position with its neighbours, (Rx, Ry)."""
        if isinstance(self.similarity, Similarity):
            return self.similarity.mean
        return similarity_mean(self.similarity)

    @cached_property
    def _fine(self) -> NDArray[Any]:
        """Joins of positions; those that are left join regions of the automatic cut."""
        if self.method == "grow":
            return np.ones(len(self.level), dtype=bool)
        return self.level <= 1

    @cached_property
    def _links(self) -> tuple[NDArray[Any], NDArray[Any]]:
        fine = self._fine
        return link(self.first[fine], self.second[fine], self.mask.size)

    def __repr__(self) -> str:
        rx, ry = self.shape
        return f"ClusterTree({self.method!r}, {len(self.level)} joins, {rx} x {ry} scan positions)"

    def n_clusters(self, *, min_size: int = 1, drop_background: bool | None = None) -> NDArray[Any]:
        """Number of clusters that `cut` finds at each of `levels`."""
        check_cut(self.method, None, None, min_size, drop_background)
        children, sizes = self._links
        counted = sizes >= min_size
        counted[: self.mask.size] &= self.mask.ravel()
        level = self.level[self._fine]
        if self.method == "grow":
            counts = _count(children, counted)[1:]
        else:
            drop = drop_background is None or drop_background
            # Above the automatic cut there are its regions.
            joins, coarse, _ = self.branches()
            dull, dull_regions, region_sizes = self._judged
            large = region_sizes >= min_size
            if drop:
                counted &= ~dull
                large &= ~dull_regions
            level = np.concatenate([level, [1.0], coarse])
            counts = np.concatenate([_count(children, counted)[1:], _count(joins, large)])
        # What the last join at each level leaves.
        order = level if self.method == "merge" else -level
        last = np.append(order[1:] != order[:-1], True) if len(order) else np.empty(0, bool)
        return counts[last]

    def branches(self, *, min_size: int = 1) -> tuple[NDArray[Any], NDArray[Any], int]:
        """Joins of large clusters, for a dendrogram.

        Parameters
        ----------
        min_size : int
            Growth: clusters of fewer positions do not count. Merging starts from the grains of the
            automatic cut, whatever their size.

        Returns
        -------
        joins : ndarray, (n, 2)
            Join `i` makes branch ``n_leaves + i`` of two older ones.
        level : ndarray, (n,)
        n_leaves : int
        """
        min_size = check_integer("min_size", min_size, 1)
        if self.method == "merge":
            coarse = ~self._fine
            flat = self.automatic.ravel()
            n = int(flat.max(initial=-1)) + 1
            joins, _ = link(flat[self.first[coarse]], flat[self.second[coarse]], n)
            return joins, self.level[coarse], n
        children, sizes = self._links
        n = self.mask.size
        # The branch that each large node continues; where two large ones meet, a new one.
        branch = np.where(sizes >= min_size, -2, -1)
        leaves = 0
        joins, levels = [], []
        for i, (a, b) in enumerate(children.tolist()):
            parts = [branch[k] for k in (a, b) if branch[k] != -1]
            for k in (a, b):
                if branch[k] == -2:
                    branch[k] = leaves
                    leaves += 1
            if len(parts) == 2:
                joins.append((branch[a], branch[b]))
                levels.append(self.level[i])
                branch[n + i] = -3 - (len(joins) - 1)
            elif len(parts) == 1:
                branch[n + i] = branch[a] if branch[a] != -1 else branch[b]
        pairs = np.array(joins, dtype=np.int64).reshape(-1, 2)
        pairs = np.where(pairs <= -3, leaves - 3 - pairs, pairs)
        return pairs, np.array(levels), max(leaves, 1)

    # --- cuts --------------------------------------------------------------------------------

    def cut(
        self,
        threshold: float | str | None = None,
        *,
        n_clusters: int | None = None,
        min_size: int = 1,
        drop_background: bool | None = None,
        name: str = "clusters",
    ) -> Clusters:
        """Clusters at one level, or at the most stable ones.

        Parameters
        ----------
        threshold : float or "auto", optional
            Growth: the similarity from which neighbours join, -1 to 1. Merging: 1 is the automatic
            cut, with refined borders; above it grains join that differ less than the others, below
            it lie the pieces that grains were made of. "auto", the default: merging at 1; growth
            where clusters are most stable, each branch at its own level.
        n_clusters : int, optional
            Instead: the level at which there are this many clusters of at least `min_size`
            positions, or as many as possible below it. Of several levels, the coarsest for growth,
            and the nearest to the automatic one for merging.
        min_size : int
            Clusters of fewer positions are dropped: label -1. For "auto" of growth also the size
            from which stability counts, which is at least 40 (a twentieth of a small scan).
        drop_background : bool, optional
            Merging: regions without Bragg peaks become -1 (default), or stay clusters, listed in
            ``clusters.background``. Growth knows no background; an `r_mask` leaves it out.
        name : str
            Name of the clusters.

        Returns
        -------
        Clusters
            Growth: numbered by the mean similarity of their seeds. Merging: by size.

        Raises
        ------
        ValueError, TypeError
            If an argument breaks its rule.
        """
        check_cut(self.method, threshold, n_clusters, min_size, drop_background)
        min_size = int(min_size)
        if threshold is None:
            threshold = "auto"
        elif threshold != "auto":
            threshold = float(threshold)
        settings = {
            **Settings(self.settings).everything,
            "threshold": threshold if n_clusters is None else None,
            "n_clusters": n_clusters,
            "min_size": min_size,
            "name": name,
        }
        if n_clusters is not None:
            counts = self.n_clusters(min_size=min_size, drop_background=drop_background)
            threshold = level_for(self, counts, n_clusters)
        if self.method == "grow":
            settings["level"] = None if threshold == "auto" else threshold
            labels, seeds = self._grown(threshold, min_size)
            background: tuple[int, ...] = ()
        else:
            settings["level"] = 1.0 if threshold == "auto" else threshold
            drop = True if drop_background is None else bool(drop_background)
            settings["drop_background"] = drop
            labels, seeds, background, dropped = self._merged(settings["level"], min_size, drop)
            settings["n_background"] = dropped
        return Clusters(
            labels,
            seeds,
            self.similarity_mean,
            settings,
            self.similarity if isinstance(self.similarity, Similarity) else None,
            name,
            self.pixel_size,
            self.pixel_units,
            background,
        )

    def _grown(self, threshold: float | str, min_size: int) -> tuple[NDArray[Any], NDArray[Any]]:
        forest = Forest(self.first, self.second, self.level, self.mask)
        if threshold != "auto":
            return cut_at(forest, threshold, self.similarity_mean, min_size)
        children, sizes = self._links
        # Levels as ranks: the share of joins still to come. Noise crowds similarities together at
        # a value of its own, and ranks spread them again.
        rank = np.linspace(1, 0, len(children))
        least = max(2, min(STABLE_SIZE, int(self.mask.sum()) // 20), min_size)
        nodes = most_stable(children, sizes, rank, least)
        labels = label_nodes(children, nodes, self.mask.size).reshape(self.shape)
        return numbered(labels, self.similarity_mean, by_size=False)

    def _coarse(self, level: float) -> NDArray[Any]:
        """The regions of the automatic cut, joined up to a level above 1."""
        labels = self.automatic
        join = ~self._fine & (self.level <= level)
        n = int(labels.max(initial=-1)) + 1
        target = np.arange(n)
        flat = labels.ravel()
        for a, b in zip(flat[self.first[join]], flat[self.second[join]], strict=True):
            target[target == target[b]] = target[a]
        return consecutive(np.append(target, -1)[labels])  # -1 stays -1, also without regions

    def _merged(
        self, level: float, min_size: int, drop: bool
    ) -> tuple[NDArray[Any], NDArray[Any], tuple[int, ...], int]:
        if level >= 1:
            labels = self._coarse(level)
        else:
            children, _ = self._links
            labels = cut_merges(Merges(children, self.level[self._fine], self.mask), level)
        background = self._background(labels)
        small = np.bincount(labels[labels >= 0], minlength=len(background)) < min_size
        gone = (small | background) if drop else small
        labels = consecutive(np.where(np.append(gone, True)[labels], -1, labels))
        labels, seeds = numbered(labels, self.similarity_mean, by_size=True)
        dropped = int((background & ~small).sum())
        left = () if drop else tuple(np.flatnonzero(self._background(labels)))
        return labels, seeds, left, dropped

    def _background(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Which regions have no power beyond the radial mean."""
        return is_background(self._totals(labels), self._strongest)

    @cached_property
    def _strongest(self) -> float:
        """Power of the strongest region of the automatic cut; infinite where there is only one.

        One alone is judged by its radial profile: at any dose, as much of that as the rings miss
        is left in the mean of liquid (up to 0.025 where the centre of the beam is not calibrated).
        """
        power = powers(self._totals(self.automatic))[0]
        return float(power.max()) if len(power) > 1 else np.inf

    @cached_property
    def _judged(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Which nodes below the automatic cut and above it are background; sizes of the latter."""
        below = sum_nodes(self._links[0], self._columns.T)
        above = sum_nodes(self.branches()[0], self._totals(self.automatic))
        strongest = self._strongest
        return is_background(below, strongest), is_background(above, strongest), above[:, -1]

    @cached_property
    def _columns(self) -> NDArray[Any]:
        """Of each position: features, their sum of squares, brightness, and 1; one a row."""
        flat = self.features.reshape(self.mask.size, -1).T.astype(np.float64, order="C")
        last = ((flat**2).sum(axis=0), self.brightness.ravel(), np.ones(flat.shape[1]))
        return np.vstack([flat, *last])

    def _totals(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Sums of `_columns` over each region."""
        number = labels.ravel() + 1  # the first is what lies in none, and goes
        n = int(labels.max(initial=-1)) + 2
        return np.stack([np.bincount(number, row, n) for row in self._columns], axis=1)[1:]

    # --- pictures ----------------------------------------------------------------------------

    def plot(self, axes: Any = None, **options: Any) -> Any:
        """Draw the number of clusters over the level, and a dendrogram; see `plot_tree`."""
        from ..plotting.results import plot_tree

        return plot_tree(self, axes, **options)

    # --- EMD ---------------------------------------------------------------------------------

    def to_node(self, name: str = "cluster_tree") -> emdfile.Node:
        """The tree as one stock RealSlice of the mean similarity; all else is in its metadata."""
        from py4DSTEM import RealSlice

        node = RealSlice(self.similarity_mean, name=name)
        nodes.tag(node, TREE_KIND)
        add_settings(node, self.settings)
        arrays = {key: getattr(self, key) for key in _ARRAYS}
        if isinstance(self.similarity, Similarity):
            arrays["similarity"] = self.similarity.data
            add_settings(node, self.similarity.settings, "similarity_settings")
        arrays = {key: value.copy() for key, value in arrays.items() if value is not None}
        node.metadata = emdfile.Metadata("arrays", arrays)
        return node

    @classmethod
    def from_node(cls, node: emdfile.Node) -> ClusterTree:
        """The tree in a node of a datacube, also one read from a file."""
        nodes.check_kind(node, TREE_KIND, "cluster tree", "one with datacube.get_cluster_tree()")
        arrays = nodes.read_arrays(node)
        settings = read_settings(node)
        step = scan_step(node)
        method = settings.get("method")
        if not isinstance(method, str) or method not in METHODS:
            names = " or ".join(map(repr, METHODS))
            raise nodes.damaged(node, f"its method {nodes.in_one_line(method)} must be {names}")
        _check_arrays(node, method, arrays)
        made = read_settings(node, "similarity_settings")
        try:
            similarity = Similarity(arrays["similarity"], made, *step)
        except (ValueError, TypeError) as error:
            raise nodes.damaged(node, str(error)) from error
        if method == "grow":
            arrays["similarity"] = similarity
        values = {key: arrays.get(key) for key in _ARRAYS}
        return cls(
            method=method, settings=settings, pixel_size=step[0], pixel_units=step[1], **values
        )


def level_for(tree: ClusterTree, counts: NDArray[Any], n_clusters: int) -> float:
    """The level with `n_clusters`, or the most below it, given the number at each level."""
    if not len(counts):
        return 1.0
    enough = counts <= n_clusters
    if tree.method == "merge":
        # Before most clusters have grown to their least size, few have by chance.
        enough &= np.arange(len(counts)) >= len(counts) - 1 - counts[::-1].argmax()
    if not enough.any():
        raise ValueError(
            f"n_clusters={n_clusters} cannot be had: there are {counts.min()} clusters or more "
            "at every level; parts of the mask that do not touch never join"
        )
    best = tree.levels[enough & (counts == counts[enough].max())]
    if tree.method == "merge":  # the nearest to the automatic one, as a ratio
        return float(best[np.abs(np.log(np.maximum(best, 1e-300))).argmin()])
    return float(best[-1])  # the coarsest, with the most positions in clusters


def _check_arrays(node: emdfile.Node, method: str, arrays: Mapping[str, Any]) -> None:
    """The arrays of a tree in a file: what there must be, of which shape, and joins that are."""

    def check(name: str, *rule: Any, **options: Any) -> NDArray[Any]:
        return nodes.check_array(node, name, arrays.get(name), *rule, **options)

    mask = check("mask", (None, None), "b")
    check("similarity", (*mask.shape, 8), "f", -1.001, 1.001, nan=True)
    low, high = (-1.001, 1.001) if method == "grow" else (0, np.inf)
    level = check("level", (None,), "f", low, high)
    first, second = (
        check(name, level.shape, "iu", 0, mask.size - 1) for name in ("first", "second")
    )
    order = np.diff(level) if method == "merge" else -np.diff(level)
    if (order < 0).any():
        raise nodes.damaged(node, "its levels are not in order")
    fine, coarse = np.ones(len(level), dtype=bool), np.zeros(len(level), dtype=bool)
    if method == "merge":
        automatic = check("automatic", mask.shape, "iu", -1, mask.size - 1)
        check("features", (*mask.shape, None), "f")
        check("brightness", mask.shape, "f")
        found = np.unique(automatic)
        if not np.array_equal(found[found >= 0], np.arange(found.max(initial=-1) + 1)):
            raise nodes.damaged(node, "its automatic labels are not numbered without gaps")
        coarse = level > 1
        fine = ~coarse
        regions = automatic.ravel()
        joined = regions[first[coarse]], regions[second[coarse]]
        if not (np.min(joined, initial=0) >= 0 and _is_forest(*joined, int(found.max(initial=-1)))):
            raise nodes.damaged(node, "its joins of regions go round in a circle")
    flat = mask.ravel()
    inside = flat[first[fine]].all() and flat[second[fine]].all()
    if not (inside and _is_forest(first[fine], second[fine], mask.size - 1)):
        raise nodes.damaged(node, "its joins go round in a circle, or out of its mask")


def _is_forest(first: NDArray[Any], second: NDArray[Any], last: int) -> bool:
    """Whether each join of things numbered from 0 to `last` is of two that were apart."""
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(last + 1, last + 1))
    return connected_components(graph, directed=False)[0] == last + 1 - len(first)


def _count(children: NDArray[Any], counted: NDArray[Any]) -> NDArray[Any]:
    """Number of `counted` nodes that are roots, before the first join and after each."""
    n = len(counted) - len(children)
    change = counted[n:].astype(int) - counted[children].sum(axis=1)
    return np.cumsum(np.append(counted[:n].sum(), change))
