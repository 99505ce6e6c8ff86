"""Figures of a series through time: outlines, areas, and a film.

As in `plotting`, every function but the film draws into `ax` and returns it; none calls ``show()``.
"""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.patheffects
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FFMpegWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from .base.checks import check_choice, check_flag, check_integer, check_number, check_out, values_of
from .emd.writing import complete_or_absent
from .plotting import (
    add_scale_bar,
    axes_or_new,
    bare_frame,
    free_corner,
    grey_limits,
    pair_colors,
    write_text,
)

WIDTH = 85 / 25.4
"""Width of a column of a journal, inches."""

# Of plasma without its darkest end: outlines stand out from greys that are dark throughout.
TIME_COLORS = ListedColormap(plt.get_cmap("plasma")(np.linspace(0.3, 1, 256)), "time")

_GREYS = ListedColormap(plt.get_cmap("gray")(np.linspace(0.05, 0.55, 256)), "dark grey")

_EDGE = "0.25"

_DASHES = {"merge": "-", "split": (0, (2, 1))}


# --- what is common ------------------------------------------------------------------------------


def track_colors(tracks: Any) -> np.ndarray:
    """RGB of each track ``(N, 3)``, the same in all figures.

    Tracks that come near each other, at any time, never share a colour, nor do those that split or
    merge, nor those that follow each other in number.
    """
    n = tracks.n_tracks
    rows = tracks.table[tracks.table["track"] >= 0]
    number, counts = rows["track"], np.bincount(rows["track"], minlength=n)
    places = np.stack([rows["place_rx"], rows["place_ry"]], axis=1)
    means = np.stack([np.bincount(number, x, n) / counts for x in places.T], axis=1)
    reach = np.zeros(n)
    ranges = np.hypot(*(places - means[number]).T) + np.sqrt(rows["size"] / np.pi)
    np.maximum.at(reach, number, ranges)
    pairs = [np.stack([np.arange(n - 1), np.arange(1, n)], axis=1)] if n else []
    for k in range(n):  # a row at a time: all pairs of many tracks would fill the memory
        distance = np.hypot(*(means[k + 1 :] - means[k]).T)
        near = k + 1 + np.flatnonzero(distance < reach[k] + reach[k + 1 :] + 2)
        pairs.append(np.stack([np.full(len(near), k), near], axis=1))
    related = tracks.events[(tracks.events["other"] >= 0) & (tracks.events["track"] >= 0)]
    pairs.append(np.stack([related["track"], related["other"]], axis=1))
    found = np.concatenate(pairs)
    return pair_colors(found[found[:, 0] != found[:, 1]], n)


def _check_tracks(series: Any, tracks: Any) -> Any:
    if tracks is None:
        return series.tracks()
    _check_is_tracks(tracks)
    if tracks.n_frames != len(series):
        raise ValueError(
            f"tracks of {tracks.n_frames} frames do not fit this series of {len(series)}; "
            "take series.tracks()"
        )
    return tracks


def _check_is_tracks(tracks: Any) -> None:
    if not all(hasattr(tracks, name) for name in ("table", "events", "n_frames")):
        raise TypeError(
            f"tracks of type {type(tracks).__name__} must be Tracks: series.tracks(), or what "
            "link_frames returned"
        )


def _long_enough(tracks: Any, min_frames: Any) -> np.ndarray:
    """Numbers of the tracks that were seen often enough, in the order of their first frame."""
    min_frames = check_integer("min_frames", min_frames, 1)
    number = tracks.table["track"]
    found, first, counts = np.unique(number[number >= 0], return_index=True, return_counts=True)
    frames = tracks.table["frame"][number >= 0][first]
    order = np.argsort(frames, kind="stable")
    return found[order][counts[order] >= min_frames]


def _of_frames(tracks: Any, values: np.ndarray) -> np.ndarray:
    """What rows of the table say of their frames, (T,); between them where a frame has no rows."""
    frames, rows = np.unique(tracks.table["frame"], return_index=True)
    if not len(frames):
        return np.zeros(tracks.n_frames)
    return np.interp(np.arange(tracks.n_frames), frames, values[rows])


