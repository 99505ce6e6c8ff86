"""The command line: ``python -m py4dstem_clustering demo|cluster|series|benchmark``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ._version import __version__
from .base.checks import THRESHOLD_NAMES, check_integer, check_n_jobs, check_number, check_out
from .emd import writing
from .kernels.virtual import sample_mean
from .scan.calibration import known_centre
from .scan.datacubes import files_of, is_one_of
from .scan.loading import load_scan


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 when it is done, 2 after an error of the user, 130 after Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("interrupted; nothing half-written is left", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, MemoryError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"{parser.prog}: error: {text}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
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
    demo.set_defaults(run=_demo)

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
    cluster.set_defaults(run=_cluster)

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
    series.set_defaults(run=_series)

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
    segmentation.set_defaults(run=_segmentation)


def _add_orientation(commands: Any) -> None:
    orientation = commands.add_parser(
        "orientation",
        help="how well orientations and strains come back",
        description="Orientations and strains of simulated gold grains, by py4DSTEM from averages "
        "and from single patterns, against the truth: orientation.csv and .md.",
    )
    _add_scans(orientation, "100 300 1000 3000 10000", 10, "40 to 59")
    orientation.set_defaults(run=_orientation)


def _add_series(commands: Any) -> None:
    series = commands.add_parser(
        "series",
        help="how well particles are followed through a series",
        description="Simulated particles that nucleate, grow, turn, coalesce and dissolve in a "
        "drifting scan, followed, against the truth: series.csv, particles.csv and series.md.",
    )
    _add_scans(series, "100 300 1000 10000", 5, "100 to 115")
    series.set_defaults(run=_benchmark_series)


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
    memory.set_defaults(run=_memory)


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
    speed.set_defaults(run=_speed)


# --- cluster ---------------------------------------------------------------------------------


def _step(size: str, unit: str) -> tuple[float, str]:
    try:
        return check_number("--step", float(size), 0), unit
    except ValueError:
        raise ValueError(f"--step {size} {unit} must be a number and a unit") from None


def _q_mask(cube: Any, q_range: Any, q_center: Any) -> np.ndarray | None:
    if q_range is None:
        if q_center is not None:
            raise ValueError("--q-center goes with --q-range")
        return None
    inner, outer = (check_number("--q-range", value, 0) for value in q_range)
    if not inner < outer:
        raise ValueError(f"--q-range {inner:g} {outer:g} must rise")
    if q_center is None:
        q_center = known_centre(cube)
    if q_center is None:
        from scipy.ndimage import gaussian_filter

        # The mean of some patterns all over the scan shows the direct beam well enough.
        blurred = gaussian_filter(sample_mean(cube.data), 2)
        q_center = np.unravel_index(blurred.argmax(), blurred.shape)
    center = tuple(float(q) for q in q_center)
    return cube.make_detector(cube.Qshape, "annulus", (center, (inner, outer)))


def _filter_and_r_mask(options: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    filtering = {
        "corr_range": options.corr_range and tuple(options.corr_range),
        "sigma": options.filter_sigma,
        "radius": options.filter_radius,
        "edge": options.filter_edge,
    }
    filtering = {name: value for name, value in filtering.items() if value is not None}
    if filtering and not options.filter:
        raise ValueError("--corr-range and --filter-... go with --filter")
    r_mask = options.r_mask
    if r_mask is not None and r_mask not in THRESHOLD_NAMES:
        try:
            r_mask = check_number("--r-mask", float(r_mask), -1, 1)
        except ValueError:
            names = ", ".join(THRESHOLD_NAMES)
            raise ValueError(
                f"--r-mask {r_mask} must be a number from -1 to 1 or one of {names}"
            ) from None
    return filtering, r_mask


def _check_other(out: Path, files: Iterable[Path]) -> None:
    """What is written must not replace what is read."""
    if is_one_of(out, files):
        raise ValueError(f"--out {out} is the scan itself; give another name")


def _grows(options: argparse.Namespace) -> bool:
    """Whether clusters are grown, as in the paper, and not merged."""
    grows = options.threshold is not None or options.filter or options.sigma is not None
    if grows and options.keep_background:
        raise ValueError("--keep-background goes with merging, not with --threshold")
    return grows


def _common(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "n_jobs": options.n_jobs,
        "max_memory": options.max_memory,
        "progress_bar": not options.quiet,
    }


def _load(
    path: Path, key: str | None, scan_shape: tuple[int, int] | None, step: tuple[float, str] | None
) -> Any:
    scan = load_scan(path, key, scan_shape)
    if step is not None:
        scan.calibration.set_R_pixel_size(step[0])
        scan.calibration.set_R_pixel_units(step[1])
    return scan


def _cluster(options: argparse.Namespace) -> None:
    from .grains.averages import keep_clusters

    if options.out.exists() and not options.overwrite:
        raise ValueError(f"--out {options.out} exists; give another name, or --overwrite")
    path = check_out(options.out, options.overwrite)
    _check_other(path, [options.file])
    grows = _grows(options)
    filtering, r_mask = _filter_and_r_mask(options)
    step = None if options.step is None else _step(*options.step)
    figures = _make_folder(options.figures)
    start = time.perf_counter()
    scan = _load(options.file, options.key, options.scan_shape, step)
    _check_other(path, files_of(scan.data))
    common = _common(options)
    shape = " x ".join(map(str, scan.data.shape))
    print(f"{options.file}: {shape}, {scan.data.dtype}, opened in {_since(start)}")

    q_mask = _q_mask(scan, options.q_range, options.q_center)

    if not grows:
        start = time.perf_counter()
        clusters = scan.cluster(
            min_size=options.min_size,
            r_mask=r_mask,
            q_mask=q_mask,
            drop_background=not options.keep_background,
            **common,
        )
        print(f"merged in {_since(start)}: {clusters}")
        found, similarity = [clusters], None
    else:
        found, similarity = _grow(scan, options, filtering, q_mask, r_mask, common)
    found.sort(key=lambda clusters: clusters.n_clusters > 0)  # those without clusters first
    start = time.perf_counter()
    averages = scan.get_clustered_datacube(found[-1], **common)
    print(f"averaged {found[-1].name!r} in {_since(start)}")
    for clusters in found:
        keep_clusters(averages, clusters)
    writing.save_new(path, averages)
    print(f"wrote {path}")
    if figures is not None:
        for clusters in found:
            _draw(figures, similarity, clusters, averages if clusters is found[-1] else None)


def _grow(
    scan: Any,
    options: argparse.Namespace,
    filtering: dict[str, Any],
    q_mask: Any,
    r_mask: Any,
    common: dict[str, Any],
) -> tuple[list[Any], Any]:
    """The paper's way: filter, compare, grow at each threshold."""
    source = scan
    if options.filter:
        start = time.perf_counter()
        source = scan.filter_correlative(**filtering, **common)
        print(f"filtered in {_since(start)}")
    start = time.perf_counter()
    similarity = source.get_similarity(q_mask=q_mask, sigma=options.sigma or 0, **common)
    print(f"compared in {_since(start)}: {similarity}")
    thresholds = options.threshold or [0.9]
    found = []
    for threshold in thresholds:
        start = time.perf_counter()
        clusters = source.cluster(
            threshold=threshold,
            min_size=options.min_size,
            r_mask=r_mask,
            similarity=similarity,
            name=f"clusters_{threshold}" if len(thresholds) > 1 else "clusters",
        )
        found.append(clusters)
        print(f"threshold {threshold}, {_since(start)}: {clusters}")
    return found, similarity


