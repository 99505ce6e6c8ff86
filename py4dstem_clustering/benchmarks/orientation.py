"""Benchmark: orientations and strains of simulated grains, from averages and single patterns.

Each scan is clustered and averaged. Orientation and strain of the averages are found with
py4DSTEM's disk detection and matching. The same is done for single patterns in the same grains.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base.progress import progress
from ..diffraction.disk_options import propose_disk_options
from ..diffraction.misorientation import misorientation
from ..diffraction.refining import refine_orientations
from ..diffraction.strain import calculate_strain
from ..simulate.crystals import ACCELERATING_VOLTAGE, crystal_of_gold
from ..simulate.scan import SimulatedScan, simulate_scan
from .common import doses_of, markdown_table

ELECTRONS = (100.0, 300.0, 1000.0, 3000.0, 10000.0)
"""Electrons a pattern."""

TUNING_SEEDS = range(40, 60)
"""Seeds on which `refine_orientations` was tuned; the benchmark refuses them."""

SHAPES = {False: ((48, 40), (96, 90)), True: ((20, 18), (64, 60))}
"""Shapes of scan and detector. True: small scans, for tests of the benchmark itself."""

STRAIN = 0.02
"""Largest strain of a grain, for each component."""

N_SINGLES = {False: 30, True: 4}
"""Number of single patterns of each scan. True: small scans."""

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
"""Options of find_Bragg_disks for single patterns; its defaults suit larger detectors."""

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

_DISK_RADIUS = 2.0
"""Radius of the disks in detector pixels, the default of `simulate_scan`."""

_K_MAX = 1.5
"""Largest scattering vector, 1/Angstrom; it lies a little outside the detector."""


class Row(NamedTuple):
    """One average or one pattern; the columns of the CSV file.

    Angles are in degrees. Errors of strain are in per cent, those of rotation in 0.01 radian.
    """

    source: str
    electrons: float
    seed: int
    grain: int
    matched: float
    """Misorientation between the truth and the match of py4DSTEM."""
    refined: float
    """Misorientation from the truth after `refine_orientations`."""
    ambiguity: float
    """Correlation of the second-best orientation, divided by that of the best."""
    e_xx: float
    e_yy: float
    e_xy: float
    theta: float
    seconds: float
    """Time for disks and matching."""
    seconds_refining: float


class _Found(NamedTuple):
    """Results for some patterns."""

    matched: Any
    refined: Any
    strain: NDArray[Any]
    """``e_xx, e_yy, e_xy, theta``, shape (n, 4)."""
    seconds: float
    """Time for disks and matching, per pattern."""
    seconds_refining: float
    """Time of refining, per pattern."""


def run_benchmark(
    doses: Sequence[float], seeds: range, *, small: bool = False, progress_bar: bool = True
) -> list[Row]:
    """Return the rows of every seed and dose (electrons a pattern)."""
    crystal = simulated_crystal()
    rows: list[Row] = []
    n_scans = len(doses) * len(seeds)
    with progress(n_scans, "Matching", progress_bar, "scans") as report:
        for dose in doses:
            for seed in seeds:
                rows += _run_scan(dose, seed, crystal, small)
                report(1)
    return rows


def simulated_crystal() -> Any:
    """Return the crystal of the simulated grains, with its orientation plan."""
    crystal = crystal_of_gold(_K_MAX)
    with quiet():
        crystal.orientation_plan(**PLAN)
    return crystal


@contextmanager
def quiet() -> Iterator[None]:
    """Hide prints, bars and warnings of py4DSTEM (0.14.18); they are not about the scan."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def disk_template(shape: tuple[int, int]) -> NDArray[Any]:
    """Return the template of a disk for find_Bragg_disks."""
    from py4DSTEM import Probe

    centre = [(n - 1) / 2 for n in shape]
    u, v = np.ogrid[: shape[0], : shape[1]]
    disk = np.clip(_DISK_RADIUS + 0.5 - np.hypot(u - centre[0], v - centre[1]), 0, 1)
    probe = Probe(disk)
    probe.get_kernel(mode="flat", origin=tuple(centre))
    return probe.kernel


def find_disks(sizes: NDArray[Any], averages: Any, template: NDArray[Any]) -> Any:
    """Disks of averages over `sizes` positions of counted electrons, as BraggVectors."""
    options = propose_disk_options(
        sizes, averages, template, gain=1.0, offset=0.0, significance=4.0
    )
    return options.find(averages)


def _run_scan(electrons: float, seed: int, crystal: Any, small: bool) -> list[Row]:
    scan = simulate_scan(
        *SHAPES[small], n_grains=6, electrons=electrons, seed=seed, probe_blur=0.5, strain=STRAIN
    )
    clusters = scan.datacube.cluster(progress_bar=False)
    if not clusters.n_clusters:
        return []
    averages = scan.datacube.get_clustered_datacube(clusters, progress_bar=False)
    # The grain in which most positions of a cluster lie; -1 is liquid and has no orientation.
    grain = np.array(
        [
            np.bincount(scan.labels[clusters.labels == label] + 1).argmax() - 1
            for label in range(clusters.n_clusters)
        ]
    )
    found = _find(averages, crystal, sizes=clusters.sizes)
    rows = _rows("averages", electrons, seed, grain, scan, crystal, found)

    pure = (scan.shares.max(axis=2) > 0.99) & (scan.labels >= 0) & (clusters.labels >= 0)
    pure &= np.append(grain, -1)[clusters.labels] == scan.labels
    places = np.random.default_rng(seed).permutation(np.argwhere(pure))[: N_SINGLES[small]]
    if not len(places):
        return rows
    index = tuple(places.T)
    single = _find(
        _single_patterns(scan.datacube, index), crystal, found.refined, clusters.labels[index]
    )
    return rows + _rows(
        "single patterns", electrons, seed, scan.labels[index], scan, crystal, single
    )


