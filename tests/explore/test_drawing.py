"""What is drawn again, and how often."""

from __future__ import annotations

import threading

import matplotlib.pyplot as plt
import numpy as np
import pytest
from driving import QUIET, click, drag, make_cube, pictures, press, push, slider, tree_of
from matplotlib.backend_bases import ResizeEvent, TimerBase

from py4dstem_clustering.explore.drawing import Painter, Pause
from py4dstem_clustering.explore.layout import FIGURE_SIZE, arrange, arrange_buttons


class Timer(TimerBase):
    """A timer of an event loop that the test turns."""

    made: list[Timer] = []  # noqa: RUF012

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.runs = False
        Timer.made.append(self)

    def _timer_start(self):
        self.runs = True

    def _timer_stop(self):
        self.runs = False


def pause():
    """Let every timer that runs go off."""
    for timer in [timer for timer in Timer.made if timer.runs]:
        timer.runs = False
        timer._on_timer()


@pytest.fixture
def waiting(monkeypatch):
    """A window of a program with an event loop."""
    monkeypatch.setattr(Timer, "made", [])
    monkeypatch.setattr(
        "matplotlib.backends.backend_agg.FigureCanvasAgg._timer_cls", Timer, raising=False
    )
    monkeypatch.setattr(
        "matplotlib.backend_bases.FigureCanvasBase.new_timer",
        lambda self, interval=None, callbacks=None: Timer(interval, callbacks),
    )
    explorer = make_cube().explore_clusters(tree=tree_of("merge"), **QUIET)
    explorer.figure.canvas.draw()
    return explorer


def count_calls(monkeypatch, target, name):
    calls = []
    old = getattr(target, name)
    monkeypatch.setattr(target, name, lambda *args, **opt: calls.append(args) or old(*args, **opt))
    return calls


def test_many_events_are_one_redraw(waiting, monkeypatch):
    cuts = count_calls(monkeypatch, waiting, "_made")
    maps = count_calls(monkeypatch, pictures(waiting), "draw_labels")
    whole = count_calls(monkeypatch, waiting.figure.canvas, "draw")
    before, steps = waiting._clusters, waiting._screen._steps()
    for k in range(8):
        slider(waiting).set_val(k)
    press(waiting, "up", "up", "right")
    assert waiting._clusters is before
    assert cuts == maps == []
    pause()
    assert len(cuts) == len(maps) == 1
    assert whole == []
    assert waiting.clusters.settings["level"] == steps[8]
    assert waiting.min_size == 3
    pause()
    assert len(cuts) == 1


def test_a_script_need_not_wait_for_the_pause(waiting):
    slider(waiting).set_val(2)
    step = waiting._screen._steps()[2]
    assert waiting.clusters.settings["level"] == step
    slider(waiting).set_val(1)
    waiting.set(min_size=3)  # on top of what the slider asked for
    assert waiting.clusters.settings["level"] < step
    slider(waiting).set_val(5)
    waiting.disconnect()
    level = waiting.clusters.settings["level"]
    pause()
    assert waiting.clusters.settings["level"] == level


def test_a_stroke_is_drawn_once_in_a_pause(waiting, monkeypatch):
    push(waiting, "erase")
    painted = count_calls(monkeypatch, waiting._screen._painter, "repaint")
    drag(waiting, [(3, y) for y in range(15)])
    assert len(painted) <= 3  # one for the edit, and what it says
    pause()
    assert len(painted) <= 4


def another_image(explorer):
    """The picture that was kept of the virtual image is an old one now."""
    explorer.set(n_clusters=2)
    explorer.show_disk((20, 30), 4)
    explorer.set(n_clusters=3)


def zoom(explorer):
    """As the toolbar does."""
    explorer.set(n_clusters=2)
    pictures(explorer).image_ax.set_xlim(3, 12)
    explorer.figure.canvas.draw()
    explorer.set(n_clusters=3)


@pytest.mark.parametrize(
    "act",
    [
        another_image,
        zoom,
        lambda e: slider(e).set_val(3),
        lambda e: e.pick((3, 4)),
        lambda e: click(e, 9, 8),
        lambda e: push(e, "size"),
        lambda e: push(e, "join"),
        lambda e: push(e, "number"),
        lambda e: e.edit("erase(stroke=[[3, 4], [9, 9]], radius=2)"),
        lambda e: e.edit(f"name(at={e.clusters.members(0)[0].tolist()}, name='a')"),
        lambda e: e.show_disk((20, 30), 4),
        lambda e: e.set(n_clusters=2),
        lambda e: press(e, "j", "s", "c"),
    ],
)
def test_drawing_parts_gives_the_same_picture_as_drawing_all(act):
    explorer = make_cube().explore_clusters(tree=tree_of("merge"), **QUIET)
    explorer.pick((12, 13))
    canvas = explorer.figure.canvas
    canvas.draw()
    before = np.asarray(canvas.buffer_rgba()).copy()
    act(explorer)
    parts = np.asarray(canvas.buffer_rgba()).copy()
    canvas.draw()
    whole = np.asarray(canvas.buffer_rgba()).copy()
    assert (before != whole).any()
    # Where cells meet, half-covered pixels of frames may differ.
    assert (np.abs(parts.astype(int) - whole).max(axis=2) > 40).mean() < 1e-3


