"""Redraw parts of a figure, and only once in a pause of events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, TypeVar, cast

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import TimerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox

PAUSE_MS = 30
"""Time without events after which the window draws, milliseconds. A longer one draws less often
while a slider moves."""

Method = TypeVar("Method", bound=Callable[..., Any])


def alone(method: Method) -> Method:
    """Let a method of an object with a `lock` run in one thread at a time.

    JupyterLab handles events of figures in another thread than cells of a notebook.
    """

    @wraps(method)
    def run(self: Any, *args: Any, **options: Any) -> Any:
        with self.lock:
            return method(self, *args, **options)

    return cast(Method, run)


Cell = tuple[float, float, float, float]
"""Left, bottom, width and height as shares of the figure."""


class Painter:
    """Draws single axes of a figure again, without the others.

    Parameters
    ----------
    figure : Figure
    cells : mapping
        The part of the figure that belongs to each of its axes, with titles and labels.
    """

    def __init__(self, figure: Figure, cells: Mapping[Axes, Cell]) -> None:
        self._figure, self.cells = figure, cells
        self._drawn: tuple[float, ...] = ()
        self._kept: dict[Axes, Any] = {}
        self._all = False

    def drawn(self) -> None:
        """Note that the whole figure was drawn."""
        self._drawn = self._size()
        self._kept.clear()
        self._all = False

    def _size(self) -> tuple[float, ...]:
        return (*self._figure.bbox.size, self._figure.dpi)

    def repaint(self, *axes: Axes, over: Mapping[Axes, Sequence[Artist]] | None = None) -> None:
        """Draw some axes; the whole figure if it has not been drawn in this size yet.

        Of the axes in `over`, only the artists that are given have changed: they are drawn over a
        picture of the other ones, which is kept until these axes are drawn as a whole.
        """
        canvas = self._figure.canvas
        if not isinstance(canvas, FigureCanvasAgg) or self._drawn != self._size() or self._all:
            self.repaint_all()
            return
        for ax in axes:
            self._kept.pop(ax, None)
            self._paint(canvas, ax)
        for ax, artists in (over or {}).items():
            if ax not in axes:
                self._paint_over(canvas, ax, artists)
        if hasattr(canvas, "_force_full"):
            # A browser is sent what has changed since the last picture, but it misses a picture
            # that the next one overtakes, and then keeps what that one had changed.
            canvas._force_full = True
        canvas.blit(self._figure.bbox)

    def _place(self, ax: Axes) -> tuple[float, float, float, float]:
        left, bottom, wide, high = self.cells[ax]
        width, height = self._figure.bbox.size
        return left * width, bottom * height, wide * width, high * height

    def _paint(self, canvas: FigureCanvasAgg, ax: Axes) -> None:
        left, bottom, wide, high = self._place(ax)
        blank = Rectangle((left, bottom), wide, high, color=self._figure.get_facecolor())
        blank.set_figure(self._figure)
        blank.draw(canvas.get_renderer())
        ax.draw(canvas.get_renderer())

    def _paint_over(self, canvas: FigureCanvasAgg, ax: Axes, artists: Sequence[Artist]) -> None:
        if ax not in self._kept:
            hidden = [artist for artist in artists if artist.get_visible()]
            for artist in hidden:
                artist.set_visible(False)
            self._paint(canvas, ax)
            self._kept[ax] = canvas.copy_from_bbox(Bbox.from_bounds(*self._place(ax)))
            for artist in hidden:
                artist.set_visible(True)
        canvas.restore_region(self._kept[ax])
        for artist in artists:
            artist.draw(canvas.get_renderer())

    def repaint_all(self) -> None:
        """Draw the whole figure when the event loop is idle."""
        canvas = self._figure.canvas
        if type(canvas) is FigureCanvasAgg and not self._drawn:
            return  # no window shows it; it is drawn when it is saved
        self._all = True
        canvas.draw_idle()


class Pause:
    """Calls a function once in a pause of events, however often it was asked for.

    Where no event loop runs, as in a script without a window, it is called at once.
    """

    def __init__(self, canvas: Any, run: Callable[[], None]) -> None:
        self._run = run
        self._asked = False
        timer = canvas.new_timer(interval=PAUSE_MS)
        self._timer = None if type(timer) is TimerBase else timer
        if self._timer is not None:
            self._timer.single_shot = True
            self._timer.add_callback(self.flush)

    @property
    def waits(self) -> bool:
        """Whether there is an event loop that tells of pauses."""
        return self._timer is not None

    def ask(self) -> None:
        """Call the function in the next pause."""
        self._asked = True
        if self._timer is None:
            self.flush()
        else:
            self._timer.stop()
            self._timer.start()

    def flush(self) -> None:
        """Call the function now if it was asked for."""
        if self._asked:
            self._asked = False
            self._run()

    def stop(self) -> None:
        """Forget what was asked for."""
        self._asked = False
        if self._timer is not None:
            self._timer.stop()
