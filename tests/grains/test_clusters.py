"""Clusters and Similarity: frozen results."""

from __future__ import annotations

import dataclasses
import pickle
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from py4dstem_clustering import DIRECTIONS, Clusters, Similarity

# A bar, a ring with a hole, and a single position.
LABELS = np.array(
    [
        [0, 0, 0, 0, -1, -1],
        [-1, -1, -1, -1, -1, 2],
        [1, 1, 1, -1, -1, -1],
        [1, -1, 1, -1, -1, -1],
        [1, 1, 1, -1, -1, -1],
    ]
)
SEEDS = [(0, 2), (3, 2), (1, 5)]


@pytest.fixture
def clusters():
    mean = np.linspace(0, 1, LABELS.size).reshape(LABELS.shape)
    settings = {"threshold": 0.9, "q_mask": np.ones((2, 2), bool)}
    return Clusters(LABELS, SEEDS, mean, settings, pixel_size=2.5, pixel_units="nm")


def test_what_there_is(clusters):
    assert clusters.n_clusters == len(clusters) == 3
    assert clusters.sizes.tolist() == [4, 8, 1]
    assert clusters.shape == (5, 6)
    assert clusters.labels.dtype == np.int32
    assert clusters.members(0).tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]
    assert repr(clusters) == (
        "Clusters('clusters', 3 clusters, 13 of 30 scan positions of 5 x 6, sizes 1 to 8)"
    )


def test_frozen(clusters):
    with pytest.raises(dataclasses.FrozenInstanceError):
        clusters.labels = LABELS
    with pytest.raises(ValueError, match="read-only"):
        clusters.labels[0, 0] = 5
    with pytest.raises(TypeError, match="does not support item assignment"):
        clusters.settings["threshold"] = 0.5
    with pytest.raises(ValueError, match="read-only"):
        clusters.settings["q_mask"][0, 0] = False


def test_later_changes_of_the_input_do_not_reach_it():
    labels, seeds = LABELS.copy(), np.array(SEEDS)
    clusters = Clusters(labels, seeds, np.zeros(LABELS.shape))
    labels[:] = -1
    seeds[:] = 0
    assert clusters.labels.tolist() == LABELS.tolist()
    assert clusters.seeds.tolist() == [list(s) for s in SEEDS]


def test_contours_are_closed_and_enclose_the_members(clusters):
    (bar,) = clusters.contours(0)
    np.testing.assert_array_equal(bar[0], bar[-1])
    assert bar[:, 0].min() == -0.5
    assert bar[:, 1].max() == 3.5
    assert len(clusters.contours(1)) == 2  # outline and hole

    def area(points):
        x, y = points.T
        return abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2

    # Half-way contours cut the four corners of a rectangle of n x m by 1/8 each.
    assert area(bar) == pytest.approx(4 - 4 / 8)


def test_diagonal_neighbours_share_a_contour():
    labels = np.full((4, 4), -1)
    labels[0, 1] = labels[1, 2] = labels[2, 1] = 0
    assert len(Clusters(labels, [(0, 1)], np.zeros((4, 4))).contours(0)) == 1


def test_properties(clusters):
    table = clusters.properties()
    assert table["label"].tolist() == [0, 1, 2]
    assert table["size"].tolist() == [4, 8, 1]
    np.testing.assert_allclose(table["area"], np.array([4, 8, 1]) * 2.5**2)
    np.testing.assert_allclose(table["centroid_rx"], [0, 3, 1])
    np.testing.assert_allclose(table["centroid_ry"], [1.5, 1, 5])
    assert table["seed_ry"].tolist() == [2, 2, 5]
    np.testing.assert_allclose(table["equivalent_diameter"], np.sqrt(4 * table["area"] / np.pi))
    assert table["touches_border"].tolist() == [True, True, True]
    assert table["solidity"].tolist() == [1, pytest.approx(8 / 9), 1]
    # The bar lies along Ry: a quarter turn from the Rx axis.
    assert abs(table["orientation"][0]) == pytest.approx(np.pi / 2)
    assert table["major_axis"][0] == pytest.approx(2.5 * 4 * np.sqrt((4**2 - 1) / 12))
    assert table["similarity"][2] == pytest.approx(clusters.similarity_mean[1, 5])
    frame = pd.DataFrame(table)
    assert frame.shape == (3, 16)


