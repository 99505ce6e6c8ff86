"""The methods on py4DSTEM's DataCube: check arguments, call a kernel, wrap and keep the result."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from os import PathLike
from time import perf_counter
from typing import Any

import emdfile
import numpy as np
from py4DSTEM import DataCube

from . import cluster_tree as _cluster_tree
from . import clusters as _clusters
from . import similarity as _similarity
from .base.checks import (
    check_choice,
    check_compression,
    check_corr_range,
    check_data,
    check_edge,
    check_flag,
    check_integer,
    check_memory,
    check_n_jobs,
    check_name,
    check_noise,
    check_number,
    check_out,
    check_q_mask,
    check_r_mask,
    check_same_scan,
    resolve_r_mask,
    values_of,
)
from .base.progress import progress
from .cluster_tree import METHODS, ClusterTree, check_cut
from .clusters import Clusters
from .emd import nodes, writing
from .explore import ClusterExplorer
from .kernels.averaging import averaging_core, averaging_need
from .kernels.blocks import Need
from .kernels.correlative import auto_range, auto_range_need, correlative_core, correlative_need
from .kernels.features import MAX_RANK, features_need
from .kernels.lag import find_lag, undo_lag
from .kernels.merging import coarse_joins, find_regions, joins_of, merge_positions
from .kernels.noise import Noise, noise_core, noise_need, noise_windows
from .kernels.similarity import (
    feature_similarity,
    similarity_core,
    similarity_mean,
    similarity_need,
)
from .kernels.tree import spanning_forest
from .kernels.virtual import sample_mean, scattered, virtual_image_core, virtual_image_need
from .mixture import Mixture, measure_features
from .scan.calibration import (
    carry_calibration,
    detector_step,
    known_centre,
    known_origins,
    scan_step,
    varies,
)
from .scan.datacubes import files_of, get_provenance, is_one_of, new_datacube
from .similarity import Similarity
from .validation import cross_validate_orientation


def keep_clusters(
    datacube: DataCube, clusters: Clusters, averages: np.ndarray | None = None
) -> None:
    """Keep clusters, and their averages, in the tree of a datacube as the newest."""
    nodes.put(datacube, clusters.to_node(averages))


def filter_correlative(
    self,
    *,
    sigma: float = 3,
    radius: float = 4,
    corr_range: tuple[float, float] | str = (0.85, 0.95),
    edge: int = 12,
    out: str | PathLike | None = None,
    overwrite: bool = False,
    compression: str | None = None,
    name: str | None = None,
    n_jobs: int | None = None,
    max_memory: int | str | None = None,
    progress_bar: bool = True,
) -> DataCube:
    """Average each diffraction pattern with those neighbours that look like it.

    Less noise without blurring borders: neighbours are compared by the correlation of their
    blurred patterns, weighted by the squared distance from the centre of the detector, and a
    neighbour counts the more the higher the correlation. The first step of the published workflow.

    Parameters
    ----------
    sigma : float
        Gaussian blur before patterns are compared, detector pixels; 0 for none. About the radius of
        a Bragg disk: noise must go, disks must stay apart. The result itself is not blurred.
    radius : float
        Neighbours out to ``radius + 1/2`` scan positions; 4 means 69 positions. Well below the size
        of a grain.
    corr_range : (low, high), or "auto"
        A correlation of `low` or less gives a neighbour the weight 0, `high` or more the weight 1,
        linear in between. Both from -1 to 1. Below about 1,000 electrons a pattern noise keeps
        correlations under 0.85, and the default does nothing: choose "auto" then, which
        places the range by the correlations of a sample of positions, near and far; or lower both
        until a picture of the result is smooth inside grains and sharp between them. The range used
        is kept in the metadata of the result.
    edge : int
        Border of the detector that is left out of the comparison, detector pixels.
    out : path, optional
        Stream the result to this new EMD file, and leave it on disk. By default it is kept in
        memory, as float32. The file stays open as long as the result lives, so save clusters to
        another one, with the averages.
    overwrite : bool
        Replace `out` if it exists.
    compression : "gzip", "lzf" or "bitshuffle", optional
        Compress `out`. Averages of counts, which are fractions, compress to about two thirds at
        best; where the filter changed nothing, to a tenth. "bitshuffle", with LZ4, is the fastest,
        but a file so compressed opens only where hdf5plugin is imported; "gzip" opens everywhere.
    name : str, optional
        Name of the result; by default that of this datacube.
    n_jobs : int, optional
        Number of threads; by default all cores that the process may use.
    max_memory : int or str, optional
        Bytes, or a text such as "1 GB", "500 MB" or "1.5 GiB", within which the scan is read and
        worked on in blocks of rows; the same result for any. By default about half a GB, or what
        one row of the scan takes if that is more: 1.1 GB here for rows of 512 patterns of
        192 x 192, half of it or less elsewhere. What comes on top: Python with py4DSTEM (0.3 GB),
        the result itself (here without `out`), what dask holds, and in merging 0.6 kB a position
        (24 features, 160 MB for 512 x 512).
    progress_bar : bool
        Show progress.

    Returns
    -------
    DataCube
        float32, the same shape and calibration, in a tree of its own. With `out`, its data are an
        h5py dataset in that file, which ``py4DSTEM.read`` opens too.

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule; before any work.

    Notes
    -----
    With blurred patterns ``B``, and the weight ``w(q) = |q - q_mean|^2 / (Nu Nv)``, zero in the
    edge, ``F = w (B - mu) / |w (B - mu)|`` where ``mu`` is the w-weighted mean of ``B``. The
    correlation with the neighbour at ``d`` is ``c(d) = sum_q F(r) F(r + d)``, its weight
    ``a(d) = clip((c - low) / (high - low), 0, 1)``, and the result
    ``(I(r) + sum_d a(d) I(r + d)) / (1 + sum_d a(d))``. The sum includes ``d = 0``, so a pattern
    counts twice at its own position, as in the published workflow (Lee et al., 2026, section 2.1).

    A missing pixel (NaN or infinite) counts as the mean of its pattern in the comparison and has no
    weight in the average: neighbours fill it.

    Examples
    --------
    >>> filtered = datacube.filter_correlative(
    ...     sigma=1, radius=2, corr_range=(0.2, 0.8), edge=2, progress_bar=False
    ... )
    >>> filtered.shape == datacube.shape
    True
    """
    check_data(self.data)
    sigma = check_number("sigma", sigma, 0)
    radius = check_number("radius", radius, 0)
    corr_range = check_corr_range(corr_range)
    edge = check_edge(edge, self.Qshape)
    name = self.name if name is None else check_name(name)
    if out is not None:
        check_name(name)  # that of the datacube may not fit into a file
    n_jobs = check_n_jobs(n_jobs)
    overwrite = check_flag("overwrite", overwrite)
    progress_bar = check_flag("progress_bar", progress_bar)
    path = None if out is None else check_out(out, overwrite)
    if path is not None and is_one_of(path, files_of(self.data)):
        raise ValueError(f"out={str(path)!r} is the file of the scan itself; give another name")
    packing = check_compression(compression)
    if packing and path is None:
        raise ValueError(
            f"compression={compression!r} does nothing without out; add out, or leave it out"
        )
    needs = [partial(correlative_need, self.data, sigma, radius, edge, n_jobs)]
    if corr_range == "auto":
        needs.append(partial(auto_range_need, self.data, sigma, edge, n_jobs))
    n_rows = check_memory(max_memory, *needs)
    if corr_range == "auto":
        with progress(self.R_Nx, "Choosing range", progress_bar) as report:
            corr_range = auto_range(self.data, sigma=sigma, edge=edge, n_jobs=n_jobs, report=report)

    options = {"sigma": sigma, "radius": radius, "corr_range": corr_range, "edge": edge}
    metadata = dict(self.metadata)
    again = sum(key.startswith("filter_correlative") for key in metadata)
    key = f"filter_correlative_{again + 1}" if again else "filter_correlative"
    metadata[key] = emdfile.Metadata(key, {**options, **get_provenance(self)})

    def run(target: Any) -> None:
        with progress(self.R_Nx, "Filtering", progress_bar) as report:
            correlative_core(
                self.data, target, **options, n_jobs=n_jobs, report=report, n_rows=n_rows
            )

    if path is None:
        data = np.empty(self.data.shape, dtype=np.float32)
        run(data)
        return new_datacube(data, name, carry_calibration(self), metadata)

    small = np.zeros([min(n, 2) for n in self.data.shape], dtype=np.float32)
    skeleton = new_datacube(small, name, carry_calibration(self), metadata)
    with writing.scan_writer(path, skeleton, self.data.shape, packing) as target:
        run(target)
    data = writing.open_dataset(path, skeleton.root.name, name)
    return new_datacube(data, name, carry_calibration(self), metadata)


def get_similarity(
    self,
    *,
    q_mask: np.ndarray | None = None,
    sigma: float = 0,
    subtract_mean: bool = True,
    noise_correct: bool = False,
    gain: float | None = None,
    offset: float | None = None,
    returncalc: bool = True,
    name: str = "similarity",
    n_jobs: int | None = None,
    max_memory: int | str | None = None,
    progress_bar: bool = True,
) -> Similarity | None:
    """Measure how alike each diffraction pattern is to its eight neighbours.

    Parameters
    ----------
    q_mask : ndarray of bool, (Qx, Qy), optional
        Detector pixels that count; by default all. Leave out the direct beam, which is the same in
        every grain and drowns the rest, and whatever lies beyond the last Bragg disks:
        ``datacube.make_detector(datacube.Qshape, "annulus", ((qx0, qy0), (inner, outer)))``.
    sigma : float
        Gaussian blur of each pattern, detector pixels; 0 for none. Helps noisy patterns that were
        not filtered; about the radius of a Bragg disk at most.
    subtract_mean : bool
        Subtract from each pattern its mean over the whole detector. Without it any two patterns
        with a common background are alike.
    noise_correct : bool
        Correct for counting noise, so that patterns of one grain have a similarity near 1 at any
        dose, and one threshold serves many scans. For raw counts: filtered or averaged patterns
        have less noise than this takes off. Where noise is more than 70 % of the power of a
        pattern, only 70 % are taken off, and the similarity stays too low: blur more (`sigma`), or
        leave out empty parts of the detector (`q_mask`).
    gain : float, optional
        Recorded value of one electron, for `noise_correct`: 1 for counts. By default measured where
        the scan is quietest, which takes three positions in a row or column, and grains that fill
        about a fifth of the scan. Give it where the camera lags, saturates, or cuts off low values:
        its noise then says little about the gain.
    offset : float, optional
        Recorded value without electrons, for `noise_correct`. By default measured with the gain, or
        0 with a `gain`.
    returncalc : bool
        Return the result; it is kept in the tree either way.
    name : str
        Name in the tree of this datacube. One similarity replaces another of the same name.
    n_jobs : int, optional
        Number of threads; by default all cores that the process may use.
    max_memory : int or str, optional
        Bytes, or a text such as "1 GB", "500 MB" or "1.5 GiB", within which the scan is read and
        worked on in blocks of rows; the same result for any. See `filter_correlative`.
    progress_bar : bool
        Show progress.

    Returns
    -------
    Similarity
        Array-like, (Rx, Ry, 8), from -1 to 1, NaN where the neighbour lies outside the scan. The
        last axis is in the order of `Similarity.directions`. Its settings hold the gain and offset
        that were used.

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule; before any work. With `noise_correct`, also if the scan
        holds no noise to measure the gain by.

    Notes
    -----
    With ``J`` the pattern minus its mean, blurred, inside `q_mask`:
    ``S(r, d) = <J(r), J(r + d)> / (|J(r)| |J(r + d)|)``, the cosine of the paper (Lee et al., 2026,
    section 2.3). 0 where a pattern is empty or constant. A missing pixel (NaN or infinite) counts
    as the mean of its pattern.

    With `noise_correct`, ``S`` is divided by the root of ``(1 - V(r) / |J(r)|^2)`` times the same
    of the neighbour, and clipped to -1 and 1. ``V(r)`` is the noise power, gain times the sum over
    `q_mask` of ``I(r) - offset`` blurred by the square of the blur kernel; at most 0.7 |J|^2.

    Examples
    --------
    >>> similarity = datacube.get_similarity(progress_bar=False)
    >>> similarity.shape
    (8, 10, 8)
    >>> datacube.tree("similarity").shape  # kept in the tree, for py4DSTEM.save
    (8, 10, 8)
    """
    returncalc = check_flag("returncalc", returncalc)
    name = check_name(name)
    nodes.check_free(self, name, _similarity.KIND)
    similarity = _measure_similarity(
        self,
        q_mask,
        sigma,
        subtract_mean,
        n_jobs,
        max_memory,
        progress_bar,
        noise_correct=noise_correct,
        gain=gain,
        offset=offset,
    )
    nodes.put(self, similarity.to_node(name))
    return similarity if returncalc else None


def _measure_similarity(
    datacube: DataCube,
    q_mask: np.ndarray | None,
    sigma: float,
    subtract_mean: bool,
    n_jobs: int | None,
    max_memory: int | str | None,
    progress_bar: bool,
    *,
    noise_correct: bool = False,
    gain: float | None = None,
    offset: float | None = None,
) -> Similarity:
    start = perf_counter()
    check_data(datacube.data)
    options = {
        "q_mask": check_q_mask(q_mask, datacube.Qshape),
        "sigma": check_number("sigma", sigma, 0),
        "subtract_mean": check_flag("subtract_mean", subtract_mean),
    }
    noise_correct, gain, offset = check_noise(noise_correct, gain, offset, datacube.Rshape)
    n_jobs = check_n_jobs(n_jobs)
    progress_bar = check_flag("progress_bar", progress_bar)

    def need() -> Need:
        own = similarity_need(datacube.data, options["q_mask"], noise_correct, n_jobs)
        if not noise_correct or gain is not None:
            return own
        # Most of what is freed after the noise was measured stays with the process.
        return Need(own.fixed + noise_need(datacube.data, n_jobs).fixed, own.row)

    n_rows = check_memory(max_memory, need)
    noise = None
    if noise_correct and gain is None:
        noise = _measure_noise(datacube, n_jobs, progress_bar, offset)
    elif noise_correct:
        noise = Noise(gain, 0.0 if offset is None else offset)
    with progress(datacube.R_Nx, "Comparing", progress_bar) as report:
        data = similarity_core(
            datacube.data, **options, n_jobs=n_jobs, report=report, noise=noise, n_rows=n_rows
        )
    options["noise_correct"] = noise_correct
    options["gain"], options["offset"] = (None, None) if noise is None else noise
    settings = {**options, **get_provenance(datacube, start)}
    return Similarity(data, settings, *scan_step(datacube))


def _measure_noise(
    datacube: DataCube, n_jobs: int | None, progress_bar: bool, offset: float | None = None
) -> Noise:
    total = 2 * sum(stop - start for start, stop in noise_windows(datacube.Rshape))
    with progress(total, "Measuring noise", progress_bar) as report:
        return noise_core(datacube.data, n_jobs=n_jobs, report=report, offset=offset)


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
        similarity = _measure_similarity(
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
        similarity = _as_similarity(similarity, datacube.Rshape)
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
        noise = _measure_noise(datacube, n_jobs, progress_bar)
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


def _as_similarity(similarity: Any, scan: tuple[int, int]) -> Similarity:
    if isinstance(similarity, emdfile.Array):
        similarity = Similarity.from_node(similarity)
    elif not isinstance(similarity, Similarity):
        values = np.asarray(similarity)
        if values.dtype.kind not in "fiu":
            raise TypeError(f"similarity of type {values.dtype} must hold real numbers")
        similarity = Similarity(values)
    check_same_scan("similarity", similarity.shape[:2], scan)
    return similarity


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
        similarity = _as_similarity(similarity, self.Rshape)
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