def _drift(tracks: Any) -> np.ndarray:
    """The drift that was taken off, (T, 2)."""
    table = tracks.table
    parts = [table[f"centroid_{a}"] - table[f"place_{a}"] for a in ("rx", "ry")]
    return np.stack([_of_frames(tracks, part) for part in parts], axis=1)


def _outlines(clusters: Any, t: int, tracks: Any, wanted: set[int]) -> Iterator[Any]:
    """Of each cluster that belongs to a wanted track: track, and contours (n, 2), (rx, ry)."""
    rows = tracks.table[tracks.table["frame"] == t]
    if len(rows) != clusters.n_clusters:
        raise ValueError(
            f"tracks hold {len(rows)} clusters in frame {t}, where this series has "
            f"{clusters.n_clusters}; take series.tracks()"
        )
    for label, track in zip(rows["label"].tolist(), rows["track"].tolist(), strict=True):
        if track in wanted:
            for points in clusters.contours(label):
                yield track, points


def _there(series: Any) -> list[int]:
    """Frames that have not failed."""
    if not hasattr(series, "infos"):
        raise TypeError(
            f"series of type {type(series).__name__} must be a ClusterSeries, from cluster_series "
            "or open_series"
        )
    found = [k for k, info in enumerate(series.infos) if not info.error]
    if not found:
        raise ValueError("all frames of this series failed (series.errors): nothing can be drawn")
    return found


def _show(ax: Any, image: np.ndarray, levels: tuple[Any, Any]) -> Any:
    return ax.imshow(
        image, cmap=_GREYS, vmin=levels[0], vmax=levels[1], interpolation="nearest", zorder=0
    )


# --- outlines ------------------------------------------------------------------------------------


def plot_tracks(
    series: Any,
    ax: Any = None,
    *,
    tracks: Any = None,
    image: Any = None,
    every: int = 1,
    color: str = "time",
    numbers: bool | None = None,
    min_frames: int = 1,
) -> Any:
    """Draw the outlines of every track in all frames in one picture, drift taken off.

    Parameters
    ----------
    series : ClusterSeries
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure.
    tracks : Tracks, optional
        By default ``series.tracks()``.
    image : int or array-like (Rx, Ry), optional
        Grey picture beneath: the virtual image of this frame, by default of the last one that did
        not fail; or any map of the scan as it lay in frame 0.
    every : int
        Draw every n-th frame, counted back from the last, so that slow growth shows.
    color : {"time", "track"}
        What colours tell: the time, or the track, with the colours of `plot_areas` and later
        frames more opaque.
    numbers : bool, optional
        Write the number of each track at its last place; by default when there are at most 60.
    min_frames : int
        Leave out tracks that were seen in fewer frames.

    Returns
    -------
    matplotlib Axes
        In scan positions of frame 0: what lies still stays where it is.

    Raises
    ------
    ValueError, TypeError
        If an option breaks its rule, tracks are not those of the series, or all frames failed.

    Examples
    --------
    >>> import tempfile
    >>> from py4dstem_clustering import cluster_series, simulate_series
    >>> movie = simulate_series((14, 12), (32, 30), n_frames=2, n_particles=1, seed=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     series = cluster_series(movie, out=f"{folder}/s.h5", progress_bar=False)
    ...     ax = plot_tracks(series, color="track")
    """
    every = check_integer("every", every, 1)
    check_choice("color", color, ("time", "track"))
    if numbers is not None:
        numbers = check_flag("numbers", numbers)
    check_integer("min_frames", min_frames, 1)
    there = _there(series)
    last = series[there[-1]]
    image, frame = _picture(series, there[-1] if image is None else image, last.shape)
    tracks = _check_tracks(series, tracks)
    chosen = _long_enough(tracks, min_frames)
    wanted = set(chosen.tolist())
    drift = _drift(tracks)
    moved = drift[frame] if frame in tracks.table["frame"] else series.drift[frame]

    segments: list[np.ndarray] = []
    owners: list[int] = []
    frames: list[int] = []
    for t in range(len(series) - 1, -1, -every):
        if series.infos[t].error:
            continue
        for track, points in _outlines(series[t], t, tracks, wanted):
            segments.append((points - drift[t])[:, ::-1])
            owners.append(track)
            frames.append(t)
    segments, owners, frames = segments[::-1], owners[::-1], frames[::-1]  # later ones on top

    ax = axes_or_new(ax)
    picture = _show(ax, image, grey_limits(image))
    rx, ry = last.shape
    box = np.array([[-0.5, -0.5], [rx - 0.5, ry - 0.5]]) - moved
    picture.set_extent((box[0, 1], box[1, 1], box[1, 0], box[0, 0]))
    width = float(np.clip(8 / max(len(set(frames)), 1), 0.5, 0.9))
    lines = LineCollection(segments, linewidths=width)
    times = np.asarray(series.times, dtype=np.float64)
    if color == "time":
        low, high = times[0], times[-1]
        lines.set(
            array=times[frames] if frames else np.zeros(0),
            cmap=TIME_COLORS,
            norm=Normalize(low, high if high > low else low + 1),
        )
        label = f"time ({series.time_units})"
        ax.figure.colorbar(lines, ax=ax, label=label, fraction=0.046, pad=0.03, aspect=30)
    else:
        share = np.array(frames) / max(len(series) - 1, 1)
        rgb = track_colors(tracks)[owners].reshape(-1, 3)
        lines.set_color(np.column_stack([rgb, 0.3 + 0.7 * share**2]))
    ax.add_collection(lines, autolim=False)

    points = np.concatenate([*segments, box[:, ::-1]])
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    ax.set_facecolor(_GREYS(0))  # where the scan was in other frames
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    written = np.zeros((0, 2))
    if len(chosen) <= 60 if numbers is None else numbers:
        written = _write_numbers(ax, tracks, chosen)
    bare_frame(ax, None)
    size = round(bottom - top), round(right - left)
    loc = free_corner(size, [place - (top, left) for place in written])
    add_scale_bar(ax, last.pixel_size, last.pixel_units, last.shape[1], loc=loc)
    return ax