# --- series ----------------------------------------------------------------------------------


def _series(options: argparse.Namespace) -> None:
    from .series.run import cluster_series

    _check_other(options.out, options.files)
    filtering, r_mask = _filter_and_r_mask(options)
    step = None if options.step is None else _step(*options.step)
    time_step, time_units = 1.0, "frames"
    if options.time_step is not None:
        time_units = options.time_step[1]
        try:
            time_step = check_number("--time-step", float(options.time_step[0]), 0)
        except ValueError:
            raise ValueError(f"--time-step {options.time_step[0]} must be a number") from None
    grows = _grows(options)
    figures = _make_folder(options.figures)
    load = partial(_load, key=options.key, scan_shape=options.scan_shape, step=step)
    q_mask = None
    if options.q_range is not None or options.q_center is not None:
        q_mask = _q_mask(load(options.files[0]), options.q_range, options.q_center)
    start = time.perf_counter()
    series = cluster_series(
        options.files,
        out=options.out,
        filter=filtering or options.filter,
        load=load,
        times=time_step,
        time_units=time_units,
        resume=not options.overwrite,
        overwrite=options.overwrite,
        min_size=options.min_size,
        q_mask=q_mask,
        r_mask=r_mask,
        method="grow" if grows else "merge",
        threshold=options.threshold,
        sigma=options.sigma,
        drop_background=None if grows else not options.keep_background,
        **_common(options),
    )
    print(f"clustered in {_since(start)}: {series}")
    for frame, error in series.errors.items():
        print(f"frame {frame} failed: {error}", file=sys.stderr)
    if len(series.errors) < len(series):
        tracks = series.tracks()
        print(f"followed: {tracks}")
        unit = next(c.pixel_units for c in series if c is not None)
        _print_tracks(tracks, series.time_units, unit)
        if figures is not None:
            _draw_series(figures, series, tracks, unit)
    print(f"wrote {options.out}")


