"""Measure what the window of `explore_clusters` shows, and open it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
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
    check_number,
    check_same_scan,
    values_of,
)
from ..base.progress import progress
from ..emd import nodes
from ..grains.averages import keep_clusters
from ..grains.clustering import measure_tree
from ..grains.clusters import Clusters
from ..grains.node import CLUSTERS_KIND
from ..grains.options import METHODS, check_options
from ..grains.tree import ClusterTree
from ..kernels.features import features_need
from ..kernels.noise import noise_need
from ..kernels.similarity import similarity_need
from ..kernels.virtual import sample_mean, scattered, virtual_image_core, virtual_image_need
from ..patterns.similarity import Similarity
from ..scan.calibration import detector_step, known_centre, known_origins, scan_step, varies
from .window import ClusterExplorer


def explore_clusters(
    self: DataCube,
    *,
    method: str | None = None,
    image: Any = None,
    min_size: int = 1,
    drop_background: bool | None = None,
    tree: ClusterTree | None = None,
    rank: int | str = "auto",
    r_mask: NDArray[Any] | float | str | None = None,
    q_mask: NDArray[Any] | None = None,
    sigma: float | None = None,
    subtract_mean: bool | None = None,
    similarity: Similarity | emdfile.Array | NDArray[Any] | None = None,
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
        Bytes, or a text such as "1 GB", that the work may take; see `filter_correlative`.
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
    check_choice("method", method, METHODS)
    # The options of both methods, so that none is wrong when the window asks for the other one.
    options = {
        "merge": check_options(
            self.Rshape,
            self.Qshape,
            method="merge",
            min_size=min_size,
            drop_background=drop_background,
            rank=rank,
            r_mask=r_mask,
            q_mask=q_mask,
        ),
        "grow": check_options(
            self.Rshape,
            self.Qshape,
            method="grow",
            min_size=min_size,
            r_mask=r_mask,
            q_mask=q_mask if similarity is None else None,
            sigma=sigma,
            subtract_mean=subtract_mean,
            similarity=similarity,
        ),
    }
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
        partial(similarity_need, self.data, options["merge"].q_mask, False, n_jobs),
    )

    def measure(which: str) -> ClusterTree:
        return measure_tree(
            self, options[which], n_jobs=n_jobs, max_memory=max_memory, progress_bar=progress_bar
        )

    def put(clusters: Clusters, name: str) -> Clusters:
        name = check_name(name)
        nodes.check_free(self, name, CLUSTERS_KIND)
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
        options=options,
        power=power,
        steps=(scan_step(self), detector_step(self)),
        origin=origin if origin is not None and varies(origin) else None,
        progress_bar=progress_bar,
    )
