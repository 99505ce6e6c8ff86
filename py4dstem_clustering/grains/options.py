"""The options of clustering, checked once and kept in one object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..base.checks import (
    check_choice,
    check_flag,
    check_integer,
    check_lag,
    check_number,
    check_q_mask,
    check_r_mask,
)
from ..kernels.crystals import PATTERN_LEVEL
from ..kernels.features import MAX_RANK
from ..patterns.similarity import Similarity, as_similarity

Method = Literal["merge", "grow"]

METHODS: tuple[Method, ...] = ("merge", "grow")
"""Ways to find clusters: merging of regions, and growth over similar neighbours."""

Level = Literal["pattern", "crystal"]

LEVELS: dict[str, float | Literal["auto"]] = {"pattern": PATTERN_LEVEL, "crystal": "auto"}
"""Levels of merging with a name: regions of one pattern, and crystals, the automatic level."""

GROWTH_THRESHOLD = 0.9
"""Default of `threshold` in `cluster` for growth, as in the paper. A higher one makes more and
smaller clusters."""


@dataclass(frozen=True, eq=False)
class ClusterOptions:
    """Checked options of `cluster`; `check_options` makes this object, and `cluster` explains them.

    Options that the method does not use have their defaults.
    """

    method: Method
    threshold: float | Literal["auto"] | None = None
    n_clusters: int | None = None
    min_size: int = 1
    drop_background: bool | None = None
    rank: int | Literal["auto"] = "auto"
    lag: float | Literal["auto"] = "auto"
    r_mask: float | str | NDArray[np.bool_] | None = None
    q_mask: NDArray[np.bool_] | None = None
    sigma: float | None = None
    subtract_mean: bool | None = None
    similarity: Similarity | None = None


def check_options(
    scan: tuple[int, int],
    detector: tuple[int, int],
    *,
    method: Any = None,
    threshold: Any = None,
    level: Any = None,
    n_clusters: Any = None,
    min_size: Any = 1,
    drop_background: Any = None,
    rank: Any = "auto",
    lag: Any = None,
    r_mask: Any = None,
    q_mask: Any = None,
    sigma: Any = None,
    subtract_mean: Any = None,
    similarity: Any = None,
) -> ClusterOptions:
    """Check the options of `cluster`; `scan` and `detector` are the shapes for masks."""
    if method is None:
        grows = (threshold, sigma, subtract_mean, similarity)
        method = "merge" if all(value is None for value in grows) else "grow"
        if level is None and isinstance(threshold, int | float) and 1 < threshold < np.inf:
            raise ValueError(
                f"threshold={threshold!r} must be a finite number from -1 to 1, a similarity at "
                "which clusters grow; for a level of merging add method='merge', or give "
                "level='pattern' or 'crystal'"
            )
    cut = check_cut(method, threshold, n_clusters, min_size, drop_background, level)
    if method == "grow" and threshold is None and n_clusters is None:
        cut["threshold"] = GROWTH_THRESHOLD
    check_choice("method", method, METHODS)
    if not (isinstance(rank, str) and rank == "auto"):
        rank = check_integer("rank", rank, 1)
        if rank > MAX_RANK:
            raise ValueError(f"rank={rank} must be at most {MAX_RANK}, or 'auto'")
    lag = check_lag(lag)
    r_mask = check_r_mask(r_mask, scan)
    if method == "merge":
        _refuse_growth(sigma=sigma, subtract_mean=subtract_mean, similarity=similarity)
    sigma = None if sigma is None else check_number("sigma", sigma, 0)
    if subtract_mean is not None:
        subtract_mean = check_flag("subtract_mean", subtract_mean)
    if method == "grow" and rank != "auto":
        raise ValueError("rank belongs to merging; leave it out, or use method='merge'")
    if method == "grow" and lag != "auto":
        raise ValueError(
            f"lag={lag} belongs to merging, growth compares patterns as they are; leave it out, "
            "or use method='merge'"
        )
    if similarity is not None:
        _refuse_measuring(q_mask=q_mask, sigma=sigma, subtract_mean=subtract_mean)
        similarity = as_similarity(similarity, scan)
    q_mask = check_q_mask(q_mask, detector)
    return ClusterOptions(
        method,
        **cut,
        rank=rank,
        lag=lag,
        r_mask=r_mask,
        q_mask=q_mask,
        sigma=sigma,
        subtract_mean=subtract_mean,
        similarity=similarity,
    )


def check_cut(
    method: str,
    threshold: Any,
    n_clusters: Any,
    min_size: Any,
    drop_background: Any,
    level: Any = None,
) -> dict[str, Any]:
    """Check the options of `ClusterTree.cut` for a tree of this method, and return their values.

    A level with a name becomes the `threshold` of this level.
    """
    min_size = check_integer("min_size", min_size, 1)
    if level is not None:
        check_choice("level", level, tuple(LEVELS))
        if method != "merge":
            raise ValueError(
                f"level={level!r} belongs to merging; leave out what grows clusters, or the level"
            )
        if threshold is not None or n_clusters is not None:
            raise ValueError(f"level={level!r}: give no threshold and no n_clusters with it")
        threshold = LEVELS[level]
    if n_clusters is not None:
        n_clusters = check_integer("n_clusters", n_clusters, 1)
        if threshold is not None:
            raise ValueError(f"threshold={threshold!r} and n_clusters={n_clusters}: give only one")
    if drop_background is not None:
        drop_background = check_flag("drop_background", drop_background)
        if method == "grow":
            raise ValueError(
                "drop_background knows no background in clusters that were grown; leave it out "
                "and give an r_mask, or use method='merge'"
            )
    if isinstance(threshold, str):
        if threshold != "auto":
            raise ValueError(f"threshold={threshold!r} must be a number or 'auto'")
    elif threshold is not None and method == "grow":
        threshold = check_number("threshold", threshold, -1, 1)
    elif threshold is not None:
        threshold = check_number("threshold", threshold, 0)
    return {
        "threshold": threshold,
        "n_clusters": n_clusters,
        "min_size": min_size,
        "drop_background": drop_background,
    }


def _refuse_growth(**given: Any) -> None:
    """Raise an error if an option of growth is given for merging."""
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise ValueError(
            f"{' and '.join(wrong)} belong{'s' * (len(wrong) == 1)} to growth, merging compares "
            "features instead; leave out what does, or use method='grow'"
        )


def _refuse_measuring(**given: Any) -> None:
    """Raise an error if an option of `get_similarity` is given together with a similarity."""
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise ValueError(
            f"{' and '.join(wrong)} cannot change a similarity made earlier; leave out either, and "
            "give get_similarity what belongs to it"
        )
