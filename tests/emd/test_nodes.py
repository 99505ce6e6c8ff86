"""Nodes that are not what they say."""

from __future__ import annotations

import emdfile
import h5py
import numpy as np
import py4DSTEM
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from stored import READERS, node_of

from py4dstem_clustering import Clusters, ClusterTree, Similarity
from py4dstem_clustering.emd import nodes
from py4dstem_clustering.scan.opening import open_scan


def changed(name, key, value):
    node = node_of(name)
    arrays = node.metadata["arrays"]._params if "arrays" in node.metadata else {}
    if key == "data":
        node.data = value(node.data) if callable(value) else value
    elif value is None:
        del arrays[key]
    else:
        arrays[key] = value(arrays[key]) if callable(value) else value
    return node


def put(place, number):
    def change(array):
        array = array.copy()
        array[place] = number
        return array

    return change


@pytest.mark.parametrize(
    ("name", "key", "value", "text"),
    [
        ("grown", "data", lambda a: a + 1, "labels must hold each number"),
        ("grown", "data", lambda a: a + np.int64(2**32), "labels must be from -1"),
        ("grown", "data", lambda a: a.astype(float), "labels of type float64"),
        ("grown", "data", lambda a: a[0], r"labels of shape \(7,\)"),
        ("grown", "data", lambda a: a.astype(object), "labels of type object"),
        ("grown", "seeds", put((0, 0), 8), "seeds must be from 0 to 8|seed must be a member"),
        ("grown", "seeds", lambda a: a[:-1], "background of shape|labels must hold each number"),
        ("grown", "seeds", None, "seeds of type NoneType"),
        ("grown", "similarity_mean", put((0, 0), 7), "similarity_mean must be from -1.001"),
        ("grown", "similarity_mean", lambda a: a.T, "similarity_mean of shape"),
        ("grown", "background", np.ones(9, bool), r"background of shape \(9,\)"),
        ("grown", "background", np.ones(4), "background of type float64 must be True and False"),
        ("grown", "similarity", put((0, 0), np.nan), "same seen from both positions"),
        ("grown", "similarity", lambda a: a[..., :4], "similarity of shape"),
        ("similarity", "data", lambda a: a * 3, "data must be from -1.001"),
        ("similarity", "data", put((3, 3, 0), 0.1), "same seen from both positions"),
        ("similarity", "data", "text", "data of type str"),
        ("tree_of_growth", "level", lambda a: a[::-1], "levels are not in order"),
        ("tree_of_growth", "level", put(3, np.nan), "level must be from"),
        ("tree_of_growth", "first", put(3, 56), "first must be from 0 to 55"),
        ("tree_of_growth", "first", lambda a: a * 0, "go round in a circle"),
        ("tree_of_growth", "first", None, "first of type NoneType"),
        ("tree_of_growth", "second", lambda a: a[:-1], r"second of shape \(54,\)"),
        ("tree_of_growth", "mask", lambda a: ~a, "out of its mask"),
        ("tree_of_merging", "automatic", lambda a: a + 1, "numbered without gaps"),
        ("tree_of_merging", "automatic", lambda a: a * 0 - 1, "joins of regions"),
        ("tree_of_merging", "features", lambda a: a * np.nan, "features must be finite"),
        ("orientation_map", "data", lambda a: a[..., :2], "data of shape"),
        ("orientation_map", "corr", lambda a: a[:1], "corr of shape"),
        ("orientation_map", "corr", np.full((2, 1, 2), "x"), "corr of type"),
        ("orientation_map", "__class__", np.zeros((2, 1)), "array of the name '__class__'"),
        ("orientation_map", "get_orientation", np.zeros((2, 1)), "of the name 'get_orientation'"),
    ],
)  # fmt: skip
def test_a_node_that_is_damaged(name, key, value, text):
    with pytest.raises(ValueError, match=rf"'{name}' is damaged: .*({text})"):
        READERS[name](changed(name, key, value))


@pytest.mark.parametrize("name", READERS)
def test_a_node_without_its_arrays(name):
    node = node_of(name)
    node.metadata.pop("arrays", None)
    node.data = None
    with pytest.raises(ValueError, match=rf"'{name}' is damaged"):
        READERS[name](node)


@pytest.mark.parametrize("reader", READERS.values())
def test_a_bare_node_with_our_tag(reader):
    for kind in ("clusters", "similarity", "cluster_tree", "orientation_map", 3, None):
        node = emdfile.Node("bare")
        nodes.tag(node, kind)
        with pytest.raises(ValueError, match=r"'bare' (is damaged|holds no)"):
            reader(node)
    for nothing in (None, 3, "text", emdfile.Metadata("m"), py4DSTEM.Root()):
        with pytest.raises(ValueError, match="holds no"):
            reader(nothing)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("R_pixel_size", "wide", "pixel size 'wide', and no number"),
        ("R_pixel_size", 0, "pixel size 0, and no number other than 0"),
        ("R_pixel_size", np.nan, "pixel size nan"),
        ("R_pixel_size", np.ones(3), "pixel size"),
        ("R_pixel_units", 7, "unit 7, and no text"),
    ],
)
def test_a_calibration_that_is_damaged(key, value, text):
    for name in ("grown", "tree_of_growth"):
        node = node_of(name)
        node.root.metadata["calibration"]._params[key] = value
        with pytest.raises(ValueError, match=text):
            READERS[name](node)


