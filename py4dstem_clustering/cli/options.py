"""What several commands share: opening a scan, masks, figures, saving."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.checks import THRESHOLD_NAMES, check_number
from ..kernels.virtual import sample_mean
from ..scan.calibration import known_centre
from ..scan.datacubes import is_one_of
from ..scan.loading import load_scan

# --- cluster ---------------------------------------------------------------------------------


def parse_step(size: str, unit: str) -> tuple[float, str]:
    try:
        return check_number("--step", float(size), 0), unit
    except ValueError:
        raise ValueError(f"--step {size} {unit} must be a number and a unit") from None


def make_q_mask(cube: Any, q_range: Any, q_center: Any) -> NDArray[Any] | None:
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


def filter_and_r_mask(options: argparse.Namespace) -> tuple[dict[str, Any], Any]:
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


def check_other_file(out: Path, files: Iterable[Path]) -> None:
    """What is written must not replace what is read."""
    if is_one_of(out, files):
        raise ValueError(f"--out {out} is the scan itself; give another name")


def is_growth(options: argparse.Namespace) -> bool:
    """Whether clusters are grown, as in the paper, and not merged."""
    grows = options.threshold is not None or options.filter or options.sigma is not None
    if grows and options.keep_background:
        raise ValueError("--keep-background goes with merging, not with --threshold")
    return grows


def common_options(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "n_jobs": options.n_jobs,
        "max_memory": options.max_memory,
        "progress_bar": not options.quiet,
    }


def load_datacube(
    path: Path, key: str | None, scan_shape: tuple[int, int] | None, step: tuple[float, str] | None
) -> Any:
    scan = load_scan(path, key, scan_shape)
    if step is not None:
        scan.calibration.set_R_pixel_size(step[0])
        scan.calibration.set_R_pixel_units(step[1])
    return scan


# --- shared ----------------------------------------------------------------------------------


def draw_overview(
    folder: Path, similarity: Any, clusters: Any, averages: Any = None, image: Any = None
) -> None:
    from .. import plotting

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
        save_figure(folder / f"{name}.png", lambda figure, draw=draw: draw(figure.add_subplot()))


def save_figure(path: Path, draw: Any) -> None:
    """Draw on a figure that no window shows, and write it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    figure.savefig(path, dpi=200)


def make_folder(folder: Path | None) -> Path | None:
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def time_since(start: float) -> str:
    return f"{time.perf_counter() - start:.3g} s"
