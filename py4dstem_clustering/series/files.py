"""How a series is stored: in one EMD file, and frame by frame in a folder beside it while it runs.

A frame is written to a file of its own in that folder as soon as it is done. When all are done,
they are copied into one file, and the folder is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import emdfile
import h5py
import numpy as np
from numpy.typing import NDArray

from ..emd import nodes, untrusted, writing
from ..emd.settings import Settings, add_settings, read_settings
from ..grains.clusters import Clusters
from ..grains.overlaps import OverlappingGrains
from ..scan.calibration import copy_calibration, count_patterns, step_of
from .motion import find_drift

SERIES_KIND = "series"
"""Kind of the root of a file of a series, see `nodes.tag`."""

FAILED_FRAME_KIND = "failed_frame"
"""Kind of the node of a frame that has no clusters because it failed."""

ROOT = "series"
"""Name of the root of a file of a series."""


class FrameInfo(NamedTuple):
    """Facts about a frame that are stored beside its clusters."""

    frame: int
    source: str
    """Name of the file of the scan, or "item 3" if the scan did not come from a file."""
    size: int
    """Size of that file in bytes; 0 if the scan did not come from a file."""
    fingerprint: str
    """See `scan.datacubes.fingerprint`; empty if the scan could not be opened."""
    time: float
    error: str
    """Why the frame failed; empty if it did not fail."""
    n_clusters: int
    stamp: str = ""
    """Hash of names, sizes and times of the files of the scan; empty if it did not come from a
    file, or if the series is of an older version."""


class FrameResult(NamedTuple):
    """A frame that is done, with or without success."""

    info: FrameInfo
    clusters: Clusters | OverlappingGrains | None = None
    averages: NDArray[Any] | None = None
    """Mean patterns (N, Qx, Qy)."""
    image: NDArray[np.float32] | None = None
    """Virtual image (Rx, Ry)."""
    calibration: Mapping[str, Any] | None = None
    """Calibration of the averages."""


class StoredSeries(NamedTuple):
    """All that is stored for a series, except the clusters."""

    infos: dict[int, FrameInfo]
    """Facts about each frame, by its number, in rising order."""
    places: dict[int, Path]
    """The file that holds each frame."""
    settings: list[Settings]
    """Options of the frames in the file of the series, and of those in the folder, if any."""
    drift: NDArray[np.float64] | None
    """Drift (T, 2); None if the file holds no drift, or the drift of other frames."""
    lost: tuple[int, ...] = ()
    """Frames that the file of the series announces and that are not there."""

    def with_frames(self, new: Mapping[int, tuple[FrameInfo, Path]]) -> StoredSeries:
        """Return the series with frames that were added or replaced."""
        infos = self.infos | {frame: info for frame, (info, _) in new.items()}
        places = self.places | {frame: place for frame, (_, place) in new.items()}
        return self._replace(infos=dict(sorted(infos.items())), places=places)


def frame_name(frame: int) -> str:
    """Name of a frame in a file."""
    return f"frame_{frame:06d}"


def journal_of(path: Path) -> Path:
    """Folder that holds the frames of a series until all are done."""
    return path.with_name(path.name + ".frames")


def describe_missing_series(path: Path) -> str:
    """Error message for a file that does not hold a series."""
    return f"{path} holds no series of {nodes.TAG}; make one with cluster_series(..., out=...)"


# --- reading -------------------------------------------------------------------------------------


def read_series(path: Path) -> StoredSeries:
    """Read a stored series without its clusters; each file is opened once.

    A frame in the folder replaces the frame of the same number in the file of the series, because
    it is newer. A file in the folder that cannot be read is ignored, so its frame is done again.
    """
    infos: dict[int, FrameInfo] = {}
    places: dict[int, Path] = {}
    settings = []
    drift = None
    announced: set[int] = set()
    if path.is_file():
        with _open_series_file(path) as (file, root):
            numbers = [number for name in file[ROOT] if (number := _number_of(name)) is not None]
            infos = {number: _read_info(file, number) for number in numbers}
            places = dict.fromkeys(numbers, path)
            drift = _read_drift(root)
            announced = _read_numbers(root)
        settings.append(read_settings(root))
    root = None
    for place in sorted(journal_of(path).glob("frame_*.h5")):
        number = _number_of(place.stem)
        if number is None:
            continue
        with ExitStack() as stack:
            try:
                file = stack.enter_context(untrusted.open_file(place))
                with untrusted.name_in_errors(place):
                    infos[number] = _read_info(file, number)
            except (OSError, ValueError):
                continue
            places[number] = place
            if root is None:  # all frames in the folder have the same options
                root = _read_root(place, file)
                settings.append(read_settings(root))
    if drift is not None and len(drift) != len(infos):
        drift = None
    lost = tuple(sorted(announced - infos.keys()))
    return StoredSeries(dict(sorted(infos.items())), places, settings, drift, lost)


@contextmanager
def _open_series_file(path: Path) -> Iterator[tuple[h5py.File, emdfile.Root]]:
    """Open the file of a series and read its root; ValueError if it holds no series."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(untrusted.open_file(path))
        except (OSError, ValueError) as error:
            raise ValueError(f"{describe_missing_series(path)} ({error})") from error
        yield file, _read_root(path, file)


