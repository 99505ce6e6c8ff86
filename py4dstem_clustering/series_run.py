"""Cluster a series of scans, one frame after the other or on many machines, and go on after a stop.

Each frame that is done is a file in a folder beside the result, written whole and moved into place;
at the end they become one file. So nothing that was done is lost, and nothing half-written is ever
taken for a result.
"""

from __future__ import annotations

import gc
import inspect
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from functools import partial
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import emdfile
import numpy as np

from .base.checks import (
    check_choice,
    check_corr_range,
    check_data,
    check_flag,
    check_integer,
    check_memory,
    check_n_jobs,
    check_number,
    check_out,
    check_q_mask,
    values_of,
)
from .grains.clustering import cluster
from .grains.options import check_cut_options, check_tree_options
from .kernels.blocks import check_whole
from .kernels.virtual import sample_mean, scattered, virtual_image_core, virtual_image_need
from .patterns.filtering import filter_correlative
from .scan.calibration import copy_calibration, known_centre
from .scan.datacubes import copy_datacube, fingerprint
from .scan.loading import load_scan
from .series import (
    ClusterSeries,
    FrameInfo,
    FrameResult,
    assemble,
    frame_files,
    frame_name,
    journal_of,
    measure_drift,
    open_series,
    read_infos,
    read_options,
    save_frame,
)

# Of these, cluster_series has its own.
_NOT_PASSED = {"self", "similarity", "name", "returncalc", "n_jobs", "max_memory", "progress_bar"}

_NOT_PASSED_FILTER = {"self", "out", "overwrite", "compression", "name", "n_jobs", "max_memory"}

_NOT_PASSED_FILTER |= {"progress_bar"}

# Frames given to a dask client ahead, for each of its workers: one to work on, one to come.
_AHEAD = 2


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

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
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


def _check_frames(frames: Any) -> Any:
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


class _Times:
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


