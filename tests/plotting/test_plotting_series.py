"""Figures of series: what is drawn where, and films; how they look is for people to judge."""

from __future__ import annotations

import dataclasses
import stat
import sys
from itertools import pairwise
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import LineCollection, PolyCollection
from PIL import Image

from py4dstem_clustering import Clusters, cluster_series, link_frames, simulate_series
from py4dstem_clustering.plotting.areas import frame_edges, plot_areas, with_error
from py4dstem_clustering.plotting.film import Film, animate_series, time_text
from py4dstem_clustering.plotting.tracks import move_apart, plot_tracks, track_colors

SCAN = (26, 20)
TIMES = np.array([0, 1, 2, 3, 4, 6, 7, 8.0]) / 4
DRIFT = np.outer(np.arange(8), [1, 0.5])
FAILED = 4


class Series:
    """Rectangles that move with the sample; what figures use of a ClusterSeries.

    0 grows, and loses 3 in frame 5; 1 is missing in frame 2, and becomes part of 0 in frame 6;
    2 appears in frame 1 and vanishes in frame 7.
    """

    time_units = "min"
    times = TIMES
    drift = DRIFT

    def __init__(self, error="file is broken"):
        self.infos = [
            SimpleNamespace(frame=t, time=time, error=error if t == FAILED else "")
            for t, time in enumerate(TIMES)
        ]

    def __len__(self):
        return len(self.infos)

    def __getitem__(self, t):
        if self.infos[t].error:
            raise ValueError(self.infos[t].error)
        x, y = np.indices(SCAN) - np.floor(DRIFT[t]).astype(int)[:, None, None]
        rows = 10 if t < 5 else 8
        boxes = [(2, 2 + rows, 2, 7 + (t >= 2))]
        if t != 2 and t < 6:
            boxes.append((2, 8, 8, 11))
        if t >= 6:
            boxes[0] = (2, 10, 2, 12)
        if 1 <= t < 7:
            boxes.append((14, 17, 12, 15))
        if t >= 5:
            boxes.append((10, 12, 2, 7))
        labels = np.full(SCAN, -1)
        for k, (top, bottom, left, right) in enumerate(boxes):
            labels[(x >= top) & (x < bottom) & (y >= left) & (y < right)] = k
        seeds = np.array([np.argwhere(labels == k)[0] for k in range(len(boxes))])
        clusters = Clusters(labels, seeds, np.full(SCAN, 0.9))
        return dataclasses.replace(clusters, pixel_size=20.0, pixel_units="A")

    def image(self, t):
        return (self[t].labels >= 0) + 0.1 * np.random.default_rng(t).random(SCAN)

    def linked(self, t):
        if self.infos[t].error:
            return None
        return self[t].labels, None, self[t].properties()

    def tracks(self, **options):
        frames = [self.linked(t) for t in range(len(self))]
        return link_frames(frames, drift=self.drift, times=self.times, **options)


@pytest.fixture(scope="module")
def series():
    return Series()


@pytest.fixture(scope="module")
def tracks(series):
    tracks = series.tracks()
    events = [(e["frame"], e["event"], e["track"], e["other"]) for e in tracks.events]
    assert events == [
        (1, "birth", 2, -1),
        (5, "split", 3, 0),
        (6, "merge", 1, 0),
        (7, "death", 2, -1),
    ]
    return tracks


def drawn(ax):
    """Draw for real, so that an error of the artists shows."""
    ax.figure.canvas.draw()
    return ax


def outlines(ax):
    (lines,) = (item for item in ax.collections if isinstance(item, LineCollection))
    return lines


def texts(ax):
    return [text.get_text() for text in ax.texts]


# --- outlines ------------------------------------------------------------------------------------


