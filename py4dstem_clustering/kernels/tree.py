"""Growth as a tree: the maximum spanning forest of the neighbour graph, and cuts through it.

Growing from a seed over neighbours with ``S >= threshold`` finds the connected components of the
graph of all edges with ``S >= threshold``, since `S` is symmetric. The maximum spanning forest has
the same components at every threshold, so the forest is built once and then cut at any threshold.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree

from .similarity import DIRECTIONS, FORWARD, with_neighbour


class Forest(NamedTuple):
    """Edges of a maximum spanning forest, from the highest level to the lowest."""

    first: NDArray[np.int32]
    """Flat index of one end, ``(n_edges,)``."""
    second: NDArray[np.int32]
    """Flat index of the other end."""
    level: NDArray[np.float32]
    """Similarity at which the two sides join."""
    mask: NDArray[np.bool_]
    """Positions in the forest, ``(Rx, Ry)`` bool."""


def grid_edges(
    similarity: NDArray[Any], mask: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
    """Pairs of neighbours inside `mask` as flat indices, and their similarity ``(Rx, Ry, 8)``."""
    rx, ry = mask.shape
    position = np.arange(rx * ry).reshape(rx, ry)
    first, second, level = [], [], []
    for k in FORWARD:
        dx, dy = DIRECTIONS[k]
        here_x, there_x = with_neighbour(rx, dx)
        here_y, there_y = with_neighbour(ry, dy)
        s = similarity[here_x, here_y, k]
        keep = mask[here_x, here_y] & mask[there_x, there_y] & ~np.isnan(s)
        first.append(position[here_x, here_y][keep])
        second.append(position[there_x, there_y][keep])
        level.append(s[keep])
    return np.concatenate(first), np.concatenate(second), np.concatenate(level)


def spanning_forest(similarity: NDArray[Any], mask: NDArray[Any]) -> Forest:
    """Maximum spanning forest of the 8-neighbour graph of the positions in `mask`."""
    first, second, level = grid_edges(similarity, mask)
    # Ranks replace similarities: ranks are exact in any arithmetic and never 0, which scipy takes
    # for "no edge". The highest similarity has the lowest cost.
    values, rank = np.unique(level, return_inverse=True)
    cost = (len(values) - rank).astype(np.float64)
    graph = coo_array((cost, (first, second)), shape=(mask.size, mask.size)).tocsr()
    tree = minimum_spanning_tree(graph).tocoo()
    order = np.argsort(tree.data, kind="stable")
    return Forest(
        first=tree.row[order],
        second=tree.col[order],
        level=values[len(values) - tree.data[order].astype(np.intp)],
        mask=mask,
    )


def cut_at(
    forest: Forest, threshold: float, similarity_mean: NDArray[Any], min_size: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Labels ``(Rx, Ry)`` and seeds ``(n, 2)`` of clusters of `min_size` positions or more.

    The seed of a cluster is its position with the highest mean similarity, the first in reading
    order among equals; clusters are numbered by their seeds in the same order.
    """
    mask = forest.mask
    keep = forest.level.astype(np.float64) >= threshold
    first, second = forest.first[keep], forest.second[keep]
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(mask.size,) * 2)
    part = connected_components(graph, directed=False)[1]
    small = np.bincount(part[mask.ravel()], minlength=part.max() + 1) < min_size
    part = part.reshape(mask.shape)
    return numbered(np.where(mask & ~small[part], part, -1), similarity_mean, by_size=False)


