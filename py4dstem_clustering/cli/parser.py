"""The commands and their options."""

from __future__ import annotations

import argparse
from pathlib import Path
from textwrap import dedent, fill, indent
from typing import Any, NoReturn

from .._version import __version__
from ..base.checks import THRESHOLD_NAMES
from ..scan.opening import BAD_PIXELS, SATURATED
from .benchmark import (
    run_filters,
    run_live,
    run_memory,
    run_orientation,
    run_overlaps,
    run_samples,
    run_segmentation,
    run_series_benchmark,
    run_speed,
)
from .cluster import run_cluster
from .demo import run_demo
from .export import run_export
from .info import run_info
from .options import program_name
from .series import run_series


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the list of all options.

    Help keeps the lines of examples as they are.
    """

    def __init__(self, *, examples: str = "", **options: Any) -> None:
        if examples:
            lines = dedent(examples).strip().replace("py4dstem-clustering", program_name())
            options["epilog"] = "examples:\n" + indent(lines, "  ")
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        if self.description:
            self.description = fill(self.description, 79)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; --help lists all options\n")


def make_parser() -> argparse.ArgumentParser:
    """Build the parser; the options that it returns hold the command as ``run``."""
    parser = _Parser(
        prog=program_name(),
        description="Find the grains in a 4D-STEM scan and average their diffraction patterns.",
        examples="""
            py4dstem-clustering demo --out demo         a simulated scan, in two minutes
            py4dstem-clustering info scan.mib           what is in a file, and what it takes
            py4dstem-clustering cluster scan.mib --out clusters.h5 --report report.html
            py4dstem-clustering COMMAND --help          options and examples of a command
        """,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_info(commands)
    _add_cluster(commands)
    _add_series(commands)
    _add_export(commands)
    benchmark = commands.add_parser(
        "benchmark",
        help="measure on simulated scans of known grains",
        examples="""
            py4dstem-clustering benchmark speed
            py4dstem-clustering benchmark segmentation --out results --seeds 2
        """,
    )
    benchmarks = benchmark.add_subparsers(required=True, metavar="WHAT")
    _add_segmentation(benchmarks)
    _add_samples(benchmarks)
    _add_overlaps(benchmarks)
    _add_orientation(benchmarks)
    _add_series_benchmark(benchmarks)
    _add_filters(benchmarks)
    _add_speed(benchmarks)
    _add_memory(benchmarks)
    _add_live(benchmarks)
    return parser


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="cluster a simulated scan: files, figures and a table",
        description="Simulate gold grains in a liquid, cluster the scan by merging and by growth, "
        "and write EMD files, figures and a table of the clusters beside the simulated grains.",
        examples="""
            py4dstem-clustering demo --out demo
            py4dstem-clustering demo --out low_dose --electrons 100 --seed 3
        """,
    )
    add = demo.add_argument
    add("--out", required=True, type=Path, metavar="DIR", help="folder for results")
    add("--electrons", type=float, default=1000, help="electrons a pattern; default 1000")
    add("--seed", type=int, default=0, help="seed of the simulation; default 0")
    demo.set_defaults(run=run_demo)


def _add_info(commands: Any) -> None:
    info = commands.add_parser(
        "info",
        help="what is in a file, how it is calibrated, and what clustering would take",
        description="Print what is in a file: shape, type, calibration, results of this package, "
        "what the file does not state, and the time and memory that clustering would take on this "
        "machine, measured with some of its patterns. Nothing is written.",
        examples="""
            py4dstem-clustering info scan.mib
            py4dstem-clustering info scan_master.h5 --scan-shape 256 512
        """,
    )
    add = info.add_argument
    add("file", type=Path, metavar="FILE", help="a scan, or a file that cluster or series wrote")
    _add_opening_options(info)
    add("--step", nargs=2, metavar=("SIZE", "UNIT"), help=_STEP)
    add("--n-jobs", type=int, help=_N_JOBS)
    add("--quiet", action="store_true", help="do not print what to call next")
    info.set_defaults(run=run_info)


def _add_cluster(commands: Any) -> None:
    cluster = commands.add_parser(
        "cluster",
        help="cluster a scan in a file",
        description="Cluster a scan in a file of any microscope or program (EMD, Arina master "
        "file, .dm4, .mib, .hspy, .blo, .npy, ...). Writes an EMD file with the cluster averages "
        "and the clusters.",
        examples="""
            py4dstem-clustering cluster scan.mib --out clusters.h5 --step 2 nm --report report.html
            py4dstem-clustering cluster scan_master.h5 --out clusters.h5 --scan-shape 256 512
            as in the paper, at two thresholds:
            py4dstem-clustering cluster scan.npy --out grown.h5 --filter --threshold 0.8 0.9
        """,
    )
    add = cluster.add_argument
    add("file", type=Path, metavar="FILE")
    add("--out", required=True, type=Path, metavar="FILE", help="EMD file to write")
    add("--overwrite", action="store_true", help="replace the file --out if it exists")
    add("--threshold", type=float, nargs="+", help="grow clusters over neighbours of at least this "
        "similarity, as in the paper; default 0.9 for growth. Several values make several "
        "clusterings; the averages are those of the last one that finds clusters. With --method "
        "merge it is the level of merging, 0 or more: 1 gives regions of one pattern, 2 crystals; "
        "above 2, similar crystals join")  # fmt: skip
    _add_scan_options(cluster)
    cluster.set_defaults(run=run_cluster)


def _add_series(commands: Any) -> None:
    series = commands.add_parser(
        "series",
        help="cluster a series of scans, and follow its grains",
        description="Cluster the scans of an in-situ experiment, one file for each scan, and "
        "follow the grains through the series. After a stop, the same command continues the work.",
        examples="""
            py4dstem-clustering series scan_*.mib --out series.h5 --time-step 0.5 s
            py4dstem-clustering series scan_*.npy --out series.h5 --step 2 nm --min-size 5
        """,
    )
    add = series.add_argument
    add("files", type=Path, nargs="+", metavar="FILE", help="scans in the order of time")
    add("--out", required=True, type=Path, metavar="FILE", help="EMD file to write")
    add("--overwrite", action="store_true", help="replace the file --out and start from the first "
        "scan")  # fmt: skip
    add("--time-step", nargs=2, metavar=("TIME", "UNIT"), help="time from one scan to the next, "
        "such as 0.5 s")  # fmt: skip
    add("--threshold", type=float, help="grow clusters over neighbours of at least this "
        "similarity, as in the paper; default 0.9 for growth. With --method merge: the level of "
        "merging, from 0 on")  # fmt: skip
    _add_scan_options(series)
    series.set_defaults(run=run_series)


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="write results for other programs",
        description="Write the clusters, averages and orientations in an EMD file as TIFF, NumPy, "
        "CSV, GeoJSON, SVG, .hspy and .ang.",
        examples="""
            py4dstem-clustering export clusters.h5 --to results
        """,
    )
    add = export.add_argument
    add("file", type=Path, metavar="FILE", help="EMD file that the command cluster wrote, or any "
        "scan with clusters that py4DSTEM saved")  # fmt: skip
    add("--to", required=True, type=Path, metavar="FOLDER", help="folder for the files")
    add("--overwrite", action="store_true", help="replace files of the same names")
    add("--quiet", action="store_true", help="print nothing")
    export.set_defaults(run=run_export)


def _add_scan_options(command: argparse.ArgumentParser) -> None:
    """Add the options that say how scans are opened and clustered."""
    add = command.add_argument
    _add_opening_options(command)
    add("--step", nargs=2, metavar=("SIZE", "UNIT"), help=_STEP)
    add("--method", choices=("merge", "grow"), help="merge regions, which needs no tuning, or grow "
        "clusters as in the paper; by default merge, or grow where --threshold, --filter, "
        "--filter-lowrank or --sigma is given")  # fmt: skip
    add("--level", choices=("pattern", "crystal"), help="merging: crystals, the default, or "
        "regions of one pattern, in which a bent crystal comes in pieces")  # fmt: skip
    add("--lag", type=float, metavar="SHARE", help="merging: share of each pattern that a slow "
        "camera leaves in the next one of its row, 0 to below 1; by default it is measured; 0: "
        "the camera leaves nothing")  # fmt: skip
    add("--keep-background", action="store_true", help="when merging: keep liquid, vacuum and "
        "film as clusters")  # fmt: skip
    add("--min-size", type=int, default=1, help="drop clusters of fewer positions; default 1")
    add("--r-mask", help="use only positions whose mean similarity is higher than this: a number, "
        "or the name of a way to choose it: " + ", ".join(THRESHOLD_NAMES))  # fmt: skip
    add("--q-range", type=float, nargs=2, metavar=("INNER", "OUTER"), help="compare patterns only "
        "between these distances from the centre, in detector pixels")  # fmt: skip
    add("--q-center", type=float, nargs=2, metavar=("QX", "QY"), help="centre of --q-range; by "
        "default the origin that the file holds, or the brightest place of the mean "
        "pattern")  # fmt: skip
    add("--sigma", type=float, help="when growing: blur patterns by this many pixels before they "
        "are compared; default 0")  # fmt: skip
    add("--filter", action="store_true", help="apply the correlative filter before patterns are "
        "compared; the averages are still those of the unfiltered scan")  # fmt: skip
    add("--filter-lowrank", action="store_true", help="as --filter, with the low-rank filter, "
        "which has nothing to choose")  # fmt: skip
    add("--corr-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="filter: correlation "
        "below which a neighbour has no weight, and above which it has full weight; default 0.85 "
        "0.95")  # fmt: skip
    add("--filter-sigma", type=float, help="filter: blur before patterns are correlated, in "
        "pixels; default 3")  # fmt: skip
    add("--filter-radius", type=float, help="filter: distance of the farthest neighbour, in "
        "positions; default 4")  # fmt: skip
    add("--filter-edge", type=int, help="filter: border of the detector that is left out, in "
        "pixels; default 12")  # fmt: skip
    add("--figures", type=Path, metavar="DIR", help="folder for figures (PNG)")
    add("--report", type=Path, metavar="FILE", help="page to write (HTML) with figures, tables, "
        "settings and a paragraph for the methods of a paper; it is one file, that can be sent by "
        "mail and opened in any browser")  # fmt: skip
    add("--n-jobs", type=int, help=_N_JOBS)
    add("--max-memory", metavar="SIZE", help=_MAX_MEMORY)
    add("--quiet", action="store_true", help="show no progress bars")


def _add_opening_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `open_scan`."""
    add = command.add_argument
    add("--dataset", "--key", dest="dataset", metavar="NAME", help="name of the scan in a file "
        "that holds several")  # fmt: skip
    add("--scan-shape", type=int, nargs=2, metavar=("RX", "RY"), help="shape of the scan, for "
        "files that do not hold it")  # fmt: skip
    add("--skip-frames", type=int, nargs="+", metavar="N", help="frames to drop before the first "
        "row; a second number drops frames after the last row")  # fmt: skip
    add("--flyback", type=int, default=0, metavar="N", help="frames to drop at the end of each row")
    add("--hot-pixels", action="store_true", help="find hot and dead pixels of the detector, and "
        "treat them as --bad-pixels says")  # fmt: skip
    add("--bad-pixels", choices=BAD_PIXELS, default="fill", help="fill pixels that the detector "
        "marks as bad from their neighbours, make them missing, or keep them; default "
        "fill")  # fmt: skip
    add("--saturated", choices=SATURATED, help="stop at saturated counts, make them missing, or "
        "keep them; default raise for files of Dectris, keep for others")  # fmt: skip


