"""The methods on py4DSTEM's DataCube: check arguments, call a kernel, wrap and keep the result."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import contextmanager
from copy import deepcopy
from os import PathLike
from typing import Any

import emdfile
import numpy as np
import py4DSTEM
from py4DSTEM import Calibration, DataCube

from . import clusters as _clusters
from . import emd
from . import similarity as _similarity
from ._version import __version__
from .checks import (
    check_corr_range,
    check_data,
    check_edge,
    check_flag,
    check_integer,
    check_n_jobs,
    check_name,
    check_noise,
    check_number,
    check_out,
    check_q_mask,
    check_r_mask,
    resolve_r_mask,
)
from .clusters import Clusters
from .kernels.averaging import averaging_core
from .kernels.correlative import auto_range, correlative_core
from .kernels.noise import Noise, noise_core, noise_windows
from .kernels.similarity import similarity_core
from .kernels.tree import cut_at, spanning_forest
from .similarity import Similarity


@contextmanager
def _progress(n_rows: int, what: str, progress_bar: bool):
    """py4DSTEM's progress bar over the rows of the scan, as a function of the rows just done."""
    bar = emdfile.tqdmnd(n_rows, desc=what, unit="rows", disable=not progress_bar)
    try:
        yield bar.update
    finally:
        bar.close()


def _versions() -> dict[str, str]:
    return {f"{emd.TAG}_version": __version__, "py4DSTEM_version": py4DSTEM.__version__}


def _calibration(datacube: DataCube, labels: np.ndarray | None = None) -> Calibration:
    """A copy of the calibration; with `labels`, maps of the scan become means over each cluster."""
    calibration = datacube.root.metadata.get("calibration")  # some files have none
    copy = Calibration() if calibration is None else calibration.copy(name="calibration")
    for key, value in list(copy._params.items()):
        if key in ("_root_treepath", "_target_paths"):  # left behind by py4DSTEM.read (0.14.18)
            del copy._params[key]
        else:
            copy._params[key] = deepcopy(value)
    if labels is None:
        return copy

    n_clusters = labels.max() + 1
    for key, value in list(copy._params.items()):
        if isinstance(value, np.ndarray) and value.shape == labels.shape:
            if value.dtype == bool:
                del copy._params[key]
                continue
            present = (labels >= 0) & np.isfinite(value)
            count = np.bincount(labels[present], minlength=n_clusters).astype(float)
            count[count == 0] = np.nan
            total = np.bincount(labels[present], value[present], minlength=n_clusters)
            copy._params[key] = (total / count)[:, None]
    return copy


def _new_datacube(
    data: Any, name: str, calibration: Calibration, metadata: Mapping[str, emdfile.Metadata]
) -> DataCube:
    cube = DataCube(data=data, name=name, calibration=calibration)
    for key, item in metadata.items():
        cube.metadata = emdfile.Metadata(key, deepcopy(item._params))
    return cube


def keep_clusters(
    datacube: DataCube, clusters: Clusters, averages: np.ndarray | None = None
) -> None:
    """Keep clusters, and their averages, in the tree of a datacube as the newest."""
    emd.put(datacube, clusters.to_node(averages))


