"""A window in which a cluster tree is cut by sliders, and patterns are shown where one clicks.

Nothing but matplotlib: it works in a script as in a notebook (``%matplotlib widget``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backend_bases import key_press_handler
from matplotlib.widgets import Button, RadioButtons, Slider
from numpy.typing import NDArray

from ..base.checks import check_choice, check_integer
from ..base.progress import progress
from ..grains.clusters import Clusters
from ..grains.options import METHODS, ClusterOptions, check_cut
from ..grains.tree import ClusterTree, level_for
from ..kernels.blocks import read_window
from ..plotting.style import OUTLINE, PALETTE, add_scale_bar, grey_limits, nth_color
from .shown import lasting_colors, level_steps, member_mean, nearest, outline, size_steps, thinned

SIZE = (10.0, 4.0)
"""Of the window, inches."""

SCALES = ("level", "number")

# Averages that are kept.
_N_AVERAGES = 64

_ALPHA = 0.6

_COVERED = 0.15

_KEYS = ("left", "right", "a")


# --- the window ------------------------------------------------------------------------------


class ClusterExplorer:
    """A window in which a cluster tree is cut by sliders.

    Made by ``datacube.explore_clusters()``, which says what is in it. Keep it, or its figure, as
    long as the window shall live.

    Attributes
    ----------
    clusters : Clusters
        What is on the screen, called "explored"; `keep` puts it into the tree of the datacube.
    figure : matplotlib Figure
    trees : dict
        The `ClusterTree` of each method that was asked for.
    method : "merge" or "grow"
    min_size : int
    position : (int, int) or None
        Scan position that was clicked.
    pattern, average : ndarray (Qx, Qy) or None
        Its pattern, and the mean of its cluster.
    """

    def __init__(
        self,
        datacube: Any,
        trees: Mapping[str, ClusterTree],
        *,
        method: str,
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
        self.method = method
        self._options = options
        self.min_size = options[method].min_size
        self._power = power
        self._origin = origin
        self._progress_bar = progress_bar
        self.position: tuple[int, int] | None = None
        self.pattern: NDArray[Any] | None = None
        self.average: NDArray[Any] | None = None
        self._averages: dict[bytes, NDArray[Any]] = {}
        self._counts: dict[tuple[str, int], NDArray[Any]] = {}
        self._level_steps: dict[str, NDArray[Any]] = {}
        self._scale = "level"
        self._colors = np.full(image.shape, -1)
        self.clusters = self._cut({})

        self._make_figure(image, *steps)
        self._make_widgets(image.size)
        self._connect()
        self._show()

    def __repr__(self) -> str:
        return f"ClusterExplorer({self._name!r}, {self.method!r}, {self.clusters!r})"

    # --- cuts --------------------------------------------------------------------------------

    @property
    def tree(self) -> ClusterTree:
        """The tree that is cut now."""
        return self.trees[self.method]

    def _cut(self, cut: Mapping[str, Any]) -> Clusters:
        """Clusters of ``ClusterTree.cut(**cut)`` with what the window adds."""
        self._last = dict(cut)
        level, n = cut.get("threshold"), cut.get("n_clusters")
        if n is not None:
            # As `cut` does, but the clusters at all levels are counted once and not each time.
            level = level_for(self.tree, self._count(), n)
        found = self.tree.cut_with(
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
        return replace(found, settings={**found.settings.everything, **asked})

    def _count(self) -> NDArray[Any]:
        """Number of clusters at each level of the tree."""
        key = self.method, self.min_size
        if key not in self._counts:
            self._counts[key] = self.tree.n_clusters(
                min_size=self.min_size, drop_background=self._options[self.method].drop_background
            )
        return self._counts[key]

    def _steps(self) -> NDArray[Any]:
        """What the steps of the upper slider stand for."""
        if self._scale == "level":
            if self.method not in self._level_steps:
                self._level_steps[self.method] = level_steps(self.tree)
            return self._level_steps[self.method]
        counts = self._count()
        if self.method == "merge":  # of what lies above the level with the most clusters
            counts = counts[len(counts) - 1 - counts[::-1].argmax() :]
        counts = np.unique(counts[counts > 0])
        return counts[thinned(len(counts))] if len(counts) else np.ones(1, dtype=int)

    def set(
        self,
        *,
        method: str | None = None,
        threshold: float | str | None = None,
        n_clusters: int | None = None,
        min_size: int | None = None,
    ) -> Clusters:
        """Show another cut, as the sliders do, at any value.

        Parameters
        ----------
        method : "merge" or "grow", optional
            By default that on the screen. The tree of the other is measured when it is first asked
            for.
        threshold : float or "auto", optional
        n_clusters : int, optional
            See `ClusterTree.cut`; by default what is on the screen.
        min_size : int, optional
            By default that on the screen.

        Returns
        -------
        Clusters
            What is on the screen then.

        Raises
        ------
        ValueError, TypeError
            If an argument breaks its rule; before any work.
        """
        method = self.method if method is None else method
        check_choice("method", method, METHODS)
        size = self.min_size if min_size is None else min_size
        asked = check_cut(method, threshold, n_clusters, size, None)
        cut: dict[str, Any] = {}
        if n_clusters is not None:
            cut = {"n_clusters": asked["n_clusters"]}
        elif threshold is not None:
            cut = {} if threshold == "auto" else {"threshold": asked["threshold"]}
        elif method == self.method and "n_clusters" in self._last:
            cut = {"threshold": self.clusters.settings["level"]}
        elif method == self.method:
            cut = self._last
        if method not in self.trees:
            self.trees[method] = self._measure(method)
        before = self.method, self.min_size, self._last
        self.method, self.min_size = method, asked["min_size"]
        try:
            self.clusters = self._cut(cut)
        except ValueError:
            self.method, self.min_size, self._last = before
            raise
        self._show()
        return self.clusters

    def keep(self, name: str = "clusters") -> Clusters:
        """Keep what is on the screen in the tree of the datacube, as ``datacube.cluster()`` does.

        Parameters
        ----------
        name : str
            Name in the tree; another clustering of this name is replaced.

        Returns
        -------
        Clusters
            The same, under its new name.

        Raises
        ------
        ValueError, TypeError
            If the name cannot be stored, or belongs to something else in the tree.
        """
        return self._put(self.clusters, name)

    # --- what the window is made of ----------------------------------------------------------

    def _make_figure(
        self, image: NDArray[Any], scan_step: tuple[float, str], detector_step: tuple[float, str]
    ) -> None:
        current = plt.gcf().number if plt.get_fignums() else None
        self.figure = plt.figure(figsize=SIZE, layout="none")
        # What holds the figure holds the window: matplotlib's callbacks alone would let it go.
        self.figure.explorer = self
        if current is not None:
            plt.figure(current)  # that the user goes on drawing into
        if self.figure.canvas.manager is not None:
            self.figure.canvas.manager.set_window_title(f"Clusters of {self._name}")

        low, high = grey_limits(image)
        low, high = (0, 1) if low is None else (low, high)
        grey = np.nan_to_num((image - low) / (high - low if high > low else 1))
        self._grey = np.clip(grey, 0, 1).astype(np.float32)[..., None]
        blank = np.zeros(self._data.shape[2:])
        axes = [self.figure.add_axes((0.012 + 0.248 * k, 0.325, 0.232, 0.58)) for k in range(4)]
        self._image_ax, self._label_ax, self._pattern_ax, self._average_ax = axes
        options = {"interpolation": "nearest", "origin": "upper", "aspect": "equal"}
        self._image_ax.imshow(self._grey[..., 0], cmap="gray", vmin=0, vmax=1, **options)
        self._label_image = self._label_ax.imshow(np.repeat(self._grey, 3, axis=2), **options)
        colors = plt.get_cmap("inferno").with_extremes(bad="0.5")
        self._pattern_image, self._average_image = (
            ax.imshow(blank, cmap=colors, vmin=0, vmax=1, visible=False, **options)
            for ax in axes[2:]
        )
        for ax in axes:
            ax.set_xticks([])
            ax.set_yticks([])
            ax.grid(False)
            ax.set_anchor("N")
            ax.set_autoscale_on(False)
            ax.set_title("", fontsize=9)
        self._image_ax.set_title("virtual image", fontsize=9)
        (self._borders,) = self._label_ax.plot([], [], color="white", linewidth=0.7)
        self._chosen = [
            ax.plot([], [], color="white", linewidth=1.2, path_effects=OUTLINE)[0]
            for ax in axes[:2]
        ]
        style = {"color": "white", "markersize": 8, "path_effects": OUTLINE}
        self._marks = [ax.plot([], [], "+", **style)[0] for ax in axes[:2]]
        hint = {"ha": "center", "va": "center", "fontsize": 8, "color": "0.35"}
        self._hints = [ax.text(0.5, 0.5, "", transform=ax.transAxes, **hint) for ax in axes[2:]]
        # One on each pair of pictures: every text takes a millisecond of each redraw.
        add_scale_bar(self._image_ax, *scan_step, image.shape[1])
        add_scale_bar(self._pattern_ax, *detector_step, blank.shape[1])
        for ax in axes[2:]:
            ax.set_facecolor("0.94")

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
        self.scale_radio = radio(0.13, 0.14, "slider moves", ("level", "number of clusters"), 0)
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
        # Its keys come to `_on_key` first: there "left" would go back to an earlier zoom.
        manager = canvas.manager
        self._default_keys = None if manager is None else manager.key_press_handler_id
        if self._default_keys is not None:
            canvas.mpl_disconnect(self._default_keys)

    def disconnect(self) -> None:
        """Let go of the figure: it stays as it is, and reacts to nothing. Clusters remain."""
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
        self._label_ax.set_title(f"kept {self.clusters.n_clusters} clusters", fontsize=9)
        self.figure.canvas.draw_idle()

    def _on_method(self, method: str) -> None:
        try:
            self.set(method=method)
        finally:
            self._match_widgets()  # also when it failed
            self.figure.canvas.draw_idle()

    def _on_scale(self, label: str) -> None:
        self._scale = SCALES[0] if label == SCALES[0] else SCALES[1]
        self._match_widgets()
        self.figure.canvas.draw_idle()

    def _on_close(self, event: Any) -> None:
        self.disconnect()

    def _on_key(self, event: Any) -> None:
        if event.key not in _KEYS:
            key_press_handler(event)
        elif event.key == "a":
            self._on_auto()
        else:
            value = self.slider.val + (1 if event.key == "right" else -1)
            if self.slider.valmin <= value <= min(self.slider.valmax, len(self._steps()) - 1):
                self.slider.set_val(value)

    def _on_click(self, event: Any) -> None:
        if event.inaxes not in (self._image_ax, self._label_ax) or event.button != 1:
            return
        if self.figure.canvas.widgetlock.locked():  # zoom or pan of the toolbar
            return
        position = round(event.ydata), round(event.xdata)
        if all(0 <= k < n for k, n in zip(position, self._data.shape, strict=False)):
            self.pick(position)

    def pick(self, position: tuple[int, int]) -> None:
        """Show the pattern of a scan position (rx, ry) and the average of its cluster.

        Parameters
        ----------
        position : (int, int)
            As a click on it does.

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
            self._average_of(label)
        self._show_patterns()
        self.figure.canvas.draw_idle()

    # --- drawing -----------------------------------------------------------------------------

    def _show(self) -> None:
        """Draw the clusters."""
        labels, n = self.clusters.labels, self.clusters.n_clusters
        number = lasting_colors(labels, n, self._colors)
        self._colors = np.where(labels >= 0, np.append(number, -1)[labels], -1)
        table = np.array([nth_color(c) for c in range(int(number.max(initial=0)) + 1)], np.float32)
        picture = np.repeat(self._grey, 3, axis=2)
        inside = labels >= 0
        picture[inside] *= 1 - _ALPHA
        picture[inside] += _ALPHA * table[self._colors[inside]]
        self._label_image.set_data(picture)
        x, y = outline(labels)
        self._borders.set_data(x, y)
        # Thin where there is much of it, so that no more than a part of the picture is covered.
        length = np.nansum(np.abs(x[1::3] - x[::3]) + np.abs(y[1::3] - y[::3]))
        points = 72 * SIZE[0] * 0.232 / max(labels.shape)  # of a position
        width = _COVERED * points * labels.size / max(length, 1)
        self._borders.set_linewidth(np.clip(width, 0.12, 0.8))
        what = f"{n} cluster{'s' * (n != 1)}"
        if not self._last:
            what += ", automatic cut"
        self._label_ax.set_title(what, fontsize=9)
        self._show_patterns()
        self._match_widgets()
        self.figure.canvas.draw_idle()

    def _match_widgets(self) -> None:
        """Sliders and buttons where they belong for what is on the screen, without events."""
        steps = self._steps()
        level = self.clusters.settings["level"]
        if self._scale == "number":
            value, text = self.clusters.n_clusters, f"{self.clusters.n_clusters}"
        elif level is None:  # each branch at its own level
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

    def _average_of(self, label: int) -> NDArray[Any]:
        """Average of a cluster, read unless it is known."""
        member = self.clusters.labels == label
        key = np.packbits(member).tobytes()
        if key not in self._averages:
            members = np.argwhere(member)
            shifts = None
            if self._origin is not None:
                # To the mean origin of the cluster, as get_clustered_datacube does.
                origin = self._origin[member]
                known = np.isfinite(origin).all(axis=1)
                shifts = np.zeros(origin.shape)
                if known.any():
                    shifts[known] = origin[known].mean(axis=0) - origin[known]
            shown = self._progress_bar
            with progress(len(members), "Averaging", shown, "patterns") as report:
                average = member_mean(self._data, members, shifts, report)
            if len(self._averages) >= _N_AVERAGES:
                del self._averages[next(iter(self._averages))]
            self._averages[key] = average
        return self._averages[key]

    def _show_patterns(self) -> None:
        """Draw the pattern of the position that was clicked, and the average if it is known."""
        if self.position is None:
            self._hints[0].set_text("click a scan position")
            for bar in self._pattern_ax.artists:
                bar.set_visible(False)
            return
        rx, ry = self.position
        label = int(self.clusters.labels[rx, ry])
        for mark in self._marks:
            mark.set_data([ry], [rx])
        member = self.clusters.labels == label if label >= 0 else None
        line = ([], []) if member is None else outline(np.where(member, 0, -1))
        for chosen in self._chosen:
            chosen.set_data(*line)
        self._draw_pattern(self._pattern_image, self.pattern)
        self._pattern_ax.set_title(f"position {rx}, {ry}", fontsize=9)
        self._hints[0].set_text("")

        if member is None:
            self.average, title, hint = None, "", "in no cluster"
        else:
            size = int(member.sum())
            self.average = self._averages.get(np.packbits(member).tobytes())
            title = f"cluster {label}: mean of {size}"
            hint = "" if self.average is not None else "click again to average"
        self._average_ax.set_title(title, fontsize=9)
        self._hints[1].set_text(hint)
        self._draw_pattern(self._average_image, self.average)
        for bar in self._pattern_ax.artists:
            bar.set_visible(True)

    def _draw_pattern(self, picture: Any, pattern: NDArray[Any] | None) -> None:
        picture.set_visible(pattern is not None)
        if pattern is None:
            return
        values = np.clip(np.asarray(pattern, dtype=np.float64), 0, None) ** self._power
        finite = values[np.isfinite(values)]
        low, high = np.percentile(finite, (1, 99.9)) if finite.size else (0, 1)
        picture.set_data(values)
        picture.set_clim(low, high if high > low else low + 1)


def _set_quietly(slider: Slider, value: float, text: str) -> None:
    slider.eventson = False
    slider.set_val(value)
    slider.eventson = True
    slider.valtext.set_text(text)
