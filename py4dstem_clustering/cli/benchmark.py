"""The command ``benchmark``: measure and print a table."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ..base.checks import check_integer, check_n_jobs, check_number
from .options import make_folder, save_figure, time_since

# --- benchmark -------------------------------------------------------------------------------


def _scans_of(options: argparse.Namespace, benchmark: Any) -> tuple[range, Any, Path]:
    """Seeds, doses and folder of a benchmark on simulated scans."""
    from ..benchmarks.segmentation import check_seeds

    seeds = check_seeds(options.first_seed, options.seeds, benchmark.TUNING_SEEDS)
    doses = options.electrons or benchmark.ELECTRONS
    for electrons in doses:
        check_number("--electrons", electrons, 1, 1e9)
    return seeds, doses, make_folder(options.out)


def run_segmentation(options: argparse.Namespace) -> None:
    from ..benchmarks import segmentation as benchmark

    methods = benchmark.check_methods(options.methods or benchmark.METHODS)
    methods, notes = benchmark.without_missing(methods)
    seeds, doses, folder = _scans_of(options, benchmark)
    start = time.perf_counter()
    print("\n".join([*notes, f"{len(seeds)} scans at each dose, seeds {seeds[0]} to {seeds[-1]}"]))
    results = benchmark.run_benchmark(
        doses,
        seeds,
        methods,
        easy=options.easy,
        small=options.small,
        progress_bar=not options.quiet,
    )
    print(benchmark.text_table(results))
    benchmark.write_csv(folder / "segmentation.csv", results.rows)
    table = benchmark.markdown_table(results)
    (folder / "segmentation.md").write_text(table, encoding="utf-8")
    save_figure(folder / "segmentation.png", lambda figure: benchmark.draw(figure, results))
    print(f"wrote segmentation.csv, .md and .png to {folder} in {time_since(start)}")


def run_orientation(options: argparse.Namespace) -> None:
    from ..benchmarks import orientation as benchmark
    from ..benchmarks.segmentation import write_csv

    seeds, doses, folder = _scans_of(options, benchmark)
    start = time.perf_counter()
    print(f"{len(seeds)} scans at each dose, seeds {seeds[0]} to {seeds[-1]}")
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
    print(text)
    write_csv(folder / "orientation.csv", rows)
    (folder / "orientation.md").write_text(text, encoding="utf-8")
    print(f"wrote orientation.csv and .md to {folder} in {time_since(start)}")


def run_series_benchmark(options: argparse.Namespace) -> None:
    from ..benchmarks import series as benchmark
    from ..benchmarks.segmentation import write_csv

    seeds, doses, folder = _scans_of(options, benchmark)
    start = time.perf_counter()
    print(f"{len(seeds)} series at each dose, seeds {seeds[0]} to {seeds[-1]}")
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
    (folder / "series.md").write_text(text, encoding="utf-8")
    print(f"wrote series.csv, particles.csv and series.md to {folder} in {time_since(start)}")


def run_memory(options: argparse.Namespace) -> None:
    from ..benchmarks import memory as benchmark

    rows = benchmark.run_benchmark(
        tuple(options.scan), tuple(options.detector), max_memory=options.max_memory
    )
    for i, row in enumerate(rows):
        if i == 0:
            print(benchmark.HEAD)
        print(benchmark.text_line(row), flush=True)


def run_speed(options: argparse.Namespace) -> None:
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