def _frames_to_do(
    frames: Any,
    load: Any,
    times: _Times,
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
    image_mask: np.ndarray | None
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
        return FrameResult(_failed(frame, error, mark))
    clusters, averages, image, calibration = result
    info = FrameInfo(
        frame.number, frame.source, frame.size, mark, frame.time, "", clusters.n_clusters
    )
    return FrameResult(info, clusters, averages, image, calibration)


def _failed(frame: Frame, error: Exception, mark: str = "") -> FrameInfo:
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


# --- all frames ----------------------------------------------------------------------------------


def cluster_series(
    frames: Any,
    *,
    out: str | PathLike,
    filter: bool | Mapping[str, Any] | None = None,
    min_purity: float | None = None,
    align: bool | None = None,
    load: Callable[[Path], Any] | None = None,
    times: Any = None,
    time_units: str = "frames",
    drift: np.ndarray | str | None = "auto",
    image_mask: np.ndarray | None = None,
    resume: bool = True,
    overwrite: bool = False,
    on_error: str = "record",
    client: Any = None,
    n_jobs: int | None = None,
    max_memory: int | str | None = None,
    progress_bar: bool = True,
    **options: Any,
) -> ClusterSeries:
    """Cluster scan after scan, and keep the clusters of all of them in one file.

    The scans are those of an in-situ experiment (5D-STEM): one sample at successive times. One is
    in memory at a time, and what is done is safe on disk: after a crash, Ctrl-C or a power loss the
    same call goes on where it stopped. While it runs, ``open_series(out)`` shows what is done.

    Parameters
    ----------
    frames : sequence or iterable
        DataCubes, arrays (Rx, Ry, Qx, Qy), or paths; a 5D array (NumPy, memmap, HDF5, dask); or a
        generator that yields scans while the microscope runs, such as `watch_folder`.
    out : path
        EMD file to write, which plain py4DSTEM opens. Until all frames are done they lie in the
        folder ``<out>.frames``, each a file that opens too.
    filter : True or mapping, optional
        Apply ``datacube.filter_correlative`` before clustering, with its defaults or these options.
        Averages are of the unfiltered scan all the same.
    min_purity, align
        For averages; see ``datacube.get_clustered_datacube``.
    load : callable, optional
        Makes a DataCube of a path. By default whatever `py4DSTEM.import_file` and `py4DSTEM.read`
        open as a single scan, .npy and .npz. For scans larger than memory give `open_scan`.
    times : float or sequence, optional
        Time from frame to frame, or the time of each frame, rising. By default 0, 1, 2, ...
        Where these, or `drift`, are given one by one, scans that are done must come first and in
        the same order as before.
    time_units : str
        Unit of `times`, such as "s".
    drift : "auto", ndarray (T, 2), or None
        Where the sample is in each frame, in positions from frame 0; see ``series.drift``. "auto"
        measures it from virtual images; None takes it as 0. It is kept, not applied to data.
    image_mask : ndarray of bool, (Qx, Qy), optional
        Detector pixels of the virtual image that is kept of each frame and that the drift is
        measured from. By default the `q_mask`, or all beyond the direct beam.
    resume : bool
        Go on with what is done in `out`. The options must be those of the first call. More frames
        may be given than before; their numbers follow on those that are done, wherever they come.
        Frames that failed, and those whose file has another size now (or whose data, where they
        were no files, are not the same), are done again. False starts anew, if there is nothing
        yet, or with `overwrite`.
    overwrite : bool
        With ``resume=False``, remove what is there.
    on_error : "record" or "raise"
        A frame that cannot be clustered (damaged, cut short, of another shape than `q_mask`) is
        kept with its error, in ``series.errors``, and the others go on; or the error is raised,
        and what is done stays done.
    client : dask.distributed.Client, optional
        Frames become tasks of its workers, on any number of machines. What a lost worker was doing
        is done again. Paths are opened by the workers, which must see the files; DataCubes in
        memory are sent. Frames are taken from a generator as workers become free.
    n_jobs : int, optional
        Threads for each frame; by default all cores that the process may use, or 1 with a `client`.
    max_memory : int or str, optional
        For each frame; see ``datacube.filter_correlative``.
    progress_bar : bool
        Show progress, frame by frame.
    **options
        All else goes to ``datacube.cluster``: ``method``, ``threshold``, ``min_size``, ``q_mask``
        and so on. Merging learns its features in each frame anew: a grain that comes up later has
        no place among those that were learned before, and no frame waits for another one.

    Returns
    -------
    ClusterSeries

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule, or `out` was made with other options; before any work.
    OSError
        If the disk is full, or another process writes to `out`.

    Examples
    --------
    >>> from py4dstem_clustering import cluster_series, simulate_series
    >>> movie = simulate_series((16, 14), (32, 30), n_frames=3, n_particles=2, seed=1)
    >>> series = cluster_series(movie, out=folder / "series.h5", times=0.5, time_units="s",
    ...                         progress_bar=False)
    >>> len(series), series.times.tolist()
    (3, [0.0, 0.5, 1.0])
    >>> series[0].shape
    (16, 14)
    """
    frames = _check_frames(frames)
    path = check_out(out, True)
    times = _Times(times)
    if isinstance(frames, Sized):
        times.check(len(frames))
    if not isinstance(time_units, str):
        raise TypeError(f"time_units={time_units!r} must be a text, such as 's'")
    drift = _check_drift(drift, len(frames) if isinstance(frames, Sized) else None)
    if load is not None and not callable(load):
        raise TypeError(f"load={load!r} must be a function of a path, such as open_scan")
    if image_mask is not None:
        image_mask = check_q_mask(image_mask, np.shape(image_mask))
    resume, overwrite = check_flag("resume", resume), check_flag("overwrite", overwrite)
    check_choice("on_error", on_error, ("record", "raise"))
    if client is not None and not hasattr(client, "submit"):
        raise TypeError(f"client={client!r} must be a dask.distributed.Client")
    n_jobs = check_n_jobs(1 if client is not None and n_jobs is None else n_jobs)
    check_memory(max_memory)
    progress_bar = check_flag("progress_bar", progress_bar)
    filtering = _check_filter(filter)
    options = _check_cluster_options(options)
    averaging = {}
    if min_purity is not None:
        averaging["min_purity"] = check_number("min_purity", min_purity, 0, 1)
    if align is not None:
        averaging["align"] = check_flag("align", align)
    folder = journal_of(path)
    settings = {
        "cluster": options,
        "filter": filtering,
        "averages": averaging,
        "image_mask": image_mask,
        "time_units": time_units,
        "drift": "given" if isinstance(drift, np.ndarray) else str(drift),
    }
    _check_resume(path, settings, resume, overwrite)

    folder.mkdir(exist_ok=True)
    with _only_one(folder, path):
        if not resume:
            path.unlink(missing_ok=True)
            for file in folder.glob("frame_*.h5"):
                file.unlink()
        seen: dict[int, float] = {}
        started: list[int] = []
        done = read_infos(frame_files(path))
        in_order = times.listed or isinstance(drift, np.ndarray)
        to_do = _frames_to_do(frames, load, times, in_order, done, seen, started)
        what = Options(
            filtering, options, averaging, image_mask, n_jobs, max_memory, str(folder.resolve())
        )
        work = partial(cluster_frame, options=what, record=on_error == "record")
        results = _one_by_one(to_do, work) if client is None else _by_client(client, to_do, work)
        total = len(frames) if isinstance(frames, Sized) else 0
        bar = emdfile.tqdmnd(total, desc="Clustering", unit="frames", disable=not progress_bar)
        try:
            for n_done, result in enumerate(results, 1):
                save_frame(folder, result, settings)
                del result
                bar.update(len(seen) - len(started) + n_done - bar.n)
            bar.update(len(seen) - bar.n)
        finally:
            bar.close()
            results.close()
        if not frame_files(path):
            raise ValueError("frames yielded no scan, so there is no series")
        _finish(path, settings, seen, drift)
        shutil.rmtree(folder, ignore_errors=True)
    return open_series(path)


def _one_by_one(
    frames: Iterator[Frame], work: Callable[[Frame], FrameResult]
) -> Iterator[FrameResult]:
    for frame in frames:
        result = work(frame)
        # Before the next one is made. A DataCube and its tree hold each other (emdfile 0.0.16).
        del frame
        gc.collect()
        yield result
        del result


def _by_client(
    client: Any, frames: Iterator[Frame], work: Callable[..., FrameResult]
) -> Iterator[FrameResult]:
    """Results in any order; a few frames are on their way at a time."""
    from distributed import wait

    pending: dict[Any, Frame] = {}
    more = True
    try:
        while more or pending:
            workers = max(1, len(client.nthreads()))
            while more and len(pending) < _AHEAD * workers:
                frame = next(frames, None)
                if frame is None:
                    more = False
                    break
                future = client.submit(_on_worker, work, frame, key=_task_name(frame))
                pending[future] = frame._replace(open=None)
                del frame
            if not pending:
                return
            finished, _ = wait(list(pending), return_when="FIRST_COMPLETED")
            for future in finished:
                frame = pending.pop(future)
                try:
                    result = future.result()
                except Exception as error:  # its workers died, again and again
                    if not work.keywords["record"]:
                        raise
                    result = FrameResult(_failed(frame, error))
                future.release()
                yield result
                del result
    finally:
        if pending:
            client.cancel(list(pending))


def _on_worker(work: Callable[[Frame], FrameResult], frame: Frame) -> FrameResult:
    import dask

    # A dask array must not wait for the threads of workers, which all wait for it.
    with dask.config.set(scheduler="synchronous"):
        return work(frame)


def _task_name(frame: Frame) -> str:
    return f"cluster_frame-{frame.number}-{uuid.uuid4().hex}"


# --- what is there -------------------------------------------------------------------------------


def _check_drift(drift: Any, n_frames: int | None) -> np.ndarray | str | None:
    if drift is None or (isinstance(drift, str) and drift == "auto"):
        return drift
    rule = "'auto', None, or two finite numbers for each frame, (T, 2)"
    if isinstance(drift, str):
        raise ValueError(f"drift={drift!r} must be {rule}")
    values = np.asarray(drift, dtype=float)
    if values.ndim != 2 or values.shape[1] != 2 or not np.isfinite(values).all():
        raise ValueError(f"drift of shape {values.shape} must be {rule}")
    if n_frames is not None and len(values) != n_frames:
        raise ValueError(f"drift of shape {values.shape} must be {rule}; there are {n_frames}")
    return values


def _with_defaults(
    options: Mapping[str, Any], function: Callable, own: set[str], what: str
) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    resolved = {name: item.default for name, item in parameters.items() if name not in own}
    for name in options:
        if name not in resolved:
            raise TypeError(f"{name!r} is no option of {what}; it takes {', '.join(resolved)}")
    return {**resolved, **options}


def _check_filter(filtering: Any) -> dict[str, Any] | None:
    if filtering is None or isinstance(filtering, bool):
        if not filtering:
            return None
        filtering = {}
    if not isinstance(filtering, Mapping):
        raise TypeError(f"filter={filtering!r} must be True, or options such as {{'sigma': 3}}")
    filtering = _with_defaults(
        filtering, filter_correlative, _NOT_PASSED_FILTER, "filter_correlative"
    )
    check_number("sigma", filtering["sigma"], 0)
    check_number("radius", filtering["radius"], 0)
    check_corr_range(filtering["corr_range"])
    check_integer("edge", filtering["edge"], 0)
    return filtering


def _check_cluster_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `cluster`, defaults resolved, as it checks them; before a frame is opened."""
    options = _with_defaults(options, cluster, _NOT_PASSED, "cluster_series or datacube.cluster")
    for key in ("q_mask", "r_mask"):
        if np.ndim(values_of(options[key])):
            options[key] = np.array(values_of(options[key]))
    cut = ("method", "threshold", "n_clusters", "min_size", "drop_background")
    grown = ("sigma", "subtract_mean")
    options["method"], _ = check_cut_options(*(options[key] for key in (*cut, *grown)))
    check_tree_options(
        *(options[key] for key in ("method", "rank", "r_mask", *grown)),
        None,
        np.shape(options["r_mask"]),
    )
    check_q_mask(options["q_mask"], np.shape(options["q_mask"]))
    return options


_DECIDES = ("cluster", "filter", "averages", "image_mask")
"""Settings that a frame depends on."""


def _check_resume(path: Path, settings: dict[str, Any], resume: bool, overwrite: bool) -> None:
    places = set(frame_files(path).values())
    if path.is_file():
        places.add(path)
    if not resume:
        if places and not overwrite:
            raise ValueError(
                f"out={str(path)!r} has frames already; resume=True goes on with them, "
                "overwrite=True removes them"
            )
        return
    # Those in one file, and those in the folder, were made by one call each.
    now = {key: settings[key] for key in _DECIDES}
    for place in {place.parent: place for place in places}.values():
        made_with = read_options(place)
        changed = list(_differences({key: made_with.get(key) for key in _DECIDES}, now))
        if changed:
            raise ValueError(
                f"the frames in out={str(path)!r} were made with other options: "
                f"{'; '.join(changed)}. Give the same, another out, or resume=False and "
                "overwrite=True"
            )


def _differences(was: Any, now: Any, name: str = "") -> Iterator[str]:
    """What differs, as far as an EMD file keeps it: it makes floats of numbers in a tuple."""
    if isinstance(was, Mapping) or isinstance(now, Mapping):
        was, now = ({} if x is None else x for x in (was, now))
        for key in sorted({*was, *now}):
            yield from _differences(was.get(key), now.get(key), f"{name} {key}".strip())
        return
    plain = [x is None or isinstance(x, str) for x in (was, now)]
    same = was == now if all(plain) else not any(plain) and np.array_equal(was, now)
    if not same:
        texts = ("another array" if np.ndim(x) else repr(x) for x in (was, now))
        yield "{} was {} and is {}".format(name, *texts)


@contextmanager
def _only_one(folder: Path, path: Path) -> Iterator[None]:
    """Let one process at a time write a series; where files can be locked."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"another process is writing {path}; wait for it, or stop it") from None
        except OSError:  # some file servers know no locks
            pass
        yield  # the lock goes with the process, however that ends


def _finish(path: Path, settings: dict[str, Any], times: Mapping[int, float], drift: Any) -> None:
    """One file of all frames, unless there is one that holds just these."""
    places = frame_files(path)
    series = open_series(path)
    if isinstance(drift, np.ndarray):
        if len(drift) != len(series):
            raise ValueError(
                f"drift of shape {drift.shape} must hold two numbers for each of the {len(series)} "
                "frames; all of them are done, so the same call with another drift takes no time"
            )
    elif drift is None:
        drift = np.zeros((len(series), 2))
    else:
        drift = measure_drift(series)
    complete = set(places.values()) == {path}
    same_times = series.time_units == settings["time_units"] and all(
        times.get(i.frame, i.time) == i.time for i in series.infos
    )
    if not (complete and same_times and np.array_equal(series.stored_drift, drift)):
        assemble(path, settings, times, drift)