_N_JOBS = "number of threads; by default all cores that the process may use"

_STEP = (
    "distance between scan positions, such as 3.03 nm; by default the distance that the file holds"
)

_MAX_MEMORY = "memory that the work may take, such as 1GB"


def _add_segmentation(commands: Any) -> None:
    segmentation = commands.add_parser(
        "segmentation",
        help="how well methods find the grains",
        description="Segment simulated scans by several methods, compare with the truth, and write "
        "segmentation.csv, .md and .png. k-means, NMF and Ward do not recognise the liquid. They "
        "are given an advantage: they are told the number of grains, and a cluster that is mostly "
        "liquid by the truth counts as background.",
        examples="""
            py4dstem-clustering benchmark segmentation --out results --electrons 100 1000 --seeds 5
        """,
    )
    _add_simulated_scans(segmentation, "30 100 1000 10000 100000", 20, "100 to 163")
    add = segmentation.add_argument
    add("--methods", nargs="+", metavar="METHOD", help="some of paper, best-threshold, "
        "auto-threshold, merge, k-means, nmf, ward; by default all")  # fmt: skip
    add("--easy", action="store_true", help="simulate perfect grains with sharp borders")
    segmentation.set_defaults(run=run_segmentation)


def _add_samples(commands: Any) -> None:
    samples = commands.add_parser(
        "samples",
        help="how well methods find the grains of many kinds of sample",
        description="Segment simulated films, foils, twins, polymers, particles and others by "
        "several methods, compare with the truth, and write samples.csv and .md. k-means, NMF and "
        "Ward are told the number of grains and what is background; the paper's threshold is the "
        "best one by the truth.",
        examples="""
            py4dstem-clustering benchmark samples --out results --electrons 1000 --seeds 1
        """,
    )
    _add_simulated_scans(samples, "100 1000 10000", 3, "100 to 163")
    add = samples.add_argument
    add("--kinds", nargs="+", metavar="KIND", help="some of the kinds of simulate_sample; by "
        "default all")  # fmt: skip
    add("--methods", nargs="+", metavar="METHOD", help="some of paper, best-threshold, "
        "auto-threshold, merge, k-means, nmf, ward; by default best-threshold, merge, k-means, "
        "nmf, ward")  # fmt: skip
    samples.set_defaults(run=run_samples)