@pytest.mark.parametrize(
    ("axes", "units", "text"),
    [
        ([], [], "its axes have no unit"),
        ([np.arange(3), np.arange(2)], [3, 4], "its axes have no unit"),
        ([np.array(["a", "b"])] * 2, ["nm"] * 2, "its axes hold no numbers"),
        ([np.array([0, np.inf])] * 2, ["nm"] * 2, "its axes are not finite"),
    ],
)
def test_axes_that_are_damaged(axes, units, text):
    node = node_of("similarity")
    node._dims, node._dim_units = axes, units
    with pytest.raises(ValueError, match=text):
        Similarity.from_node(node)


def test_a_scan_with_a_pixel_of_no_size(tmp_path):
    scan = py4DSTEM.DataCube(np.ones((3, 4, 5, 6), np.float32), name="cube")
    py4DSTEM.save(tmp_path / "scan.h5", scan)
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        file["cube_root/metadatabundle/calibration/Q_pixel_size"][()] = 0
    with pytest.raises(
        ValueError, match=r"'cube' is damaged: .* pixel size 0, and no number other"
    ):
        open_scan(tmp_path / "scan.h5")


def test_settings_that_are_damaged():
    deep = {}
    for _ in range(50):
        deep = {"deeper": deep}
    for key, value in {"x": deep, "y": np.array([{}, 3]), "z": object()}.items():
        node = node_of("grown")
        node.metadata["settings"][key] = value
        with pytest.raises(ValueError, match=rf"'grown' is damaged: its settings hold .* '{key}'"):
            Clusters.from_node(node)
    node = node_of("grown")
    node.metadata["settings"]["edits"] = 3
    with pytest.raises(ValueError, match="edits that are no texts"):
        Clusters.from_node(node)
    node = node_of("tree_of_growth")
    node.metadata["settings"]["method"] = np.arange(3)
    with pytest.raises(ValueError, match=r"its method .* must be 'merge' or 'grow'"):
        ClusterTree.from_node(node)


def test_the_newest_is_not_known(cube):
    clusters = cube.cluster(threshold=0.5, progress_bar=False)
    cube.tree("clusters").metadata[nodes.TAG]["sequence"] = "first"
    with pytest.raises(
        ValueError, match="'clusters' is damaged: its place among others is 'first'"
    ):
        cube.get_clusters()
    assert len(clusters)


SHAPES = npst.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=8)
ARRAYS = st.one_of(
    npst.arrays(st.one_of(npst.scalar_dtypes(), npst.array_dtypes(max_size=2)), SHAPES),
    npst.arrays(object, SHAPES, elements=st.one_of(st.none(), st.integers(), st.text(max_size=3))),
)
LIKELY = st.sampled_from(["i1", "i4", "u8", ">i2", "f4", "f8", "f2", "?"]).flatmap(
    lambda kind: npst.arrays(
        kind, st.sampled_from([(), (0,), (4,), (4, 2), (8, 7), (8, 7, 8), (55,), (2, 1, 2, 3, 3)])
    )
)
ANYTHING = st.one_of(
    LIKELY, ARRAYS, st.none(), st.integers(), st.floats(), st.text(max_size=5), st.binary(),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers()),
)  # fmt: skip
NAMES = st.sampled_from(
    ["seeds", "similarity_mean", "background", "similarity", "averages", "first", "second", "level",
     "mask", "automatic", "features", "brightness", "matrix", "corr", "inds", "__dict__", ""]
)  # fmt: skip
NODES = {name: node_of(name) for name in READERS}


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(sorted(NODES)),
    data=st.one_of(st.just(...), ANYTHING),
    changes=st.dictionaries(NAMES, ANYTHING, max_size=3),
    noted=st.dictionaries(
        st.sampled_from(["method", "edits", "level", "threshold", "gain", "x"]),
        ANYTHING,
        max_size=2,
    ),
    tagged=st.dictionaries(st.sampled_from(["kind", "format", "version"]), ANYTHING, max_size=1),
)
def test_a_node_with_anything_in_it(name, data, changes, noted, tagged):
    old = NODES[name]
    node = emdfile.Node(name)
    for key, metadata in old.metadata.items():
        node.metadata = emdfile.Metadata(key, dict(metadata._params))
    node.data = old.data if data is ... else data
    for key in ("dims", "dim_units"):
        setattr(node, key, getattr(old, key))
    for key, new in (("arrays", changes), ("settings", noted), (nodes.TAG, tagged)):
        if key in node.metadata:
            node.metadata[key]._params.update(new)
    reader = READERS[name]
    try:
        found = reader(node)
    except ValueError as error:
        found = str(error)
    if isinstance(found, str):
        assert "\n" not in found
        assert len(found) < 2000
        assert name in found
    elif isinstance(found, Clusters):
        assert len(found.properties()) == len(found)
    elif isinstance(found, ClusterTree):
        assert found.cut().shape == found.shape
    assert repr(found)
