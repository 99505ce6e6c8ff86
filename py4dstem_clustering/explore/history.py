"""What was done in the window, for undo and redo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..grains.options import Method
from ..grains.tree import ClusterTree

MAX_UNDO = 200
"""Number of states to which the window can go back."""


@dataclass(frozen=True)
class State:
    """A cut of a tree, and the edits of its clusters.

    Parameters
    ----------
    tree : ClusterTree
    min_size : int
    cut : mapping
        Options of ``ClusterTree.cut``; empty for the automatic cut.
    edits : tuple of str
        Actions of `edit_clusters`.
    """

    tree: ClusterTree
    min_size: int
    cut: Mapping[str, Any] = field(default_factory=dict)
    edits: tuple[str, ...] = ()

    @property
    def method(self) -> Method:
        """Method of the tree."""
        return self.tree.method


class History:
    """States of the window, one after the other."""

    def __init__(self, first: State) -> None:
        self._states = [first]
        self._at = 0

    @property
    def now(self) -> State:
        """The state that is on the screen."""
        return self._states[self._at]

    def push(self, state: State) -> None:
        """Go on to a new state; what was undone before is forgotten.

        Cuts that follow each other, as while a slider moves, count as one step.
        """
        del self._states[self._at + 1 :]
        if self._at > 0 and not (state.edits or self.now.edits):
            self._states.pop()
        self._states.append(state)
        del self._states[: -MAX_UNDO - 1]
        self._at = len(self._states) - 1

    def step(self, by: int) -> bool:
        """Go back (-1) or forward (1) by one state; False if there is none."""
        if not 0 <= self._at + by < len(self._states):
            return False
        self._at += by
        return True
