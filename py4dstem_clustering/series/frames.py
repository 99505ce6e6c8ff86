"""One frame of a series: opened, filtered, clustered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from functools import partial
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_data, check_memory, check_number, check_q_mask
from ..kernels.blocks import check_whole
from ..kernels.virtual import sample_mean, scattered, virtual_image_core, virtual_image_need
from ..scan.calibration import copy_calibration, known_centre
from ..scan.datacubes import copy_datacube, fingerprint
from ..scan.loading import load_scan
from .files import FrameInfo, FrameResult, frame_name


class Frame(NamedTuple):
    """A frame to do."""

    number: int
    source: str
    size: int
    time: float
    open: Callable[[], Any]
    """Returns its DataCube."""


_END = object()


# --- frames --------------------------------------------------------------------------------------


class _Part:
    """One scan of a 5D array, which stays where it is."""

    def __init__(self, data: Any, number: int) -> None:
        self._data, self._number = data, number
        self.shape, self.dtype, self.ndim = data.shape[1:], data.dtype, 4

    def __getitem__(self, key: Any) -> Any:
        found = self._data[(self._number, *(key if isinstance(key, tuple) else (key,)))]
        check_whole(self._data)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[()], dtype=dtype)


class _FileOf5D(NamedTuple):
    """A 5D HDF5 dataset by its file and name, so that another process can open it."""

    path: str
    name: str

    def part(self, number: int) -> Any:
        import h5py

        return _Part(h5py.File(self.path, "r")[self.name], number)


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


def _open_path(path: Path, load: Callable[[Path], Any] | None) -> Any:
    return _as_datacube(load_scan(path) if load is None else load(path))


def check_frames(frames: Any) -> Any:
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
            check_data(_Part(frames, 0))
    elif not isinstance(frames, Iterable):
        raise TypeError(
            f"frames of type {type(frames).__name__} must be DataCubes, paths, a 5D array, or what "
            "yields them"
        )
    if isinstance(frames, Sized) and len(frames) == 0:
        raise ValueError("frames is empty: give at least one scan")
    return frames


def _items(frames: Any) -> Iterator[Any]:
    """Frames one after the other; of a 5D array as functions that make them."""
    if not hasattr(frames, "shape"):
        yield from frames
        return
    file = getattr(frames, "file", None)
    lazy = None if file is None else _FileOf5D(file.filename, frames.name)
    for number in range(frames.shape[0]):
        if lazy is not None:
            yield partial(lazy.part, number)
        elif isinstance(frames, np.ndarray):
            yield partial(np.asanyarray, frames[number])  # a mask stays, and a memmap on disk
        else:
            yield partial(_Part, frames, number)


def _open_made(make: Callable[[], Any]) -> Any:
    return _as_datacube(make())


class Times:
    """Time of each frame: evenly spaced, or one by one."""

    def __init__(self, times: Any) -> None:
        self._step = self._times = None
        if times is None or np.ndim(times) == 0:
            self._step = 1.0 if times is None else check_number("times", times)
            if self._step <= 0:
                raise ValueError(f"times={times!r} must be above 0: the time from frame to frame")
            return
        self._times = np.asarray(times, dtype=float)
        if self._times.ndim != 1 or not np.isfinite(self._times).all():
            raise ValueError("times must be one number, the time between frames, or one a frame")
        if (np.diff(self._times) <= 0).any():
            raise ValueError("times must rise from frame to frame")

    def __call__(self, number: int) -> float:
        if self._times is None:
            return number * self._step
        if number >= len(self._times):
            raise ValueError(
                f"times holds {len(self._times)} numbers and there is a frame {number}; give one "
                "for each frame, or the time between frames"
            )
        return float(self._times[number])

    @property
    def listed(self) -> bool:
        """Whether they were given one by one."""
        return self._times is not None

    def check(self, n_frames: int) -> None:
        if self._times is not None and len(self._times) != n_frames:
            raise ValueError(f"times holds {len(self._times)} numbers for {n_frames} frames")


def frames_to_do(
    frames: Any,
    load: Any,
    times: Times,
    in_order: bool,
    done: Mapping[int, FrameInfo],
    seen: dict[int, float],
    started: list[int],
) -> Iterator[Frame]:
    """Frames that are not done. Number and time of all go to `seen`, numbers of these to `started`.

    A frame is known by the name of its file, so that files may move or come in another order; what
    was no file is known by its place. With `in_order` they may not: times or drift are one by one.
    """
    known = {info.source: info for info in done.values()}
    names: dict[str, int] = {}
    free = 0
    items = _items(frames)
    for position in count():
        # Not by enumerate, which holds the last item while the next one is made.
        item = next(items, _END)
        if item is _END:
            return
        if isinstance(item, (str, PathLike)):
            path = Path(item)
            names[path.name] = names.get(path.name, 0) + 1
            source = path.name + (f" ({names[path.name]})" if names[path.name] > 1 else "")
            size = path.stat().st_size if path.is_file() else 0
            make = partial(_open_path, path, load)
        else:
            source, size = f"item {position}", 0
            make = partial(_open_made, item) if callable(item) else partial(_as_datacube, item)
        del item
        info = known.get(source)
        if info is not None:
            number = info.frame
        else:
            while free in seen or free in done:
                free += 1
            number = free
        if in_order and number != position:
            raise ValueError(
                f"{source} comes at place {position} and is frame {number} of out, so it would get "
                "the time and drift of another frame; give new scans after the old ones, all of "
                "these in the same order as before, or another out"
            )
        seen[number] = times(number)
        if info is None or info.error or info.size != size or not (size or _same(make, info)):
            started.append(number)
            yield Frame(number, source, size, seen[number], make)
        del make


def _same(make: Callable[[], Any], info: FrameInfo) -> bool:
    try:
        return fingerprint(make().data) == info.fingerprint
    except Exception:  # what is wrong with it will be found when it is clustered
        return False


# --- one frame -----------------------------------------------------------------------------------


class Options(NamedTuple):
    """What is done with each frame."""

    filter: Mapping[str, Any] | None
    cluster: Mapping[str, Any]
    averages: Mapping[str, Any]
    image_mask: NDArray[Any] | None
    n_jobs: int | None
    max_memory: int | str | None
    folder: str | None
    """For a filtered scan that is not kept in memory."""


def cluster_frame(frame: Frame, options: Options, record: bool) -> FrameResult:
    """Filter, cluster and average one scan; with `record`, an error is a result."""
    mark = ""
    try:
        cube = frame.open()
        mark = fingerprint(cube.data)
        result = _cluster_datacube(frame, cube, options)
    except Exception as error:
        if not record:
            raise
        return FrameResult(failed_frame(frame, error, mark))
    clusters, averages, image, calibration = result
    info = FrameInfo(
        frame.number, frame.source, frame.size, mark, frame.time, "", clusters.n_clusters
    )
    return FrameResult(info, clusters, averages, image, calibration)


def failed_frame(frame: Frame, error: Exception, mark: str = "") -> FrameInfo:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return FrameInfo(frame.number, frame.source, frame.size, mark, frame.time, text, 0)


def _cluster_datacube(frame: Frame, cube: Any, options: Options) -> tuple[Any, ...]:
    common = {"n_jobs": options.n_jobs, "max_memory": options.max_memory, "progress_bar": False}
    weight = options.image_mask
    if weight is None:
        weight = options.cluster["q_mask"]
    if weight is None:
        weight = scattered(sample_mean(cube.data), known_centre(cube))
    weight = check_q_mask(weight, cube.Qshape)
    n_rows = check_memory(
        options.max_memory, partial(virtual_image_need, cube.data, options.n_jobs)
    )
    image = virtual_image_core(
        cube.data, weight, n_jobs=options.n_jobs, report=lambda rows: None, n_rows=n_rows
    )
    with _filtered(frame, cube, options, common) as source:
        clusters = source.cluster(**options.cluster, name=frame_name(frame.number), **common)
    averages, calibration = None, cube.calibration
    if clusters.n_clusters:
        found = cube.get_clustered_datacube(clusters, **options.averages, **common)
        averages, calibration = found.data[:, 0], found.calibration
    params = copy_calibration(calibration)._params
    return clusters, averages, image.astype(np.float32), params


@contextmanager
def _filtered(frame: Frame, cube: Any, options: Options, common: dict) -> Iterator[Any]:
    """The scan that is clustered; one that stays on disk is filtered to a file that goes again."""
    if options.filter is None:
        yield cube
        return
    if isinstance(cube.data, np.ndarray) and not isinstance(cube.data, np.memmap):
        yield cube.filter_correlative(**options.filter, **common)
        return
    path = Path(options.folder) / f"filtered_{frame.number:06d}.h5"
    filtered = None
    try:
        filtered = cube.filter_correlative(
            **options.filter, **common, out=path, overwrite=True, name="filtered"
        )
        yield filtered
    finally:
        if filtered is not None:
            filtered.data.file.close()
        path.unlink(missing_ok=True)
