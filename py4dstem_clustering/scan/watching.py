"""Wait for the files of a running experiment."""

from __future__ import annotations

import time
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from ..base.checks import check_number


def watch_folder(
    path: str | PathLike[str],
    pattern: str = "*.h5",
    *,
    settle: float = 5.0,
    poll: float = 1.0,
    timeout: float | None = None,
) -> Iterator[Path]:
    """Wait for the files of a running experiment, and yield each one when it is complete.

    Files that exist already come first. Files come in the order in which they were last written.

    Parameters
    ----------
    path : path
        Folder, which must exist.
    pattern : str
        Names that count, as in a shell: ``"*_master.h5"``, ``"frame_*.npy"``. It must leave out
        files of results.
    settle : float
        Seconds without change after which a file is complete. Changes of files whose names begin
        with the name of this file count too, so that a ``*_master.h5`` waits for its
        ``*_data_*.h5``. Choose it longer than the pauses of the detector while it writes.
    poll : float
        Seconds between two looks into the folder.
    timeout : float, optional
        Seconds without a new or changed file after which the iteration ends, at least `settle`. By
        default it goes on until Ctrl-C.

    Yields
    ------
    Path
        Each file once.

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong. The error comes at the call, not with the first file.

    Examples
    --------
    Cluster each scan while the next one is recorded::

        frames = watch_folder("/data/today", "*_master.h5", timeout=600)
        series = cluster_series(frames, out="today.h5")
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{str(path)!r} is not a folder; make it before the experiment starts")
    if not isinstance(pattern, str):
        raise TypeError(f"pattern={pattern!r} must be a text such as '*.h5'")
    if not pattern or "/" in pattern:
        raise ValueError(f"pattern={pattern!r} must match names in the folder, without '/'")
    settle = check_number("settle", settle, 0)
    poll = check_number("poll", poll, 0)
    if timeout is not None:
        timeout = check_number("timeout", timeout, settle)
    return _watch(folder, pattern, settle, poll, timeout)


def _watch(
    folder: Path, pattern: str, settle: float, poll: float, timeout: float | None
) -> Iterator[Path]:
    yielded: set[str] = set()
    # State of each file, and the time at which this state was first seen. The time is of this
    # machine, because the clock of a file server may differ.
    seen: dict[str, tuple[Any, float]] = {}
    changed = time.monotonic()
    while True:
        now = time.monotonic()
        sizes = {}
        for file in folder.iterdir():
            try:
                found = file.stat()
            except OSError:  # the file was removed meanwhile
                continue
            sizes[file.name] = found.st_mtime_ns, found.st_size
        ready = []
        for file in folder.glob(pattern):
            if file.name in yielded or file.name.startswith(".") or file.name not in sizes:
                continue
            stem = file.stem.removesuffix("_master")
            state = sorted((name, *sizes[name]) for name in sizes if name.startswith(stem))
            if file.name not in seen or seen[file.name][0] != state:
                seen[file.name] = state, now
                changed = now
            if now - seen[file.name][1] >= settle and sizes[file.name][1] > 0 and file.is_file():
                ready.append((sizes[file.name], file))
        for _, file in sorted(ready):
            yielded.add(file.name)
            yield file
        if ready:  # the caller took time to work on them
            changed = time.monotonic()
            continue
        if timeout is not None and now - changed >= timeout:
            return
        time.sleep(poll)