def _draw_series(folder: Path, series: Any, tracks: Any, pixel_units: str) -> None:
    from . import plotting

    def areas(figure: Any) -> None:
        plotting.plot_areas(
            tracks, figure.add_subplot(), time_units=series.time_units, pixel_units=pixel_units
        )

    def outlines(figure: Any) -> None:
        plotting.plot_tracks(series, figure.add_subplot(), tracks=tracks)

    _save(folder / "tracks.png", outlines)
    _save(folder / "areas.png", areas)
    plotting.animate_series(series, folder / "series.gif", tracks=tracks)


def _print_tracks(tracks: Any, time_units: str, unit: str) -> None:
    """The tracks that were seen most often."""
    print(
        f"\n{'track':>5} {'frames':>12} {'seen':>5} {f'last area / {unit}²':>18}  "
        f"growth / ({unit}² / {time_units})"
    )
    most = 30
    longest = sorted(tracks, key=lambda track: -len(track))
    for track in sorted(longest[:most], key=lambda track: track.number):
        rate, error = track.growth_rate()
        first, last = track.frames[[0, -1]]
        growth = f"{rate:.3g} ± {error:.2g}" if np.isfinite(error) else "-"
        print(
            f"{track.number:>5} {f'{first} to {last}':>12} {len(track):>5} "
            f"{track.areas[-1]:>18.4g}  {growth}"
        )
    if len(longest) > most:
        print(f"and {len(longest) - most} shorter ones")


# --- demo ------------------------------------------------------------------------------------


def _demo(options: argparse.Namespace) -> None:
    from .simulate.scan import simulate_scan

    check_number("--electrons", options.electrons, 0)
    folder = _make_folder(options.out)
    start = time.perf_counter()
    truth = simulate_scan(electrons=options.electrons, seed=options.seed)
    scan = truth.datacube
    print(f"simulated {' x '.join(map(str, scan.data.shape))} in {_since(start)}")

    clusters = scan.cluster(progress_bar=False)
    averages = scan.get_clustered_datacube(clusters, progress_bar=False)
    print(f"clustered and averaged in {_since(start)}: {clusters}")

    # The paper's way beside it. Low counts correlate little, so the range is not the published one.
    filtered = scan.filter_correlative(corr_range="auto", progress_bar=False)
    centre = tuple((n - 1) / 2 for n in scan.Qshape)
    q_mask = scan.make_detector(scan.Qshape, "annulus", (centre, (6, min(centre))))
    similarity = filtered.get_similarity(q_mask=q_mask, progress_bar=False)
    grown = filtered.cluster(
        threshold=0.9, min_size=5, r_mask="triangle", similarity=similarity, name="grown"
    )
    print(f"filtered, compared and grown in {_since(start)}: {grown}")

    writing.save_new(folder / "demo.h5", scan)
    writing.save_new(folder / "averages.h5", averages)
    dark_field = scan.data[..., q_mask].sum(axis=-1, dtype=np.float64)
    _draw(folder, None, clusters, averages, dark_field)
    _draw(folder, similarity, grown, None, dark_field)
    _save(folder / "overview.png", lambda figure: _overview(figure, dark_field, clusters, averages))
    print(f"wrote demo.h5, averages.h5 and figures to {folder}")
    _print_table(clusters, truth.labels)


