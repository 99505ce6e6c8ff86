"""Outlines of tracks, and functions that all figures of a series share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike, NDArray

from ..base.checks import check_choice, check_flag, check_integer, values_of
from .style import (
    axes_or_new,
    bare_frame,
    draw_scale_bar,
    free_corner,
    grey_limits,
    pair_colors,
    size_in_points,
    write_text,
)

WIDTH = 85 / 25.4
"""Width of a column of a journal, inches."""

TIME_COLORS = ListedColormap(plt.get_cmap("plasma")(np.linspace(0.3, 1, 256)), "time")
"""Colours for time: plasma without its darkest end, so that outlines stand out from dark greys."""

GREYS = ListedColormap(plt.get_cmap("gray")(np.linspace(0.05, 0.55, 256)), "dark grey")
"""Greys for the virtual image: all are dark, so that outlines stand out."""

EDGE_COLOR = "0.25"
"""Grey of thin lines around bands and curves."""


# --- what all figures of a series share ---------------------------------------------------------


def track_colors(tracks: Any) -> NDArray[Any]:
    """RGB of each track ``(N, 3)``, the same in all figures.

    Two tracks never share a colour if their numbers are successive, if one split from the other or
    merged with it, or if they may ever have been near each other.
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
    for k in range(n):  # one track at a time: all pairs of many tracks would fill the memory
        distance = np.hypot(*(means[k + 1 :] - means[k]).T)
        near = k + 1 + np.flatnonzero(distance < reach[k] + reach[k + 1 :] + 2)
        pairs.append(np.stack([np.full(len(near), k), near], axis=1))
    related = tracks.events[(tracks.events["other"] >= 0) & (tracks.events["track"] >= 0)]
    pairs.append(np.stack([related["track"], related["other"]], axis=1))
    found = np.concatenate(pairs)
    return pair_colors(found[found[:, 0] != found[:, 1]], n)


def check_tracks(series: Any, tracks: Any) -> Any:
    """Check that tracks fit the series; for None, return the tracks of the series."""
    if tracks is None:
        return series.tracks()
    check_is_tracks(tracks)
    if tracks.n_frames != len(series):
        raise ValueError(
            f"tracks of {tracks.n_frames} frames do not fit this series of {len(series)}; "
            "take series.tracks()"
        )
    return tracks


def check_is_tracks(tracks: Any) -> None:
    """Refuse any object that is not a `Tracks`."""
    if not all(hasattr(tracks, name) for name in ("table", "events", "n_frames")):
        raise TypeError(
            f"tracks of type {type(tracks).__name__} must be Tracks: series.tracks(), or what "
            "link_frames returned"
        )


def seen_often_enough(tracks: Any, min_frames: Any) -> NDArray[np.int64]:
    """Numbers of the tracks seen in at least `min_frames` frames, sorted by their first frame."""
    min_frames = check_integer("min_frames", min_frames, 1)
    number = tracks.table["track"]
    found, first, counts = np.unique(number[number >= 0], return_index=True, return_counts=True)
    frames = tracks.table["frame"][number >= 0][first]
    order = np.argsort(frames, kind="stable")
    return found[order][counts[order] >= min_frames]


def _value_of_each_frame(tracks: Any, values: NDArray[Any]) -> NDArray[np.float64]:
    """Value of each frame, (T,), from the values of the rows; all rows of a frame have the same.

    The value is interpolated if a frame has no rows.
    """
    frames, rows = np.unique(tracks.table["frame"], return_index=True)
    if not len(frames):
        return np.zeros(tracks.n_frames)
    return np.interp(np.arange(tracks.n_frames), frames, values[rows])


def _drift(tracks: Any) -> NDArray[np.float64]:
    """Drift (T, 2) that was subtracted from the places of the tracks."""
    table = tracks.table
    parts = [table[f"centroid_{a}"] - table[f"place_{a}"] for a in ("rx", "ry")]
    return np.stack([_value_of_each_frame(tracks, part) for part in parts], axis=1)


