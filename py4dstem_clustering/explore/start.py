"""``datacube.explore_clusters()``: measure the tree and the image, and open the window."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

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
    check_number,
    check_same_scan,
    values_of,
)
from ..diffraction.orientation import check_orientation
from ..grains.options import METHODS, ClusterOptions, Method, check_options
from ..grains.tree import ClusterTree
from ..kernels.features import features_need
from ..kernels.noise import noise_need
from ..kernels.similarity import similarity_need
from ..kernels.virtual import virtual_image_need
from ..patterns.similarity import Similarity
from ..scan.calibration import check_calibration
from ..scan.datacubes import warn_of_other_data
from .coloring import orientation_colors, phase_colors
from .source import Source
from .window import ClusterExplorer


def explore_clusters(
    self: DataCube,
    *,
    method: Method | None = None,
    image: Any = None,
    min_size: int = 1,
    drop_background: bool | None = None,
    tree: ClusterTree | None = None,
    rank: int | Literal["auto"] = "auto",
    r_mask: NDArray[np.bool_] | float | str | None = None,
    q_mask: NDArray[np.bool_] | None = None,
    sigma: float | None = None,
    subtract_mean: bool | None = None,
    similarity: Similarity | emdfile.Array | NDArray[Any] | None = None,
    phase: Any = None,
    orientation: Any = None,
    crystal: Any = None,
    power: float = 0.25,
    n_jobs: int | None = None,
    max_memory: int | str | None = None,
    progress_bar: bool = True,
) -> ClusterExplorer:
    """Open a window in which sliders cut the cluster tree, and clicks show patterns and edit.

    The window shows a virtual image, the label map, and, after a click on a scan position, its
    pattern and the average of its cluster. The upper slider moves through levels at which the
    picture changes, or through numbers of clusters. Buttons choose a tool: a click then joins,
    splits, drops or names clusters, and a brush paints or erases. Everything can be undone. In a
    notebook, run ``%matplotlib widget`` first (package ipympl); in a script, call
    ``matplotlib.pyplot.show()`` afterwards.

    Keys: left and right move the level by one step, up and down `min_size`; 1 and 2 go to the
    levels "pattern" and "crystal", a to the automatic cut; u undoes and y does again; c changes the
    colours, k keeps the clusters, "[" and "]" change the brush; other keys stand on the buttons.

    When growth is selected without a `q_mask` or a `similarity`, the window asks for the ring of
    the detector that is compared: of whole patterns, the direct beam makes one cluster.

    Parameters
    ----------
    method : "merge" or "grow", optional
        Method with which the window opens, see `cluster`; by default that of `tree`, or merging.
        The tree of the other method is measured when it is first selected.
    image : array-like (Rx, Ry), optional
        Grey picture of the scan; by default the sum of each pattern without the direct beam.
    min_size : int
        Clusters of fewer positions are dropped: label -1.
    drop_background : bool, optional
        For merging, see `cluster`.
    tree : ClusterTree, optional
        A tree from `get_cluster_tree`, so that it is not measured again.
    rank, r_mask, q_mask, sigma, subtract_mean, similarity
        Options for measuring trees, see `cluster`; each is used for the method to which it belongs.
        With a `similarity`, `q_mask` is used for merging only.
    phase : array-like (Rx, Ry), optional
        Number of the phase at each scan position, from 0; NaN or negative where it is unknown. Made
        of one number for each cluster by ``clusters.expand(numbers)``. The window can colour by it.
    orientation : OrientationMap of the scan, optional
        From ``clusters.expand_orientation_map(...)``; the window can colour by its zone axes, as
        ``crystal.plot_orientation_maps`` does.
    crystal : py4DSTEM Crystal, optional
        The crystal whose ``match_orientations`` made `orientation`.
    power : float
        Exponent of the intensities that are drawn, see `plot_averages`.
    n_jobs : int, optional
        Number of threads; by default all cores that the process may use.
    max_memory : int or str, optional
        Bytes, or a text such as "1 GB", that the work may take; see `filter_correlative`.
    progress_bar : bool
        Show progress.

    Returns
    -------
    ClusterExplorer
        ``.clusters`` are the clusters on the screen, and ``.settings`` what repeats them without
        the window; ``.edits`` are what was done by hand, for `edit_clusters`. ``.keep(name)`` puts
        them into the tree of this datacube. ``.set(threshold=...)`` has the effect of a slider,
        ``.edit(...)`` of a tool, ``.pick((rx, ry))`` of a click. ``.figure`` is the matplotlib
        figure. ``.disconnect()`` ends all reactions to the mouse and keys.

    Raises
    ------
    ValueError, TypeError
        Before any work, if an argument breaks its rule.

    Notes
    -----
    The average of a cluster is read when the cluster is clicked. If the origin in the calibration
    differs over the scan, patterns are moved to the mean origin of the cluster, as in
    `get_clustered_datacube`.

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
    check_calibration(self)
    first = _first_method(method, tree, self.Rshape)
    # The options of both methods are checked now, because the user may switch the method later.
    common = {"min_size": min_size, "r_mask": r_mask}
    merging = {"drop_background": drop_background, "rank": rank, "q_mask": q_mask}
    growing = {"sigma": sigma, "subtract_mean": subtract_mean, "similarity": similarity}
    if similarity is None:
        growing["q_mask"] = q_mask
    options: dict[str, ClusterOptions] = {
        name: check_options(self.Rshape, self.Qshape, method=name, **common, **own)
        for name, own in (("merge", merging), ("grow", growing))
    }
    power = check_number("power", power, 1e-3)
    n_jobs = check_n_jobs(n_jobs)
    progress_bar = check_flag("progress_bar", progress_bar)
    image = _check_image(image, self.Rshape)
    colors = _check_colors(self.Rshape, phase, orientation, crystal)
    if tree is not None:
        warn_of_other_data("the tree was", tree.settings, self)
    _check_memory(self.data, options["merge"].q_mask, max_memory, n_jobs)

    source = Source(
        self,
        options,
        n_jobs=n_jobs,
        max_memory=max_memory,
        progress_bar=progress_bar,
        colors=colors,
    )
    trees: dict[str, ClusterTree] = {} if tree is None else {tree.method: tree}
    if first not in trees:
        trees[first] = source.measure(first)
    if image is None:
        image = source.image()
    return ClusterExplorer(source, trees, method=first, image=image, power=power)


