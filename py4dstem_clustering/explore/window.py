"""A window in which sliders cut a cluster tree, and clicks show patterns.

It needs only matplotlib, and works in a script and in a notebook (``%matplotlib widget``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backend_bases import key_press_handler
from matplotlib.widgets import Button, RadioButtons, Slider
from numpy.typing import NDArray

from ..base.checks import check_choice, check_integer
from ..base.progress import progress
from ..emd.settings import Settings
from ..grains.clusters import Clusters
from ..grains.options import METHODS, ClusterOptions, Method, check_cut
from ..grains.tree import ClusterTree, level_for
from ..kernels.averaging import member_mean
from ..kernels.blocks import read_window
from ..plotting.style import PALETTE
from .pictures import FIGURE_SIZE, Pictures
from .shown import level_steps, nearest, size_steps, thinned

SCALES = ("level", "number of clusters")
"""Quantities that the upper slider can show."""

MAX_AVERAGES = 64
"""Number of averages that are kept in memory. With a larger number, fewer averages are read again
after a click, but more memory is used."""

KEYS = ("left", "right", "a")
"""Keys of the window; matplotlib handles all other keys."""


class ClusterExplorer:
    """A window in which a cluster tree is cut by sliders.

    Made by ``datacube.explore_clusters()``, which explains the window. The window reacts as long
    as this object, or its figure, exists.

    Attributes
    ----------
    clusters : Clusters
        Clusters on the screen, called "explored"; `keep` puts them into the tree of the datacube.
    figure : matplotlib Figure
    trees : dict
        The `ClusterTree` of each method that was used.
    method : "merge" or "grow"
        Method on the screen.
    min_size : int
        Clusters of fewer positions are not shown.
    position : (int, int) or None
        Scan position that was clicked.
    pattern, average : ndarray (Qx, Qy) or None
        Pattern of this position, and mean pattern of its cluster.
    """

    def __init__(
        self,
        datacube: Any,
        trees: Mapping[str, ClusterTree],
        *,
        method: Method,
        image: NDArray[Any],
        measure: Callable[[str], ClusterTree],
        put: Callable[[Clusters, str], Clusters],
        options: Mapping[str, ClusterOptions],
        power: float = 0.25,
        steps: tuple[tuple[float, str], tuple[float, str]] = ((1, "pixels"), (1, "pixels")),
        origin: NDArray[Any] | None = None,
        progress_bar: bool = True,
    ) -> None:
        self._data = datacube.data
        self._name = datacube.name
        self._measure, self._put = measure, put
        self.trees = dict(trees)
        self.method: Method = method
        self._options = options
        self.min_size = options[method].min_size
        self._origin = origin
        self._progress_bar = progress_bar
        self.position: tuple[int, int] | None = None
        self.pattern: NDArray[Any] | None = None
        self.average: NDArray[Any] | None = None
        self._averages: dict[bytes, NDArray[Any]] = {}
        self._counts: dict[tuple[str, int], NDArray[Any]] = {}
        self._level_steps: dict[str, NDArray[Any]] = {}
        self._scale = "level"
        self.clusters = self._cut({})

        self._open()
        self._pictures = Pictures(self.figure, image, self._data.shape[2:], steps, power)
        self._make_widgets(image.size)
        self._connect()
        self._show()

    def __repr__(self) -> str:
        return f"ClusterExplorer({self._name!r}, {self.method!r}, {self.clusters!r})"

    # --- cuts --------------------------------------------------------------------------------

    @property
    def tree(self) -> ClusterTree:
        """The tree of the method on the screen."""
        return self.trees[self.method]

    def _cut(self, cut: Mapping[str, Any]) -> Clusters:
        """Clusters of ``ClusterTree.cut(**cut)``; an empty `cut` is the automatic one."""
        self._last = dict(cut)
        level, n = cut.get("threshold"), cut.get("n_clusters")
        if n is not None:
            # This does the same as `cut`, but counts the clusters at all levels only once.
            level = level_for(self.tree, self._count(), n)
        found = self.tree._cut_with(
            replace(
                self._options[self.method],
                threshold=level,
                n_clusters=None,
                min_size=self.min_size,
            ),
            "explored",
        )
        if n is None:
            return found
        asked = {"threshold": None, "n_clusters": n}
        return replace(found, settings={**Settings(found.settings).everything, **asked})

    def _count(self) -> NDArray[Any]:
        """Number of clusters at each level of the tree."""
        key = self.method, self.min_size
        if key not in self._counts:
            self._counts[key] = self.tree.n_clusters(
                min_size=self.min_size, drop_background=self._options[self.method].drop_background
            )
        return self._counts[key]

    def _steps(self) -> NDArray[Any]:
        """Levels, or numbers of clusters, at the steps of the upper slider."""
        if self._scale == "level":
            if self.method not in self._level_steps:
                self._level_steps[self.method] = level_steps(self.tree)
            return self._level_steps[self.method]
        counts = self._count()
        if self.method == "merge":  # starts at the level with the most clusters
            counts = counts[len(counts) - 1 - counts[::-1].argmax() :]
        counts = np.unique(counts[counts > 0])
        return counts[thinned(len(counts))] if len(counts) else np.ones(1, dtype=int)

    def set(
        self,
        *,
        method: Method | None = None,
        threshold: float | Literal["auto"] | None = None,
        n_clusters: int | None = None,
        min_size: int | None = None,
    ) -> Clusters:
        """Show another cut; any value is possible, not only the steps of the sliders.

        Parameters
        ----------
        method : "merge" or "grow", optional
            By default as on the screen. The tree of the other method is measured when it is first
            needed.
        threshold : float or "auto", optional
            See `ClusterTree.cut`; by default as on the screen.
        n_clusters : int, optional
            See `ClusterTree.cut`.
        min_size : int, optional
            By default as on the screen.

        Returns
        -------
        Clusters
            The clusters that are then on the screen.

        Raises
        ------
        ValueError, TypeError
            Before any work, if an argument breaks its rule.
        """
        chosen: Method = self.method if method is None else method
        check_choice("method", chosen, METHODS)
        size = self.min_size if min_size is None else min_size
        asked = check_cut(chosen, threshold, n_clusters, size, None)
        cut: dict[str, Any] = {}
        if n_clusters is not None:
            cut = {"n_clusters": asked["n_clusters"]}
        elif threshold is not None:
            cut = {} if threshold == "auto" else {"threshold": asked["threshold"]}
        elif chosen == self.method and "n_clusters" in self._last:
            cut = {"threshold": self.clusters.settings["level"]}
        elif chosen == self.method:
            cut = self._last
        if chosen not in self.trees:
            self.trees[chosen] = self._measure(chosen)
        before = self.method, self.min_size, self._last
        self.method, self.min_size = chosen, asked["min_size"]
        try:
            self.clusters = self._cut(cut)
        except ValueError:
            self.method, self.min_size, self._last = before
            raise
        self._show()
        return self.clusters

    def keep(self, name: str = "clusters") -> Clusters:
        """Put the clusters on the screen into the tree of a datacube, like ``datacube.cluster()``.

        Parameters
        ----------
        name : str
            Name in the tree; other clusters of this name are replaced.

        Returns
        -------
        Clusters
            The same clusters with this name.

        Raises
        ------
        ValueError, TypeError
            If the name cannot be stored, or another object in the tree has it.
        """
        return self._put(self.clusters, name)

    # --- figure and widgets ------------------------------------------------------------------

    def _open(self) -> None:
        """Open the figure; the current figure of the user stays the current one."""
        current = plt.gcf().number if plt.get_fignums() else None
        self.figure = plt.figure(figsize=FIGURE_SIZE, layout="none")
        # Callbacks of matplotlib hold only weak references, so the figure must refer to the window.
        vars(self.figure)["explorer"] = self
        if current is not None:
            plt.figure(current)
        if self.figure.canvas.manager is not None:
            self.figure.canvas.manager.set_window_title(f"Clusters of {self._name}")

    def _make_widgets(self, n_positions: int) -> None:
        def radio(left: float, width: float, title: str, names: Any, active: int) -> RadioButtons:
            ax = self.figure.add_axes((left, 0.03, width, 0.19))
            ax.set_title(title, fontsize=8, loc="left", pad=2)
            ax.set_frame_on(False)
            made = RadioButtons(ax, names, active=active, activecolor=PALETTE[0], useblit=False)
            for text in made.labels:
                text.set_fontsize(8)
            made.drawon = False
            return made

        def slider(bottom: float, label: str, last: int) -> Slider:
            ax = self.figure.add_axes((0.38, bottom, 0.4, 0.06))
            made = Slider(ax, label, 0, last, valinit=0, valstep=1, color=PALETTE[0])
            made.vline.set_visible(False)
            made.label.set_fontsize(8)
            made.valtext.set_fontsize(8)
            made.drawon = False
            return made

        def button(bottom: float, label: str) -> Button:
            ax = self.figure.add_axes((0.88, bottom, 0.1, 0.09))
            made = Button(ax, label, color="0.92", hovercolor="0.85", useblit=False)
            made.label.set_fontsize(8)
            return made

        self.method_radio = radio(0.012, 0.09, "method", METHODS, METHODS.index(self.method))
        self.scale_radio = radio(0.13, 0.14, "slider moves", SCALES, 0)
        self._sizes = size_steps(n_positions)
        self.slider = slider(0.15, "level", max(1, len(self._steps()) - 1))
        self.size_slider = slider(0.05, "min_size", len(self._sizes) - 1)
        self.auto_button = button(0.145, "auto (a)")
        self.keep_button = button(0.035, "keep")

    def _connect(self) -> None:
        self._widgets = (
            self.method_radio, self.scale_radio, self.slider, self.size_slider, self.auto_button,
            self.keep_button,
        )  # fmt: skip
        self.method_radio.on_clicked(self._on_method)
        self.scale_radio.on_clicked(self._on_scale)
        self.slider.on_changed(self._on_slider)
        self.size_slider.on_changed(self._on_size)
        self.auto_button.on_clicked(self._on_auto)
        self.keep_button.on_clicked(self._on_keep)
        canvas = self.figure.canvas
        self._connected = [
            canvas.mpl_connect("button_press_event", self._on_click),
            canvas.mpl_connect("key_press_event", self._on_key),
            canvas.mpl_connect("close_event", self._on_close),
        ]
        # `_on_key` passes other keys to matplotlib, where the key "left" would undo a zoom.
        manager = canvas.manager
        self._default_keys = None if manager is None else manager.key_press_handler_id
        if self._default_keys is not None:
            canvas.mpl_disconnect(self._default_keys)

    def disconnect(self) -> None:
        """End all reactions to mouse and keys; the figure and the clusters stay as they are."""
        if not self._connected:
            return
        for widget in self._widgets:
            widget.disconnect_events()
        for number in self._connected:
            self.figure.canvas.mpl_disconnect(number)
        self._connected = []
        manager = self.figure.canvas.manager
        if self._default_keys is not None and manager is not None:
            manager.key_press_handler_id = self.figure.canvas.mpl_connect(
                "key_press_event", key_press_handler
            )

    # --- events ------------------------------------------------------------------------------

    def _on_slider(self, value: float) -> None:
        step = self._steps()[int(value)]
        if self._scale == "level":
            self.set(threshold=float(step))
        else:
            self.set(n_clusters=int(step))

    def _on_size(self, value: float) -> None:
        self.set(min_size=int(self._sizes[int(value)]))

    def _on_auto(self, event: Any = None) -> None:
        self.set(threshold="auto")

    def _on_keep(self, event: Any = None) -> None:
        self.keep()
        self._pictures.label_ax.set_title(f"kept {self.clusters.n_clusters} clusters", fontsize=9)
        self.figure.canvas.draw_idle()

    def _on_method(self, method: str | None) -> None:
        try:
            self.set(method=next(name for name in METHODS if name == method))
        finally:
            self._match_widgets()  # is needed after an error too
            self.figure.canvas.draw_idle()

    def _on_scale(self, scale: str | None) -> None:
        self._scale = scale or SCALES[0]
        self._match_widgets()
        self.figure.canvas.draw_idle()

    def _on_close(self, event: Any) -> None:
        self.disconnect()

    def _on_key(self, event: Any) -> None:
        if event.key not in KEYS:
            key_press_handler(event)
        elif event.key == "a":
            self._on_auto()
        else:
            value = self.slider.val + (1 if event.key == "right" else -1)
            if self.slider.valmin <= value <= min(self.slider.valmax, len(self._steps()) - 1):
                self.slider.set_val(value)

    def _on_click(self, event: Any) -> None:
        if (
            event.inaxes not in (self._pictures.image_ax, self._pictures.label_ax)
            or event.button != 1
        ):
            return
        if self.figure.canvas.widgetlock.locked():  # the toolbar zooms or pans
            return
        position = round(event.ydata), round(event.xdata)
        if all(0 <= k < n for k, n in zip(position, self._data.shape, strict=False)):
            self.pick(position)

    def pick(self, position: tuple[int, int]) -> None:
        """Show the pattern of a scan position (rx, ry) and the average of its cluster.

        Parameters
        ----------
        position : (int, int)
            The position to show, as after a click on it.

        Raises
        ------
        ValueError, TypeError
            If it does not lie in the scan.
        """
        rx, ry = (check_integer("position", k, 0) for k in position)
        if rx >= self._data.shape[0] or ry >= self._data.shape[1]:
            raise ValueError(
                f"position={(rx, ry)} must lie inside the scan of {tuple(self._data.shape[:2])}"
            )
        self.pattern = read_window(self._data, (rx, rx + 1), (ry, ry + 1))[0, 0]
        self.position = rx, ry
        label = int(self.clusters.labels[rx, ry])
        if label >= 0:
            self._read_average(label)
        self._show_patterns()
        self.figure.canvas.draw_idle()

    # --- drawing -----------------------------------------------------------------------------

    def _show(self) -> None:
        """Draw the clusters."""
        n = self.clusters.n_clusters
        title = f"{n} cluster{'s' * (n != 1)}"
        if not self._last:
            title += ", automatic cut"
        self._pictures.draw_labels(self.clusters.labels, n, title)
        self._show_patterns()
        self._match_widgets()
        self.figure.canvas.draw_idle()

    def _show_patterns(self) -> None:
        """Draw the pattern of the clicked position, and the average if it was read."""
        if self.position is None:
            self._pictures.draw_no_position()
            return
        label = int(self.clusters.labels[self.position])
        titles = f"position {self.position[0]}, {self.position[1]}", ""
        member = None
        self.average = None
        if label >= 0:
            member = self.clusters.labels == label
            self.average = self._averages.get(_key(member))
            titles = titles[0], f"cluster {label}: mean of {int(member.sum())}"
        self._pictures.draw_position(self.position, self.pattern, member, self.average, titles)

    def _match_widgets(self) -> None:
        """Set sliders and buttons to the cut on the screen, without events."""
        steps = self._steps()
        level = self.clusters.settings["level"]
        if self._scale != "level":
            value, text = self.clusters.n_clusters, f"{self.clusters.n_clusters}"
        elif level is None:  # each branch is cut at its own level
            value, text = None, "auto"
        else:
            value, text = level, f"{level:.4g}"
        names = {"merge": "level", "grow": "similarity"}
        self.slider.label.set_text(names[self.method] if self._scale == "level" else "clusters")
        self.slider.valmax = max(1, len(steps) - 1)
        self.slider.ax.set_xlim(0, self.slider.valmax)
        at = min(self.slider.val, len(steps) - 1) if value is None else nearest(steps, value)
        _set_quietly(self.slider, at, text)
        _set_quietly(self.size_slider, nearest(self._sizes, self.min_size), f"{self.min_size}")
        radio = self.method_radio
        if radio.value_selected != self.method:
            radio.eventson = False
            radio.set_active(METHODS.index(self.method))
            radio.eventson = True

    def _read_average(self, label: int) -> None:
        """Read the average of a cluster, unless it is in memory."""
        member = self.clusters.labels == label
        key = _key(member)
        if key in self._averages:
            return
        members = np.argwhere(member)
        shifts = None
        if self._origin is not None:
            # Patterns are moved to the mean origin of the cluster, as in get_clustered_datacube.
            origin = self._origin[member]
            known = np.isfinite(origin).all(axis=1)
            shifts = np.zeros(origin.shape)
            if known.any():
                shifts[known] = origin[known].mean(axis=0) - origin[known]
        with progress(len(members), "Averaging", self._progress_bar, "patterns") as report:
            average = member_mean(self._data, members, shifts, report)
        if len(self._averages) >= MAX_AVERAGES:
            del self._averages[next(iter(self._averages))]
        self._averages[key] = average


def _key(member: NDArray[np.bool_]) -> bytes:
    """Key of a set of scan positions."""
    return np.packbits(member).tobytes()


def _set_quietly(slider: Slider, value: float, text: str) -> None:
    """Move a slider without an event, and write a text beside it."""
    slider.eventson = False
    slider.set_val(value)
    slider.eventson = True
    slider.valtext.set_text(text)