def _add_overlaps(commands: Any) -> None:
    overlaps = commands.add_parser(
        "overlaps",
        help="how well grains that lie above one another are found",
        description="Simulate stacked particles, cores in shells and a film of inclined grains, "
        "find grains by several methods, compare supports, shares and pure patterns with the "
        "truth, and write overlaps.csv and .md. k-means and NMF are told the number of grains and "
        "what is background.",
        examples="""
            py4dstem-clustering benchmark overlaps --out results --electrons 1000 --seeds 1
        """,
    )
    _add_simulated_scans(overlaps, "300 1000 3000 10000", 3, "100 to 163")
    add = overlaps.add_argument
    add("--kinds", nargs="+", metavar="KIND", help="some of stacked, core-shell, film; by default "
        "all")  # fmt: skip
    add("--scattering", nargs="+", metavar="WAY", help="some of kinematical, two-beam, bloch; by "
        "default all")  # fmt: skip
    add("--methods", nargs="+", metavar="METHOD", help="some of overlaps, cluster, k-means, nmf, "
        "vectors (clustered Bragg vectors); by default all")  # fmt: skip
    overlaps.set_defaults(run=run_overlaps)


def _add_orientation(commands: Any) -> None:
    orientation = commands.add_parser(
        "orientation",
        help="how well orientations and strains are found",
        description="Find orientations and strains of simulated gold grains with py4DSTEM, from "
        "averages and from single patterns, compare with the truth, and write orientation.csv "
        "and .md.",
        examples="""
            py4dstem-clustering benchmark orientation --out results --electrons 1000 --seeds 2
        """,
    )
    _add_simulated_scans(orientation, "100 300 1000 3000 10000", 10, "40 to 59")
    orientation.add_argument(
        "--dynamical",
        action="store_true",
        help="Bloch-wave patterns of five materials instead, at 1000 and 10000 electrons, with "
        "true labels and with clusters: orientation_dynamical.csv and .md. This takes hours; with "
        "--materials gold --seeds 2 --electrons 10000, minutes",
    )
    orientation.add_argument(
        "--materials",
        nargs="+",
        metavar="NAME",
        help="with --dynamical: some of gold, aluminium, silicon, NaCl, magnesium, titanium; by "
        "default all but aluminium",
    )
    orientation.set_defaults(run=run_orientation)


