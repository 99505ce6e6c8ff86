"""The command ``series``: cluster the scans of an in-situ experiment."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..base.checks import check_number, check_out
from .options import (
    check_before_opening,
    check_other_file,
    check_report,
    command_line,
    common_options,
    filter_and_r_mask,
    is_growth,
    load_datacube,
    make_folder,
    make_q_mask,
    opening_options,
    parse_step,
    save_figure,
    time_since,
)

_N_PRINTED = 30
"""Number of tracks that are printed."""


def run_series(options: argparse.Namespace) -> None:
    """Cluster the scans of a series, follow the grains, and write the file and the figures."""
    from ..series.run import cluster_series

    check_other_file(options.out, options.files)
    check_out(options.out, True, "--out")
    check_before_opening(options)
    filtering, r_mask = filter_and_r_mask(options)
    step = None if options.step is None else parse_step(*options.step)
    time_step, time_units = 1.0, "frames"
    if options.time_step is not None:
        time_units = options.time_step[1]
        try:
            time_step = check_number("--time-step", float(options.time_step[0]), 0)
        except ValueError:
            raise ValueError(f"--time-step {options.time_step[0]} must be a number") from None
    grows = is_growth(options)
    figures = options.figures and make_folder(options.figures)
    report = check_report(options.report, [*options.files, options.out])
    load = partial(load_datacube, opening=opening_options(options), step=step)
    q_mask = None
    if options.q_range is not None or options.q_center is not None:
        q_mask = make_q_mask(load(options.files[0]), options.q_range, options.q_center)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*failed, see series.errors")  # printed below
        series = cluster_series(
            options.files,
            out=options.out,
            filter="lowrank" if options.filter_lowrank else filtering or options.filter,
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
            level=options.level,
            lag=options.lag,
            sigma=options.sigma,
            drop_background=None if grows else not options.keep_background,
            **common_options(options),
        )
    print(f"clustered in {time_since(start)}: {series}")
    for frame, error in series.errors.items():
        print(f"frame {frame} failed: {error}", file=sys.stderr)
    if len(series.errors) < len(series):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            tracks = series.tracks()
        for warning in found:
            print(f"check: {warning.message}")
        if not len(tracks):
            print("check: no scan has a cluster; what does --keep-background find?")
        print(f"followed: {tracks}")
        unit = next(c.pixel_units for c in series if c is not None)
        _print_tracks(tracks, series.time_units, unit)
        if figures is not None:
            _draw_series(figures, series, tracks, unit)
        if report is not None:
            from ..exporting.report import write_series_report

            write_series_report(report, series, tracks, command=command_line(options))
            print(f"wrote {report}")
    print(f"wrote {options.out}")
    if len(series.errors) == len(series):
        raise ValueError(f"no scan could be clustered; {options.out} holds only the errors")


def _draw_series(folder: Path, series: Any, tracks: Any, pixel_units: str) -> None:
    from .. import plotting

    def areas(figure: Any) -> None:
        plotting.plot_areas(
            tracks, figure.add_subplot(), time_units=series.time_units, pixel_units=pixel_units
        )

    def outlines(figure: Any) -> None:
        plotting.plot_tracks(series, figure.add_subplot(), tracks=tracks)

    save_figure(folder / "tracks.png", outlines)
    save_figure(folder / "areas.png", areas)
    plotting.animate_series(series, folder / "series.gif", tracks=tracks)


def _print_tracks(tracks: Any, time_units: str, unit: str) -> None:
    """Print the tracks that were seen in most frames."""
    print(
        f"\n{'track':>5} {'frames':>12} {'seen':>5} {f'last area / {unit}²':>18}  "
        f"growth / ({unit}² / {time_units})"
    )
    longest = sorted(tracks, key=lambda track: -len(track))
    for track in sorted(longest[:_N_PRINTED], key=lambda track: track.number):
        rate, error = track.growth_rate()
        first, last = track.frames[[0, -1]]
        growth = f"{rate:.3g} ± {error:.2g}" if np.isfinite(error) else "-"
        growth += " *" if track.table["touches_border"].any() else ""
        print(
            f"{track.number:>5} {f'{first} to {last}':>12} {len(track):>5} "
            f"{track.areas[-1]:>18.4g}  {growth}"
        )
    if tracks["touches_border"].any():
        print("* touches the border of the scan: what lies outside is not counted")
    if len(longest) > _N_PRINTED:
        print(f"and {len(longest) - _N_PRINTED} shorter tracks")
