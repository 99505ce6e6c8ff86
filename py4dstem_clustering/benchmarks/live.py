"""Benchmark: can clustering keep up with a camera?

A thread plays the camera. It writes the chunk files of one scan after the other into a folder, byte
by byte at the pace of the recording. `watch_folder` and `cluster_series` follow, as at a
microscope.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import h5py
import numpy as np

from ..base.checks import check_compression, check_integer, check_number
from ..scan.opening import open_scan
from ..scan.watching import watch_folder
from ..series.files import frame_name, journal_of
from ..series.run import cluster_series
from .memory import pieces_of_scan

_CHUNK_FILES = 4
"""Chunk files of a scan."""

_PAUSE = 0.05
"""Seconds between two pieces that the camera writes. It must be shorter than `settle`."""

_LOOK = 0.01
"""Seconds between two looks for frames that are done."""


class Row(NamedTuple):
    """One frame; times are seconds since the camera started."""

    frame: int
    recorded: float
    """When the last byte of the frame was written."""
    done: float
    """When the clusters of the frame were on disk."""

    @property
    def behind(self) -> float:
        """Seconds from the last byte to the clusters."""
        return self.done - self.recorded


class Recorded(NamedTuple):
    """The files of one scan, as a detector of Dectris writes them."""

    chunks: list[Path]
    is_packed: bool
    """Whether patterns are compressed by bitshuffle/LZ4; that needs the package hdf5plugin."""

    @property
    def n_bytes(self) -> int:
        """Bytes of the chunk files."""
        return sum(path.stat().st_size for path in self.chunks)


def record(folder: Path, scan: tuple[int, int], detector: tuple[int, int]) -> Recorded:
    """Write the chunk files of a scan, one pattern a chunk."""
    try:
        options = check_compression("bitshuffle")
    except ValueError:  # without hdf5plugin
        options = {}
    n_frames = scan[0] * scan[1]
    step = -(-n_frames // _CHUNK_FILES)
    starts = range(0, n_frames, step)
    paths = [folder / f"data_{number:06d}.h5" for number in range(1, len(starts) + 1)]
    files = [h5py.File(path, "w") for path in paths]
    try:
        parts = [
            file.create_dataset(
                "entry/data/data",
                (min(step, n_frames - start), *detector),
                np.uint16,
                chunks=(1, *detector),
                **options,
            )
            for file, start in zip(files, starts, strict=True)
        ]
        for row, column, piece in pieces_of_scan(scan, detector):
            first = row * scan[1] + column
            for i, pattern in enumerate(piece, first):
                parts[i // step][i % step] = pattern
    finally:
        for file in files:
            file.close()
    return Recorded(paths, bool(options))


class Camera(threading.Thread):
    """Writes frame after frame into a folder, each in `frame_seconds`."""

    def __init__(
        self, recorded: Recorded, folder: Path, n_frames: int, frame_seconds: float
    ) -> None:
        super().__init__(daemon=True)
        self._recorded, self._folder = recorded, folder
        self._n_frames, self._frame_seconds = n_frames, frame_seconds
        self.stopped = threading.Event()
        self.error: BaseException | None = None
        self.start_time = 0.0
        """Time of `time.monotonic` when the first frame begins."""
        self.finished: list[float] = []
        """Time at which each frame was complete."""

    def run(self) -> None:
        """Record all frames; the files hold the same counts under other names."""
        self.start_time = time.monotonic()
        try:
            for frame in range(self._n_frames):
                self._record(f"scan_{frame:04d}", self.start_time + frame * self._frame_seconds)
                if self.stopped.is_set():
                    return
                self.finished.append(time.monotonic())
        except BaseException as error:
            self.error = error

    def _record(self, prefix: str, begin: float) -> None:
        with h5py.File(self._folder / f"{prefix}_master.h5", "w") as master:
            data = master.create_group("entry/data")
            for chunk in self._recorded.chunks:
                data[chunk.stem] = h5py.ExternalLink(f"{prefix}_{chunk.name}", "/entry/data/data")
        total, written = self._recorded.n_bytes, 0
        for chunk in self._recorded.chunks:
            size = chunk.stat().st_size
            with (
                chunk.open("rb") as source,
                (self._folder / f"{prefix}_{chunk.name}").open("wb") as target,
            ):
                at = 0
                while at < size:
                    self.stopped.wait(_PAUSE)
                    if self.stopped.is_set():
                        return
                    passed = (time.monotonic() - begin) / self._frame_seconds
                    due = min(size, int(passed * total) - written)
                    if due > at:
                        target.write(source.read(due - at))
                        target.flush()
                        at = due
            written += size


@contextmanager
def _finish_times(folder: Path) -> Iterator[dict[str, float]]:
    """Times at which the files of finished frames appeared in the folder of a series."""
    found: dict[str, float] = {}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK):
            if folder.is_dir():
                for file in folder.glob("frame_*.h5"):
                    found.setdefault(file.stem, time.monotonic())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def run_benchmark(
    scan: tuple[int, int],
    detector: tuple[int, int],
    *,
    n_frames: int,
    rate: float,
    settle: float,
    n_jobs: int | None = None,
    n_workers: int = 0,
) -> tuple[list[Row], Recorded]:
    """Record `n_frames` at `rate` patterns a second, cluster them meanwhile, and return all times.

    With `n_workers`, so many processes of a dask cluster on this machine share the frames.
    """
    for n in scan:
        check_integer("--scan", n, 4)
    for n in detector:
        check_integer("--detector", n, 32)
    check_integer("--frames", n_frames, 2)
    rate = check_number("--rate", rate, 1e-3)
    settle = check_number("--settle", settle, 2 * _PAUSE)
    check_integer("--workers", n_workers, 0)
    with TemporaryDirectory() as place, _client(n_workers) as client:
        folder, source = Path(place) / "microscope", Path(place) / "source"
        folder.mkdir()
        source.mkdir()
        recorded = record(source, scan, detector)
        frame_seconds = scan[0] * scan[1] / rate
        camera = Camera(recorded, folder, n_frames, frame_seconds)
        out = Path(place) / "series.h5"
        # The camera may not write for a whole pattern.
        frames = watch_folder(
            folder,
            "*_master.h5",
            settle=settle,
            poll=0.05,
            timeout=settle + max(10.0, 2 * frame_seconds),
        )
        camera.start()
        try:
            with _finish_times(journal_of(out)) as finished:
                cluster_series(
                    islice(frames, n_frames),  # the watch ends with them, not after its timeout
                    out=out,
                    load=partial(open_scan, scan_shape=scan),
                    on_error="raise",
                    client=client,
                    n_jobs=n_jobs,
                    progress_bar=False,
                )
                end = time.monotonic()
        finally:
            camera.stopped.set()
            camera.join()
        if camera.error is not None:
            raise camera.error
    rows = []
    for frame, recorded_at in enumerate(camera.finished):
        # The folder of the series may be gone before the last file in it was seen.
        done_at = finished.get(frame_name(frame), end)
        rows.append(Row(frame, recorded_at - camera.start_time, done_at - camera.start_time))
    return rows, recorded


def _client(n_workers: int) -> AbstractContextManager[Any]:
    """A dask client of processes on this machine; None without workers."""
    if not n_workers:
        return nullcontext()
    from distributed import Client

    client: AbstractContextManager[Any] = Client(
        n_workers=n_workers, threads_per_worker=1, dashboard_address=":0"
    )
    return client


def falls_behind(rows: list[Row]) -> float:
    """Seconds by which clustering falls further behind in each second of recording.

    It is the slope of a straight line through the delays of all frames.
    """
    recorded = np.array([row.recorded for row in rows])
    return float(np.polyfit(recorded - recorded.mean(), [row.behind for row in rows], 1)[0])


def table(rows: list[Row]) -> str:
    """Return times and delays of all frames."""
    lines = [f"{'frame':>5} {'recorded, s':>12} {'clustered, s':>13} {'behind, s':>10}"]
    lines += [
        f"{row.frame:>5} {row.recorded:>12.2f} {row.done:>13.2f} {row.behind:>10.2f}"
        for row in rows
    ]
    return "\n".join(lines)


def summary(rows: list[Row], positions: int) -> str:
    """Return what the delays say, in one sentence."""
    slope = falls_behind(rows)
    seconds = (rows[-1].done - rows[0].done) / (len(rows) - 1) / positions
    each = f"one pattern in {1e6 * seconds:.3g} microseconds"
    if slope > 0.02:
        return f"falls behind by {slope:.2f} s in each second of recording ({each})"
    return f"keeps up with the camera ({each}; falls behind by {max(slope, 0):.2f} s a second)"