def _print_table(clusters: Any, truth: np.ndarray) -> None:
    """Each cluster beside the simulated grain that it overlaps best."""
    print(f"\n{'cluster':>7} {'positions':>9} {'area / nm²':>10} {'similarity':>10}  known grain")
    for row in clusters.properties():
        member = clusters.labels == row["label"]
        names, counts = np.unique(truth[member], return_counts=True)
        grain = names[counts.argmax()]
        iou = counts.max() / (member | (truth == grain)).sum()
        name = "liquid" if grain < 0 else f"grain {grain}"
        print(
            f"{row['label']:>7} {row['size']:>9} {row['area'] / 100:>10.0f} "
            f"{row['similarity']:>10.3f}  {name}, intersection over union {iou:.2f}"
        )


# --- benchmark -------------------------------------------------------------------------------


def _scans_of(options: argparse.Namespace, benchmark: Any) -> tuple[range, Any, Path]:
    """Seeds, doses and folder of a benchmark on simulated scans."""
    from .benchmarks.segmentation import check_seeds

    seeds = check_seeds(options.first_seed, options.seeds, benchmark.TUNING_SEEDS)
    doses = options.electrons or benchmark.ELECTRONS
    for electrons in doses:
        check_number("--electrons", electrons, 1, 1e9)
    return seeds, doses, _make_folder(options.out)


def _segmentation(options: argparse.Namespace) -> None:
    from .benchmarks import segmentation as benchmark

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
    _save(folder / "segmentation.png", lambda figure: benchmark.draw(figure, results))
    print(f"wrote segmentation.csv, .md and .png to {folder} in {_since(start)}")


def _orientation(options: argparse.Namespace) -> None:
    from .benchmarks import orientation as benchmark
    from .benchmarks.segmentation import write_csv

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
    print(f"wrote orientation.csv and .md to {folder} in {_since(start)}")


def _benchmark_series(options: argparse.Namespace) -> None:
    from .benchmarks import series as benchmark
    from .benchmarks.segmentation import write_csv

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
    print(f"wrote series.csv, particles.csv and series.md to {folder} in {_since(start)}")


def _memory(options: argparse.Namespace) -> None:
    from .benchmarks import memory as benchmark

    rows = benchmark.run_benchmark(
        tuple(options.scan), tuple(options.detector), max_memory=options.max_memory
    )
    for i, row in enumerate(rows):
        if i == 0:
            print(benchmark.HEAD)
        print(benchmark.text_line(row), flush=True)


def _speed(options: argparse.Namespace) -> None:
    from .benchmarks import speed as benchmark

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


# --- shared ----------------------------------------------------------------------------------


def _draw(
    folder: Path, similarity: Any, clusters: Any, averages: Any = None, image: Any = None
) -> None:
    from . import plotting

    grown = similarity is not None
    pictures = {
        clusters.name: lambda ax: plotting.plot_clusters(clusters, ax, image=image, seeds=grown),
    }
    if grown:
        pictures["similarity"] = lambda ax: plotting.plot_similarity(similarity, ax)
        pictures[f"{clusters.name}_growth"] = lambda ax: plotting.plot_growth(clusters, ax)
    if averages is not None:
        pictures["averages"] = lambda ax: plotting.plot_averages(averages, ax)
    for name, draw in pictures.items():
        _save(folder / f"{name}.png", lambda figure, draw=draw: draw(figure.add_subplot()))


def _overview(figure: Any, image: np.ndarray, clusters: Any, averages: Any) -> None:
    """The whole way in one picture: scan, clusters, averages."""
    from . import plotting

    figure.set_size_inches(11, 4)
    left, middle, right = figure.subplots(1, 3)
    plotting.plot_clusters(
        clusters.remove(range(clusters.n_clusters)), left, image=image, title="dark field"
    )
    plotting.plot_clusters(clusters, middle, image=image, title="clusters")
    plotting.plot_averages(averages, right).set_title("cluster averages")


def _save(path: Path, draw: Any) -> None:
    """Draw on a figure that no window shows, and write it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    figure.savefig(path, dpi=200)


def _make_folder(folder: Path | None) -> Path | None:
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _since(start: float) -> str:
    return f"{time.perf_counter() - start:.3g} s"


if __name__ == "__main__":
    sys.exit(main())
