"""Steps of the sliders: each changes the picture, and about as much as the next."""

from __future__ import annotations

import numpy as np
import pytest
from driving import QUIET, make_cube, slider, tree_of

from py4dstem_clustering.explore import slider as steps_of
from py4dstem_clustering.explore.slider import changes, count_steps, level_steps, size_steps


@pytest.mark.parametrize("method", ["merge", "grow"])
@pytest.mark.parametrize("min_size", [1, 6])
@pytest.mark.parametrize("drop", [True, False])
def test_changes_are_the_positions_whose_colour_changes(method, min_size, drop):
    tree = tree_of(method)
    found = changes(tree, min_size, drop)
    assert found.shape == tree.levels.shape
    options = {"drop_background": drop} if method == "merge" else {}
    if method == "merge":
        # At "pattern" itself borders are refined, which is no join.
        which = np.flatnonzero(tree.levels > 1)
    else:
        which = np.arange(len(tree.levels) - 60, len(tree.levels))
    for k in which:
        before = tree.cut(float(tree.levels[k - 1]), min_size=min_size, **options).labels
        after = tree.cut(float(tree.levels[k]), min_size=min_size, **options).labels
        # A cluster keeps its colour in the largest part of what it becomes.
        same = 0
        for label in range(after.max() + 1):
            parts = before[(after == label) & (before >= 0)]
            same += np.bincount(parts).max() if parts.size else 0
        same += ((before < 0) & (after < 0)).sum()
        assert found[k] == before.size - same, tree.levels[k]


@pytest.mark.parametrize("method", ["merge", "grow"])
@pytest.mark.parametrize("min_size", [1, 5, 30])
def test_every_step_changes_the_picture(method, min_size):
    tree = tree_of(method)
    steps = level_steps(tree, min_size)
    assert np.isin(steps, tree.levels).all()
    assert (np.diff(steps) > 0).all()
    cuts = [tree.cut(float(step), min_size=min_size).labels for step in steps]
    same = [np.array_equal(a, b) for a, b in zip(cuts[1:], cuts[:-1], strict=True)]
    # Only the named levels are steps even if they change nothing.
    assert sum(same) <= (2 if method == "merge" else 0)
    if method == "merge":
        assert {1.0, 2.0} <= set(steps)


def test_steps_of_large_trees_are_few(monkeypatch):
    tree = tree_of("grow")
    monkeypatch.setattr(steps_of, "N_STEPS", 10)
    steps = level_steps(tree)
    assert 8 <= len(steps) <= 11
    total = np.cumsum(changes(tree, 1, True))
    at = total[[np.flatnonzero(tree.levels == step)[0] for step in steps[::-1]]]
    largest = changes(tree, 1, True).max()
    # No step but the first changes much more than a tenth: at most one join more.
    assert np.diff(at).max() <= total[-1] / 10 + largest
    monkeypatch.setattr(steps_of, "N_MERGE_STEPS", (3, 4, 5))
    assert len(level_steps(tree_of("merge"))) <= 1 + 2 + 3 + 4 + 5


def test_sizes_and_counts():
    sizes = size_steps(65536)
    assert set(range(1, 11)) <= set(sizes)
    assert (np.diff(sizes) > 0).all()
    assert list(size_steps(2)) == [1, 2]
    counts = count_steps(np.arange(5000, 0, -1), "grow")
    assert set(range(1, 41)) <= set(counts)
    assert counts[-1] == 5000
    assert len(counts) < 160
    assert count_steps(np.array([3, 9, 9, 2]), "merge").tolist() == [2, 9]  # from the most on
    assert count_steps(np.zeros(4, int), "merge").tolist() == [1]


def test_named_levels_are_written_below_the_slider():
    explorer = make_cube().explore_clusters(tree=tree_of("merge"), **QUIET)
    texts = {text.get_text(): text for text in explorer._screen.controls._ticks}
    assert set(texts) == {"pattern ▴", "▴ crystal"}
    steps = level_steps(explorer.tree)
    assert steps[round(texts["pattern ▴"].get_position()[0])] == 1
    assert steps[round(texts["▴ crystal"].get_position()[0])] == 2
    assert slider(explorer).valtext.get_text() == "2, crystal"
    explorer.set(method="grow")
    assert explorer._screen.controls._ticks == []
