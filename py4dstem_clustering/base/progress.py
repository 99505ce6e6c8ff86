"""The progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import emdfile


@contextmanager
def progress(
    total: int, what: str, progress_bar: bool, unit: str = "rows"
) -> Iterator[Callable[[int], Any]]:
    """Show py4DSTEM's progress bar; yields a function that takes how many units were just done."""
    bar = emdfile.tqdmnd(total, desc=what, unit=unit, disable=not progress_bar)
    try:
        yield bar.update
    finally:
        bar.close()
