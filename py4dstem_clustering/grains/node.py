"""Write clusters and cluster trees as nodes of the tree of a datacube, and read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import emdfile
import numpy as np
from numpy.typing import NDArray

from ..emd import nodes
from ..emd.settings import add_settings, read_settings
from ..kernels.regions import join_pairs
from ..patterns.similarity import Similarity
from ..scan.calibration import scan_step
from .background import find_background
from .options import METHODS

CLUSTERS_KIND = "clusters"

TREE_KIND = "cluster_tree"

TREE_ARRAYS = (
    "first", "second", "level", "mask", "automatic", "features", "background", "similarity",
)  # fmt: skip
"""Names of the arrays of a `ClusterTree`."""


def write_clusters(clusters: Any, averages: NDArray[Any] | None) -> emdfile.Node:
    """The clusters as a RealSlice of the labels; its metadata hold everything else.

    It is one node without children, so that clusters are stored or replaced as a whole: when
    emdfile 0.0.16 appends to a file, it puts the children of a new node beside it, not below it.
    """
    from py4DSTEM import RealSlice

    node = RealSlice(clusters.labels, name=clusters.name)
    nodes.tag(node, CLUSTERS_KIND)
    add_settings(node, clusters.settings)
    arrays = {
        "seeds": clusters.seeds,
        "similarity_mean": clusters.similarity_mean,
        "background": np.isin(np.arange(clusters.n_clusters), clusters.background),
    }
    if averages is not None:
        arrays["averages"] = averages.copy()
    if clusters.similarity is not None:
        arrays["similarity"] = clusters.similarity.data
        add_settings(node, clusters.similarity.settings, "similarity_settings")
    node.metadata = emdfile.Metadata("arrays", arrays)
    return node


def read_clusters(node: emdfile.Node, step: tuple[float, str] | None) -> dict[str, Any]:
    """Read the fields of `Clusters` from a node, and check them, because the file may be damaged.

    `step` is the pixel size of the scan and its unit, by default from the calibration.
    """
    nodes.check_kind(node, CLUSTERS_KIND, "clusters", "some with datacube.cluster()")
    arrays = nodes.read_arrays(node)
    step = scan_step(node) if step is None else step

    def check(name: str, *rule: Any, **options: Any) -> NDArray[Any]:
        return nodes.check_array(node, name, arrays.get(name), *rule, **options)

    # `Clusters` would round labels and seeds of other types.
    labels = nodes.check_array(
        node, "labels", getattr(node, "data", None), (None, None), "iu", -1, 2**31 - 1
    )
    seeds = check("seeds", (None, 2), "iu", 0, max(labels.shape, default=0))
    check("similarity_mean", labels.shape, "f", -1.001, 1.001, nan=True)
    # Files of version 0.1.0 have no background. Clusters of merging have no similarity.
    if "background" in arrays:
        check("background", (len(seeds),), "b")
    if "averages" in arrays:
        check("averages", (len(seeds), None, None), nan=True)
    if "similarity" in arrays:
        check("similarity", (*labels.shape, 8), "f", -1.001, 1.001, nan=True)
    settings = read_settings(node)
    edits = settings.get("edits", ())
    if not isinstance(edits, tuple) or not all(isinstance(edit, str) for edit in edits):
        raise nodes.damaged(node, "its settings hold edits that are no texts")
    similarity = None
    if "similarity" in arrays:
        made = read_settings(node, "similarity_settings")
        try:
            similarity = Similarity(arrays["similarity"], made, *step)
        except (ValueError, TypeError) as error:
            raise nodes.damaged(node, str(error)) from error
    return {
        "labels": labels,
        "seeds": seeds,
        "similarity_mean": arrays["similarity_mean"],
        "settings": settings,
        "similarity": similarity,
        "name": node.name,
        "pixel_size": step[0],
        "pixel_units": step[1],
        "background": tuple(np.flatnonzero(arrays.get("background", ())).tolist()),
        "averages": arrays.get("averages"),
    }


def write_tree(tree: Any, name: str) -> emdfile.Node:
    """The tree as a RealSlice of the mean similarity; its metadata hold everything else."""
    from py4DSTEM import RealSlice

    node = RealSlice(tree.similarity_mean, name=name)
    nodes.tag(node, TREE_KIND)
    add_settings(node, tree.settings)
    arrays = {key: getattr(tree, key) for key in TREE_ARRAYS}
    if isinstance(tree.similarity, Similarity):
        arrays["similarity"] = tree.similarity.data
        add_settings(node, tree.similarity.settings, "similarity_settings")
    arrays = {key: value.copy() for key, value in arrays.items() if value is not None}
    node.metadata = emdfile.Metadata("arrays", arrays)
    return node


def read_tree(node: emdfile.Node) -> dict[str, Any]:
    """Read the fields of `ClusterTree` from a node, and check them: the file may be damaged."""
    nodes.check_kind(node, TREE_KIND, "cluster tree", "one with datacube.get_cluster_tree()")
    arrays = nodes.read_arrays(node)
    settings = read_settings(node)
    step = scan_step(node)
    method = settings.get("method")
    if not isinstance(method, str) or method not in METHODS:
        names = " or ".join(map(repr, METHODS))
        raise nodes.damaged(node, f"its method {nodes.in_one_line(method)} must be {names}")
    _check_tree(node, method, arrays)
    level = settings.get("automatic_level", 1.0)
    if not isinstance(level, float | int) or isinstance(level, bool) or not 0 < level < np.inf:
        raise nodes.damaged(node, f"its automatic level {nodes.in_one_line(level)} is no level")
    made = read_settings(node, "similarity_settings")
    try:
        similarity = Similarity(arrays["similarity"], made, *step)
    except (ValueError, TypeError) as error:
        raise nodes.damaged(node, str(error)) from error
    if method == "merge" and "background" not in arrays:
        arrays["background"] = find_background(
            arrays["features"], arrays["brightness"], arrays["automatic"]
        )
    return {
        **{key: arrays.get(key) for key in TREE_ARRAYS},
        "similarity": similarity if method == "grow" else arrays["similarity"],
        "method": method,
        "settings": settings,
        "pixel_size": step[0],
        "pixel_units": step[1],
    }


def _check_tree(node: emdfile.Node, method: str, arrays: Mapping[str, Any]) -> None:
    """Check types and shapes of the arrays of a tree, and that its joins have no cycle."""

    def check(name: str, *rule: Any, **options: Any) -> NDArray[Any]:
        return nodes.check_array(node, name, arrays.get(name), *rule, **options)

    mask = check("mask", (None, None), "b")
    check("similarity", (*mask.shape, 8), "f", -1.001, 1.001, nan=True)
    low, high = (-1.001, 1.001) if method == "grow" else (0, np.inf)
    level = check("level", (None,), "f", low, high)
    first, second = (
        check(name, level.shape, "iu", 0, mask.size - 1) for name in ("first", "second")
    )
    order = np.diff(level) if method == "merge" else -np.diff(level)
    if (order < 0).any():
        raise nodes.damaged(node, "its levels are not in order")
    fine, coarse = np.ones(len(level), dtype=bool), np.zeros(len(level), dtype=bool)
    if method == "merge":
        automatic = check("automatic", mask.shape, "iu", -1, mask.size - 1)
        check("features", (*mask.shape, None), "f")
        # Files written before crystals had a level have a brightness instead.
        if "background" in arrays or "brightness" not in arrays:
            check("background", mask.shape, "b")
        else:
            check("brightness", mask.shape, "f")
        found = np.unique(automatic)
        if not np.array_equal(found[found >= 0], np.arange(found.max(initial=-1) + 1)):
            raise nodes.damaged(node, "its automatic labels are not numbered without gaps")
        coarse = level > 1
        fine = ~coarse
        regions = automatic.ravel()
        joined = regions[first[coarse]], regions[second[coarse]]
        if not (np.min(joined, initial=0) >= 0 and _is_forest(*joined, int(found.max(initial=-1)))):
            raise nodes.damaged(node, "its joins of regions go round in a circle")
    flat = mask.ravel()
    inside = flat[first[fine]].all() and flat[second[fine]].all()
    if not (inside and _is_forest(first[fine], second[fine], mask.size - 1)):
        raise nodes.damaged(node, "its joins go round in a circle, or out of its mask")


def _is_forest(first: NDArray[Any], second: NDArray[Any], last: int) -> bool:
    """Whether each join, of items numbered from 0 to `last`, connects two separate parts."""
    return join_pairs(first, second, last + 1).max(initial=-1) == last - len(first)
