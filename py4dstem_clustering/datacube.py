"""The methods on py4DSTEM's DataCube: check arguments, call a kernel, wrap and keep the result."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import emdfile
import numpy as np
from py4DSTEM import DataCube

from . import cluster_tree as _cluster_tree
from . import clusters as _clusters
from .base.checks import (
    check_choice,
    check_data,
    check_flag,
    check_integer,
    check_memory,
    check_n_jobs,
    check_name,
    check_number,
    check_q_mask,
    check_r_mask,
    check_same_scan,
    resolve_r_mask,
    values_of,
)
from .base.progress import progress
from .cluster_tree import METHODS, ClusterTree, check_cut
from .clusters import Clusters
from .diffraction.validation import cross_validate_orientation
from .emd import nodes
from .explore import ClusterExplorer
from .kernels.averaging import averaging_core, averaging_need
from .kernels.features import MAX_RANK, features_need
from .kernels.lag import find_lag, undo_lag
from .kernels.merging import coarse_joins, find_regions, joins_of, merge_positions
from .kernels.noise import Noise, noise_need
from .kernels.similarity import feature_similarity, similarity_mean, similarity_need
from .kernels.tree import spanning_forest
from .kernels.virtual import sample_mean, scattered, virtual_image_core, virtual_image_need
from .patterns.features import measure_features, measure_noise
from .patterns.filtering import filter_correlative
from .patterns.mixture import Mixture
from .patterns.similarity import Similarity, as_similarity, get_similarity, measure_similarity
from .scan.calibration import (
    carry_calibration,
    detector_step,
    known_centre,
    known_origins,
    scan_step,
    varies,
)
from .scan.datacubes import get_provenance, new_datacube


def keep_clusters(
    datacube: DataCube, clusters: Clusters, averages: np.ndarray | None = None
) -> None:
    """Keep clusters, and their averages, in the tree of a datacube as the newest."""
    nodes.put(datacube, clusters.to_node(averages))


def get_cluster_tree(
    self,
    *,
    method: str = "merge",
    rank: int | str = "auto",
    r_mask: np.ndarray | float | str | None = None,
    q_mask: np.ndarray | None = None,
    sigma: float | None = None,
    subtract_mean: bool | None = None,
    similarity: Similarity | emdfile.Array | np.ndarray | None = None,
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
    nodes.check_free(self, name, _cluster_tree.KIND)
    tree = _measure_tree(
        self, method, rank, r_mask, q_mask, sigma, subtract_mean, similarity, n_jobs, max_memory,
        progress_bar,
    )  # fmt: skip
    nodes.put(self, tree.to_node(name))
    return tree if returncalc else None


def check_tree_options(
    method: Any,
    rank: Any,
    r_mask: Any,
    sigma: Any,
    subtract_mean: Any,
    similarity: Any,
    scan: tuple[int, int],
) -> tuple[int | str, float | str | np.ndarray | None]:
    """Rank and scan mask of a tree, checked with what else belongs to its method."""
    check_choice("method", method, METHODS)
    if not (isinstance(rank, str) and rank == "auto"):
        rank = check_integer("rank", rank, 1)
        if rank > MAX_RANK:
            raise ValueError(f"rank={rank} must be at most {MAX_RANK}, or 'auto'")
    r_mask = check_r_mask(r_mask, scan)
    given = {"sigma": sigma, "subtract_mean": subtract_mean, "similarity": similarity}
    wrong = [key for key, value in given.items() if value is not None]
    if method == "merge" and wrong:
        raise ValueError(
            f"{_belong(wrong)} to growth, merging compares features instead; leave out what does, "
            "or use method='grow'"
        )
    if sigma is not None:
        check_number("sigma", sigma, 0)
    if subtract_mean is not None:
        check_flag("subtract_mean", subtract_mean)
    if method == "grow" and rank != "auto":
        raise ValueError("rank belongs to merging; leave it out, or use method='merge'")
    return rank, r_mask


def _belong(names: list[str]) -> str:
    return f"{' and '.join(names)} belong{'s' * (len(names) == 1)}"


def _check_made_earlier(given: Mapping[str, Any]) -> None:
    """Beside a similarity there must be nothing that would have made another one."""
    wrong = [key for key, value in given.items() if value is not None]
    if wrong:
        raise ValueError(
            f"{' and '.join(wrong)} cannot change a similarity made earlier; leave out either, and "
            "give get_similarity what belongs to it"
        )


def _measure_tree(
    datacube: DataCube,
    method: str,
    rank: Any,
    r_mask: Any,
    q_mask: Any,
    sigma: Any,
    subtract_mean: Any,
    similarity: Any,
    n_jobs: Any,
    max_memory: Any,
    progress_bar: Any,
) -> ClusterTree:
    start = perf_counter()
    check_data(datacube.data)
    rank, r_mask = check_tree_options(
        method, rank, r_mask, sigma, subtract_mean, similarity, datacube.Rshape
    )
    n_jobs = check_n_jobs(n_jobs)
    progress_bar = check_flag("progress_bar", progress_bar)
    if method == "merge":
        q_mask = check_q_mask(q_mask, datacube.Qshape)
        return _merge_tree(datacube, rank, r_mask, q_mask, n_jobs, max_memory, progress_bar, start)

    measured = {"q_mask": q_mask, "sigma": sigma, "subtract_mean": subtract_mean}
    known = None
    if similarity is None:
        similarity = measure_similarity(
            datacube,
            q_mask,
            0 if sigma is None else sigma,
            True if subtract_mean is None else subtract_mean,
            n_jobs,
            max_memory,
            progress_bar,
        )
        known = similarity.settings["fingerprint"]
    else:
        _check_made_earlier(measured)
        check_memory(max_memory)
        similarity = as_similarity(similarity, datacube.Rshape)
    forest = spanning_forest(similarity.data, resolve_r_mask(r_mask, similarity.mean))
    provenance = get_provenance(datacube, start, known)
    # Options that would measure the same again; those of another one are in its own settings.
    own = similarity.settings.get("fingerprint") == provenance["fingerprint"]
    own &= not similarity.settings.get("noise_correct")
    settings = {
        "method": method,
        "r_mask": r_mask,
        **{key: similarity.settings.get(key) if own else None for key in measured},
        **provenance,
    }
    return ClusterTree(
        method,
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
    rank: int | str,
    r_mask: Any,
    q_mask: np.ndarray | None,
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
        datacube, q_mask, None if rank == "auto" else rank, n_jobs=n_jobs, n_rows=n_rows,
        progress_bar=progress_bar,
    )  # fmt: skip
    try:
        noise = measure_noise(datacube, n_jobs, progress_bar)
    except ValueError:  # a scan that does not tell; nothing but the settings needs it
        noise = Noise(np.nan, np.nan)

    def regions(values: np.ndarray, report: Any) -> tuple:
        near = feature_similarity(values)
        mask = resolve_r_mask(r_mask, similarity_mean(near))
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
        "r_mask": r_mask,
        "q_mask": q_mask,
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
    r_mask: np.ndarray | float | str | None = None,
    q_mask: np.ndarray | None = None,
    sigma: float | None = None,
    subtract_mean: bool | None = None,
    similarity: Similarity | emdfile.Array | np.ndarray | None = None,
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
    nodes.check_free(self, name, _clusters.KIND)
    method, cut = check_cut_options(
        method, threshold, n_clusters, min_size, drop_background, sigma, subtract_mean, similarity
    )
    tree = _measure_tree(
        self, method, rank, r_mask, q_mask, sigma, subtract_mean, similarity, n_jobs, max_memory,
        progress_bar,
    )  # fmt: skip
    result = tree.cut(**cut, name=name)
    keep_clusters(self, result)
    return result if returncalc else None


def check_cut_options(
    method: Any,
    threshold: Any,
    n_clusters: Any,
    min_size: Any,
    drop_background: Any,
    sigma: Any = None,
    subtract_mean: Any = None,
    similarity: Any = None,
) -> tuple[str, dict[str, Any]]:
    """The method that the options of `cluster` mean, and how its tree is cut."""
    if method is None:
        grows = (threshold, sigma, subtract_mean, similarity)
        method = "merge" if all(value is None for value in grows) else "grow"
    cut = {
        "threshold": threshold,
        "n_clusters": n_clusters,
        "min_size": min_size,
        "drop_background": drop_background,
    }
    if method == "grow" and threshold is None and n_clusters is None:
        cut["threshold"] = 0.9
    check_cut(method, **cut)
    return method, cut


def get_clustered_datacube(
    self,
    clusters: Clusters | str | None = None,
    *,
    min_purity: float | None = None,
    align: bool | None = None,
    name: str = "averages",
    n_jobs: int | None = None,
    max_memory: int | str | None = None,
    progress_bar: bool = True,
) -> DataCube:
    """Average the diffraction patterns of each cluster.

    Parameters
    ----------
    clusters : Clusters or str, optional
        A clustering of a scan of this shape, for example of the filtered scan, or the name of one
        in the tree; by default the newest one in the tree. That it belongs to this scan is yours to
        know: only the shape is checked.
    min_purity : float, optional
        Average only positions where the cluster has at least this share of the pattern, 0 to 1,
        such as 0.9: no borders, no stacked grains. A cluster without any is averaged from its
        purest position. See ``clusters.get_mixture``; the scan is read twice more.
    align : bool, optional
        Move each pattern to the mean origin of its cluster before averaging, so that descan does
        not smear Bragg disks; linear between pixels. By default when the calibration holds an
        origin that differs over the scan: measure it with
        ``py4DSTEM.process.calibration.get_origin`` and ``fit_origin``, keep it with
        ``datacube.calibration.set_origin``.
    name : str
        Name of the result.
    n_jobs : int, optional
        Number of threads; by default all cores that the process may use.
    max_memory : int or str, optional
        Bytes, or a text such as "1 GB", "500 MB" or "1.5 GiB", within which the scan is read and
        worked on in blocks of rows; the same result for any. See `filter_correlative`.
    progress_bar : bool
        Show progress.

    Returns
    -------
    DataCube
        ``(N, 1, Qx, Qy)``, float32, accumulated in float64: pattern `k` is the mean over cluster
        `k`. It has a tree of its own, with a copy of the calibration, in which maps of the scan
        (such as the origin) became means over each cluster, and with the clusters:
        ``averages.clusters``. So ``py4DSTEM.save("averages.h5", averages)`` makes a small file that
        holds all results but the scan.

        The clusters are also kept in the tree of this datacube, with the averages in it, and travel
        with it; they replace a clustering of the same name.

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule, there are no clusters, or they belong to another scan.

    Notes
    -----
    A missing pixel (NaN or infinite) has no weight; it is NaN where all members miss it. All
    averages are in memory at once, as float64: thousands of clusters need a `min_size`.

    Examples
    --------
    >>> clusters = datacube.cluster(threshold=0.98, min_size=5, progress_bar=False)
    >>> averages = datacube.get_clustered_datacube(progress_bar=False)
    >>> averages.shape
    (2, 1, 32, 30)
    """
    check_data(self.data)
    if clusters is None or isinstance(clusters, str):
        clusters = get_clusters(self, clusters)
    elif not isinstance(clusters, Clusters):
        raise TypeError(
            f"clusters must be Clusters or the name of some, not {type(clusters).__name__}; "
            "use what datacube.cluster() returned"
        )
    check_same_scan("clusters", clusters.shape, self.Rshape)
    if clusters.n_clusters == 0:
        raise ValueError(
            f"{clusters.name!r} holds no clusters, so there is nothing to average; lower the "
            "threshold or min_size, widen r_mask, or keep the background (drop_background=False)"
        )
    name = check_name(name)
    n_jobs = check_n_jobs(n_jobs)
    progress_bar = check_flag("progress_bar", progress_bar)
    if min_purity is not None:
        min_purity = check_number("min_purity", min_purity, 0, 1)
    if align is not None:
        align = check_flag("align", align)
    nodes.check_free(self, clusters.name, _clusters.KIND)
    needs = [partial(averaging_need, self.data, clusters.n_clusters, n_jobs)]
    if min_purity is not None:
        check_memory(max_memory, *needs, partial(features_need, self.data, n_jobs))
    n_rows = check_memory(max_memory, *needs)
    origin = known_origins(self)
    if origin is None and align:
        raise ValueError(
            "align=True needs the origin of each pattern; measure it with "
            "py4DSTEM.process.calibration.get_origin(datacube), and keep it with "
            "datacube.calibration.set_origin()"
        )

    labels = clusters.labels
    if min_purity is not None:
        mixture = clusters.get_mixture(
            self, n_jobs=n_jobs, max_memory=max_memory, progress_bar=progress_bar
        )
        labels = _pure_labels(labels, mixture, min_purity)
    calibration = carry_calibration(self, labels)
    shifts = None
    if align is not False and origin is not None and varies(origin):
        # A part of the origin may be one number for all.
        means = [np.broadcast_to(q, (clusters.n_clusters, 1)) for q in calibration.get_origin()]
        place = np.concatenate(means, axis=1)
        shifts = place[labels] - origin  # of label -1 nobody asks
        shifts[~np.isfinite(shifts).all(axis=2)] = 0
    with progress(self.R_Nx, "Averaging", progress_bar) as report:
        averages = averaging_core(
            self.data, labels, n_jobs=n_jobs, report=report, shifts=shifts, n_rows=n_rows
        )
    keep_clusters(self, clusters, averages)
    cube = new_datacube(averages[:, None], name, calibration, dict(self.metadata))
    keep_clusters(cube, clusters)
    return cube


def _pure_labels(labels: np.ndarray, mixture: Mixture, min_purity: float) -> np.ndarray:
    """Labels of the positions that are pure enough; at least one for each cluster."""
    own = mixture.shares_at(labels)
    pure = np.where(own >= min_purity, labels, -1)
    for label in np.setdiff1d(labels[labels >= 0], pure):
        pure.flat[np.where(labels == label, own, -1).argmax()] = label
    return pure


def explore_clusters(
    self,
    *,
    method: str | None = None,
    image: Any = None,
    min_size: int = 1,
    drop_background: bool | None = None,
    tree: ClusterTree | None = None,
    rank: int | str = "auto",
    r_mask: np.ndarray | float | str | None = None,
    q_mask: np.ndarray | None = None,
    sigma: float | None = None,
    subtract_mean: bool | None = None,
    similarity: Similarity | emdfile.Array | np.ndarray | None = None,
    power: float = 0.25,
    n_jobs: int | None = None,
    max_memory: int | str | None = None,
    progress_bar: bool = True,
) -> ClusterExplorer:
    """Open a window in which sliders cut the cluster tree, and clicks show patterns.

    A virtual image, the label map, and, where one clicks, the pattern and the average of its
    cluster. The upper slider moves through the levels at which clusters change, or through numbers
    of clusters; the keys left and right move it by one step, "a" goes back to the automatic cut. In
    a notebook say ``%matplotlib widget`` first (package ipympl), in a script
    ``matplotlib.pyplot.show()`` afterwards.

    Parameters
    ----------
    method : "merge" or "grow", optional
        With which the window opens, see `cluster`; by default that of `tree`, or merging. The tree
        of the other one is measured when it is first asked for.
    image : array-like (Rx, Ry), optional
        Grey picture of the scan; by default the sum of what is scattered beyond the direct beam.
    min_size : int
        Clusters of fewer positions are dropped: label -1.
    drop_background : bool, optional
        Merging: see `cluster`.
    tree : ClusterTree, optional
        A tree measured earlier, from `get_cluster_tree`; the scan is read for the image only then.
    rank, r_mask, q_mask, sigma, subtract_mean, similarity
        Of trees that are measured, each for the methods it belongs to, see `cluster`. With a
        `similarity`, `q_mask` counts for merging only.
    power : float
        Intensities of patterns are drawn to this power, see `plot_averages`.
    n_jobs : int, optional
        Number of threads; by default all cores that the process may use.
    max_memory : int or str, optional
        Bytes, or a text such as "1 GB", "500 MB" or "1.5 GiB", within which the scan is read and
        worked on in blocks of rows; the same result for any. See `filter_correlative`.
    progress_bar : bool
        Show progress.

    Returns
    -------
    ClusterExplorer
        ``.clusters`` are what is on the screen, ``.keep(name)`` puts them into the tree of this
        datacube, ``.set(threshold=...)`` and ``.pick((rx, ry))`` do what sliders and clicks do,
        ``.figure`` is the matplotlib figure, ``.disconnect()`` lets go of it.

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule; before any work.

    Notes
    -----
    An average is read when its cluster is clicked, its members only. As in
    `get_clustered_datacube`, patterns are moved to the mean origin of the cluster where the
    calibration holds an origin that differs over the scan.

    Examples
    --------
    >>> explorer = datacube.explore_clusters(method="grow", min_size=5, progress_bar=False)
    >>> explorer.set(n_clusters=2).n_clusters
    2
    >>> explorer.pick((3, 7))
    >>> explorer.average.shape
    (32, 30)
    >>> explorer.keep("by_hand")
    Clusters('by_hand', 2 clusters, 80 of 80 scan positions of 8 x 10, sizes 14 to 66)
    """
    check_data(self.data)
    if tree is not None:
        if not isinstance(tree, ClusterTree):
            raise TypeError(
                f"tree must be a ClusterTree, not {type(tree).__name__}; use what "
                "datacube.get_cluster_tree() returned, or ClusterTree.from_node()"
            )
        check_same_scan("tree", tree.shape, self.Rshape)
    if method is None:
        method = "merge" if tree is None else tree.method
    # What belongs to either method, so that nothing is wrong with it when the window is open.
    of_merging, of_growth = (rank, None, None, None), ("auto", sigma, subtract_mean, similarity)
    check_tree_options(method, "auto", r_mask, None, None, None, self.Rshape)
    for name, (rank_of, *others) in zip(METHODS, (of_merging, of_growth), strict=True):
        check_tree_options(name, rank_of, r_mask, *others, self.Rshape)
    check_cut("merge", None, None, min_size, drop_background)
    q_mask = check_q_mask(q_mask, self.Qshape)
    if similarity is not None:
        _check_made_earlier({"sigma": sigma, "subtract_mean": subtract_mean})
        similarity = as_similarity(similarity, self.Rshape)
    power = check_number("power", power, 1e-3)
    n_jobs = check_n_jobs(n_jobs)
    progress_bar = check_flag("progress_bar", progress_bar)
    if image is not None:
        image = np.asarray(values_of(image))
        if image.shape != self.Rshape or image.dtype.kind not in "buif":
            raise ValueError(
                f"image of type {image.dtype} and shape {image.shape} must hold real numbers and "
                f"have the shape of the scan, {self.Rshape}"
            )
        image = image.astype(np.float64)
    n_rows = check_memory(
        max_memory,
        partial(virtual_image_need, self.data, n_jobs),
        partial(features_need, self.data, n_jobs),
        partial(noise_need, self.data, n_jobs),
        partial(similarity_need, self.data, q_mask, False, n_jobs),
    )

    def measure(which: str) -> ClusterTree:
        mask = None if which == "grow" and similarity is not None else q_mask
        own = {"merge": (rank, r_mask, mask, None, None, None)}
        own["grow"] = ("auto", r_mask, mask, sigma, subtract_mean, similarity)
        return _measure_tree(self, which, *own[which], n_jobs, max_memory, progress_bar)

    def put(clusters: Clusters, name: str) -> Clusters:
        name = check_name(name)
        nodes.check_free(self, name, _clusters.KIND)
        clusters = replace(
            clusters, name=name, settings={**clusters.settings.everything, "name": name}
        )
        keep_clusters(self, clusters)
        return clusters

    trees = {} if tree is None else {tree.method: tree}
    if method not in trees:
        trees[method] = measure(method)
    if image is None:
        weight = scattered(sample_mean(self.data), known_centre(self))
        with progress(self.R_Nx, "Virtual image", progress_bar) as report:
            image = virtual_image_core(
                self.data, weight, n_jobs=n_jobs, report=report, n_rows=n_rows
            )
    origin = known_origins(self)
    return ClusterExplorer(
        self,
        trees,
        method=method,
        image=image,
        measure=measure,
        put=put,
        min_size=int(min_size),
        drop_background=drop_background,
        power=power,
        steps=(scan_step(self), detector_step(self)),
        origin=origin if origin is not None and varies(origin) else None,
        progress_bar=progress_bar,
    )


def get_clusters(self, name: str | None = None) -> Clusters:
    """A clustering in the tree of this datacube.

    Parameters
    ----------
    name : str, optional
        Its name; by default the newest one.

    Returns
    -------
    Clusters
        With the pixel size that the datacube has now.

    Raises
    ------
    ValueError
        If there is none of this name.
    """
    kept = nodes.children(self, _clusters.KIND)
    if not kept:
        raise ValueError(_no_clusters(self))
    if name is None:
        return Clusters.from_node(list(kept.values())[-1])
    if name not in kept:
        raise ValueError(f"no clusters are called {name!r}; there are {', '.join(kept)}")
    return Clusters.from_node(kept[name])


def _no_clusters(datacube: DataCube) -> str:
    return f"{datacube.name!r} has no clusters; make some with datacube.cluster()"


def clusters(self) -> Clusters:
    """The newest clustering in the tree, also after reading a file; see `get_clusters`."""
    if nodes.children(self, _clusters.KIND):
        return get_clusters(self)
    # AttributeError, so that hasattr(datacube, "clusters") tells whether there are any.
    raise AttributeError(_no_clusters(self))


_ATTRIBUTES = {
    "filter_correlative": filter_correlative,
    "get_similarity": get_similarity,
    "get_cluster_tree": get_cluster_tree,
    "cluster": cluster,
    "get_clustered_datacube": get_clustered_datacube,
    "explore_clusters": explore_clusters,
    "cross_validate_orientation": cross_validate_orientation,
    "get_clusters": get_clusters,
    "clusters": property(clusters),
}


def register(cls: type = DataCube) -> None:
    """Add the methods to DataCube; done by ``import py4dstem_clustering``.

    Parameters
    ----------
    cls : type
        The class that receives them.

    Raises
    ------
    AttributeError
        If the class has an attribute of one of the names that is not ours; nothing is changed then.
    """
    package = __name__.partition(".")[0]
    for name in _ATTRIBUTES:
        held = inspect.getattr_static(cls, name, None)
        held = held.fget if isinstance(held, property) else held
        holder = getattr(held, "__module__", type(held).__module__)
        if held is not None and str(holder).partition(".")[0] != package:
            raise AttributeError(
                f"{cls.__name__}.{name} exists already and belongs to {holder}; {package} does not "
                f"overwrite it. Remove it (del {cls.__name__}.{name}) or the package that made it"
            )
    for name, attribute in _ATTRIBUTES.items():
        setattr(cls, name, attribute)
