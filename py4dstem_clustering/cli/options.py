"""Functions that several commands share: opening a scan, options, masks, figures."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.checks import THRESHOLD_NAMES, check_number
from ..kernels.virtual import sample_mean
from ..scan.calibration import known_centre
from ..scan.datacubes import is_one_of
from ..scan.loading import load_scan

# --- options ---------------------------------------------------------------------------------


def parse_step(size: str, unit: str) -> tuple[float, str]:
    """The scan step that ``--step SIZE UNIT`` gives."""
    try:
        return check_number("--step", float(size), 0), unit
    except ValueError:
        raise ValueError(f"--step {size} {unit} must be a number and a unit") from None


def make_q_mask(
    cube: Any, q_range: Sequence[float] | None, q_center: Sequence[float] | None
) -> NDArray[Any] | None:
    """The annulus of the detector that ``--q-range`` and ``--q-center`` give; None without them."""
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
    grows = options.threshold is not None or filters or options.sigma is not None
    if grows and options.keep_background:
        raise ValueError("--keep-background goes with merging, not with --threshold")
    return grows


def common_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options that nearly every call takes: threads, memory and progress bar."""
    return {
        "n_jobs": options.n_jobs,
        "max_memory": options.max_memory,
        "progress_bar": not options.quiet,
    }


def load_datacube(
    path: Path, key: str | None, scan_shape: tuple[int, int] | None, step: tuple[float, str] | None
) -> Any:
    """Open a scan as a DataCube, and set its scan step if one is given."""
    scan = load_scan(path, key, scan_shape)
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
    return folder


def time_since(start: float) -> str:
    """Seconds since `start`, a value of ``time.perf_counter()``, as text."""
    return f"{time.perf_counter() - start:.3g} s"
