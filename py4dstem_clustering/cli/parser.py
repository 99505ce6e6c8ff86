"""The commands and their options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .._version import __version__
from ..base.checks import THRESHOLD_NAMES
from .benchmark import (
    run_memory,
    run_orientation,
    run_segmentation,
    run_series_benchmark,
    run_speed,
)
from .cluster import run_cluster
from .demo import run_demo
from .series import run_series


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m py4dstem_clustering",
        description="Find the grains in a 4D-STEM scan and average their diffraction patterns.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="cluster a simulated scan: files, figures and a table")
    demo.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for results")
    demo.add_argument("--electrons", type=float, default=1000, help="electrons a pattern (1000)")
    demo.add_argument("--seed", type=int, default=0, help="seed of the simulation (0)")
    demo.set_defaults(run=run_demo)

    cluster = commands.add_parser(
        "cluster",
        help="cluster a scan in a file",
        description="Cluster a scan: what py4DSTEM opens (EMD, Arina master, .dm4, .mib, ...), "
        ".npy, or .npz. Writes an EMD file with the cluster averages and the clusters.",
    )
    add = cluster.add_argument
    add("file", type=Path, metavar="FILE")
    add("--out", required=True, type=Path, metavar="FILE", help="EMD file to write")
    add("--overwrite", action="store_true", help="replace --out if it exists")
    add("--threshold", type=float, nargs="+", help="grow clusters over neighbours of this "
        "similarity, as in the paper (0.9 with --filter or --sigma); several make several "
        "clusterings, and averages of the last that finds any. Without: merge regions, which needs "
        "no tuning")  # fmt: skip
    _add_scan_options(cluster)
    cluster.set_defaults(run=run_cluster)

    series = commands.add_parser(
        "series",
        help="cluster a series of scans, and follow its grains",
        description="Cluster the scans of an in-situ experiment, one file each, and follow the "
        "grains through them. Stopped, the same command goes on where it was.",
    )
    add = series.add_argument
    add("files", type=Path, nargs="+", metavar="FILE", help="scans in the order of time")
    add("--out", required=True, type=Path, metavar="FILE", help="EMD file to write")
    add("--overwrite", action="store_true", help="start anew, and remove what --out has")
    add("--time-step", nargs=2, metavar=("TIME", "UNIT"), help="from scan to scan, such as 0.5 s")
    add("--threshold", type=float, help="grow clusters over neighbours of this similarity, as in "
        "the paper (0.9 with --filter or --sigma). Without: merge regions, which needs no "
        "tuning")  # fmt: skip
    _add_scan_options(series)
    series.set_defaults(run=run_series)

    benchmark = commands.add_parser("benchmark", help="compare methods on scans of known grains")
    benchmarks = benchmark.add_subparsers(required=True, metavar="WHAT")
    _add_segmentation(benchmarks)
    _add_orientation(benchmarks)
    _add_series(benchmarks)
    _add_speed(benchmarks)
    _add_memory(benchmarks)
    return parser


def _add_scan_options(command: argparse.ArgumentParser) -> None:
    """How scans are opened and clustered."""
    add = command.add_argument
    add("--key", help="name of the array in an .npz file, data path in an EMD file, or dataset in "
        "any other HDF5 file")  # fmt: skip
    add("--scan-shape", type=int, nargs=2, metavar=("RX", "RY"), help="shape of the scan")
    add("--step", nargs=2, metavar=("SIZE", "UNIT"), help="distance of scan positions, such as "
        "3.03 nm; by default what the file says")  # fmt: skip
    add("--keep-background", action="store_true", help="merging: keep liquid, vacuum and film as "
        "clusters")  # fmt: skip
    add("--min-size", type=int, default=1, help="drop smaller clusters (1)")
    add("--r-mask", help="mean similarity above which positions count: a number, or one of "
        + ", ".join(THRESHOLD_NAMES))  # fmt: skip
    add("--q-range", type=float, nargs=2, metavar=("INNER", "OUTER"), help="compare only this "
        "annulus of the detector, pixels from its centre")  # fmt: skip
    add("--q-center", type=float, nargs=2, metavar=("QX", "QY"), help="centre of --q-range; by "
        "default the origin in the file, or the brightest place of the mean pattern")  # fmt: skip
    add("--sigma", type=float, help="growth: blur patterns before comparing, pixels (0)")
    add("--filter", action="store_true", help="apply the correlative filter first; averages are "
        "of the unfiltered scan all the same")  # fmt: skip
    add("--corr-range", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="where a neighbour starts to count, and counts fully (0.85 0.95)")  # fmt: skip
    add("--filter-sigma", type=float, help="blur of the filter, pixels (3)")
    add("--filter-radius", type=float, help="reach of the filter, positions (4)")
    add("--filter-edge", type=int, help="border of the detector left out (12)")
    add("--figures", type=Path, metavar="DIR", help="folder for figures (PNG)")
    add("--n-jobs", type=int, help="threads; by default all cores")
    add("--max-memory", metavar="SIZE", help="memory for blocks of the scan, such as 1GB")
    add("--quiet", action="store_true", help="no progress bars")


def _add_segmentation(commands: Any) -> None:
    segmentation = commands.add_parser(
        "segmentation",
        help="how well methods find the grains",
        description="Segment simulated scans by several methods and compare with the truth: "
        "segmentation.csv, .md and .png. Generous to k-means, NMF and Ward, which do not recognise "
        "the liquid: they are told the number of grains, and a cluster that is mostly liquid by "
        "the truth counts as background.",
    )
    _add_scans(segmentation, "30 100 1000 10000 100000", 20, "100 to 163")
    add = segmentation.add_argument
    add("--methods", nargs="+", metavar="METHOD", help="some of paper, best-threshold, "
        "auto-threshold, merge, k-means, nmf, ward; by default all")  # fmt: skip
    add("--easy", action="store_true", help="perfect grains with sharp borders")
    segmentation.set_defaults(run=run_segmentation)


def _add_orientation(commands: Any) -> None:
    orientation = commands.add_parser(
        "orientation",
        help="how well orientations and strains come back",
        description="Orientations and strains of simulated gold grains, by py4DSTEM from averages "
        "and from single patterns, against the truth: orientation.csv and .md.",
    )
    _add_scans(orientation, "100 300 1000 3000 10000", 10, "40 to 59")
    orientation.set_defaults(run=run_orientation)


def _add_series(commands: Any) -> None:
    series = commands.add_parser(
        "series",
        help="how well particles are followed through a series",
        description="Simulated particles that nucleate, grow, turn, coalesce and dissolve in a "
        "drifting scan, followed, against the truth: series.csv, particles.csv and series.md.",
    )
    _add_scans(series, "100 300 1000 10000", 5, "100 to 115")
    series.set_defaults(run=run_series_benchmark)


def _add_scans(command: argparse.ArgumentParser, doses: str, n_seeds: int, tuning: str) -> None:
    """Options of benchmarks on simulated scans; `tuning` are seeds that are refused."""
    add = command.add_argument
    add("--out", required=True, type=Path, metavar="DIR", help="folder for results")
    add("--electrons", type=float, nargs="+", help=f"electrons a pattern ({doses})")
    add("--seeds", type=int, default=n_seeds, metavar="N",
        help=f"number of scans at each dose ({n_seeds})")  # fmt: skip
    add("--first-seed", type=int, default=0, help=f"seed of the first (0); seeds {tuning} were "
        "used for tuning and are refused")  # fmt: skip
    add("--small", action="store_true", help="tiny scans, to try the command itself")
    add("--quiet", action="store_true", help="no progress bar")


def _add_memory(commands: Any) -> None:
    memory = commands.add_parser(
        "memory",
        help="time and peak memory of a scan in a file",
        description="Filter to HDF5, merging and averages of a simulated scan in a temporary "
        "folder, each in a process of its own. A scan of 512 x 512 takes 58 GB there.",
    )
    add = memory.add_argument
    add("--scan", type=int, nargs=2, default=(128, 128), metavar=("RX", "RY"),
        help="shape of the scan (128 128)")  # fmt: skip
    add("--detector", type=int, nargs=2, default=(192, 192), metavar=("QX", "QY"),
        help="shape of the detector (192 192)")  # fmt: skip
    add("--max-memory", metavar="SIZE", help="memory for blocks of the scan, such as 1GB")
    memory.set_defaults(run=run_memory)


def _add_speed(commands: Any) -> None:
    speed = commands.add_parser(
        "speed",
        help="how fast the kernels are",
        description="Time filter, similarity, averages, blur and growth beside slow loops, the "
        "published way and other packages, in one run, and beside what memory and BLAS of this "
        "machine can do.",
    )
    add = speed.add_argument
    add("--positions", type=int, default=1600, metavar="N", help="scan positions (1600)")
    add("--detector", type=int, default=192, metavar="N", help="detector pixels along one axis "
        "(192)")  # fmt: skip
    add("--turns", type=int, default=5, metavar="N", help="how often each is timed (5)")
    add("--n-jobs", type=int, help="threads; by default all cores")
    add("--kikuchipy", metavar="PYTHON", help="the Python of an environment with kikuchipy, to "
        "compare its similarity (of the whole detector) too")  # fmt: skip
    speed.set_defaults(run=run_speed)
