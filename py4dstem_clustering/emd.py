"""Results as stock EMD objects, and files that are complete or absent.

Only classes of emdfile and py4DSTEM are written, so that every file opens where this package is
missing. What makes a node ours is a Metadata called `TAG`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import emdfile
import h5py
import numpy as np

TAG = "py4dstem_clustering"
FORMAT = 1


# --- settings --------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """A value as plain Python: numpy scalars and lists undone, arrays copied and read-only."""
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.flags.writeable = False
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item) for item in value)
    return value


class Settings(Mapping):
    """A read-only copy of settings, as plain Python and read-only arrays; can be pickled."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._items = {key: _plain(value) for key, value in settings.items()}

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(self._items)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._items,)


def add_settings(node: emdfile.Node, settings: Mapping[str, Any], name: str = "settings") -> None:
    """Keep settings with a node."""
    node.metadata = emdfile.Metadata(name, dict(settings))


def read_settings(node: emdfile.Node, name: str = "settings") -> Settings:
    """Settings kept with a node; empty where there are none."""
    metadata = node.metadata.get(name)
    return Settings({} if metadata is None else metadata._params)


# --- nodes -----------------------------------------------------------------------------------


def tag(node: emdfile.Node, kind: str) -> None:
    """Mark a node as ours: what it is, in which format, made when."""
    node.metadata = emdfile.Metadata(
        TAG,
        {
            "kind": kind,
            "format": FORMAT,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        },
    )


def kind_of(node: Any) -> str | None:
    """What one of our nodes is; None for any other object."""
    metadata = getattr(node, "metadata", {}).get(TAG)
    return None if metadata is None else metadata._params.get("kind")


def check_kind(node: Any, kind: str, what: str, remedy: str) -> None:
    """One of our nodes of one kind, `what` in words; `remedy` says what to make, and how."""
    if kind_of(node) != kind:
        name = getattr(node, "name", node)
        raise ValueError(f"{name!r} holds no {what} of {TAG}; make {remedy}")


def children(parent: emdfile.Node, kind: str) -> dict[str, emdfile.Node]:
    """Our nodes of one kind right under `parent`, from the oldest to the newest."""
    nodes = {name: parent.tree(name) for name in parent.treekeys}
    ours = {name: node for name, node in nodes.items() if kind_of(node) == kind}
    return dict(sorted(ours.items(), key=lambda item: _sequence(item[1])))


def _sequence(node: emdfile.Node) -> int:
    return node.metadata[TAG]._params.get("sequence", 0)


def check_free(parent: emdfile.Node, name: str, kind: str) -> None:
    """A name that is free under `parent`, or taken by a node of the same kind.

    emdfile lets nodes of one name replace each other silently (seen in 0.0.16).
    """
    if name in parent.treekeys and kind_of(parent.tree(name)) != kind:
        raise ValueError(
            f"name={name!r} is taken in the tree of {parent.name!r} by a "
            f"{type(parent.tree(name)).__name__}; give another name"
        )


def put(parent: emdfile.Node, node: emdfile.Node) -> None:
    """Add one of our nodes to a tree as the newest of its kind, in place of one of its name."""
    kind = kind_of(node)
    check_free(parent, node.name, kind)
    newest = max(map(_sequence, children(parent, kind).values()), default=0)
    # HDF5 lists names in alphabetical order, so the order of making is kept as a number.
    node.metadata[TAG]["sequence"] = newest + 1
    parent.force_add_to_tree(node)


def scan_step(node: emdfile.Node) -> tuple[float, str]:
    """Distance of scan positions and its unit, from the calibration of a node's tree."""
    calibration = node.root.metadata.get("calibration")  # some files have none
    if calibration is None:
        return 1.0, "pixels"
    return float(calibration.get_R_pixel_size()), str(calibration.get_R_pixel_units())


# --- files -----------------------------------------------------------------------------------


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """A file name to write to; what was written moves to `path` when all went well.

    The other name lies in the same folder and ends in ``.partial``. It is removed on an error; a
    killed process leaves it behind, never a half-written `path`.
    """
    path = path.resolve()  # through a link to the file itself
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)  # mkstemp makes it private
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save_new(path: Path, data: Any) -> None:
    """`py4DSTEM.save`, complete or absent: emdfile writes in place (0.0.16)."""
    import py4DSTEM

    with complete_or_absent(path) as partial:
        py4DSTEM.save(str(partial), data, mode="o")


@contextmanager
def scan_writer(path: Path, skeleton: Any, shape: tuple[int, ...]) -> Iterator[h5py.Dataset]:
    """An EMD file with a float32 scan to be filled block by block.

    Parameters
    ----------
    path : where the finished file will be.
    skeleton : DataCube of at most 2 x 2 x 2 x 2, with the calibration and metadata to write.
        emdfile stores an evenly spaced axis as its first two coordinates, so those of the skeleton
        serve for a scan of any size; its data are replaced.
    shape : (Rx, Ry, Qx, Qy)

    Yields
    ------
    h5py dataset, chunked by diffraction pattern; chunks of at least 64 kB.
    """
    import py4DSTEM

    per_chunk = int(np.clip(2**16 // (4 * shape[2] * shape[3]), 1, shape[1]))
    with complete_or_absent(path) as partial:
        py4DSTEM.save(str(partial), skeleton, mode="o")
        with h5py.File(partial, "r+") as file:
            group = file[f"{skeleton.root.name}/{skeleton.name}"]
            units = group["data"].attrs["units"]
            del group["data"]
            dataset = group.create_dataset(
                "data", shape, dtype=np.float32, chunks=(1, per_chunk, *shape[2:])
            )
            dataset.attrs["units"] = units
            yield dataset


def open_dataset(path: Path, root: str, name: str) -> h5py.Dataset:
    """The data of an array in an EMD file, left on disk."""
    return h5py.File(path, "r")[f"{root}/{name}/data"]
