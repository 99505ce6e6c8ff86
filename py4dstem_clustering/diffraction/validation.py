"""How far to believe orientations: checkerboard cross-validation of ways to find them."""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
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
from ..base.frozen import Frozen
from ..kernels.blocks import read_rows
from ..scan.calibration import calibration_of, copy_calibration, scan_step
from .misorientation import get_symmetry, misorientation
from .orientation import check_calibrated
from .refining import refine_orientations

METHODS = ("raw", "filtered", "filtered + clustered", "merged")
"""Ways to the orientations of a scan that can be compared."""

RESULTS = np.dtype(
    [
        ("method", "U20"),
        ("mean", np.float64),
        ("median", np.float64),
        ("below_5", np.float64),
        ("n_positions", np.int64),
        ("mean_common", np.float64),
        ("median_common", np.float64),
        ("n_common", np.int64),
        ("n_matches", np.int64),
        ("seconds", np.float64),
        ("seconds_before", np.float64),
    ]
)
"""Fields of `CrossValidation.table`."""

GROW = {"threshold": 0.9, "r_mask": "triangle", "min_size": 10}
"""Growth as in the paper."""


@dataclass(frozen=True, eq=False, repr=False)
class CrossValidation(Frozen):
    """Errors of orientations; from ``datacube.cross_validate_orientation()``.

    Attributes
    ----------
    errors : dict of method: ndarray, (Rx, Ry)
        Smallest misorientation between a position and its four neighbours, which belong to the
        other half of the scan, degrees; NaN where it, or all four, have no orientation.
    orientations : dict of method: ndarray, (Rx, Ry, 3, 3)
        Orientation matrices of both halves together, NaN where there is none.
    costs : dict of method: (n_matches, seconds, seconds_before)
        See `table`.
    pixel_size : float
        Distance of neighbouring scan positions.
    pixel_units : str
        Unit of `pixel_size`.
    """

    errors: Mapping[str, NDArray[Any]]
    orientations: Mapping[str, NDArray[Any]]
    costs: Mapping[str, tuple[int, float, float]]
    pixel_size: float = 1.0
    pixel_units: str = "pixels"

    @property
    def shape(self) -> tuple[int, int]:
        """(Rx, Ry)"""
        return next(iter(self.errors.values())).shape

    def table(self) -> NDArray[Any]:
        """Errors and costs of every method.

        Returns
        -------
        structured ndarray, a row for each method
            ``pandas.DataFrame(validation.table())`` takes it. Fields:

            ``method``; ``mean`` and ``median`` of the errors, degrees, NaN if there are none;
            ``below_5``, share of errors below 5 degrees; ``n_positions``, number of positions with
            an error; ``mean_common``, ``median_common``, the same over the ``n_common`` positions
            where every method has an error, so that no method gains from leaving out what is hard;
            ``n_matches``, patterns that were matched; ``seconds``, for Bragg disks and matching;
            ``seconds_before``, for filter, clusters and averages. Methods that share a filtered
            scan each count its time. Both halves together.
        """
        table = np.zeros(len(self.errors), dtype=RESULTS)
        common = np.isfinite(list(self.errors.values())).all(axis=0)
        for row, (method, errors) in zip(table, self.errors.items(), strict=True):
            own, shared = errors[np.isfinite(errors)], errors[common]
            row["method"] = method
            row["mean"], row["median"] = _mean_and_median(own)
            row["below_5"] = (own < 5).mean() if own.size else np.nan
            row["n_positions"], row["n_common"] = own.size, shared.size
            row["mean_common"], row["median_common"] = _mean_and_median(shared)
            row["n_matches"], row["seconds"], row["seconds_before"] = self.costs[method]
        return table

    def __repr__(self) -> str:
        rx, ry = self.shape
        means = ", ".join(
            f"{row['method']} {row['mean']:.2f}" if row["n_positions"] else f"{row['method']} none"
            for row in self.table()
        )
        return f"CrossValidation({rx} x {ry} scan positions; mean error in degrees: {means})"

    def plot(self, axes: Any = None, **options: Any) -> Any:
        """Draw the error maps side by side; see `py4dstem_clustering.plot_cross_validation`."""
        from ..plotting.results import plot_cross_validation

        return plot_cross_validation(self, axes, **options)


def _mean_and_median(values: NDArray[Any]) -> tuple[float, float]:
    return (values.mean(), np.median(values)) if values.size else (np.nan, np.nan)