def test_outlines_lie_where_the_sample_was_in_frame_0(series, tracks):
    ax = drawn(plot_tracks(series, tracks=tracks))
    lines = outlines(ax)
    rows = tracks.table
    assert len(lines.get_segments()) == len(rows)
    for segment, row in zip(
        sorted(lines.get_segments(), key=lambda s: s.sum()),
        sorted((series[r["frame"]].contours(r["label"])[0][:, ::-1] - DRIFT[r["frame"], ::-1]
                for r in rows), key=lambda s: s.sum()),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(segment, row)
    # The image is that of the last frame, as far back as that has moved.
    shown = ax.images[0]
    np.testing.assert_allclose(shown.get_array(), series.image(7))
    moved = DRIFT[7]
    np.testing.assert_allclose(
        shown.get_extent(),
        (-0.5 - moved[1], 19.5 - moved[1], 25.5 - moved[0], -0.5 - moved[0]),
    )
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first scan axis runs downwards
    assert sorted(texts(ax)) == ["0", "1", "2", "3"]
    for k, text in enumerate(ax.texts):
        last = tracks.track(k).places[-1]
        np.testing.assert_allclose(text.get_position()[::-1], last, atol=2)


def test_colour_is_time_or_track(series, tracks):
    _, ax = plt.subplots()
    assert plot_tracks(series, ax, tracks=tracks) is ax
    lines = outlines(drawn(ax))
    np.testing.assert_array_equal(np.sort(lines.get_array()), np.sort(tracks["time"]))
    assert (np.diff(lines.get_array()) >= 0).all()  # later ones are drawn on top
    assert lines.norm.vmin == 0
    assert lines.norm.vmax == 2
    (bar,) = (other for other in ax.figure.axes if other is not ax)
    assert bar.get_ylabel() == "time (min)"

    ax = drawn(plot_tracks(series, tracks=tracks, color="track"))
    assert ax.figure.axes == [ax]
    colors = outlines(ax).get_colors()
    expected = track_colors(tracks)[tracks["track"]]
    np.testing.assert_allclose(np.sort(colors[:, :3], axis=0), np.sort(expected, axis=0))
    assert (np.diff(colors[:, 3]) >= 0).all()
    assert colors[-1, 3] == 1


def test_figures_in_a_subfigure(series, tracks):
    left, right = plt.figure(figsize=(6, 3)).subfigures(1, 2)
    ax = plot_tracks(series, left.subplots(), tracks=tracks)
    drawn(plot_areas(tracks, right.subplots()))
    assert sorted(texts(ax)) == ["0", "1", "2", "3"]


def test_options_of_tracks(series, tracks):
    ax = drawn(plot_tracks(series, tracks=tracks, every=3, numbers=False))
    assert set(outlines(ax).get_array()) == set(TIMES[[1, 7]])  # frame 4 failed
    assert texts(ax) == []
    ax = drawn(plot_tracks(series, tracks=tracks, min_frames=5))
    assert sorted(texts(ax)) == ["0", "2"]
    assert len(outlines(ax).get_segments()) == 7 + 5
    ax = drawn(plot_tracks(series, tracks=tracks, min_frames=9))
    assert len(outlines(ax).get_segments()) == 0
    drawn(plot_tracks(series, tracks=tracks, min_frames=9, color="track"))
    ax = drawn(plot_tracks(series, tracks=tracks, image=-8))
    np.testing.assert_allclose(ax.images[0].get_array(), series.image(0))
    assert ax.images[0].get_extent() == [-0.5, 19.5, 25.5, -0.5]
    ax = drawn(plot_tracks(series, image=np.ones(SCAN)))
    assert ax.images[0].get_extent() == [-0.5, 19.5, 25.5, -0.5]


def test_errors_of_tracks(series, tracks):
    def check(match, error=ValueError, **options):
        with pytest.raises(error, match=match):
            plot_tracks(series, **{"tracks": tracks} | options)

    check("every=0 must be at least 1", every=0)
    check("color='area' must be one of 'time', 'track'", color="area")
    check("numbers=3 must be True or False", TypeError, numbers=3)
    check("min_frames=0", min_frames=0)
    check("image=8 must be below 8", image=8)
    check("file is broken", image=FAILED)
    check(r"image of shape \(3, 4\) must have the shape of the scan", image=np.ones((3, 4)))
    check("tracks of type ndarray must be Tracks", TypeError, tracks=np.ones(3))
    frames = [series.linked(t) for t in range(8)]
    check("tracks of 3 frames do not fit this series of 8", tracks=link_frames(frames[:3]))
    check(
        "tracks hold 3 clusters in frame 7, where this series has 2",
        tracks=link_frames(frames[:6] + frames[5:7]),
    )
    assert plt.get_fignums() == []
    with pytest.raises(TypeError, match="series of type list must be a ClusterSeries"):
        plot_tracks([])
    none = Series()
    for info in none.infos:
        info.error = "lost"
    with pytest.raises(ValueError, match="all frames of this series failed"):
        plot_tracks(none)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), max_size=8))
