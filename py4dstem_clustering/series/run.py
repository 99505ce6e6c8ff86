"""Cluster a series of scans, one frame after the other or on many machines, and go on after a stop.

Each frame that is done becomes a file in a folder beside the result. The file is written under
another name and then renamed, so a half-written file is never taken for a result. At the end, all
these files are copied into one file.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sized
from contextlib import closing
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast

import emdfile
import numpy as np
from numpy.typing import NDArray

from ..base.checks import (
    check_choice,
    check_flag,
    check_mask,
    check_memory,
    check_n_jobs,
    check_out,
)
from ..base.progress import warn_user
from .ahead import Stored, cluster_here
from .files import (
    FrameResult,
    StoredSeries,
    assemble,
    read_series,
    remove_series,
    save_frame,
)
from .frames import (
    Frame,
    FramesToDo,
    Options,
    Times,
    WrongMask,
    check_frames,
    cluster_frame,
    info_of_failed,
)
from .lock import only_one_writer
from .options import (
    check_averages,
    check_cluster_options,
    check_drift,
    check_filter,
    check_overlap,
    check_resume,
)
from .result import ClusterSeries, open_series

_FRAMES_A_WORKER = 2
"""Number of frames that a dask worker has at a time: one in work, and one that is being sent.

A larger number takes more memory, since a frame may be a whole scan.
"""


def cluster_series(
    frames: Any,
    *,
    out: str | PathLike[str],
    overlap: bool = False,
    filter: bool | str | Mapping[str, Any] | None = None,
    min_purity: float | None = None,
    align: bool | None = None,
    load: Callable[[Path], Any] | None = None,
    times: Any = None,
    time_units: str = "frames",
    drift: NDArray[Any] | Literal["auto"] | None = "auto",
    image_mask: NDArray[np.bool_] | None = None,
    resume: bool = True,
    overwrite: bool = False,
    on_error: Literal["record", "raise"] = "record",
    client: Any = None,
    n_jobs: int | None = None,
    max_memory: int | str | None = None,
    progress_bar: bool = True,
    **options: Any,
) -> ClusterSeries:
    """Cluster scan after scan, and keep the clusters of all of them in one file.

    The scans show one sample at successive times, as in an in-situ experiment (5D-STEM). Scans in
    memory are clustered one after the other. Of scans in files, two are in work at once: the second
    one is read while the first one is clustered. Each result is saved to disk at once: after a
    crash, Ctrl-C or a power loss, the same call continues where it stopped. During the run,
    ``open_series(out)`` opens the frames that are done.

    Parameters
    ----------
    frames : sequence or iterable
        DataCubes, arrays (Rx, Ry, Qx, Qy), or paths; a 5D array (NumPy, memmap, HDF5, dask); or a
        generator that yields scans while the microscope records them, such as `watch_folder`.
    out : path
        EMD file to write; py4DSTEM can open it without this package. Until all frames are done,
        the folder ``<out>.frames`` holds one such file for each frame.
    overlap : bool
        Find grains that may lie above one another, with `find_overlaps`: ``series.overlaps(i)`` has
        their supports, averages are their pure patterns, and tracks follow the supports, so that
        particles that slide over one another keep their tracks. Of the options of `cluster`, only
        `q_mask` and `r_mask` can be given then, and neither `min_purity` nor `align`.
    filter : True, "correlative", "lowrank" or mapping, optional
        Filter before clustering. True and "correlative" are ``datacube.filter_correlative`` with
        its defaults, "lowrank" is ``datacube.filter_lowrank``. A mapping holds options, of the
        low-rank filter if it holds ``"method": "lowrank"``. Averages are always those of the
        unfiltered scan.
    min_purity, align
        Options for the averages; see ``datacube.get_clustered_datacube``.
    load : callable, optional
        Function that opens a path as a DataCube, by default `open_scan`. For its options give
        ``functools.partial(open_scan, scan_shape=(256, 256))``.
    times : float or sequence, optional
        Time from frame to frame, or the time of each frame, rising. By default 0, 1, 2, ...
        If the times or the `drift` are listed frame by frame, scans that are done must come first,
        in the same order as before.
    time_units : str
        Unit of `times`, such as "s".
    drift : "auto", ndarray (T, 2), or None
        Displacement of the sample since frame 0, in scan positions; see ``series.drift``. "auto"
        measures it from virtual images; None sets it to 0. It is stored, not applied to data.
    image_mask : ndarray of bool, (Qx, Qy), optional
        Detector pixels of the virtual images, which are stored and from which the drift is
        measured. By default the `q_mask`, or without this all pixels outside of the direct beam.
    resume : bool
        Continue with the frames in `out`. The options must be those of the first call. More frames
        may be given than before; new frames get the next free numbers. A frame is done again if it
        failed, or if its data have changed. Data are compared by their fingerprint (16 patterns);
        files are opened for it only if their size or time has changed, or that of files that belong
        to them. False starts from the beginning; an existing `out` is then an error, unless
        `overwrite` is True.
    overwrite : bool
        With ``resume=False``, remove an existing series.
    on_error : "record" or "raise"
        What to do if a frame cannot be clustered (damaged, cut short, of another shape than
        `q_mask`). "record" stores the error in ``series.errors``, and clusters the other frames.
        "raise" raises the error, before the next frame is begun; frames that are done are kept. If
        a mask does not fit the first frame, this is always an error.
    client : dask.distributed.Client, optional
        The workers of this client cluster the frames, on any number of machines. The work of a lost
        worker is done again. The workers open paths, so they must have access to the files;
        DataCubes in memory are sent. A generator is read as workers become free.
    n_jobs : int, optional
        Number of threads for each frame; by default all cores that the process may use, or 1 with a
        `client`.
    max_memory : int or str, optional
        Bytes, or a text such as "1 GB", that the work on one frame may take; see
        `filter_correlative`. Of scans in files, two may take so much at once.
    progress_bar : bool
        Show progress.
    **options
        Options of ``datacube.cluster``: ``method``, ``threshold``, ``min_size``, ``q_mask`` and so
        on. Merging learns its features from each frame separately, because features from earlier
        frames do not describe a grain that appears later.

    Returns
    -------
    ClusterSeries

    Raises
    ------
    ValueError, TypeError
        Before any work, if an argument breaks its rule, or `out` was made with other options.
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
    n_frames = len(frames) if isinstance(frames, Sized) else None
    time_of = Times(times)
    if n_frames is not None:
        time_of.check(n_frames)
    if not isinstance(time_units, str):
        raise TypeError(f"time_units={time_units!r} must be a text, such as 's'")
    drift = check_drift(drift, n_frames)
    drift_is_given = isinstance(drift, np.ndarray)
    if load is not None and not callable(load):
        raise TypeError(f"load={load!r} must be a function of a path, such as open_scan")
    if image_mask is not None:
        shape = cast("tuple[int, int]", np.shape(image_mask))  # of the detector, unknown yet
        image_mask = check_mask("q_mask", image_mask, shape, "detector pixels")
    resume, overwrite = check_flag("resume", resume), check_flag("overwrite", overwrite)
    if overwrite and resume:
        raise ValueError(
            "overwrite=True goes with resume=False; with resume=True nothing is overwritten, and "
            "frames that are done are kept"
        )
    check_choice("on_error", on_error, ("record", "raise"))
    if client is not None and not hasattr(client, "submit"):
        raise TypeError(f"client={client!r} must be a dask.distributed.Client")
    n_jobs = check_n_jobs(n_jobs, client)
    check_memory(max_memory)
    progress_bar = check_flag("progress_bar", progress_bar)
    averages = check_averages(min_purity, align)
    made_with: dict[str, Any] = {
        "overlap": check_overlap(overlap, options, averages),
        "filter": check_filter(filter),
        "cluster": check_cluster_options(options),
        "averages": averages,
        "image_mask": image_mask,
    }
    settings = {
        **made_with,
        "time_units": time_units,
        "drift": "given" if drift_is_given else str(drift),
    }
    with only_one_writer(path) as folder:
        if not resume:
            remove_series(path, overwrite)
        stored = read_series(path)
        check_resume(path, stored.settings, made_with)
        in_order = time_of.are_listed or drift_is_given
        to_do = FramesToDo(frames, load, time_of, in_order, stored.infos)
        what = Options(
            **made_with, n_jobs=n_jobs, max_memory=max_memory, folder=str(folder.resolve())
        )
        work = partial(cluster_frame, options=what, record=on_error == "record")
        store = partial(save_frame, folder, settings=settings)
        cluster_all = cluster_here if client is None else partial(_cluster_on_workers, client)
        bar = emdfile.tqdmnd(
            n_frames or 0, desc="Clustering", unit="frames", disable=not progress_bar
        )
        fits = any(not info.error for info in stored.infos.values())
        new = {}
        with closing(bar), closing(cluster_all(iter(to_do), work, store, fits)) as results:
            for info, file in results:
                new[info.frame] = info, file
                bar.update(to_do.n_done + len(new) - bar.n)
            bar.update(to_do.n_done + len(new) - bar.n)
        stored = stored.with_frames(new)
        if not stored.infos:
            raise ValueError("frames yielded no scan, so there is no series")
        _finish(path, stored, settings, to_do.times, drift)
        shutil.rmtree(folder, ignore_errors=True)
    series = open_series(path)
    if len(series.errors) == len(series):
        frame, error = next(iter(series.errors.items()))
        who = f"all {len(series)} frames" if len(series) > 1 else "the only frame"
        warn_user(f"{who} failed, see series.errors; frame {frame}: {error}")
    return series


