"""Average the patterns of each cluster; store clusters in the tree of a datacube, and get them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from py4DSTEM import DataCube

from ..base.checks import (
    check_data,
    check_flag,
    check_memory,
    check_n_jobs,
    check_name,
    check_number,
    check_same_scan,
)
from ..base.progress import progress
from ..emd import nodes
from ..kernels.averaging import ClusterSums, averaging_core, averaging_need, summing_core
from ..kernels.blocks import Report, ignore
from ..kernels.features import features_need
from ..patterns.mixture import Mixture
from ..patterns.on_workers import Block, check_client, cut_in_blocks, map_blocks
from ..scan.calibration import carry_calibration, check_calibration, known_origins, varies
from ..scan.datacubes import new_datacube, warn_of_other_data
from .clusters import Clusters
from .node import CLUSTERS_KIND


def keep_clusters(
    datacube: DataCube, clusters: Clusters, averages: NDArray[Any] | None = None
) -> None:
    """Put clusters, with their averages, into the tree of a datacube, as the newest ones."""
    nodes.put(datacube, clusters.to_node(averages))


def get_clustered_datacube(
    self: DataCube,
    clusters: Clusters | str | None = None,
    *,
    min_purity: float | None = None,
    align: bool | None = None,
    name: str = "averages",
    client: Any = None,
    n_jobs: int | None = None,
    max_memory: int | str | None = None,
    progress_bar: bool = True,
) -> DataCube:
    """Average the diffraction patterns of each cluster.

    Parameters
    ----------
    clusters : Clusters or str, optional
        Clusters of this scan (they may come from the filtered scan), or the name of clusters in the
        tree; by default the newest ones in the tree. Clusters of another scan of the same shape
        give a warning.
    min_purity : float, optional
        Average only positions where the cluster has at least this share of the pattern, 0 to 1; see
        ``clusters.get_mixture``. 0.9 leaves out borders and stacked grains. If a cluster has no
        such position, its purest position is taken. The scan is read two more times.
    align : bool, optional
        Move each pattern to the mean origin of its cluster before averaging, with linear
        interpolation, so that descan does not smear Bragg disks. By default True if the calibration
        holds an origin that differs over the scan. Measure the origin with
        ``py4DSTEM.process.calibration.get_origin`` and ``fit_origin``, and store it with
        ``datacube.calibration.set_origin``.
    name : str
        Name of the result.
    client : dask.distributed.Client, optional
        The workers of this client add up blocks of rows, on any number of machines. The result is
        the same for whole numbers, whose sums are exact, and within 1e-6 for others. `min_purity`
        is measured in this process.
    n_jobs : int, optional
        Number of threads; by default all cores that the process may use, or 1 with a `client`.
    max_memory : int or str, optional
        Bytes, or a text such as "1 GB", that the work may take; see `filter_correlative`.
    progress_bar : bool
        Show progress.

    Returns
    -------
    DataCube
        ``(N, 1, Qx, Qy)``, float32, summed in float64. Pattern `k` is the mean over cluster `k`.
        The result holds the clusters, ``averages.clusters``, and a copy of the calibration, in
        which maps of the scan (such as the origin) become means over each cluster. So
        ``py4DSTEM.save("averages.h5", averages)`` makes a small file with all results but the scan.

        The tree of this datacube keeps the clusters and averages too; they replace clusters of the
        same name.

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong, there are no clusters, or they are of a scan of another shape.

    Notes
    -----
    A missing pixel (NaN or infinite) has no weight. If it is missing in all patterns of a cluster,
    it is NaN in the average. All averages are in memory at once, as float64: for thousands of
    clusters, drop small ones with the `min_size` of `cluster`.

    Examples
    --------
    >>> clusters = datacube.cluster(threshold=0.98, min_size=5, progress_bar=False)
    >>> averages = datacube.get_clustered_datacube(progress_bar=False)
    >>> averages.shape
    (2, 1, 32, 30)
    """
    check_data(self.data)
    check_calibration(self)
    clusters = _clusters_of(self, clusters)
    name = check_name(name)
    client = check_client(client)
    n_jobs = check_n_jobs(n_jobs, client)
    progress_bar = check_flag("progress_bar", progress_bar)
    if min_purity is not None:
        min_purity = check_number("min_purity", min_purity, 0, 1)
    if align is not None:
        align = check_flag("align", align)
    nodes.check_free(self, clusters.name, CLUSTERS_KIND)
    warn_of_other_data("the clusters were", clusters.settings, self)
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
        shifts = _shifts_to_mean(origin, calibration.get_origin(), labels)
    with progress(self.R_Nx, "Averaging", progress_bar) as report:
        if client is None:
            averages = averaging_core(
                self.data, labels, n_jobs=n_jobs, report=report, shifts=shifts, n_rows=n_rows
            )
        else:
            averages = _average_on_workers(
                client, self.data, labels, shifts, n_jobs=n_jobs, n_rows=n_rows, report=report
            )
    keep_clusters(self, clusters, averages)
    cube = new_datacube(averages[:, None], name, calibration, dict(self.metadata), "cluster")
    keep_clusters(cube, clusters)
    return cube


def _average_on_workers(
    client: Any,
    data: Any,
    labels: NDArray[Any],
    shifts: NDArray[np.float64] | None,
    *,
    n_jobs: int | None,
    n_rows: int | None,
    report: Report,
) -> NDArray[np.float32]:
    """As `averaging_core`, with the sums of blocks of rows added in the order of the scan."""
    sums = ClusterSums(int(labels.max()) + 1, data.shape[1:])
    blocks = cut_in_blocks(client, data, 0)

    def of_block(block: Block) -> dict[str, Any]:
        some = slice(block.start, block.stop)
        return {
            "labels": labels[some],
            "shifts": None if shifts is None else shifts[some],
            "n_jobs": n_jobs,
            "n_rows": n_rows,
        }

    for block, (present, found) in map_blocks(client, _sum_block, data, blocks, of_block):
        sums.add_sums(present, found)
        report(block.stop - block.start)
    return sums.means(np.bincount(labels[labels >= 0], minlength=len(sums.total)))


def _sum_block(
    rows: Any,
    block: Block,
    *,
    labels: NDArray[Any],
    shifts: NDArray[np.float64] | None,
    n_jobs: int | None,
    n_rows: int | None,
) -> tuple[NDArray[np.int64], ClusterSums]:
    """Labels in a block of rows, and the sums of their patterns."""
    present, own = np.unique(labels, return_inverse=True)
    # Outside clusters the label stays -1, so that other labels count from 0.
    own = own.reshape(labels.shape) - int(present[0] < 0)
    sums = summing_core(rows, own, n_jobs=n_jobs, report=ignore, shifts=shifts, n_rows=n_rows)
    return present[present >= 0], sums


def _clusters_of(datacube: DataCube, clusters: Any) -> Clusters:
    """Return the given clusters, or those of this name, after a check that they fit this scan."""
    if clusters is None or isinstance(clusters, str):
        clusters = get_clusters(datacube, clusters)
    elif not isinstance(clusters, Clusters):
        raise TypeError(
            f"clusters must be Clusters or the name of some, not {type(clusters).__name__}; "
            "use what datacube.cluster() returned"
        )
    check_same_scan("clusters", clusters.shape, datacube.Rshape)
    if clusters.n_clusters == 0:
        raise ValueError(
            f"{clusters.name!r} holds no clusters, so there is nothing to average; lower the "
            "threshold or min_size, widen r_mask, or keep the background (drop_background=False)"
        )
    return clusters


def _shifts_to_mean(
    origin: NDArray[Any], means: tuple[Any, Any], labels: NDArray[Any]
) -> NDArray[np.float64]:
    """Pixels ``(Rx, Ry, 2)`` by which each pattern moves to the mean origin of its cluster.

    The shift is 0 if the origin is not known. Outside clusters it has no meaning.
    """
    n_clusters = int(labels.max()) + 1
    # The mean may be one number for all clusters.
    columns = [np.broadcast_to(mean, (n_clusters, 1)) for mean in means]
    shifts = np.concatenate(columns, axis=1)[labels] - origin
    shifts[~np.isfinite(shifts).all(axis=2)] = 0
    return shifts


def _pure_labels(labels: NDArray[Any], mixture: Mixture, min_purity: float) -> NDArray[Any]:
    """Labels with -1 where positions are not pure; each cluster keeps its purest position."""
    own = mixture.shares_at(labels)
    pure = np.where(own >= min_purity, labels, -1)
    for label in np.setdiff1d(labels[labels >= 0], pure):
        pure.flat[np.where(labels == label, own, -1).argmax()] = label
    return pure


def get_clusters(self: DataCube, name: str | None = None) -> Clusters:
    """Get clusters from the tree of this datacube.

    Parameters
    ----------
    name : str, optional
        Name of the clusters; by default the newest ones.

    Returns
    -------
    Clusters
        Their pixel size is the present one of the datacube. They hold their averages if these were
        made.

    Raises
    ------
    ValueError
        If the tree has no clusters of this name.
    """
    kept = nodes.children(self, CLUSTERS_KIND)
    if not kept:
        raise ValueError(_no_clusters(self))
    if name is None:
        return _with_averages(Clusters.from_node(list(kept.values())[-1]), self)
    if name not in kept:
        raise ValueError(f"no clusters are called {name!r}; there are {', '.join(kept)}")
    return _with_averages(Clusters.from_node(kept[name]), self)


def _with_averages(clusters: Clusters, datacube: DataCube) -> Clusters:
    """Clusters in the tree of their own averages hold them."""
    data = datacube.data
    are_averages = data.shape[:2] == (clusters.n_clusters, 1) != clusters.shape
    if clusters.averages is not None or not are_averages or not isinstance(data, np.ndarray):
        return clusters
    return replace(clusters, averages=data[:, 0])


def _no_clusters(datacube: DataCube) -> str:
    return f"{datacube.name!r} has no clusters; make some with datacube.cluster()"


def clusters(self: DataCube) -> Clusters:
    """The newest clusters in the tree of this datacube."""
    if nodes.children(self, CLUSTERS_KIND):
        return get_clusters(self)
    # AttributeError makes hasattr(datacube, "clusters") False.
    raise AttributeError(_no_clusters(self))
