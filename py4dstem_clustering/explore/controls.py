"""Buttons, sliders and the line of text of the window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.widgets import Button, Slider

from ..plotting.style import PALETTE
from .drawing import Cell
from .layout import GROUPS, arrange

QUIET_COLOR, ACTIVE_COLOR = "0.92", "#BFDDEE"
"""Colours of a button, and of the chosen one of a group."""


KEYS = {
    "l": "look", "j": "join", "s": "split", "d": "drop", "b": "paint", "e": "erase", "n": "name",
    "i": "disk", "u": "undo", "y": "redo", "a": "auto", "k": "keep",
}  # fmt: skip
"""Keys that have the effect of a button."""


class Choice:
    """A group of buttons of which one is chosen."""

    def __init__(self, buttons: Mapping[str, Button], chosen: Callable[[str], None]) -> None:
        self.buttons, self._chosen = dict(buttons), chosen
        self.value = ""
        for name, button in self.buttons.items():
            button.on_clicked(partial(self._on_click, name))

    def _on_click(self, name: str, event: Any) -> None:
        self._chosen(name)

    def show(self, name: str) -> list[Axes]:
        """Mark a button as the chosen one, without an event; the axes that this changes."""
        if name == self.value:
            return []
        changed = []
        for key, button in self.buttons.items():
            if key in (name, self.value):
                button.color = button.hovercolor = ACTIVE_COLOR if key == name else QUIET_COLOR
                button.ax.set_facecolor(button.color)
                changed.append(button.ax)
        self.value = name
        return changed


class Controls:
    """All widgets of the window.

    Parameters
    ----------
    figure : Figure
    last_step, last_size : int
        Number of the last step of both sliders.
    """

    def __init__(self, figure: Figure, last_step: int, last_size: int) -> None:
        self._figure = figure
        cells = arrange(*figure.get_size_inches())
        self.buttons: dict[str, Button] = {}
        self._captions = {
            caption: figure.text(0, 0, caption, fontsize=8, color="0.3", va="bottom")
            for caption in GROUPS
        }
        keys = {name: f"{name} ({key})" for key, name in KEYS.items()}
        for name in (name for names in GROUPS.values() for name in names):
            ax = figure.add_axes(cells[name])
            button = Button(
                ax, keys.get(name, name), color=QUIET_COLOR, hovercolor=QUIET_COLOR, useblit=False
            )
            button.label.set_fontsize(8)
            button.drawon = False
            for spine in ax.spines.values():
                spine.set_edgecolor("0.7")
            self.buttons[name] = button
        self.slider = self._slider(cells["slider"], last_step)
        self.size_slider = self._slider(cells["size_slider"], last_size)
        self.size_slider.label.set_text("min_size")
        self.text_ax = figure.add_axes(cells["text"])
        self.text_ax.set_axis_off()
        self.text = self.text_ax.text(0.008, 0.5, "", fontsize=8, va="center", color="0.1")
        self._ticks: list[Any] = []

    def _slider(self, cell: Cell, last: int) -> Slider:
        ax = self._figure.add_axes(cell)
        made = Slider(ax, "", 0, last, valinit=0, valstep=1, color=PALETTE[0])
        made.vline.set_visible(False)
        made.label.set_fontsize(8)
        made.valtext.set_fontsize(8)
        made.drawon = False
        return made

    def choice(self, caption: str, chosen: Callable[[str], None]) -> Choice:
        """The buttons of one group as a choice."""
        return Choice({name: self.buttons[name] for name in GROUPS[caption]}, chosen)

    def disconnect(self) -> None:
        """End all reactions of the widgets."""
        for widget in (*self.buttons.values(), self.slider, self.size_slider):
            widget.disconnect_events()

    def place(self) -> dict[Axes, Cell]:
        """Put everything to its place in the present size of the figure; the cells to redraw."""
        cells = arrange(*self._figure.get_size_inches())
        own = {self.text_ax: "text", self.slider.ax: "slider", self.size_slider.ax: "size_slider"}
        own |= {button.ax: name for name, button in self.buttons.items()}
        for ax, name in own.items():
            ax.set_position(cells[name])
        for caption, text in self._captions.items():
            text.set_position(cells[f"{caption} caption"][:2])
        return {ax: cells.get(f"{name} cell", cells[name]) for ax, name in own.items()}

    def name_steps(self, names: Mapping[int, str]) -> None:
        """Write names below steps of the upper slider."""
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

    def say(self, text: str) -> list[Axes]:
        """Write the line of text; the axes that this changes."""
        letters = int(self._figure.get_figwidth() * 16)
        text = "\n".join(wrap(text, letters)[:2])
        if text == self.text.get_text():
            return []
        self.text.set_text(text)
        return [self.text_ax]


def set_slider(slider: Slider, n_steps: int, at: int, text: str) -> None:
    """Move a slider without an event to one of its steps, and write a text beside it."""
    slider.valmax = max(1, n_steps - 1)
    slider.ax.set_xlim(0, slider.valmax)
    slider.eventson = False
    slider.set_val(min(at, slider.valmax))
    slider.eventson = True
    slider.valtext.set_text(text)