def cross_validate_orientation(
    self,
    crystal: Any,
    template: NDArray[Any],
    *,
    methods: Sequence[str] = METHODS,
    disks: Mapping[str, Any] | None = None,
    filter: Mapping[str, Any] | None = None,
    grow: Mapping[str, Any] | None = None,
    merge: Mapping[str, Any] | None = None,
    match: Mapping[str, Any] | None = None,
    refine: bool = True,
    r_mask: NDArray[Any] | None = None,
    n_jobs: int | None = None,
    max_memory: int | str | None = None,
    progress_bar: bool = True,
) -> CrossValidation:
    """Compare orientations of two halves of the scan that know nothing of each other.

    The paper's measure: the scan positions are split like a checkerboard, the orientations of each
    half are found from its patterns alone, and the error of a position is the smallest
    misorientation to its four neighbours, all in the other half.

    Parameters
    ----------
    crystal : py4DSTEM.process.diffraction.Crystal
        With an orientation plan. Its ``orientation_map`` stays as it is.
    template : ndarray, (Qx, Qy)
        For the Bragg disks: ``probe.kernel``. None for maxima of the patterns themselves.
    methods : sequence of str
        Which ways to compare. "raw": Bragg disks and orientation of every pattern; "filtered": of
        every pattern after `filter_correlative`; "filtered + clustered", the paper's way: clusters
        are grown in the filtered scan, and its averages matched; "merged": clusters are merged in
        the raw scan, and its averages matched.
    disks : mapping, optional
        Options of ``find_Bragg_disks``. Its defaults are made for large detectors.
    filter : mapping, optional
        Options of `filter_correlative`.
    grow : mapping, optional
        Options of `cluster`, for growth, instead of the paper's threshold of 0.9, r_mask "triangle"
        and min_size 10. Give a `q_mask` without the direct beam: else everything is alike, and
        there are no grains to match. Sizes count positions of one half. A boolean `r_mask` here is
        a map of the whole scan.
    merge : mapping, optional
        Options of `cluster`, for merging.
    match : mapping, optional
        Options of ``crystal.match_orientations``. The best match counts.
    refine : bool
        Refine the orientations of averages, see `refine_orientations`: of one pattern a cluster
        that is cheap, and one average that was taken for its twin spoils a whole grain.
    r_mask : ndarray of bool, (Rx, Ry), optional
        Positions that count; by default all. Matching patterns one by one is slow. Clusters are
        found in the whole scan all the same, see `grow` and `merge`.
    n_jobs : int, optional
        Threads for filter, clusters and averages; by default all cores that the process may use.
    max_memory : int or str, optional
        For filter, clusters and averages of a half, see `filter_correlative`. A filtered copy of
        it is in memory and comes on top.
    progress_bar : bool
        Show progress.

    Returns
    -------
    CrossValidation
        Error maps, and with ``table()`` what they say and cost.

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule, the crystal has no orientation plan, or the calibration no
        origin or pixel size; before any long work.

    Notes
    -----
    Half A has the positions with ``x + y`` even, half B the others. Each becomes a scan of its own,
    (Rx, Ry // 2), in which column ``j`` of row ``x`` is ``y = 2 j + (x + half) % 2``: neighbours
    there are 1.4 to 3.2 positions apart, so that filter and clusters have it harder than in the
    whole scan. Of an odd number of columns the last is left out. The halves are read from the scan
    block by block; a filtered one is in memory, in float32. The tree of this datacube stays as it
    is.

    The error says how well halves agree, not how right they are: what misleads both alike does not
    show. At borders of grains one neighbour of the same grain is enough. In liquid or vacuum,
    where no orientation is right, single patterns count with the smallest of four random angles,
    unless `r_mask` leaves them out or ``mean_common`` is read; a position that is in a cluster in
    one half only counts where a neighbour in the other is in one too.
    """
    check_data(self.data)
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
    filter, grow, merge = _check_clustering(self, methods, filter, grow, merge)
    matching = _check_matching(self, crystal, template, disks, match, progress_bar)

    matrices = {method: np.full((*self.Rshape, 3, 3), np.nan) for method in methods}
    costs = {method: np.zeros(3) for method in methods}
    with _kept_orientation_map(crystal):
        matching.try_one(self, r_mask)
        for half in (0, 1):
            places = checkerboard(self.Rshape, half)
            cube = take_half(self, half)
            inside = np.ones(cube.Rshape, dtype=bool) if r_mask is None else r_mask[places]
            filtered, filtering = None, 0.0
            if any(method.startswith("filtered") for method in methods):
                start = perf_counter()
                filtered = cube.filter_correlative(**filter, **common)
                filtering = perf_counter() - start
            for method in methods:
                start = perf_counter()
                source = filtered if method.startswith("filtered") else cube
                before = filtering if source is filtered else 0.0
                if method in ("raw", "filtered"):
                    found, n = _match_each(source, inside, matching)
                else:
                    options = merge if method == "merged" else grow
                    options = {**options, "r_mask": _mask_at(options.get("r_mask"), places)}
                    clusters = source.cluster(**options, **common)
                    averages = None
                    if clusters.n_clusters:
                        averages = source.get_clustered_datacube(clusters, **common)
                    before += perf_counter() - start
                    start = perf_counter()
                    found, n = _match_clusters(clusters, averages, matching, refine)
                matrices[method][places] = np.where(inside[..., None, None], found, np.nan)
                costs[method] += n, perf_counter() - start, before
    return CrossValidation(
        {method: neighbour_errors(found, crystal) for method, found in matrices.items()},
        matrices,
        {method: (int(n), float(t), float(before)) for method, (n, t, before) in costs.items()},
        *scan_step(self),
    )


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