def _add_series_benchmark(commands: Any) -> None:
    series = commands.add_parser(
        "series",
        help="how well particles are followed through a series",
        description="Follow simulated particles that nucleate, grow, turn, coalesce and dissolve "
        "in a drifting scan, compare with the truth, and write series.csv, particles.csv and "
        "series.md.",
        examples="""
            py4dstem-clustering benchmark series --out results --electrons 1000 --seeds 1
        """,
    )
    _add_simulated_scans(series, "100 300 1000 10000", 5, "100 to 115")
    series.set_defaults(run=run_series_benchmark)


def _add_filters(commands: Any) -> None:
    filters = commands.add_parser(
        "filters",
        help="errors of filtered patterns",
        description="Filter simulated scans of several kinds and doses by both filters, NLPAR and "
        "a truncated SVD, compare with the truth, and write filters.csv, .md and .png.",
        examples="""
            py4dstem-clustering benchmark filters --out results
            py4dstem-clustering benchmark filters --out results --kinds film "gold, bent"
        """,
    )
    _add_simulated_scans(filters, "100 1000 10000", 1, "100 to 115")
    filters.add_argument("--kinds", nargs="+", metavar="KIND", help="kinds of scan; default all")
    filters.set_defaults(run=run_filters)


def _add_simulated_scans(
    command: argparse.ArgumentParser, doses: str, n_seeds: int, tuning: str
) -> None:
    """Add the options of benchmarks on simulated scans; seeds in `tuning` are refused."""
    add = command.add_argument
    add("--out", required=True, type=Path, metavar="DIR", help="folder for results")
    add("--electrons", type=float, nargs="+", help=f"electrons a pattern; default {doses}")
    add("--seeds", type=int, default=n_seeds, metavar="N",
        help=f"number of scans at each dose; default {n_seeds}")  # fmt: skip
    add("--first-seed", type=int, default=0, help=f"seed of the first scan; default 0. Seeds "
        f"{tuning} were used for tuning and are refused")  # fmt: skip
    add("--small", action="store_true", help="simulate tiny scans, to try the command itself")
    add("--quiet", action="store_true", help="show no progress bar")


