"""The command ``benchmark``: measure, print a table, and write it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..base.checks import check_integer, check_n_jobs
from .options import make_folder, save_figure, time_since


def _seeds_and_doses(options: argparse.Namespace, benchmark: Any) -> tuple[range, list[float]]:
    """Check the seeds and doses of a benchmark on simulated scans."""
    from ..benchmarks.common import check_doses, check_seeds

    seeds = check_seeds(options.first_seed, options.seeds, benchmark.TUNING_SEEDS)
    return seeds, check_doses(options.electrons or benchmark.ELECTRONS)


def _names(
    options: argparse.Namespace, option: str, known: Iterable[str], default: Iterable[str] = ()
) -> tuple[str, ...]:
    """Check the names given to an option; without any, the default ones, or else all."""
    from ..benchmarks.common import check_names

    known = tuple(known)
    return check_names(f"--{option}", getattr(options, option) or tuple(default) or known, known)


def _print_seeds(what: str, seeds: range) -> None:
    print(f"{len(seeds)} {what} at each dose, seeds {seeds[0]} to {seeds[-1]}")


def _write_table(folder: Path, name: str, rows: Sequence[Any], text: str, start: float) -> None:
    """Print a table, and write it and its rows."""
    from ..benchmarks.common import write_csv

    print(text)
    write_csv(folder / f"{name}.csv", rows)
    _write_text(folder / f"{name}.md", text)
    print(f"wrote {name}.csv and .md to {folder} in {time_since(start)}")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def run_segmentation(options: argparse.Namespace) -> None:
    """Compare methods of segmentation: segmentation.csv, .md and .png."""
    from ..benchmarks import methods, segmentation, segmentation_figure
    from ..benchmarks.common import write_csv

    names = _names(options, "methods", methods.METHODS)
    seeds, doses = _seeds_and_doses(options, segmentation)
    folder = make_folder(options.out)
    start = time.perf_counter()
    _print_seeds("scans", seeds)
    results = segmentation.run_benchmark(
        doses,
        seeds,
        names,
        easy=options.easy,
        small=options.small,
        progress_bar=not options.quiet,
    )
    print(segmentation.text_table(results))
    write_csv(folder / "segmentation.csv", results.rows)
    _write_text(folder / "segmentation.md", segmentation.markdown_table(results))
    save_figure(
        folder / "segmentation.png", lambda figure: segmentation_figure.draw(figure, results)
    )
    print(f"wrote segmentation.csv, .md and .png to {folder} in {time_since(start)}")


def run_samples(options: argparse.Namespace) -> None:
    """Compare methods on many kinds of sample: samples.csv and .md."""
    from ..benchmarks import methods
    from ..benchmarks import samples as benchmark
    from ..simulate.samples import SAMPLE_KINDS

    names = _names(options, "methods", methods.METHODS, benchmark.COMPARED)
    kinds = _names(options, "kinds", SAMPLE_KINDS)
    seeds, doses = _seeds_and_doses(options, benchmark)
    folder = make_folder(options.out)
    start = time.perf_counter()
    _print_seeds(f"scans of {len(kinds)} kinds", seeds)
    rows = benchmark.run_benchmark(
        kinds, doses, seeds, names, small=options.small, progress_bar=not options.quiet
    )
    text = "Panoptic quality: mean (worst)\n\n" + benchmark.markdown_table(rows, names)
    _write_table(folder, "samples", rows, text, start)


def run_overlaps(options: argparse.Namespace) -> None:
    """Compare methods on grains that lie above one another: overlaps.csv and .md."""
    from ..benchmarks import overlaps as benchmark

    kinds = _names(options, "kinds", benchmark.KINDS)
    scattering = _names(options, "scattering", benchmark.SCATTERING)
    methods = _names(options, "methods", benchmark.METHODS)
    seeds, doses = _seeds_and_doses(options, benchmark)
    folder = make_folder(options.out)
    start = time.perf_counter()
    _print_seeds(f"scans of {len(kinds)} kinds, {len(scattering)} ways to scatter", seeds)
    rows = benchmark.run_benchmark(
        kinds, scattering, doses, seeds, methods,
        small=options.small, progress_bar=not options.quiet,
    )  # fmt: skip
    text = f"Panoptic quality of supports: mean (worst)\n\n{benchmark.markdown_table(rows)}"
    if "overlaps" in methods:
        text += (
            "\nErrors of shares (root mean square), and pure patterns with a cosine of at least "
            f"0.95, of find_overlaps()\n\n{benchmark.share_table(rows)}"
        )
    _write_table(folder, "overlaps", rows, text, start)


def run_orientation(options: argparse.Namespace) -> None:
    """Measure errors of orientations and strains: orientation.csv and .md."""
    if options.dynamical:
        _run_dynamical(options)
        return
    if options.materials:
        raise ValueError("--materials needs --dynamical; without, all grains are gold")
    from ..benchmarks import orientation as benchmark

    seeds, doses = _seeds_and_doses(options, benchmark)
    folder = make_folder(options.out)
    start = time.perf_counter()
    _print_seeds("scans", seeds)
    rows = benchmark.run_benchmark(
        doses, seeds, small=options.small, progress_bar=not options.quiet
    )
    if not rows:
        raise ValueError("no grain was found at any dose; give more --electrons")
    text = (
        "Misorientation from the truth, degrees: median / 95 % / share above 5 degrees\n\n"
        + benchmark.orientation_table(rows)
        + "\nError of strain, %, and of rotation, 0.01 radian: bias ± scatter\n\n"
        + benchmark.strain_table(rows)
        + f"\n{benchmark.cost_line(rows)}\n"
    )
    _write_table(folder, "orientation", rows, text, start)


def _run_dynamical(options: argparse.Namespace) -> None:
    """Measure orientations and verdicts on Bloch-wave patterns: orientation_dynamical.csv, .md."""
    from ..benchmarks import orientation_dynamical as benchmark

    materials = benchmark.check_names(options.materials or benchmark.MATERIALS)
    seeds, doses = _seeds_and_doses(options, benchmark)
    folder = make_folder(options.out)
    start = time.perf_counter()
    _print_seeds(f"scans of {len(materials)} materials", seeds)
    rows = benchmark.run_benchmark(
        doses, seeds, materials=materials, small=options.small, progress_bar=not options.quiet
    )
    if not rows:
        raise ValueError("no grain was found at any dose; give more --electrons")
    text = "Misorientation from the truth, degrees\n\n" + benchmark.verdict_table(rows)
    _write_table(folder, "orientation_dynamical", rows, text, start)


def run_series_benchmark(options: argparse.Namespace) -> None:
    """Measure how well particles are followed: series.csv, particles.csv and series.md."""
    from ..benchmarks import series as benchmark
    from ..benchmarks.common import write_csv

    seeds, doses = _seeds_and_doses(options, benchmark)
    folder = make_folder(options.out)
    start = time.perf_counter()
    _print_seeds("series", seeds)
    series, particles = benchmark.run_benchmark(
        doses, seeds, small=options.small, progress_bar=not options.quiet
    )
    text = (
        "Mean over seeds (worst)\n\n"
        + benchmark.series_table(series)
        + "\n"
        + benchmark.particle_table(particles)
    )
    print(text)
    write_csv(folder / "series.csv", series)
    write_csv(folder / "particles.csv", particles)
    _write_text(folder / "series.md", text)
    print(f"wrote series.csv, particles.csv and series.md to {folder} in {time_since(start)}")


def run_filters(options: argparse.Namespace) -> None:
    """Measure errors of filtered patterns: filters.csv, .md and .png."""
    from ..benchmarks import filters as benchmark
    from ..benchmarks.common import write_csv
    from ..benchmarks.filters_figure import draw_filters

    kinds = _names(options, "kinds", benchmark.kinds())
    seeds, doses = _seeds_and_doses(options, benchmark)
    folder = make_folder(options.out)
    start = time.perf_counter()
    _print_seeds(f"scans of each of {len(kinds)} kinds", seeds)
    rows = benchmark.run_benchmark(
        doses, seeds, kinds, small=options.small, progress_bar=not options.quiet
    )
    text = "Error relative to raw patterns: mean over seeds (largest)\n\n" + benchmark.filter_table(
        rows
    )
    print(text)
    write_csv(folder / "filters.csv", rows)
    _write_text(folder / "filters.md", text)
    shown = "gold, bent" if "gold, bent" in kinds else kinds[0]
    share, labels = benchmark.make_truth(shown, seeds[0], small=options.small)
    figure = draw_filters(share, benchmark.deepest(labels), doses, seeds[0])
    figure.savefig(folder / "filters.png", dpi=80)
    print(f"wrote filters.csv, .md and .png to {folder} in {time_since(start)}")


def run_memory(options: argparse.Namespace) -> None:
    """Print time and peak memory of each step on a scan in a file."""
    from ..benchmarks import memory as benchmark

    rows = benchmark.run_benchmark(
        tuple(options.scan), tuple(options.detector), max_memory=options.max_memory
    )
    for i, row in enumerate(rows):
        if i == 0:
            print(benchmark.HEAD)
        print(benchmark.text_line(row), flush=True)


def run_live(options: argparse.Namespace) -> None:
    """Print how far clustering falls behind a simulated camera, frame by frame."""
    from ..benchmarks import live as benchmark

    scan, detector = tuple(options.scan), tuple(options.detector)
    rows, recorded = benchmark.run_benchmark(
        scan,
        detector,
        n_frames=options.frames,
        rate=options.rate,
        settle=options.settle,
        n_jobs=check_n_jobs(options.n_jobs),
        n_workers=options.workers,
    )
    kind = "bitshuffle/LZ4" if recorded.is_packed else "not compressed: hdf5plugin is missing"
    size = " x ".join(map(str, scan + detector))
    print(f"frames of {size}, {kind}, {1e6 / options.rate:.3g} microseconds a pattern")
    print(f"a file is complete after {options.settle:g} s without change")
    print(benchmark.table(rows))
    print(benchmark.summary(rows, scan[0] * scan[1]))


def run_speed(options: argparse.Namespace) -> None:
    """Print how fast the kernels are, compared with other codes and the limits of the machine."""
    from ..benchmarks import speed as benchmark

    positions = check_integer("--positions", options.positions, 9)
    detector = check_integer("--detector", options.detector, 8)
    turns = check_integer("--turns", options.turns, 1)
    n_jobs = check_n_jobs(options.n_jobs)
    if (load := benchmark.load_text()) != "":
        print(load)
    machine = benchmark.measure_machine(n_jobs)
    print(benchmark.machine_text(machine))
    data, labels = benchmark.make_scan(positions, detector)
    print(f"scan {' x '.join(map(str, data.shape))}, {data.dtype}; medians of {turns}", flush=True)
    with benchmark.kikuchipy(options.kikuchipy, data) as other:
        tasks = benchmark.make_tasks(data, labels, n_jobs, other)
        for row in benchmark.run_tasks(tasks, machine, turns):
            print(benchmark.row_text(row), flush=True)
    side = benchmark.growth_side(positions)
    print(benchmark.growth_text(side, *benchmark.growth_seconds(side, turns)))
