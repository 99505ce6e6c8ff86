"""Checkerboard cross-validation of methods that find orientations."""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.checks import (
    check_data,
    check_flag,
    check_mask,
    check_memory,
    check_n_jobs,
    check_r_mask,
    values_of,
)
from ..diffraction.cross_validation import CrossValidation
from ..diffraction.halves import checkerboard, neighbour_errors, take_half, take_positions
from ..diffraction.misorientation import get_symmetry
from ..diffraction.orientation import check_calibrated, kept_orientation_map
from ..diffraction.refining import refine_orientations
from ..patterns.filtering import filter_correlative
from ..patterns.lowrank import filter_lowrank
from ..scan.calibration import calibration_of, check_calibration, scan_step
from .averages import get_clustered_datacube
from .clustering import cluster

METHODS = ("raw", "filtered", "low rank", "filtered + clustered", "merged")
"""Methods for the orientations of a scan that can be compared."""

PAPER_GROWTH = {"threshold": 0.9, "r_mask": "triangle", "min_size": 10}
"""Options of growth as in the paper; they are the defaults of `grow`."""


def cross_validate_orientation(
    self: Any,
    crystal: Any,
    template: NDArray[Any] | None,
    *,
    methods: Sequence[str] = METHODS,
    disks: Mapping[str, Any] | None = None,
    filter: Mapping[str, Any] | None = None,
    grow: Mapping[str, Any] | None = None,
    merge: Mapping[str, Any] | None = None,
    lowrank: Mapping[str, Any] | None = None,
    match: Mapping[str, Any] | None = None,
    refine: bool = True,
    r_mask: NDArray[np.bool_] | None = None,
    n_jobs: int | None = None,
    max_memory: int | str | None = None,
    progress_bar: bool = True,
) -> CrossValidation:
    """Compare orientations that are found independently in two halves of the scan.

    As in the paper, the scan positions are split like a checkerboard. The orientations of each half
    are found only from the patterns of that half. The error of a position is the smallest
    misorientation to its four neighbours, which are all in the other half.

    Parameters
    ----------
    crystal : py4DSTEM.process.diffraction.Crystal
        Crystal with an orientation plan. Its ``orientation_map`` does not change.
    template : ndarray, (Qx, Qy)
        Template of the Bragg disks: ``probe.kernel``. With None, disks are maxima of the patterns.
    methods : sequence of str
        Methods to compare; by default all five. "raw": every pattern is matched. "filtered": every
        pattern is matched after `filter_correlative`. "low rank": every pattern is matched after
        `filter_lowrank`. "filtered + clustered", as in the paper:
        clusters are grown in the filtered scan, and the average of each is matched. "merged":
        clusters are merged in the raw scan, and the average of each is matched.
    disks : mapping, optional
        Options of ``find_Bragg_disks``. Its defaults are meant for large detectors.
    filter : mapping, optional
        Options of `filter_correlative`.
    grow : mapping, optional
        Options of `cluster`, for growth; by default the paper's threshold of 0.9, r_mask "triangle"
        and min_size 10. Give a `q_mask` without the direct beam: with the beam all patterns are
        similar, and growth finds no grains. Sizes are numbers of positions of one half. A boolean
        `r_mask` in these options is a map of the whole scan.
    merge : mapping, optional
        Options of `cluster`, for merging.
    lowrank : mapping, optional
        Options of `filter_lowrank`.
    match : mapping, optional
        Options of ``crystal.match_orientations``. Only the best match is used.
    refine : bool
        Refine the orientations of averages with `refine_orientations`. This is quick, since there
        is one pattern for each cluster. Without it, an average that is matched to a twin gives a
        wrong orientation to a whole grain.
    r_mask : ndarray of bool, (Rx, Ry), optional
        Positions that are compared; by default all. A mask saves time, since matching every pattern
        is slow. It does not affect the clusters; for these see `grow` and `merge`.
    n_jobs : int, optional
        Number of threads; by default all cores that the process may use.
    max_memory : int or str, optional
        Bytes, or a text such as "1 GB", that the work may take; see `filter_correlative`. The
        filtered copy of one half needs more memory in addition.
    progress_bar : bool
        Show progress.

    Returns
    -------
    CrossValidation
        Error maps; its ``table()`` sums up errors and costs.

    Raises
    ------
    ValueError, TypeError
        Before any long work, if an argument breaks its rule, the crystal has no orientation plan,
        or the calibration has no origin or pixel size.

    Notes
    -----
    Half 0 has the positions with ``x + y`` even, half 1 the others. Each half becomes a scan
    (Rx, Ry // 2), in which column ``j`` of row ``x`` is ``y = 2 j + (x + half) % 2``. Neighbours in
    this scan are 1.4 to 3.2 positions apart, so filter and clusters work less well than on the
    whole scan. If the number of columns is odd, the last column is left out. The halves are read
    from the scan block by block; a filtered half is in memory, in float32. The tree of this
    datacube does not change.

    The error shows how well the halves agree, not how correct they are: an error that is the same
    in both halves is not seen. At borders of grains one neighbour of the same grain is enough for a
    small error. In liquid or vacuum there is no correct orientation, and the error of single
    patterns is the smallest of four random angles; leave these positions out with `r_mask`, or use
    ``mean_common``. A position in a cluster of one half has an error only if a neighbour is in a
    cluster of the other half.

    Examples
    --------
    With a crystal that has an orientation plan, and the kernel of a probe:

    >>> validation = datacube.cross_validate_orientation(
    ...     crystal, probe.kernel, methods=("raw", "merged")
    ... )  # doctest: +SKIP
    >>> validation.table()["mean"]  # doctest: +SKIP
    """
    check_data(self.data)
    check_calibration(self)
    if min(self.Rshape) < 4:
        raise ValueError(
            f"a scan of {self.R_Nx} x {self.R_Ny} is too small to be halved like a checkerboard; "
            "it must have at least 4 x 4 positions"
        )
    methods = _check_methods(methods)
    n_jobs = check_n_jobs(n_jobs)
    progress_bar = check_flag("progress_bar", progress_bar)
    if r_mask is not None:
        r_mask = check_mask("r_mask", r_mask, self.Rshape, "scan positions")
    refine = check_flag("refine", refine)
    check_memory(max_memory)
    common = {"n_jobs": n_jobs, "max_memory": max_memory, "progress_bar": progress_bar}
    steps = _check_clustering(self, methods, (filter, lowrank), grow, merge, common)
    matching = _check_matching(self, crystal, template, disks, match, progress_bar)

    matrices = {method: np.full((*self.Rshape, 3, 3), np.nan) for method in methods}
    costs = {method: np.zeros(3) for method in methods}
    with kept_orientation_map(crystal):
        matching.try_one(self, r_mask)
        for half in (0, 1):
            positions = checkerboard(self.Rshape, half)
            cube = take_half(self, half)
            inside = np.ones(cube.Rshape, dtype=bool) if r_mask is None else r_mask[positions]
            for method, found, cost in _orientations_of_half(
                cube, inside, positions, methods, steps, matching, refine
            ):
                matrices[method][positions] = np.where(inside[..., None, None], found, np.nan)
                costs[method] += cost
    return CrossValidation(
        {method: neighbour_errors(found, crystal) for method, found in matrices.items()},
        matrices,
        {method: (int(n), float(t), float(before)) for method, (n, t, before) in costs.items()},
        *scan_step(self),
    )


