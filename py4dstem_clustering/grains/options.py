"""Check the options of clustering."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from ..base.checks import check_choice, check_flag, check_integer, check_number, check_r_mask
from ..kernels.features import MAX_RANK

METHODS = ("merge", "grow")


def check_cut(
    method: str, threshold: Any, n_clusters: Any, min_size: Any, drop_background: Any
) -> None:
    """What `ClusterTree.cut` takes, for a tree of one method."""
    check_integer("min_size", min_size, 1)
    if n_clusters is not None:
        check_integer("n_clusters", n_clusters, 1)
        if threshold is not None:
            raise ValueError(f"threshold={threshold!r} and n_clusters={n_clusters}: give only one")
    if drop_background is not None:
        check_flag("drop_background", drop_background)
        if method == "grow":
            raise ValueError(
                "drop_background knows no background in clusters that were grown; leave it out "
                "and give an r_mask, or use method='merge'"
            )
    if isinstance(threshold, str):
        if threshold != "auto":
            raise ValueError(f"threshold={threshold!r} must be a number or 'auto'")
    elif threshold is not None and method == "grow":
        check_number("threshold", threshold, -1, 1)
    elif threshold is not None:
        check_number("threshold", threshold, 0)


def check_tree_options(
    method: Any,
    rank: Any,
    r_mask: Any,
    sigma: Any,
    subtract_mean: Any,
    similarity: Any,
    scan: tuple[int, int],
) -> tuple[int | str, float | str | NDArray[Any] | None]:
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


def check_made_earlier(given: Mapping[str, Any]) -> None:
    """Beside a similarity there must be nothing that would have made another one."""
    wrong = [key for key, value in given.items() if value is not None]
    if wrong:
        raise ValueError(
            f"{' and '.join(wrong)} cannot change a similarity made earlier; leave out either, and "
            "give get_similarity what belongs to it"
        )


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