def _read_root(path: Path, file: h5py.File) -> emdfile.Root:
    try:
        with untrusted.name_in_errors(path):
            untrusted.check_stored(file, f"{ROOT}/metadatabundle")
            root = emdfile.Root.from_h5(file[ROOT])
            is_series = nodes.kind_of(root) == SERIES_KIND
            if is_series:
                nodes.check_kind(
                    root, SERIES_KIND, "a series", "one with cluster_series(..., out=...)"
                )
                read_settings(root)
    except (OSError, ValueError) as error:
        raise ValueError(f"{describe_missing_series(path)} ({error})") from error
    if not is_series:
        raise ValueError(describe_missing_series(path))
    return root


def _read_drift(root: emdfile.Root) -> NDArray[np.float64] | None:
    stored = root.metadata.get("drift")
    if stored is None:
        return None
    drift = stored._params.get("drift")
    return nodes.check_array(root, "drift", drift, (None, 2), nan=True)  # NaN: the frame failed


def _read_numbers(root: emdfile.Root) -> set[int]:
    """Numbers of the frames that were stored; files of older versions do not hold them."""
    stored = root.metadata.get("frames")
    if stored is None:
        return set()
    numbers = stored._params.get("frames")
    return set(nodes.check_array(root, "frames", numbers, (None,), "iu", 0).tolist())


def _number_of(name: str) -> int | None:
    """Number of the frame in a name made by `frame_name`; None for other names."""
    digits = name.removeprefix("frame_")
    plain = digits.isascii() and digits.isdecimal()
    return int(digits) if digits != name and len(digits) == 6 and plain else None


_INFO_TYPES = {"frame": int, "size": int, "time": float, "n_clusters": int}
"""Types of the fields of `FrameInfo`; the others are texts."""


def _read_info(file: h5py.File, frame: int) -> FrameInfo:
    """Read the facts about a frame from a file; ValueError if one of them cannot be true."""
    group = untrusted.check_stored(file, f"{ROOT}/{frame_name(frame)}/metadatabundle/frame")
    params = emdfile.Metadata.from_h5(group)._params
    for key in FrameInfo._fields:
        default = FrameInfo._field_defaults.get(key)
        value, kind = params.setdefault(key, default), _INFO_TYPES.get(key, str)
        good = isinstance(value, kind) and not isinstance(value, bool)
        if good and kind is not str:
            good = np.isfinite(value) and (kind is float or value >= 0)
        if not good or (key == "frame" and value != frame):
            raise ValueError(
                f"{frame_name(frame)} is damaged: its {key} is {nodes.in_one_line(value)}; copy "
                "its file again"
            )
    return FrameInfo(**{key: params[key] for key in FrameInfo._fields})


def read_node(file: h5py.File, info: FrameInfo) -> emdfile.Node:
    """Node of a frame that did not fail, with labels, averages, virtual image and calibration."""
    from py4DSTEM import RealSlice

    group = untrusted.check_stored(file, f"{ROOT}/{frame_name(info.frame)}")
    if group.attrs.get("python_class") != "RealSlice":
        raise ValueError(f"{frame_name(info.frame)} holds no clusters; do it again")
    node = RealSlice.from_h5(group)
    # `Clusters.from_node` does not check the following.
    arrays = nodes.read_arrays(node)
    labels = nodes.check_array(node, "labels", node.data, (None, None), "iu")
    image = nodes.check_array(node, "image", arrays.get("image"), labels.shape, nan=True)
    if image.dtype != np.float32:
        raise nodes.damaged(node, f"its image is {image.dtype} and must be float32")
    if info.n_clusters:
        shape = (info.n_clusters, None, None)
        nodes.check_array(node, "averages", arrays.get("averages"), shape, nan=True)
    if labels.max(initial=-1) + 1 != info.n_clusters:
        raise nodes.damaged(node, f"its labels are not those of {info.n_clusters} clusters")
    step_of(node, calibration_of_averages(node))
    return node