def test_numbers_do_not_cover_each_other(places):
    room = np.array([1.0, 2.0])
    moved = move_apart(np.array(places).reshape(-1, 2), room)
    gap = np.abs(moved[:, None] - moved)
    apart = (gap >= room - 1e-6).any(axis=2) | np.eye(len(moved), dtype=bool)
    assert apart.all()
    if len(places) == 1:
        np.testing.assert_array_equal(moved, places)


def test_tracks_that_meet_have_colours_of_their_own(tracks):
    colors = track_colors(tracks)
    assert colors.shape == (4, 3)
    assert len(np.unique(colors, axis=0)) == 4
    many = link_frames([(np.arange(56).reshape(8, 7), None, None)])
    colors = track_colors(many).reshape(8, 7, 3)
    assert (colors[1:] != colors[:-1]).any(axis=2).all()
    assert (colors[:, 1:] != colors[:, :-1]).any(axis=2).all()
    assert track_colors(link_frames([(np.full((3, 4), -1), None, None)])).shape == (0, 3)


# --- areas ---------------------------------------------------------------------------------------


def bands(ax):
    (polygons,) = (item for item in ax.collections if isinstance(item, PolyCollection))
    return [path.vertices for path in polygons.get_paths()], polygons.get_facecolors()


def test_bands_are_as_wide_as_the_particles(tracks):
    ax = drawn(plot_areas(tracks, time_units="min", pixel_units="A"))
    found, faces = bands(ax)
    assert ax.get_xlabel() == "time (min)"
    assert ax.get_ylabel() == "track"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1", "2", "3"]
    # Interrupted where the track was not seen: 1 in frame 2, all in the one that failed.
    rows = [round(band[:, 1].mean()) for band in found]
    assert rows == [0, 0, 1, 1, 1, 2, 2, 3]
    np.testing.assert_allclose(faces[:, :3], track_colors(tracks)[rows])
    edges = frame_edges(tracks)
    spans = [(band[:, 0].min(), band[:, 0].max()) for band in found]
    expected = [(0, 4), (5, 8), (0, 2), (3, 4), (5, 6), (1, 4), (5, 7), (5, 8)]
    np.testing.assert_allclose(spans, edges[np.array(expected)])
    # Widths follow the square root of the areas.
    ratio = []
    for row, band in zip(rows, found, strict=True):
        track = tracks.track(row)
        for time, area in zip(track.times, track.areas, strict=True):
            ratio += list((band[band[:, 0] == time, 1] - row) ** 2 / area)
    assert len(ratio) == 2 * len(tracks)
    np.testing.assert_allclose(ratio, ratio[0])
    # The bar: its length over that of the widest band.
    bar = next(line for line in ax.lines if list(line.get_xdata()) == [1.02, 1.02])
    (text,) = (t for t in texts(ax) if t)
    length = float(text.removeprefix("equivalent diameter ").removesuffix(" nm"))
    widest = 2 * np.sqrt(tracks["area"].max() / np.pi) / 10
    height = max(np.ptp(band[:, 1]) for band in found)
    assert np.ptp(bar.get_ydata()) / height == pytest.approx(length / widest)


def test_events_are_marked(tracks):
    ax = drawn(plot_areas(tracks))
    edges = frame_edges(tracks)
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["birth", "death", "merge", "split"]
    marks = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(marks["birth"].get_xydata(), [(edges[1], 2)])
    np.testing.assert_allclose(marks["death"].get_xydata(), [(edges[7], 2)])
    arrows = [(text.xyann, text.xy) for text in ax.texts if hasattr(text, "xyann")]
    (split_from, split_to), (merge_from, merge_to) = arrows
    assert split_from == (edges[5], 0)
    assert split_to[0] == edges[5]
    assert 2.5 < split_to[1] < 3
    assert merge_from == (edges[6], 1)
    assert merge_to[0] == edges[6]
    assert 0 < merge_to[1] < 0.5
    split, merge = (text.arrow_patch for text in ax.texts if hasattr(text, "xyann"))
    assert merge.get_linestyle() == "-"
    assert split.get_linestyle() != "-"


