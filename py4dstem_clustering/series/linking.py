"""Link the clusters of successive frames to tracks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_integer, check_number, values_of
from ..kernels.linking import Comparer, Linker, Patterns
from .tracks import EVENTS_DTYPE, TABLE_DTYPE, Tracks


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
        For each frame ``(labels, averages, properties, background)``, or None for a frame that
        failed; a failed frame ends no track. `labels`, (Rx, Ry), int, number the clusters from 0;
        -1 is no cluster. Where clusters may lie above one another, give `OverlappingGrains` or
        their supports, (Rx, Ry, N), bool, in place of labels, and their pure patterns as averages.
        `averages`, (N, Qx, Qy) or (N, 1, Qx, Qy), are the mean patterns of the
        clusters; with None, only the overlap is used. `properties` come from
        ``clusters.properties()``, or are None. `background` lists the labels of clusters that are
        not particles (``clusters.background``); it may be left out. One frame is in memory at a
        time.
    drift : array-like, (T, 2), optional
        Drift from `find_drift`, scan positions; NaN is interpolated. By default 0.
    times : array-like, (T,), optional
        Time of each frame, rising. By default the number of the frame.
    memory : int
        A track goes on when its cluster was missing in at most this many frames. Frames that failed
        are not counted. A larger value bridges longer gaps, but may join a new particle to the
        track of one that has vanished.
    reach : float
        Largest distance, in scan positions, of two clusters that do not overlap but have similar
        patterns, and so may be the same particle. For fast or small particles; 0 for slow ones.
    min_similarity : float
        Clusters are different particles if the correlation of their patterns, -1 to 1, is below
        this, unless noise explains the low correlation. Lower it for particles that turn by more
        than a few degrees a frame.
    blur : float
        Width of the blur of the patterns before they are compared, detector pixels. The blur
        makes small rotations matter less; use about half of the radius of the Bragg disks.
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
    The score of a link is the overlap of both clusters (Dice coefficient, drift subtracted) plus
    the correlation of their mean patterns, without rings, direct beam and the power of the noise.
    The links of a frame are chosen so that the sum of their scores is largest (an assignment
    problem). When two clusters become one, the track that fits better goes on. The other track is a
    merge if more than half of its cluster lies in the new one. A new cluster is a split from a
    track that goes on if more than half of the new cluster lies where this track was.

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
    drift, times = _check_drift(drift), check_times(times)
    if isinstance(frames, Sequence):  # finds a wrong length before the long work
        _check_lengths(drift, times, len(frames))

    linker = Linker(memory, reach, min_similarity)
    comparer: Comparer | None = None
    rows: list[NDArray[Any]] = []
    shape = None
    n_frames = 0
    for t, item in enumerate(frames):
        n_frames += 1
        _check_lengths(drift, times, n_frames, more=True)
        if item is None:
            continue
        frame = _check_frame(t, item, shape)
        shape = frame.labels.shape[:2]
        patterns = None
        if frame.averages is not None:
            if comparer is None and len(frame.averages):
                comparer = Comparer(_mean_pattern(frame.averages), centre, blur)
            if comparer is not None:
                patterns = _prepare_patterns(t, frame.averages, comparer)
        moved = np.zeros(2) if drift is None else drift[t]
        track = linker.add(t, frame.labels, frame.background, patterns, moved)
        rows.append(_rows(t, t if times is None else times[t], frame, track, moved))
    _check_lengths(drift, times, n_frames)
    table = np.concatenate(rows) if rows else np.zeros(0, dtype=TABLE_DTYPE)
    events = np.array(
        [
            (
                event.frame,
                event.frame if times is None else times[event.frame],
                event.event,
                event.track,
                event.other,
            )
            for event in linker.finish()
        ],
        dtype=EVENTS_DTYPE,
    )
    return Tracks(table, events, n_frames)


def _mean_pattern(averages: NDArray[Any]) -> NDArray[np.float64]:
    """Mean over all clusters, (Qx, Qy); 0 where all averages are NaN."""
    known = np.isfinite(averages)
    total = np.where(known, averages, 0).sum(axis=0, dtype=np.float64)
    return total / np.maximum(known.sum(axis=0), 1)


def _prepare_patterns(t: int, averages: NDArray[Any], comparer: Comparer) -> Patterns:
    """Prepare the averages of frame `t` for the comparison with other frames."""
    if averages.shape[1:] != comparer.shape:
        raise ValueError(
            f"averages of frame {t} of {averages.shape[1:]} detector pixels must have those of the "
            f"frames before, {comparer.shape}"
        )
    return comparer(averages)


class _FrameToLink(NamedTuple):
    """One item of `frames`, checked."""

    labels: NDArray[Any]
    """(Rx, Ry), or the supports (Rx, Ry, N), bool."""
    averages: NDArray[Any] | None
    """(N, Qx, Qy)"""
    properties: Any
    background: NDArray[np.bool_]
    """Whether a cluster is background, (N,)."""


def _check_frame(t: int, item: Any, shape: tuple[int, ...] | None) -> _FrameToLink:
    """Check one item of `frames`; `shape` is that of the scan in earlier frames."""
    if not isinstance(item, (tuple, list)) or not 2 <= len(item) <= 4:
        raise TypeError(
            f"frame {t} must be (labels, averages, properties, background) or None, not "
            f"{type(item).__name__}"
        )
    labels, averages, properties, background = (*item, None, None)[:4]
    labels = np.asarray(values_of(getattr(labels, "supports", labels)))
    if labels.ndim == 3 and labels.dtype == np.bool_:
        return _check_supports(t, labels, (averages, properties, background), shape)
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or labels.size == 0:
        raise ValueError(
            f"labels of frame {t} must be a 2D map of whole numbers, not {labels.dtype} of shape "
            f"{labels.shape}"
        )
    labels = labels.astype(np.int64)
    _check_shape(t, labels, shape)
    n = int(labels.max()) + 1
    found = np.unique(labels)
    if not np.array_equal(found[found >= 0], np.arange(n)) or found[0] < -1:
        raise ValueError(f"labels of frame {t} must be 0 to {n - 1} without gaps, and -1 elsewhere")
    return _checked(t, labels, n, averages, properties, background)


def _check_shape(t: int, labels: NDArray[Any], shape: tuple[int, ...] | None) -> None:
    if shape is not None and labels.shape[:2] != shape:
        raise ValueError(
            f"labels of frame {t} of shape {labels.shape[:2]} must have that of the frames before, "
            f"{shape}"
        )


def _check_supports(
    t: int, supports: NDArray[Any], rest: tuple[Any, Any, Any], shape: tuple[int, ...] | None
) -> _FrameToLink:
    """Check a frame whose clusters have supports ``(Rx, Ry, N)``."""
    _check_shape(t, supports, shape)
    empty = np.flatnonzero(~supports.any(axis=(0, 1)))
    if len(empty) or not supports.shape[0] * supports.shape[1]:
        raise ValueError(
            f"supports of frame {t} of shape {supports.shape} must have a position for each "
            f"cluster; {empty.tolist() or 'all'} have none"
        )
    return _checked(t, supports, supports.shape[2], *rest)


def _checked(
    t: int, labels: NDArray[Any], n: int, averages: Any, properties: Any, background: Any
) -> _FrameToLink:
    """A frame with `n` clusters, whose averages, properties and background are checked."""
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
    return _FrameToLink(labels, averages, properties, flags)


def _rows(
    t: int, time: float, frame: _FrameToLink, track: NDArray[Any], drift: NDArray[Any]
) -> NDArray[Any]:
    """Rows of the table for the clusters of one frame."""
    labels, n = frame.labels, len(track)
    rows = np.zeros(n, dtype=TABLE_DTYPE)
    if labels.ndim == 3:
        places, number = np.split(np.argwhere(labels), [2], axis=1)
        number = number[:, 0]
    else:
        inside = labels >= 0
        places, number = np.argwhere(inside), labels[inside]
    size = np.bincount(number, minlength=n)
    last = np.array(labels.shape[:2]) - 1
    border = number[((places == 0) | (places == last)).any(axis=1)]
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


def _check_drift(drift: Any) -> NDArray[np.float64] | None:
    """Drift (T, 2); NaN is interpolated, or becomes 0 if all values are NaN."""
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


def check_times(times: Any) -> NDArray[np.float64] | None:
    """Check that times are finite and rising."""
    if times is None:
        return None
    times = np.array(values_of(times), dtype=np.float64)
    if times.ndim != 1 or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise ValueError("times must be one finite number for each frame, rising")
    return times


def _check_lengths(
    drift: NDArray[Any] | None, times: NDArray[Any] | None, n_frames: int, more: bool = False
) -> None:
    """Check the lengths of drift and times; with `more`, more frames may follow."""
    for name, value in (("drift", drift), ("times", times)):
        n = n_frames if value is None else len(value)
        if n < n_frames or (n > n_frames and not more):
            raise ValueError(
                f"{name} has {n} entries for {'more' if more else n_frames} frames: give one each"
            )
