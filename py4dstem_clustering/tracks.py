"""Tracks: particles followed through a series of scans (5D-STEM).

`find_drift` measures how the sample moved, `link_frames` says which cluster of a frame is which of
the next, and the `Tracks` that it returns give growth, and what was born, died, split or merged.
`rotation_rate` says how fast a particle turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .base.checks import check_integer, check_number, values_of
from .base.frozen import Frozen
from .diffraction.misorientation import get_symmetry, misorientation
from .diffraction.orientation import check_orientation, cluster_orientations
from .kernels.drift import find_drift_core
from .kernels.linking import Comparer, Linker
from .kernels.rotations import steady_rotation

TABLE = np.dtype(
    [
        ("frame", np.int64),
        ("time", np.float64),
        ("label", np.int64),
        ("track", np.int64),
        ("size", np.int64),
        ("area", np.float64),
        ("centroid_rx", np.float64),
        ("centroid_ry", np.float64),
        ("place_rx", np.float64),
        ("place_ry", np.float64),
        ("similarity", np.float64),
        ("touches_border", bool),
        ("background", bool),
    ]
)
"""Fields of `Tracks.table`."""

EVENTS = np.dtype(
    [
        ("frame", np.int64),
        ("time", np.float64),
        ("event", "U8"),
        ("track", np.int64),
        ("other", np.int64),
    ]
)
"""Fields of `Tracks.events`."""


class Rate(NamedTuple):
    """A rate and its standard error; NaN where the data does not determine them."""

    rate: float
    error: float


# --- drift -----------------------------------------------------------------------------------


def find_drift(images: Iterable[Any], *, reach: float | None = None) -> np.ndarray:
    """How the sample moves from frame to frame, in scan positions.

    Parameters
    ----------
    images : iterable of ndarray (Rx, Ry) or None
        A virtual image of each frame, taken one after the other, in which particles stand out, such
        as the intensity outside of the direct beam. NaN where it is unknown; None, or NaN
        everywhere, for a frame that is missing.
    reach : float, optional
        Farthest that the sample moves from one frame to the next, scan positions. By default a
        quarter of the shorter side of the scan, at least 1. Less helps where few particles look
        alike.

    Returns
    -------
    ndarray, (T, 2)
        Displacement along Rx and Ry since the first frame that is there: what lies at p in that one
        lies at ``p + drift[t]`` in frame t. NaN for a missing frame. 0 for one without contrast, or
        as its neighbours.

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
    drift = find_drift_core(_checked(images), reach)
    return drift + 0.0  # no -0


def _checked(images: Iterable[Any]) -> Iterator[np.ndarray | None]:
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


# --- linking ---------------------------------------------------------------------------------


