"""Frames as a stream: the next frame of a series is read while one is clustered."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event

from ..kernels.blocks import Stopped, stop_with
from .files import FrameInfo, FrameResult
from .frames import Frame, WrongMask, info_of_failed

_FRAMES_AT_ONCE = 2
"""Frames in work at once. While one of them keeps a single core busy, the other one can use the
rest. A third one would take as much memory again."""

Stored = tuple[FrameInfo, Path]
"""Facts about a frame that is done, and its file."""


def cluster_here(
    frames: Iterator[Frame],
    work: partial[FrameResult],
    store: Callable[[FrameResult], Path],
    fits: bool,
) -> Generator[Stored, None, None]:
    """Cluster and store frames in this process, in order.

    Frames that lie in files are clustered two at a time, and stored while the next one is waited
    for. Other frames may be whole scans in memory: they are clustered one at a time, so that only
    one is held. So are all frames if errors are raised rather than recorded: then an error comes
    before the next frame is begun.

    `fits` says whether the masks fit an earlier frame. If they do not fit the first one, they are
    wrong, and that is an error even if frames that fail are recorded.
    """
    record = bool(work.keywords["record"])
    cancelled = Event()

    def store_wanted(result: FrameResult) -> Path:
        if cancelled.is_set():  # the result may be the record of `Stopped`
            raise Stopped
        return store(result)

    def do(frame: Frame) -> Stored:
        with stop_with(cancelled):
            return _store_one(frame, work, store_wanted)

    pending: deque[Future[Stored]] = deque()
    pool = ThreadPoolExecutor(_FRAMES_AT_ONCE)
    try:
        for frame in frames:
            if record and fits and frame.stamp:
                if len(pending) >= _FRAMES_AT_ONCE:
                    yield pending.popleft().result()
                pending.append(pool.submit(do, frame))
            else:
                while pending:
                    yield pending.popleft().result()
                found = _store_one(frame, work, store, fits=fits)
                fits = fits or not found[0].error
                yield found
            del frame
        while pending:
            yield pending.popleft().result()
    except Exception:
        pool.shutdown()  # the frames that were given are kept
        raise
    finally:
        cancelled.set()
        pool.shutdown(cancel_futures=True)


def _store_one(
    frame: Frame,
    work: partial[FrameResult],
    store: Callable[[FrameResult], Path],
    fits: bool = True,
) -> Stored:
    try:
        result = work(frame)
    except WrongMask as error:
        if not (work.keywords["record"] and fits):
            raise
        result = FrameResult(info_of_failed(frame, error))
    # Free the memory before the next frame is opened. A DataCube and its tree refer to each
    # other (emdfile 0.0.16).
    del frame
    gc.collect()
    return result.info, store(result)