def _picture(series: Any, image: Any, shape: tuple[int, int]) -> tuple[np.ndarray, int]:
    """The picture to draw beneath, and the frame that it belongs to."""
    if np.ndim(values_of(image)) == 0:
        frame = check_integer("image", image, -len(series))
        if frame >= len(series):
            raise ValueError(f"image={frame} must be below {len(series)}, the number of frames")
        frame %= len(series)
        return series.image(frame), frame
    image = np.asarray(values_of(image), dtype=np.float64)
    if image.shape != shape:
        raise ValueError(f"image of shape {image.shape} must have the shape of the scan, {shape}")
    return image, 0


def _write_numbers(ax: Any, tracks: Any, chosen: np.ndarray) -> np.ndarray:
    """Write each number where its track was last, moved apart where they would cover each other."""
    number, rows = np.unique(tracks.table["track"][::-1], return_index=True)
    last = tracks.table[::-1][rows[np.searchsorted(number, chosen)]]
    places = np.stack([last["place_rx"], last["place_ry"]], axis=1)
    size = 7 if len(chosen) <= 20 else 5
    frame = ax.get_position()
    inches = np.array([frame.height, frame.width]) * ax.figure.get_size_inches()[::-1]
    view = np.abs([np.subtract(*ax.get_ylim()), np.subtract(*ax.get_xlim())])
    points = 72 * (inches / view).min()  # of one scan position
    places = _apart(places, np.array([1.0, 1.3]) * size / points)
    for k, place in zip(chosen, places, strict=True):
        write_text(ax, place, str(k), size)
    return places