def test_no_arrow_leads_to_a_track_that_is_left_out(tracks):
    ax = drawn(plot_areas(tracks, min_frames=5))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "2"]
    assert not [text for text in ax.texts if hasattr(text, "xyann")]
    labels = np.full((4, 8, 12), -1)
    labels[:3, 1:3, 1:3] = 0  # becomes part of one that is seen for less long
    labels[2, 1:7, 3:11] = 1
    labels[3, 1:7, 1:11] = 0
    merged = link_frames([(frame, None, None) for frame in labels])
    assert merged.events[["event", "track", "other"]].tolist()[-1] == ("merge", 0, 1)
    ax = drawn(plot_areas(merged, min_frames=3))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0"]
    assert not [text for text in ax.texts if hasattr(text, "xyann")]


def test_arrows_of_one_time_lie_beside_each_other():
    labels = np.full((2, 9, 12), -1)
    for k in range(4):  # 0 takes over 2, and 1 takes over 3
        labels[0, 4 * (k % 2) : 4 * (k % 2) + 3, 4 * (k // 2) : 4 * (k // 2) + (4 - k // 2)] = k
    labels[1, 0:3, 0:7] = 0
    labels[1, 4:7, 0:7] = 1
    tracks = link_frames([(frame, None, None) for frame in labels])
    assert tracks.events["event"].tolist() == ["merge", "merge"]
    ax = drawn(plot_areas(tracks))
    places = [text.xy[0] for text in ax.texts if hasattr(text, "xyann")]
    assert 0.01 < abs(places[0] - places[1]) < 0.1


@pytest.mark.parametrize("kind", ["bands", "curves"])
@pytest.mark.parametrize("n", [0, 1, 60, pytest.param(300, marks=pytest.mark.slow)])
def test_any_number_of_tracks(kind, n):
    labels = np.where(np.arange(400) < n, np.arange(400), -1).reshape(20, 20)
    tracks = link_frames([(labels, None, None)] * 2)
    ax = drawn(plot_areas(tracks, kind=kind))
    assert ax.get_xlabel() == "frame"
    if kind == "bands":
        assert len(bands(ax)[0]) == n
        names = [label.get_window_extent() for label in ax.get_yticklabels()]
        assert all(a.y0 >= b.y1 - 2 for a, b in pairwise(names))
    else:
        assert ax.get_ylabel() == "area (positions)"
        assert (ax.get_legend() is None) == (n in (0, 60, 300))


def test_curves(tracks):
    ax = drawn(plot_areas(tracks, kind="curves", time_units="min", pixel_units="A", min_frames=4))
    assert ax.get_ylabel() == "area (nm²)"
    curves = [line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata())]
    np.testing.assert_allclose(
        np.concatenate([line.get_xydata() for line in curves]),
        np.concatenate(
            [np.stack([tracks.track(k).times, tracks.track(k).areas / 100], 1) for k in (0, 1, 2)]
        ),
    )
    # The rate of 0 is that before 3 split off.
    fits = [line for line in ax.lines if line.get_linestyle() == "--"]
    rate, error = tracks.track(0).growth_rate(stop=5)
    slope = np.diff(fits[0].get_ydata()) / np.diff(fits[0].get_xdata())
    np.testing.assert_allclose(slope, rate / 100)
    legend = ax.get_legend()
    assert legend.get_title().get_text() == "track: growth rate (nm²/min)"
    assert legend.get_texts()[0].get_text() == f"0: {rate / 100:.0f} ± {error / 100:.0f}"
    ax = drawn(plot_areas(tracks, kind="curves", rates=False))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0", "1", "2", "3"]
    assert ax.get_ylabel() == "area"  # of a unit that was not told


def blocks_of_rows(numbers):
    """Frames in each of which one cluster fills this number of rows, 6 positions a row."""
    frames = np.full((len(numbers), 30, 8), -1)
    for frame, number in zip(frames, numbers, strict=True):
        frame[:number, 1:7] = 0
    return link_frames([(frame, None, None) for frame in frames])


def fitted_until(tracks):
    ax = plot_areas(tracks, kind="curves")
    (fit,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    return fit.get_xdata()[-1]


def test_no_growth_line_through_a_particle_that_was_taken_in():
    """The other particle was never a cluster, so that the tracks know no merge."""
    assert fitted_until(blocks_of_rows([5, 6, 7, 8, 15, 16, 17])) == 3
    assert fitted_until(blocks_of_rows([17, 16, 15, 8, 7, 6])) == 2  # a part is lost
    # Growth that is uneven by a row, and fast growth of a small particle, are no jumps.
    assert fitted_until(blocks_of_rows([5, 6, 8, 9, 10, 12, 13])) == 6
    assert fitted_until(blocks_of_rows([1, 3, 5, 7, 9, 11])) == 5


def test_units_in_words():
    labels = np.zeros((4, 3, 4), dtype=int)
    tracks = link_frames([(frame, None, None) for frame in labels], times=np.arange(4) * 2.0)
    ax = drawn(plot_areas(tracks, kind="curves", time_units="hours"))
    assert ax.get_xlabel() == "time (hours)"
    assert ax.get_legend().get_title().get_text() == "track: growth rate (positions/hour)"
    assert drawn(plot_areas(tracks)).get_xlabel() == "time"


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(-1.234, 0.056, "−1.234 ± 0.056"), (812.3, 34.5, "812 ± 34"), (16, 1e-15, "16")],
)
def test_digits_of_rates(value, error, text):
    assert with_error(value, error) == text