def test_properties_away_from_the_border_and_none_at_all():
    labels = np.full((4, 5), -1)
    assert len(Clusters(labels, [], np.zeros((4, 5))).properties()) == 0
    labels[1:3, 1:4] = 0
    table = Clusters(labels, [(1, 1)], np.full((4, 5), np.nan)).properties()
    assert not table["touches_border"][0]
    assert np.isnan(table["similarity"][0])


@given(hnp.arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))))
@settings(deadline=None, max_examples=100)
def test_properties_of_any_shape_give_no_warning(mask):
    if not mask.any():
        return
    labels = np.where(mask, 0, -1)
    row = Clusters(labels, np.argwhere(mask)[:1], np.zeros(mask.shape)).properties()[0]
    assert row["size"] == mask.sum()
    assert 0 < row["solidity"] <= 1
    assert all(np.isfinite(row[name]) for name in row.dtype.names)


def test_expand(clusters):
    out = clusters.expand([1, 2, 3])
    assert out.dtype == np.float64
    np.testing.assert_array_equal(np.isnan(out), LABELS == -1)
    assert out[3, 0] == 2
    assert clusters.expand(np.zeros((3, 2, 4), np.float32)).shape == (5, 6, 2, 4)
    assert clusters.expand(np.array([1j, 2, 3]))[0, 0] == 1j


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ([1, 2], ValueError, "one entry for each of the 3 clusters"),
        (5, ValueError, "one entry"),
        (["a", "b", "c"], TypeError, "give numbers"),
    ],
)
def test_expand_refuses(clusters, values, error, match):
    with pytest.raises(error, match=match):
        clusters.expand(values)


def test_relabel_by_size(clusters):
    new = clusters.relabel("size")
    assert new.sizes.tolist() == [8, 4, 1]
    assert new.seeds.tolist() == [[3, 2], [0, 2], [1, 5]]
    assert new.settings["edits"] == ("relabel('size')",)
    assert clusters.sizes.tolist() == [4, 8, 1]  # the old clusters did not change


def test_relabel_by_sequence(clusters):
    new = clusters.relabel([2, 0, 1])
    assert new.labels[1, 5] == 0
    assert new.labels[0, 0] == 1
    assert new.labels[4, 0] == 2


def test_remove(clusters):
    new = clusters.remove(0)
    assert new.sizes.tolist() == [8, 1]
    assert (new.labels[0] == -1).all()
    assert clusters.remove([0, 1, 2]).n_clusters == 0
    assert new.remove([0]).settings["edits"] == ("remove([0])", "remove([0])")


