"""Texture: how the orientations of the grains are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..base.checks import check_flag, check_number
from ..plotting.texture import draw_pole_figure, pole_axes
from .misorientation import get_symmetry, has_orientation

_ENOUGH = 20
"""Orientations from which on a density is drawn by default. With fewer, the density shows the
single orientations and no texture."""


def plot_orientations(
    orientation: Any,
    crystal: Any,
    axes: Any = None,
    *,
    clusters: Any = None,
    poles: Sequence[Sequence[int]] = ((0, 0, 1), (0, 1, 1), (1, 1, 1)),
    density: bool | None = None,
    width: float = 10.0,
) -> Any:
    """Draw pole figures of the orientations of grains, for the texture of a sample.

    Parameters
    ----------
    orientation : OrientationMap
        From ``crystal.match_orientations``, of the averages (N, 1) or of all positions (Rx, Ry).
    crystal : py4DSTEM.process.diffraction.Crystal
    axes : sequence of matplotlib Axes, optional
        Where to draw, one for each pole; by default in a new figure.
    clusters : Clusters, optional
        With orientations of its averages, each grain counts by its area, and has the colour of
        ``clusters.plot()``. Background is left out. Without it, all orientations count the same.
    poles : sequence of (h, k, l)
        Lattice planes whose normals are drawn, a pole figure for each.
    density : bool, optional
        Shade the pole figure by the density of poles, in multiples of a random distribution; by
        default from 20 orientations on.
    width : float
        Half width of the density, degrees. A smaller one shows more detail, and more chance.

    Returns
    -------
    ndarray of matplotlib Axes
        Stereographic projections of the half sphere towards the beam, which is in the middle. Qx
        points down and Qy to the right, as in patterns; the axes of the scan differ from them by
        the rotation in the calibration. All planes that symmetry makes equal are drawn. A pattern
        alone does not tell an orientation from that turned by 180 degrees about the beam where only
        the zero-order Laue zone is seen; see `refine_orientations`.

    Raises
    ------
    ValueError, TypeError
        If an option breaks its rule, or nothing has an orientation.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from py4dstem_clustering import simulate_scan
    >>> truth = simulate_scan((8, 10), (32, 30), n_grains=3, seed=1)
    >>> orientation = SimpleNamespace(matrix=truth.orientations[:, None, None])
    >>> axes = plot_orientations(orientation, truth.crystal, poles=[(0, 0, 1), (1, 1, 1)])
    >>> [ax.get_title() for ax in axes]
    ['{001}', '{111}']
    """
    width = check_number("width", width, 0.5, 90)
    matrices, weights, colors = _weighted(orientation, clusters)
    shaded = len(matrices) >= _ENOUGH if density is None else check_flag("density", density)
    planes = [_check_pole(pole) for pole in poles]
    if not planes:
        raise ValueError("poles must name at least one plane, such as [(0, 0, 1)]")
    directions = [pole_directions(matrices, crystal, plane) for plane in planes]
    axes = pole_axes(axes, len(planes), shaded)
    for ax, plane, found in zip(axes, planes, directions, strict=True):
        title = "{" + "".join(str(i) if i >= 0 else f"\N{MINUS SIGN}{-i}" for i in plane) + "}"
        draw_pole_figure(ax, found, weights, colors, title, width if shaded else None)
    return axes


def _check_pole(pole: Any) -> tuple[int, int, int]:
    plane = np.asarray(pole)
    if plane.shape != (3,) or plane.dtype.kind not in "iu" or not plane.any():
        raise ValueError(f"poles hold {pole!r}; each must be three whole numbers (h, k, l), not 0")
    h, k, l = plane.tolist()  # noqa: E741
    return h, k, l


def _weighted(orientation: Any, clusters: Any) -> tuple[NDArray[Any], NDArray[Any], Any]:
    """Orientation matrices (n, 3, 3), their weights, and their colours or None."""
    from ..plotting.style import cluster_colors

    matrix = getattr(orientation, "matrix", 0)
    if np.ndim(matrix) != 5:
        raise TypeError(
            f"orientation must be an OrientationMap from crystal.match_orientations(), not "
            f"{type(orientation).__name__}"
        )
    best = np.asarray(matrix)[:, :, 0]
    keep: NDArray[np.bool_] = has_orientation(best)
    if getattr(orientation, "corr", None) is not None:
        keep = keep & (np.nan_to_num(orientation.corr[:, :, 0]) > 0)
    weights: NDArray[np.float64] = np.ones(best.shape[:2])
    colors = None
    if clusters is not None and best.shape[:2] == (clusters.n_clusters, 1):
        weights = clusters.sizes[:, None].astype(float)
        keep[list(clusters.background)] = False
        colors = cluster_colors(clusters.labels, clusters.n_clusters)[keep[:, 0]]
    elif clusters is not None and best.shape[:2] != clusters.shape:
        raise ValueError(
            f"orientation of shape {best.shape[:2]} does not fit; it must be "
            f"{(clusters.n_clusters, 1)} (averages) or {clusters.shape} (scan)"
        )
    if not keep.any():
        raise ValueError("orientation holds no match: nothing can be drawn")
    share: NDArray[np.float64] = weights[keep] / weights[keep].sum()
    return best[keep], share, colors


def pole_directions(
    matrices: NDArray[np.float64], crystal: Any, plane: ArrayLike
) -> NDArray[np.float64]:
    """Unit normals of a lattice plane and all that symmetry makes equal to it.

    Parameters
    ----------
    matrices : ndarray, (n, 3, 3)
        Orientation matrices, as in py4DSTEM: the columns are the directions of Qx, Qy and the beam
        in the Cartesian coordinates of the crystal.
    crystal : py4DSTEM.process.diffraction.Crystal
    plane : array-like, (3,)
        Miller indices.

    Returns
    -------
    ndarray, (n, m, 3)
        Components along Qx, Qy and the beam; of opposite normals the one with a component along the
        beam of at least 0.
    """
    symmetry = get_symmetry(crystal)
    normal = np.asarray(plane, dtype=float) @ np.linalg.inv(np.asarray(crystal.lat_real)).T
    normal = normal / np.linalg.norm(normal)
    equal = symmetry @ normal
    kept: list[NDArray[np.float64]] = []
    for one in equal:
        if all(abs(one @ other) < 1 - 1e-6 for other in kept):
            kept.append(one)
    out = np.einsum("nji,mj->nmi", matrices, np.array(kept))
    return np.where(out[..., 2:] < 0, -out, out)
