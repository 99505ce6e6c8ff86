"""Tracks: particles followed through a series of scans (5D-STEM).

`find_drift` measures how the sample moved. `link_frames` finds which clusters of successive frames
are the same particle, and returns `Tracks`: the growth of each particle, and which particles were
born, died, split or merged. `rotation_rate` measures how fast a particle turns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_integer, values_of
from ..base.frozen import Frozen

TABLE_DTYPE = np.dtype(
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

EVENTS_DTYPE = np.dtype(
    [
        ("frame", np.int64),
        ("time", np.float64),
        ("event", "U8"),
        ("track", np.int64),
        ("other", np.int64),
    ]
)
"""Fields of `Tracks.events`."""


_N_SHOWN = 30
"""Tracks in the picture of a notebook. More make it higher."""


class Rate(NamedTuple):
    """A rate and its standard error; NaN where the data does not determine them."""

    rate: float
    error: float


@dataclass(frozen=True, eq=False, repr=False)
class Tracks(Frozen):
    """Particles followed through a series; from `link_frames`.

    ``tracks["area"]`` is a column of the table, and ``np.asarray(tracks)`` is the whole table. For
    pandas: ``pandas.DataFrame(np.asarray(tracks))``.

    Attributes
    ----------
    table : structured ndarray, a row for each cluster of each frame
        Sorted by frame, then by label: ``frame``; ``time``; ``label`` in the frame; ``track``, from
        0 in the order of appearance, -1 for background; ``size``, number of positions; ``area``, in
        the unit of the properties of the clusters, or in positions without properties;
        ``centroid_rx``, ``centroid_ry``, scan positions as recorded; ``place_rx``, ``place_ry``,
        the same with drift subtracted; ``similarity``, mean similarity, NaN if unknown;
        ``touches_border``, whether it touches the border of the scan; ``background``.
    events : structured ndarray, a row for each event
        Sorted by frame, then by track: ``frame``; ``time``; ``event``; ``track``; ``other``.
        'birth': the first frame of a track, unless this is the first frame of the series. 'death':
        the first frame after the end of a track. 'split': a birth inside of the track `other`.
        'merge': a death in which the particle has become part of `other`. For births and deaths,
        `other` is -1.
    n_frames : int
        Number of frames of the series, including frames that failed.
    """

    table: NDArray[Any]
    events: NDArray[Any]
    n_frames: int = field(default=0)

    @property
    def n_tracks(self) -> int:
        """Number of tracks."""
        return int(self.table["track"].max(initial=-1)) + 1

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: Any) -> Any:
        return self.table[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if dtype is not None and np.dtype(dtype) != TABLE_DTYPE:
            raise TypeError(f"tracks are no array of {np.dtype(dtype)}; take a column of the table")
        return self.table.copy() if copy else self.table

    def __repr__(self) -> str:
        parts = [_plural(self.n_tracks, "track")]
        parts.append(f"{_plural(len(self), 'cluster')} in {_plural(self.n_frames, 'frame')}")
        parts += [_plural(n, event) for event, n in self._counts().items()]
        return f"Tracks({', '.join(parts)})"

    def _repr_html_(self) -> str:
        from ..plotting.areas import plot_areas
        from ..plotting.html import card, figure_png

        facts: dict[str, Any] = {
            "tracks": self.n_tracks,
            "clusters": f"{len(self)} in {_plural(self.n_frames, 'frame')}",
        }
        facts |= {f"{kind}s": n for kind, n in self._counts().items()}
        picture = None
        if self.n_tracks:
            # The longest tracks, so that the picture stays small.
            least = np.sort(np.bincount(self.table["track"][self.table["track"] >= 0]))[-_N_SHOWN:]
            picture = figure_png(
                lambda figure: plot_areas(self, figure.add_subplot(), min_frames=int(least[0])),
                (4, 2.6),
                dpi=80,
            )
        return card("Tracks", facts, picture, 'tracks["area"], tracks.track(0), plot_areas(tracks)')

    def _counts(self) -> dict[str, int]:
        """Number of events of each kind that occurs."""
        counts = dict(zip(*np.unique(self.events["event"], return_counts=True), strict=True))
        kinds = ("birth", "death", "split", "merge")
        return {kind: int(counts[kind]) for kind in kinds if kind in counts}

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

    def maps(self, labels: Iterable[Any]) -> NDArray[Any]:
        """Track of each scan position in each frame.

        Parameters
        ----------
        labels : iterable of ndarray (Rx, Ry), int, or Clusters, or None
            The label maps that were linked, such as a `ClusterSeries`; None for a failed frame.

        Returns
        -------
        ndarray, (T, Rx, Ry), int
            Number of the track; -1 outside of tracks, in the background, and in failed frames.
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
        Rows of `Tracks.table` for this track, by frame.
    events : structured ndarray
        Rows of `Tracks.events` in which this track takes part.
    """

    number: int
    table: NDArray[Any]
    events: NDArray[Any]

    @property
    def frames(self) -> NDArray[Any]:
        """Frames in which the particle was found, (n,)."""
        return self.table["frame"]

    @property
    def times(self) -> NDArray[Any]:
        """Times of these frames, (n,)."""
        return self.table["time"]

    @property
    def labels(self) -> NDArray[Any]:
        """Label of the cluster in each of these frames, (n,)."""
        return self.table["label"]

    @property
    def sizes(self) -> NDArray[Any]:
        """Number of scan positions, (n,)."""
        return self.table["size"]

    @property
    def areas(self) -> NDArray[Any]:
        """Area in the unit of `Tracks.table`, (n,)."""
        return self.table["area"]

    @property
    def places(self) -> NDArray[Any]:
        """Centroid in scan positions, drift subtracted, (n, 2)."""
        return np.stack([self.table["place_rx"], self.table["place_ry"]], axis=1)

    @property
    def lifetime(self) -> float:
        """Time from the first to the last frame in which the particle was found."""
        return float(self.times[-1] - self.times[0])

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        where = f"{self.frames[0]} to {self.frames[-1]}" if len(self) else "none"
        return f"Track({self.number}, {_plural(len(self), 'frame')}, {where})"

    def growth_rate(self, start: int | None = None, stop: int | None = None) -> Rate:
        """How fast the area grows: the slope of a line fitted by least squares.

        Parameters
        ----------
        start, stop : int, optional
            Use the frames from `start` up to `stop`, without `stop`; by default all. Leave out
            frames after a merge, and frames in which the particle touches the border of the scan.

        Returns
        -------
        Rate
            ``rate``, area per time unit, and ``error``, its standard error from the scatter about
            the line. The error is too small if errors of successive frames are correlated. The rate
            is NaN for fewer than 2 frames, the error for fewer than 3.
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