def _finish(
    path: Path,
    stored: StoredSeries,
    settings: Mapping[str, Any],
    times: Mapping[int, float],
    drift: NDArray[np.float64] | Literal["auto"] | None,
) -> None:
    """Copy all frames into one file, unless that file is already up to date."""
    n_frames = len(stored.infos)
    if drift is None:
        drift = np.zeros((n_frames, 2))
    elif not isinstance(drift, str) and len(drift) != n_frames:
        raise ValueError(
            f"drift of shape {drift.shape} must hold two numbers for each of the {n_frames} "
            "frames; all of them are done, so the same call with another drift takes no time"
        )
    is_complete = set(stored.places.values()) == {path}
    was = stored.settings[0] if is_complete else {}
    same_times = was.get("time_units") == settings["time_units"] and all(
        times.get(frame, info.time) == info.time for frame, info in stored.infos.items()
    )
    if stored.drift is None:
        same_drift = False
    elif isinstance(drift, str):
        # The drift of the same images is not measured again.
        same_drift = was.get("drift") == drift
    else:
        same_drift = np.array_equal(stored.drift, drift)
    if not (is_complete and same_times and same_drift):
        assemble(path, stored, settings, times, None if isinstance(drift, str) else drift)


# --- where frames are clustered ------------------------------------------------------------------


