"""Functions that several commands share: opening a scan, options, masks, figures."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.checks import (
    THRESHOLD_NAMES,
    check_corr_range,
    check_integer,
    check_lag,
    check_memory,
    check_n_jobs,
    check_number,
    check_out,
    check_writable,
)
from ..kernels.virtual import sample_mean
from ..scan.axes import LENGTHS, as_length
from ..scan.calibration import known_centre
from ..scan.datacubes import is_one_of
from ..scan.opening import open_scan

# --- options ---------------------------------------------------------------------------------


def parse_step(size: str, unit: str) -> tuple[float, str]:
    """The scan step that ``--step SIZE UNIT`` gives."""
    known = as_length(unit)
    if known is None:
        raise ValueError(
            f"--step {size} {unit} has a unit that is not known; give one of {', '.join(LENGTHS)}"
        )
    try:
        number = check_number("--step", float(size), 0)
    except ValueError:
        raise ValueError(f"--step {size} {unit} must be a number and a unit") from None
    if number == 0:
        raise ValueError(f"--step {size} {unit} must be above 0")
    return number, known


def opening_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `open_scan` that were given on the command line."""
    skip = options.skip_frames or [0]
    if len(skip) > 2:
        raise ValueError("--skip-frames takes one number, or two: before the scan and after it")
    return {
        "dataset": options.dataset,
        "scan_shape": options.scan_shape and tuple(options.scan_shape),
        "skip_frames": skip[0] if len(skip) == 1 else tuple(skip),
        "flyback": options.flyback,
        "hot_pixels": "auto" if options.hot_pixels else None,
        "bad_pixels": options.bad_pixels,
        "saturated": options.saturated,
    }


def check_before_opening(options: argparse.Namespace) -> None:
    """Refuse, before a file is opened, all values that no scan can make right."""
    thresholds = options.threshold if isinstance(options.threshold, list) else [options.threshold]
    for threshold in thresholds:
        if threshold is not None and options.method == "merge":
            check_number("--threshold", threshold, 0)
        elif threshold is not None:
            _check_similarity(threshold)
    check_lag(options.lag)
    if options.sigma is not None:
        check_number("--sigma", options.sigma, 0)
    if options.filter_sigma is not None:
        check_number("--filter-sigma", options.filter_sigma, 0)
    if options.filter_radius is not None:
        check_number("--filter-radius", options.filter_radius, 0)
    if options.filter_edge is not None:
        check_integer("--filter-edge", options.filter_edge, 0)
    if options.corr_range is not None:
        check_corr_range(tuple(options.corr_range))
    check_integer("min_size", options.min_size, 1)
    check_n_jobs(options.n_jobs)
    check_memory(options.max_memory)
    _check_q_range(options.q_range, options.q_center)


def _check_similarity(threshold: float) -> None:
    """Refuse a threshold of growth that is no similarity."""
    if threshold > 1:
        raise ValueError(
            f"--threshold={threshold} must be a finite number from -1 to 1, a similarity at which "
            "clusters grow; for a level of merging add --method merge, or give --level"
        )
    check_number("--threshold", threshold, -1, 1)


def _check_q_range(q_range: Sequence[float] | None, q_center: Sequence[float] | None) -> None:
    if q_range is None:
        if q_center is not None:
            raise ValueError("--q-center goes with --q-range")
        return
    inner, outer = (check_number("--q-range", value, 0) for value in q_range)
    if not inner < outer:
        raise ValueError(f"--q-range {inner:g} {outer:g} must rise")


def make_q_mask(
    cube: Any, q_range: Sequence[float] | None, q_center: Sequence[float] | None
) -> NDArray[Any] | None:
    """The annulus of the detector that ``--q-range`` and ``--q-center`` give; None without them."""
    if q_range is None:
        return None
    inner, outer = q_range
    if q_center is None:
        q_center = known_centre(cube)
    if q_center is None:
        from scipy.ndimage import gaussian_filter

        # The mean of some patterns from all over the scan is enough to show the direct beam.
        blurred = gaussian_filter(sample_mean(cube.data), 2)
        q_center = np.unravel_index(blurred.argmax(), blurred.shape)
    center = tuple(float(q) for q in q_center)
    return cube.make_detector(cube.Qshape, "annulus", (center, (inner, outer)))


def filter_and_r_mask(options: argparse.Namespace) -> tuple[dict[str, Any], float | str | None]:
    """The options of the correlative filter that were given, and ``--r-mask``."""
    filtering = {
        "corr_range": options.corr_range and tuple(options.corr_range),
        "sigma": options.filter_sigma,
        "radius": options.filter_radius,
        "edge": options.filter_edge,
    }
    filtering = {name: value for name, value in filtering.items() if value is not None}
    if filtering and not options.filter:
        raise ValueError("--corr-range and --filter-... go with --filter")
    if options.filter and options.filter_lowrank:
        raise ValueError("--filter and --filter-lowrank exclude each other; give one of them")
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


