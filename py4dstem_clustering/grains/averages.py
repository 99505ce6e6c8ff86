"""The average pattern of each cluster, and the clusters in the tree of a datacube."""

from __future__ import annotations

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
from ..kernels.averaging import averaging_core, averaging_need
from ..kernels.features import features_need
from ..patterns.mixture import Mixture
from ..scan.calibration import carry_calibration, known_origins, varies
from ..scan.datacubes import new_datacube
from .clusters import CLUSTERS_KIND, Clusters


def keep_clusters(
    datacube: DataCube, clusters: Clusters, averages: NDArray[Any] | None = None
) -> None:
    """Keep clusters, and their averages, in the tree of a datacube as the newest."""
    nodes.put(datacube, clusters.to_node(averages))


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
    nodes.check_free(self, clusters.name, CLUSTERS_KIND)
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


def _pure_labels(labels: NDArray[Any], mixture: Mixture, min_purity: float) -> NDArray[Any]:
    """Labels of the positions that are pure enough; at least one for each cluster."""
    own = mixture.shares_at(labels)
    pure = np.where(own >= min_purity, labels, -1)
    for label in np.setdiff1d(labels[labels >= 0], pure):
        pure.flat[np.where(labels == label, own, -1).argmax()] = label
    return pure


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
    kept = nodes.children(self, CLUSTERS_KIND)
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
    if nodes.children(self, CLUSTERS_KIND):
        return get_clusters(self)
    # AttributeError, so that hasattr(datacube, "clusters") tells whether there are any.
    raise AttributeError(_no_clusters(self))
