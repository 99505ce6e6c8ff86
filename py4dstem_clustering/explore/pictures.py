"""The four pictures of the window: virtual image, label map, pattern and average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from ..plotting.style import OUTLINE, add_scale_bar, grey_limits, write_text
from .drawing import Cell
from .layout import PICTURES, arrange
from .shown import outline

COLOR_SHARE = 0.6
"""Opacity of the colour of a cluster over the grey image; a larger one hides the image more."""

BORDER_SHARE = 0.15
"""Largest share of the label map that borders may cover; many borders are drawn thinner. With a
larger share, the borders of many small clusters hide their colours."""

MAX_PIXELS = 512
"""Most positions that the label map draws along one side; of larger scans it leaves out some. With
more, a step of the slider takes longer, and no more can be seen in a window of this size."""

POINTS = 180
"""Height or width of a picture in points, for the width of borders."""


class Pictures:
    """The four pictures in the window.

    Parameters
    ----------
    figure : Figure
    image : ndarray, (Rx, Ry)
        Grey picture of the scan.
    detector : (int, int)
        (Qx, Qy)
    steps : ((float, str), (float, str))
        Pixel size and unit of the scan, and of the detector.
    power : float
        Exponent of the intensities that are drawn.
    """

    def __init__(
        self,
        figure: Figure,
        image: NDArray[Any],
        detector: tuple[int, int],
        steps: tuple[tuple[float, str], tuple[float, str]],
        power: float,
    ) -> None:
        self._figure = figure
        self._power = power
        self._shape = image.shape
        self._grey = _as_grey(image)
        self._thin = -(-max(image.shape) // MAX_PIXELS)
        cells = arrange(*figure.get_size_inches())
        axes = [figure.add_axes(cells[name]) for name in PICTURES]
        self.image_ax, self.label_ax, self.pattern_ax, self.average_ax = axes
        options: dict[str, Any] = {"interpolation": "nearest", "origin": "upper", "aspect": "equal"}
        self._image = self.image_ax.imshow(_as_rgba(self._grey), **options)
        rx, ry = image.shape
        self._label_image = self.label_ax.imshow(
            np.zeros((1, 1, 4), np.uint8), extent=(-0.5, ry - 0.5, rx - 0.5, -0.5), **options
        )
        colors = plt.get_cmap("inferno").with_extremes(bad="0.5")
        blank = np.zeros(detector)
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
            ax.images[0].mouseover = False  # the toolbar would write colours
            ax.set_title("", fontsize=8.5, pad=3)
        self.image_ax.title.set_text("virtual image")
        (self._borders,) = self.label_ax.plot([], [], color="white", linewidth=0.7)
        self._chosen = [
            ax.plot([], [], color="white", linewidth=1.2, path_effects=OUTLINE)[0]
            for ax in axes[:2]
        ]
        style: dict[str, Any] = {"color": "white", "markersize": 8, "path_effects": OUTLINE}
        self._marks = [ax.plot([], [], "+", **style)[0] for ax in axes[:2]]
        (self._first,) = self.label_ax.plot([], [], "o", markerfacecolor="none", **style)
        brush: dict[str, Any] = {"color": "white", "alpha": 0.7, "solid_capstyle": "round"}
        (self._brush,) = self.label_ax.plot([], [], **brush)
        self._rings = [Circle((0, 0), 1, fill=False, visible=False) for _ in range(2)]
        for ring in self._rings:
            ring.set(edgecolor="white", path_effects=OUTLINE)
            self.pattern_ax.add_patch(ring)
        self._names: list[Any] = []
        hint: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "color": "0.35"}
        self._hints = [ax.text(0.5, 0.5, "", transform=ax.transAxes, **hint) for ax in axes[2:]]
        # Only one picture of each pair has a scale bar: each text costs a millisecond per redraw.
        add_scale_bar(self.image_ax, *steps[0], image.shape[1])
        add_scale_bar(self.pattern_ax, *steps[1], detector[1])
        for ax in axes[2:]:
            ax.set_facecolor("0.94")

    def place(self) -> dict[Axes, Cell]:
        """Put the pictures to their places in the present size of the figure; their cells."""
        cells = arrange(*self._figure.get_size_inches())
        axes = (self.image_ax, self.label_ax, self.pattern_ax, self.average_ax)
        for ax, name in zip(axes, PICTURES, strict=True):
            ax.set_position(cells[name])
        return {ax: cells[f"{name} cell"] for ax, name in zip(axes, PICTURES, strict=True)}

    @property
    def moving(self) -> list[Artist]:
        """What changes on the virtual image with the clicked position and the clusters."""
        return [self._chosen[0], self._marks[0]]

    # --- the scan ----------------------------------------------------------------------------

    def set_image(self, image: NDArray[Any], title: str) -> None:
        """Show another virtual image; the label map is drawn over it."""
        self._grey = _as_grey(image)
        self._image.set_data(_as_rgba(self._grey))
        self.image_ax.title.set_text(title)

    def draw_labels(
        self,
        labels: NDArray[Any],
        colors: NDArray[Any],
        title: str,
        names: Mapping[int, str] | None = None,
    ) -> None:
        """Draw a label map over the grey picture.

        `colors` are RGB of each position, (Rx, Ry, 3); `names` are written on clusters.
        """
        thin = self._thin
        part = slice(None, None, thin), slice(None, None, thin)
        shown, grey = labels[part], self._grey[part]
        share = (COLOR_SHARE * (shown >= 0)).astype(np.float32)
        picture = ((1 - share) * grey)[..., None] + share[..., None] * colors[part]
        self._label_image.set_data(_as_rgba(picture))
        x, y = outline(shown)
        self._borders.set_data(x * thin + (thin - 1) / 2, y * thin + (thin - 1) / 2)
        length = np.nansum(np.abs(x[1::3] - x[::3]) + np.abs(y[1::3] - y[::3]))
        width = BORDER_SHARE * POINTS / max(shown.shape) * shown.size / max(length, 1)
        self._borders.set_linewidth(np.clip(width, 0.12, 0.8))
        self.label_ax.title.set_text(title)
        for text in self._names:
            text.remove()
        self._names = []
        for label, name in (names or {}).items():
            members = np.argwhere(labels == label)
            middle = members[np.abs(members - members.mean(axis=0)).sum(axis=1).argmin()]
            write_text(self.label_ax, middle, name, 7)
            self._names.append(self.label_ax.texts[-1])

    def mark_first(self, position: tuple[int, int] | None) -> None:
        """Mark the first of two clusters that will be joined."""
        self._first.set_data(*([], []) if position is None else ([position[1]], [position[0]]))

    def draw_brush(self, stroke: Any, radius: float) -> None:
        """Draw the line along which the brush has moved; an empty `stroke` removes it."""
        points = np.reshape(stroke, (-1, 2))
        self._brush.set_data(points[:, 1], points[:, 0])
        frame = self.label_ax.get_window_extent()
        pixel = frame.width / abs(np.diff(self.label_ax.get_xlim())[0]) * 72 / self._figure.dpi
        self._brush.set_linewidth((2 * radius + 1) * pixel)

    # --- patterns ----------------------------------------------------------------------------

    def mark_rings(self, center: tuple[float, float] | None, *radii: float) -> None:
        """Draw circles of these radii in the pattern; none without a centre."""
        for ring, radius in zip(self._rings, (*radii, 0.0, 0.0), strict=False):
            ring.set_visible(center is not None and radius > 0)
            if center is not None:
                ring.set_center((center[1], center[0]))
                ring.set_radius(radius)

    def draw_mean(self, pattern: NDArray[Any], title: str) -> None:
        """Draw a pattern that belongs to no scan position."""
        self._draw_pattern(self._pattern_image, pattern)
        self.pattern_ax.title.set_text(title)
        self._hints[0].set_text("")
        self._show_scale(True)

    def draw_no_position(self) -> None:
        """Show a hint to click a scan position."""
        self._pattern_image.set_visible(False)
        self.pattern_ax.title.set_text("")
        self._hints[0].set_text("click a scan position")
        self._show_scale(False)

    def draw_position(
        self,
        position: tuple[int, int],
        pattern: NDArray[Any] | None,
        member: NDArray[np.bool_] | None,
        average: NDArray[Any] | None,
        titles: tuple[str, str],
    ) -> None:
        """Draw the pattern of a scan position, and the average of its cluster.

        `member` is the mask of the cluster, (Rx, Ry); None if the position is in no cluster.
        """
        rx, ry = position
        for mark in self._marks:
            mark.set_data([ry], [rx])
        x, y = outline(np.full(self._shape, -1) if member is None else member - 1)
        for chosen in self._chosen:
            chosen.set_data(x, y)
        self._draw_pattern(self._pattern_image, pattern)
        self._draw_pattern(self._average_image, average)
        for ax, title in zip((self.pattern_ax, self.average_ax), titles, strict=True):
            ax.title.set_text(title)
        hint = "in no cluster" if member is None else "click again to average"
        self._hints[0].set_text("")
        self._hints[1].set_text(hint if average is None else "")
        self._show_scale(True)

    def _show_scale(self, visible: bool) -> None:
        for bar in self.pattern_ax.artists:
            bar.set_visible(visible)

    def _draw_pattern(self, picture: Any, pattern: NDArray[Any] | None) -> None:
        picture.set_visible(pattern is not None)
        if pattern is None:
            return
        values = np.clip(np.asarray(pattern, dtype=np.float64), 0, None) ** self._power
        finite = values[np.isfinite(values)]
        low, high = np.percentile(finite, (1, 99.9)) if finite.size else (0, 1)
        picture.set_data(values)
        picture.set_clim(low, high if high > low else low + 1)


def _as_rgba(picture: NDArray[Any]) -> NDArray[np.uint8]:
    """A picture from 0 to 1, grey or RGB, as bytes, which matplotlib draws fastest."""
    rgba = np.full((*picture.shape[:2], 4), 255, dtype=np.uint8)
    rgba[..., :3] = (255 * picture + 0.5).reshape(*picture.shape[:2], -1)
    return rgba


def _as_grey(image: NDArray[Any]) -> NDArray[np.float32]:
    """A picture from 0 to 1, ``(Rx, Ry)``."""
    low, high = grey_limits(image)
    if low is None or high is None:
        low, high = 0.0, 1.0
    grey = np.nan_to_num((image - low) / (high - low if high > low else 1))
    return np.clip(grey, 0, 1).astype(np.float32)