def _check_options(name: str, value: Any, function: Any, ours: set[str]) -> dict[str, Any]:
    """A mapping of options that `function` takes; those in `ours` are not for the user."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name}={value!r} must be a mapping of options of {function.__name__}, such as a "
            f"dict, not {type(value).__name__}"
        )
    known = [key for key in inspect.signature(function).parameters if key not in ours | {"self"}]
    wrong = [key for key in value if key not in known]
    if wrong:
        raise ValueError(
            f"{name} holds {wrong[0]!r}, which is no option of {function.__name__} or not one to "
            f"be given here; those are {', '.join(known)}"
        )
    return dict(value)


def _check_clustering(
    datacube: Any, methods: tuple[str, ...], filtering: Any, grow: Any, merge: Any
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Options of filter, growth and merging; those of `methods` are tried on empty patterns."""
    from py4DSTEM import DataCube

    cube, common = type(datacube), {"name", "n_jobs", "max_memory", "progress_bar"}
    filtering = _check_options(
        "filter", filtering, cube.filter_correlative, common | {"out", "overwrite", "compression"}
    )
    ours = common | {"method", "similarity", "returncalc"}
    grow = _check_options("grow", grow, cube.cluster, ours)
    merge = _check_options("merge", merge, cube.cluster, ours)
    default = {key: GROW[key] for key in GROW if key != "threshold" or "n_clusters" not in grow}
    grow = {**default, **grow, "method": "grow"}
    merge["method"] = "merge"
    empty = DataCube(np.zeros((4, 4, *datacube.Qshape), dtype=np.float32))
    if any(method.startswith("filtered") for method in methods):
        empty.filter_correlative(**filtering, progress_bar=False)
    for method, options in (("filtered + clustered", grow), ("merged", merge)):
        options["r_mask"] = check_r_mask(options.get("r_mask"), datacube.Rshape)
        if method in methods:
            empty.cluster(**{**options, "r_mask": None}, progress_bar=False)
    return filtering, grow, merge


def _check_matching(
    datacube: Any, crystal: Any, template: Any, disks: Any, match: Any, progress_bar: bool
) -> _Matching:
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
        # What filter_function returns may have another shape.
        if template.shape != datacube.Qshape and disks.get("filter_function") is None:
            raise ValueError(
                f"template of shape {template.shape} must have the shape of the detector, "
                f"{datacube.Qshape}; use the kernel of a probe of this detector"
            )
    check_calibrated(calibration_of(datacube), "the datacube is")
    return _Matching(crystal, template, disks, match, progress_bar)


def _mask_at(r_mask: Any, places: tuple[NDArray[Any], NDArray[Any]]) -> Any:
    """An `r_mask` of the scan in one half; names and numbers stay."""
    if not isinstance(r_mask, np.ndarray):
        return r_mask
    return r_mask[places]


# --- halves of the scan ----------------------------------------------------------------------


