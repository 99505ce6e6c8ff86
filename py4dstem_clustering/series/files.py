"""How a series is stored: one EMD file, and a journal beside it while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import emdfile
import h5py
import numpy as np
from numpy.typing import NDArray

from ..emd import nodes, untrusted, writing
from ..emd.settings import Settings, add_settings, read_settings
from ..grains.clusters import Clusters

SERIES_KIND = "series"

FAILED = "failed_frame"

ROOT = "series"


class FrameInfo(NamedTuple):
    """What is known of a frame besides its clusters."""

    frame: int
    source: str
    """Name of its file, or "item 3" for what was no file."""
    size: int
    """Bytes of the file; 0 for what was no file."""
    fingerprint: str
    """See `reading.fingerprint`; empty where the frame could not be opened."""
    time: float
    error: str
    """Why there are no clusters; empty where there are."""
    n_clusters: int


class FrameResult(NamedTuple):
    """A frame that is done."""

    info: FrameInfo
    clusters: Clusters | None = None
    averages: NDArray[Any] | None = None
    """(N, Qx, Qy)"""
    image: NDArray[Any] | None = None
    """Virtual image (Rx, Ry)."""
    calibration: Mapping[str, Any] | None = None
    """Of the averages."""


def frame_name(frame: int) -> str:
    """Name of a frame in a file."""
    return f"frame_{frame:06d}"


def journal_of(path: Path) -> Path:
    """Folder that holds the frames of a series until all are done."""
    return path.with_name(path.name + ".frames")


# --- files ---------------------------------------------------------------------------------------


def series_root(options: Mapping[str, Any]) -> emdfile.Root:
    """The root of a file of a series, or of one of its frames."""
    root = emdfile.Root(ROOT)
    nodes.tag(root, SERIES_KIND)
    add_settings(root, options)
    return root


def save_frame(folder: Path, result: FrameResult, options: Mapping[str, Any]) -> None:
    """Write a frame to a file of its own, complete or absent."""
    info = result.info
    root = series_root(options)
    n_bytes = 2**20
    if result.clusters is None:
        node = emdfile.Node(frame_name(info.frame))
        nodes.tag(node, FAILED)
    else:
        node = result.clusters.to_node(result.averages)
        node.metadata["arrays"]["image"] = result.image
        node.metadata = emdfile.Metadata("averages_calibration", dict(result.calibration))
        n_bytes += sum(
            array.nbytes for array in (node.metadata["arrays"]._params | {"": node.data}).values()
        )
    node.metadata = emdfile.Metadata("frame", info._asdict())
    root.force_add_to_tree(node)
    writing.save_new(folder / f"{node.name}.h5", root, n_bytes)


def frame_files(path: Path) -> dict[int, Path]:
    """The file that holds each frame of a series that is done."""
    found = {}
    if path.is_file():
        try:
            with untrusted.open_file(path) as file:
                names = list(untrusted.check_stored(file, f"{ROOT}/metadatabundle").parent)
        except (OSError, ValueError) as error:
            raise ValueError(f"{no_series(path)} ({error})") from error
        found = {_number(name): path for name in names if _number(name) is not None}
    for file in journal_of(path).glob("frame_*.h5"):  # newer than what the file holds
        number = _number(file.stem)
        if number is not None and _is_whole(file, number):
            found[number] = file
    return dict(sorted(found.items()))


def _is_whole(path: Path, number: int) -> bool:
    """Whether the file of one frame can be read; what a disk lost is done again."""
    try:
        read_info(path, [number])
    except (OSError, ValueError):
        return False
    return True


def no_series(path: Path) -> str:
    return f"{path} holds no series of {nodes.TAG}; make one with cluster_series(..., out=...)"


def _number(name: str) -> int | None:
    digits = name.removeprefix("frame_")
    plain = digits.isascii() and digits.isdecimal()
    return int(digits) if digits != name and len(digits) == 6 and plain else None


def read_info(path: Path, frames: list[int]) -> dict[int, FrameInfo]:
    """What is known of some frames in one file."""
    found = {}
    with untrusted.open_file(path) as file:
        for frame in frames:
            group = untrusted.check_stored(file, f"{ROOT}/{frame_name(frame)}/metadatabundle/frame")
            found[frame] = _info(frame, emdfile.Metadata.from_h5(group)._params)
    return found


def read_infos(places: Mapping[int, Path]) -> dict[int, FrameInfo]:
    """What is known of frames, each in the file that holds it; every file is opened once."""
    by_file: dict[Path, list[int]] = {}
    for frame, place in places.items():
        by_file.setdefault(place, []).append(frame)
    found = {}
    for place, frames in by_file.items():
        found |= read_info(place, frames)
    return found


_KINDS = {"frame": int, "size": int, "time": float, "n_clusters": int}


def _info(frame: int, params: Mapping[str, Any]) -> FrameInfo:
    """What a file knows of a frame, when it can be true."""
    for key in FrameInfo._fields:
        value, kind = params.get(key), _KINDS.get(key, str)
        good = isinstance(value, kind) and not isinstance(value, bool)
        if kind is not str:
            good = good and np.isfinite(value) and (kind is float or value >= 0)
        if not good or (key == "frame" and value != frame):
            raise ValueError(
                f"{frame_name(frame)} is damaged: its {key} is {nodes.in_one_line(value)}; copy its file "
                "again"
            )
    return FrameInfo(**{key: params[key] for key in FrameInfo._fields})


def read_options(path: Path) -> Settings:
    """The options that made the frames in a file."""
    return read_settings(root_of(path))


def root_of(path: Path) -> emdfile.Node:
    try:
        with untrusted.open_file(path) as file:
            untrusted.check_stored(file, f"{ROOT}/metadatabundle")
            root = emdfile.Root.from_h5(file[ROOT])
            if nodes.kind_of(root) == SERIES_KIND:
                nodes.check_kind(
                    root, SERIES_KIND, "a series", "one with cluster_series(..., out=...)"
                )
                read_settings(root)
                return root
    except (OSError, ValueError) as error:
        raise ValueError(f"{no_series(path)} ({error})") from error
    raise ValueError(no_series(path))


def assemble(
    path: Path, options: Mapping[str, Any], times: Mapping[int, float], drift: NDArray[Any]
) -> None:
    """Put all frames that are done into one file, complete or absent; one is in memory at a time.

    `times` replaces those that were written, where they are given.
    """
    places = frame_files(path)
    root = series_root(options)
    root.metadata = emdfile.Metadata("drift", {"drift": drift})
    writing.check_room(path, 2 * sum(place.stat().st_size for place in set(places.values())))
    with writing.new_file(path, root) as (target, check):
        for frame, place in places.items():
            name = f"{ROOT}/{frame_name(frame)}"
            with h5py.File(place, "r") as source:
                source.copy(name, target[ROOT])
            if frame in times:
                target[f"{name}/metadatabundle/frame/time"][()] = times[frame]
            target.flush()
            check()