@dataclass(frozen=True, eq=False)
class _Steps:
    """Checked options of the steps before matching."""

    filter: dict[str, Any]
    """Options of `filter_correlative`."""
    lowrank: dict[str, Any]
    """Options of `filter_lowrank`."""
    clusters: dict[str, dict[str, Any]]
    """Options of `cluster` for each method that finds clusters."""
    common: dict[str, Any]
    """Options of filter, clusters and averages."""


def _orientations_of_half(
    cube: Any,
    inside: NDArray[np.bool_],
    positions: tuple[NDArray[Any], NDArray[Any]],
    methods: tuple[str, ...],
    steps: _Steps,
    matching: _Matching,
    refine: bool,
) -> Iterator[tuple[str, NDArray[Any], tuple[int, float, float]]]:
    """Yield for each method its name, matrices ``(Rx, Ry // 2, 3, 3)`` and costs.

    Costs are as in `CrossValidation.costs`. The patterns of `cube` are from `positions` in the
    whole scan. The mask `inside` marks those that are compared.
    """
    filtered: Any = None
    seconds_filter = 0.0
    if any(_is_filtered(method) for method in methods):
        start = perf_counter()
        filtered = filter_correlative(cube, **steps.filter, **steps.common)
        seconds_filter = perf_counter() - start
    for method in methods:
        source, before = (filtered, seconds_filter) if _is_filtered(method) else (cube, 0.0)
        start = perf_counter()
        if method == "low rank":
            source = filter_lowrank(cube, **steps.lowrank, **steps.common)
            before = perf_counter() - start
            start = perf_counter()
        if method in steps.clusters:
            options = dict(steps.clusters[method])
            if isinstance(options["r_mask"], np.ndarray):  # a map of the whole scan
                options["r_mask"] = options["r_mask"][positions]
            clusters: Any = cluster(source, **options, **steps.common)
            averages = None
            if clusters.n_clusters:
                averages = get_clustered_datacube(source, clusters, **steps.common)
            before += perf_counter() - start
            start = perf_counter()
            found, n_matches = _match_clusters(clusters, averages, matching, refine)
        else:
            found, n_matches = _match_each(source, inside, matching)
        yield method, found, (n_matches, perf_counter() - start, before)