def checkerboard(shape: tuple[int, int], half: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scan positions ``(x, y)`` of one half, as two maps of ``(Rx, Ry // 2)``."""
    x, column = np.indices((shape[0], shape[1] // 2))
    return x, 2 * column + (x + half) % 2


class ScanPart:
    """Patterns of some places of a scan as an array that is read when asked for.

    ``(n, m, Qx, Qy)`` for places ``(x, y)`` as two maps ``(n, m)``, x rising.
    """

    ndim = 4

    def __init__(self, data: Any, places: tuple[NDArray[Any], NDArray[Any]]) -> None:
        self._data, self._places = data, places
        self.shape = (*places[0].shape, *data.shape[2:])
        self.dtype = np.dtype(data.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        key = key if isinstance(key, tuple) else (key,)
        x, y = (place[key[:2]] for place in self._places)
        rest = (*[slice(None)] * x.ndim, *key[2:])
        if x.size == 0:
            return np.empty((*x.shape, *self.shape[2:]), dtype=self.dtype)[rest]
        if x.size == 1:  # not a whole row for one pattern
            x, y, shape = x.item(), y.item(), x.shape
            pattern = read_rows(self._data[x : x + 1, y : y + 1], 0, 1)
            return pattern.reshape(*shape, *self.shape[2:])[rest]
        first, last = int(x.min()), int(x.max())
        return read_rows(self._data, first, last + 1)[x - first, y][rest]


def take_half(datacube: Any, half: int) -> Any:
    """One half of the scan as a DataCube."""
    return _take(datacube, checkerboard(datacube.Rshape, half))


def _take(datacube: Any, places: tuple[NDArray[Any], NDArray[Any]]) -> Any:
    """A DataCube of patterns from some places, with the calibration that they have there."""
    from py4DSTEM import DataCube

    calibration = copy_calibration(calibration_of(datacube))
    for key, value in calibration._params.items():
        if isinstance(value, np.ndarray) and value.shape == datacube.Rshape:
            calibration._params[key] = value[places]
    return DataCube(data=ScanPart(datacube.data, places), name="half", calibration=calibration)


def neighbour_errors(matrices: NDArray[Any], crystal: Any) -> NDArray[Any]:
    """Smallest misorientation, degrees, of each position ``(Rx, Ry)`` to its four neighbours.

    All four are in the other half of the checkerboard. NaN where nothing can be compared.
    """
    out = np.full(matrices.shape[:2], np.nan)
    for low, high in (
        (np.s_[:-1, :], np.s_[1:, :]),
        (np.s_[:, :-1], np.s_[:, 1:]),
    ):
        angle = misorientation(matrices[low], matrices[high], crystal)
        for side in (low, high):
            out[side] = np.fmin(out[side], angle)
    return out


# --- orientations ----------------------------------------------------------------------------


@contextmanager
def _kept_orientation_map(crystal: Any) -> Iterator[None]:
    """Give the crystal back the map that it had; match_orientations overwrites it."""
    kept = vars(crystal).get("orientation_map")
    try:
        yield
    finally:
        if kept is None:
            vars(crystal).pop("orientation_map", None)
        else:
            crystal.orientation_map = kept


@dataclass(frozen=True, eq=False)
class _Matching:
    """Bragg disks and orientations of every pattern in a DataCube, by py4DSTEM."""

    crystal: Any
    template: NDArray[Any] | None
    disks: Mapping[str, Any]
    match: Mapping[str, Any]
    progress_bar: bool

    def __call__(self, patterns: Any, refine: bool = False) -> Any:
        if self.progress_bar:
            bragg = patterns.find_Bragg_disks(template=self.template, **self.disks)
        else:
            # Its progress bar cannot be switched off (py4DSTEM 0.14.18).
            with redirect_stderr(io.StringIO()):
                bragg = patterns.find_Bragg_disks(template=self.template, **self.disks)
        bragg.setcal()
        with warnings.catch_warnings():
            # Not every microscope has an ellipse or a rotation to correct.
            warnings.filterwarnings("ignore", ".*bragg peaks not .* calibrated", UserWarning)
            found = self.crystal.match_orientations(
                bragg, progress_bar=self.progress_bar, **self.match
            )
        if refine:
            found = refine_orientations(self.crystal, bragg, found, progress_bar=self.progress_bar)
        return found

    def try_one(self, datacube: Any, r_mask: NDArray[Any] | None) -> None:
        """Match one pattern, so that a wrong option shows before the long work."""
        x, y = (0, 0) if r_mask is None else np.argwhere(r_mask)[0]
        quiet = _Matching(self.crystal, self.template, self.disks, self.match, False)
        quiet(_take(datacube, (np.array([[x]]), np.array([[y]]))))


def _matrices(orientation: Any) -> NDArray[Any]:
    """Best matrices ``(n, m, 3, 3)`` of an OrientationMap, NaN where nothing matched."""
    matrix = np.array(orientation.matrix[:, :, 0], dtype=float)
    matrix[~(orientation.corr[:, :, 0] > 0)] = np.nan
    return matrix


def _match_each(cube: Any, inside: NDArray[Any], matching: _Matching) -> tuple[NDArray[Any], int]:
    """Matrices ``(Rx, Ry, 3, 3)`` from every pattern inside a mask, and how many were matched."""
    out = np.full((*cube.Rshape, 3, 3), np.nan)
    n = int(inside.sum())
    if n:
        places = tuple(index[:, None] for index in np.nonzero(inside))
        out[inside] = _matrices(matching(_take(cube, places)))[:, 0]
    return out, n


def _match_clusters(
    clusters: Any, averages: Any, matching: _Matching, refine: bool
) -> tuple[NDArray[Any], int]:
    """Matrices ``(Rx, Ry, 3, 3)`` from the average of each cluster, and how many were matched."""
    if averages is None:
        return np.full((*clusters.shape, 3, 3), np.nan), 0
    per_cluster = matching(averages, refine)
    return _matrices(clusters.expand_orientation_map(per_cluster)), clusters.n_clusters
