"""Areas of tracks through time."""

from __future__ import annotations

from typing import Any

import matplotlib.patheffects
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ..base.checks import check_choice, check_flag
from .tracks import EDGE, WIDTH, check_is_tracks, long_enough, track_colors

_DASHES = {"merge": "-", "split": (0, (2, 1))}


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
    check_is_tracks(tracks)
    check_choice("kind", kind, ("bands", "curves"))
    for name, value in (("time_units", time_units), ("pixel_units", pixel_units)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name}={value!r} must be a text, such as 's' or 'nm'")
    if rates is not None and check_flag("rates", rates) and kind == "bands":
        raise ValueError("rates=True needs kind='curves'; leave it out for bands")
    chosen = long_enough(tracks, min_frames)
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


def _edges(tracks: Any) -> NDArray[Any]:
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


def _runs(frames: NDArray[Any]) -> list[NDArray[Any]]:
    """Indices of frames that follow each other without gaps."""
    return np.split(np.arange(len(frames)), np.flatnonzero(np.diff(frames) > 1) + 1)


def _draw_bands(
    ax: Any, tracks: Any, chosen: NDArray[Any], edges: NDArray[Any], scale: float, units: str
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
            bands, facecolors=faces, edgecolors=EDGE, linewidths=0.2 if dense else 0.4, zorder=2
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
    edges: NDArray[Any],
    half: NDArray[Any],
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


def _name_rows(ax: Any, chosen: NDArray[Any]) -> None:
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
    chosen: NDArray[Any],
    scale: float,
    units: str,
    time_units: str | None,
    rates: bool,
) -> None:
    colors = track_colors(tracks)
    few = len(chosen) <= 20
    outline = matplotlib.patheffects.withStroke(linewidth=1.8 if few else 1.2, foreground=EDGE)
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