def numbered(
    labels: NDArray[Any], height: NDArray[Any], by_size: bool
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Labels numbered by the height of their seeds, or by size first; and the seeds ``(n, 2)``.

    The seed of a cluster is its highest position, the first in reading order among equals.
    """
    flat = labels.ravel()
    inside = np.flatnonzero(flat >= 0)
    # A position without neighbours has no height (NaN) and comes last.
    level = np.nan_to_num(height.ravel()[inside], nan=-np.inf)
    visit = inside[np.argsort(-level, kind="stable")]
    found, first = np.unique(flat[visit], return_index=True)
    order = np.argsort(first, kind="stable")
    if by_size:
        size = np.bincount(flat[inside])[found]
        order = order[np.argsort(-size[order], kind="stable")]
    number = np.full(int(labels.max(initial=-1)) + 2, -1, dtype=np.int32)
    number[found[order]] = np.arange(len(found))
    seeds = np.stack(np.unravel_index(visit[first[order]], labels.shape), axis=1)
    return number[labels], seeds.reshape(-1, 2)


def growth_steps(
    similarity: NDArray[Any], members: NDArray[Any], seed: tuple[int, int], threshold: float
) -> NDArray[np.int64]:
    """Step at which each member joins when growing from `seed`; 0 at the seed, -1 elsewhere.

    A position joins one step after its first neighbour that has joined.
    """
    first, second, level = grid_edges(similarity, members)
    keep = level.astype(np.float64) >= threshold
    graph = coo_array(
        (np.ones(keep.sum(), bool), (first[keep], second[keep])), shape=(members.size,) * 2
    ).tocsr()
    start = int(np.ravel_multi_index(seed, members.shape))
    order, parent = breadth_first_order(graph, start, directed=False)
    steps = np.full(members.size, -1)
    steps[start] = 0
    for node in order[1:]:
        steps[node] = steps[parent[node]] + 1
    return steps.reshape(members.shape)


def link(
    first: NDArray[Any], second: NDArray[Any], n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Joins as a binary tree of `n` leaves: children ``(m, 2)`` of node ``n + i``, and node sizes.

    Join `i` joins the branches that leaves ``first[i]`` and ``second[i]`` are in, which must not be
    the same one. Joins are sorted from the finest to the coarsest.
    """
    # scipy's DisjointSet would do, but takes three times as long and twice the memory.
    m = len(first)
    root = list(range(n + m))
    size = [1] * (n + m)
    children = np.empty((m, 2), dtype=np.int64)

    def find(k: int) -> int:
        top = k
        while root[top] != top:
            top = root[top]
        while root[k] != top:
            root[k], k = top, root[k]
        return top

    for i, (a, b) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        a, b = find(a), find(b)
        children[i] = a, b
        root[a] = root[b] = n + i
        size[n + i] = size[a] + size[b]
    return children, np.array(size)


def most_stable(
    children: NDArray[Any], sizes: NDArray[Any], level: NDArray[Any], min_size: int
) -> NDArray[np.int64]:
    """Nodes of the tree that are the most stable clusters (excess of mass, as in HDBSCAN).

    Levels fall from the finest join to the coarsest. A cluster is a branch of at least `min_size`
    positions. For each of its positions, the level falls from where the position joins the cluster
    to where the cluster joins another one; the stability is the sum of these falls. Either a
    cluster or the clusters inside it are taken, whichever are more stable (Campello et al., 2013).
    """
    n = len(sizes) - len(children)
    # Of each branch: sum of the levels at which positions joined, stability of the best clusters
    # inside the branch, and these clusters.
    inside: dict[int, tuple[float, float, list[int]]] = {}
    if min_size <= 1:
        raise ValueError("a cluster of one position has no stability")

    def close(node: int, end: float) -> tuple[float, list[int]]:
        total, within, chosen = inside.pop(node)
        own = total - sizes[node] * end
        return (own, [node]) if own >= within else (within, chosen)

    for i, (a, b) in enumerate(children.tolist()):
        node, here = n + i, float(level[i])
        if a in inside and b in inside:
            (best_a, chosen_a), (best_b, chosen_b) = close(a, here), close(b, here)
            inside[node] = (sizes[node] * here, best_a + best_b, chosen_a + chosen_b)
        elif a in inside or b in inside:
            grown, added = (a, b) if a in inside else (b, a)
            total, within, chosen = inside.pop(grown)
            inside[node] = (total + sizes[added] * here, within, chosen)
        elif sizes[node] >= min_size:
            inside[node] = (sizes[node] * here, 0.0, [])
    end = float(level[-1]) if len(level) else 0.0
    found = [k for node in list(inside) for k in close(node, end)[1]]
    return np.array(sorted(found), dtype=np.int64)


def label_nodes(children: NDArray[Any], nodes: NDArray[Any], n: int) -> NDArray[np.int64]:
    """Index in `nodes` of the node that each leaf is part of, ``(n,)``; -1 for no node."""
    number = np.full(n + len(children), -1, dtype=np.int64)
    number[nodes] = np.arange(len(nodes))
    for i in range(len(children) - 1, -1, -1):
        if number[n + i] >= 0:
            number[children[i]] = number[n + i]
    return number[:n]
