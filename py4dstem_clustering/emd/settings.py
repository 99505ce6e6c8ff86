"""Settings of a result (options and notes), and how EMD metadata store them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import emdfile
import numpy as np

from .nodes import damaged, in_one_line

MAX_DEPTH = 24
"""Most levels of nested groups and settings in a file. This package writes fewer. A file with more
raises an error, because deep nesting can exhaust the stack."""

PROVENANCE = (
    "source", "fingerprint", "parents", "shape", "created", "seconds",
    "py4dstem_clustering_version", "py4DSTEM_version",
)  # fmt: skip
"""Settings of every result that say from which data, when and with which versions it was made."""


# --- settings --------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Return numpy scalars as Python numbers, lists as tuples, and arrays as read-only copies."""
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.flags.writeable = False
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item) for item in value)
    return value


class Settings(Mapping[str, Any]):
    """A read-only copy of settings, as plain Python and read-only arrays; can be pickled.

    Iteration gives only the options, so that ``function(**settings)`` repeats the work. Values that
    are no options (see `noted`) can be looked up too: ``settings["gain"]``.
    """

    def __init__(self, settings: Mapping[str, Any], noted: Iterable[str] = ()) -> None:
        if isinstance(settings, Settings):
            settings = settings.everything
        self._items = {key: _plain(value) for key, value in settings.items()}
        self._noted = frozenset(noted)

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._items if key not in self._noted)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(self._items)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._items, self._noted)

    @property
    def everything(self) -> dict[str, Any]:
        """All settings: options and `noted` values."""
        return dict(self._items)

    @property
    def noted(self) -> dict[str, Any]:
        """Settings that are no options: estimates, versions, and the origin of the data."""
        return {key: value for key, value in self._items.items() if key in self._noted}


def add_settings(node: emdfile.Node, settings: Mapping[str, Any], name: str = "settings") -> None:
    """Store settings in the metadata of a node."""
    if isinstance(settings, Settings):
        settings = settings.everything
    node.metadata = emdfile.Metadata(name, dict(settings))


def read_settings(node: emdfile.Node, name: str = "settings") -> Settings:
    """Settings in the metadata of a node; empty if there are none."""
    metadata = node.metadata.get(name)
    params = {} if metadata is None else metadata._params
    for key, value in params.items():
        if not _is_plain(value):
            raise damaged(node, f"its {name} hold a {type(value).__name__} for {in_one_line(key)}")
    return Settings(params)


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is a number, a text, an array, or a container of these."""
    if depth > MAX_DEPTH:
        return False
    if isinstance(value, Mapping):
        return all(_is_plain(item, depth + 1) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item, depth + 1) for item in value)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind in "buifcSU"
    return value is None or isinstance(value, (bool, int, float, complex, str))
