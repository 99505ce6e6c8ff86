"""One frame of a series: opened, filtered, clustered."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager, suppress
from functools import partial
from glob import escape
from itertools import count
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from h5py import is_hdf5
from numpy.typing import NDArray

from ..base.checks import check_data, check_mask, check_number
from ..emd import untrusted
from ..emd.untrusted import linked_files
from ..grains.averages import get_clustered_datacube
from ..grains.clustering import cluster
from ..grains.overlaps import OverlappingGrains, find_overlaps
from ..kernels.blocks import check_whole
from ..patterns.filtering import filter_correlative
from ..patterns.lowrank import filter_lowrank
from ..scan.calibration import copy_calibration
from ..scan.datacubes import copy_datacube, fingerprint
from ..scan.opening import open_scan
from ..scan.virtual import scattered_image
from .files import FrameInfo, FrameResult, frame_name


class Frame(NamedTuple):
    """A frame that is still to be clustered."""

    number: int
    source: str
    """Name of the file of the scan, or "item 3" if the scan did not come from a file."""
    size: int
    """Size of that file in bytes; 0 if the scan did not come from a file."""
    time: float
    open: Callable[[], Any]
    """Function that returns the DataCube."""
    stamp: str = ""
    """See `FrameInfo.stamp`."""


_NO_MORE = object()
"""Stands for the end of the frames."""


# --- 5D arrays -----------------------------------------------------------------------------------


class ScanOf5D:
    """One scan of a 5D array; its data are read only when they are used."""

    def __init__(self, data: Any, number: int) -> None:
        self._data, self._number = data, number
        self.shape, self.dtype, self.ndim = data.shape[1:], data.dtype, 4

    def __getitem__(self, key: Any) -> Any:
        key_of_5d = (self._number, *key) if isinstance(key, tuple) else (self._number, key)
        found = self._data[key_of_5d]
        check_whole(self._data)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[()], dtype=dtype)


def _open_scan_of_file(path: str, name: str, number: int) -> ScanOf5D:
    """Open one scan of a 5D HDF5 dataset by file name, so that another process can do it too."""
    import h5py

    return ScanOf5D(h5py.File(path, "r")[name], number)


def _items(frames: Any) -> Iterator[Any]:
    """Yield each frame; a 5D array yields functions that return a scan."""
    if not hasattr(frames, "shape"):
        yield from frames
        return
    file = getattr(frames, "file", None)  # only an HDF5 dataset has one
    for number in range(frames.shape[0]):
        if file is not None:
            yield partial(_open_scan_of_file, file.filename, frames.name, number)
        elif isinstance(frames, np.ndarray):
            yield partial(np.asanyarray, frames[number])  # keeps masked arrays and memmaps
        else:
            yield partial(ScanOf5D, frames, number)


# --- what is given as frames ---------------------------------------------------------------------


def _as_datacube(item: Any) -> Any:
    from py4DSTEM import DataCube

    if isinstance(item, DataCube):
        return copy_datacube(item)
    if getattr(item, "ndim", None) == 4:
        check_data(item)
        return DataCube(item, name="datacube")
    raise TypeError(
        f"a frame of type {type(item).__name__} is no scan; frames must be DataCubes, paths, or "
        "arrays (Rx, Ry, Qx, Qy)"
    )


_OPENING = Lock()
"""Some readers change settings of the process while they open a file."""


def _open_path(path: Path, load: Callable[[Path], Any] | None) -> Any:
    with _OPENING:
        return _as_datacube(open_scan(path) if load is None else load(path))


def check_frames(frames: Any) -> Any:
    """Check the argument `frames` as far as possible before a frame is opened."""
    if isinstance(frames, (str, PathLike)):
        raise TypeError(f"frames={str(frames)!r} is one path; give a list of paths, or a 5D array")
    shape = getattr(frames, "shape", None)
    if shape is not None:
        if len(shape) != 5:
            raise ValueError(
                f"frames of shape {tuple(shape)} must have five axes (T, Rx, Ry, Qx, Qy); a single "
                "scan is clustered by datacube.cluster()"
            )
        if len(frames):
            check_data(ScanOf5D(frames, 0))
    elif not isinstance(frames, Iterable):
        raise TypeError(
            f"frames of type {type(frames).__name__} must be DataCubes, paths, a 5D array, or what "
            "yields them"
        )
    if isinstance(frames, Sized) and len(frames) == 0:
        raise ValueError("frames is empty: give at least one scan")
    return frames


def _open_made(make: Callable[[], Any]) -> Any:
    return _as_datacube(make())


class Times:
    """Times of the frames: evenly spaced, or listed frame by frame."""

    def __init__(self, times: Any) -> None:
        self._step = 1.0
        self._times: NDArray[np.float64] | None = None
        if times is None:
            return
        if np.ndim(times) == 0:
            self._step = check_number("times", times)
            if self._step <= 0:
                raise ValueError(f"times={times!r} must be above 0: the time from frame to frame")
            return
        self._times = np.asarray(times, dtype=float)
        if self._times.ndim != 1 or not np.isfinite(self._times).all():
            raise ValueError("times must be one number, the time between frames, or one a frame")
        if (np.diff(self._times) <= 0).any():
            raise ValueError("times must rise from frame to frame")

    def __call__(self, number: int) -> float:
        """Time of frame `number`."""
        if self._times is None:
            return number * self._step
        if number >= len(self._times):
            raise ValueError(
                f"times holds {len(self._times)} numbers and there is a frame {number}; give one "
                "for each frame, or the time between frames"
            )
        return float(self._times[number])

    @property
    def are_listed(self) -> bool:
        """Whether the times were listed frame by frame."""
        return self._times is not None

    def check(self, n_frames: int) -> None:
        """Refuse a list of times whose length is not the number of frames."""
        if self._times is not None and len(self._times) != n_frames:
            raise ValueError(f"times holds {len(self._times)} numbers for {n_frames} frames")


class FramesToDo:
    """Yields the frames that are still to be done, and counts the frames that are done.

    A frame is recognised by the name of its file, so files may move to another folder or come in
    another order. A scan that did not come from a file is recognised by its place. With `in_order`
    (times or drift are listed frame by frame), frames that are done must keep their places.

    Attributes
    ----------
    times : dict
        Time of each frame that was read so far, by the number of the frame.
    n_done : int
        Number of these frames that were done by an earlier call.
    """

    def __init__(
        self,
        frames: Any,
        load: Callable[[Path], Any] | None,
        times: Times,
        in_order: bool,
        done: Mapping[int, FrameInfo],
    ) -> None:
        self.times: dict[int, float] = {}
        self.n_done = 0
        self._frames, self._load, self._time_of, self._in_order = frames, load, times, in_order
        self._done = done
        self._known = {info.source: info for info in done.values()}
        self._name_counts: Counter[str] = Counter()
        self._free_number = 0

    def __iter__(self) -> Iterator[Frame]:
        items = iter(_items(self._frames))
        for position in count():
            # A for loop over the items would hold a scan in memory while the next one is made.
            item = next(items, _NO_MORE)
            if item is _NO_MORE:
                return
            source, size, stamp, open_scan = self._describe(item, position)
            del item
            info = self._known.get(source)
            number = self._next_number() if info is None else info.frame
            if self._in_order and number != position:
                raise ValueError(
                    f"{source} comes at place {position} and is frame {number} of out, so it would "
                    "get the time and drift of another frame; give new scans after the old ones, "
                    "all of these in the same order as before, or another out"
                )
            self.times[number] = self._time_of(number)
            if info is not None and _is_done(info, size, stamp, open_scan):
                self.n_done += 1
            else:
                yield Frame(number, source, size, self.times[number], open_scan, stamp)
            del open_scan

    def _describe(self, item: Any, position: int) -> tuple[str, int, str, Callable[[], Any]]:
        """Source, size and stamp of a frame, and a function that opens it."""
        if not isinstance(item, (str, PathLike)):
            make = _open_made if callable(item) else _as_datacube
            return f"item {position}", 0, "", partial(make, item)
        path = Path(item)
        self._name_counts[path.name] += 1
        n = self._name_counts[path.name]
        source = f"{path.name} ({n})" if n > 1 else path.name
        size = path.stat().st_size if path.is_file() else 0
        return source, size, stamp_of(path), partial(_open_path, path, self._load)

    def _next_number(self) -> int:
        """Lowest number that no frame has yet."""
        while self._free_number in self.times or self._free_number in self._done:
            self._free_number += 1
        return self._free_number


def stamp_of(path: Path) -> str:
    """Hash of names, sizes and times of a file and of the files that belong to it.

    These have the same name with another ending, or are those to which a master file links. Empty
    if there is no such file.
    """
    files = {path, *path.parent.glob(f"{escape(path.stem)}.*")}
    if path.is_file() and is_hdf5(path):
        with suppress(OSError, ValueError), untrusted.open_file(path) as file:
            files |= {path.parent / untrusted.file_of_link(n)[0].name for n in linked_files(file)}
    found = hashlib.sha256()
    for file in sorted(files):
        with suppress(OSError):
            state = file.stat()
            found.update(repr((file.name, state.st_size, state.st_mtime_ns)).encode())
    return found.hexdigest()[:32] if path.is_file() else ""


def _is_done(info: FrameInfo, size: int, stamp: str, open_scan: Callable[[], Any]) -> bool:
    """Whether a frame was clustered and its scan has not changed.

    Fingerprints of the data are compared, unless the stamp says that no file has changed.
    """
    if info.error or info.size != size:
        return False
    if stamp and info.stamp == stamp:
        return True
    try:
        return fingerprint(open_scan().data) == info.fingerprint
    except Exception:  # clustering the frame will report this error
        return False


# --- one frame -----------------------------------------------------------------------------------


class WrongMask(ValueError):
    """A mask in the options does not have the shape of the scan or the detector of a frame."""


class Options(NamedTuple):
    """Options for the work on each frame."""

    filter: Mapping[str, Any] | None
    """Options of a filter as `check_filter` returns them; None for no filter."""
    overlap: bool | None
    """Whether grains may overlap; see `find_overlaps`."""
    cluster: Mapping[str, Any]
    """Options of `cluster`."""
    averages: Mapping[str, Any]
    """Options of `get_clustered_datacube`."""
    image_mask: NDArray[np.bool_] | None
    """Detector pixels of the virtual image."""
    n_jobs: int | None
    max_memory: int | str | None
    folder: str
    """Folder for the file of a filtered scan that is not kept in memory."""


def cluster_frame(frame: Frame, options: Options, record: bool) -> FrameResult:
    """Filter, cluster and average one scan; with `record`, an error is returned, not raised.

    `WrongMask` is always raised: the caller knows whether the mask fits other frames.
    """
    mark = ""
    try:
        cube = frame.open()
        _check_masks(frame, cube, options)
        mark = fingerprint(cube.data)
        found, averages, image, calibration = _cluster_datacube(frame, cube, options)
        clusters = found.clusters if isinstance(found, OverlappingGrains) else found
    except WrongMask:
        raise
    except Exception as error:
        if not record:
            raise
        return FrameResult(info_of_failed(frame, error, mark))
    info = FrameInfo(
        frame.number,
        frame.source,
        frame.size,
        mark,
        frame.time,
        "",
        clusters.n_clusters,
        frame.stamp,
    )
    return FrameResult(info, found, averages, image, calibration)


def _check_masks(frame: Frame, cube: Any, options: Options) -> None:
    """Raise `WrongMask` unless the masks in the options fit a scan."""
    masks = {
        "image_mask": (options.image_mask, cube.Qshape, "detector pixels"),
        "q_mask": (options.cluster["q_mask"], cube.Qshape, "detector pixels"),
        "r_mask": (options.cluster["r_mask"], cube.Rshape, "scan positions"),
    }
    for name, (mask, shape, what) in masks.items():
        if np.ndim(mask):
            try:
                check_mask(name, mask, shape, what)
            except ValueError as error:
                raise WrongMask(f"{error}; this is the shape of {frame.source}") from error


def info_of_failed(frame: Frame, error: Exception, mark: str = "") -> FrameInfo:
    """Facts about a frame that failed; `mark` is the fingerprint of its scan."""
    kind = ValueError if isinstance(error, WrongMask) else type(error)
    text = " ".join(f"{kind.__name__}: {error}".split())
    return FrameInfo(frame.number, frame.source, frame.size, mark, frame.time, text, 0, frame.stamp)


def _cluster_datacube(frame: Frame, cube: Any, options: Options) -> tuple[Any, ...]:
    """Clusters or grains that overlap, averages or None, virtual image, and parameters of the
    calibration.
    """
    common: dict[str, Any] = {
        "n_jobs": options.n_jobs,
        "max_memory": options.max_memory,
        "progress_bar": False,
    }
    weight = options.image_mask
    if weight is None:
        weight = options.cluster["q_mask"]
    if weight is not None:
        weight = check_mask("q_mask", weight, cube.Qshape, "detector pixels")
    image = scattered_image(cube, weight, n_jobs=options.n_jobs, max_memory=options.max_memory)
    with _filtered(frame, cube, options, common) as source:
        name = frame_name(frame.number)
        if options.overlap:
            masks = {key: options.cluster[key] for key in ("q_mask", "r_mask")}
            found: Any = find_overlaps(source, **masks, name=name, **common)
        else:
            found = cluster(source, **options.cluster, name=name, **common)
    averages, means, calibration = None, None, cube.calibration
    if isinstance(found, OverlappingGrains):
        if found.n_grains:
            means = found.get_pure_patterns(cube, **common)
    elif found.n_clusters:
        means = get_clustered_datacube(cube, found, **options.averages, **common)
    if means is not None:
        averages, calibration = means.data[:, 0], means.calibration
    params = copy_calibration(calibration)._params
    return found, averages, image.astype(np.float32), params


def _apply_filter(cube: Any, options: Mapping[str, Any], **common: Any) -> Any:
    """The scan after the filter that `check_filter` has checked."""
    own = {key: value for key, value in options.items() if key != "method"}
    if options.get("method") == "lowrank":
        return filter_lowrank(cube, **own, **common)
    return filter_correlative(cube, **own, **common)


@contextmanager
def _filtered(
    frame: Frame, cube: Any, options: Options, common: Mapping[str, Any]
) -> Iterator[Any]:
    """Scan to cluster; a filtered copy of a scan on disk is a file that is removed afterwards."""
    if options.filter is None:
        yield cube
        return
    if isinstance(cube.data, np.ndarray) and not isinstance(cube.data, np.memmap):
        yield _apply_filter(cube, options.filter, **common)
        return
    path = Path(options.folder) / f"filtered_{frame.number:06d}.h5"
    filtered = None
    try:
        filtered = _apply_filter(
            cube, options.filter, **common, out=path, overwrite=True, name="filtered"
        )
        yield filtered
    finally:
        if filtered is not None:
            filtered.data.file.close()
        path.unlink(missing_ok=True)
