"""Results that do not change once they are made."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np


class Frozen:
    """Base of frozen dataclasses: their arrays are copies that cannot be written to."""

    def __post_init__(self) -> None:
        self._set(**{key: _read_only(getattr(self, key)) for key in self._names()})

    def __reduce__(self) -> tuple[Any, ...]:
        # Unpickling calls __init__, so that the arrays are read-only again.
        return type(self), tuple(getattr(self, key) for key in self._names())

    def _names(self) -> list[str]:
        return [part.name for part in fields(self)]  # type: ignore[arg-type]

    def _set(self, **values: Any) -> None:
        """Give fields their values; arrays become read-only."""
        for key, value in values.items():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
            object.__setattr__(self, key, value)


def _read_only(value: Any) -> Any:
    """Copy an array, or the arrays in a container, so that they cannot be written to."""
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.flags.writeable = False
        return value
    if isinstance(value, dict):
        return {key: _read_only(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_make"):  # a named tuple
        return value._make(map(_read_only, value))
    if isinstance(value, (tuple, list)):
        return tuple(map(_read_only, value))
    return value