def test_join(clusters):
    new = clusters.join([2, 0])
    assert new.sizes.tolist() == [5, 8]
    assert new.labels[1, 5] == new.labels[0, 0] == 0
    assert new.seeds[0].tolist() == [1, 5]  # the higher mean similarity of the two
    assert new.pixel_units == "nm"


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda c: c.members(3), ValueError, "label 3 does not exist; the labels here are: 0 to 2"),
        (lambda c: c.members(-1), ValueError, "at least 0"),
        (lambda c: c.members(1.0), TypeError, "whole number"),
        (lambda c: c.contours(True), TypeError, "whole number"),
        (lambda c: c.join([1]), ValueError, "at least two"),
        (lambda c: c.join([1, 1]), ValueError, "at least two"),
        (lambda c: c.remove([7]), ValueError, "does not exist"),
        (lambda c: c.relabel("area"), ValueError, "must be 'size'"),
        (lambda c: c.relabel([0, 1]), ValueError, "each of the 3 labels once"),
        (lambda c: c.relabel([0, 1, 1]), ValueError, "each of the 3 labels once"),
    ],
)
def test_labels_are_checked(clusters, call, error, match):
    with pytest.raises(error, match=match):
        call(clusters)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"labels": LABELS + 1}, "each number from 0 to 2"),
        ({"labels": LABELS - 1}, "each number from 0 to 2"),
        ({"labels": LABELS.astype(float)}, "whole numbers"),
        ({"labels": LABELS[0]}, "2D"),
        ({"seeds": SEEDS[:2]}, "each number from 0 to 1"),
        ({"seeds": [(0, 2), (3, 1), (1, 5)]}, "member of its cluster"),
        ({"seeds": [(0, 2), (3, 2), (1, 6)]}, "member of its cluster"),
        ({"similarity_mean": np.zeros((6, 5))}, "shape of the labels"),
        ({"name": "a/b"}, "cannot be stored"),
        ({"similarity": Similarity(np.full((1, 1, 8), np.nan))}, "shape of the labels"),
    ],
)
def test_construction_is_checked(change, match):
    good = {"labels": LABELS, "seeds": SEEDS, "similarity_mean": np.zeros(LABELS.shape)}
    with pytest.raises(ValueError, match=match):
        Clusters(**{**good, **change})


@pytest.mark.parametrize("copy", [lambda x: pickle.loads(pickle.dumps(x)), deepcopy])
def test_copies_are_frozen_too(clusters, cube, copy):
    again = copy(clusters)
    np.testing.assert_array_equal(again.labels, clusters.labels)
    assert (again.name, again.pixel_size, again.pixel_units) == ("clusters", 2.5, "nm")
    assert again.settings["threshold"] == 0.9
    assert not again.labels.flags.writeable
    with pytest.raises(TypeError, match="item assignment"):
        again.settings["threshold"] = 0
    similarity = copy(cube.get_similarity(progress_bar=False))
    assert similarity.settings["sigma"] == 0
    assert not similarity.data.flags.writeable


def test_sets_and_generators_of_labels(clusters):
    assert clusters.remove({0, 1}).n_clusters == 1
    assert clusters.remove(k for k in (0, 2)).n_clusters == 1
    assert clusters.join(range(3)).n_clusters == 1


def test_the_input_stays_writeable():
    mean = np.zeros((1, 3), np.float32)
    Clusters([[0, 0, -1]], [(0, 0)], mean)
    assert mean.flags.writeable


@pytest.mark.parametrize(("labels", "seed"), [([[0, 0, -2]], (0, 0)), ([[-1, 0, 0]], (0, -1))])
def test_labels_and_seeds_that_numpy_would_take(labels, seed):
    with pytest.raises(ValueError, match="must"):
        Clusters(labels, [seed], np.zeros((1, 3)))


def test_ties_and_unknown_similarities_when_renumbering():
    mean = np.array([[np.nan, 0.5, 0.4]])
    joined = Clusters([[0, 1, 1]], [(0, 0), (0, 1)], mean).join([0, 1])
    assert joined.seeds.tolist() == [[0, 1]]
    same = Clusters([[0, 1, 2]], [(0, 0), (0, 1), (0, 2)], mean)
    assert same.relabel("size").labels.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(("radius", "error"), [(1, 0.08), (1.5, 0.04), (2, 0.03), (3, 0.02)])
def test_the_perimeter_of_small_round_grains(radius, error):
    x, y = np.indices((13, 15))
    found = []
    for centre in np.random.default_rng(0).uniform(5, 8, (60, 2)):
        labels = np.where(np.hypot(x - centre[0], y - centre[1]) <= radius, 0, -1)
        seed = np.argwhere(labels == 0)[:1]
        found += list(Clusters(labels, seed, np.zeros(x.shape)).properties()["perimeter"])
    assert np.mean(found) == pytest.approx(2 * np.pi * radius, rel=error)


