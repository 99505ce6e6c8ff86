"""The four pictures of the window: virtual image, label map, pattern and average."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..plotting.style import OUTLINE, add_scale_bar, grey_limits, nth_color
from .shown import lasting_colors, outline

FIGURE_SIZE = (10.0, 4.0)
"""Width and height of the window, inches."""

PICTURE_WIDTH = 0.232
"""Width of a picture as a share of the width of the window."""

COLOR_SHARE = 0.6
"""Opacity of the colour of a cluster over the grey image; a larger one hides the image more."""

BORDER_SHARE = 0.15
"""Largest share of the label map that borders may cover; many borders are drawn thinner. With a
larger share, the borders of many small clusters hide their colours."""


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
        self._power = power
        self._grey = _as_grey(image)
        self._colors = np.full(image.shape, -1)
        axes = [figure.add_axes((0.012 + 0.248 * k, 0.325, PICTURE_WIDTH, 0.58)) for k in range(4)]
        self.image_ax, self.label_ax, self._pattern_ax, self._average_ax = axes
        options: dict[str, Any] = {"interpolation": "nearest", "origin": "upper", "aspect": "equal"}
        self.image_ax.imshow(self._grey[..., 0], cmap="gray", vmin=0, vmax=1, **options)
        self._label_image = self.label_ax.imshow(np.repeat(self._grey, 3, axis=2), **options)
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
            ax.set_title("", fontsize=9)
        self.image_ax.set_title("virtual image", fontsize=9)
        (self._borders,) = self.label_ax.plot([], [], color="white", linewidth=0.7)
        self._chosen = [
            ax.plot([], [], color="white", linewidth=1.2, path_effects=OUTLINE)[0]
            for ax in axes[:2]
        ]
        style: dict[str, Any] = {"color": "white", "markersize": 8, "path_effects": OUTLINE}
        self._marks = [ax.plot([], [], "+", **style)[0] for ax in axes[:2]]
        hint: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "color": "0.35"}
        self._hints = [ax.text(0.5, 0.5, "", transform=ax.transAxes, **hint) for ax in axes[2:]]
        # Only one picture of each pair has a scale bar: each text costs a millisecond per redraw.
        add_scale_bar(self.image_ax, *steps[0], image.shape[1])
        add_scale_bar(self._pattern_ax, *steps[1], detector[1])
        for ax in axes[2:]:
            ax.set_facecolor("0.94")

    def draw_labels(self, labels: NDArray[Any], n_clusters: int, title: str) -> None:
        """Draw a label map over the grey picture; clusters keep their colours if possible."""
        number = lasting_colors(labels, n_clusters, self._colors)
        self._colors = np.where(labels >= 0, np.append(number, -1)[labels], -1)
        table = np.array([nth_color(c) for c in range(int(number.max(initial=0)) + 1)], np.float32)
        picture = np.repeat(self._grey, 3, axis=2)
        inside = labels >= 0
        picture[inside] *= 1 - COLOR_SHARE
        picture[inside] += COLOR_SHARE * table[self._colors[inside]]
        self._label_image.set_data(picture)
        x, y = outline(labels)
        self._borders.set_data(x, y)
        length = np.nansum(np.abs(x[1::3] - x[::3]) + np.abs(y[1::3] - y[::3]))
        points = 72 * FIGURE_SIZE[0] * PICTURE_WIDTH / max(labels.shape)  # per scan position
        width = BORDER_SHARE * points * labels.size / max(length, 1)
        self._borders.set_linewidth(np.clip(width, 0.12, 0.8))
        self.label_ax.set_title(title, fontsize=9)

    def draw_no_position(self) -> None:
        """Show a hint to click a scan position."""
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
        x, y = outline(np.full(self._colors.shape, -1) if member is None else member - 1)
        for chosen in self._chosen:
            chosen.set_data(x, y)
        self._draw_pattern(self._pattern_image, pattern)
        self._draw_pattern(self._average_image, average)
        for ax, title in zip((self._pattern_ax, self._average_ax), titles, strict=True):
            ax.set_title(title, fontsize=9)
        hint = "in no cluster" if member is None else "click again to average"
        self._hints[0].set_text("")
        self._hints[1].set_text(hint if average is None else "")
        self._show_scale(True)

    def _show_scale(self, visible: bool) -> None:
        for bar in self._pattern_ax.artists:
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


def _as_grey(image: NDArray[Any]) -> NDArray[np.float32]:
    """A picture from 0 to 1, ``(Rx, Ry, 1)``."""
    low, high = grey_limits(image)
    if low is None or high is None:
        low, high = 0.0, 1.0
    grey = np.nan_to_num((image - low) / (high - low if high > low else 1))
    return np.clip(grey, 0, 1).astype(np.float32)[..., None]