def _add_memory(commands: Any) -> None:
    memory = commands.add_parser(
        "memory",
        help="time and peak memory of a scan in a file",
        description="Filter to HDF5 by each filter, merge and average a simulated scan in a "
        "temporary folder, each step in a process of its own. A scan of 512 x 512 takes 58 GB in "
        "that folder.",
        examples="""
            py4dstem-clustering benchmark memory --scan 128 128 --max-memory 1GB
        """,
    )
    add = memory.add_argument
    add("--scan", type=int, nargs=2, default=(128, 128), metavar=("RX", "RY"),
        help="shape of the scan; default 128 128")  # fmt: skip
    add("--detector", type=int, nargs=2, default=(192, 192), metavar=("QX", "QY"),
        help="shape of the detector; default 192 192")  # fmt: skip
    add("--max-memory", metavar="SIZE", help=_MAX_MEMORY)
    memory.set_defaults(run=run_memory)


def _add_speed(commands: Any) -> None:
    speed = commands.add_parser(
        "speed",
        help="how fast the kernels are",
        description="Time filter, similarity, averages, blur and growth in one run, beside slow "
        "loops, the published code and other packages, and beside what the memory and the BLAS of "
        "this machine can do.",
        examples="""
            py4dstem-clustering benchmark speed --positions 400 --detector 96
        """,
    )
    add = speed.add_argument
    add("--positions", type=int, default=1600, metavar="N", help="scan positions; default 1600")
    add("--detector", type=int, default=192, metavar="N", help="detector pixels along one axis; "
        "default 192")  # fmt: skip
    add("--turns", type=int, default=5, metavar="N", help="how often each is timed; default 5")
    add("--n-jobs", type=int, help=_N_JOBS)
    add("--kikuchipy", metavar="PYTHON", help="the Python of an environment that has kikuchipy, to "
        "time its similarity too (of the whole detector)")  # fmt: skip
    speed.set_defaults(run=run_speed)


def _add_live(commands: Any) -> None:
    live = commands.add_parser(
        "live",
        help="whether clustering keeps up with a camera",
        description="A simulated camera writes chunk files into a temporary folder at a given "
        "rate; watch_folder and cluster_series follow. Prints for each frame the time from its "
        "last byte to its clusters, and by how much this grows.",
        examples="""
            py4dstem-clustering benchmark live --scan 64 64 --detector 192 192 --rate 1000
        """,
    )
    add = live.add_argument
    add("--scan", type=int, nargs=2, default=(32, 28), metavar=("RX", "RY"),
        help="shape of a frame; default 32 28")  # fmt: skip
    add("--detector", type=int, nargs=2, default=(96, 96), metavar=("QX", "QY"),
        help="shape of the detector; default 96 96")  # fmt: skip
    add("--frames", type=int, default=6, metavar="N", help="number of frames; default 6")
    add("--rate", type=float, default=400.0, metavar="N",
        help="patterns that the camera records in a second; default 400")  # fmt: skip
    add("--settle", type=float, default=0.5, metavar="SECONDS",
        help="a file is complete after so long without change; default 0.5")  # fmt: skip
    add("--workers", type=int, default=0, metavar="N",
        help="processes that share the frames (dask); default 0, none")  # fmt: skip
    add("--n-jobs", type=int, help=_N_JOBS)
    live.set_defaults(run=run_live)
