"""Figures of orientations and of how far to believe them."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy.typing import NDArray

from ..kernels.evidence import AMBIGUOUS, NOT_INDEXED
from ..kernels.rotations import symmetry_rotations
from .style import axes_or_new, bare_frame

_AXES = {"x": 0, "y": 1, "beam": 2}

_REFERENCE = np.array([0.2, 0.4, 0.9])
"""Of equivalent crystal directions, the one nearest to this gives the colour."""

_GREY = 0.75


def plot_orientation(
    orientation: Any, crystal: Any, ax: Axes | None = None, *, direction: str = "beam"
) -> Axes:
    """Draw an orientation map: colours for directions, and what not to believe.

    Equal colours mean equal crystal directions along `direction`. Ambiguous orientations are
    hatched; positions that are not indexed, and those outside of clusters, are grey.

    Parameters
    ----------
    orientation : OrientationMap, (Rx, Ry)
        From `Clusters.expand_orientation_map`. Without verdicts, from a map that was not refined,
        nothing is hatched.
    crystal : py4DSTEM.process.diffraction.Crystal
        Gives the symmetry.
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure.
    direction : "beam", "x" or "y"
        Direction of the sample whose crystal direction gives the colour: the beam, or the image
        axis along Rx or Ry.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If `direction` is not one of these.

    Examples
    --------
    >>> from py4DSTEM.process.diffraction.utils import OrientationMap
    >>> from py4dstem_clustering import simulate_scan
    >>> gold = simulate_scan((2, 2), (16, 16), n_grains=0, disk_radius=1).crystal
    >>> ax = plot_orientation(OrientationMap(6, 5, 1), gold)
    """
    if direction not in _AXES:
        raise ValueError(f"direction={direction!r} must be 'beam', 'x' or 'y'")
    matrix, corr = orientation.matrix[:, :, 0], np.nan_to_num(orientation.corr[:, :, 0])
    symmetry = symmetry_rotations(crystal.lat_real, crystal.positions, crystal.numbers)
    image = _colors(matrix[..., _AXES[direction]], symmetry)
    unknown = corr <= 0
    verdict = getattr(orientation, "verdict", None)
    if verdict is not None:
        unknown |= verdict == NOT_INDEXED
    image[unknown] = _GREY
    ax = axes_or_new(ax)
    ax.imshow(image, interpolation="nearest")
    patches = []
    ambiguous = np.zeros_like(unknown) if verdict is None else (verdict == AMBIGUOUS) & ~unknown
    if ambiguous.any():
        # A pixel has four corners, so that the hatching ends where the colour does.
        fine = np.kron(ambiguous, np.ones((4, 4)))
        rows, columns = (np.arange(4 * n) / 4 - 0.375 for n in ambiguous.shape)
        with np.errstate(all="ignore"):
            ax.contourf(columns, rows, fine, levels=[0.5, 1.5], colors="none", hatches=["////"])
        patches.append(Patch(facecolor="white", edgecolor="black", hatch="////", label="ambiguous"))
    if unknown.any():
        patches.append(Patch(facecolor=str(_GREY), label="not indexed"))
    bare_frame(ax, None)
    name = {"beam": "the beam", "x": "x (down)", "y": "y (right)"}[direction]
    ax.set_xlabel(f"colours: crystal direction along {name}", fontsize=8)
    if patches:
        # Above the map, where it hides nothing.
        ax.legend(
            handles=patches, loc="lower center", bbox_to_anchor=(0.5, 1), ncol=2, fontsize=7,
            frameon=False,
        )  # fmt: skip
    return ax


def _colors(directions: NDArray[Any], symmetry: NDArray[Any]) -> NDArray[np.float64]:
    """Colours ``(..., 3)`` of crystal directions ``(..., 3)``; equivalent ones have the same."""
    equivalent = np.einsum("sij,...j->...si", np.concatenate([symmetry, -symmetry]), directions)
    nearest = (equivalent @ _REFERENCE).argmax(axis=-1)
    chosen = np.take_along_axis(equivalent, nearest[..., None, None], axis=-2)[..., 0, :]
    # Stretch the small region that is left, so that its colours differ clearly.
    low, high = _corners(symmetry)
    colors: NDArray[np.float64] = np.clip((chosen - low) / (high - low), 0, 1) ** 0.7
    return colors


def _corners(symmetry: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Smallest and largest components of the directions that give colours."""
    n = 2000
    height = 1 - 2 * (np.arange(n) + 0.5) / n
    turn = np.pi * (1 + 5**0.5) * np.arange(n)
    radius = np.sqrt(1 - height**2)
    points = np.stack([radius * np.cos(turn), radius * np.sin(turn), height], axis=1)
    nearness = np.einsum("sij,nj,i->ns", np.concatenate([symmetry, -symmetry]), points, _REFERENCE)
    region = points[nearness.argmax(axis=1) == 0]
    return region.min(axis=0), region.max(axis=0)
