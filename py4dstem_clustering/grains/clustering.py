"""Public methods: make a cluster tree from a scan, and clusters from the tree."""

from __future__ import annotations

from typing import Any, Literal

import emdfile
import numpy as np
from numpy.typing import NDArray
from py4DSTEM import DataCube

from ..base.checks import check_choice, check_data, check_flag, check_name
from ..emd import nodes
from ..kernels.crystals import PATTERN_LEVEL
from ..patterns.similarity import Similarity
from .averages import keep_clusters
from .clusters import Clusters
from .node import CLUSTERS_KIND, TREE_KIND
from .options import METHODS, Level, Method, check_options
from .tree import ClusterTree
from .tree_of_scan import measure_tree


def get_cluster_tree(
    self: DataCube,
    *,
    method: Method = "merge",
    rank: int | Literal["auto"] = "auto",
    lag: float | Literal["auto"] | None = None,
    r_mask: NDArray[np.bool_] | float | str | None = None,
    q_mask: NDArray[np.bool_] | None = None,
    sigma: float | None = None,
    subtract_mean: bool | None = None,
    similarity: Similarity | emdfile.Array | NDArray[Any] | None = None,
    name: str = "cluster_tree",
    returncalc: bool = True,
    client: Any = None,
    n_jobs: int | None = None,
    max_memory: int | str | None = None,
    progress_bar: bool = True,
) -> ClusterTree | None:
    """Measure in which order scan positions join to clusters, as a tree to cut at any level.

    The scan is read once. A cut then takes milliseconds.

    Parameters
    ----------
    method : "merge" or "grow"
        "merge" joins regions that differ by no more than noise and the variation inside a grain.
        "grow" joins similar neighbours, as in the paper. See `cluster`.
    rank : int or "auto"
        Merging: number of features, 1 to 60. "auto" takes all that stand out of the noise.
    lag, r_mask, q_mask, sigma, subtract_mean, similarity
        See `cluster`.
    name : str
        Name in the tree of this datacube.
    returncalc : bool
        Return the result. The tree of the datacube keeps it in any case.
    client : dask.distributed.Client, optional
        The workers of this client read and compare the patterns, on any number of machines, with
        the same result. Regions are merged, and clusters grow, in this process.
    n_jobs : int, optional
        Number of threads; by default all cores that the process may use, or 1 with a `client`.
    max_memory : int or str, optional
        Bytes, or a text such as "1 GB", that the work may take; see `filter_correlative`.
    progress_bar : bool
        Show progress.

    Returns
    -------
    ClusterTree
        Its method ``cut`` makes clusters.

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong. The check comes before any work.

    Examples
    --------
    >>> tree = datacube.get_cluster_tree(method="grow", progress_bar=False)
    >>> tree.cut(n_clusters=2, min_size=5).n_clusters
    2
    """
    name = check_name(name)
    returncalc = check_flag("returncalc", returncalc)
    nodes.check_free(self, name, TREE_KIND)
    check_data(self.data)
    check_choice("method", method, METHODS)
    options = check_options(
        self.Rshape,
        self.Qshape,
        method=method,
        rank=rank,
        lag=lag,
        r_mask=r_mask,
        q_mask=q_mask,
        sigma=sigma,
        subtract_mean=subtract_mean,
        similarity=similarity,
    )
    tree = measure_tree(
        self,
        options,
        n_jobs=n_jobs,
        max_memory=max_memory,
        progress_bar=progress_bar,
        client=client,
    )
    nodes.put(self, tree.to_node(name))
    return tree if returncalc else None


