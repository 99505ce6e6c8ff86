"""A lock, so that only one process at a time writes a series."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from .files import journal_of

LOCK_NAME = "lock"
"""File in the folder of a series that is locked while a process writes the series."""


@contextmanager
def only_one_writer(path: Path) -> Iterator[Path]:
    """Make the folder for the frames of a series, and lock it for this process.

    The lock ends when the process ends, also after a crash. If the folder is empty afterwards, it
    is removed. If the file system cannot lock files, a warning is given.

    Yields
    ------
    Path
        The folder.

    Raises
    ------
    OSError
        If another process writes this series.
    """
    folder = journal_of(path)
    folder.mkdir(exist_ok=True)
    lock = folder / LOCK_NAME
    try:
        with lock.open("w") as file:
            if not _lock(file, path) or not lock.exists():  # the other process has just removed it
                raise OSError(f"another process is writing {path}; wait for it, or stop it")
            try:
                yield folder
            finally:
                _remove_if_empty(folder)
    finally:
        # Windows cannot remove an open file.
        if os.name == "nt":
            _remove_if_empty(folder)


def _lock(file: IO[str], path: Path) -> bool:
    """Lock an open file until it is closed; False where another process has locked it."""
    try:
        fcntl: Any = import_module("fcntl")
    except ImportError:
        return _lock_on_windows(file, path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some file servers do not support locks
        _warn_of_no_lock(path, str(error))
    return True


def _lock_on_windows(file: IO[str], path: Path) -> bool:
    try:
        msvcrt: Any = import_module("msvcrt")
    except ImportError:
        _warn_of_no_lock(path, "this Python has neither fcntl nor msvcrt")
        return True
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # the first byte; the file may be empty
    except OSError:
        return False
    return True


def _warn_of_no_lock(path: Path, reason: str) -> None:
    warnings.warn(
        f"{path} cannot be locked ({reason}): make sure that no other process writes it",
        stacklevel=6,
    )


def _remove_if_empty(folder: Path) -> None:
    """Remove a folder that holds nothing but the lock."""
    with suppress(OSError):
        if all(file.name == LOCK_NAME for file in folder.iterdir()):
            (folder / LOCK_NAME).unlink(missing_ok=True)
            folder.rmdir()
