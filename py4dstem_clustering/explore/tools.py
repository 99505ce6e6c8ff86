"""What clicks, drags and keys do in the window."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ..grains.actions import MAX_NAME, action_text
from ..grains.splitting import finer_level
from .source import Annulus

TEXTS = {
    "look": "Click a position: its pattern, and the average of its cluster.",
    "join": "Click two clusters: they become one.",
    "split": "Click a cluster: it falls into its pieces at the next finer level.",
    "drop": "Click a cluster that is background.",
    "paint": "Drag from a cluster: what the brush covers joins it. From outside: a new cluster.",
    "erase": "Drag: what the brush covers is in no cluster.",
    "name": "Click a cluster, type its name, press Enter.",
    "disk": "Click a disk in the pattern: its virtual image. A click on the image goes back.",
}
"""What each tool does, for the line of text."""

MAX_RADIUS = 100
"""Largest radius of the brush in scan positions, and of the disk in detector pixels."""

PIECE_SHARE = 0.02
"""Smallest share of a cluster that a click with "split" makes a piece of its own. With a smaller
one, clusters of growth fall into single positions."""


class Tools:
    """The tool that is in use, and what it has taken up.

    Parameters
    ----------
    explorer : ClusterExplorer
    screen : Screen
    shape : (int, int)
        (Rx, Ry)
    disk_radius : int
        Radius of the disk of a virtual image at the start, detector pixels.

    Attributes
    ----------
    tool : str
        One of `TEXTS`.
    radius : int
        Radius of the brush, scan positions.
    disk_radius : int
        Radius of the disk of a virtual image, detector pixels.
    """

    def __init__(
        self, explorer: Any, screen: Any, shape: tuple[int, int], disk_radius: int
    ) -> None:
        self._explorer, self._screen, self._shape = explorer, screen, shape
        self.tool = "look"
        self.radius, self.disk_radius = 1, disk_radius
        self._first: tuple[int, int] | None = None
        self._stroke: list[tuple[int, int]] = []
        self._named: tuple[int, int] | None = None
        self._text = ""
        self._annulus: Annulus | None = None
        self._inner: float | None = None

    @property
    def busy(self) -> bool:
        """Whether keys are letters of a name, or answer a question."""
        return self._named is not None or self._annulus is not None

    def use(self, tool: str) -> None:
        """Take another tool, and forget what the last one had taken up."""
        asked = self._annulus is not None
        self.tool = tool
        self._first = self._named = self._annulus = self._inner = None
        self._stroke = []
        pictures = self._screen.pictures
        pictures.mark_first(None)
        pictures.draw_brush([], 0)
        if asked:
            self._screen.end_question()
        self._say(TEXTS[tool], pictures.label_ax)

    def _say(self, text: str, *axes: Axes) -> None:
        if self.tool in ("paint", "erase") and self._annulus is None:
            text += f" Brush: radius {self.radius}, keys [ and ]."
        if self.tool == "disk" and self._annulus is None:
            text += f" Radius {self.disk_radius}, keys [ and ]."
        self._screen.say(text, *axes)

    def resize(self, by: int) -> None:
        """Make the brush, or the disk of a virtual image, larger or smaller."""
        if self.tool == "disk":
            self.disk_radius = min(max(self.disk_radius + by, 1), MAX_RADIUS)
        else:
            self.radius = min(max(self.radius + by, 0), MAX_RADIUS)
        self._say(TEXTS[self.tool])

    # --- clicks ------------------------------------------------------------------------------

    def _inside(self, event: Any) -> tuple[int, int] | None:
        """The scan position under the mouse."""
        position = round(event.ydata), round(event.xdata)
        inside = all(0 <= k < n for k, n in zip(position, self._shape, strict=True))
        return position if inside else None

    def press(self, event: Any) -> None:
        """React to a button of the mouse that goes down."""
        pictures = self._screen.pictures
        if event.inaxes in (pictures.pattern_ax, pictures.average_ax):
            if self._annulus is not None:
                self._pick_ring(event)
            elif self.tool == "disk":
                self._explorer.show_disk((event.ydata, event.xdata), self.disk_radius)
            return
        if event.inaxes not in (pictures.image_ax, pictures.label_ax) or self._annulus is not None:
            return
        position = self._inside(event)
        if position is None:
            return
        if self.tool == "disk" and event.inaxes is pictures.image_ax:
            self._explorer.show_disk(None, self.disk_radius)
        elif self.tool in ("look", "disk"):
            self._explorer.pick(position)
        elif self.tool in ("paint", "erase"):
            self._stroke = [position]
            self._draw_stroke()
        elif self._explorer.clusters.labels[position] < 0:
            self._say("This position is in no cluster.")
        else:
            {"join": self._join, "split": self._split, "drop": self._drop, "name": self._name}[
                self.tool
            ](position)

    def move(self, event: Any) -> None:
        """React to the mouse that moves with the button down."""
        pictures = self._screen.pictures
        if self._stroke and event.inaxes in (pictures.image_ax, pictures.label_ax):
            position = self._inside(event)
            if position is not None and position != self._stroke[-1]:
                self._stroke.append(position)
                self._draw_stroke()

    def _draw_stroke(self) -> None:
        pictures = self._screen.pictures
        pictures.draw_brush(self._stroke, self.radius)
        self._screen.later(pictures.label_ax)

    def release(self) -> None:
        """React to the button of the mouse that goes up: the stroke of a brush ends."""
        if not self._stroke:
            return
        stroke, self._stroke = self._stroke, []
        self._screen.pictures.draw_brush([], 0)
        options: dict[str, Any] = {"stroke": [list(k) for k in stroke], "radius": self.radius}
        if self.tool == "paint":
            inside = self._explorer.clusters.labels[stroke[0]] >= 0
            options = {"to": list(stroke[0]) if inside else None, **options}
        self._edit(self.tool, **options)

    def _edit(self, what: str, **options: Any) -> None:
        try:
            self._explorer.edit(action_text(what, **options))
        except ValueError as error:
            self._say(str(error))
        else:
            self._say(f"Done: {what}. {TEXTS[self.tool]}")

    def _join(self, position: tuple[int, int]) -> None:
        pictures, labels = self._screen.pictures, self._explorer.clusters.labels
        if self._first is None or labels[self._first] == labels[position]:
            self._first = position
            pictures.mark_first(position)
            self._say("Now click the cluster that it joins.", pictures.label_ax)
            return
        first, self._first = self._first, None
        pictures.mark_first(None)
        self._edit("join", at=[list(first), list(position)])

    def _split(self, position: tuple[int, int]) -> None:
        labels = self._explorer.clusters.labels
        member = labels == labels[position]
        smallest = max(2, self._explorer.min_size, int(PIECE_SHARE * member.sum()))
        level = finer_level(self._explorer.tree, member, smallest)
        if level is None:
            self._say(f"This cluster has no two pieces of at least {smallest} positions.")
        else:
            self._edit("split", at=list(position), level=level, min_size=smallest)

    def _drop(self, position: tuple[int, int]) -> None:
        self._edit("drop", at=list(position))

    def _name(self, position: tuple[int, int]) -> None:
        self._named, self._text = position, ""
        self._screen.pictures.mark_first(position)
        self._say("Name: _   (Enter: done, Esc: leave)", self._screen.pictures.label_ax)

    # --- the ring of growth ------------------------------------------------------------------

    def ask_annulus(self, proposed: Annulus, mean: NDArray[Any]) -> None:
        """Ask which part of the detector growth compares."""
        self._annulus, self._inner = proposed, None
        pictures = self._screen.pictures
        pictures.draw_mean(mean, "mean pattern: which ring?")
        pictures.mark_rings(proposed[0], *proposed[1])
        self._screen.say(
            "Growth compares a ring of the pattern, without the direct beam. Click its inner, then "
            "its outer radius in the pattern, or press Enter for the ring that is drawn (Esc: "
            "back to merging).",
            pictures.pattern_ax,
        )

    def _pick_ring(self, event: Any) -> None:
        pictures = self._screen.pictures
        if event.inaxes is not pictures.pattern_ax or self._annulus is None:
            return
        center = self._annulus[0]
        radius = round(float(np.hypot(event.ydata - center[0], event.xdata - center[1])), 1)
        if self._inner is None:
            self._inner = radius
            pictures.mark_rings(center, radius)
            self._screen.say("Now click the outer radius.", pictures.pattern_ax)
        elif radius - self._inner >= 1:
            self._grow((center, (self._inner, radius)))
        else:
            self._screen.say("The outer radius must be larger by a pixel or more: click again.")

    def _grow(self, annulus: Annulus) -> None:
        self.use(self.tool)
        self._explorer.grow_in(annulus)

    # --- keys --------------------------------------------------------------------------------

    def key(self, key: str) -> bool:
        """React to a key; False if it is none of this tool's."""
        if self._annulus is not None:
            if key == "enter":
                self._grow(self._annulus)
            elif key == "escape":
                self.use(self.tool)
        elif self._named is not None:
            self._type(self._named, key)
        elif key == "escape":
            self.use("look" if self._first is None and not self._stroke else self.tool)
        else:
            return False
        return True

    def _type(self, position: tuple[int, int], key: str) -> None:
        """Take up a letter of a name."""
        if key == "enter" or key == "escape":
            self.use("name")
            if key == "enter" and self._text.strip():
                self._edit("name", at=list(position), name=self._text.strip())
            return
        if key == "space":
            key = " "
        if key == "backspace":
            self._text = self._text[:-1]
        elif len(key) == 1 and key.isprintable() and len(self._text) < MAX_NAME:
            self._text += key
        self._say(f"Name: {self._text}_   (Enter: done, Esc: leave)")