def cluster(
    self: DataCube,
    *,
    method: Method | None = None,
    threshold: float | Literal["auto"] | None = None,
    level: Level | None = None,
    n_clusters: int | None = None,
    min_size: int = 1,
    rank: int | Literal["auto"] = "auto",
    lag: float | Literal["auto"] | None = None,
    drop_background: bool | None = None,
    r_mask: NDArray[np.bool_] | float | str | None = None,
    q_mask: NDArray[np.bool_] | None = None,
    sigma: float | None = None,
    subtract_mean: bool | None = None,
    similarity: Similarity | emdfile.Array | NDArray[Any] | None = None,
    name: str = "clusters",
    returncalc: bool = True,
    client: Any = None,
    n_jobs: int | None = None,
    max_memory: int | str | None = None,
    progress_bar: bool = True,
) -> Clusters | None:
    """Find the grains: regions of the scan in which diffraction patterns are alike.

    Without arguments, regions of one pattern are found, and those of one lattice join to crystals,
    whatever thickness and bending do to the intensities of disks; nothing needs tuning. With a
    `threshold`, clusters grow over similar neighbours, as in the paper.

    Parameters
    ----------
    method : "merge" or "grow", optional
        By default merging, or growth when `threshold`, `sigma`, `subtract_mean` or `similarity` is
        given.
    threshold : float or "auto", optional
        Growth: smallest similarity, -1 to 1, at which neighbours join (the paper: 0.9). Lower it if
        grains come in pieces; raise it if grains join. "auto" takes the clusters that are the most
        stable over the levels, each at its own level. Merging: 2, the default, makes crystals, 1
        the pieces that join to them; above 2 crystals that differ least join, see
        `ClusterTree.cut`.
    level : "pattern" or "crystal", optional
        Merging: a level with a name, instead of a threshold. "crystal", the default, joins pieces
        of one lattice; "pattern" gives these pieces, which differ by more than noise: a bent
        crystal comes in several, and a layer with another lattice constant can be one of its own.
    n_clusters : int, optional
        Number of clusters, instead of a threshold; see `ClusterTree.cut`.
    min_size : int
        Clusters of fewer positions are dropped: label -1.
    rank : int or "auto"
        Merging: number of features that are compared, 1 to 60. "auto" takes all that stand out of
        the noise. Give a smaller number if thickness or tilt vary inside grains.
    lag : float or "auto", optional
        Merging: share of each pattern that a slow camera leaves in the next one, 0 to below 1,
        along the rows of the scan (rising Ry, the order of recording). It is undone before grains
        are found. "auto", the default, finds share, axis and direction from tails behind the
        borders of grains, and undoes the lag only if it is certain;
        ``clusters.settings["lag_share"]`` tells it. Give a share where a lag is known and not found
        (small scans, few electrons), or 0 if the camera has none.
    drop_background : bool, optional
        Merging: True, the default, gives label -1 to clusters without Bragg peaks (liquid, vacuum
        or amorphous film, with little power beyond the radial mean), so that only grains have
        averages, orientations and strain. With False they stay, and ``clusters.background`` lists
        them.
    r_mask : ndarray of bool (Rx, Ry), number, name, or None
        Positions that can be in a cluster; by default all. Give a map, the number that the mean
        similarity must exceed, or the name of a global threshold of scikit-image that finds this
        number, such as "triangle" (as in the paper) or "otsu".
    q_mask : ndarray of bool, (Qx, Qy), optional
        Detector pixels that count, see `get_similarity`; by default all. Merging seldom needs a
        mask, because it ignores the parts that are the same in all patterns.
    sigma : float, optional
        Growth: blur before comparing, detector pixels, see `get_similarity`. Default 0.
    subtract_mean : bool, optional
        Growth: see `get_similarity`. Default True.
    similarity : Similarity or array-like (Rx, Ry, 8), optional
        Growth: a similarity from `get_similarity`; by default it is measured. With it, another
        threshold takes milliseconds. `q_mask`, `sigma` and `subtract_mean` then belong to
        `get_similarity`. The clusters keep the similarity: ``clusters.similarity``.
    name : str
        Name in the tree of this datacube. Clusters replace others of the same name.
    returncalc : bool
        Return the result. The tree of the datacube keeps it in any case.
    client : dask.distributed.Client, optional
        The workers of this client read and compare the patterns, on any number of machines, with
        the same result. Regions are merged, and clusters grow, in this process.
    n_jobs : int, optional
        Number of threads; by default all cores that the process may use, or 1 with a `client`.
    max_memory : int or str, optional
        Bytes, or a text such as "1 GB", that the work may take; see `filter_correlative`.
    progress_bar : bool
        Show progress.

    Returns
    -------
    Clusters
        Merging numbers them by size, the largest first. ``clusters.settings`` then holds estimates:
        gain, offset, noise (standard deviation in a detector pixel), rank, level, and the lag that
        was undone as ``"lag_share"`` (0 for none) and ``"lag_axis"``, such as "+Ry". Growth numbers
        them by the mean similarity of their seeds, the order in which they grew.

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong. The check comes before any work.

    Notes
    -----
    Merging. Each pattern is reduced to a few features in which grains differ. They are found from
    the covariance of each pattern with its diagonal neighbours, because noise adds nothing to it on
    average. Radial profiles, and their changes by descan, are subtracted first. Two regions merge
    if the sum of squared deviations then grows little for the length of the border that disappears
    (the energy of Mumford and Shah, as in Koepfler et al., 1994). "Little" is relative to noise and
    the variation inside a grain. Positions of thin regions that are mixtures of their neighbours go
    to these neighbours. Regions without contrast at their common border join, even if the lattice
    bends. These are the regions of one pattern. Where most of the pattern changes at once inside a
    region, as between twin lamellae, the region comes apart. Regions whose patterns vary are cut
    into parts, unless they stand far above the noise. These pieces join to crystals if their disks
    lie at the same places and the patterns on both sides of their border differ by no more than
    they vary on each side, as in a bend; a step stays. Two pieces that each have one pattern over
    more than nine positions are not bent, and never join. A position in stacked grains gets the
    label of the grain with the larger share. Grains of one orientation that touch are separated
    only where their patterns differ. A camera lag, in which part of each pattern is recorded at the
    next position along one axis, is found at the borders and corrected; then regions are merged
    again. Regions whose reflections are all a tail of the regions before them are none.

    Lost frames, whose pixels are missing or all have one value, are in no cluster. Gaps of one or
    two of them, such as a lost row of the scan, are bridged: a grain on both sides is one cluster,
    whose positions touch only across the gap. All other clusters are connected, at every level.
    Growth does not bridge gaps.

    Growth. A cluster starts at the free position with the highest mean similarity. It takes in free
    neighbours whose similarity with a member is at least `threshold`. If none is left, the next
    cluster starts (Lee et al., 2026, section 2.5). Diagonal positions are neighbours too. The
    labels are cut from a maximum spanning forest, which gives the same result.

    Examples
    --------
    >>> from py4dstem_clustering import simulate_scan
    >>> scan = simulate_scan((24, 20), (48, 44), n_grains=3, seed=1)
    >>> scan.datacube.cluster(progress_bar=False).n_clusters
    3
    >>> similarity = datacube.get_similarity(progress_bar=False)
    >>> for threshold in (0.95, 0.98):
    ...     datacube.cluster(threshold=threshold, min_size=5, similarity=similarity).n_clusters
    1
    2
    >>> datacube.clusters.settings["threshold"]  # the newest
    0.98
    """
    name = check_name(name)
    returncalc = check_flag("returncalc", returncalc)
    nodes.check_free(self, name, CLUSTERS_KIND)
    check_data(self.data)
    options = check_options(
        self.Rshape,
        self.Qshape,
        method=method,
        threshold=threshold,
        level=level,
        n_clusters=n_clusters,
        min_size=min_size,
        drop_background=drop_background,
        rank=rank,
        lag=lag,
        r_mask=r_mask,
        q_mask=q_mask,
        sigma=sigma,
        subtract_mean=subtract_mean,
        similarity=similarity,
    )
    finer = options.n_clusters is not None
    if isinstance(options.threshold, float):
        finer = options.threshold < PATTERN_LEVEL
    tree = measure_tree(
        self,
        options,
        n_jobs=n_jobs,
        max_memory=max_memory,
        progress_bar=progress_bar,
        finer=finer,
        client=client,
    )
    result = tree._cut_with(options, name)
    keep_clusters(self, result)
    return result if returncalc else None
