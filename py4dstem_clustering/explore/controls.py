"""Buttons, sliders and the line of text of the window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from textwrap import wrap
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.widgets import Slider

from ..plotting.style import PALETTE
from .drawing import Cell
from .layout import GROUPS, arrange, arrange_buttons

QUIET_COLOR, ACTIVE_COLOR = "0.92", "#BFDDEE"
"""Colours of a button, and of the chosen one of a group."""


KEYS = {
    "l": "look", "j": "join", "s": "split", "d": "drop", "b": "paint", "e": "erase", "n": "name",
    "i": "disk", "u": "undo", "y": "redo", "a": "auto", "k": "keep", "ctrl+z": "undo",
    "ctrl+y": "redo", "ctrl+shift+z": "redo",
}  # fmt: skip
"""Keys that have the effect of a button; those of one letter stand on it."""


class Choice:
    """A group of buttons of which one is chosen.

    Parameters
    ----------
    controls : Controls
    caption : str
        The group, one of `GROUPS`.
    chosen : callable
        Is called with the name of a button that is pressed.
    """

    def __init__(self, controls: Controls, caption: str, chosen: Callable[[str], None]) -> None:
        self._controls = controls
        self.value = ""
        for name in GROUPS[caption]:
            controls.pressed[name] = partial(chosen, name)

    def show(self, name: str) -> list[Axes]:
        """Mark a button as the chosen one, without an event; the axes that this changes."""
        if name == self.value:
            return []
        buttons = self._controls.buttons
        if self.value:
            buttons[self.value].set_facecolor(QUIET_COLOR)
        buttons[name].set_facecolor(ACTIVE_COLOR)
        self.value = name
        return [self._controls.panel_ax]


class Controls:
    """All buttons and sliders of the window, and the line of text.

    Parameters
    ----------
    figure : Figure
    last_size : int
        Number of the last step of the slider of sizes.

    Attributes
    ----------
    buttons : dict
        The rectangle of each button. All lie in one axes, because axes take long to make and draw.
    pressed : dict
        What each button calls.
    """

    def __init__(self, figure: Figure, last_size: int) -> None:
        self._figure = figure
        cells = arrange(*figure.get_size_inches())
        # Sliders draw the figure when they are made, which is quickest while it is empty.
        self.slider = self._slider(cells["slider"], 1)
        self.size_slider = self._slider(cells["size_slider"], last_size)
        self.size_slider.label.set_text("min_size")
        self.text_ax = figure.add_axes(cells["text"])
        self.text_ax.set_axis_off()
        self.text = self.text_ax.text(0.008, 0.5, "", fontsize=8, va="center", color="0.1")
        self._ticks: list[Any] = []
        self._names: dict[int, str] = {}
        self.panel_ax = figure.add_axes(cells["panel"])
        self.panel_ax.set_axis_off()
        self.buttons: dict[str, Rectangle] = {}
        self.pressed: dict[str, Callable[[], Any]] = {}
        self._make_buttons()

    def _make_buttons(self) -> None:
        places = arrange_buttons()
        keys = {name: f"{name} ({key})" for key, name in KEYS.items() if len(key) == 1}
        style: dict[str, Any] = {"fontsize": 8, "va": "center"}
        for caption, names in GROUPS.items():
            left, top, _, high = places[f"{caption} caption"]
            self.panel_ax.text(left, top + high / 2, caption, color="0.3", **style)
            for name in names:
                left, top, wide, high = places[name]
                button = Rectangle((left, top), wide, high, facecolor=QUIET_COLOR, edgecolor="0.7")
                self.panel_ax.add_patch(button)
                self.buttons[name] = button
                middle = left + wide / 2, top + high / 2
                self.panel_ax.text(*middle, keys.get(name, name), ha="center", **style)

    def _slider(self, cell: Cell, last: int) -> Slider:
        ax = self._figure.add_axes(cell)
        made = Slider(ax, "", 0, last, valinit=0, valstep=1, color=PALETTE[0])
        made.vline.set_visible(False)
        made.label.set_fontsize(8)
        made.label.set_x(-0.04)
        made.valtext.set_fontsize(8)
        made.drawon = False
        return made

    def press(self, event: Any) -> bool:
        """Press the button under the mouse; False if there is none."""
        for name, button in self.buttons.items():
            if event.inaxes is self.panel_ax and button.contains(event)[0]:
                self.pressed[name]()
                return True
        return False

    def disconnect(self) -> None:
        """End all reactions of the sliders."""
        self.slider.disconnect_events()
        self.size_slider.disconnect_events()

    def place(self) -> dict[Axes, Cell]:
        """Put everything to its place in the present size of the figure; the cells to redraw."""
        cells = arrange(*self._figure.get_size_inches())
        own = {self.text_ax: "text", self.slider.ax: "slider", self.size_slider.ax: "size_slider"}
        own[self.panel_ax] = "panel"
        for ax, name in own.items():
            ax.set_position(cells[name])
        size = 100 * self._figure.get_size_inches()
        self.panel_ax.set_xlim(0, cells["panel"][2] * size[0])
        self.panel_ax.set_ylim(cells["panel"][3] * size[1], 0)
        return {ax: cells.get(f"{name} cell", cells[name]) for ax, name in own.items()}

    def name_steps(self, names: Mapping[int, str], label: str) -> bool:
        """Write names below steps of the upper slider; whether they or its label change."""
        if names == self._names and label == self.slider.label.get_text():
            return False
        self._names = dict(names)
        self.slider.label.set_text(label)
        for artist in self._ticks:
            artist.remove()
        ax = self.slider.ax
        style: dict[str, Any] = {"fontsize": 7, "color": "0.3", "va": "top"}
        style["transform"] = ax.get_xaxis_transform()
        self._ticks = []
        for k, (at, text) in enumerate(sorted(names.items())):
            # The first name ends at its step and the last one starts there, so that names of steps
            # that lie close together stand apart.
            left = k + 1 < len(names)
            text = f"{text} ▴" if left else f"▴ {text}"
            self._ticks.append(ax.text(at, 0.1, text, ha="right" if left else "left", **style))
        return True

    def say(self, text: str) -> list[Axes]:
        """Write the line of text; the axes that this changes."""
        letters = int(self._figure.get_figwidth() * 16)
        text = "\n".join(wrap(text, letters)[:2])
        if text == self.text.get_text():
            return []
        self.text.set_text(text)
        return [self.text_ax]


def moving(slider: Slider) -> list[Artist]:
    """What changes when a slider moves."""
    return [slider.poly, *slider.ax.lines, slider.valtext]


def set_slider(slider: Slider, n_steps: int, at: int, text: str) -> None:
    """Move a slider without an event to one of its steps, and write a text beside it."""
    slider.valmax = max(1, n_steps - 1)
    slider.ax.set_xlim(0, slider.valmax)
    slider.eventson = False
    slider.set_val(min(at, slider.valmax))
    slider.eventson = True
    slider.valtext.set_text(text)
