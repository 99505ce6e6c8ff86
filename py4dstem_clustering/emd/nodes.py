"""Results as nodes of an EMD tree: tag them, check them, and put them into the tree."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import emdfile
import numpy as np
from numpy.typing import NDArray

from .._version import __version__

TAG = "py4dstem_clustering"

FORMAT = 1
"""Format of the nodes that are written. Older formats are read; newer ones raise an error."""


def now() -> str:
    """The time in UTC, as text."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def tag(node: emdfile.Node, kind: str) -> None:
    """Mark a node as one of this package: its kind, its format, the version and the time."""
    node.metadata = emdfile.Metadata(
        TAG,
        {
            "kind": kind,
            "format": FORMAT,
            "version": __version__,
            "created": now(),
        },
    )


def kind_of(node: Any) -> str | None:
    """Kind of a node of this package; None for any other object."""
    kind = _tagged(node).get("kind")
    return kind if isinstance(kind, str) else None


def _tagged(node: Any) -> Mapping[str, Any]:
    metadata = getattr(node, "metadata", None)
    ours = metadata.get(TAG) if isinstance(metadata, Mapping) else None
    return ours._params if isinstance(ours, emdfile.Metadata) else {}


def check_kind(node: Any, kind: str, what: str, remedy: str) -> None:
    """Raise an error unless a node is of this package, of `kind`, in a format that is known here.

    In the error, `what` names the kind in words, and `remedy` says how to make such a node.
    """
    if kind_of(node) != kind:
        name = getattr(node, "name", node)
        raise ValueError(f"{in_one_line(name)} holds no {what} of {TAG}; make {remedy}")
    tagged = _tagged(node)
    # A damaged file may hold an array or a number of another type.
    found = tagged.get("format")
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise damaged(node, f"its format is {in_one_line(found)} and must be a whole number from 1")
    if found > FORMAT:
        made_by = tagged.get("version")
        if not isinstance(made_by, str):
            settings = node.metadata.get("settings")
            made_by = getattr(settings, "_params", {}).get(f"{TAG}_version")
        by = f", made by {TAG} {made_by:.20}" if isinstance(made_by, str) else ""
        raise ValueError(
            f"{in_one_line(node.name)} holds {what} in format {found}{by}; {TAG} {__version__} "
            f"reads formats up to {FORMAT}, update it (pip install --upgrade py4dstem-clustering)"
        )


def damaged(node: Any, text: str) -> ValueError:
    """The error for a node that differs from what `to_node` makes."""
    name = in_one_line(getattr(node, "name", node))
    return ValueError(f"{name} is damaged: {text}; copy its file again, or make it anew")


def in_one_line(value: Any) -> str:
    """A value from a file as text for an error: one line of at most 100 characters."""
    text = repr(value) if isinstance(value, (str, int, float)) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def read_arrays(node: emdfile.Node) -> dict[str, Any]:
    """The arrays that are kept in the metadata of one of our nodes."""
    metadata = node.metadata.get("arrays")
    if not isinstance(metadata, emdfile.Metadata):
        raise damaged(node, "it holds no arrays")
    return dict(metadata._params)


def check_array(
    node: emdfile.Node,
    name: str,
    value: Any,
    shape: tuple[int | None, ...],
    kinds: str = "f",
    low: float = -np.inf,
    high: float = np.inf,
    nan: bool = False,
) -> NDArray[Any]:
    """Return an array of a node after a check of its shape (None: any length), type and range."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
        what = getattr(value, "dtype", type(value).__name__)
        raise damaged(node, f"its {name} of type {what} must be {_KINDS[kinds]}")
    if value.ndim != len(shape) or any(
        n is not None and n != m for n, m in zip(shape, value.shape, strict=True)
    ):
        rule = ", ".join("any" if n is None else str(n) for n in shape)
        raise damaged(node, f"its {name} of shape {value.shape} must have the shape ({rule})")
    numbers = value[~np.isnan(value)] if nan else value
    if kinds != "b" and numbers.size:
        lowest, highest = numbers.min(), numbers.max()  # NaN if any is NaN
        if not (low <= lowest and highest <= high and np.isfinite([lowest, highest]).all()):
            rule = "finite" if high == np.inf else f"from {low:g} to {high:g}"
            rule = f"finite and at least {low:g}" if high == np.inf > -low else rule
            raise damaged(node, f"its {name} must be {rule}" + (" or NaN" if nan else ""))
    return value


_KINDS = {"b": "True and False", "iu": "whole numbers", "f": "floating point", "biuf": "numbers"}


def children(parent: emdfile.Node, kind: str) -> dict[str, emdfile.Node]:
    """Nodes of this package, of one kind, directly below `parent`, the oldest first."""
    nodes = {name: parent.tree(name) for name in parent.treekeys}
    ours = {name: node for name, node in nodes.items() if kind_of(node) == kind}
    return dict(sorted(ours.items(), key=lambda item: _sequence(item[1])))


def _sequence(node: emdfile.Node) -> int:
    number = _tagged(node).get("sequence", 0)
    if isinstance(number, bool) or not isinstance(number, int):
        raise damaged(node, f"its place among others is {in_one_line(number)}, and no whole number")
    return number


def check_free(parent: emdfile.Node, name: str, kind: str) -> None:
    """Raise an error if a node of another kind has this name below `parent`.

    emdfile would replace that node without a warning (seen in 0.0.16).
    """
    if name in parent.treekeys and kind_of(parent.tree(name)) != kind:
        raise ValueError(
            f"name={name!r} is taken in the tree of {parent.name!r} by a "
            f"{type(parent.tree(name)).__name__}; give another name"
        )


def put(parent: emdfile.Node, node: emdfile.Node) -> None:
    """Add a node below `parent` as the newest of its kind; it replaces a node of the same name."""
    kind = _tagged(node)["kind"]
    check_free(parent, node.name, kind)
    newest = max(map(_sequence, children(parent, kind).values()), default=0)
    # HDF5 sorts names alphabetically, so a number keeps the order in which nodes were made.
    node.metadata[TAG]["sequence"] = newest + 1
    parent.force_add_to_tree(node)
