"""Benchmark: orientations and strains of simulated grains, from averages and from single patterns.

Each scan is clustered, averaged, and handed to py4DSTEM's disk detection, orientation matching and
strain; so are single patterns well inside the same grains.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_number
from ..base.progress import progress
from ..diffraction.misorientation import misorientation
from ..diffraction.refining import refine_orientations
from ..diffraction.strain import calculate_strain
from ..simulate.scan import simulate_scan
from ..simulate.scattering import ACCELERATING_VOLTAGE, crystal_of_gold

ELECTRONS = (100.0, 300.0, 1000.0, 3000.0, 10000.0)
"""Electrons a pattern."""

TUNING_SEEDS = range(40, 60)
"""Seeds on which the settings of `refine_orientations` were tuned; refused."""

SHAPES = {False: ((48, 40), (96, 90)), True: ((20, 18), (64, 60))}
"""Scan and detector; of small scans, for tests of the benchmark itself, by True."""

STRAIN = 0.02
"""Largest strain of a grain, each component."""

SINGLES = {False: 30, True: 4}
"""Single patterns of each scan."""

SOURCES = ("averages", "single patterns")

DISKS = {
    "corrPower": 1,
    "sigma_cc": 1,
    "subpixel": "multicorr",
    "upsample_factor": 16,
    "minRelativeIntensity": 0.02,
    "minPeakSpacing": 4,
    "edgeBoundary": 3,
    "maxNumPeaks": 100,
}
"""Options of find_Bragg_disks, whose defaults are made for larger detectors."""

PLAN = {
    "zone_axis_range": np.array([[0, 1, 1], [1, 1, 1]]),
    "angle_step_zone_axis": 2.0,
    "angle_step_in_plane": 4.0,
    "corr_kernel_size": 0.08,
    "sigma_excitation_error": 0.03,
    "accel_voltage": ACCELERATING_VOLTAGE,
    "progress_bar": False,
}
"""Options of orientation_plan."""

_DISK_RADIUS = 2.0  # detector pixels, the default of simulate_scan

_K_MAX = 1.5  # 1/Angstrom: a little beyond the detector


class Row(NamedTuple):
    """One average or one pattern; the columns of the CSV file. Degrees; strains in per cent."""

    source: str
    electrons: float
    seed: int
    grain: int
    matched: float
    """Misorientation from the truth as py4DSTEM matched it."""
    refined: float
    ambiguity: float
    """How well another orientation explains the pattern, as a share of the best."""
    e_xx: float
    """Errors of the strain; and of the rotation, in per cent of a radian."""
    e_yy: float
    e_xy: float
    theta: float
    seconds: float
    """For disks and matching."""
    seconds_refining: float


def run_benchmark(
    electrons: Iterable[float], seeds: range, *, small: bool = False, progress_bar: bool = True
) -> list[Row]:
    """Rows of every seed and dose."""
    doses = sorted({check_number("--electrons", value, 1, 1e9) for value in electrons})
    crystal = crystal_of_gold(_K_MAX)
    with quiet():
        crystal.orientation_plan(**PLAN)
    rows: list[Row] = []
    n_scans = len(doses) * len(seeds)
    with progress(n_scans, "Matching", progress_bar, "scans") as report:
        for dose in doses:
            for seed in seeds:
                rows += _run_scan(dose, seed, crystal, small)
                report(1)
    return rows


@contextmanager
def quiet() -> Iterator[None]:
    """Without py4DSTEM's prints, bars and warnings (0.14.18): they are not about the scan."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def disk_template(shape: tuple[int, int]) -> NDArray[Any]:
    """Template of a disk."""
    from py4DSTEM import Probe

    centre = [(n - 1) / 2 for n in shape]
    u, v = np.ogrid[: shape[0], : shape[1]]
    disk = np.clip(_DISK_RADIUS + 0.5 - np.hypot(u - centre[0], v - centre[1]), 0, 1)
    probe = Probe(disk)
    probe.get_kernel(mode="flat", origin=tuple(centre))
    return probe.kernel


def _run_scan(electrons: float, seed: int, crystal: Any, small: bool) -> list[Row]:
    scan = simulate_scan(
        *SHAPES[small], n_grains=6, electrons=electrons, seed=seed, probe_blur=0.5, strain=STRAIN
    )
    clusters = scan.datacube.cluster(progress_bar=False)
    if not clusters.n_clusters:
        return []
    averages = scan.datacube.get_clustered_datacube(clusters, progress_bar=False)
    # The grain that most positions of a cluster lie in; -1 for liquid, which has no orientation.
    grain = np.array(
        [
            np.bincount(scan.labels[clusters.labels == label] + 1).argmax() - 1
            for label in range(clusters.n_clusters)
        ]
    )
    bragg, matched, seconds = _match(averages, crystal)
    start = perf_counter()
    refined = refine_orientations(crystal, bragg, matched, progress_bar=False)
    refining = (perf_counter() - start) / len(grain)
    strain = _strain(crystal, bragg, refined)
    rows = _rows("averages", electrons, seed, grain, scan, crystal, matched, refined, strain,
                 (seconds / len(grain), refining))  # fmt: skip

    pure = (scan.shares.max(axis=2) > 0.99) & (scan.labels >= 0) & (clusters.labels >= 0)
    pure &= np.append(grain, -1)[clusters.labels] == scan.labels
    places = np.random.default_rng(seed).permutation(np.argwhere(pure))[: SINGLES[small]]
    if not len(places):
        return rows
    index = tuple(places.T)
    single = _single_patterns(scan.datacube, index)
    bragg, matched, seconds = _match(single, crystal)
    start = perf_counter()
    own = refine_orientations(crystal, bragg, matched, progress_bar=False)
    refining = (perf_counter() - start) / len(places)
    # The paper's way: the lattice of the cluster, the disks of the pattern.
    reference = type(refined)(len(places), 1, 1)
    label = clusters.labels[index]
    reference.matrix[:] = refined.matrix[label][:, :, :1]
    reference.corr[:] = refined.corr[label][:, :, :1]
    strain = _strain(crystal, bragg, reference)
    return rows + _rows(
        "single patterns", electrons, seed, scan.labels[index], scan, crystal, matched, own, strain,
        (seconds / len(places), refining),
    )  # fmt: skip