def link_frames(
    frames: Iterable[Any],
    *,
    drift: Any = None,
    times: Any = None,
    memory: int = 1,
    reach: float = 2.0,
    min_similarity: float = 0.2,
    blur: float = 1.0,
    centre: tuple[float, float] | None = None,
) -> Tracks:
    """Link the clusters of successive frames to tracks.

    Parameters
    ----------
    frames : iterable
        For each frame ``(labels, averages, properties, background)``, or None for one that failed:
        it ends no track. `labels` (Rx, Ry), int, numbers clusters from 0; -1 is none. `averages`,
        (N, Qx, Qy) or (N, 1, Qx, Qy), is the mean pattern of each, or None: then overlap decides.
        `properties`, from ``clusters.properties()``, or None; `background`, labels of clusters that
        are no particles (``clusters.background``), may be left out. One frame is in memory at a
        time.
    drift : array-like, (T, 2), optional
        From `find_drift`; that of frames with NaN is interpolated. By default none.
    times : array-like, (T,), optional
        Time of each frame, rising. By default the number of the frame.
    memory : int
        A track goes on when its cluster was missing in at most this many frames, those that failed
        not counted. More bridges longer gaps, and confuses particles that vanish with new ones.
    reach : float
        Clusters that do not overlap may be the same when no more than so many scan positions are
        between them, and their patterns are alike. For fast or small particles; 0 for slow ones.
    min_similarity : float
        Clusters whose patterns correlate less than this, -1 to 1, are different ones, unless noise
        explains that. Lower it for particles that turn by more than a few degrees a frame.
    blur : float
        Patterns are blurred by so many detector pixels before they are compared, so that small
        rotations cost little; about half of the radius of the Bragg disks.
    centre : (float, float), optional
        Centre of the direct beam, detector pixels; found by default.

    Returns
    -------
    Tracks

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule, or shapes do not fit together.

    Notes
    -----
    A link is rated by the overlap of both clusters (Dice coefficient, drift taken off) plus the
    correlation of their mean patterns, without rings, direct beam and the power of noise; the best
    sum over all links of a frame is an assignment problem. When two clusters become one, the track
    that fits better goes on, and the other one has merged with it if more than half of it lies in
    there. A new cluster of which more than half lies where a track was that goes on has split from
    it.

    Examples
    --------
    A particle that moves, and a second one that appears.

    >>> import numpy as np
    >>> labels = np.full((3, 8, 6), -1)
    >>> labels[0, 1:4, 1:4] = labels[1, 2:5, 1:4] = labels[2, 3:6, 1:4] = 0
    >>> labels[2, 0:2, 4:6] = 1
    >>> tracks = link_frames([(frame, None, None) for frame in labels])
    >>> tracks
    Tracks(2 tracks, 4 clusters in 3 frames, 1 birth)
    >>> tracks["track"].tolist()
    [0, 0, 0, 1]
    """
    memory = check_integer("memory", memory, 0)
    reach = check_number("reach", reach, 0)
    min_similarity = check_number("min_similarity", min_similarity, -1, 1)
    blur = check_number("blur", blur, 0)
    if centre is not None:
        centre = check_number("centre[0]", centre[0]), check_number("centre[1]", centre[1])
    drift, times = _check_drift(drift), _check_times(times)
    if isinstance(frames, Sequence):  # before long work
        _check_lengths(drift, times, len(frames))

    linker = Linker(memory, reach, min_similarity)
    comparer: Comparer | None = None
    rows: list[np.ndarray] = []
    shape = None
    n_frames = 0
    for t, item in enumerate(frames):
        n_frames += 1
        _check_lengths(drift, times, n_frames, more=True)
        if item is None:
            continue
        frame = _check_frame(t, item, shape)
        shape = frame.labels.shape
        patterns = None
        if frame.averages is not None:
            if comparer is None and len(frame.averages):
                known_pixels = np.isfinite(frame.averages)
                total = np.where(known_pixels, frame.averages, 0).sum(axis=0, dtype=np.float64)
                mean = total / np.maximum(known_pixels.sum(axis=0), 1)
                comparer = Comparer(mean, centre, blur)
            if comparer is not None:
                if frame.averages.shape[1:] != comparer.shape:
                    raise ValueError(
                        f"averages of frame {t} of {frame.averages.shape[1:]} detector pixels must "
                        f"have those of the frames before, {comparer.shape}"
                    )
                patterns = comparer(frame.averages)
        moved = np.zeros(2) if drift is None else drift[t]
        track = linker.add(t, frame.labels, frame.background, patterns, moved)
        rows.append(_rows(t, t if times is None else times[t], frame, track, moved))
    _check_lengths(drift, times, n_frames)
    table = np.concatenate(rows) if rows else np.zeros(0, dtype=TABLE)
    events = np.array(
        [
            (e.frame, e.frame if times is None else times[e.frame], e.event, e.track, e.other)
            for e in linker.finish()
        ],
        dtype=EVENTS,
    )
    return Tracks(table, events, n_frames)


class _Frame(NamedTuple):
    labels: np.ndarray
    averages: np.ndarray | None
    properties: Any
    background: np.ndarray  # (N,), bool


