"""Benchmark: how well particles of simulated series are followed and measured.

Each series is processed like measured data: clusters frame by frame, drift, tracks, and the growth
of every particle. The rotation of a particle comes from its mean patterns by py4DSTEM's disk
detection and orientation matching.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base.progress import progress
from ..diffraction.refining import refine_orientations
from ..metrics import track_quality
from ..series.linking import link_frames
from ..series.motion import rotation_rate
from ..series.result import ClusterSeries
from ..series.run import cluster_series
from ..series.tracks import Track, Tracks
from ..simulate.series import SimulatedSeries, simulate_series
from .common import doses_of, markdown_table
from .orientation import DISKS, disk_template, quiet, simulated_crystal

ELECTRONS = (100.0, 300.0, 1000.0, 10000.0)
"""Electrons a pattern."""

TUNING_SEEDS = range(100, 116)
"""Seeds on which drift and links were tuned; the benchmark refuses them."""

SHAPES: dict[bool, dict[str, Any]] = {
    False: {"n_frames": 20, "n_particles": 8},
    True: {"scan_shape": (24, 20), "detector_shape": (48, 44), "n_frames": 4, "n_particles": 3},
}
"""Options of simulate_series. True: small series, for tests of the benchmark itself."""

_MIN_FRAMES = 5
"""Smallest number of frames for a rate; with a larger one, fewer particles have a rate."""

_MAX_MATCHED_FRAMES = 8
"""Number of frames of a particle whose orientation is matched; this takes most of the time."""


class SeriesRow(NamedTuple):
    """One series; the columns of series.csv."""

    electrons: float
    seed: int
    mota: float
    idf1: float
    mota_of_true: float
    """MOTA of tracks made from the true labels: it shows the errors of the tracking alone."""
    idf1_of_true: float
    drift: float
    """Root mean square error along one axis, scan positions."""
    drift_worst: float
    """Largest distance from the true drift in any frame, scan positions."""


class ParticleRow(NamedTuple):
    """One particle; the columns of particles.csv. NaN where there are too few frames."""

    electrons: float
    seed: int
    particle: int
    growth: float
    """True rate, positions a second."""
    growth_found: float
    rotation: float
    """True rate, degrees a second."""
    rotation_found: float


def run_benchmark(
    doses: Sequence[float], seeds: range, *, small: bool = False, progress_bar: bool = True
) -> tuple[list[SeriesRow], list[ParticleRow]]:
    """Return the rows of every seed and dose (electrons a pattern)."""
    crystal = simulated_crystal()
    series_rows, particle_rows = [], []
    n_scans = len(doses) * len(seeds)
    with progress(n_scans, "Following", progress_bar, "series") as report:
        for dose in doses:
            for seed in seeds:
                truth = simulate_series(electrons=dose, seed=seed, **SHAPES[small])
                row, particles = _run_series(truth, dose, seed, crystal)
                series_rows.append(row)
                particle_rows += particles
                report(1)
    return series_rows, particle_rows


def _run_series(
    truth: SimulatedSeries, dose: float, seed: int, crystal: Any
) -> tuple[SeriesRow, list[ParticleRow]]:
    with tempfile.TemporaryDirectory() as folder:
        series = cluster_series(
            truth, out=Path(folder) / "series.h5", times=truth.times, time_units="s", min_size=5,
            progress_bar=False,
        )  # fmt: skip
        tracks = series.tracks()
        found = tracks.maps(series)
        quality = track_quality(found, truth)
        of_true = _follow_true(truth)
        error = series.drift - truth.drift
        row = SeriesRow(
            dose, seed, quality.mota, quality.idf1, of_true.mota, of_true.idf1,
            float(np.sqrt((error**2).mean())), float(np.hypot(*error.T).max()),
        )  # fmt: skip
        particles = [
            _measure(k, series, tracks, found, truth, dose, seed, crystal)
            for k in range(truth.n_particles)
        ]
    return row, particles


def _follow_true(truth: SimulatedSeries) -> Any:
    """Track the true labels with the true drift, and return the quality of the tracks."""
    frames, maps = [], []
    for t, cube in enumerate(truth):
        present = np.unique(truth.labels[t])
        present = present[present >= 0]
        labels = np.where(truth.labels[t] >= 0, np.searchsorted(present, truth.labels[t]), -1)
        means = [cube.data[labels == k].mean(axis=0) for k in range(len(present))]
        frames.append((labels, np.array(means).reshape(-1, *cube.Qshape), None))
        maps.append(labels)
    tracks = link_frames(frames, drift=truth.drift, times=truth.times)
    return track_quality(tracks.maps(maps), truth)


def _measure(
    particle: int, series: ClusterSeries, tracks: Tracks, found: NDArray[Any],
    truth: SimulatedSeries, dose: float, seed: int, crystal: Any,
) -> ParticleRow:  # fmt: skip
    """Measure a particle with the track that contains most of it.

    Growth is measured in frames in which the true area grows evenly, rotation in all frames in
    which the track is mostly this particle.
    """
    growth = truth.growth_rates[particle]
    rotation = truth.rotation_rates[particle]
    growth_found = rotation_found = np.nan
    member = truth.labels == particle
    present = np.flatnonzero(member.any(axis=(1, 2)))
    counts = np.bincount(found[member & (found >= 0)].ravel(), minlength=1)
    if counts.any():
        track = tracks.track(int(counts.argmax()))
        keep = np.isin(track.frames, present) & _mostly_member(track, found, member)
        if growth > 0:
            frames = growing_frames(truth, particle)
            use = keep & np.isin(track.frames, frames) & ~track.table["touches_border"]
            if use.sum() >= _MIN_FRAMES:
                times, areas = track.times[use], track.sizes[use]
                growth_found = float(np.polyfit(times - times.mean(), areas, 1)[0])
        if keep.sum() >= _MIN_FRAMES:
            rotation_found = _rotation(series, track, keep, crystal)
    return ParticleRow(dose, seed, particle, growth, growth_found, rotation, rotation_found)


def _mostly_member(track: Track, found: NDArray[Any], member: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether most of the track lies in the particle, for each frame of the track."""
    shares = [member[t][found[t] == track.number].mean() for t in track.frames]
    return np.array(shares) > 0.5