def _single_patterns(datacube: Any, index: tuple[NDArray[Any], ...]) -> Any:
    from py4DSTEM import DataCube

    cube = DataCube(np.ascontiguousarray(datacube.data[index][:, None]))
    calibration = datacube.calibration
    cube.calibration.set_Q_pixel_size(calibration.get_Q_pixel_size())
    cube.calibration.set_Q_pixel_units(calibration.get_Q_pixel_units())
    cube.calibration.set_origin(tuple(part[index][:, None] for part in calibration.get_origin()))
    return cube


def _find(
    patterns: Any,
    crystal: Any,
    lattice: Any = None,
    label: NDArray[Any] | None = None,
    sizes: NDArray[Any] | None = None,
) -> _Found:
    """Find orientation and strain of patterns ``(n, 1, Qx, Qy)``.

    The strain of each pattern refers to its own orientation. With `lattice`, the orientations of
    clusters, it refers to the orientation of the cluster `label` of the pattern, as in the paper.
    With `sizes`, the numbers of averaged positions, disks are what stands out of the noise.
    """
    start = perf_counter()
    with quiet():
        template = disk_template(patterns.Qshape)
        if sizes is None:
            bragg = patterns.find_Bragg_disks(template=template, **DISKS)
            bragg.setcal()
        else:
            bragg = find_disks(sizes, patterns, template)
        matched = crystal.match_orientations(bragg, progress_bar=False)
    seconds = perf_counter() - start
    start = perf_counter()
    refined = refine_orientations(crystal, bragg, matched, progress_bar=False)
    refining = perf_counter() - start
    reference = refined
    if lattice is not None and label is not None:
        reference = type(lattice)(len(label), 1, 1)
        reference.matrix[:] = lattice.matrix[label][:, :, :1]
        reference.corr[:] = lattice.corr[label][:, :, :1]
    n = len(patterns.data)
    return _Found(matched, refined, _strain(crystal, bragg, reference), seconds / n, refining / n)


def _strain(crystal: Any, bragg: Any, orientation: Any) -> NDArray[Any]:
    """Return ``e_xx, e_yy, e_xy, theta``, (n, 4), relative to the orientation of each pattern."""
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
    scan: SimulatedScan,
    crystal: Any,
    found: _Found,
) -> list[Row]:
    """Compare the results for patterns of known grains with the truth."""
    known = np.flatnonzero(grain >= 0)
    truth = scan.orientations[grain[known]]
    matched, refined = (
        misorientation(one.matrix[known, 0, 0], truth, crystal)
        for one in (found.matched, found.refined)
    )
    best, second = found.refined.corr[known, 0].T
    ambiguity = second / np.where(best > 0, best, np.nan)
    true_strain = np.column_stack([scan.strains[grain[known]], np.zeros(len(known))])
    e_xx, e_yy, e_xy, theta = (100 * (found.strain[known] - true_strain)).T
    return [
        Row(
            source,
            electrons,
            seed,
            grain=int(grain[k]),
            matched=float(matched[i]),
            refined=float(refined[i]),
            ambiguity=float(ambiguity[i]),
            e_xx=float(e_xx[i]),
            e_yy=float(e_yy[i]),
            e_xy=float(e_xy[i]),
            theta=float(theta[i]),
            seconds=found.seconds,
            seconds_refining=found.seconds_refining,
        )
        for i, k in enumerate(known)
    ]


# --- tables ----------------------------------------------------------------------------------


def _values(rows: list[Row], source: str, electrons: float, field: str) -> NDArray[Any]:
    return np.array(
        [getattr(r, field) for r in rows if r.source == source and r.electrons == electrons]
    )


def _angles(values: NDArray[Any]) -> str:
    """Return median, 95 % and share above 5 degrees; a missing orientation counts as wrong."""
    if not len(values):
        return "-"
    values = np.where(np.isnan(values), 180, values)
    median, most = np.percentile(values, [50, 95])
    return f"{median:.2f} / {most:.1f} / {100 * (values > 5).mean():.0f} %"


def orientation_table(rows: list[Row]) -> str:
    """Return median, 95 % and share of gross errors of misorientation, in Markdown."""
    columns = [(source, field) for source in SOURCES for field in ("matched", "refined")]
    heads = ["electrons", *(f"{source}, {field}" for source, field in columns)]
    table = [
        [
            f"{dose:,.10g}",
            *(_angles(_values(rows, source, dose, field)) for source, field in columns),
        ]
        for dose in doses_of(rows)
    ]
    return markdown_table(heads, table)


def _spread(values: NDArray[Any]) -> str:
    """Return the median of errors, and a standard deviation from their median deviation."""
    values = values[np.isfinite(values)]
    if not len(values):
        return "-"
    bias = np.median(values)
    return f"{bias:+.3f} ± {1.4826 * np.median(np.abs(values - bias)):.3f}"


def strain_table(rows: list[Row]) -> str:
    """Return bias and scatter of the errors of strain and rotation, in Markdown."""
    fields = ("e_xx", "e_yy", "e_xy", "theta")
    table = [
        [
            f"{dose:,.10g}",
            source,
            *(_spread(_values(rows, source, dose, field)) for field in fields),
        ]
        for dose in doses_of(rows)
        for source in SOURCES
    ]
    return markdown_table(["electrons", "of", *fields], table, texts=(1,))


def cost_line(rows: list[Row]) -> str:
    """Return the line that says how long a pattern takes."""
    matching, refining = (
        1e3 * np.median([getattr(row, field) for row in rows])
        for field in ("seconds", "seconds_refining")
    )
    return f"{matching:.0f} ms a pattern for disks and matching, {refining:.0f} ms to refine it"