def check_other_file(out: Path, files: Iterable[Path]) -> None:
    """Refuse an output file that is also an input file."""
    if is_one_of(out, files):
        raise ValueError(f"--out {out} is the scan itself; give another name")


def is_growth(options: argparse.Namespace) -> bool:
    """Whether clusters are grown as in the paper; otherwise they are merged."""
    filters = options.filter or options.filter_lowrank
    if options.method == "merge" and (filters or options.sigma is not None):
        raise ValueError(
            "--filter, --filter-lowrank and --sigma go with growth; leave them out, or give "
            "--method grow"
        )
    given = options.threshold is not None or filters or options.sigma is not None
    grows = bool(options.method == "grow" or (given and options.method is None))
    merging = {
        "--keep-background": options.keep_background,
        "--level": options.level,
        "--lag": options.lag,
    }
    for name, value in merging.items():
        if grows and value:
            raise ValueError(
                f"{name} goes with merging, not with --method grow, --threshold, --filter or "
                "--sigma"
            )
    if options.level is not None and options.threshold is not None:
        raise ValueError("--level and --threshold exclude each other; give one of them")
    return grows


def common_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options that nearly every call takes: threads, memory and progress bar."""
    return {
        "n_jobs": options.n_jobs,
        "max_memory": options.max_memory,
        "progress_bar": not options.quiet,
    }


def load_datacube(path: Path, opening: dict[str, Any], step: tuple[float, str] | None) -> Any:
    """Open a scan as a DataCube, and set its scan step if one is given."""
    try:
        scan = open_scan(path, **opening)
    except (ValueError, TypeError, OSError) as error:
        # The errors name the arguments of Python.
        text = re.sub(r"\bgive scan_shape\b", "give --scan-shape", str(error))
        for name in ("scan_shape", "skip_frames", "dataset"):
            text = re.sub(rf"\b{name}=", f"--{name.replace('_', '-')} ", text)
        raise type(error)(text) from error
    if step is not None:
        scan.calibration.set_R_pixel_size(step[0])
        scan.calibration.set_R_pixel_units(step[1])
    return scan


# --- files and figures -----------------------------------------------------------------------


def draw_overview(
    folder: Path, similarity: Any, clusters: Any, averages: Any = None, image: Any = None
) -> None:
    """Write a figure of the clusters, and of similarity, growth and averages if given."""
    from .. import plotting

    grown = similarity is not None
    pictures: dict[str, Callable[[Any], Any]] = {
        clusters.name: lambda ax: plotting.plot_clusters(clusters, ax, image=image, seeds=grown),
    }
    if grown:
        pictures["similarity"] = lambda ax: plotting.plot_similarity(similarity, ax)
        pictures[f"{clusters.name}_growth"] = lambda ax: plotting.plot_growth(clusters, ax)
    if averages is not None:
        pictures["averages"] = lambda ax: plotting.plot_averages(averages, ax)
    for name, draw in pictures.items():
        figure = _new_figure()
        draw(figure.add_subplot())
        figure.savefig(folder / f"{name}.png", dpi=_DPI)


def save_figure(path: Path, draw: Callable[[Any], object]) -> None:
    """Call `draw` with a new figure, and write the figure without showing a window."""
    figure = _new_figure()
    draw(figure)
    figure.savefig(path, dpi=_DPI)


_DPI = 200


def _new_figure() -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def make_folder(folder: Path) -> Path:
    """Make a folder for results, unless it is there already."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder / "figure.png")
    return folder


def check_report(path: Path | None, files: Iterable[Path]) -> Path | None:
    """Check the name of the page to write, before any work; None if there is to be none."""
    if path is None:
        return None
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--report {path} must end in .html")
    if is_one_of(path, files):
        raise ValueError(f"--report {path} is another file of this command; give another name")
    return check_out(path, True, "--report")


def program_name() -> str:
    """What the user typed to start the program."""
    as_module = Path(sys.argv[0]).parts[-2:] == ("py4dstem_clustering", "__main__.py")
    return "python -m py4dstem_clustering" if as_module else "py4dstem-clustering"


def command_line(options: argparse.Namespace) -> str:
    """The command as the user typed it, in quotes where a shell needs them."""
    return f"{program_name()} {shlex.join(options.typed)}"


def time_since(start: float) -> str:
    """Seconds since `start`, a value of ``time.perf_counter()``, as text."""
    return f"{time.perf_counter() - start:.3g} s"
