"""Cluster a series of scans, one frame after the other or on many machines, and go on after a stop.

Each frame that is done is a file in a folder beside the result, written whole and moved into place;
at the end they become one file. So nothing that was done is lost, and nothing half-written is ever
taken for a result.
"""

from __future__ import annotations

import gc
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import emdfile
import numpy as np
from numpy.typing import NDArray

from ..base.checks import (
    check_choice,
    check_flag,
    check_memory,
    check_n_jobs,
    check_number,
    check_out,
    check_q_mask,
)
from .files import FrameResult, assemble, frame_files, journal_of, read_infos, save_frame
from .frames import Frame, Options, Times, check_frames, cluster_frame, failed_frame, frames_to_do
from .options import check_cluster_options, check_drift, check_filter, check_resume
from .result import ClusterSeries, measure_drift, open_series

# Frames given to a dask client ahead, for each of its workers: one to work on, one to come.
_AHEAD = 2


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
    drift: NDArray[Any] | str | None = "auto",
    image_mask: NDArray[Any] | None = None,
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
    frames = check_frames(frames)
    path = check_out(out, True)
    times = Times(times)
    if isinstance(frames, Sized):
        times.check(len(frames))
    if not isinstance(time_units, str):
        raise TypeError(f"time_units={time_units!r} must be a text, such as 's'")
    drift = check_drift(drift, len(frames) if isinstance(frames, Sized) else None)
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
    filtering = check_filter(filter)
    options = check_cluster_options(options)
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
    check_resume(path, settings, resume, overwrite)

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
        to_do = frames_to_do(frames, load, times, in_order, done, seen, started)
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
                    result = FrameResult(failed_frame(frame, error))
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