def test_a_window_of_another_size_is_drawn_as_a_whole(monkeypatch):
    explorer = make_cube().explore_clusters(tree=tree_of("merge"), **QUIET)
    canvas = explorer.figure.canvas
    canvas.draw()
    explorer.figure.set_size_inches(12, 5)
    ResizeEvent("resize_event", canvas)._process()
    whole = count_calls(monkeypatch, canvas, "draw")
    slider(explorer).set_val(3)
    assert len(whole) <= 1
    slider(explorer).set_val(4)
    assert len(whole) <= 1
    boxes = [
        ax.get_position() for ax in (pictures(explorer).image_ax, pictures(explorer).average_ax)
    ]
    assert boxes[1].x0 > 2 * boxes[0].x1  # four pictures in a row


def test_a_canvas_without_pixels_is_drawn_as_a_whole():
    figure, ax = plt.subplots()
    painter = Painter(figure, {ax: (0, 0, 1, 1)})

    class Canvas:
        drawn = 0

        def draw_idle(self):
            Canvas.drawn += 1

    old, figure.canvas = figure.canvas, Canvas()
    painter.drawn()
    painter.repaint(ax)
    assert Canvas.drawn == 1
    figure.canvas = old


def test_a_pause_without_an_event_loop_is_now():
    calls = []
    pause_now = Pause(plt.figure().canvas, lambda: calls.append(1))
    assert not pause_now.waits
    pause_now.ask()
    pause_now.flush()
    assert calls == [1]


def test_events_of_another_thread_wait(waiting):
    """JupyterLab handles events and cells in two threads; a cell must not see half an event."""
    slider(waiting).set_val(2)
    step = waiting._screen._steps()[2]
    found = []
    with waiting.lock:  # an event is handled
        cell = threading.Thread(target=lambda: found.append(waiting.clusters))
        cell.start()
        cell.join(0.2)
        assert found == []
    cell.join(20)
    assert found[0].settings["level"] == step


# --- the layout ------------------------------------------------------------------------------


def overlap(a, b):
    return (
        min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]) > 1e-6
        and min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]) > 1e-6
    )


@pytest.mark.parametrize("size", [FIGURE_SIZE, (9, 7), (12, 5), (16, 9), (7.2, 9)])
def test_nothing_overlaps_and_all_lies_inside(size):
    cells = arrange(*size)
    apart = {k: v for k, v in cells.items() if f"{k} cell" not in cells}
    for name, cell in apart.items():
        assert min(cell) >= -1e-9, name
        assert max(cell[0] + cell[2], cell[1] + cell[3]) <= 1 + 1e-9, name
        for other, second in apart.items():
            assert name == other or not overlap(cell, second), (name, other)
    panel = cells["panel"]
    places = arrange_buttons()
    for name, place in places.items():
        assert place[0] + place[2] <= 100 * size[0] * panel[2] + 1e-6, name
        assert place[1] + place[3] <= 100 * size[1] * panel[3] + 1e-6, name
        for other, second in places.items():
            assert name == other or not overlap(place, second), (name, other)


def test_the_window_fits_a_notebook_of_900_pixels_and_targets_are_large():
    assert 100 * FIGURE_SIZE[0] <= 716  # see test_browser.py
    for name, (_, _, wide, high) in arrange_buttons().items():
        if "caption" not in name:
            assert wide >= 44
            assert high >= 24
    for name in ("slider", "size_slider"):
        assert 100 * FIGURE_SIZE[1] * arrange(*FIGURE_SIZE)[name][3] >= 22


def test_texts_fit_their_window():
    explorer = make_cube().explore_clusters(tree=tree_of("merge"), **QUIET)
    canvas = explorer.figure.canvas
    screen = explorer._screen
    canvas.draw()
    renderer = canvas.get_renderer()
    whole = explorer.figure.bbox
    from py4dstem_clustering.explore.tools import TEXTS

    for name in TEXTS:
        press(explorer, "escape")
        push(explorer, name)
        box = screen.controls.text.get_window_extent(renderer)
        assert box.x1 < whole.x1, name
    push(explorer, "grow")
    box = screen.controls.text.get_window_extent(renderer)
    assert box.x1 < whole.x1
    assert box.y0 >= -1
    for text in screen.controls.panel_ax.texts:
        place = text.get_window_extent(renderer)
        assert place.x1 <= whole.x1
        button = screen.controls.buttons.get(text.get_text().split(" (")[0])
        if button is not None:
            assert place.width < button.get_window_extent(renderer).width
