"""What the user sees while methods run: the progress bar and warnings."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import emdfile

from ..kernels.blas import remedy_for_slow_blas


def progress(
    total: int, what: str, progress_bar: bool, unit: str = "rows"
) -> AbstractContextManager[Callable[[int], Any]]:
    """Show py4DSTEM's progress bar; yields a function that takes how many units were just done.

    All that takes long begins here, so this is where a slow BLAS is reported.
    """
    _warn_of_slow_blas()
    return _bar(total, what, progress_bar, unit)


@contextmanager
def _bar(total: int, what: str, progress_bar: bool, unit: str) -> Iterator[Callable[[int], Any]]:
    bar = emdfile.tqdmnd(total, desc=what, unit=unit, disable=not progress_bar)
    try:
        yield bar.update
    finally:
        bar.close()


def warn_user(text: str) -> None:
    """Warn at the line outside this package that called it, where the user can do something."""
    package = __name__.partition(".")[0]
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(package):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, UserWarning, stacklevel=level)


@cache
def _warn_of_slow_blas() -> None:
    """Say once in a process that matrix products are slow, and what helps."""
    text = remedy_for_slow_blas()
    if text:
        warn_user(text)
