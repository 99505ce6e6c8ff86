"""What a reader finds in a file, before any pattern is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_data
from .axes import Axes
from .pieces import LibraryFrames, Piece


class Found(NamedTuple):
    """A scan in a file."""

    pieces: Sequence[Piece | LibraryFrames]
    reader: str
    """The program that reads it, for the metadata."""
    scan: tuple[int, int] | None = None
    """Rows and columns that the file states, with flyback."""
    axes: Axes | None = None
    """None if `cube` has the calibration, or the file has no place for axes."""
    facts: dict[str, Any] = {}  # noqa: RUF012
    """Further values of the file, for the metadata."""
    cube: Any = None
    """A DataCube in its tree, with calibration; its data are replaced."""
    mask: NDArray[Any] | None = None
    """The pixel mask of a detector of Dectris."""
    is_dectris: bool = False
    square: bool = False
    """Whether a scan of unknown shape is taken for a square, as the detector's programs do."""
    in_memory: bool = False
    notes: tuple[str, ...] = ()


def as_stack(data: Any) -> Any:
    """An array of 2 to 4 axes as frames (n, Qx, Qy)."""
    return data.reshape(-1, *data.shape[-2:])


def library_frames(path: Path, name: str, open_frames: Any) -> LibraryFrames:
    """The frames that `open_frames` returns; they must hold a scan."""
    frames = open_frames()
    try:
        check_data(_Shape((1, *map(int, frames.shape))[-4:], frames.dtype))
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path} holds no scan: {error}") from error
    shape = tuple(map(int, frames.shape))
    of_scan = len(shape) == 4
    rows = max(frames.chunks[0]) if of_scan and hasattr(frames, "dask") else 1
    n_frames = shape[0] * shape[1] if of_scan else shape[0]
    return LibraryFrames(
        path,
        name,
        (n_frames, *shape[-2:]),
        frames.dtype.newbyteorder("="),
        open_frames,
        int(rows),
    )


def frames_in_memory(path: Path, data: Any) -> LibraryFrames:
    """Frames that a reader has read into memory."""
    return library_frames(path, "memory", partial(as_stack, data))


@dataclass(frozen=True)
class _Shape:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def choose(path: Path, shapes: Iterable[tuple[str, tuple[int, ...]]], dataset: str | None) -> str:
    """The name of the dataset to open: `dataset`, or the only scan of a file.

    `shapes` are the names and shapes of the datasets with 3 or 4 axes. Stacks of frames count only
    in files without scans.
    """
    found = dict(shapes)
    listed = ", ".join(f"{name!r} {shape}" for name, shape in found.items())
    if dataset is not None:
        if dataset in found:
            return dataset
        listed = f"it has {listed}" if found else "it has none with 3 or 4 axes"
        raise ValueError(f"{path} holds no dataset {dataset!r}; {listed:.1000}")
    for n_axes in (4, 3):
        names = [name for name, shape in found.items() if len(shape) == n_axes]
        if len(names) == 1:
            return names[0]
        if names:
            raise ValueError(
                f"{path} holds {len(names)} scans; name one with dataset: {listed:.1000}"
            )
    raise ValueError(f"{path} holds no scan: no dataset of it has 3 or 4 axes")
