"""A series of scans as a film."""

from __future__ import annotations

import subprocess
import textwrap
from os import PathLike
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.animation import FFMpegWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from ..base.checks import check_flag, check_number, check_out
from ..emd.writing import complete_or_absent
from .style import add_scale_bar, bare_frame, free_corner, grey_limits, write_text
from .tracks import (
    GREYS,
    WIDTH,
    check_tracks,
    frames_that_succeeded,
    outlines,
    show_background,
    track_colors,
)


def animate_series(
    series: Any,
    path: str | PathLike[str],
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
        ``.gif``, or ``.mp4``, which needs ffmpeg. An existing file is replaced after the new one
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
        If the film cannot be written; an existing file stays as it was.

    Notes
    -----
    Frames are drawn as recorded: drift is not subtracted. All frames have the same grey levels. A
    text marks frames that failed. One frame of the series is in memory at a time, but a GIF needs
    all its pictures in memory, one byte a pixel.

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
    succeeded = frames_that_succeeded(series)
    tracks = check_tracks(series, tracks)
    if numbers is None:
        numbers = tracks.n_tracks <= 60
    film = Film(series, tracks, succeeded, dpi, numbers)
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
    """Check that the name of the file ends in a format that can be written."""
    path = check_out(path, True, "path")
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise ValueError(f"path={str(path)!r} must end in .gif or .mp4: those can be written")
    if path.suffix.lower() == ".mp4" and not FFMpegWriter.isAvailable():
        raise ValueError(
            f"path={str(path)!r} needs ffmpeg, which is not there; install it (conda install "
            "ffmpeg), set matplotlib's rcParams['animation.ffmpeg_path'], or write a .gif"
        )
    return path


def _write_mp4(film: Film, n_frames: int, path: Path, fps: float, dpi: float) -> None:
    """Write the film with ffmpeg."""
    # ffmpeg cannot see the format from the name, because the incomplete file has another ending.
    writer = FFMpegWriter(
        fps=fps,  # type: ignore[arg-type]  # a float is allowed
        codec="h264",
        extra_args=["-f", "mp4"],
    )
    # These settings of the user would change the size of the pictures.
    with mpl.rc_context({"savefig.bbox": None, "savefig.transparent": False}):
        writer.setup(film.figure, str(path), dpi)
        try:
            for t in range(n_frames):
                film.draw(t)
                writer.grab_frame()
        finally:
            writer.finish()  # raises the message of ffmpeg if it failed


class Film:
    """One figure, drawn anew for each frame.

    Attributes
    ----------
    figure : matplotlib Figure
    shape : (int, int)
        Shape of the scan.
    """

    def __init__(
        self, series: Any, tracks: Any, succeeded: list[int], dpi: float, numbers: bool
    ) -> None:
        self._series, self._tracks, self._numbers = series, tracks, numbers
        self._colors = track_colors(tracks)
        self._all = set(range(tracks.n_tracks))
        limits = [grey_limits(series.image(t)) for t in succeeded]
        known = np.array([pair for pair in limits if pair[0] is not None], dtype=np.float64)
        self._levels: tuple[float, float] | tuple[None, None] = (None, None)
        if known.size:
            self._levels = known[:, 0].min(), known[:, 1].max()
        rx, ry = self.shape = series[succeeded[0]].shape
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
        ax.set_facecolor(GREYS(0))
        ax.set_aspect("equal")
        if info.error:
            reason = textwrap.shorten(info.error, 200, placeholder=" ...")
            text = "frame failed\n\n" + textwrap.fill(reason, 40)
            ax.text(
                0.5, 0.5, text, color="white", ha="center", va="center", fontsize=8,
                transform=ax.transAxes,
            )  # fmt: skip
        else:
            clusters = series[t]
            show_background(ax, series.image(t), self._levels)
            found = list(outlines(clusters, t, self._tracks, self._all))
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
        # The number of the frame makes every picture different: a GIF would join equal pictures.
        self._text.set_text(f"{time_text(series, t)}    frame {t + 1} of {len(series)}")

    def picture(self, t: int) -> Image.Image:
        """Frame `t` of the series, reduced to the number of colours of a GIF."""
        self.draw(t)
        self._canvas.draw()
        rgb = np.asarray(self._canvas.buffer_rgba())[..., :3]
        return Image.fromarray(rgb).quantize(256)


def time_text(series: Any, t: int) -> str:
    """Time of frame `t`, with enough digits to distinguish frames."""
    times = np.asarray(series.times, dtype=np.float64)
    step = np.diff(times).min() if len(times) > 1 else 1.0
    digits = int(np.clip(-np.floor(np.log10(step) + 1e-9), 0, 9)) if step > 0 else 0
    if digits < 9 and np.abs(times - np.round(times, digits)).max() > 0.01 * step:
        digits += 1
    return f"{times[t]:.{digits}f} {series.time_units}"