def outlines(
    clusters: Any, t: int, tracks: Any, wanted: set[int]
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield number and outline, (n, 2) of (rx, ry), of each wanted track in frame `t`."""
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


def frames_that_succeeded(series: Any) -> list[int]:
    """Numbers of the frames that did not fail; ValueError if all failed."""
    if not hasattr(series, "infos"):
        raise TypeError(
            f"series of type {type(series).__name__} must be a ClusterSeries, from cluster_series "
            "or open_series"
        )
    found = [k for k, info in enumerate(series.infos) if not info.error]
    if not found:
        raise ValueError("all frames of this series failed (series.errors): nothing can be drawn")
    return found


def show_background(
    ax: Axes, image: NDArray[Any], levels: tuple[float, float] | tuple[None, None]
) -> AxesImage:
    """Draw a virtual image in dark greys, below all else."""
    return ax.imshow(
        image, cmap=GREYS, vmin=levels[0], vmax=levels[1], interpolation="nearest", zorder=0
    )


# --- outlines ------------------------------------------------------------------------------------


def plot_tracks(
    series: Any,
    ax: Axes | None = None,
    *,
    tracks: Any = None,
    image: ArrayLike | None = None,
    every: int = 1,
    color: Literal["time", "track"] = "time",
    numbers: bool | None = None,
    min_frames: int = 1,
    scale_bar: bool | Mapping[str, Any] = True,
) -> Axes:
    """Draw the outlines of every track in all frames in one picture, drift subtracted.

    Parameters
    ----------
    series : ClusterSeries
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure.
    tracks : Tracks, optional
        By default ``series.tracks()``.
    image : int or array-like (Rx, Ry), optional
        Grey picture below the outlines. A number means the virtual image of this frame; by default
        the last frame that did not fail. A map of the scan is drawn at the place of frame 0.
    every : int
        Draw every n-th frame, counted back from the last, so that slow growth is visible.
    color : {"time", "track"}
        Meaning of the colours: the time; or the track, with the colours of `plot_areas` and later
        frames more opaque.
    numbers : bool, optional
        Write the number of each track at its last place; by default when there are at most 60.
    min_frames : int
        Leave out tracks that were seen in fewer frames.
    scale_bar : bool or dict
        As in `plot_clusters`.

    Returns
    -------
    matplotlib Axes
        Coordinates are scan positions of frame 0, so particles without motion of their own stay.

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
    succeeded = frames_that_succeeded(series)
    last = series[succeeded[-1]]
    image, frame = _picture(series, succeeded[-1] if image is None else image, last.shape)
    tracks = check_tracks(series, tracks)
    chosen = seen_often_enough(tracks, min_frames)
    drift = _drift(tracks)
    moved = drift[frame] if frame in tracks.table["frame"] else series.drift[frame]
    segments, owners, frames = _segments(series, tracks, set(chosen.tolist()), every, drift)

    ax = axes_or_new(ax)
    picture = show_background(ax, image, grey_limits(image))
    box = np.array([[-0.5, -0.5], np.array(last.shape) - 0.5]) - moved
    picture.set_extent((box[0, 1], box[1, 1], box[1, 0], box[0, 0]))
    lines = LineCollection(
        segments, linewidths=float(np.clip(8 / max(len(set(frames)), 1), 0.5, 0.9))
    )
    if color == "time":
        _color_by_time(ax, lines, series, frames)
    else:
        share = np.array(frames) / max(len(series) - 1, 1)
        rgb = track_colors(tracks)[owners].reshape(-1, 3)
        lines.set(color=np.column_stack([rgb, 0.3 + 0.7 * share**2]))
    ax.add_collection(lines, autolim=False)

    points = np.concatenate([*segments, box[:, ::-1]])
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    ax.set_facecolor(GREYS(0))  # fills the area outside of the grey picture
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    written = np.zeros((0, 2))
    if len(chosen) <= 60 if numbers is None else numbers:
        written = _write_numbers(ax, tracks, chosen)
    bare_frame(ax, None)
    size = round(bottom - top), round(right - left)
    loc = free_corner(size, [place - (top, left) for place in written])
    step = last.pixel_size, last.pixel_units
    draw_scale_bar(ax, scale_bar, step, last.shape[1], loc=loc)
    return ax


def _segments(
    series: Any, tracks: Any, wanted: set[int], every: int, drift: NDArray[np.float64]
) -> tuple[list[NDArray[np.float64]], list[int], list[int]]:
    """Outlines, (n, 2) of (y, x), drift subtracted; the track of each; the frame of each."""
    segments, owners, frames = [], [], []
    for t in range(len(series) - 1, -1, -every):
        if series.infos[t].error:
            continue
        for track, points in outlines(series[t], t, tracks, wanted):
            segments.append((points - drift[t])[:, ::-1])
            owners.append(track)
            frames.append(t)
    return segments[::-1], owners[::-1], frames[::-1]  # later frames are drawn on top


def _color_by_time(ax: Axes, lines: LineCollection, series: Any, frames: list[int]) -> None:
    """Colour outlines by the time of their frames, and add the colour bar."""
    times = np.asarray(series.times, dtype=np.float64)
    low, high = times[0], times[-1]
    lines.set(
        array=times[frames] if frames else np.zeros(0),
        cmap=TIME_COLORS,
        norm=Normalize(low, high if high > low else low + 1),
    )
    label = f"time ({series.time_units})"
    ax.figure.colorbar(lines, ax=ax, label=label, fraction=0.046, pad=0.03, aspect=30)


def _picture(series: Any, image: Any, shape: tuple[int, int]) -> tuple[NDArray[Any], int]:
    """Grey picture, and the number of the frame at whose place it is drawn."""
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


def _write_numbers(ax: Axes, tracks: Any, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """Write each number where its track was last seen; numbers that would overlap are moved.

    Returns the places, (n, 2) of (rx, ry).
    """
    number, rows = np.unique(tracks.table["track"][::-1], return_index=True)
    last = tracks.table[::-1][rows[np.searchsorted(number, chosen)]]
    places = np.stack([last["place_rx"], last["place_ry"]], axis=1)
    size = 7 if len(chosen) <= 20 else 5
    view = np.abs([np.subtract(*ax.get_ylim()), np.subtract(*ax.get_xlim())])
    points = (size_in_points(ax) / view).min()  # size of one scan position
    places = move_apart(places, np.array([1.0, 1.3]) * size / points)
    for k, place in zip(chosen, places, strict=True):
        write_text(ax, place, str(k), size)
    return places


def move_apart(places: NDArray[np.float64], room: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move places (n, 2) so that boxes of size `room` around them do not overlap, if possible."""
    places = places.copy()
    for _ in range(50):  # enough for 60 numbers; the rest may overlap
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
