"""Edits of clusters as plain texts, such as ``"drop(at=[3, 4])"``: read, checked and written."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..base.checks import check_integer, check_number

MAX_NAME = 80
"""Most letters in the name of a cluster. Longer names do not fit on a label map."""


def _position(name: str, value: Any) -> list[int]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name}={value!r} must be a scan position [rx, ry]")
    found = list(value)
    if len(found) != 2:
        raise ValueError(f"{name}={value!r} must be a scan position [rx, ry]")
    return [check_integer(name, k, 0) for k in found]


def _positions(name: str, value: Any) -> list[list[int]]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name}={value!r} must be a list of scan positions [rx, ry]")
    found = [_position(name, item) for item in value]
    if not found:
        raise ValueError(f"{name} must hold at least one scan position [rx, ry]")
    return found


def _position_or_none(name: str, value: Any) -> list[int] | None:
    return None if value is None else _position(name, value)


def _radius(name: str, value: Any) -> float:
    return check_number(name, value, 0)


def _size(name: str, value: Any) -> int:
    return check_integer(name, value, 1)


def check_cluster_name(name: str, value: Any) -> str:
    """Check the name that a user gives to a cluster."""
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r} must be a text")
    if not value.strip() or not value.isprintable() or len(value) > MAX_NAME:
        raise ValueError(
            f"{name}={value!r} must be one line of 1 to {MAX_NAME} letters, and not only spaces"
        )
    return value


_RULES: dict[str, dict[str, Callable[[str, Any], Any]]] = {
    "join": {"at": _positions},
    "split": {"at": _position, "level": check_number, "min_size": _size},
    "paint": {"to": _position_or_none, "stroke": _positions, "radius": _radius},
    "erase": {"stroke": _positions, "radius": _radius},
    "drop": {"at": _position},
    "name": {"at": _position, "name": check_cluster_name},
}
"""Options of each action, and what checks them."""

_OPTIONAL: dict[str, Any] = {"min_size": 1, "radius": 0}


def check_action(action: Any) -> tuple[str, dict[str, Any]]:
    """Name and options of an action that is a text such as ``"drop(at=[3, 4])"``, or a mapping."""
    if isinstance(action, Mapping):
        given = dict(action)
        what = given.pop("do", None)
    elif isinstance(action, str):
        what, given = _parsed(action)
    else:
        raise TypeError(
            f"action {action!r} must be a text such as 'drop(at=[3, 4])', or a mapping such as "
            "{'do': 'drop', 'at': [3, 4]}"
        )
    if what not in _RULES:
        raise ValueError(f"action {what!r} is unknown; there are {', '.join(_RULES)}")
    rules = _RULES[what]
    given = {key: value for key, value in _OPTIONAL.items() if key in rules} | given
    if given.keys() != rules.keys():
        raise ValueError(
            f"action {what!r} has the options {', '.join(rules)}, not {', '.join(given)}"
        )
    return what, {key: rule(key, given[key]) for key, rule in rules.items()}


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    wrong = f"action {text[:80]!r} cannot be read; it must look like 'drop(at=[3, 4])'"
    try:
        call = ast.parse(text, mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            raise ValueError(wrong)
        given = {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(wrong) from None
    if call.args:
        raise ValueError(
            f"action {text[:80]!r} names clusters by their numbers, as an edit by a method of "
            "Clusters does; repeat it with this method"
        )
    return call.func.id, given


def action_text(what: str, **options: Any) -> str:
    """An action as a text that `edit_clusters` reads."""
    what, options = check_action({"do": what, **options})
    return f"{what}({', '.join(f'{key}={value!r}' for key, value in options.items())})"