def filter_correlative(
    self,
    *,
    sigma: float = 3,
    radius: float = 4,
    corr_range: tuple[float, float] | str = (0.85, 0.95),
    edge: int = 12,
    out: str | PathLike | None = None,
    overwrite: bool = False,
    name: str | None = None,
    n_jobs: int | None = None,
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
    name : str, optional
        Name of the result; by default that of this datacube.
    n_jobs : int, optional
        Number of threads; by default all cores that the process may use.
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
    if corr_range == "auto":
        corr_range = auto_range(self.data, sigma=sigma, edge=edge, n_jobs=n_jobs)

    options = {"sigma": sigma, "radius": radius, "corr_range": corr_range, "edge": edge}
    metadata = dict(self.metadata)
    again = sum(key.startswith("filter_correlative") for key in metadata)
    key = f"filter_correlative_{again + 1}" if again else "filter_correlative"
    metadata[key] = emdfile.Metadata(key, {**options, "source": self.name, **_versions()})

    def run(target: Any) -> None:
        with _progress(self.R_Nx, "Filtering", progress_bar) as report:
            correlative_core(self.data, target, **options, n_jobs=n_jobs, report=report)

    if path is None:
        data = np.empty(self.data.shape, dtype=np.float32)
        run(data)
        return _new_datacube(data, name, _calibration(self), metadata)

    small = np.zeros([min(n, 2) for n in self.data.shape], dtype=np.float32)
    skeleton = _new_datacube(small, name, _calibration(self), metadata)
    with emd.scan_writer(path, skeleton, self.data.shape) as dataset:
        run(dataset)
    data = emd.open_dataset(path, skeleton.root.name, name)
    return _new_datacube(data, name, _calibration(self), metadata)


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
    emd.check_free(self, name, _similarity.KIND)
    similarity = _measure_similarity(
        self,
        q_mask,
        sigma,
        subtract_mean,
        n_jobs,
        progress_bar,
        noise_correct=noise_correct,
        gain=gain,
        offset=offset,
    )
    emd.put(self, similarity.to_node(name))
    return similarity if returncalc else None


def _measure_similarity(
    datacube: DataCube,
    q_mask: np.ndarray | None,
    sigma: float,
    subtract_mean: bool,
    n_jobs: int | None,
    progress_bar: bool,
    *,
    noise_correct: bool = False,
    gain: float | None = None,
    offset: float | None = None,
) -> Similarity:
    check_data(datacube.data)
    options = {
        "q_mask": check_q_mask(q_mask, datacube.Qshape),
        "sigma": check_number("sigma", sigma, 0),
        "subtract_mean": check_flag("subtract_mean", subtract_mean),
    }
    noise_correct, gain, offset = check_noise(noise_correct, gain, offset, datacube.Rshape)
    n_jobs = check_n_jobs(n_jobs)
    progress_bar = check_flag("progress_bar", progress_bar)
    noise = None
    if noise_correct and gain is None:
        n_rows = 2 * sum(stop - start for start, stop in noise_windows(datacube.Rshape))
        with _progress(n_rows, "Measuring noise", progress_bar) as report:
            noise = noise_core(datacube.data, n_jobs=n_jobs, report=report, offset=offset)
    elif noise_correct:
        noise = Noise(gain, 0.0 if offset is None else offset)
    with _progress(datacube.R_Nx, "Comparing", progress_bar) as report:
        data = similarity_core(datacube.data, **options, n_jobs=n_jobs, report=report, noise=noise)
    options["noise_correct"] = noise_correct
    options["gain"], options["offset"] = (None, None) if noise is None else noise
    return Similarity(data, {**options, **_versions()}, *emd.scan_step(datacube))


def cluster(
    self,
    *,
    method: str = "grow",
    threshold: float = 0.9,
    min_size: int = 1,
    r_mask: np.ndarray | float | str | None = None,
    q_mask: np.ndarray | None = None,
    sigma: float | None = None,
    subtract_mean: bool | None = None,
    similarity: Similarity | emdfile.Array | np.ndarray | None = None,
    name: str = "clusters",
    returncalc: bool = True,
    n_jobs: int | None = None,
    progress_bar: bool = True,
) -> Clusters | None:
    """Find regions of the scan in which neighbouring diffraction patterns are alike.

    Parameters
    ----------
    method : "grow"
        Growth from seeds, the paper's "marching squares".
    threshold : float
        Neighbours join when their similarity is at least this, -1 to 1. Lower it when grains come
        in pieces, raise it when grains run together; ``datacube.get_similarity().plot()`` shows
        what there is to choose from.
    min_size : int
        Clusters of fewer positions are dropped: label -1.
    r_mask : ndarray of bool (Rx, Ry), number, name, or None
        Positions that can be in a cluster: a map; those with a mean similarity above a number; or
        above a global threshold of scikit-image, such as "triangle" (the paper's) or "otsu". By
        default all.
    q_mask : ndarray of bool, (Qx, Qy), optional
        Detector pixels that count, see `get_similarity`.
    sigma : float, optional
        Blur before comparing, detector pixels, see `get_similarity`. Default 0.
    subtract_mean : bool, optional
        See `get_similarity`. Default True.
    similarity : Similarity or array-like (Rx, Ry, 8), optional
        A similarity made earlier, so that a second threshold costs milliseconds; `q_mask`, `sigma`
        and `subtract_mean` belong to `get_similarity` then. By default it is made now. Either way
        the clusters keep it: ``clusters.similarity``.
    name : str
        Name in the tree. Clusterings of different names live side by side; one replaces another of
        the same name.
    returncalc : bool
        Return the result; it is kept in the tree either way.
    n_jobs : int, optional
        Number of threads; by default all cores that the process may use.
    progress_bar : bool
        Show progress.

    Returns
    -------
    Clusters
        Numbered in the order in which they grew, by the mean similarity of their seeds;
        ``clusters.relabel("size")`` puts the largest first.

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule; before any work.

    Notes
    -----
    A cluster starts at the free position with the highest mean similarity, and takes in free
    neighbours whose similarity with a member is at least `threshold`, until none is left; then the
    next one starts (Lee et al., 2026, section 2.5). The result is cut from a maximum spanning
    forest, which gives the same labels. Diagonal neighbours count.

    Examples
    --------
    >>> similarity = datacube.get_similarity(progress_bar=False)
    >>> for threshold in (0.95, 0.98):
    ...     datacube.cluster(threshold=threshold, min_size=5, similarity=similarity).n_clusters
    1
    2
    >>> datacube.clusters.settings["threshold"]  # the newest
    0.98
    """
    check_data(self.data)
    if method != "grow":
        raise ValueError(f"method={method!r} is not known; it must be 'grow'")
    threshold = check_number("threshold", threshold, -1, 1)
    min_size = check_integer("min_size", min_size, 1)
    r_mask = check_r_mask(r_mask, self.Rshape)
    name = check_name(name)
    returncalc = check_flag("returncalc", returncalc)
    check_n_jobs(n_jobs)
    check_flag("progress_bar", progress_bar)
    emd.check_free(self, name, _clusters.KIND)
    if similarity is None:
        similarity = _measure_similarity(
            self,
            q_mask,
            0 if sigma is None else sigma,
            True if subtract_mean is None else subtract_mean,
            n_jobs,
            progress_bar,
        )
    else:
        given = {"q_mask": q_mask, "sigma": sigma, "subtract_mean": subtract_mean}
        wrong = [key for key, value in given.items() if value is not None]
        if wrong:
            raise ValueError(
                f"{' and '.join(wrong)} cannot change a similarity made earlier, but belongs to "
                "get_similarity; or leave out similarity"
            )
        similarity = _as_similarity(similarity, self.Rshape)

    mean = similarity.mean
    forest = spanning_forest(similarity.data, resolve_r_mask(r_mask, mean))
    labels, seeds = cut_at(forest, threshold, mean, min_size)
    made_with = similarity.settings
    result = Clusters(
        labels,
        seeds,
        mean,
        {
            "method": method,
            "threshold": threshold,
            "min_size": min_size,
            "r_mask": r_mask,
            **{key: made_with.get(key) for key in ("q_mask", "sigma", "subtract_mean")},
            "name": name,
            **_versions(),
        },
        similarity,
        name,
        *emd.scan_step(self),
    )
    keep_clusters(self, result)
    return result if returncalc else None


def _as_similarity(similarity: Any, scan: tuple[int, int]) -> Similarity:
    if isinstance(similarity, emdfile.Array):
        similarity = Similarity.from_node(similarity)
    elif not isinstance(similarity, Similarity):
        values = np.asarray(similarity)
        if values.dtype.kind not in "fiu":
            raise TypeError(f"similarity of type {values.dtype} must hold real numbers")
        similarity = Similarity(values)
    if similarity.shape[:2] != tuple(scan):
        raise ValueError(
            f"similarity of a scan of {similarity.shape[:2]} does not fit this scan of {scan}"
        )
    return similarity


def get_clustered_datacube(
    self,
    clusters: Clusters | str | None = None,
    *,
    name: str = "averages",
    n_jobs: int | None = None,
    progress_bar: bool = True,
) -> DataCube:
    """Average the diffraction patterns of each cluster.

    Parameters
    ----------
    clusters : Clusters or str, optional
        A clustering of a scan of this shape, for example of the filtered scan, or the name of one
        in the tree; by default the newest one in the tree. That it belongs to this scan is yours to
        know: only the shape is checked.
    name : str
        Name of the result.
    n_jobs : int, optional
        Number of threads; by default all cores that the process may use.
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
    if clusters.shape != self.Rshape:
        raise ValueError(
            f"clusters of a scan of {clusters.shape} do not fit this scan of {self.Rshape}"
        )
    if clusters.n_clusters == 0:
        raise ValueError(
            f"{clusters.name!r} holds no clusters, so there is nothing to average; lower the "
            "threshold or min_size, or widen r_mask"
        )
    name = check_name(name)
    n_jobs = check_n_jobs(n_jobs)
    progress_bar = check_flag("progress_bar", progress_bar)
    emd.check_free(self, clusters.name, _clusters.KIND)

    with _progress(self.R_Nx, "Averaging", progress_bar) as report:
        averages = averaging_core(self.data, clusters.labels, n_jobs=n_jobs, report=report)
    keep_clusters(self, clusters, averages)
    cube = _new_datacube(
        averages[:, None], name, _calibration(self, clusters.labels), dict(self.metadata)
    )
    keep_clusters(cube, clusters)
    return cube


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
    nodes = emd.children(self, _clusters.KIND)
    if not nodes:
        raise ValueError(f"{self.name!r} has no clusters; make some with datacube.cluster()")
    if name is None:
        return Clusters.from_node(list(nodes.values())[-1])
    if name not in nodes:
        raise ValueError(f"no clusters are called {name!r}; there are {', '.join(nodes)}")
    return Clusters.from_node(nodes[name])


def clusters(self) -> Clusters:
    """The newest clustering in the tree, also after reading a file; see `get_clusters`."""
    try:
        return get_clusters(self)
    except ValueError as error:
        # AttributeError, so that hasattr(datacube, "clusters") tells whether there are any.
        raise AttributeError(str(error)) from None


_ATTRIBUTES = {
    "filter_correlative": filter_correlative,
    "get_similarity": get_similarity,
    "cluster": cluster,
    "get_clustered_datacube": get_clustered_datacube,
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
