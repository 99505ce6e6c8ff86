"""One page about a result: figures, tables, settings and a paragraph for the methods.

The page is a single HTML file that holds its pictures and loads nothing, so that it can be sent and
opened anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..emd.writing import complete_or_absent
from ..grains.clusters import Clusters
from ..grains.describe import find_doubts
from ..grains.table import ClusterTable
from ..plotting.areas import plot_areas
from ..plotting.html import figure_png, image_tag
from ..plotting.maps import plot_clusters, plot_growth, plot_similarity
from ..plotting.patterns import plot_averages
from ..plotting.sizes import plot_sizes
from ..plotting.tracks import plot_tracks
from ..scan.axes import unit_sign

_DPI = 130

_N_ROWS = 500
"""Rows of a table that are written. More make the page large."""

_N_PICTURED = 30
"""Averages in the figure."""

_STYLE = """
body { font-family: system-ui, sans-serif; line-height: 1.45; color: #222; background: white;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; }
h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ccc; }
figure { margin: 1rem 0; break-inside: avoid; }
figcaption, .note { color: #555; font-size: 0.9rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; }
.figures figure { flex: 1 1 24rem; min-width: 0; }
img { max-width: 100%; height: auto; }
.scroll { overflow: auto; max-height: 28rem; }
table { border-collapse: collapse; font-size: 0.85rem; }
th, td { padding: 0.15rem 0.6rem; text-align: right; border-bottom: 1px solid #e5e5e5; }
th { position: sticky; top: 0; background: #f4f4f4; text-align: right; }
table.facts th, table.facts td { text-align: left; position: static; background: none;
                                 font-weight: normal; vertical-align: top; }
table.facts th { color: #555; white-space: nowrap; }
.check { background: #fff6dd; border-left: 4px solid #e69f00; padding: 0.4rem 0.8rem; }
pre { white-space: pre-wrap; background: #f4f4f4; padding: 0.6rem; font-size: 0.85rem; }
@media print { .scroll { max-height: none; overflow: visible; } body { margin: 0; } }
"""


# --- what a page is made of --------------------------------------------------------------------


def _figure(draw: Callable[[Any], object], caption: str, size: tuple[float, float]) -> str:
    """A figure that `draw` draws into axes, with its caption."""
    png = figure_png(lambda figure: draw(figure.add_subplot()), size, _DPI)
    return f"<figure>{image_tag(png, caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def _figures(figures: Sequence[str]) -> str:
    return f'<div class="figures">{"".join(figures)}</div>'


def _facts(facts: Mapping[str, Any]) -> str:
    """A table of names and values."""
    rows = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(_text(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def _text(value: Any) -> str:
    """A setting as text; of an array its shape, and how much of a mask is True."""
    if isinstance(value, np.ndarray) and value.ndim:
        if value.dtype == bool:
            return f"mask of {' x '.join(map(str, value.shape))}, {int(value.sum())} True"
        return f"array of {' x '.join(map(str, value.shape))}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_text(item)}" for key, item in value.items()) or "-"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_text, value)) or "-"
    return str(value)


def _table(rows: NDArray[Any], units: Mapping[str, str]) -> str:
    """A structured array as a table that scrolls."""
    page = ClusterTable(rows[:_N_ROWS], units).to_html(_N_ROWS)
    rest = len(rows) - _N_ROWS
    note = f'<p class="note">and {rest} more rows</p>' if rest > 0 else ""
    return f'<div class="scroll">{page}</div>{note}'


def _page(title: str, subtitle: str, parts: Sequence[tuple[str, str]]) -> str:
    """The page of these parts, each with its heading."""
    body = "".join(f"<h2>{escape(heading)}</h2>\n{part}\n" for heading, part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>"
        f'<h1>{escape(title)}</h1><p class="note">{escape(subtitle)}</p>\n{body}'
        f'<p class="note">Made by py4dstem_clustering {escape(__version__)}.</p></body></html>\n'
    )


def _write(path: Path, page: str) -> None:
    with complete_or_absent(path) as partial:
        partial.write_text(page, encoding="utf-8")


# --- one scan ----------------------------------------------------------------------------------


def write_report(
    path: Path,
    found: Sequence[Clusters],
    averages: Any,
    *,
    image: NDArray[Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    command: str = "",
) -> None:
    """Write a page about one or several clusterings of a scan.

    Parameters
    ----------
    path : Path
        The HTML file; one that exists is replaced.
    found : sequence of Clusters
        The clusterings; the last one is that of the averages.
    averages : DataCube (N, 1, Qx, Qy)
    image : ndarray, (Rx, Ry), optional
        Virtual image below the label maps; by default the mean similarity.
    facts : mapping, optional
        What is known of the data: lines at the top of the page.
    command : str
        The command that made the result.
    """
    newest = found[-1]
    parts = [("Data", _facts(facts or {}))]
    doubts = [f"{one.name}: {doubt}" for one in found for doubt in find_doubts(one)]
    if doubts:
        items = "".join(f"<li>{escape(doubt)}</li>" for doubt in doubts)
        parts.append(("To check", f'<ul class="check">{items}</ul>'))
    for clusters in found:
        parts.append((f"Clusters {clusters.name!r}", _maps(clusters, image)))
    if newest.n_clusters:
        shown = f"the first {_N_PICTURED} of " if newest.n_clusters > _N_PICTURED else ""
        parts.append(
            (
                "Average patterns",
                _figure(
                    lambda ax: plot_averages(averages, ax),
                    f"Average diffraction patterns: {shown}{newest.n_clusters} clusters. Frames "
                    "have the colours of the map.",
                    (7.5, 7.5),
                ),
            )
        )
        table = newest.table()
        parts.append(("Properties", _table(table.rows, table.units)))
    parts.append(("Methods", _methods(newest)))
    options = {key: value for key, value in newest.settings.items() if value is not None}
    noted = getattr(newest.settings, "noted", {})
    settings = _facts(options) + '<p class="note">Found and noted:</p>'
    parts.append(("Settings", settings + _facts(noted)))
    if command:
        parts.append(("Command", f"<pre>{escape(command)}</pre>"))
    _write(path, _page("Clusters of a 4D-STEM scan", _subtitle(newest), parts))


def _subtitle(clusters: Clusters) -> str:
    settings = clusters.settings
    when = str(settings.get("created", ""))[:16].replace("T", " ")
    return ", ".join(str(part) for part in (settings.get("source"), when) if part)


def _methods(clusters: Clusters) -> str:
    """The paragraph of `describe` and its references."""
    text, *rest = clusters.describe().split("\n\n")
    references = rest[0].splitlines() if rest else []
    lines = "<br>".join(map(escape, references))
    return f'<p>{escape(text)}</p><p class="note">{lines}</p>'


def _maps(clusters: Clusters, image: NDArray[Any] | None) -> str:
    """Label map, similarity and growth, and the distribution of sizes."""
    rx, ry = clusters.shape
    size = (5.0, float(np.clip(5 * rx / ry, 1.5, 9)) + 0.3)
    below = "mean similarity" if image is None else "virtual image"
    figures = [
        _figure(
            lambda ax: plot_clusters(clusters, ax, image=image),
            f"{clusters.n_clusters} clusters over the {below}.",
            size,
        )
    ]
    if clusters.similarity is not None:
        figures.append(
            _figure(
                lambda ax: plot_similarity(clusters.similarity, ax),
                "Mean similarity of each pattern with its neighbours.",
                size,
            )
        )
        if isinstance(clusters.settings.get("level"), float) and clusters.n_clusters:
            figures.append(
                _figure(
                    lambda ax: plot_growth(clusters, ax),
                    "Step of growth, from the seeds outwards.",
                    size,
                )
            )
    if clusters.n_clusters:
        figures.append(
            _figure(
                lambda ax: plot_sizes(clusters, ax),
                "Equivalent diameters of clusters that do not touch the border of the scan.",
                (5.0, 3.6),
            )
        )
    return _figures(figures)


# --- a series ----------------------------------------------------------------------------------


def write_series_report(path: Path, series: Any, tracks: Any, *, command: str = "") -> None:
    """Write a page about a series of scans; see `write_report`."""
    done = [k for k, info in enumerate(series.infos) if not info.error]
    last = series[done[-1]]
    unit = unit_sign(last.pixel_units)
    facts = {
        "file": series.path.name,
        "frames": f"{len(series)}, {len(series.errors)} of them failed",
        "time": f"{series.times[0]:g} to {series.times[-1]:g} {series.time_units}",
        "tracks": repr(tracks),
    }
    parts = [("Data", _facts(facts))]
    if series.errors:
        parts.append(
            ("Frames that failed", _facts({f"frame {k}": e for k, e in series.errors.items()}))
        )
    figures = [
        _figure(
            lambda ax: plot_tracks(series, ax, tracks=tracks),
            "Outlines of all frames, drift subtracted.",
            (5.5, 5),
        ),
        _figure(
            lambda ax: plot_areas(
                tracks, ax, time_units=series.time_units, pixel_units=last.pixel_units
            ),
            "Sizes of the tracks: a band is as wide as the equivalent diameter.",
            (5.5, float(np.clip(0.9 + 0.13 * tracks.n_tracks, 3, 9))),
        ),
    ]
    parts.append(("Tracks", _figures(figures) if len(tracks) else "<p>No track was found.</p>"))
    shown = sorted({done[0], done[len(done) // 2], done[-1]})
    parts.append(("Some frames", _figures([_frame(series, k) for k in shown])))
    units = {"time": series.time_units, "area": f"{last.pixel_units}^2"}
    parts.append(("Events", _table(tracks.events, units)))
    parts.append((f"Clusters of all frames (areas in {unit}²)", _table(tracks.table, units)))
    parts.append(("Methods of the last frame", _methods(last)))
    parts.append(("Settings", _facts(series.settings)))
    if command:
        parts.append(("Command", f"<pre>{escape(command)}</pre>"))
    _write(path, _page("Grains in a series of 4D-STEM scans", series.path.name, parts))


def _frame(series: Any, k: int) -> str:
    """Label map of one frame over its virtual image."""
    clusters, image = series[k], series.image(k)
    when = f"{series.times[k]:g} {series.time_units}"
    return _figure(
        lambda ax: plot_clusters(clusters, ax, image=image),
        f"Frame {k}, {when}: {clusters.n_clusters} clusters.",
        (4.0, 4.0),
    )
