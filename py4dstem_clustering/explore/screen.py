"""The figure of the window: what it shows, and what events of mouse and keys do."""

from __future__ import annotations

from functools import partial
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backend_bases import key_press_handler
from numpy.typing import NDArray

from ..grains.edits import cluster_names
from ..grains.options import METHODS
from .coloring import COLORINGS, Coloring
from .controls import KEYS, Choice, Controls, moving, set_slider
from .drawing import Painter, Pause, alone
from .layout import FIGURE_SIZE
from .pictures import Pictures
from .slider import count_steps, level_steps, nearest, size_steps
from .source import Source
from .tools import TEXTS, Tools

LEVEL_NAMES = {"merge": "level", "grow": "similarity"}
"""What the slider of levels is called."""

AGAIN = "Growth of the whole pattern. Press grow to choose the ring to compare."
"""What the window says when it opens with growth without a choice of detector pixels."""

NOTEBOOK = {"toolbar_position": "bottom", "toolbar_visible": True, "header_visible": False}
"""How ipympl shows the figure in a notebook. Elsewhere its toolbar would lie over the pictures."""


class Screen:
    """The figure of a `ClusterExplorer`.

    Parameters
    ----------
    explorer : ClusterExplorer
    source : Source
    image : ndarray, (Rx, Ry)
        Grey picture of the scan.
    power : float
        Exponent of the intensities that are drawn.
    """

    def __init__(self, explorer: Any, source: Source, image: NDArray[Any], power: float) -> None:
        self._explorer, self._source = explorer, source
        self.lock = explorer.lock
        self._coloring = Coloring(source)
        self._scale = "level"
        self._disk: Any = None
        self._level_steps: dict[Any, NDArray[Any]] = {}
        self._sizes = size_steps(image.size)
        self._moved: set[str] = set()
        self._open()
        self.controls = Controls(self.figure, len(self._sizes) - 1)
        self.pictures = Pictures(self.figure, image, source.detector, source.steps, power)
        self.tools = Tools(explorer, self, source.shape, max(1, round(min(source.detector) / 24)))
        self._painter = Painter(self.figure, self._place())
        self._connect()
        asks = explorer.method == "grow" and source.needs_annulus()
        self.controls.say(AGAIN if asks else TEXTS["look"])
        self.pictures.draw_no_position()
        for ax in (self.pictures.image_ax, self.pictures.label_ax):
            ax.format_coord = self._at  # type: ignore[method-assign]

    def _at(self, x: float, y: float) -> str:
        """What the toolbar says of a place on the scan."""
        rx, ry = round(y), round(x)
        labels = self._explorer.clusters.labels
        if not (0 <= rx < labels.shape[0] and 0 <= ry < labels.shape[1]):
            return ""
        label = labels[rx, ry]
        return f"position {rx}, {ry}: " + (f"cluster {label}" if label >= 0 else "no cluster")

    def _open(self) -> None:
        """Open the figure; the current figure of the user stays the current one."""
        current = plt.gcf().number if plt.get_fignums() else None
        self.figure = plt.figure(figsize=FIGURE_SIZE, layout="none")
        # Callbacks of matplotlib hold only weak references, so the figure must refer to the window.
        vars(self.figure)["explorer"] = self._explorer
        if current is not None:
            plt.figure(current)
        # Otherwise the whole figure is drawn again whenever anything in it changes.
        self.figure.stale_callback = None
        canvas = self.figure.canvas
        if canvas.manager is not None:
            canvas.manager.set_window_title(f"Clusters of {self._source.name}")
        for name, value in NOTEBOOK.items():
            if hasattr(canvas, name):
                setattr(canvas, name, value)

    @property
    def coloring(self) -> str:
        """What the colours of the label map show."""
        return self._coloring.what

    def _place(self) -> dict[Axes, Any]:
        return {**self.pictures.place(), **self.controls.place()}

    def _connect(self) -> None:
        controls = self.controls
        self.method = Choice(controls, "method", self._on_method)
        self.scale = Choice(controls, "slider moves", self._on_scale)
        self.colors = Choice(controls, "colour", self._on_color)
        self.tool = Choice(controls, "a click will", self._on_tool)
        self.scale.show("level")
        self.tool.show("look")
        controls.pressed |= {
            "undo": self._explorer.undo,
            "redo": self._explorer.redo,
            "auto": partial(self._explorer.set, threshold="auto"),
            "keep": self._on_keep,
        }
        controls.slider.on_changed(partial(self._on_slider, "level"))
        controls.size_slider.on_changed(partial(self._on_slider, "size"))
        canvas: Any = self.figure.canvas
        self._pause = Pause(canvas, self._follow)
        self._late: list[Axes] = []
        self._late_pause = Pause(canvas, self._repaint_late)
        self._connected = [
            canvas.mpl_connect(name, react)
            for name, react in (
                ("button_press_event", self._on_press),
                ("motion_notify_event", self._on_move),
                ("button_release_event", self._on_release),
                ("key_press_event", self._on_key),
                ("resize_event", self._on_resize),
                ("draw_event", self._on_draw),
                ("close_event", self._on_close),
            )
        ]
        # `_on_key` passes other keys to matplotlib, where the key "left" would undo a zoom.
        manager = canvas.manager
        self._default_keys = None if manager is None else manager.key_press_handler_id
        if self._default_keys is not None:
            canvas.mpl_disconnect(self._default_keys)

    @alone
    def disconnect(self) -> None:
        """End all reactions to mouse and keys."""
        if not self._connected:
            return
        self._pause.stop()
        self._late_pause.stop()
        self.controls.disconnect()
        for number in self._connected:
            self.figure.canvas.mpl_disconnect(number)
        self._connected = []
        manager = self.figure.canvas.manager
        if self._default_keys is not None and manager is not None:
            manager.key_press_handler_id = self.figure.canvas.mpl_connect(
                "key_press_event", key_press_handler
            )

    # --- drawing -----------------------------------------------------------------------------

    def say(self, text: str, *axes: Axes) -> None:
        """Write the line of text, and draw `axes` again."""
        self._painter.repaint(*axes, *self.controls.say(text))

    def later(self, *axes: Axes) -> None:
        """Draw `axes` again in the next pause of events."""
        self._late += axes
        self._late_pause.ask()

    @alone
    def _repaint_late(self) -> None:
        axes, self._late = self._late, []
        self._painter.repaint(*dict.fromkeys(axes))

    def show(self) -> None:
        """Draw the clusters."""
        pictures, controls = self.pictures, self.controls
        self._draw_labels()
        axes = [pictures.label_ax]
        over: dict[Axes, Any] = {}
        if self._explorer.position is not None:
            self._draw_patterns()
            axes.append(pictures.average_ax)
            over[pictures.image_ax] = pictures.moving
        axes += self.method.show(self._explorer.method) + self.colors.show(self.coloring)
        axes += self._match_sliders()
        over |= {slider.ax: moving(slider) for slider in (controls.slider, controls.size_slider)}
        self._painter.repaint(*axes, over=over)

    def _draw_labels(self) -> None:
        """Draw the label map."""
        clusters = self._explorer.clusters
        title = f"{len(clusters)} cluster{'s' * (len(clusters) != 1)}"
        colors, note = self._coloring.colors_of(clusters)
        n_edits = len(self._explorer.edits)
        if n_edits:
            title += f", {n_edits} edit{'s' * (n_edits != 1)}"
        elif clusters.settings["threshold"] == "auto" and not note:  # both would be too long
            title += ", automatic cut"
        self.pictures.draw_labels(clusters.labels, colors, title + note, cluster_names(clusters))

    def color_by(self, what: str) -> None:
        """Colour the clusters by something that is known; purity is measured now."""
        if what == "purity":
            self._coloring.measure_purity(self._explorer.clusters)
        self._coloring.what = what
        self.show()

    def show_image(self, image: NDArray[Any], title: str, disk: Any) -> None:
        """Show a virtual image, and the `disk` (centre and radius) that it is of."""
        self.pictures.set_image(image, title)
        self._disk = disk
        self.pictures.mark_rings(*([None] if disk is None else disk))
        self._draw_labels()
        pictures = self.pictures
        self._painter.repaint(pictures.image_ax, pictures.label_ax, pictures.pattern_ax)

    def end_question(self) -> None:
        """Show the pattern again, without the ring that was asked for."""
        self.pictures.mark_rings(*([None] if self._disk is None else self._disk))
        self.show_patterns()

    def show_patterns(self) -> None:
        """Show the pattern of the clicked position, and the average if it was read."""
        self._draw_patterns()
        self._painter.repaint(*self.pictures.place())

    def _draw_patterns(self) -> None:
        explorer = self._explorer
        if explorer.position is None:
            self.pictures.draw_no_position()
            return
        labels = explorer.clusters.labels
        label = int(labels[explorer.position])
        titles = "position {}, {}".format(*explorer.position), ""
        member = None
        explorer.average = None
        if label >= 0:
            member = labels == label
            explorer.average = self._source.known_average(member)
            titles = titles[0], f"cluster {label}: mean of {int(member.sum())}"
        self.pictures.draw_position(
            explorer.position, explorer.pattern, member, explorer.average, titles
        )

    # --- sliders -----------------------------------------------------------------------------

    def _steps(self) -> NDArray[Any]:
        """Levels, or numbers of clusters, at the steps of the upper slider."""
        explorer = self._explorer
        if self._scale != "level":
            return count_steps(explorer.counts, explorer.method)
        key = explorer.tree, explorer.min_size
        if key not in self._level_steps:
            drop = self._source.options[explorer.method].drop_background is not False
            self._level_steps[key] = level_steps(*key, drop)
        return self._level_steps[key]

    def _match_sliders(self) -> list[Axes]:
        """Set the sliders to the cut on the screen, without events; axes to draw as a whole."""
        explorer, controls = self._explorer, self.controls
        steps = self._steps()
        level = explorer.clusters.settings["level"]
        names: dict[int, str] = {}
        value: Any = explorer.clusters.n_clusters
        text, label = f"{value}", "clusters"
        if self._scale == "level":
            # Without a level, each branch is cut at its own one.
            value, text = level, "auto" if level is None else f"{level:.4g}"
            label = LEVEL_NAMES[explorer.method]
            for name, known in explorer.tree.named_levels.items():
                names[nearest(steps, known)] = name
                if known == level:
                    text = f"{text}, {name}"
        at = int(controls.slider.val) if value is None else nearest(steps, value)
        set_slider(controls.slider, len(steps), min(at, len(steps) - 1), text)
        changed = controls.name_steps(names, label)
        size = nearest(self._sizes, explorer.min_size)
        set_slider(controls.size_slider, len(self._sizes), size, f"{explorer.min_size}")
        return [controls.slider.ax] if changed else []

    @alone
    def _on_slider(self, which: str, value: float) -> None:
        self._moved.add(which)
        if self._pause.waits and self.figure.canvas.supports_blit:
            slider = self.controls.slider if which == "level" else self.controls.size_slider
            self._painter.repaint(over={slider.ax: moving(slider)})
        self._pause.ask()

    def settle(self) -> None:
        """Do now what a slider asked for."""
        self._pause.flush()

    @alone
    def _follow(self) -> None:
        """Show the cut to which the sliders have moved."""
        moved, self._moved = self._moved, set()
        options: dict[str, Any] = {}
        if "size" in moved:
            options["min_size"] = int(self._sizes[int(self.controls.size_slider.val)])
        if "level" in moved:
            steps = self._steps()
            step = steps[min(int(self.controls.slider.val), len(steps) - 1)]
            if self._scale == "level":
                options["threshold"] = float(step)
            else:
                options["n_clusters"] = int(step)
        self._explorer.set(**options)

    # --- events ------------------------------------------------------------------------------

    def _on_method(self, name: str) -> None:
        explorer = self._explorer
        new = "grow" not in explorer.trees or explorer.method == "grow"
        if name == "grow" and new and self._source.needs_annulus():
            self.tools.ask_annulus(self._source.annulus(), self._source.mean)
        else:
            self.tools.use(self.tools.tool)
            explorer.set(method=next(method for method in METHODS if method == name))

    def _on_scale(self, name: str) -> None:
        self.settle()
        self._scale = name
        self._match_sliders()
        self._painter.repaint(self.controls.slider.ax, *self.scale.show(name))

    def _on_color(self, name: str) -> None:
        try:
            self._explorer.color_by(name)
            self.say(TEXTS[self.tools.tool])
        except ValueError as error:
            self.say(str(error))

    def _on_tool(self, name: str) -> None:
        changed = self.tool.show(name)
        self.tools.use(name)
        self._painter.repaint(*changed)

    def _on_keep(self) -> None:
        kept = self._explorer.keep()
        self.say(f"Kept {kept.n_clusters} clusters: datacube.clusters, stored by py4DSTEM.save.")

    def _on_close(self, event: Any) -> None:
        self.disconnect()

    def _on_draw(self, event: Any) -> None:
        self._painter.drawn()

    @alone
    def _on_resize(self, event: Any) -> None:
        self._painter.cells = self._place()
        self._painter.repaint_all()

    @alone
    def _on_press(self, event: Any) -> None:
        # The toolbar may zoom or pan.
        if event.button != 1 or self.figure.canvas.widgetlock.locked():
            return
        if not self.controls.press(event):
            self.tools.press(event)

    @alone
    def _on_move(self, event: Any) -> None:
        self.tools.move(event)

    @alone
    def _on_release(self, event: Any) -> None:
        self.tools.release()

    @alone
    def _on_key(self, event: Any) -> None:
        key = event.key or ""
        if self.tools.key(key):
            if not self.tools.busy:
                self._painter.repaint(*self.tool.show(self.tools.tool))
            return
        name = KEYS.get(key)
        if name is not None:
            self.controls.pressed[name]()
        elif key in ("left", "right"):
            self._move(self.controls.slider, 1 if key == "right" else -1)
        elif key in ("up", "down"):
            self._move(self.controls.size_slider, 1 if key == "up" else -1)
        elif key in ("[", "]"):
            self.tools.resize(1 if key == "]" else -1)
        elif key == "c":
            known = [k for k in COLORINGS if k in {"cluster", "size", *self._source.colors}]
            at = known.index(self.coloring) if self.coloring in known else -1
            self._on_color(known[(at + 1) % len(known)])
        elif key in ("1", "2"):
            levels = list(self._explorer.tree.named_levels.values())
            if len(levels) >= int(key):
                self._explorer.set(threshold=levels[int(key) - 1])
        else:
            key_press_handler(event)

    def _move(self, slider: Any, by: int) -> None:
        value = slider.val + by
        if slider.valmin <= value <= slider.valmax:
            slider.set_val(value)
