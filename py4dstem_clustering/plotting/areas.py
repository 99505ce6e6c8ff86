"""Areas of tracks through time."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import matplotlib.patheffects
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ..base.checks import check_choice, check_flag
from .style import size_in_points
from .tracks import EDGE_COLOR, WIDTH, check_is_tracks, seen_often_enough, track_colors

_DASHES: dict[str, Any] = {"merge": "-", "split": (0, (2, 1))}
"""Line styles of the arrows of events."""


def plot_areas(
    tracks: Any,
    ax: Axes | None = None,
    *,
    kind: Literal["bands", "curves"] = "bands",
    time_units: str | None = None,
    pixel_units: str | None = None,
    min_frames: int = 1,
    rates: bool | None = None,
) -> Axes:
    """Draw the area of every track over time, with births, deaths, splits and merges.

    Parameters
    ----------
    tracks : Tracks
        From ``series.tracks()`` or `link_frames`.
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure, as wide as one column of a journal.
    kind : {"bands", "curves"}
        "bands" draws one band for each track, sorted by the first frame. "curves" draws all areas
        in the same axes, for few tracks.
    time_units, pixel_units : str, optional
        Units for the text: ``series.time_units``, and the unit of lengths,
        ``series[0].pixel_units``. By default no unit, except "positions" if areas are numbers of
        positions.
    min_frames : int
        Leave out tracks that were seen in fewer frames.
    rates : bool, optional
        With curves, draw and write the growth rates. The fit ends before the first frame in which
        another track merges with the track or splits from it, or in which the area jumps, as when
        the track takes in a particle that was never seen by itself. By default with at most 8
        tracks.

    Returns
    -------
    matplotlib Axes
        Colours are those of ``plot_tracks(color="track")``. The width of a band is the diameter of
        the circle of the same area; the bar at the right shows the scale. In frames without the
        track, there is a thin line instead of a band. An arrow with a full line is a merge: it
        leads to the track that goes on. An arrow with a dashed line is a split: it leads to the
        new track.

    Raises
    ------
    ValueError, TypeError
        If an option breaks its rule, or `tracks` is no `Tracks`.

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
    check_is_tracks(tracks)
    check_choice("kind", kind, ("bands", "curves"))
    for name, value in (("time_units", time_units), ("pixel_units", pixel_units)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name}={value!r} must be a text, such as 's' or 'nm'")
    if rates is not None and check_flag("rates", rates) and kind == "bands":
        raise ValueError("rates=True needs kind='curves'; leave it out for bands")
    chosen = seen_often_enough(tracks, min_frames)
    if ax is None:
        height = np.clip(0.9 + 0.11 * len(chosen), 2.2, 8.5) if kind == "bands" else 2.6
        ax = plt.subplots(figsize=(WIDTH, height), layout="constrained")[1]
    edges = frame_edges(tracks)
    scale, units = _length(tracks, pixel_units)
    if kind == "bands":
        _draw_bands(ax, tracks, chosen, edges, scale, units)
    else:
        with_rates = len(chosen) <= 8 if rates is None else rates
        _draw_curves(ax, tracks, chosen, scale, units, time_units, with_rates)
    frames = np.array_equal(tracks.table["time"], tracks.table["frame"])
    what = "frame" if frames and time_units in (None, "frames") else "time"
    ax.set_xlabel(f"time ({time_units})" if time_units and what == "time" else what)
    if tracks.n_frames:
        ax.set_xlim(edges[0], edges[-1])
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def frame_edges(tracks: Any) -> NDArray[np.float64]:
    """Times at which frames begin and end, half-way between their times, (T + 1,)."""
    frames, rows = np.unique(tracks.table["frame"], return_index=True)
    times = tracks.table["time"][rows]
    if not len(frames):
        frames = times = np.arange(2.0)
    step = (times[-1] - times[0]) / (frames[-1] - frames[0]) if len(frames) > 1 else 1.0
    # If frames failed at the start or the end, their times are extrapolated.
    first, last = -1, tracks.n_frames
    known = np.concatenate([[first], frames, [last]])
    ends = times[0] + step * (first - frames[0]), times[-1] + step * (last - frames[-1])
    times = np.interp(np.arange(-1, last + 1), known, [ends[0], *times, ends[1]])
    return (times[1:] + times[:-1]) / 2


