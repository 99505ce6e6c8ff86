"""Contours of clusters as GeoJSON and SVG."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..grains.clusters import Clusters
from ..plotting.style import nth_color


def _area(ring: NDArray[Any]) -> float:
    """Signed area of a closed ring of points (x, y)."""
    x, y = ring[:-1].T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _rings(clusters: Clusters, label: int) -> list[NDArray[np.float64]]:
    """Closed rings (x, y) of one cluster: x along Ry and y along Rx, in units of the scan step."""
    found = clusters.contours(label)
    return [points[:, ::-1] * clusters.pixel_size for points in found]


def _polygons(rings: list[NDArray[np.float64]]) -> list[list[NDArray[np.float64]]]:
    """Rings as polygons: an outer ring, anticlockwise, with the holes in it, clockwise."""
    from skimage.measure import points_in_poly

    # A contour goes around members in one sense, and around holes in the other; the largest ring
    # of a cluster is never a hole.
    areas = [_area(ring) for ring in rings]
    outwards = np.sign(areas[int(np.argmax(np.abs(areas)))])
    outer = [k for k, area in enumerate(areas) if np.sign(area) == outwards]
    polygons = {k: [rings[k] if areas[k] > 0 else rings[k][::-1]] for k in outer}
    for k, area in enumerate(areas):
        if k in polygons:
            continue
        around = [o for o in outer if points_in_poly(rings[k][:1], rings[o])[0]]
        owner = min(around or outer, key=lambda o: abs(areas[o]))
        polygons[owner].append(rings[k] if area < 0 else rings[k][::-1])
    return list(polygons.values())


def write_geojson(path: Path, clusters: Clusters) -> None:
    """Write a feature for each cluster: a polygon for each piece, with its properties.

    GeoJSON means degrees on the Earth; here coordinates are distances on the specimen, whose unit
    stands in ``unit``, x along Ry and y along Rx (downwards in figures).
    """
    rows = clusters.properties()
    features = []
    for row in rows:
        polygons = _polygons(_rings(clusters, int(row["label"])))
        coordinates = [[np.round(r, 9).tolist() for r in polygon] for polygon in polygons]
        single = len(coordinates) == 1
        properties = {name: _finite(row[name].item()) for name in rows.dtype.names or ()}
        features.append(
            {
                "type": "Feature",
                "id": int(row["label"]),
                "properties": properties,
                "geometry": {
                    "type": "Polygon" if single else "MultiPolygon",
                    "coordinates": coordinates[0] if single else coordinates,
                },
            }
        )
    content = {
        "type": "FeatureCollection",
        "name": clusters.name,
        "unit": clusters.pixel_units,
        "axes": "x along Ry, y along Rx, from the middle of the first scan position",
        "features": features,
    }
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def write_svg(path: Path, clusters: Clusters) -> None:
    """Write one path for each cluster, named ``cluster-<label>``; a unit is a scan step."""
    rx, ry = clusters.shape
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-0.5 -0.5 {ry} {rx}" '
        f'width="{ry}" height="{rx}">'
    ]
    for label in range(clusters.n_clusters):
        parts = []
        for points in clusters.contours(label):
            inner = " L".join(f"{y:g} {x:g}" for x, y in points[:-1])
            parts.append(f"M{inner} Z")
        red, green, blue = (round(255 * float(c)) for c in nth_color(label)[:3])
        lines.append(
            f'<path id="cluster-{label}" d="{" ".join(parts)}" fill="rgb({red},{green},{blue})" '
            'fill-rule="evenodd" fill-opacity="0.5" stroke="black" stroke-width="0.1"/>'
        )
    path.write_text("\n".join([*lines, "</svg>\n"]), encoding="utf-8")