def _first_method(method: Method | None, tree: Any, scan: tuple[int, int]) -> Method:
    """Method with which the window opens; also checks the tree that was given."""
    if tree is not None:
        if not isinstance(tree, ClusterTree):
            raise TypeError(
                f"tree must be a ClusterTree, not {type(tree).__name__}; use what "
                "datacube.get_cluster_tree() returned, or ClusterTree.from_node()"
            )
        check_same_scan("tree", tree.shape, scan)
    if method is None:
        return "merge" if tree is None else tree.method
    check_choice("method", method, METHODS)
    return method


def _check_memory(data: Any, q_mask: Any, max_memory: Any, n_jobs: int | None) -> None:
    """Check that the image and the trees of both methods fit."""
    check_memory(
        max_memory,
        partial(virtual_image_need, data, n_jobs),
        partial(features_need, data, n_jobs),
        partial(noise_need, data, n_jobs),
        partial(similarity_need, data, q_mask, False, n_jobs),
    )


def _check_image(image: Any, scan: tuple[int, int]) -> NDArray[np.float64] | None:
    """Check the picture of the scan, if one is given."""
    if image is None:
        return None
    image = np.asarray(values_of(image))
    if image.shape != scan or image.dtype.kind not in "buif":
        raise ValueError(
            f"image of type {image.dtype} and shape {image.shape} must hold real numbers and "
            f"have the shape of the scan, {scan}"
        )
    return image.astype(np.float64)


def _check_colors(
    scan: tuple[int, int], phase: Any, orientation: Any, crystal: Any
) -> dict[str, NDArray[Any]]:
    """Colours of each scan position for the phases and orientations that are given."""
    colors = {}
    if phase is not None:
        phase = np.asarray(values_of(phase))
        if phase.shape != scan or phase.dtype.kind not in "buif":
            raise ValueError(
                f"phase of type {phase.dtype} and shape {phase.shape} must hold the number of the "
                f"phase at each scan position, {scan}; make it with clusters.expand(...)"
            )
        colors["phase"] = phase_colors(phase)
    if orientation is not None:
        check_orientation(orientation, {"the scan": scan})
        if not hasattr(crystal, "orientation_zone_axis_range"):
            raise TypeError(
                "orientation needs the crystal with its orientation plan; give crystal=, the one "
                "whose match_orientations() made it"
            )
        colors["orientation"] = orientation_colors(orientation, crystal)
    return colors