def _check_frame(t: int, item: Any, shape: tuple[int, ...] | None) -> _Frame:
    if not isinstance(item, (tuple, list)) or not 2 <= len(item) <= 4:
        raise TypeError(
            f"frame {t} must be (labels, averages, properties, background) or None, not "
            f"{type(item).__name__}"
        )
    labels, averages, properties, background = (*item, None, None)[:4]
    labels = np.asarray(values_of(labels))
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or labels.size == 0:
        raise ValueError(
            f"labels of frame {t} must be a 2D map of whole numbers, not {labels.dtype} of shape "
            f"{labels.shape}"
        )
    labels = labels.astype(np.int64)
    if shape is not None and labels.shape != shape:
        raise ValueError(
            f"labels of frame {t} of shape {labels.shape} must have that of the frames before, "
            f"{shape}"
        )
    n = int(labels.max()) + 1
    found = np.unique(labels)
    if not np.array_equal(found[found >= 0], np.arange(n)) or found[0] < -1:
        raise ValueError(f"labels of frame {t} must be 0 to {n - 1} without gaps, and -1 elsewhere")
    if averages is not None:
        averages = np.asarray(values_of(averages))
        if averages.ndim == 4 and averages.shape[1] == 1:
            averages = averages[:, 0]
        if averages.ndim != 3 or len(averages) != n or averages.dtype.kind not in "buif":
            raise ValueError(
                f"averages of frame {t}, {averages.dtype} of shape {averages.shape}, must be real "
                f"numbers (N, Qx, Qy), one pattern for each of the {n} clusters"
            )
    if properties is not None and len(properties) != n:
        raise ValueError(
            f"properties of frame {t} have {len(properties)} rows for {n} clusters: give one each"
        )
    flags = np.zeros(n, dtype=bool)
    for k in () if background is None else background:
        if check_integer("background", k, 0) >= n:
            raise ValueError(f"background={k} of frame {t} is none of its {n} clusters")
        flags[k] = True
    return _Frame(labels, averages, properties, flags)


def _rows(t: int, time: float, frame: _Frame, track: np.ndarray, drift: np.ndarray) -> np.ndarray:
    """Rows of the table for the clusters of one frame."""
    labels, n = frame.labels, len(track)
    rows = np.zeros(n, dtype=TABLE)
    inside = labels >= 0
    places, number = np.argwhere(inside), labels[inside]
    size = np.bincount(number, minlength=n)
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    rows["frame"], rows["time"] = t, time
    rows["label"], rows["track"] = np.arange(n), track
    rows["size"] = rows["area"] = size
    rows["similarity"] = np.nan
    rows["background"] = frame.background
    rows["touches_border"] = np.isin(np.arange(n), border)
    for axis, name in enumerate(("rx", "ry")):
        centroid = np.bincount(number, places[:, axis], n) / np.maximum(size, 1)
        rows[f"centroid_{name}"] = centroid
        rows[f"place_{name}"] = centroid - drift[axis]
    if frame.properties is not None:
        for name in ("area", "similarity"):
            rows[name] = frame.properties[name]
    return rows


def _check_drift(drift: Any) -> np.ndarray | None:
    if drift is None:
        return None
    drift = np.array(values_of(drift), dtype=np.float64)
    if drift.ndim != 2 or drift.shape[1] != 2:
        raise ValueError(f"drift of shape {drift.shape} must be (T, 2): Rx and Ry of each frame")
    known = np.isfinite(drift).all(axis=1)
    if not known.any():
        return np.zeros(drift.shape)
    frames = np.arange(len(drift))
    for axis in range(2):
        drift[:, axis] = np.interp(frames, frames[known], drift[known, axis])
    return drift


def _check_times(times: Any) -> np.ndarray | None:
    if times is None:
        return None
    times = np.array(values_of(times), dtype=np.float64)
    if times.ndim != 1 or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise ValueError("times must be one finite number for each frame, rising")
    return times


def _check_lengths(
    drift: np.ndarray | None, times: np.ndarray | None, n_frames: int, more: bool = False
) -> None:
    """One entry for each frame; with `more`, of which others may come."""
    for name, value in (("drift", drift), ("times", times)):
        n = n_frames if value is None else len(value)
        if n < n_frames or (n > n_frames and not more):
            raise ValueError(
                f"{name} has {n} entries for {'more' if more else n_frames} frames: give one each"
            )