def calibration_of_averages(node: emdfile.Node) -> Any:
    """The calibration of the averages of a frame."""
    calibration = copy_calibration()
    if node.metadata.get("averages_calibration") is None:
        raise nodes.damaged(node, "it holds no calibration of its averages")
    calibration._params.update(read_settings(node, "averages_calibration"))
    count_patterns(calibration)  # files of older versions hold a step
    return calibration


# --- writing -------------------------------------------------------------------------------------


def _new_root(settings: Mapping[str, Any]) -> emdfile.Root:
    """The root of a file of a series, or of one of its frames."""
    root = emdfile.Root(ROOT)
    nodes.tag(root, SERIES_KIND)
    add_settings(root, settings)
    return root


def save_frame(folder: Path, result: FrameResult, settings: Mapping[str, Any]) -> Path:
    """Write a frame to its own file; if writing fails, no file is left."""
    info = result.info
    root = _new_root(settings)
    n_bytes = 2**20
    if result.clusters is None:
        node = emdfile.Node(frame_name(info.frame))
        nodes.tag(node, FAILED_FRAME_KIND)
    else:
        node = result.clusters.to_node(result.averages)
        node.metadata["arrays"]["image"] = result.image
        node.metadata = emdfile.Metadata("averages_calibration", dict(result.calibration or {}))
        stored = (node.metadata.get(name) for name in ("arrays", "overlaps"))
        arrays = [array for part in stored if part is not None for array in part._params.values()]
        n_bytes += node.data.nbytes + sum(array.nbytes for array in arrays)
    node.metadata = emdfile.Metadata("frame", info._asdict())
    root.force_add_to_tree(node)
    path = folder / f"{node.name}.h5"
    writing.save_new(path, root, n_bytes)
    return path


def remove_series(path: Path, overwrite: bool) -> None:
    """Remove a stored series; without `overwrite`, a stored series is an error.

    A file that does not hold a series is never removed.
    """
    frames = list(journal_of(path).glob("frame_*.h5"))
    if path.is_file():
        with _open_series_file(path):
            frames.append(path)
    if frames and not overwrite:
        raise ValueError(
            f"out={str(path)!r} has frames already; resume=True goes on with them, "
            "overwrite=True removes them"
        )
    for file in frames:
        file.unlink()


def assemble(
    path: Path,
    stored: StoredSeries,
    settings: Mapping[str, Any],
    times: Mapping[int, float],
    drift: NDArray[np.float64] | None,
) -> None:
    """Copy all frames into one file; if this fails, no file is left.

    One frame is in memory at a time. `times` holds new times of some frames, by their number. If
    `drift` is None, it is measured from the virtual images while the frames are copied.
    """
    root = _new_root(settings)
    shown = np.zeros((len(stored.infos), 2)) if drift is None else drift
    root.metadata = emdfile.Metadata("drift", {"drift": shown})
    root.metadata = emdfile.Metadata("frames", {"frames": np.array(list(stored.infos))})
    writing.check_room(path, 2 * sum(file.stat().st_size for file in set(stored.places.values())))
    with writing.new_file(path, root) as (target, check):
        images = _copy_frames(stored, target, times, check)
        if drift is None:
            target[f"{ROOT}/metadatabundle/drift/drift"][...] = find_drift(images)
        else:
            for _ in images:
                pass


def _copy_frames(
    stored: StoredSeries,
    target: h5py.File,
    times: Mapping[int, float],
    check: Callable[[], None],
) -> Iterator[NDArray[np.float32] | None]:
    """Copy each frame and yield its virtual image, or None for a frame that failed."""
    for frame, info in stored.infos.items():
        name = f"{ROOT}/{frame_name(frame)}"
        with untrusted.open_file(stored.places[frame]) as source:
            untrusted.check_stored(source, name)
            image = None if info.error else read_node(source, info).metadata["arrays"]["image"]
            source.copy(name, target[ROOT])
        if frame in times:
            target[f"{name}/metadatabundle/frame/time"][()] = times[frame]
        target.flush()
        check()
        yield image