def growing_frames(truth: SimulatedSeries, particle: int) -> NDArray[np.int64]:
    """Return the frames, from the first of a particle on, in which its true area grows evenly."""
    areas = truth.areas[:, particle]
    step = truth.growth_rates[particle] * np.diff(truth.times)
    even = np.abs(np.diff(areas) - step) < 0.02 * step
    if not even.any():
        return np.zeros(0, dtype=int)
    first = int(even.argmax())
    stops = np.flatnonzero(~even[first:])
    return np.arange(first, first + 1 + (stops[0] if stops.size else len(even) - first))


def _rotation(series: ClusterSeries, track: Track, keep: NDArray[Any], crystal: Any) -> float:
    """Return the rotation rate, degrees a second, from frames spread evenly over the track."""
    some = np.unique(np.linspace(0, keep.sum() - 1, _MAX_MATCHED_FRAMES).astype(int))
    rows = np.flatnonzero(keep)[some]
    cube = series.get_track_datacube(replace(track, table=track.table[rows]))
    with quiet():
        bragg = cube.find_Bragg_disks(template=disk_template(cube.Qshape), **DISKS)
        bragg.setcal()
        matched = crystal.match_orientations(bragg, progress_bar=False)
        matched = refine_orientations(crystal, bragg, matched, progress_bar=False)
    matrices = np.array(matched.matrix[:, 0, 0], dtype=float)
    matrices[~(matched.corr[:, 0, 0] > 0)] = np.nan
    return rotation_rate(matrices, track.times[rows], crystal).rate


# --- text ------------------------------------------------------------------------------------


def series_table(rows: list[SeriesRow]) -> str:
    """Return means over seeds, with the worst, in Markdown."""
    heads = ["electrons a pattern", "IDF1", "MOTA", "IDF1, true labels", "drift error, positions"]
    table = []
    for dose in doses_of(rows):
        these = [row for row in rows if row.electrons == dose]
        qualities = [
            f"{np.mean(values):.2f} ({np.min(values):.2f})"
            for values in zip(*((r.idf1, r.mota, r.idf1_of_true) for r in these), strict=True)
        ]
        drift = f"{np.mean([r.drift for r in these]):.2f} ({max(r.drift for r in these):.2f})"
        table.append([f"{dose:,.0f}", *qualities, drift])
    return markdown_table(heads, table)


def particle_table(rows: list[ParticleRow]) -> str:
    """Return errors of rates in Markdown."""
    heads = [
        "electrons a pattern", "error of growth rate, %: median (90 %)", "particles",
        "error of rotation, degrees a second: median (90 %)", "particles",
    ]  # fmt: skip
    table = []
    for dose in doses_of(rows):
        these = [row for row in rows if row.electrons == dose]
        growth = np.array([100 * abs(r.growth_found / r.growth - 1) for r in these if r.growth > 0])
        rotation = np.array([abs(r.rotation_found - r.rotation) for r in these])
        cells = [f"{dose:,.0f}"]
        for errors, digits in ((growth, 1), (rotation, 2)):
            errors = errors[np.isfinite(errors)]
            text = "-"
            if errors.size:
                middle, high = np.percentile(errors, (50, 90))
                text = f"{middle:.{digits}f} ({high:.{digits}f})"
            cells += [text, str(errors.size)]
        table.append(cells)
    return markdown_table(heads, table)