def _cluster_on_workers(
    client: Any,
    frames: Iterator[Frame],
    work: partial[FrameResult],
    store: Callable[[FrameResult], Path],
    fits: bool,
) -> Generator[Stored, None, None]:
    """Cluster frames on dask workers; results come in any order. For `fits` see `cluster_here`."""
    from distributed import wait

    pending: dict[Any, Frame] = {}
    try:
        while True:
            _submit(client, frames, work, pending)
            if not pending:
                return
            finished, _ = wait(list(pending), return_when="FIRST_COMPLETED")
            for future in finished:
                frame = pending.pop(future)
                try:
                    result = future.result()
                    fits = True
                except Exception as error:  # a wrong mask, or workers died several times
                    wrong = isinstance(error, WrongMask) and not fits
                    if wrong or not work.keywords["record"]:
                        raise
                    result = FrameResult(info_of_failed(frame, error))
                future.release()
                found = result.info, store(result)
                del result  # before the next scan is opened
                yield found
    finally:
        if pending:
            client.cancel(list(pending))


def _submit(
    client: Any, frames: Iterator[Frame], work: partial[FrameResult], pending: dict[Any, Frame]
) -> None:
    """Send frames until each worker has enough; `pending` holds the frames that were sent."""
    while len(pending) < _FRAMES_A_WORKER * max(1, len(client.nthreads())):
        frame = next(frames, None)
        if frame is None:
            return
        name = f"cluster_frame-{frame.number}-{uuid.uuid4().hex}"
        do = _work_with_client if _is_persisted(frame) else _work_without_dask_threads
        future = client.submit(do, work, frame, key=name)
        pending[future] = frame._replace(open=_sent)  # the scan itself is not kept here
        del frame


def _sent() -> Any:
    """Placeholder for `Frame.open` after the frame was sent to a worker."""
    raise RuntimeError("this frame was sent to a worker")


def _is_persisted(frame: Frame) -> bool:
    """Whether the data of a frame are in the memory of dask workers."""
    from distributed import futures_of

    item: Any = frame.open
    while isinstance(item, partial) and item.args:
        item = item.args[0]
    data = item if hasattr(item, "__dask_graph__") else getattr(item, "data", None)
    return hasattr(data, "__dask_graph__") and bool(futures_of(data))


def _work_with_client(work: Callable[[Frame], FrameResult], frame: Frame) -> FrameResult:
    """Cluster a frame on a worker, with data that other workers may hold."""
    import dask
    from distributed import worker_client

    with worker_client() as client, dask.config.set(scheduler=client):
        return work(frame)


def _work_without_dask_threads(work: Callable[[Frame], FrameResult], frame: Frame) -> FrameResult:
    """Cluster a frame on a worker, without dask threads, which would cause a deadlock there."""
    import dask

    with dask.config.set(scheduler="synchronous"):
        return work(frame)
