"""Edits of clusters by hand, as plain texts that a script can repeat without a window."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from ..base.checks import check_same_scan
from ..emd.settings import Settings
from .actions import action_text, check_action
from .clusters import Clusters
from .splitting import split_pieces
from .tree import ClusterTree

# --- what each action does -------------------------------------------------------------------


@dataclass
class _Parts:
    """Clusters while they are edited."""

    labels: NDArray[Any]
    seeds: NDArray[Any]
    background: tuple[int, ...]
    names: list[tuple[int, int, str]]
    """Scan position (rx, ry) in a cluster, and the name of this cluster."""

    def at(self, what: str, position: list[int]) -> int:
        """Label of the cluster at a position."""
        label = int(self.labels[tuple(position)])
        if label < 0:
            raise ValueError(
                f"{what}: position {position} lies in no cluster; give one inside a cluster"
            )
        return label


def stroke_mask(shape: tuple[int, int], stroke: Any, radius: float) -> NDArray[np.bool_]:
    """Scan positions that a brush covers.

    Parameters
    ----------
    shape : (int, int)
        (Rx, Ry)
    stroke : list of [rx, ry]
        Positions of the brush; it moves along straight lines from each to the next one.
    radius : float
        Radius of the brush in scan positions; 0 covers one position.

    Returns
    -------
    ndarray of bool, (Rx, Ry)
    """
    points = np.array(stroke, dtype=np.float64).reshape(-1, 2)
    line = [points[:1]]
    for a, b in pairwise(points):
        steps = max(1, int(np.abs(b - a).max()))
        line.append(a + (b - a) * np.arange(1, steps + 1)[:, None] / steps)
    centres = np.unique(np.round(np.concatenate(line)).astype(int), axis=0)
    far = np.ones(shape, dtype=bool)
    inside = ((centres >= 0) & (centres < shape)).all(axis=1)
    far[tuple(centres[inside].T)] = False
    if not inside.any():
        return ~far
    return np.asarray(distance_transform_edt(far) <= radius)


def _settle(
    parts: _Parts, labels: NDArray[Any], parents: list[set[int]], mean: NDArray[Any]
) -> _Parts:
    """Number clusters without gaps after a change of their members.

    `parents` lists for each new label the old labels that it holds. A cluster keeps the best of the
    old seeds that lie in it; it is background if all its parents were.
    """
    kept = np.flatnonzero(np.bincount(labels[labels >= 0], minlength=len(parents)))
    number = np.full(len(parents) + 1, -1)
    number[kept] = np.arange(len(kept))
    labels = number[labels]
    old = [parents[k] for k in kept]
    seeds = np.full((len(kept), 2), -1)
    height = np.nan_to_num(mean, nan=-np.inf)
    for k in np.argsort(height[tuple(parts.seeds.T)], kind="stable"):  # the highest is last
        seed = parts.seeds[k]
        label = labels[tuple(seed)]
        if label >= 0 and int(k) in old[label]:
            seeds[label] = seed
    for k in np.flatnonzero(seeds[:, 0] < 0):
        members = np.argwhere(labels == k)
        seeds[k] = members[height[tuple(members.T)].argmax()]
    gone = set(parts.background)
    background = tuple(k for k, held in enumerate(old) if held and held <= gone)
    sizes = np.bincount(labels[labels >= 0], minlength=len(kept))
    names: dict[int, tuple[int, int, str]] = {}
    for rx, ry, name in parts.names:
        before = int(parts.labels[rx, ry])
        heirs = [k for k, held in enumerate(old) if before in held]
        if not heirs:
            continue
        label = int(labels[rx, ry])
        if label not in heirs:
            label = max(heirs, key=lambda k: int(sizes[k]))
            rx, ry = (int(k) for k in seeds[label])
        names.pop(label, None)
        names[label] = rx, ry, name  # of two names, the later one stays
    return _Parts(labels, seeds, background, list(names.values()))


def _apply(
    parts: _Parts, what: str, given: dict[str, Any], mean: NDArray[Any], tree: Any
) -> _Parts:
    """The clusters after one action; only "split" needs the `tree`."""
    labels, n = parts.labels, len(parts.seeds)
    parents: list[set[int]] = [{k} for k in range(n)]
    if what == "join":
        together = sorted({parts.at(what, position) for position in given["at"]})
        if len(together) < 2:
            raise ValueError(f"join: positions {given['at']} lie in one cluster; give two clusters")
        labels = np.where(np.isin(labels, together), together[0], labels)
        parents[together[0]] = set(together)
    elif what == "split":
        label = parts.at(what, given["at"])
        piece = split_pieces(labels, label, tree, given["level"], given["min_size"])
        if piece.max() < 1:
            raise ValueError(
                f"split: the cluster at {given['at']} is one piece at level {given['level']:g}; "
                "take a finer level or a smaller min_size"
            )
        labels = np.where(piece > 0, n - 1 + piece, labels)
        parents += [{label}] * int(piece.max())
    elif what == "drop":
        labels = np.where(labels == parts.at(what, given["at"]), -1, labels)
    elif what == "name":
        label = parts.at(what, given["at"])
        names = [item for item in parts.names if labels[item[:2]] != label]
        rx, ry = given["at"]
        return replace(parts, names=[*names, (rx, ry, given["name"])])
    else:
        target = -1
        if what == "paint":
            target = n if given["to"] is None else parts.at(what, given["to"])
            parents.append(set())
        shape = labels.shape
        covered = stroke_mask((shape[0], shape[1]), given["stroke"], given["radius"])
        labels = np.where(covered, target, labels)
    return _settle(parts, labels, parents, mean)


# --- edits of clusters -----------------------------------------------------------------------


def edit_clusters(
    clusters: Clusters,
    actions: Iterable[str | Mapping[str, Any]],
    *,
    tree: ClusterTree | None = None,
) -> Clusters:
    """Edit clusters by hand: join, split, paint, erase, drop or name them.

    The window of `explore_clusters` notes what was done in it as such actions; with this function a
    script repeats it. Clusters are meant by a scan position that lies in them, because their
    numbers change.

    Parameters
    ----------
    clusters : Clusters
        Clusters to start from; they stay as they are.
    actions : sequence of str or mapping
        What to do, one after the other. An action is a text as below, or a mapping such as
        ``{"do": "drop", "at": [3, 4]}``.

        ``"join(at=[[3, 4], [7, 8]])"``: the clusters at these positions become one.
        ``"split(at=[3, 4], level=0.8, min_size=5)"``: the cluster falls into its pieces at a finer
        level of `tree`. Pieces of fewer than `min_size` positions (1 by default) go to the nearest
        larger piece. The largest piece keeps the number.
        ``"paint(to=[3, 4], stroke=[[5, 6], [9, 6]], radius=1)"``: the positions under a brush go to
        the cluster at `to`, or to a new one if it is None. The brush moves along straight lines;
        `radius` is in scan positions, 0 (the default) covers one.
        ``"erase(stroke=[[5, 6]], radius=1)"``: these positions are in no cluster.
        ``"drop(at=[3, 4])"``: the cluster is background, label -1.
        ``"name(at=[3, 4], name='cube')"``: the cluster gets a name, see `cluster_names`.
    tree : ClusterTree, optional
        Tree from which the clusters were cut; only "split" needs it.

    Returns
    -------
    Clusters
        Numbered without gaps. ``settings["edits"]`` holds the actions as texts, after those that
        were there before; an EMD file keeps them.

    Raises
    ------
    ValueError, TypeError
        Before any work, if an action has another form or a position lies outside the scan; later,
        if a position lies in no cluster, or if there is nothing to join or to split.

    Examples
    --------
    >>> clusters = datacube.cluster(threshold=0.995, min_size=5, progress_bar=False)
    >>> edited = edit_clusters(clusters, ["join(at=[[3, 7], [0, 0]])", "name(at=[0, 0], name='a')"])
    >>> edited.n_clusters, cluster_names(edited)
    (1, {0: 'a'})
    """
    if not isinstance(clusters, Clusters):
        raise TypeError(f"clusters must be Clusters, not {type(clusters).__name__}")
    if isinstance(actions, str | Mapping) or not isinstance(actions, Iterable):
        raise TypeError(f"actions={actions!r} must be a list of actions")
    checked = [check_action(action) for action in actions]
    if tree is not None:
        if not isinstance(tree, ClusterTree):
            raise TypeError(f"tree must be a ClusterTree, not {type(tree).__name__}")
        check_same_scan("tree", tree.shape, clusters.shape)
    for what, given in checked:
        if what == "split" and tree is None:
            raise ValueError("split needs the tree that was cut; give tree=get_cluster_tree(...)")
        places = [given.get("at"), given.get("to"), given.get("stroke")]
        for place in (k for k in places if k is not None):
            if (np.reshape(place, (-1, 2)) >= clusters.shape).any():
                raise ValueError(f"{what}: position {place} lies outside of {clusters.shape}")
    parts = _Parts(
        clusters.labels, clusters.seeds, clusters.background, _named_places(clusters.settings)
    )
    for what, given in checked:
        parts = _apply(parts, what, given, clusters.similarity_mean, tree)
    settings = Settings(clusters.settings).everything
    texts = [action_text(what, **given) for what, given in checked]
    settings["edits"] = (*settings.get("edits", ()), *texts)
    if parts.names or "names" in settings:
        settings["names"] = tuple(f"{rx} {ry} {name}" for rx, ry, name in parts.names)
    return replace(
        clusters,
        labels=parts.labels,
        seeds=parts.seeds,
        background=parts.background,
        settings=settings,
    )


def _named_places(settings: Mapping[str, Any]) -> list[tuple[int, int, str]]:
    """Scan positions and names in the settings of clusters."""
    found = []
    names = settings.get("names", ())
    for text in names if isinstance(names, tuple) else (names,):
        words = text.split(" ", 2) if isinstance(text, str) else []
        if len(words) < 3 or not (words[0].isdecimal() and words[1].isdecimal()):
            raise ValueError(f"settings['names'] hold {text!r}, which must be 'rx ry name'")
        found.append((int(words[0]), int(words[1]), words[2]))
    return found


def cluster_names(clusters: Clusters) -> dict[int, str]:
    """Names that were given to clusters by hand.

    Parameters
    ----------
    clusters : Clusters
        Clusters from `edit_clusters` or from the window of `explore_clusters`.

    Returns
    -------
    dict
        Name of each label that has one. The names follow their clusters when these are numbered
        anew by ``relabel``, ``remove`` or ``join``; of clusters that were joined, the name that was
        given last stays.

    Examples
    --------
    >>> cluster_names(datacube.cluster(progress_bar=False))
    {}
    """
    if not isinstance(clusters, Clusters):
        raise TypeError(f"clusters must be Clusters, not {type(clusters).__name__}")
    names: dict[int, str] = {}
    rows, columns = clusters.shape
    for rx, ry, name in _named_places(clusters.settings):
        if rx < rows and ry < columns and clusters.labels[rx, ry] >= 0:
            names[int(clusters.labels[rx, ry])] = name
    return dict(sorted(names.items()))
