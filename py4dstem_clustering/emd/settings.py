"""Options and notes of a result, and how they are stored in EMD metadata."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import emdfile
import numpy as np

from .nodes import damaged, in_one_line

MAX_DEPTH = 24
"""Levels of groups and settings in a file. This package writes fewer; a file with more is refused,
because it may be made to exhaust the stack."""

PROVENANCE = (
    "source", "fingerprint", "shape", "created", "seconds", "py4dstem_clustering_version",
    "py4DSTEM_version",
)  # fmt: skip
"""What every result notes of where it is from."""


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


class Settings(Mapping[str, Any]):
    """A read-only copy of settings, as plain Python and read-only arrays; can be pickled.

    As a mapping it has the options, so that ``function(**settings)`` does the same again. What was
    found or noted on the way, `noted`, can be looked up like these: ``settings["gain"]``.
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
        """Options and what was noted."""
        return dict(self._items)

    @property
    def noted(self) -> dict[str, Any]:
        """What is no option: estimates, versions, where the data came from."""
        return {key: value for key, value in self._items.items() if key in self._noted}


def add_settings(node: emdfile.Node, settings: Mapping[str, Any], name: str = "settings") -> None:
    """Keep settings with a node."""
    if isinstance(settings, Settings):
        settings = settings.everything
    node.metadata = emdfile.Metadata(name, dict(settings))


def read_settings(node: emdfile.Node, name: str = "settings") -> Settings:
    """Settings kept with a node; empty where there are none."""
    metadata = node.metadata.get(name)
    params = {} if metadata is None else metadata._params
    for key, value in params.items():
        if not _is_plain(value):
            raise damaged(node, f"its {name} hold a {type(value).__name__} for {in_one_line(key)}")
    return Settings(params)


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a setting is what settings can be: numbers, texts, arrays, and nested ones."""
    if depth > MAX_DEPTH:
        return False
    if isinstance(value, Mapping):
        return all(_is_plain(item, depth + 1) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item, depth + 1) for item in value)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind in "buifcSU"
    return value is None or isinstance(value, (bool, int, float, complex, str))