def _apart(places: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Places (n, 2), moved so that boxes of size `room` about them do not overlap, if possible."""
    places = places.copy()
    for _ in range(50):
        moved = False
        for i in range(len(places)):
            gap = places[i + 1 :] - places[i]
            overlap = room - np.abs(gap)
            for j in np.flatnonzero((overlap > 1e-9).all(axis=1)):
                axis = int((overlap[j] / room).argmin())
                step = overlap[j, axis] / 2 * (1 if gap[j, axis] >= 0 else -1)
                places[i, axis] -= step
                places[i + 1 + j, axis] += step
                moved = True
        if not moved:
            break
    return places


# --- areas ---------------------------------------------------------------------------------------


def plot_areas(
    tracks: Any,
    ax: Any = None,
    *,
    kind: str = "bands",
    time_units: str | None = None,
    pixel_units: str | None = None,
    min_frames: int = 1,
    rates: bool | None = None,
) -> Any:
    """Draw the area of every track over time, and what was born, died, split and merged.

    Parameters
    ----------
    tracks : Tracks
        From ``series.tracks()`` or `link_frames`.
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure, one column wide and as high as it takes.
    kind : {"bands", "curves"}
        A band for each track, one above the other by the first frame; or the areas as curves over
        one axis, for few tracks.
    time_units, pixel_units : str, optional
        Units to write: ``series.time_units``, and that of lengths, ``series[0].pixel_units``. By
        default none for the time, and positions where areas count positions.
    min_frames : int
        Leave out tracks that were seen in fewer frames.
    rates : bool, optional
        Draw and write the growth rates with the curves, fitted to the frames before the track
        first takes over another or splits; by default when there are at most 8.

    Returns
    -------
    matplotlib Axes
        Colours are those of ``plot_tracks(color="track")``. A band is as wide as the diameter of
        the circle of the same area, on the scale of the bar at its right. It is interrupted where
        the track was not seen, by a thin line within its life. Arrows lead from a track that
        merges to the one that took it over (full line), and to a track from the one that it split
        off (dashed).

    Raises
    ------
    ValueError, TypeError
        If an option breaks its rule, or `tracks` are none.

    Examples
    --------
    >>> import numpy as np
    >>> from py4dstem_clustering import link_frames
    >>> labels = np.full((3, 8, 6), -1)
    >>> labels[0, 1:4, 1:4] = labels[1, 1:5, 1:4] = labels[2, 1:6, 1:4] = 0
    >>> ax = plot_areas(link_frames([(frame, None, None) for frame in labels]), time_units="s")
    >>> ax.get_xlabel()
    'time (s)'
    """
    _check_is_tracks(tracks)
    check_choice("kind", kind, ("bands", "curves"))
    for name, value in (("time_units", time_units), ("pixel_units", pixel_units)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name}={value!r} must be a text, such as 's' or 'nm'")
    if rates is not None and check_flag("rates", rates) and kind == "bands":
        raise ValueError("rates=True needs kind='curves'; leave it out for bands")
    chosen = _long_enough(tracks, min_frames)
    if ax is None:
        height = np.clip(0.9 + 0.11 * len(chosen), 2.2, 8.5) if kind == "bands" else 2.6
        ax = plt.subplots(figsize=(WIDTH, height), layout="constrained")[1]
    edges = _edges(tracks)
    scale, units = _length(tracks, pixel_units)
    if kind == "bands":
        _draw_bands(ax, tracks, chosen, edges, scale, units)
    else:
        many = len(chosen) > 8 if rates is None else not rates
        _draw_curves(ax, tracks, chosen, scale, units, time_units, not many)
    frames = np.array_equal(tracks.table["time"], tracks.table["frame"])
    what = "frame" if frames and time_units in (None, "frames") else "time"
    ax.set_xlabel(f"time ({time_units})" if time_units and what == "time" else what)
    if tracks.n_frames:
        ax.set_xlim(edges[0], edges[-1])
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _edges(tracks: Any) -> np.ndarray:
    """Times half-way between frames, (T + 1,), the first and last as far outside."""
    frames, rows = np.unique(tracks.table["frame"], return_index=True)
    times = tracks.table["time"][rows]
    if not len(frames):
        frames = times = np.arange(2.0)
    step = (times[-1] - times[0]) / (frames[-1] - frames[0]) if len(frames) > 1 else 1.0
    # Where frames failed at either end, time goes on as before.
    first, last = -1, tracks.n_frames
    known = np.concatenate([[first], frames, [last]])
    ends = times[0] + step * (first - frames[0]), times[-1] + step * (last - frames[-1])
    times = np.interp(np.arange(-1, last + 1), known, [ends[0], *times, ends[1]])
    return (times[1:] + times[:-1]) / 2


def _length(tracks: Any, units: str | None) -> tuple[float, str]:
    """What to multiply lengths with, and their unit then."""
    if units in (None, "pixels"):
        # The size of a position is not known, or is one.
        return 1.0, "positions" if np.array_equal(tracks["area"], tracks["size"]) else ""
    return (0.1, "nm") if units == "A" else (1.0, units)


def _squared(units: str) -> str:
    return units if units in ("", "positions") else f"{units}²"


def _one(units: str) -> str:
    """One of a unit that was written out, such as "frames"."""
    return units[:-1] if len(units) > 3 and units.endswith("s") else units


def _runs(frames: np.ndarray) -> list[np.ndarray]:
    """Indices of frames that follow each other without gaps."""
    return np.split(np.arange(len(frames)), np.flatnonzero(np.diff(frames) > 1) + 1)


def _draw_bands(
    ax: Any, tracks: Any, chosen: np.ndarray, edges: np.ndarray, scale: float, units: str
) -> None:
    colors = track_colors(tracks)
    row_of = {int(k): row for row, k in enumerate(chosen)}
    table = tracks.table
    kept = np.isin(table["track"], chosen)
    widths = 2 * np.sqrt(table["area"] / np.pi) * scale
    largest = widths[kept].max(initial=0) or 1.0
    half = 0.45 * widths / largest  # of the distance of two rows

    bands, faces, lines, line_colors, ends = [], [], [], [], {}
    for k, row in row_of.items():
        own = np.flatnonzero(table["track"] == k)
        frames = table["frame"][own]
        ends[k] = edges[frames[0]], edges[frames[-1] + 1]
        # Through gaps; it also shows what is too small for a band.
        lines.append([(ends[k][0], row), (ends[k][1], row)])
        line_colors.append(colors[k])
        for run in _runs(frames):
            first, last = frames[run[0]], frames[run[-1]]
            x = np.concatenate([[edges[first]], table["time"][own[run]], [edges[last + 1]]])
            y = np.concatenate([half[own[run[:1]]], half[own[run]], half[own[run[-1:]]]])
            outline = np.stack([np.append(x, x[::-1]), np.append(row - y, row + y[::-1])], axis=1)
            bands.append(outline)
            faces.append(colors[k])
    dense = len(chosen) > 20
    ax.add_collection(LineCollection(lines, colors=line_colors, linewidths=0.6, zorder=1))
    ax.add_collection(
        PolyCollection(
            bands, facecolors=faces, edgecolors=_EDGE, linewidths=0.2 if dense else 0.4, zorder=2
        )
    )
    n_rows = max(len(chosen), 1)
    ax.set_ylim(n_rows - 0.4, -0.6)
    ax.set_xlim(edges[0], edges[-1])
    _mark_events(ax, tracks, row_of, ends, edges, half, 2.0 if dense else 3.5)
    _name_rows(ax, chosen)
    ax.set_ylabel("track")
    _width_bar(ax, largest, units)


def _mark_events(
    ax: Any,
    tracks: Any,
    row_of: dict[int, int],
    ends: dict[int, tuple[float, float]],
    edges: np.ndarray,
    half: np.ndarray,
    size: float,
) -> None:
    """Marks at the ends of bands, arrows between bands, and a legend of those that occur."""
    births, deaths, arrows = [], [], []
    table = tracks.table
    for event in tracks.events:
        kind, k, other = event["event"], int(event["track"]), int(event["other"])
        if k not in row_of:
            continue
        if kind == "birth":
            births.append((ends[k][0], row_of[k]))
        elif kind == "death":
            deaths.append((ends[k][1], row_of[k]))
        elif other in row_of:
            start, stop = (k, other) if kind == "merge" else (other, k)
            arrows.append((float(edges[event["frame"]]), start, stop, kind, event["frame"]))
    lanes: list[tuple[float, int, int]] = []
    width = 0.012 * (edges[-1] - edges[0])
    for x, start, stop, kind, frame in sorted(arrows):
        first, last = row_of[start], row_of[stop]
        low, high = sorted((first, last))
        # Beside those that it would cover.
        lane = x
        while any(abs(lane - at) < 0.99 * width and low < b and a < high for at, a, b in lanes):
            lane += width
        lanes.append((lane, low, high))
        # To the near edge of the other band, where that was seen next to the event.
        target = np.flatnonzero(table["track"] == stop)
        nearest = target[np.abs(table["frame"][target] - frame).argmin()]
        end = ends[start][1] if kind == "merge" else x
        if lane > end:
            ax.plot([end, lane], [first, first], color="black", linewidth=0.6, zorder=3)
        ax.annotate(
            "",
            (lane, last - np.sign(last - first) * half[nearest]),
            (lane, first),
            arrowprops={
                "arrowstyle": f"-|>,head_width={size / 20},head_length={size / 12}",
                "linestyle": _DASHES[kind],
                "color": "black",
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 0,
            },
            annotation_clip=True,
            zorder=3,
        )
    handles = []
    for name, places, style in (
        ("birth", births, {"marker": "o", "markerfacecolor": "white"}),
        ("death", deaths, {"marker": "X", "markerfacecolor": "black"}),
    ):
        if not places:
            continue
        style |= {"linestyle": "none", "color": "black", "markeredgewidth": 0.5}
        style |= {"label": name, "markersize": size}
        x, y = np.transpose(places)
        ax.plot(x, y, zorder=4, clip_on=False, **style)
        handles.append(Line2D([], [], **style | {"markersize": 3.5}))
    for name, dashes in _DASHES.items():
        if any(arrow[3] == name for arrow in arrows):
            style = {"marker": ">", "markersize": 3, "markevery": [1], "linewidth": 0.7}
            handles.append(
                Line2D([0, 1], [0, 0], color="black", linestyle=dashes, label=name, **style)
            )
    if handles:
        ax.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=4,
            frameon=False,
            fontsize=7,
            borderaxespad=0.2,
            handletextpad=0.4,
            columnspacing=1.2,
            handlelength=1.6,
        )


def _name_rows(ax: Any, chosen: np.ndarray) -> None:
    """Numbers of the tracks, so many as fit."""
    height = ax.figure.get_size_inches()[1] * 72 * ax.get_position().height
    row = height / max(len(chosen), 1)
    size = float(np.clip(0.85 * row, 5, 8))
    step = next(n for n in (1, 2, 5, 10, 20, 50, 100, 10**9) if n * row >= 1.05 * size)
    rows = np.arange(0, len(chosen), step)
    ax.set_yticks(rows, [str(k) for k in chosen[rows]], fontsize=size)


def _width_bar(ax: Any, largest: float, units: str) -> None:
    """How wide bands are: a bar at the right, 1, 2 or 5 times a power of ten long."""
    power = 10.0 ** np.floor(np.log10(largest))
    length = max(m * power for m in (0.5, 1, 2, 5) if m * power <= largest * 1.0001)
    tall = 0.9 * length / largest
    transform = ax.get_yaxis_transform()
    top = -0.45
    style = {"color": "black", "clip_on": False, "transform": transform, "linewidth": 1.0}
    ax.plot([1.02, 1.02], [top, top + tall], solid_capstyle="butt", **style)
    for y in (top, top + tall):
        ax.plot([1.01, 1.03], [y, y], **style | {"linewidth": 0.7})
    ax.text(
        1.045,
        top,
        f"equivalent diameter {length:g} {units}".rstrip(),
        transform=transform,
        rotation=-90,
        ha="left",
        va="top",
        fontsize=7,
    )


def _draw_curves(
    ax: Any,
    tracks: Any,
    chosen: np.ndarray,
    scale: float,
    units: str,
    time_units: str | None,
    rates: bool,
) -> None:
    colors = track_colors(tracks)
    few = len(chosen) <= 20
    outline = matplotlib.patheffects.withStroke(linewidth=1.8 if few else 1.2, foreground=_EDGE)
    rate_units = f"{_squared(units)}/{_one(time_units)}" if time_units and units else ""
    ends = []
    for k in chosen:
        track = tracks.track(int(k))
        areas = track.areas * scale**2
        label = str(k)
        for run in _runs(track.frames):
            ax.plot(
                track.times[run],
                areas[run],
                color=colors[k],
                linewidth=1.3 if few else 0.8,
                marker="o" if len(run) == 1 else None,
                markersize=2,
                path_effects=[outline],
                solid_capstyle="butt",
            )
        if rates:
            stop = _undisturbed(track)
            kept = track.frames < stop
            rate, error = (value * scale**2 for value in track.growth_rate(stop=stop))
            if np.isfinite(error):  # of three frames or more
                times = track.times[kept]
                line = areas[kept].mean() + rate * (times - times.mean())
                ax.plot(times, line, color="black", linewidth=0.7, linestyle="--", zorder=3)
                label += f": {_with_error(rate, error)}"
        ends.append((track.times[-1], areas[-1]))
        ax.plot([], [], color=colors[k], linewidth=1.3, path_effects=[outline], label=label)
    ax.set_ylim(bottom=0)
    unit = _squared(units)
    ax.set_ylabel(f"area ({unit})" if unit else "area")
    if len(chosen) and few:
        ax.legend(
            title=f"track: growth rate ({rate_units})" if rates and rate_units else "track",
            fontsize=6,
            title_fontsize=6,
            frameon=False,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=3 if rates else 8,
            borderaxespad=0,
            handlelength=1.2,
            columnspacing=1.0,
        )


def _undisturbed(track: Any) -> int:
    """The frame in which it first takes over another, or one splits off; one past the last else."""
    events = track.events[track.events["other"] == track.number]
    return int(events["frame"].min(initial=track.frames[-1] + 1))


def _with_error(value: float, error: float) -> str:
    """Digits as far as the error, of which two remain."""
    if not error > 1e-3 * abs(value):
        return f"{value:.3g}"
    digits = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:.{digits}f} ± {error:.{digits}f}".replace("-", "−")


# --- film ----------------------------------------------------------------------------------------


def animate_series(
    series: Any,
    path: str | PathLike,
    *,
    tracks: Any = None,
    fps: float = 5,
    dpi: float = 150,
    numbers: bool | None = None,
) -> Path:
    """Write a film of a series: virtual image, outlines in the colours of their tracks, and time.

    Parameters
    ----------
    series : ClusterSeries
    path : path
        ``.gif``, or ``.mp4``, which needs ffmpeg. A file that exists is replaced, once the new one
        is complete.
    tracks : Tracks, optional
        By default ``series.tracks()``.
    fps : float
        Frames a second, at most 50 in a GIF.
    dpi : float
        Pixels an inch; the film is 85 mm wide, 502 pixels by default.
    numbers : bool, optional
        Write the number of each track; by default when there are at most 60.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule, tracks are not those of the series, all frames failed, or
        ffmpeg is not there. Nothing is written.
    OSError
        If the film cannot be written; what was there before stays.

    Notes
    -----
    Frames are as recorded: drift is not taken off. All have the same grey levels. Those that failed
    are shown as such. One frame of the series is in memory at a time; but all pictures of a GIF
    are, at one byte a pixel.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from py4dstem_clustering import cluster_series, simulate_series
    >>> movie = simulate_series((14, 12), (32, 30), n_frames=2, n_particles=1, seed=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     series = cluster_series(movie, out=f"{folder}/s.h5", progress_bar=False)
    ...     animate_series(series, Path(folder) / "film.gif", dpi=50).name
    'film.gif'
    """
    path = _check_film(path)
    gif = path.suffix.lower() == ".gif"
    fps = check_number("fps", fps, 0.1, 50 if gif else 240)
    dpi = check_number("dpi", dpi, 20, 1000)
    if numbers is not None:
        numbers = check_flag("numbers", numbers)
    there = _there(series)
    tracks = _check_tracks(series, tracks)
    film = _Film(series, tracks, there, dpi, tracks.n_tracks <= 60 if numbers is None else numbers)
    with complete_or_absent(path) as partial:
        if gif:
            pictures = (film.picture(t) for t in range(len(series)))
            next(pictures).save(
                partial,
                format="GIF",
                save_all=True,
                append_images=pictures,
                duration=round(1000 / fps),
                loop=0,
            )
        else:
            try:
                _write_mp4(film, len(series), partial, fps, dpi)
            except (BrokenPipeError, subprocess.CalledProcessError) as error:
                said = (getattr(error, "stderr", "") or "").strip() or str(error)
                raise OSError(f"ffmpeg could not write {path} ({said}); write a .gif") from error
    return path


def _check_film(path: Any) -> Path:
    path = check_out(path, True, "path")
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise ValueError(f"path={str(path)!r} must end in .gif or .mp4: those can be written")
    if path.suffix.lower() == ".mp4" and not FFMpegWriter.isAvailable():
        raise ValueError(
            f"path={str(path)!r} needs ffmpeg, which is not there; install it (conda install "
            "ffmpeg), set matplotlib's rcParams['animation.ffmpeg_path'], or write a .gif"
        )
    return path


def _write_mp4(film: _Film, n_frames: int, path: Path, fps: float, dpi: float) -> None:
    # The format is given because the name of what is not complete does not tell it.
    writer = FFMpegWriter(fps=fps, codec="h264", extra_args=["-f", "mp4"])
    # Whatever the user's pictures look like.
    with mpl.rc_context({"savefig.bbox": None, "savefig.transparent": False}):
        writer.setup(film.figure, str(path), dpi)
        try:
            for t in range(n_frames):
                film.draw(t)
                writer.grab_frame()
        finally:
            writer.finish()  # raises what ffmpeg said, if that has failed


class _Film:
    """One figure, drawn anew for each frame."""

    def __init__(
        self, series: Any, tracks: Any, there: list[int], dpi: float, numbers: bool
    ) -> None:
        self._series, self._tracks, self._numbers = series, tracks, numbers
        self._colors = track_colors(tracks)
        self._all = set(range(tracks.n_tracks))
        levels = [grey_limits(series.image(t)) for t in there]
        levels = [pair for pair in levels if pair[0] is not None]
        self._levels = (
            (min(low for low, _ in levels), max(high for _, high in levels))
            if levels
            else (None, None)
        )
        self._clusters = series[there[0]]
        rx, ry = self.shape = self._clusters.shape
        header = 0.25
        height = WIDTH * float(np.clip(rx / ry, 0.3, 1.6))
        self.figure = Figure(figsize=(WIDTH, height + header), dpi=dpi, facecolor="white")
        self._canvas = FigureCanvasAgg(self.figure)
        self._ax = self.figure.add_axes((0, 0, 1, height / (height + header)))
        self._text = self.figure.text(
            0.02, 1 - header / 2 / (height + header), "", va="center", fontsize=9
        )

    def draw(self, t: int) -> None:
        """Draw frame `t` of the series."""
        ax, series, info = self._ax, self._series, self._series.infos[t]
        ax.clear()
        ax.set_facecolor(_GREYS(0))
        ax.set_aspect("equal")
        if info.error:
            reason = textwrap.shorten(info.error, 200, placeholder=" ...")
            ax.text(
                0.5,
                0.5,
                "frame failed\n\n" + textwrap.fill(reason, 40),
                color="white",
                ha="center",
                va="center",
                fontsize=8,
                transform=ax.transAxes,
            )
        else:
            clusters = series[t]
            _show(ax, series.image(t), self._levels)
            found = list(_outlines(clusters, t, self._tracks, self._all))
            lines = [points[:, ::-1] for _, points in found]
            colors = self._colors[[track for track, _ in found]].reshape(-1, 3)
            ax.add_collection(LineCollection(lines, colors=colors, linewidths=1.4), autolim=False)
        rx, ry = self.shape
        ax.set_xlim(-0.5, ry - 0.5)
        ax.set_ylim(rx - 0.5, -0.5)
        bare_frame(ax, None)
        rows = self._tracks.table[self._tracks.table["frame"] == t]
        rows = rows[rows["track"] >= 0]
        places = np.stack([rows["centroid_rx"], rows["centroid_ry"]], axis=1)
        if self._numbers and not info.error:
            for track, place in zip(rows["track"], places, strict=True):
                write_text(ax, place, str(track), 7)
        if not info.error:
            loc = free_corner(self.shape, list(places) if self._numbers else [])
            add_scale_bar(ax, clusters.pixel_size, clusters.pixel_units, ry, loc=loc)
        # The number of the frame, too: a GIF would join frames that look the same.
        self._text.set_text(f"{_time_text(series, t)}    frame {t + 1} of {len(series)}")

    def picture(self, t: int) -> Image.Image:
        """Frame `t` of the series, as many colours as a GIF holds."""
        self.draw(t)
        self._canvas.draw()
        rgb = np.asarray(self._canvas.buffer_rgba())[..., :3]
        return Image.fromarray(rgb).quantize(256)


def _time_text(series: Any, t: int) -> str:
    """Time with as many digits as tell frames apart."""
    times = np.asarray(series.times, dtype=np.float64)
    step = np.diff(times).min() if len(times) > 1 else 1.0
    digits = int(np.clip(-np.floor(np.log10(step) + 1e-9), 0, 9)) if step > 0 else 0
    if digits < 9 and np.abs(times - np.round(times, digits)).max() > 0.01 * step:
        digits += 1
    return f"{times[t]:.{digits}f} {series.time_units}"