def test_errors_of_areas(tracks):
    with pytest.raises(ValueError, match="kind='lines' must be one of 'bands', 'curves'"):
        plot_areas(tracks, kind="lines")
    with pytest.raises(TypeError, match="tracks of type list must be Tracks"):
        plot_areas([])
    with pytest.raises(TypeError, match="time_units=3 must be a text"):
        plot_areas(tracks, time_units=3)
    with pytest.raises(TypeError, match="pixel_units=3 must be a text"):
        plot_areas(tracks, pixel_units=3)
    with pytest.raises(ValueError, match="rates=True needs kind='curves'"):
        plot_areas(tracks, rates=True)
    with pytest.raises(TypeError, match="rates='yes' must be True or False"):
        plot_areas(tracks, rates="yes")
    assert plt.get_fignums() == []


# --- film ----------------------------------------------------------------------------------------


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_film_has_the_frames_of_the_series(series, tracks, tmp_path):
    path = tmp_path / "film.gif"
    path.write_text("older")
    with mpl.rc_context({"savefig.bbox": "tight"}):
        assert animate_series(series, str(path), tracks=tracks, fps=10, dpi=60) == path
    assert files(tmp_path) == ["film.gif"]
    assert plt.get_fignums() == []
    with Image.open(path) as film:
        assert film.n_frames == 8
        assert film.info["duration"] == 100
        assert film.info["loop"] == 0
        assert film.width == 200
        pictures = []
        for t in range(8):
            film.seek(t)
            pictures.append(np.asarray(film.convert("RGB")).astype(int))
    # The outlines of a frame are in it, in the colours of the tracks.
    colors = np.round(255 * track_colors(tracks)).astype(int)
    for t, seen in ((0, {0, 1}), (FAILED, set()), (7, {0, 3})):
        for k, color in enumerate(colors):
            near = (np.abs(pictures[t] - color).sum(axis=2) < 60).sum()
            assert (near > 20) == (k in seen), (t, k, near)


def test_what_a_frame_of_a_film_shows(series, tracks):
    film = Film(series, tracks, [0, 1, 2, 3, 5, 6, 7], 60, True)
    film.draw(1)
    ax = film._ax
    np.testing.assert_array_equal(ax.images[0].get_array(), series.image(1))
    levels = ax.images[0].get_clim()
    assert texts(ax) == ["0", "1", "2"]
    np.testing.assert_allclose(outlines(ax).get_colors()[:, :3], track_colors(tracks)[:3])
    assert film._text.get_text() == "0.25 min    frame 2 of 8"
    film.draw(FAILED)
    assert len(ax.images) == len(ax.collections) == 0
    assert texts(ax) == ["frame failed\n\nfile is broken"]
    film.draw(7)
    assert ax.images[0].get_clim() == levels
    assert texts(ax) == ["0", "3"]


@pytest.mark.parametrize(
    ("times", "text"),
    [([0, 1, 2], "1 s"), ([0, 0.25, 0.5], "0.25 s"), ([0, 1e-3], "0.001 s"), ([0], "0 s")],
)
def test_times_tell_frames_apart(times, text):
    series = SimpleNamespace(times=np.array(times, dtype=float), time_units="s")
    assert time_text(series, min(1, len(times) - 1)) == text