def _is_filtered(method: str) -> bool:
    return method.startswith("filtered")


# --- checks ----------------------------------------------------------------------------------


def _check_methods(methods: Any) -> tuple[str, ...]:
    if isinstance(methods, str) or not isinstance(methods, Sequence):
        raise TypeError(f"methods={methods!r} must be a sequence of names, such as ('raw',)")
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise ValueError(f"methods hold {unknown[0]!r}; they must be of {', '.join(METHODS)}")
    if not methods or len(set(methods)) < len(methods):
        raise ValueError(f"methods={methods!r} must name at least one method, and each once")
    return tuple(methods)


def _check_options(
    name: str, value: Any, function: Callable[..., Any], reserved: set[str]
) -> dict[str, Any]:
    """Check a mapping of options of `function`; those in `reserved` must not be given."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name}={value!r} must be a mapping of options of {function.__name__}, such as a "
            f"dict, not {type(value).__name__}"
        )
    allowed = [
        key for key in inspect.signature(function).parameters if key not in reserved | {"self"}
    ]
    wrong = [key for key in value if key not in allowed]
    if wrong:
        raise ValueError(
            f"{name} holds {wrong[0]!r}, which is no option of {function.__name__} or not one to "
            f"be given here; those are {', '.join(allowed)}"
        )
    return dict(value)


def _check_clustering(
    datacube: Any,
    methods: tuple[str, ...],
    filters: tuple[Any, Any],
    grow: Any,
    merge: Any,
    common: dict[str, Any],
) -> _Steps:
    """Check options of filter, growth and merging by running `methods` on empty patterns."""
    from py4DSTEM import DataCube

    reserved = {"name", *common}
    to_file = {"out", "overwrite", "compression"}
    filter = _check_options("filter", filters[0], filter_correlative, reserved | to_file)
    lowrank = _check_options("lowrank", filters[1], filter_lowrank, reserved | to_file)
    reserved |= {"method", "similarity", "returncalc"}
    grow = _check_options("grow", grow, cluster, reserved)
    merge = _check_options("merge", merge, cluster, reserved)
    default = {
        key: value
        for key, value in PAPER_GROWTH.items()
        if key != "threshold" or "n_clusters" not in grow
    }
    clusters = {
        "filtered + clustered": {**default, **grow, "method": "grow"},
        "merged": {**merge, "method": "merge"},
    }
    empty = DataCube(np.zeros((4, 4, *datacube.Qshape), dtype=np.float32))
    if any(_is_filtered(method) for method in methods):
        filter_correlative(empty, **filter, progress_bar=False)
    if "low rank" in methods:
        filter_lowrank(empty, **lowrank, progress_bar=False)
    for method, options in clusters.items():
        options["r_mask"] = check_r_mask(options.get("r_mask"), datacube.Rshape)
        if method in methods:
            cluster(empty, **{**options, "r_mask": None}, progress_bar=False)
    return _Steps(filter, lowrank, clusters, common)


def _check_matching(
    datacube: Any, crystal: Any, template: Any, disks: Any, match: Any, progress_bar: bool
) -> _Matching:
    """Check crystal, template and the options of Bragg disks and matching."""
    if not hasattr(crystal, "match_orientations"):
        raise TypeError(f"crystal must be a py4DSTEM Crystal, not {type(crystal).__name__}")
    if not hasattr(crystal, "orientation_ref"):
        raise ValueError(
            "the crystal has no orientation plan to match with; call crystal.orientation_plan()"
        )
    get_symmetry(crystal)
    disks = _check_options(
        "disks",
        disks,
        type(datacube).find_Bragg_disks,
        {"template", "data", "name", "returncalc", "distributed"},
    )
    match = _check_options(
        "match",
        match,
        type(crystal).match_orientations,
        {"bragg_peaks_array", "return_orientation", "progress_bar"},
    )
    if template is not None:
        if hasattr(template, "kernel"):
            raise TypeError("template must be an array, not a Probe; use probe.kernel")
        template = np.asarray(values_of(template))
        if template.dtype.kind not in "buif":
            raise TypeError(
                f"template of type {template.dtype} must hold real numbers; use probe.kernel"
            )
        # The filter function may return patterns of another shape.
        if template.shape != datacube.Qshape and disks.get("filter_function") is None:
            raise ValueError(
                f"template of shape {template.shape} must have the shape of the detector, "
                f"{datacube.Qshape}; use the kernel of a probe of this detector"
            )
    check_calibrated(calibration_of(datacube), "the datacube is")
    return _Matching(crystal, template, disks, match, progress_bar)


# --- orientations ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Matching:
    """Bragg disks and orientations of every pattern in a DataCube, by py4DSTEM."""

    crystal: Any  # a py4DSTEM Crystal with an orientation plan
    template: NDArray[Any] | None
    disks: Mapping[str, Any]
    match: Mapping[str, Any]
    progress_bar: bool

    def __call__(self, patterns: Any, refine: bool = False) -> Any:
        """OrientationMap of a DataCube."""
        if self.progress_bar:
            bragg = patterns.find_Bragg_disks(template=self.template, **self.disks)
        else:
            # The progress bar of find_Bragg_disks cannot be switched off (py4DSTEM 0.14.18).
            with redirect_stderr(io.StringIO()):
                bragg = patterns.find_Bragg_disks(template=self.template, **self.disks)
        bragg.setcal()
        with warnings.catch_warnings():
            # Ellipse or rotation need not be calibrated.
            warnings.filterwarnings("ignore", ".*bragg peaks not .* calibrated", UserWarning)
            found = self.crystal.match_orientations(
                bragg, progress_bar=self.progress_bar, **self.match
            )
        if refine:
            found = refine_orientations(self.crystal, bragg, found, progress_bar=self.progress_bar)
        return found

    def try_one(self, datacube: Any, r_mask: NDArray[Any] | None) -> None:
        """Match one pattern, so that a wrong option raises its error before the long work."""
        x, y = (0, 0) if r_mask is None else np.argwhere(r_mask)[0]
        quiet = replace(self, progress_bar=False)
        quiet(take_positions(datacube, (np.array([[x]]), np.array([[y]]))))


def _matrices(orientation: Any) -> NDArray[Any]:
    """Best matrices ``(n, m, 3, 3)`` of an OrientationMap, NaN where nothing matched."""
    matrix = np.array(orientation.matrix[:, :, 0], dtype=float)
    matrix[~(orientation.corr[:, :, 0] > 0)] = np.nan
    return matrix


def _match_each(
    cube: Any, inside: NDArray[np.bool_], matching: _Matching
) -> tuple[NDArray[Any], int]:
    """Matrices ``(Rx, Ry, 3, 3)`` from every pattern inside a mask, and number of patterns."""
    out = np.full((*cube.Rshape, 3, 3), np.nan)
    n = int(inside.sum())
    if n:
        x, y = np.nonzero(inside)
        out[inside] = _matrices(matching(take_positions(cube, (x[:, None], y[:, None]))))[:, 0]
    return out, n


def _match_clusters(
    clusters: Any, averages: Any, matching: _Matching, refine: bool
) -> tuple[NDArray[Any], int]:
    """Matrices ``(Rx, Ry, 3, 3)`` from the average of each cluster, and number of averages."""
    if averages is None:
        return np.full((*clusters.shape, 3, 3), np.nan), 0
    per_cluster = matching(averages, refine)
    return _matrices(clusters.expand_orientation_map(per_cluster)), clusters.n_clusters
