"""Drift of a series and rotation of a grain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_number, values_of
from ..base.frozen import Frozen
from ..diffraction.misorientation import get_symmetry, misorientation
from ..diffraction.orientation import check_orientation, cluster_orientations
from ..kernels.drift import find_drift_core
from ..kernels.rotations import steady_rotation
from .linking import check_times


def find_drift(images: Iterable[Any], *, reach: float | None = None) -> NDArray[np.float64]:
    """How the sample moves from frame to frame, in scan positions.

    Parameters
    ----------
    images : iterable of ndarray (Rx, Ry) or None
        A virtual image of each frame, such as the intensity outside of the direct beam. Particles
        must stand out in it. Unknown values are NaN; a missing frame is None, or all NaN. Only a
        few images are in memory at a time.
    reach : float, optional
        Largest motion of the sample from one frame to the next, scan positions. By default a
        quarter of the shorter side of the scan, at least 1. A smaller value helps where there are
        few particles that look alike.

    Returns
    -------
    ndarray, (T, 2)
        Displacement along Rx and Ry since the first frame that is not missing: a point at ``p`` in
        that frame is at ``p + drift[t]`` in frame t. NaN for a missing frame. A frame without
        contrast gets the drift of its neighbours, or 0.

    Raises
    ------
    ValueError, TypeError
        If images differ in shape, are not 2D or hold no real numbers, or `reach` breaks its rule.

    Notes
    -----
    Frames that are 1, 2, 4 and 8 apart are compared. Robust least squares finds the places that
    explain all comparisons best, so errors do not add up from frame to frame. Each comparison
    starts from the correlation over the area that both images show, so it needs no window and the
    border does not bias it. Gauss-Newton steps refine the displacement together with one rate of
    growth for each particle. Without these rates, the growth of a particle to one side, away from
    the border or from another particle, would be taken for drift.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.indices((24, 20))
    >>> images = [np.exp(-((x - 10 - 0.5 * t) ** 2 + (y - 9) ** 2) / 8) for t in range(3)]
    >>> find_drift(images)[:, 0].round(1).tolist()
    [0.0, 0.5, 1.0]
    """
    if reach is not None:
        reach = check_number("reach", reach, 0)
    drift = find_drift_core(_check_images(images), reach)
    return drift + 0.0  # turns -0 into 0


def _check_images(images: Iterable[Any]) -> Iterator[NDArray[np.float64] | None]:
    """Yield images as float64, NaN where unknown; None for a missing frame."""
    shape = None
    for t, image in enumerate(images):
        if image is None:
            yield None
            continue
        image = np.asarray(values_of(image))
        if image.ndim != 2 or image.size == 0:
            raise ValueError(f"image {t} of shape {image.shape} must be a 2D map of the scan")
        if image.dtype.kind not in "buif":
            raise TypeError(f"image {t} of type {image.dtype} must hold real numbers")
        if shape is not None and image.shape != shape:
            raise ValueError(
                f"image {t} of shape {image.shape} must have the shape of those before, {shape}: "
                "drift is that of one scan"
            )
        shape = image.shape
        image = image.astype(np.float64)
        image[~np.isfinite(image)] = np.nan
        yield None if np.isnan(image).all() else image


# --- rotation --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rotation(Frozen):
    """How a particle turns; from `rotation_rate`.

    Attributes
    ----------
    rate : float
        Degrees a time unit, at least 0; NaN if the data do not determine it.
    error : float
        Standard error of the rate; NaN for fewer than 3 frames.
    axis : ndarray, (3,)
        Axis of the rotation in image x, image y and the beam. Seen from the tip of the axis, the
        particle turns counter-clockwise (right-hand rule). NaN without a rate.
    angles : ndarray, (n,)
        Rotation about the axis since the first frame with an orientation, degrees; NaN in frames
        without an orientation.
    used : ndarray, (n,), bool
        Frames that fit a steady rotation. The orientations of other frames are taken to be wrong.
    """

    rate: float
    error: float
    axis: NDArray[Any]
    angles: NDArray[Any] = field(repr=False)
    used: NDArray[Any] = field(repr=False)


def rotation_rate(
    orientation: Any, times: Any, crystal: Any, *, tolerance: float = 5.0
) -> Rotation:
    """How fast, and about which axis, a particle turns.

    Parameters
    ----------
    orientation : ndarray, (n, 3, 3), or OrientationMap, (n, 1)
        Orientation of the particle in each frame, as in ``OrientationMap.matrix``: the columns are
        the image x and y axes and the beam in Cartesian coordinates of the crystal. NaN or zeros
        where no match was found.
    times : array-like, (n,)
        Time of each frame, rising: ``track.times``.
    crystal : py4DSTEM.process.diffraction.Crystal
        The symmetry of the crystal decides which orientations are the same.
    tolerance : float
        Frames that deviate from a steady rotation by more than this, degrees, are left out. Use a
        few times the error of the orientations, well below the limit of the symmetry (cubic: 45
        degrees).

    Returns
    -------
    Rotation

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule, or matrices are no rotations.

    Notes
    -----
    For each pair of frames, the smallest rotation that the symmetry allows is a candidate. The
    candidate that most frames agree with is refined by robust least squares. From one frame to the
    next the particle must turn by less than half of the smallest rotation of its symmetry (45
    degrees in cubic crystals); over the whole series it may turn by any angle.

    Examples
    --------
    >>> import numpy as np
    >>> from py4dstem_clustering import simulate_scan
    >>> gold = simulate_scan((2, 2), (16, 16), n_grains=0, disk_radius=1).crystal
    >>> angle = np.deg2rad(30 * np.arange(5))
    >>> turn = np.zeros((5, 3, 3))
    >>> turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angle)
    >>> turn[:, 0, 1] = np.sin(angle)
    >>> turn[:, 1, 0] = -turn[:, 0, 1]
    >>> turn[:, 2, 2] = 1
    >>> found = rotation_rate(turn, np.arange(5), gold)
    >>> round(found.rate, 6), found.angles.round(3).tolist()
    (30.0, [0.0, 30.0, 60.0, 90.0, 120.0])
    """
    tolerance = check_number("tolerance", tolerance, 1e-6, 180)
    symmetry = get_symmetry(crystal)
    if hasattr(orientation, "matrix"):
        n = len(orientation.matrix)
        check_orientation(orientation, {"one for each frame": (n, 1)})
        matrices = cluster_orientations(np.arange(n)[:, None], orientation)
    else:
        matrices = np.array(orientation, dtype=np.float64)
        if matrices.ndim != 3 or matrices.shape[1:] != (3, 3):
            raise ValueError(
                f"orientation of shape {matrices.shape} must be (n, 3, 3), one for each frame"
            )
    times = check_times(times)
    if times is None or len(times) != len(matrices):
        raise ValueError(
            f"times must have one entry for each of the {len(matrices)} orientations, not "
            f"{None if times is None else len(times)}"
        )
    # This also checks that the matrices are rotations.
    known = np.isfinite(misorientation(matrices, np.eye(3), crystal))
    found = steady_rotation(matrices[known], times[known], symmetry, np.deg2rad(tolerance))
    rate = np.linalg.norm(found.velocity)
    angles = np.full(len(matrices), np.nan)
    angles[known] = np.rad2deg(found.angles)
    used = np.zeros(len(matrices), dtype=bool)
    used[known] = found.used
    axis = found.velocity / rate if rate > 0 else np.full(3, np.nan)
    return Rotation(float(np.rad2deg(rate)), float(np.rad2deg(found.error)), axis, angles, used)
