"""Check the options of a series, and compare them with those of an earlier run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..base.checks import (
    check_choice,
    check_corr_range,
    check_flag,
    check_integer,
    check_lag,
    check_number,
    values_of,
)
from ..grains.clustering import cluster
from ..grains.options import check_options
from ..patterns.filtering import filter_correlative
from ..patterns.lowrank import check_rank, filter_lowrank

_SET_BY_SERIES = {
    "self", "similarity", "name", "returncalc", "client", "n_jobs", "max_memory", "progress_bar",
}  # fmt: skip
"""Parameters of `cluster` that `cluster_series` sets."""

_SET_BY_SERIES_FOR_FILTER = {
    "self", "out", "overwrite", "compression", "name", "client", "n_jobs", "max_memory",
    "progress_bar",
}  # fmt: skip
"""Parameters of the filters that `cluster_series` sets."""


# --- what is given -------------------------------------------------------------------------------


def check_drift(drift: Any, n_frames: int | None) -> NDArray[np.float64] | Literal["auto"] | None:
    """Check `drift` of `cluster_series`; `n_frames` is None if the number is not known."""
    rule = "'auto', None, or two finite numbers for each frame, (T, 2)"
    if drift is None:
        return None
    if isinstance(drift, str):
        if drift == "auto":
            return "auto"
        raise ValueError(f"drift={drift!r} must be {rule}")
    values = np.asarray(drift, dtype=float)
    if values.ndim != 2 or values.shape[1] != 2 or not np.isfinite(values).all():
        raise ValueError(f"drift of shape {values.shape} must be {rule}")
    if n_frames is not None and len(values) != n_frames:
        raise ValueError(f"drift of shape {values.shape} must be {rule}; there are {n_frames}")
    return values


def check_averages(min_purity: float | None, align: bool | None) -> dict[str, Any]:
    """Those options of `get_clustered_datacube` that are not None, checked."""
    options: dict[str, Any] = {}
    if min_purity is not None:
        options["min_purity"] = check_number("min_purity", min_purity, 0, 1)
    if align is not None:
        options["align"] = check_flag("align", align)
    return options


def _with_defaults(
    options: Mapping[str, Any], function: Callable[..., Any], own: set[str], what: str
) -> dict[str, Any]:
    """Options of `function`, completed with its defaults; parameters in `own` are refused."""
    parameters = inspect.signature(function).parameters
    resolved = {name: item.default for name, item in parameters.items() if name not in own}
    for name in options:
        if name not in resolved:
            raise TypeError(f"{name!r} is no option of {what}; it takes {', '.join(resolved)}")
    return {**resolved, **options}


def check_filter(filtering: Any) -> dict[str, Any] | None:
    """Options of a filter, completed with its defaults; None for no filter.

    Those of the low-rank filter have the entry ``"method": "lowrank"``.
    """
    if filtering is None or isinstance(filtering, bool):
        if not filtering:
            return None
        filtering = {}
    if isinstance(filtering, str):
        filtering = {"method": filtering}
    if not isinstance(filtering, Mapping):
        raise TypeError(
            f"filter={filtering!r} must be True, 'correlative', 'lowrank', or options such as "
            "{'sigma': 3}"
        )
    filtering = dict(filtering)
    method = check_choice(
        "the method of filter", filtering.pop("method", "correlative"), ("correlative", "lowrank")
    )
    if method == "lowrank":
        filtering = _with_defaults(
            filtering, filter_lowrank, _SET_BY_SERIES_FOR_FILTER, "filter_lowrank"
        )
        check_rank(filtering["rank"])
        check_flag("local", filtering["local"])
        check_lag(filtering["lag"])
        if filtering["q_mask"] is not None:
            filtering["q_mask"] = np.array(values_of(filtering["q_mask"]))
        return {"method": "lowrank", **filtering}
    filtering = _with_defaults(
        filtering, filter_correlative, _SET_BY_SERIES_FOR_FILTER, "filter_correlative"
    )
    check_number("sigma", filtering["sigma"], 0)
    check_number("radius", filtering["radius"], 0)
    check_corr_range(filtering["corr_range"])
    check_integer("edge", filtering["edge"], 0)
    return filtering


def check_overlap(
    overlap: Any, options: Mapping[str, Any], averages: Mapping[str, Any]
) -> bool | None:
    """Check `overlap` of `cluster_series`; None if it is False, as in series of older versions."""
    if not check_flag("overlap", overlap):
        return None
    others = [name for name in options if name not in ("q_mask", "r_mask")] + list(averages)
    if others:
        raise ValueError(
            f"{', '.join(others)} cannot go with overlap=True, which finds grains with "
            "find_overlaps(); leave them out, or overlap"
        )
    return True


def check_cluster_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `cluster`, completed with its defaults and checked before a frame is opened."""
    options = _with_defaults(options, cluster, _SET_BY_SERIES, "cluster_series or datacube.cluster")
    for key in ("q_mask", "r_mask"):
        if np.ndim(values_of(options[key])):
            options[key] = np.array(values_of(options[key]))
    # No frame is open yet, so the masks pass here; `cluster` checks their shapes for each frame.
    shapes: Any = np.shape(options["r_mask"]), np.shape(options["q_mask"])
    options["method"] = check_options(*shapes, **options).method
    return options


# --- whether they are those of an earlier run ----------------------------------------------------

_FRAME_SETTINGS = ("overlap", "cluster", "filter", "averages", "image_mask")
"""Settings of a series that change the result of a frame."""


def check_resume(
    path: Path, earlier: Iterable[Mapping[str, Any]], settings: Mapping[str, Any]
) -> None:
    """Refuse to add frames to a series that was made with other options."""
    now = {key: settings[key] for key in _FRAME_SETTINGS}
    for made_with in earlier:
        changed = list(_differences({key: made_with.get(key) for key in _FRAME_SETTINGS}, now))
        if changed:
            raise ValueError(
                f"the frames in out={str(path)!r} were made with other options: "
                f"{'; '.join(changed)}. Give the same, another out, or resume=False and "
                "overwrite=True"
            )


def _differences(was: Any, now: Any, name: str = "") -> Iterator[str]:
    """Differences as texts. An EMD file turns the numbers of a tuple into floats."""
    if isinstance(was, Mapping) or isinstance(now, Mapping):
        was, now = ({} if x is None else x for x in (was, now))
        for key in sorted({*was, *now}):
            yield from _differences(was.get(key), now.get(key), f"{name} {key}".strip())
        return
    plain = [x is None or isinstance(x, str) for x in (was, now)]
    same = was == now if all(plain) else not any(plain) and np.array_equal(was, now)
    if not same:
        texts = ("another array" if np.ndim(x) else repr(x) for x in (was, now))
        yield "{} was {} and is {}".format(name, *texts)
