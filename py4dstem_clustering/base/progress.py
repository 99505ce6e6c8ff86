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
    """py4DSTEM's progress bar, as a function of how many were just done."""
    bar = emdfile.tqdmnd(total, desc=what, unit=unit, disable=not progress_bar)
    try:
        yield bar.update
    finally:
        bar.close()
