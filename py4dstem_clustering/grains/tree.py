"""ClusterTree: the order in which positions and regions join, and clusters at any level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import emdfile
import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_choice, check_integer
from ..base.frozen import Frozen
from ..emd.settings import Settings
from ..kernels.crystals import PATTERN_LEVEL
from ..kernels.merging import Merges, cut_merges
from ..kernels.regions import consecutive, join_pairs
from ..kernels.similarity import similarity_mean
from ..kernels.tree import Forest, cut_at, label_nodes, link, most_stable, numbered
from ..patterns.similarity import Similarity
from .branches import Branches, branches_of_growth, branches_of_regions
from .clusters import NOTED, Clusters
from .node import TREE_ARRAYS, read_tree, write_tree
from .options import METHODS, ClusterOptions, Level, Method, check_cut

STABLE_SIZE = 40
"""Smallest size, in scan positions, of clusters of growth with ``threshold="auto"``; a twentieth of
the positions of the tree if that is less. With a smaller size, branches of noise that by chance
last over many levels become clusters. With a larger size, small grains are not found."""


@dataclass(frozen=True, eq=False, repr=False)
class ClusterTree(Frozen):
    """The order in which scan positions join to clusters.

    ``datacube.get_cluster_tree()`` makes it. `cut` makes `Clusters` from it without the scan.

    Parameters
    ----------
    method : "grow" or "merge"
        Method by which the tree was made.
    first, second : ndarray, (n,), int
        Joins from the finest to the coarsest. Each join connects two parts; `first` and `second`
        are the flat indices of one position in each part.
    level : ndarray, (n,)
        Level of each join. Growth: the similarity of the two positions; it falls. Merging: the cost
        of the join; it rises. Regions of one pattern are cut at 1, crystals at 2.
    mask : ndarray of bool, (Rx, Ry)
        Positions in the tree.
    settings : mapping
        Options that made the tree, and estimates such as the gain.
    similarity : Similarity or ndarray (Rx, Ry, 8)
        Growth: similarity of neighbours. Merging: similarity of the features of neighbours.
    automatic : ndarray, (Rx, Ry), int, optional
        Merging: labels of the finest regions with refined borders, at `finest_level`. Joins above
        this level join these regions, joins below it positions.
    features : ndarray, (Rx, Ry, rank), optional
        Merging: the features that were compared, in units of the standard deviation of their noise.
    background : ndarray of bool, (Rx, Ry), optional
        Merging: positions without Bragg disks. A cluster is background if most of it is.
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

    method: Method
    first: NDArray[Any]
    second: NDArray[Any]
    level: NDArray[Any]
    mask: NDArray[np.bool_]
    settings: Mapping[str, Any]
    similarity: Any
    automatic: NDArray[Any] | None = None
    features: NDArray[Any] | None = None
    background: NDArray[np.bool_] | None = None
    pixel_size: float = 1.0
    pixel_units: str = "pixels"

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        arrays = {key: getattr(self, key) for key in TREE_ARRAYS}
        # Views and no copies, because features may be large.
        self._set(**{key: a.view() for key, a in arrays.items() if isinstance(a, np.ndarray)})
        self._set(settings=Settings(self.settings, NOTED))

    # --- levels and branches -----------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """(Rx, Ry)"""
        rx, ry = self.mask.shape
        return rx, ry

    @property
    def levels(self) -> NDArray[Any]:
        """Levels at which clusters change, from the finest to the coarsest."""
        if self.method == "grow":
            return np.unique(self.level)[::-1]
        named = list(self.named_levels.values())
        return np.unique(np.append(self.level, [self.finest_level, *named]))

    @property
    def automatic_level(self) -> float:
        """Merging: level of the automatic cut, 2; 1 in files from before crystals had a level."""
        return float(self.settings.get("automatic_level", PATTERN_LEVEL))

    @property
    def named_levels(self) -> dict[str, float]:
        """Levels of merging by their names, the finest first: "pattern" and "crystal"."""
        if self.method == "grow":
            return {}
        names = {"pattern": PATTERN_LEVEL, "crystal": self.automatic_level}
        if self.automatic_level == PATTERN_LEVEL:
            del names["crystal"]
        return names

    @property
    def finest_level(self) -> float:
        """Merging: lowest level with refined borders. Cuts below it are as positions join."""
        return float(self.settings.get("finest_level", PATTERN_LEVEL))

    @cached_property
    def similarity_mean(self) -> NDArray[Any]:
        """Mean similarity of each position with its neighbours, (Rx, Ry)."""
        if isinstance(self.similarity, Similarity):
            return self.similarity.mean
        return similarity_mean(self.similarity)

    @property
    def _regions(self) -> NDArray[Any]:
        """Merging: labels of the finest regions with refined borders."""
        return cast(NDArray[Any], self.automatic)

    @cached_property
    def _fine(self) -> NDArray[Any]:
        """True for joins of positions; the other joins are of regions."""
        if self.method == "grow":
            return np.ones(len(self.level), dtype=bool)
        return self.level <= self.finest_level

    @cached_property
    def _links(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Joins of positions as a binary tree: children of each node, and sizes of all nodes."""
        fine = self._fine
        children, sizes = link(self.first[fine], self.second[fine], self.mask.size)
        if self.method == "merge":  # lost frames connect positions, but are in no cluster
            sizes = sum_nodes(children, self.mask.reshape(-1, 1))[:, 0].astype(sizes.dtype)
        return children, sizes

    def __repr__(self) -> str:
        rx, ry = self.shape
        return f"ClusterTree({self.method!r}, {len(self.level)} joins, {rx} x {ry} scan positions)"

    def n_clusters(self, *, min_size: int = 1, drop_background: bool | None = None) -> NDArray[Any]:
        """Number of clusters that `cut` finds at each of `levels`."""
        check_cut(self.method, None, None, min_size, drop_background)
        return self._counts(min_size, drop_background is None or bool(drop_background))

    def _counts(self, min_size: int, drop: bool) -> NDArray[Any]:
        """Like `n_clusters`, but without a check of the options."""
        children, sizes = self._links
        counted = sizes >= min_size
        counted[: self.mask.size] &= self.mask.ravel()
        level = self.level[self._fine]
        if self.method == "grow":
            counts = _count(children, counted)[1:]
        else:
            # From `finest_level` on, regions are counted.
            joins, coarse = self._joins_of_regions(self._regions, self.finest_level)
            background, region_background, region_sizes = self._node_background
            large = region_sizes >= min_size
            if drop:
                counted &= ~background
                large &= ~region_background
            level = np.concatenate([level, [self.finest_level], coarse])
            counts = np.concatenate([_count(children, counted)[1:], _count(joins, large)])
        # If several joins have one level, the count after the last of them is taken.
        order = level if self.method == "merge" else -level
        last = np.append(order[1:] != order[:-1], True) if len(order) else np.empty(0, bool)
        if self.method == "grow":
            return counts[last]
        at = np.searchsorted(order[last], self.levels, side="right") - 1
        return counts[last][at]

    def branches(self, *, min_size: int = 1) -> tuple[NDArray[Any], NDArray[Any], int]:
        """Joins of large clusters, for a dendrogram.

        Parameters
        ----------
        min_size : int
            Growth: clusters of fewer positions are no branches. Merging: no effect, because the
            leaves are the regions of one pattern.

        Returns
        -------
        joins : ndarray, (n, 2)
            Numbers of the two branches of each join; join `i` makes branch ``n_leaves + i``.
        level : ndarray, (n,)
            Level of each join.
        n_leaves : int
            Number of leaves: branches that are not made by a join.

        Raises
        ------
        ValueError, TypeError
            If `min_size` is not a whole number of at least 1.
        """
        found = self._branches(check_integer("min_size", min_size, 1))
        return found.joins, found.level, len(found.places)

    def leaf_places(self, *, min_size: int = 1) -> NDArray[Any]:
        """Flat index of one scan position of each leaf of `branches`, (n_leaves,); -1 for none."""
        return self._branches(check_integer("min_size", min_size, 1)).places

    def _branches(self, min_size: int) -> Branches:
        """Like `branches`, but without a check of the option."""
        if self.method == "merge":
            regions = self._coarse(PATTERN_LEVEL)
            join = self.level > PATTERN_LEVEL
            return branches_of_regions(
                regions, self.first[join], self.second[join], self.level[join]
            )
        return branches_of_growth(*self._links, self.level, min_size)

    def _joins_of_regions(
        self, regions: NDArray[Any], above: float
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Joins of regions at levels above one, as a binary tree, and their levels."""
        join = self.level > above
        flat = regions.ravel()
        n = int(flat.max(initial=-1)) + 1
        return link(flat[self.first[join]], flat[self.second[join]], n)[0], self.level[join]

    # --- cuts --------------------------------------------------------------------------------

    def cut(
        self,
        threshold: float | Literal["auto"] | None = None,
        *,
        level: Level | None = None,
        n_clusters: int | None = None,
        min_size: int = 1,
        drop_background: bool | None = None,
        name: str = "clusters",
    ) -> Clusters:
        """Make clusters from the tree, at one level or where they are most stable.

        Parameters
        ----------
        threshold : float or "auto", optional
            Growth: smallest similarity, -1 to 1, at which neighbours join. Merging: 1 makes regions
            of one pattern, 2 crystals; between them pieces of crystals join, above 2 the crystals
            that differ least. Below 1, parts of regions stay apart, in steps at 0.7, 0.5, 0.35 and
            0.25, with mixtures dissolved and borders placed as at 1. Below 0.25 (`finest_level`)
            clusters are as positions join, without either. With "auto", the default, merging makes
            crystals, and each branch of growth is cut at its own level, where clusters are most
            stable.
        level : "pattern" or "crystal", optional
            Merging: a level with a name, instead of a threshold.
        n_clusters : int, optional
            Number of clusters of at least `min_size` positions, instead of a threshold. If no level
            has this number, the next smaller number is taken. If several levels have the number,
            growth takes the coarsest, and merging the one nearest to the automatic level.
        min_size : int
            Clusters of fewer positions are dropped: label -1. With "auto", growth finds clusters
            only from this size on and from 40 positions on (from a twentieth of the positions of
            the tree if that is less).
        drop_background : bool, optional
            Merging: True, the default, gives regions without Bragg peaks the label -1. With False
            they are clusters, and ``clusters.background`` lists them. Growth does not find the
            background; leave it out with an `r_mask`.
        name : str
            Name of the clusters.

        Returns
        -------
        Clusters
            Growth numbers them by the mean similarity of their seeds, merging by size.

        Raises
        ------
        ValueError, TypeError
            If an argument is wrong.
        """
        cut = check_cut(self.method, threshold, n_clusters, min_size, drop_background, level)
        return self._cut_with(ClusterOptions(self.method, **cut), name)

    def _cut_with(self, options: ClusterOptions, name: str) -> Clusters:
        """Like `cut`, but without a check of the options."""
        level = options.threshold
        if options.n_clusters is not None:
            counts = self._counts(options.min_size, options.drop_background is not False)
            level = level_for(self, counts, options.n_clusters)
        elif level is None:
            level = "auto"
        settings = {
            **Settings(self.settings).everything,
            "threshold": level if options.n_clusters is None else None,
            "n_clusters": options.n_clusters,
            "min_size": options.min_size,
            "name": name,
        }
        if self.method == "grow":
            settings["level"] = None if level == "auto" else level
            labels, seeds = self._grown(level, options.min_size)
            background: tuple[int, ...] = ()
        else:
            settings["level"] = self.automatic_level if level == "auto" else level
            settings["drop_background"] = drop = options.drop_background is not False
            labels, seeds, background, settings["n_background"] = self._merged(
                settings["level"], options.min_size, drop
            )
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

    def _grown(self, level: float | str, min_size: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Labels and seeds of growth at one level, or of the most stable clusters ("auto")."""
        if not isinstance(level, str):
            forest = Forest(self.first, self.second, self.level, self.mask)
            return cut_at(forest, level, self.similarity_mean, min_size)
        children, sizes = self._links
        # Ranks from 1 to 0 stand for similarities, because those of noise lie close together.
        rank = np.linspace(1, 0, len(children))
        smallest = max(2, min(STABLE_SIZE, int(self.mask.sum()) // 20), min_size)
        stable = most_stable(children, sizes, rank, smallest)
        labels = label_nodes(children, stable, self.mask.size).reshape(self.shape)
        return numbered(labels, self.similarity_mean, by_size=False)

    def _coarse(self, level: float) -> NDArray[Any]:
        """Labels of the regions after the joins up to `level`."""
        flat = self._regions.ravel()
        join = ~self._fine & (self.level <= level)
        n = int(flat.max(initial=-1)) + 1
        group = join_pairs(flat[self.first[join]], flat[self.second[join]], n)
        return np.append(group, -1)[self._regions]  # -1 stays -1, even without regions

    def _merged(
        self, level: float, min_size: int, drop: bool
    ) -> tuple[NDArray[Any], NDArray[Any], tuple[int, ...], int]:
        """Labels and seeds at one level of merging, labels of background clusters that stay, and
        the number of background regions of at least `min_size` positions.
        """
        if level >= self.finest_level:
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

    def _background(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """Which regions show no Bragg disks in most of their positions."""
        inside = labels >= 0
        n = int(labels.max(initial=-1)) + 1
        size = np.bincount(labels[inside], minlength=n)
        return 2 * np.bincount(labels[inside], self._empty[inside], n) > size

    @property
    def _empty(self) -> NDArray[np.bool_]:
        """Positions without Bragg disks."""
        return cast(NDArray[np.bool_], self.background)

    @cached_property
    def _node_background(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Which nodes below and above `finest_level` are background; sizes of those above."""
        flat, regions = self._empty.ravel(), self._regions.ravel()
        inside = regions >= 0
        n = int(regions.max(initial=-1)) + 1
        leaves = np.stack(
            [np.bincount(regions[inside], weight, n) for weight in (flat[inside], None)], axis=1
        )
        below = sum_nodes(self._links[0], np.stack([flat, self.mask.ravel()], axis=1))
        above = sum_nodes(self._joins_of_regions(self._regions, self.finest_level)[0], leaves)
        return 2 * below[:, 0] > below[:, 1], 2 * above[:, 0] > above[:, 1], above[:, 1]

    def _repr_html_(self) -> str:
        from ..plotting.html import card, label_png

        clusters = self.cut()
        facts: dict[str, Any] = {"method": self.method, "joins": len(self.level)}
        if len(self.level):
            facts["levels"] = f"{self.level.min():.3g} to {self.level.max():.3g}"
        facts["automatic cut"] = f"{clusters.n_clusters} clusters (picture)"
        picture = label_png(clusters.labels, clusters.n_clusters)
        return card("ClusterTree", facts, picture, "tree.plot(), tree.cut()")

    # --- pictures ----------------------------------------------------------------------------

    def plot(self, axes: Any = None, **options: Any) -> Any:
        """Draw the number of clusters over the level, and a dendrogram; see `plot_tree`."""
        from ..plotting.trees import plot_tree

        return plot_tree(self, axes, **options)

    # --- EMD ---------------------------------------------------------------------------------

    def to_node(self, name: str = "cluster_tree") -> emdfile.Node:
        """The tree as a RealSlice of the mean similarity; its metadata hold everything else."""
        return write_tree(self, name)

    @classmethod
    def from_node(cls, node: emdfile.Node) -> ClusterTree:
        """Read the tree from a node of a datacube; the node may come from a file."""
        return cls(**read_tree(node))


def level_for(tree: ClusterTree, counts: NDArray[Any], n_clusters: int) -> float:
    """Level at which `ClusterTree.cut` finds `n_clusters`, given the `counts` at all levels."""
    if not len(counts):
        return tree.automatic_level if tree.method == "merge" else 1.0
    enough = counts <= n_clusters
    if tree.method == "merge":
        # Leave out fine levels, at which few clusters have reached the smallest size.
        enough &= np.arange(len(counts)) >= len(counts) - 1 - counts[::-1].argmax()
    if not enough.any():
        raise ValueError(
            f"n_clusters={n_clusters} cannot be had: there are {counts.min()} clusters or more "
            "at every level; parts of the mask that do not touch never join"
        )
    best = tree.levels[enough & (counts == counts[enough].max())]
    if tree.method == "merge":  # nearest by the ratio to the automatic level
        ratio = np.maximum(best, 1e-300) / tree.automatic_level
        return float(best[np.abs(np.log(ratio)).argmin()])
    return float(best[-1])  # the coarsest level has the most positions in clusters


def sum_nodes(children: NDArray[Any], leaves: NDArray[Any]) -> NDArray[np.float64]:
    """Sum the values of the leaves below each node of a tree; `leaves` has a row for each leaf."""
    n = len(leaves)
    out = np.concatenate([leaves, np.empty((len(children), leaves.shape[1]))])
    for i, (a, b) in enumerate(children.tolist()):
        out[n + i] = out[a] + out[b]
    return out


def _count(children: NDArray[Any], counted: NDArray[Any]) -> NDArray[Any]:
    """Number of `counted` nodes that are roots, before the first join and after each join."""
    n = len(counted) - len(children)
    change = counted[n:].astype(int) - counted[children].sum(axis=1)
    return np.cumsum(np.append(counted[:n].sum(), change))
