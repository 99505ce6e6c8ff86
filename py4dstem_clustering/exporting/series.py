"""The tracks of a series as files of other programs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import h5py

from ..series.result import ClusterSeries, open_series
from .files import write_table, write_tiff


def series_of(source: Any) -> ClusterSeries | None:
    """The series that `source` is, or that lies in its file; None if it is something else."""
    if isinstance(source, ClusterSeries):
        return source
    if isinstance(source, (str, PathLike)) and h5py.is_hdf5(source):
        with suppress(ValueError):
            return open_series(source)
    return None


def series_work(series: ClusterSeries) -> dict[str, Callable[[Path], None]]:
    """Functions that write the tracks of a series, by the names of the files."""
    tracks = series.tracks()
    clusters = next((found for found in series if found is not None), None)
    step = (1.0, "pixels") if clusters is None else (clusters.pixel_size, clusters.pixel_units)
    units = {"time": series.time_units}
    return {
        "tracks.csv": partial(
            write_table, rows=tracks.table, units=units | {"area": f"{step[1]}^2"}
        ),
        "events.csv": partial(write_table, rows=tracks.events, units=units),
        "tracks.tif": partial(write_tiff, labels=tracks.maps(series), step=step),
    }
