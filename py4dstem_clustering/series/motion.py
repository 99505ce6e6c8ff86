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
        A virtual image of each frame in which particles stand out, such as the intensity outside of
        the direct beam. NaN where it is unknown; None, or NaN everywhere, for a missing frame. Only
        a few images are in memory at a time.
    reach : float, optional
        Farthest that the sample moves from one frame to the next, scan positions. By default a
        quarter of the shorter side of the scan, at least 1. Less helps where few particles look
        alike.

    Returns
    -------
    ndarray, (T, 2)
        Displacement along Rx and Ry since the first frame that is not missing: what lies at p in
        that frame lies at ``p + drift[t]`` in frame t. NaN for a missing frame. A frame without
        contrast gets the drift of its neighbours, or 0.

    Raises
    ------
    ValueError, TypeError
        If images differ in shape, are not 2D or hold no real numbers, or `reach` breaks its rule.

    Notes
    -----
    Frames that are 1, 2, 4 and 8 apart are compared, and the places that explain all of these best
    are found by robust least squares: so errors do not add up from frame to frame as they would
    when only successive ones are compared. Each comparison starts from the correlation over what
    both images show (no window is needed, and the border draws it nowhere), and is refined by
    Gauss-Newton with one rate of growth for each particle beside the displacement. Without that, a
    particle that grows away from the border, or from one that it touches, would pass for drift.

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
    return drift + 0.0  # no -0


def _check_images(images: Iterable[Any]) -> Iterator[NDArray[np.float64] | None]:
    """Images as float64 with NaN where they are unknown; None for a missing frame."""
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
        Degrees a time unit, at least 0; NaN where it is not determined.
    error : float
        Its standard error; NaN for fewer than 3 frames.
    axis : ndarray, (3,)
        Axis of the rotation in image x, image y and the beam: seen from its tip, the particle turns
        counter-clockwise (the right-hand rule). NaN without a rate.
    angles : ndarray, (n,)
        Rotation about the axis since the first frame with an orientation, degrees; NaN where there
        is none.
    used : ndarray, (n,), bool
        Frames that fit a steady rotation; the orientations of the others are taken to be wrong.
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
        Time of each, rising: ``track.times``.
    crystal : py4DSTEM.process.diffraction.Crystal
        Its symmetry says which orientations are the same.
    tolerance : float
        Frames that deviate from steady rotation by more than this, degrees, do not count: a few
        times the error of the orientations, well below the symmetry (cubic: 45 degrees).

    Returns
    -------
    Rotation

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule, or matrices are no rotations.

    Notes
    -----
    The rotation that most frames agree with is searched among those between pairs of frames, each
    the smallest of all that the symmetry allows, and then fitted by robust least squares. From one
    frame to the next the particle may turn by less than half of the smallest rotation of its
    symmetry, 45 degrees in cubic crystals; over the series by any angle.

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