def test_a_grain_of_one_position_has_a_perimeter():
    (row,) = Clusters([[-1, 0, -1]], [(0, 1)], np.zeros((1, 3))).properties()
    assert row["perimeter"] == pytest.approx(np.pi / 2 * (1 + np.sqrt(0.5)))


def test_lengths_scale_with_the_step():
    labels = np.full((8, 9), -1)
    labels[1:4, 2:8] = 0
    one, wide = (
        Clusters(labels, [(1, 2)], np.zeros((8, 9)), pixel_size=step).properties()[0]
        for step in (1, 2.5)
    )
    for name in ("equivalent_diameter", "major_axis", "minor_axis", "perimeter"):
        assert wide[name] == pytest.approx(2.5 * one[name])
    for name in ("centroid_rx", "eccentricity", "orientation", "solidity"):
        assert wide[name] == one[name]


def test_a_node_keeps_a_copy_of_the_averages(clusters):
    averages = np.ones((3, 4, 5), np.float32)
    kept = clusters.to_node(averages).metadata["arrays"]["averages"]
    averages[:] = 0
    assert (kept == 1).all()


# --- Similarity ------------------------------------------------------------------------------


def test_similarity_is_an_array(cube):
    similarity = cube.get_similarity(progress_bar=False)
    assert np.asarray(similarity).shape == similarity.shape == (7, 9, 8)
    assert np.asarray(similarity, dtype=np.float64).dtype == np.float64
    assert similarity[2, 3].shape == (8,)
    assert similarity.mean.shape == (7, 9)
    assert similarity.directions[0] == (-1, -1)
    assert repr(similarity).startswith("Similarity(7 x 9 scan positions, 8 directions, mean 0.")
    with pytest.raises(ValueError, match="read-only"):
        similarity.data[0, 0, 0] = 1


def test_similarity_of_one_position():
    assert "no neighbours" in repr(Similarity(np.full((1, 1, 8), np.nan)))


def broken(change):
    data = np.full((3, 4, 8), np.nan)
    for x, y in np.ndindex(3, 4):
        for k, (dx, dy) in enumerate(DIRECTIONS):
            if 0 <= x + dx < 3 and 0 <= y + dy < 4:
                data[x, y, k] = 0.5
    change(data)
    return data


def set_value(index, value):
    def change(data):
        data[index] = value

    return change


def test_a_symmetric_similarity_is_accepted():
    Similarity(broken(lambda data: None))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (np.zeros((3, 4, 7)), r"shape \(Rx, Ry, 8\)"),
        (broken(set_value((1, 1, 5), 0.4)), "differ by 0.1"),
        (broken(set_value((1, 1, 5), np.nan)), "differ by inf"),
        (broken(set_value((0, 0, 0), 0.5)), "differ by inf"),
        (broken(set_value((2, 3, 4), 0.5)), "differ by inf"),
        (broken(set_value((1, 1), 1.5)), "is a cosine"),
    ],
)
def test_similarity_is_checked(data, match):
    with pytest.raises(ValueError, match=match):
        Similarity(data)


def test_similarity_keeps_to_itself(cube):
    data = np.array(cube.get_similarity(progress_bar=False))
    similarity = Similarity(data, {"x": 1})
    assert data.flags.writeable
    assert not np.shares_memory(data, similarity.data)
    assert not similarity.mean.flags.writeable
    with pytest.raises(TypeError, match="item assignment"):
        similarity.settings["x"] = 2
    data[1, 1, 5] += 1e-3
    with pytest.raises(ValueError, match=r"pairs differ by 0\.00"):
        Similarity(data)


def test_an_order_that_is_no_sequence(clusters):
    with pytest.raises(TypeError, match="order=3 must be 'size' or a sequence of all labels"):
        clusters.relabel(3)
