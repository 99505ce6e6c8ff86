"""A series of scans: the clusters of every frame in one file, read frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

import emdfile
import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_integer, check_path
from ..base.progress import warn_user
from ..emd import untrusted
from ..grains.averages import keep_clusters
from ..grains.clusters import Clusters
from ..grains.describe import WHOLE_SHARE
from ..grains.overlaps import OverlappingGrains
from ..scan.calibration import copy_calibration, step_of
from ..scan.datacubes import new_datacube
from .files import (
    FrameInfo,
    calibration_of_averages,
    describe_missing_series,
    read_node,
    read_series,
)
from .linking import link_frames
from .motion import find_drift
from .tracks import Tracks

FRAMES_DTYPE = np.dtype(
    [("frame", np.int64), ("time", np.float64), ("n_clusters", np.int64), ("failed", bool)]
)
"""Fields of `ClusterSeries.frames`."""


@dataclass(frozen=True, eq=False, repr=False)
class ClusterSeries:
    """The clusters of a series of scans, from `cluster_series` or `open_series`.

    ``len(series)`` is the number of frames. ``series[i]`` reads the `Clusters` of frame `i` from
    the file, so a series of any length takes little memory.

    Attributes
    ----------
    path : Path
        File of the series.
    settings : mapping
        The options of `cluster_series`: ``cluster``, ``filter``, and so on. Values that were
        estimated are stored with each frame: ``series[i].settings``.
    infos : tuple
        For each frame ``frame``, ``source``, ``size``, ``fingerprint``, ``time``, ``error`` and
        ``n_clusters``.
    """

    path: Path
    settings: Mapping[str, Any]
    infos: tuple[FrameInfo, ...]
    _places: Mapping[int, Path]
    stored_drift: NDArray[Any] | None
    """Drift in the file, or None; see `drift`."""

    def __len__(self) -> int:
        return len(self.infos)

    def __repr__(self) -> str:
        n = len(self)
        failed = len(self.errors)
        text = f"{n} frame{'s' * (n != 1)}" + (f", {failed} of them failed" if failed else "")
        counts = [info.n_clusters for info in self.infos if not info.error]
        if counts:
            text += f", {min(counts)} to {max(counts)} clusters"
        return f"ClusterSeries({self.path.name!r}, {text})"

    def _repr_html_(self) -> str:
        from ..plotting.html import card, label_png

        done = [place for place, info in enumerate(self.infos) if not info.error]
        facts: dict[str, Any] = {"file": self.path.name, "frames": len(self)}
        if self.errors:
            facts["failed"] = len(self.errors)
        picture = None
        if done:
            counts = [self.infos[place].n_clusters for place in done]
            times = self.times[[0, -1]]
            facts["clusters"] = f"{min(counts)} to {max(counts)} a frame"
            facts["time"] = f"{times[0]:g} to {times[1]:g} {self.time_units}"
            last = self[done[-1]]
            facts["picture"] = f"frame {done[-1]}"
            picture = label_png(last.labels, last.n_clusters)
        return card(
            "ClusterSeries", facts, picture, "series[0], series.tracks(), series.averages(0)"
        )

    def __iter__(self) -> Iterator[Clusters | None]:
        """Clusters of each frame; None for a frame that failed."""
        for place, info in enumerate(self.infos):
            yield None if info.error else self[place]

    @property
    def frames(self) -> NDArray[Any]:
        """One row for each frame: ``frame``, ``time``, ``n_clusters``, ``failed``."""
        rows = [(i.frame, i.time, i.n_clusters, bool(i.error)) for i in self.infos]
        return np.array(rows, dtype=FRAMES_DTYPE)

    @property
    def times(self) -> NDArray[Any]:
        """Time of each frame, (T,), in ``series.time_units``."""
        return self.frames["time"]

    @property
    def time_units(self) -> str:
        """Unit of `times`."""
        return self.settings["time_units"]

    @property
    def errors(self) -> Mapping[int, str]:
        """Why frames failed: ``{frame: text}``."""
        return MappingProxyType({i.frame: i.error for i in self.infos if i.error})

    def _node(self, frame: int) -> emdfile.Node:
        """All that the file holds of a frame."""
        frame = check_integer("frame", frame, -len(self))
        if frame >= len(self):
            raise IndexError(f"frame {frame} does not exist; this series has {len(self)}")
        info = self.infos[frame]
        if info.error:
            raise ValueError(f"frame {info.frame} ({info.source}) has no clusters: {info.error}")
        place = self._places[info.frame]
        if not place.is_file() and self.path.is_file():  # all frames were done in the meantime
            place = self.path
        with untrusted.open_file(place) as file:
            return read_node(file, info)

    def _clusters(self, node: emdfile.Node) -> Clusters:
        with untrusted.name_in_errors(self.path):
            return Clusters.from_node(node, step_of(node, calibration_of_averages(node)))

    def __getitem__(self, frame: int) -> Clusters:
        return self._clusters(self._node(frame))

    def overlaps(self, frame: int) -> OverlappingGrains:
        """Grains of a frame that may lie above one another; of a series with ``overlap=True``.

        Raises
        ------
        ValueError
            If the series was made without `overlap`, or the frame failed.
        """
        return self._overlaps(self._node(frame))

    def _overlaps(self, node: emdfile.Node) -> OverlappingGrains:
        with untrusted.name_in_errors(self.path):
            return OverlappingGrains.from_node(node, step_of(node, calibration_of_averages(node)))

    def image(self, frame: int) -> NDArray[Any]:
        """Virtual image of a frame, (Rx, Ry), float32; `drift` is measured from these images.

        It is the sum of each pattern over `image_mask`; by default over the `q_mask` of the
        clusters; without this, over all pixels outside of the direct beam.
        """
        return self._node(frame).metadata["arrays"]["image"]

    def averages(self, frame: int) -> Any:
        """Mean diffraction pattern of each cluster of a frame.

        Returns
        -------
        DataCube, (N, 1, Qx, Qy)
            As ``datacube.get_clustered_datacube()`` returned it: calibrated, with the clusters.
        """
        node = self._node(frame)
        clusters = self._clusters(node)
        arrays = node.metadata["arrays"]
        if "averages" not in arrays.keys:
            raise ValueError(f"frame {frame} holds no clusters, so it has no averages")
        cube = new_datacube(
            arrays["averages"][:, None], "averages", calibration_of_averages(node), {}, "cluster"
        )
        keep_clusters(cube, clusters)
        return cube

    @property
    def drift(self) -> NDArray[Any]:
        """Displacement of the sample since frame 0, (T, 2), in scan positions along Rx and Ry.

        A point at ``p`` in frame 0 is at ``p + drift[i]`` in frame `i`. The drift was measured
        from the virtual images, or given by the user. It was not applied to any data.
        """
        if self.stored_drift is not None:
            return self.stored_drift
        return find_drift(None if i.error else self.image(k) for k, i in enumerate(self.infos))

    # --- through time ------------------------------------------------------------------------

    def tracks(self, **options: Any) -> Tracks:
        """Follow clusters through the frames.

        Parameters
        ----------
        **options
            ``memory``, ``reach``, ``min_similarity``, ``blur``: see `link_frames`.

        Returns
        -------
        Tracks
            A table with one row for each cluster of each frame, and the events. For pandas:
            ``pandas.DataFrame(numpy.asarray(tracks))``. Drift is subtracted. Background (with
            ``drop_background=False``) belongs to no track. Frames that failed end no track.
        """
        tracks = link_frames(
            self._frames_to_link(),
            drift=self.drift,
            times=self.times,
            centre=self._centre(),
            **options,
        )
        self._warn_of_whole_frames(tracks)
        return tracks

    def _warn_of_whole_frames(self, tracks: Tracks) -> None:
        """Warn of tracks that fill the field of view in all of their frames: they cannot grow."""
        if not len(tracks):
            return
        first = next(place for place, info in enumerate(self.infos) if info.n_clusters)
        enough = WHOLE_SHARE * np.prod(self[first].shape)
        whole = [t.number for t in tracks if (t.sizes >= enough).all()]
        if whole:
            warn_user(
                f"track {', '.join(map(str, whole))} fills the field of view in each of its "
                "frames, so its area and growth are those of the scan; look at "
                "series[0].plot() and at the averages: the particles were not found"
            )

    def _frames_to_link(self) -> Iterator[tuple[Any, ...] | None]:
        """Yield the input of `link_frames`, and read each frame only when it is needed."""
        for k, info in enumerate(self.infos):
            if info.error:
                yield None
                continue
            node = self._node(k)
            averages = node.metadata["arrays"]._params.get("averages")
            if self.settings.get("overlap"):
                grains = self._overlaps(node)
                yield grains, averages, grains.properties(), ()
                continue
            clusters = self._clusters(node)
            yield clusters.labels, averages, clusters.properties(), clusters.background

    def _centre(self) -> tuple[float, float] | None:
        """Centre of the direct beam in the first frame whose calibration has an origin."""
        for place, info in enumerate(self.infos):
            if not info.error:
                origin = np.array(
                    calibration_of_averages(self._node(place)).get_origin_mean(), dtype=float
                )
                if np.isfinite(origin).all():
                    return float(origin[0]), float(origin[1])
        return None

    def get_track_datacube(self, track: Any) -> Any:
        """Mean pattern of one particle in every frame where it was seen.

        Parameters
        ----------
        track : Track
            From ``series.tracks().track(k)``.

        Returns
        -------
        DataCube, (n, 1, Qx, Qy)
            One pattern for each frame in ``track.frames``, with the calibration of the averages:
            each pattern has the origin and the ellipse of its frame, or NaN without these. Each
            pattern is its own cluster in ``cube.clusters``, so the datacube is used like averages:
            ``bragg = cube.find_Bragg_disks(...)``, ``maps = crystal.match_orientations(bragg)``,
            then ``rotation_rate(maps, track.times, crystal)`` for the rotation, and
            ``cube.clusters.calculate_strain(crystal, bragg, maps)`` for the strain over time.

        Raises
        ------
        ValueError
            If pixel sizes or rotation are not the same in all of these frames.
        """
        patterns, params, of_patterns = [], [], set(_PATTERN_KEYS)
        for frame, label in zip(track.frames, track.labels, strict=True):
            node = self._node(int(frame))
            patterns.append(node.metadata["arrays"]["averages"][label])
            n = len(node.metadata["arrays"]["averages"])
            own = calibration_of_averages(node)._params
            maps = {k: float(v[label, 0]) for k, v in own.items() if np.shape(v) == (n, 1)}
            params.append({**own, **maps})
            of_patterns.update(maps)
        calibration = _track_calibration(params, of_patterns, track.frames)
        cube = new_datacube(np.stack(patterns)[:, None], "track", calibration, {}, "frame")
        places = np.arange(len(patterns))[:, None]
        keep_clusters(
            cube, Clusters(places, np.insert(places, 1, 0, axis=1), np.full(places.shape, np.nan))
        )
        return cube

    def get_track_pattern(self, track: Any) -> NDArray[Any]:
        """Mean pattern of one particle over all its positions in all frames, (Qx, Qy).

        Patterns are not shifted on the detector, even if the origin moves.
        """
        return np.average(self.get_track_datacube(track).data[:, 0], axis=0, weights=track.sizes)


_ORIGIN_KEYS = ("qx0", "qy0")
"""Keys of a calibration that hold the origin. Its mean and shift are computed from these."""

_PATTERN_KEYS = {*_ORIGIN_KEYS, "qx0_meas", "qy0_meas", "a", "b", "theta"}
"""Keys of a calibration that may hold a value for each pattern."""

_SHARED_KEYS = {
    "Q_pixel_size", "Q_pixel_units", "R_pixel_size", "R_pixel_units", "QR_rotation",
    "QR_rotation_degrees", "QR_flip", "scan_pixel_size", "scan_pixel_units",
}  # fmt: skip
"""Keys of a calibration that hold one value for all patterns of a datacube."""


def _track_calibration(
    params: Sequence[Mapping[str, Any]], of_patterns: set[str], frames: Sequence[int]
) -> Any:
    """Join the calibrations of several frames into one for the patterns of a track.

    Other values that differ between frames, such as a semiangle of the probe that was measured in
    each frame, are left out.
    """
    calibration = copy_calibration()
    kept = calibration._params
    for key in dict.fromkeys(key for own in params for key in own):
        values: list[Any] = [own.get(key) for own in params]
        other = next((k for k, x in enumerate(values) if not np.array_equal(x, values[0])), None)
        by_pattern = key in _ORIGIN_KEYS or (key in of_patterns and other is not None)
        if by_pattern and all(np.ndim(value) == 0 for value in values):
            kept[key] = np.array(values, dtype=float)[:, None]  # NaN for None
        elif other is None:
            kept[key] = values[0]
        elif key in _SHARED_KEYS:
            raise ValueError(
                f"{key} is {values[0]!r} in frame {frames[0]} and {values[other]!r} in frame "
                f"{frames[other]}: patterns of one track must share it; calibrate the scans alike "
                "and cluster them into another out, or take series.averages(k), frame by frame"
            )
    for key in _ORIGIN_KEYS:
        if key in kept:
            origin = np.asarray(kept[key], dtype=float)
            known = origin[np.isfinite(origin)]
            mean = float(known.mean()) if known.size else np.nan
            kept[f"{key}_mean"], kept[f"{key}_shift"] = mean, origin - mean
    return calibration


def open_series(path: str | PathLike[str]) -> ClusterSeries:
    """Open a series that `cluster_series` has written, or is writing.

    Parameters
    ----------
    path : path
        The `out` of `cluster_series`. While `cluster_series` runs, or after it was stopped, the
        series has only the frames that are done so far.

    Returns
    -------
    ClusterSeries

    Raises
    ------
    ValueError, OSError
        If there is no series, or it is damaged or made by a newer version. The error names the
        file.
    """
    path = check_path("path", path)
    stored = read_series(path)
    if not stored.infos:
        raise ValueError(describe_missing_series(path))
    if stored.lost:
        numbers = ", ".join(map(str, stored.lost[:10])) + ", ..." * (len(stored.lost) > 10)
        warn_user(
            f"{path} has lost {len(stored.lost)} of its frames ({numbers}); cluster_series with "
            "the same frames and options does them again"
        )
    settings = stored.settings[0]
    if not isinstance(settings.get("time_units"), str):
        raise ValueError(
            f"{describe_missing_series(path)} (its options are damaged: they hold no time_units)"
        )
    return ClusterSeries(path, settings, tuple(stored.infos.values()), stored.places, stored.drift)
