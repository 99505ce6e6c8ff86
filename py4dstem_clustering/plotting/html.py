"""What a notebook shows of a result: a small picture beside its main numbers."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.image import imsave
from numpy.typing import NDArray

from .style import cluster_colors, grey_limits

_PIXELS = 220
"""About the longer side of a small picture, in pixels. A larger one makes larger notebooks."""

_NO_CLUSTER = "0.88"
"""Grey of positions outside clusters."""


def card(name: str, facts: Mapping[str, Any], png: bytes | None, hint: str = "") -> str:
    """HTML of a result: its picture, its name, a table of facts, and what to call next."""
    rows = "".join(
        '<tr><th style="text-align:left;font-weight:normal;opacity:0.7;padding:0 1em 0 0">'
        f'{escape(key)}</th><td style="text-align:left;padding:0">{escape(str(value))}</td></tr>'
        for key, value in facts.items()
    )
    picture = "" if png is None else f"<div>{image_tag(png, name, pixelated=True)}</div>"
    below = f'<div style="opacity:0.7"><code>{escape(hint)}</code></div>' if hint else ""
    return (
        '<div style="display:flex;gap:1em;align-items:flex-start">'
        f"{picture}<div><b>{escape(name)}</b>"
        f'<table style="margin:0.3em 0;border:none">{rows}</table>{below}</div></div>'
    )


def image_tag(png: bytes, description: str, *, pixelated: bool = False) -> str:
    """An image element that holds the picture itself."""
    style = "max-width:100%;height:auto" + (";image-rendering:pixelated" if pixelated else "")
    data = b64encode(png).decode("ascii")
    return f'<img alt="{escape(description)}" style="{style}" src="data:image/png;base64,{data}">'


def map_png(values: NDArray[Any], limits: tuple[float, float] | None = None) -> bytes:
    """A map of the scan (Rx, Ry) as a small picture between these limits; NaN is grey."""
    from matplotlib import colormaps

    values = np.asarray(values, dtype=np.float64)
    low, high = grey_limits(values) if limits is None else limits
    low, high = (0.0, 1.0) if low is None or high is None else (low, high)
    scaled = np.clip((values - low) / (high - low or 1.0), 0, 1)
    rgb = colormaps["viridis"](np.nan_to_num(scaled))[..., :3]
    rgb[~np.isfinite(values)] = to_rgb(_NO_CLUSTER)
    return _png(rgb)


def label_png(labels: NDArray[Any], n_clusters: int) -> bytes:
    """A label map as a small picture, in the colours of `plot_clusters`."""
    colors = np.vstack([cluster_colors(labels, n_clusters), to_rgb(_NO_CLUSTER)])
    return _png(colors[labels])


def _png(rgb: NDArray[Any]) -> bytes:
    """An RGB picture as PNG, with whole pixels for each position, or one for several."""
    longest = max(rgb.shape[:2])
    if longest > _PIXELS:
        step = -(-longest // _PIXELS)
        rgb = rgb[::step, ::step]
    factor = max(1, _PIXELS // max(rgb.shape[:2]))
    rgb = rgb.repeat(factor, axis=0).repeat(factor, axis=1)
    file = BytesIO()
    imsave(file, np.ascontiguousarray(np.clip(rgb, 0, 1)), format="png")
    return file.getvalue()


def figure_png(
    draw: Callable[[Any], object], size: tuple[float, float] = (5, 5), dpi: int = 100
) -> bytes:
    """The figure that `draw` draws into a new Figure, as PNG; no window opens."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=dpi, bbox_inches="tight")
    return file.getvalue()