@pytest.mark.parametrize("where", ["draw", "save"])
def test_nothing_half_written_is_left(series, tracks, tmp_path, monkeypatch, where):
    path = tmp_path / "film.gif"
    path.write_text("older")

    def fail(*args, **options):
        if where == "save":
            tmp_path.joinpath(args[1]).write_bytes(b"GIF89a")
        raise OSError("disk full")

    whole = Film.draw
    if where == "draw":
        monkeypatch.setattr(Film, "draw", lambda film, t: fail() if t == 3 else whole(film, t))
    else:
        monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        animate_series(series, path, tracks=tracks, dpi=30)
    assert files(tmp_path) == ["film.gif"]
    assert path.read_text() == "older"


FFMPEG = """#!{python}
import pathlib, sys
n = len(sys.stdin.buffer.read())
w, h = map(int, sys.argv[sys.argv.index("-s") + 1].split("x"))
pathlib.Path(sys.argv[-1]).write_text(f"{{w}} {{h}} {{n}} {{sys.argv}}")
sys.exit({code} and "no such encoder")
"""


@pytest.fixture
def ffmpeg(tmp_path):
    """Something that counts bytes as ffmpeg."""

    def make(code):
        tool = tmp_path / "bin" / "ffmpeg"
        tool.parent.mkdir()
        tool.write_text(FFMPEG.format(python=sys.executable, code=code))
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        return mpl.rc_context({"animation.ffmpeg_path": str(tool), "savefig.bbox": "tight"})

    return make


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script")
def test_mp4_goes_through_ffmpeg(series, tracks, tmp_path, ffmpeg):
    with ffmpeg(0):
        animate_series(series, tmp_path / "film.mp4", tracks=tracks, dpi=61)
    width, height, n_bytes, args = (tmp_path / "film.mp4").read_text().split(" ", 3)
    assert int(n_bytes) == 8 * 4 * int(width) * int(height)
    assert int(width) % 2 == int(height) % 2 == 0  # h264 takes no others
    assert "'-f', 'mp4'" in args
    assert files(tmp_path) == ["bin", "film.mp4"]
    assert plt.get_fignums() == []


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script")
def test_what_ffmpeg_says_is_told(series, tracks, tmp_path, ffmpeg):
    with ffmpeg(1), pytest.raises(OSError, match=r"film.mp4 \(no such encoder\); write a .gif"):
        animate_series(series, tmp_path / "film.mp4", tracks=tracks, dpi=30)
    assert files(tmp_path) == ["bin"]


def test_errors_of_films(series, tracks, tmp_path):
    def check(match, error=ValueError, name="film.gif", **options):
        with pytest.raises(error, match=match):
            animate_series(series, tmp_path / name, **{"tracks": tracks} | options)

    check("must end in .gif or .mp4", name="film.h5")
    check("path=.* lies in a folder that does not exist", name="no/film.gif")
    check("fps=0 must be a finite number from 0.1 to 50", fps=0)
    check("fps=51", fps=51)
    check("dpi=2000", dpi=2000)
    check("numbers=1 must be True or False", TypeError, numbers=1)
    check("tracks of type list", TypeError, tracks=[1])
    with mpl.rc_context({"animation.ffmpeg_path": "/no/ffmpeg"}):
        check("needs ffmpeg, which is not there; install it", name="film.mp4")
    with pytest.raises(TypeError, match="path=3 must be a path"):
        animate_series(series, 3)
    (tmp_path / "folder.gif").mkdir()
    check("is a folder", name="folder.gif")
    assert files(tmp_path) == ["folder.gif"]


@pytest.mark.slow
def test_figures_of_a_real_series(tmp_path):
    movie = simulate_series((16, 14), (32, 30), n_frames=3, n_particles=2, seed=3, rotation=0)
    frames = [movie.frame(0), np.zeros((3, 3)), movie.frame(2)]
    series = cluster_series(
        frames,
        out=tmp_path / "s.h5",
        progress_bar=False,
        n_jobs=1,
        time_units="s",
        on_error="record",
    )
    assert list(series.errors) == [1]
    tracks = series.tracks()
    assert tracks.n_tracks > 0
    ax = drawn(plot_tracks(series))
    assert len(outlines(ax).get_segments()) == len(tracks)
    drawn(plot_areas(tracks, time_units=series.time_units, pixel_units=series[0].pixel_units))
    with Image.open(animate_series(series, tmp_path / "film.gif", dpi=40)) as film:
        assert film.n_frames == 3