def _single_patterns(datacube: Any, index: tuple[NDArray[Any], ...]) -> Any:
    from py4DSTEM import DataCube

    cube = DataCube(np.ascontiguousarray(datacube.data[index][:, None]))
    calibration = datacube.calibration
    cube.calibration.set_Q_pixel_size(calibration.get_Q_pixel_size())
    cube.calibration.set_Q_pixel_units(calibration.get_Q_pixel_units())
    cube.calibration.set_origin(tuple(part[index][:, None] for part in calibration.get_origin()))
    return cube


def _match(patterns: Any, crystal: Any) -> tuple[Any, Any, float]:
    start = perf_counter()
    with quiet():
        bragg = patterns.find_Bragg_disks(template=disk_template(patterns.Qshape), **DISKS)
        bragg.setcal()
        matched = crystal.match_orientations(bragg, progress_bar=False)
    return bragg, matched, perf_counter() - start


def _strain(crystal: Any, bragg: Any, orientation: Any) -> NDArray[Any]:
    """``e_xx, e_yy, e_xy, theta`` (n, 4), each pattern against its own orientation."""
    labels = np.arange(bragg.shape[0])[:, None]
    return calculate_strain(
        labels,
        crystal,
        bragg,
        orientation,
        min_num_peaks=6,
        max_distance=None,
        sigma_excitation_error=None,
        min_correlation=0,
        mixture=None,
        min_purity=0,
        robust=True,
        progress_bar=False,
    ).data[:4, :, 0].T  # fmt: skip


def _rows(
    source: str,
    electrons: float,
    seed: int,
    grain: NDArray[Any],
    scan: Any,
    crystal: Any,
    matched: Any,
    refined: Any,
    strain: NDArray[Any],
    seconds: tuple[float, float],
) -> list[Row]:
    known = np.flatnonzero(grain >= 0)
    truth = scan.orientations[grain[known]]
    errors = [
        misorientation(found.matrix[known, 0, 0], truth, crystal) for found in (matched, refined)
    ]
    best, second = refined.corr[known, 0].T
    ambiguity = second / np.where(best > 0, best, np.nan)
    true_strain = np.column_stack([scan.strains[grain[known]], np.zeros(len(known))])
    wrong = 100 * (strain[known] - true_strain)
    return [
        Row(source, electrons, seed, int(grain[k]), *map(float, (a, b, c)), *map(float, off),
            *seconds)
        for k, a, b, c, off in zip(known, *errors, ambiguity, wrong, strict=True)
    ]  # fmt: skip


# --- tables ----------------------------------------------------------------------------------


def _doses(rows: list[Row]) -> list[float]:
    return sorted({row.electrons for row in rows})


def _values(rows: list[Row], source: str, electrons: float, field: str) -> NDArray[Any]:
    return np.array(
        [getattr(r, field) for r in rows if r.source == source and r.electrons == electrons]
    )


def _angles(values: NDArray[Any]) -> str:
    """Median, 95 % and share above 5 degrees; no orientation counts as wrong."""
    if not len(values):
        return "-"
    values = np.where(np.isnan(values), 180, values)
    median, most = np.percentile(values, [50, 95])
    return f"{median:.2f} / {most:.1f} / {100 * (values > 5).mean():.0f} %"


def orientation_table(rows: list[Row]) -> str:
    """Misorientation from the truth: median, 95 % and share of gross errors over dose."""
    lines = [
        "| electrons | averages, matched | averages, refined | single patterns, matched "
        "| single patterns, refined |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for dose in _doses(rows):
        cells = [
            _angles(_values(rows, source, dose, field))
            for source in SOURCES
            for field in ("matched", "refined")
        ]
        lines.append(f"| {dose:,.10g} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: NDArray[Any]) -> str:
    """Median and standard deviation of errors, the latter by the median deviation."""
    values = values[np.isfinite(values)]
    if not len(values):
        return "-"
    bias = np.median(values)
    return f"{bias:+.3f} ± {1.4826 * np.median(np.abs(values - bias)):.3f}"


def strain_table(rows: list[Row]) -> str:
    """Errors of strain, per cent, and rotation, per cent of a radian: bias and scatter."""
    fields = ("e_xx", "e_yy", "e_xy", "theta")
    lines = [
        f"| electrons | of | {' | '.join(fields)} |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for dose in _doses(rows):
        for source in SOURCES:
            cells = [_spread(_values(rows, source, dose, field)) for field in fields]
            lines.append(f"| {dose:,.10g} | {source} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cost_line(rows: list[Row]) -> str:
    """What a pattern costs."""
    matching, refining = (
        1e3 * np.median([getattr(row, field) for row in rows])
        for field in ("seconds", "seconds_refining")
    )
    return f"{matching:.0f} ms a pattern for disks and matching, {refining:.0f} ms to refine it"
