"""Options of a series, and whether they are those of an earlier run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_corr_range, check_integer, check_number, values_of
from ..grains.clustering import cluster
from ..grains.options import check_options
from ..patterns.filtering import filter_correlative
from .files import frame_files, read_options

# Of these, cluster_series has its own.
_NOT_PASSED = {"self", "similarity", "name", "returncalc", "n_jobs", "max_memory", "progress_bar"}

_NOT_PASSED_FILTER = {"self", "out", "overwrite", "compression", "name", "n_jobs", "max_memory"}

_NOT_PASSED_FILTER |= {"progress_bar"}


# --- what is there -------------------------------------------------------------------------------


def check_drift(drift: Any, n_frames: int | None) -> NDArray[Any] | str | None:
    if drift is None or (isinstance(drift, str) and drift == "auto"):
        return drift
    rule = "'auto', None, or two finite numbers for each frame, (T, 2)"
    if isinstance(drift, str):
        raise ValueError(f"drift={drift!r} must be {rule}")
    values = np.asarray(drift, dtype=float)
    if values.ndim != 2 or values.shape[1] != 2 or not np.isfinite(values).all():
        raise ValueError(f"drift of shape {values.shape} must be {rule}")
    if n_frames is not None and len(values) != n_frames:
        raise ValueError(f"drift of shape {values.shape} must be {rule}; there are {n_frames}")
    return values


def _with_defaults(
    options: Mapping[str, Any], function: Callable, own: set[str], what: str
) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    resolved = {name: item.default for name, item in parameters.items() if name not in own}
    for name in options:
        if name not in resolved:
            raise TypeError(f"{name!r} is no option of {what}; it takes {', '.join(resolved)}")
    return {**resolved, **options}


def check_filter(filtering: Any) -> dict[str, Any] | None:
    if filtering is None or isinstance(filtering, bool):
        if not filtering:
            return None
        filtering = {}
    if not isinstance(filtering, Mapping):
        raise TypeError(f"filter={filtering!r} must be True, or options such as {{'sigma': 3}}")
    filtering = _with_defaults(
        filtering, filter_correlative, _NOT_PASSED_FILTER, "filter_correlative"
    )
    check_number("sigma", filtering["sigma"], 0)
    check_number("radius", filtering["radius"], 0)
    check_corr_range(filtering["corr_range"])
    check_integer("edge", filtering["edge"], 0)
    return filtering


def check_cluster_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `cluster`, defaults resolved, as it checks them; before a frame is opened."""
    options = _with_defaults(options, cluster, _NOT_PASSED, "cluster_series or datacube.cluster")
    for key in ("q_mask", "r_mask"):
        if np.ndim(values_of(options[key])):
            options[key] = np.array(values_of(options[key]))
    # No frame is open yet: `cluster` compares the shapes of masks with those of each frame.
    shapes: Any = np.shape(options["r_mask"]), np.shape(options["q_mask"])
    options["method"] = check_options(*shapes, **options).method
    return options


_DECIDES = ("cluster", "filter", "averages", "image_mask")
"""Settings that a frame depends on."""


def check_resume(path: Path, settings: dict[str, Any], resume: bool, overwrite: bool) -> None:
    places = set(frame_files(path).values())
    if path.is_file():
        places.add(path)
    if not resume:
        if places and not overwrite:
            raise ValueError(
                f"out={str(path)!r} has frames already; resume=True goes on with them, "
                "overwrite=True removes them"
            )
        return
    # Those in one file, and those in the folder, were made by one call each.
    now = {key: settings[key] for key in _DECIDES}
    for place in {place.parent: place for place in places}.values():
        made_with = read_options(place)
        changed = list(_differences({key: made_with.get(key) for key in _DECIDES}, now))
        if changed:
            raise ValueError(
                f"the frames in out={str(path)!r} were made with other options: "
                f"{'; '.join(changed)}. Give the same, another out, or resume=False and "
                "overwrite=True"
            )


def _differences(was: Any, now: Any, name: str = "") -> Iterator[str]:
    """What differs, as far as an EMD file keeps it: it makes floats of numbers in a tuple."""
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
