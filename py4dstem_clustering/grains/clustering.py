"""From a scan to a tree, and from a tree to clusters."""

from __future__ import annotations

from functools import partial
from time import perf_counter
from typing import Any

import emdfile
import numpy as np
from numpy.typing import NDArray
from py4DSTEM import DataCube

from ..base.checks import (
    check_choice,
    check_data,
    check_flag,
    check_memory,
    check_n_jobs,
    check_name,
    resolve_r_mask,
)
from ..base.progress import progress
from ..emd import nodes
from ..kernels.features import features_need
from ..kernels.lag import find_lag, undo_lag
from ..kernels.merging import coarse_joins, find_regions, joins_of, merge_positions
from ..kernels.noise import Noise, noise_need
from ..kernels.similarity import feature_similarity, similarity_mean
from ..kernels.tree import spanning_forest
from ..patterns.features import measure_features, measure_noise
from ..patterns.similarity import Similarity, measure_similarity
from ..scan.calibration import scan_step
from ..scan.datacubes import get_provenance
from .averages import keep_clusters
from .clusters import CLUSTERS_KIND, Clusters
from .options import METHODS, ClusterOptions, check_options
from .tree import TREE_KIND, ClusterTree


def get_cluster_tree(
    self,
    *,
    method: str = "merge",
    rank: int | str = "auto",
    r_mask: NDArray[Any] | float | str | None = None,
    q_mask: NDArray[Any] | None = None,
    sigma: float | None = None,
    subtract_mean: bool | None = None,
    similarity: Similarity | emdfile.Array | NDArray[Any] | None = None,
    name: str = "cluster_tree",
    returncalc: bool = True,
    n_jobs: int | None = None,
    max_memory: int | str | None = None,
    progress_bar: bool = True,
) -> ClusterTree | None:
    """In which order scan positions join to clusters, to be cut at any level.

    Reads the scan once (growth) or twice (merging); after that, a cut takes milliseconds.

    Parameters
    ----------
    method : "merge" or "grow"
        Merging of regions that differ by no more than noise and the variation inside a grain, or
        the paper's growth over alike neighbours. See `cluster`.
    rank : int or "auto"
        Merging: number of features, 1 to 60. "auto" takes those that stand out of the noise.
    r_mask, q_mask, sigma, subtract_mean, similarity
        See `cluster`.
    name : str
        Name in the tree of this datacube.
    returncalc : bool
        Return the result; it is kept in the tree either way.
    n_jobs : int, optional
        Number of threads; by default all cores that the process may use.
    max_memory : int or str, optional
        Bytes, or a text such as "1 GB", "500 MB" or "1.5 GiB", within which the scan is read and
        worked on in blocks of rows; the same result for any. See `filter_correlative`.
    progress_bar : bool
        Show progress.

    Returns
    -------
    ClusterTree

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule; before any work.

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
        r_mask=r_mask,
        q_mask=q_mask,
        sigma=sigma,
        subtract_mean=subtract_mean,
        similarity=similarity,
    )
    tree = measure_tree(
        self, options, n_jobs=n_jobs, max_memory=max_memory, progress_bar=progress_bar
    )
    nodes.put(self, tree.to_node(name))
    return tree if returncalc else None


def measure_tree(
    datacube: DataCube,
    options: ClusterOptions,
    *,
    n_jobs: Any,
    max_memory: Any,
    progress_bar: Any,
) -> ClusterTree:
    """The tree of a scan, with options from `check_options`."""
    start = perf_counter()
    n_jobs = check_n_jobs(n_jobs)
    progress_bar = check_flag("progress_bar", progress_bar)
    measure = _merge_tree if options.method == "merge" else _growth_tree
    return measure(datacube, options, n_jobs, max_memory, progress_bar, start)


def _growth_tree(
    datacube: DataCube,
    options: ClusterOptions,
    n_jobs: int | None,
    max_memory: int | str | None,
    progress_bar: bool,
    start: float,
) -> ClusterTree:
    known = None
    if options.similarity is None:
        similarity = measure_similarity(
            datacube,
            options.q_mask,
            0 if options.sigma is None else options.sigma,
            True if options.subtract_mean is None else options.subtract_mean,
            n_jobs,
            max_memory,
            progress_bar,
        )
        known = similarity.settings["fingerprint"]
    else:
        check_memory(max_memory)
        similarity = options.similarity
    forest = spanning_forest(similarity.data, resolve_r_mask(options.r_mask, similarity.mean))
    provenance = get_provenance(datacube, start, known)
    # Options that would measure the same again; those of another one are in its own settings.
    own = similarity.settings.get("fingerprint") == provenance["fingerprint"]
    own &= not similarity.settings.get("noise_correct")
    measured = ("q_mask", "sigma", "subtract_mean")
    settings = {
        "method": "grow",
        "r_mask": options.r_mask,
        **{key: similarity.settings.get(key) if own else None for key in measured},
        **provenance,
    }
    return ClusterTree(
        "grow",
        forest.first,
        forest.second,
        forest.level,
        forest.mask,
        settings,
        similarity,
        pixel_size=similarity.pixel_size,
        pixel_units=similarity.pixel_units,
    )


def _merge_tree(
    datacube: DataCube,
    options: ClusterOptions,
    n_jobs: int | None,
    max_memory: int | str | None,
    progress_bar: bool,
    start: float,
) -> ClusterTree:
    n_rows = check_memory(
        max_memory,
        partial(features_need, datacube.data, n_jobs),
        partial(noise_need, datacube.data, n_jobs),
    )
    features = measure_features(
        datacube,
        options.q_mask,
        options.rank if isinstance(options.rank, int) else None,
        n_jobs=n_jobs,
        n_rows=n_rows,
        progress_bar=progress_bar,
    )
    try:
        noise = measure_noise(datacube, n_jobs, progress_bar)
    except ValueError:  # a scan that does not tell; nothing but the settings needs it
        noise = Noise(np.nan, np.nan)

    def regions(values: NDArray[Any], report: Any) -> tuple:
        near = feature_similarity(values)
        mask = resolve_r_mask(options.r_mask, similarity_mean(near))
        merges = merge_positions(values, mask)
        report(1)
        labels = find_regions(values, merges)
        report(1)
        return near, mask, merges, labels

    with progress(4, "Merging", progress_bar, "steps") as report:
        near, mask, merges, labels = regions(features.values, report)
        # Lag displaces borders, but it shows at borders only: they are found twice.
        lag = find_lag(features.values, labels)
        report(1)
        if lag is not None:
            report(-2)  # these steps come once more
            features = undo_lag(features, lag)
            near, mask, merges, labels = regions(features.values, report)
        values = features.values
        first, second, level = joins_of(merges)
        pairs, coarse = coarse_joins(labels, values)
        report(1)
    inside = np.flatnonzero(labels >= 0)
    member = np.zeros(int(labels.max(initial=-1)) + 1, dtype=np.int64)
    member[labels.ravel()[inside]] = inside
    settings = {
        "method": "merge",
        "r_mask": options.r_mask,
        "q_mask": options.q_mask,
        "rank": values.shape[2],
        "gain": noise.gain,
        "offset": noise.offset,
        "noise": float(np.sqrt(np.median(features.variance / features.pixels))),
        "lag": 0.0 if lag is None else lag.mean,
        "lag_axis": None if lag is None else lag.name,
        **get_provenance(datacube, start),
    }
    return ClusterTree(
        "merge",
        np.concatenate([first, member[pairs[:, 0]]]),
        np.concatenate([second, member[pairs[:, 1]]]),
        np.concatenate([level, coarse]),
        mask,
        settings,
        near,
        labels,
        values,
        features.brightness,
        *scan_step(datacube),
    )


def cluster(
    self,
    *,
    method: str | None = None,
    threshold: float | str | None = None,
    n_clusters: int | None = None,
    min_size: int = 1,
    rank: int | str = "auto",
    drop_background: bool | None = None,
    r_mask: NDArray[Any] | float | str | None = None,
    q_mask: NDArray[Any] | None = None,
    sigma: float | None = None,
    subtract_mean: bool | None = None,
    similarity: Similarity | emdfile.Array | NDArray[Any] | None = None,
    name: str = "clusters",
    returncalc: bool = True,
    n_jobs: int | None = None,
    max_memory: int | str | None = None,
    progress_bar: bool = True,
) -> Clusters | None:
    """Find the grains: regions of the scan in which diffraction patterns are alike.

    Without arguments, regions are merged as long as they differ by no more than noise and the
    variation inside a grain: nothing to tune, for raw scans of any dose. With a `threshold`,
    clusters grow over alike neighbours, as in the paper.

    Parameters
    ----------
    method : "merge" or "grow", optional
        By default growth when `threshold` or anything else that belongs to growth is given, or else
        merging.
    threshold : float or "auto", optional
        Growth: neighbours join when their similarity is at least this, -1 to 1 (the paper: 0.9).
        Lower it when grains come in pieces, raise it when grains run together. "auto" takes the
        clusters that last over most levels, each at its own level. Merging: 1 is the automatic
        level; above it grains join that differ little, see `ClusterTree.cut`.
    n_clusters : int, optional
        Instead of a threshold: so many clusters.
    min_size : int
        Clusters of fewer positions are dropped: label -1.
    rank : int or "auto"
        Merging: number of features that are compared, 1 to 60. "auto" takes those that stand out of
        the noise; a smaller number is for scans in which something else than grains varies.
    drop_background : bool, optional
        Merging: clusters without Bragg peaks (liquid, vacuum, amorphous film: no power beyond the
        radial mean) become -1. True by default, since what comes next, averages, orientation and
        strain, is about grains; with False they stay clusters, listed in ``clusters.background``.
    r_mask : ndarray of bool (Rx, Ry), number, name, or None
        Positions that can be in a cluster: a map; those with a mean similarity above a number; or
        above a global threshold of scikit-image, such as "triangle" (the paper's) or "otsu". By
        default all.
    q_mask : ndarray of bool, (Qx, Qy), optional
        Detector pixels that count, see `get_similarity`. Merging needs none: what is the same in
        all patterns tells it nothing.
    sigma : float, optional
        Growth: blur before comparing, detector pixels, see `get_similarity`. Default 0.
    subtract_mean : bool, optional
        Growth: see `get_similarity`. Default True.
    similarity : Similarity or array-like (Rx, Ry, 8), optional
        Growth: a similarity made earlier, so that a second threshold costs milliseconds; `q_mask`,
        `sigma` and `subtract_mean` belong to `get_similarity` then. By default it is made now.
        Either way the clusters keep it: ``clusters.similarity``.
    name : str
        Name in the tree. Clusterings of different names live side by side; one replaces another of
        the same name.
    returncalc : bool
        Return the result; it is kept in the tree either way.
    n_jobs : int, optional
        Number of threads; by default all cores that the process may use.
    max_memory : int or str, optional
        Bytes, or a text such as "1 GB", "500 MB" or "1.5 GiB", within which the scan is read and
        worked on in blocks of rows; the same result for any. See `filter_correlative`.
    progress_bar : bool
        Show progress.

    Returns
    -------
    Clusters
        Merging: numbered by size, the largest first; ``clusters.settings`` holds what was
        estimated: gain, offset, noise (a detector pixel), rank, level, and the lag of the camera
        in scan positions (0 where none is sure) with its axis, such as "+Ry". Growth: numbered in
        the order in which they grew, by the mean similarity of their seeds.

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule; before any work.

    Notes
    -----
    Merging. What grains differ in lies in few directions, which are found from the covariance of
    each pattern with its diagonal neighbours, where noise has mean zero; radial profiles, and what
    descan moves of them, are taken out first. Regions then merge as long as the growth of the sum
    of squares is small for the border that goes (Mumford and Shah's energy, after Koepfler et al.,
    1994), with noise and the variation inside a grain as the measure. Thin regions that are
    mixtures of their neighbours dissolve; regions without contrast at their common border join,
    though the lattice bends by a few degrees from end to end. Stacked grains belong to the larger
    share; grains of one orientation that touch are told apart only where their patterns differ.
    Where patterns follow behind every border along one axis of the scan in one sense, the camera
    lags: that is undone, and regions are merged again.

    Growth. A cluster starts at the free position with the highest mean similarity, and takes in
    free neighbours whose similarity with a member is at least `threshold`, until none is left; then
    the next one starts (Lee et al., 2026, section 2.5). The result is cut from a maximum spanning
    forest, which gives the same labels. Diagonal neighbours count.

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
        n_clusters=n_clusters,
        min_size=min_size,
        drop_background=drop_background,
        rank=rank,
        r_mask=r_mask,
        q_mask=q_mask,
        sigma=sigma,
        subtract_mean=subtract_mean,
        similarity=similarity,
    )
    tree = measure_tree(
        self, options, n_jobs=n_jobs, max_memory=max_memory, progress_bar=progress_bar
    )
    result = tree.cut_with(options, name)
    keep_clusters(self, result)
    return result if returncalc else None