# --- results ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Tracks(Frozen):
    """Particles followed through a series; from `link_frames`.

    ``tracks["area"]`` is a column of the table, ``np.asarray(tracks)`` all of it, and
    ``pandas.DataFrame(np.asarray(tracks))`` takes it.

    Attributes
    ----------
    table : structured ndarray, a row for each cluster of each frame
        By frame, then label: ``frame``; ``time``; ``label`` in the frame; ``track``, from 0 in the
        order of appearance, -1 for background; ``size``, number of positions; ``area``, in the unit
        of the properties of the clusters, positions without; ``centroid_rx``, ``centroid_ry``, scan
        positions as recorded; ``place_rx``, ``place_ry``, drift taken off; ``similarity``, mean
        similarity, NaN where it is not known; ``touches_border`` of the scan; ``background``.
    events : structured ndarray, a row for each event
        By frame, then track: ``frame``; ``time``; ``event``; ``track``; ``other``. 'birth': the
        first frame of a track, if it is not the first frame of all. 'death': the first frame
        without it. 'split': a birth inside of the track `other`. 'merge': a death, the particle
        having become part of `other`. `other` is -1 else.
    n_frames : int
        Frames of the series, with those that failed.
    """

    table: np.ndarray
    events: np.ndarray
    n_frames: int = field(default=0)

    @property
    def n_tracks(self) -> int:
        """Number of tracks."""
        return int(self.table["track"].max(initial=-1)) + 1

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: Any) -> Any:
        return self.table[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if dtype is not None and np.dtype(dtype) != TABLE:
            raise TypeError(f"tracks are no array of {np.dtype(dtype)}; take a column of the table")
        return self.table.copy() if copy else self.table

    def __repr__(self) -> str:
        counts = dict(zip(*np.unique(self.events["event"], return_counts=True), strict=True))
        parts = [_plural(self.n_tracks, "track")]
        parts.append(f"{_plural(len(self), 'cluster')} in {_plural(self.n_frames, 'frame')}")
        parts += [
            _plural(counts[event], event)
            for event in ("birth", "death", "split", "merge")
            if event in counts
        ]
        return f"Tracks({', '.join(parts)})"

    def track(self, k: int) -> Track:
        """One track."""
        k = check_integer("k", k, 0)
        if k >= self.n_tracks:
            known = f"0 to {self.n_tracks - 1}" if self.n_tracks else "none"
            raise ValueError(f"track {k} does not exist; the tracks here are: {known}")
        events = (self.events["track"] == k) | (self.events["other"] == k)
        return Track(k, self.table[self.table["track"] == k], self.events[events])

    def __iter__(self) -> Any:
        """Each track, by its number."""
        return (self.track(k) for k in range(self.n_tracks))

    def maps(self, labels: Iterable[Any]) -> np.ndarray:
        """Track of each scan position in each frame.

        Parameters
        ----------
        labels : iterable of ndarray (Rx, Ry), int, or Clusters, or None
            The label maps that were linked, such as a `ClusterSeries`; None for one that failed.

        Returns
        -------
        ndarray, (T, Rx, Ry), int
            Number of the track; -1 in none, in the background, and in frames that failed.
        """
        labels = [
            None if item is None else np.asarray(values_of(getattr(item, "labels", item)))
            for item in labels
        ]
        if len(labels) != self.n_frames:
            raise ValueError(f"{len(labels)} label maps do not fit {self.n_frames} frames")
        there = [item for item in labels if item is not None]
        if not there:
            raise ValueError("labels must hold at least one label map, or the scan has no shape")
        out = np.full((self.n_frames, *there[0].shape), -1, dtype=np.int64)
        for t, item in enumerate(labels):
            rows = self.table[self.table["frame"] == t]
            n = -1 if item is None else item.max(initial=-1)
            if n != len(rows) - 1:
                raise ValueError(
                    f"labels of frame {t} hold {n + 1} clusters, of which {len(rows)} were linked; "
                    "give those that were linked"
                )
            if item is not None:
                out[t] = np.append(rows["track"], -1)[item]
        return out


def _plural(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


@dataclass(frozen=True, eq=False, repr=False)
class Track(Frozen):
    """One particle through a series; from ``tracks.track(k)``.

    Attributes
    ----------
    number : int
    table : structured ndarray
        Its rows of `Tracks.table`, by frame.
    events : structured ndarray
        Rows of `Tracks.events` in which it takes part.
    """

    number: int
    table: np.ndarray
    events: np.ndarray

    @property
    def frames(self) -> np.ndarray:
        """Frames in which it was found, (n,)."""
        return self.table["frame"]

    @property
    def times(self) -> np.ndarray:
        """Their times, (n,)."""
        return self.table["time"]

    @property
    def labels(self) -> np.ndarray:
        """Number of its cluster in each of them, (n,)."""
        return self.table["label"]

    @property
    def sizes(self) -> np.ndarray:
        """Number of scan positions, (n,)."""
        return self.table["size"]

    @property
    def areas(self) -> np.ndarray:
        """Area, (n,)."""
        return self.table["area"]

    @property
    def places(self) -> np.ndarray:
        """Centroid, scan positions, drift taken off, (n, 2)."""
        return np.stack([self.table["place_rx"], self.table["place_ry"]], axis=1)

    @property
    def lifetime(self) -> float:
        """Time from the first to the last frame in which it was found."""
        return float(self.times[-1] - self.times[0])

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        where = f"{self.frames[0]} to {self.frames[-1]}" if len(self) else "none"
        return f"Track({self.number}, {_plural(len(self), 'frame')}, {where})"

    def growth_rate(self, start: int | None = None, stop: int | None = None) -> Rate:
        """How fast the area grows, by least squares of a line over time.

        Parameters
        ----------
        start, stop : int, optional
            Frames from `start` to `stop`, that one not included; by default all. Leave out frames
            after a merge and those in which the particle touches the border of the scan.

        Returns
        -------
        Rate
            ``rate``, area a time unit, and ``error``, its standard error, from the scatter about
            the line: too small where errors of successive frames are alike. NaN for a rate from
            fewer than 2 frames, an error from fewer than 3.
        """
        frames = self.frames
        keep = np.ones(len(frames), dtype=bool)
        if start is not None:
            keep &= frames >= check_integer("start", start, 0)
        if stop is not None:
            keep &= frames < check_integer("stop", stop, 0)
        times, areas = self.times[keep], self.areas[keep]
        n = len(times)
        if n < 2:
            return Rate(np.nan, np.nan)
        times = times - times.mean()
        power = (times**2).sum()
        rate = float((times * areas).sum() / power)
        if n < 3:
            return Rate(rate, np.nan)
        rest = areas - areas.mean() - rate * times
        return Rate(rate, float(np.sqrt((rest**2).sum() / (n - 2) / power)))


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
        Frames that fit a steady rotation; the others are taken for wrong.
    """

    rate: float
    error: float
    axis: np.ndarray
    angles: np.ndarray = field(repr=False)
    used: np.ndarray = field(repr=False)


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
    times = _check_times(times)
    if times is None or len(times) != len(matrices):
        raise ValueError(
            f"times must have one entry for each of the {len(matrices)} orientations, not "
            f"{None if times is None else len(times)}"
        )
    # Checks that they are rotations, too.
    known = np.isfinite(misorientation(matrices, np.eye(3), crystal))
    found = steady_rotation(matrices[known], times[known], symmetry, np.deg2rad(tolerance))
    rate = np.linalg.norm(found.velocity)
    angles = np.full(len(matrices), np.nan)
    angles[known] = np.rad2deg(found.angles)
    used = np.zeros(len(matrices), dtype=bool)
    used[known] = found.used
    axis = found.velocity / rate if rate > 0 else np.full(3, np.nan)
    return Rotation(float(np.rad2deg(rate)), float(np.rad2deg(found.error)), axis, angles, used)