def _length(tracks: Any, units: str | None) -> tuple[float, str]:
    """Factor that converts lengths for the figure, and the unit of the result."""
    if units in (None, "pixels"):
        # The size of a scan position is unknown, or 1.
        return 1.0, "positions" if np.array_equal(tracks["area"], tracks["size"]) else ""
    return (0.1, "nm") if units == "A" else (1.0, units)


def _squared(units: str) -> str:
    """The unit of areas."""
    return units if units in ("", "positions") else f"{units}²"


def _singular(units: str) -> str:
    """Singular of a unit that is a whole word, such as "frames"."""
    return units[:-1] if len(units) > 3 and units.endswith("s") else units


def _without_gaps(frames: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Indices of frames, split where a frame is missing."""
    return np.split(np.arange(len(frames)), np.flatnonzero(np.diff(frames) > 1) + 1)


def _draw_bands(
    ax: Axes,
    tracks: Any,
    chosen: NDArray[np.int64],
    edges: NDArray[np.float64],
    scale: float,
    units: str,
) -> None:
    """Draw a band for each track, with its events, its number, and the scale of the widths."""
    colors = track_colors(tracks)
    row_of = {int(k): row for row, k in enumerate(chosen)}
    table = tracks.table
    kept = np.isin(table["track"], chosen)
    widths = 2 * np.sqrt(table["area"] / np.pi) * scale
    largest = widths[kept].max(initial=0) or 1.0
    half = 0.45 * widths / largest  # in units of the distance between rows

    bands, faces, lines, line_colors, ends = [], [], [], [], {}
    for k, row in row_of.items():
        own = np.flatnonzero(table["track"] == k)
        frames = table["frame"][own]
        ends[k] = edges[frames[0]], edges[frames[-1] + 1]
        # A line joins gaps, and shows a particle that is too small for a band.
        lines.append([(ends[k][0], row), (ends[k][1], row)])
        line_colors.append(colors[k])
        for run in _without_gaps(frames):
            first, last = frames[run[0]], frames[run[-1]]
            x = np.concatenate([[edges[first]], table["time"][own[run]], [edges[last + 1]]])
            y = np.concatenate([half[own[run[:1]]], half[own[run]], half[own[run[-1:]]]])
            outline = np.stack([np.append(x, x[::-1]), np.append(row - y, row + y[::-1])], axis=1)
            bands.append(outline)
            faces.append(colors[k])
    dense = len(chosen) > 20
    ax.add_collection(LineCollection(lines, colors=line_colors, linewidths=0.6, zorder=1))
    width = 0.2 if dense else 0.4
    ax.add_collection(
        PolyCollection(bands, facecolors=faces, edgecolors=EDGE_COLOR, linewidths=width, zorder=2)
    )
    n_rows = max(len(chosen), 1)
    ax.set_ylim(n_rows - 0.4, -0.6)
    ax.set_xlim(edges[0], edges[-1])
    _mark_events(ax, tracks, row_of, ends, edges, half, 2.0 if dense else 3.5)
    _name_rows(ax, chosen)
    ax.set_ylabel("track")
    _draw_width_bar(ax, largest, units)


class _Arrow(NamedTuple):
    """An event that leads from one track to another; sorted by its time."""

    time: float
    start: int
    stop: int
    event: str
    frame: int


def _mark_events(
    ax: Axes,
    tracks: Any,
    row_of: dict[int, int],
    ends: dict[int, tuple[float, float]],
    edges: NDArray[np.float64],
    half: NDArray[np.float64],
    size: float,
) -> None:
    """Draw marks at the ends of bands, arrows between bands, and their legend."""
    births, deaths, arrows = [], [], []
    for event in tracks.events:
        kind, k, other = str(event["event"]), int(event["track"]), int(event["other"])
        if k not in row_of:
            continue
        if kind == "birth":
            births.append((ends[k][0], row_of[k]))
        elif kind == "death":
            deaths.append((ends[k][1], row_of[k]))
        elif other in row_of:
            start, stop = (k, other) if kind == "merge" else (other, k)
            frame = int(event["frame"])
            arrows.append(_Arrow(float(edges[frame]), start, stop, kind, frame))
    _draw_arrows(
        ax, tracks, sorted(arrows), row_of, ends, 0.012 * (edges[-1] - edges[0]), half, size
    )
    handles = []
    for name, places, style in (
        ("birth", births, {"marker": "o", "markerfacecolor": "white"}),
        ("death", deaths, {"marker": "X", "markerfacecolor": "black"}),
    ):
        if not places:
            continue
        marks: dict[str, Any] = {
            **style, "linestyle": "none", "color": "black", "markeredgewidth": 0.5, "label": name,
        }  # fmt: skip
        x, y = np.transpose(places)
        ax.plot(x, y, zorder=4, clip_on=False, markersize=size, **marks)
        handles.append(Line2D([], [], markersize=3.5, **marks))
    for name, dashes in _DASHES.items():
        if any(arrow.event == name for arrow in arrows):
            handles.append(
                Line2D(
                    [0, 1], [0, 0], color="black", linestyle=dashes, label=name, marker=">",
                    markersize=3, markevery=[1], linewidth=0.7,
                )
            )  # fmt: skip
    if handles:
        ax.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False,
            fontsize=7, borderaxespad=0.2, handletextpad=0.4, columnspacing=1.2, handlelength=1.6,
        )  # fmt: skip


def _draw_arrows(
    ax: Axes,
    tracks: Any,
    arrows: list[_Arrow],
    row_of: dict[int, int],
    ends: dict[int, tuple[float, float]],
    width: float,
    half: NDArray[np.float64],
    size: float,
) -> None:
    """Draw arrows from band to band; arrows that would overlap are moved by `width`."""
    table = tracks.table
    drawn: list[tuple[float, int, int]] = []
    for arrow in arrows:
        first, last = row_of[arrow.start], row_of[arrow.stop]
        low, high = sorted((first, last))
        x = arrow.time
        while any(abs(x - at) < 0.99 * width and low < b and a < high for at, a, b in drawn):
            x += width
        drawn.append((x, low, high))
        # The arrow ends at the near edge of the other band, in the frame nearest to the event.
        target = np.flatnonzero(table["track"] == arrow.stop)
        nearest = target[np.abs(table["frame"][target] - arrow.frame).argmin()]
        end = ends[arrow.start][1] if arrow.event == "merge" else arrow.time
        if x > end:
            ax.plot([end, x], [first, first], color="black", linewidth=0.6, zorder=3)
        ax.annotate(
            "",
            (x, last - np.sign(last - first) * half[nearest]),
            (x, first),
            arrowprops={
                "arrowstyle": f"-|>,head_width={size / 20},head_length={size / 12}",
                "linestyle": _DASHES[arrow.event],
                "color": "black",
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 0,
            },
            annotation_clip=True,
            zorder=3,
        )


def _name_rows(ax: Axes, chosen: NDArray[np.int64]) -> None:
    """Write the numbers of tracks beside the rows; leave some out if there is no room."""
    row = size_in_points(ax)[0] / max(len(chosen), 1)
    size = float(np.clip(0.85 * row, 5, 8))
    step = next(n for n in (1, 2, 5, 10, 20, 50, 100, 10**9) if n * row >= 1.05 * size)
    rows = np.arange(0, len(chosen), step)
    ax.set_yticks(rows, [str(k) for k in chosen[rows]], fontsize=size)


def _draw_width_bar(ax: Axes, largest: float, units: str) -> None:
    """Draw a bar at the right, 1, 2 or 5 times a power of ten long: the scale of the widths."""
    power = 10.0 ** np.floor(np.log10(largest))
    length = max(m * power for m in (0.5, 1, 2, 5) if m * power <= largest * 1.0001)
    tall = 0.9 * length / largest
    transform = ax.get_yaxis_transform()
    top = -0.45
    style: dict[str, Any] = {"color": "black", "clip_on": False, "transform": transform}
    ax.plot([1.02, 1.02], [top, top + tall], solid_capstyle="butt", linewidth=1.0, **style)
    for y in (top, top + tall):
        ax.plot([1.01, 1.03], [y, y], linewidth=0.7, **style)
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
    ax: Axes,
    tracks: Any,
    chosen: NDArray[np.int64],
    scale: float,
    units: str,
    time_units: str | None,
    rates: bool,
) -> None:
    """Draw the area of each track as a curve, with `rates` also its growth rate."""
    colors = track_colors(tracks)
    few = len(chosen) <= 20
    outline = matplotlib.patheffects.withStroke(
        linewidth=1.8 if few else 1.2, foreground=EDGE_COLOR
    )
    rate_units = f"{_squared(units)}/{_singular(time_units)}" if time_units and units else ""
    ends = []
    for k in chosen:
        track = tracks.track(int(k))
        areas = track.areas * scale**2
        label = str(k)
        for run in _without_gaps(track.frames):
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
            stop = _first_disturbed_frame(track)
            kept = track.frames < stop
            rate, error = (value * scale**2 for value in track.growth_rate(stop=stop))
            if np.isfinite(error):  # of three frames or more
                times = track.times[kept]
                line = areas[kept].mean() + rate * (times - times.mean())
                ax.plot(times, line, color="black", linewidth=0.7, linestyle="--", zorder=3)
                label += f": {with_error(rate, error)}"
        ends.append((track.times[-1], areas[-1]))
        ax.plot([], [], color=colors[k], linewidth=1.3, path_effects=[outline], label=label)
    ax.set_ylim(bottom=0)
    unit = _squared(units)
    ax.set_ylabel(f"area ({unit})" if unit else "area")
    if len(chosen) and few:
        ax.legend(
            title=f"track: growth rate ({rate_units})" if rates and rate_units else "track",
            fontsize=7,
            title_fontsize=7,
            frameon=False,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=3 if rates else 8,
            borderaxespad=0,
            handlelength=1.2,
            columnspacing=1.0,
        )


JUMP_ERRORS = 5.0
"""Deviation of a step of the area from the usual step, in standard deviations, that is a jump. With
a smaller one, fits end early by chance."""

JUMP_SHARE = 0.15
"""Smallest share of the area that is a jump. With a smaller one, small steps of regular growth are
called so."""


def _first_disturbed_frame(track: Any) -> int:
    """First frame in which another track merges with a track or splits from it, or the area jumps.

    Without such a frame, the number after its last frame.
    """
    events = track.events[track.events["other"] == track.number]
    first = int(events["frame"].min(initial=track.frames[-1] + 1))
    steps = np.diff(track.areas) / np.diff(track.frames)
    if len(steps) < 4:
        return first
    usual = np.median(steps)
    deviation = np.abs(steps - usual)
    # The standard deviation that most steps have, whatever a few others do; and what a border that
    # moves by a tenth of a position changes.
    position = track.areas[0] / track.sizes[0]
    border = 0.3 * position * np.sqrt(track.sizes[:-1])
    scatter = np.maximum(1.4826 * np.median(deviation), border)
    jumps = (deviation > JUMP_ERRORS * scatter) & (deviation > JUMP_SHARE * track.areas[:-1])
    return int(track.frames[1:][jumps].min(initial=first))


def with_error(value: float, error: float) -> str:
    """Value and error as text: two digits of the error, and the value with the same decimals."""
    if not error > 1e-3 * abs(value):
        return f"{value:.3g}"
    digits = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:.{digits}f} ± {error:.{digits}f}".replace("-", "−")
