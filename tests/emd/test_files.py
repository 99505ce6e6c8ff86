"""Files of older and newer versions, of others, damaged and hostile ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import emdfile
import h5py
import numpy as np
import py4DSTEM
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import py4dstem_clustering
from py4dstem_clustering import (
    Clusters,
    ClusterTree,
    Similarity,
    open_scan,
    open_series,
    orientation_from_node,
)
from py4dstem_clustering.cli.main import main
from py4dstem_clustering.emd import nodes
from py4dstem_clustering.scan.loading import load_scan

DATA = Path(__file__).parents[1] / "data"
PACKAGE = Path(py4dstem_clustering.__file__).parent
POSIX = pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")

LABELS = [
    [2, 2, 2, 1, 1, 1, 0],
    [2, 2, 2, 1, 1, 1, 0],
    [2, 2, 1, 1, 1, 0, 0],
    [2, 1, 1, 1, 0, 0, 0],
    [2, 1, 1, 1, 0, 0, 0],
    [1, 1, 1, 0, 0, 0, 3],
    [1, 1, 0, 0, 0, 3, 3],
    [1, 1, 0, 0, 0, 3, 3],
]


def read(name):
    return py4DSTEM.read(str(DATA / f"{name}.h5"))


def copy(tmp_path, name):
    path = tmp_path / f"{name}.h5"
    path.write_bytes((DATA / f"{name}.h5").read_bytes())
    return path


# --- older versions ------------------------------------------------------------------------------


def test_a_file_of_release_0_1_0():
    cube = read("release_0.1.0")
    clusters = cube.clusters
    np.testing.assert_array_equal(clusters.labels, LABELS)
    assert clusters.seeds.tolist() == [[3, 6], [0, 4], [0, 1], [7, 6]]
    assert (clusters.pixel_size, clusters.pixel_units) == (2.5, "nm")
    assert clusters.background == ()
    expected = {"method": "grow", "threshold": 0.6, "min_size": 2, "name": "clusters", "sigma": 0}
    assert {key: clusters.settings[key] for key in expected} == expected
    assert {"level", "n_clusters", "fingerprint"}.isdisjoint(clusters.settings.everything)
    assert clusters.settings["q_mask"].sum() == 90
    np.testing.assert_array_equal(clusters.similarity.data, cube.tree("similarity").data)
    similarity = Similarity.from_node(cube.tree("similarity"))
    assert similarity.pixel_size == 2.5
    assert similarity[3, 2, 7] == pytest.approx(0.97623, abs=1e-5)
    averages = cube.tree("clusters").metadata["arrays"]["averages"]
    means = [cube.data[clusters.labels == k].sum(axis=(1, 2)).mean() for k in range(4)]
    np.testing.assert_allclose(averages.sum(axis=(1, 2)), means, rtol=1e-6)
    np.testing.assert_allclose(means, [902.7368, 1361, 1328.9, 1345.6], rtol=1e-6)
    # And goes on.
    assert clusters.growth_steps(0).max() > 2
    assert "0.6" in clusters.describe()
    again = cube.cluster(
        threshold=0.6, min_size=2, similarity=clusters.similarity, name="again", progress_bar=False
    )
    np.testing.assert_array_equal(again.labels, clusters.labels)
    np.testing.assert_allclose(
        cube.get_clustered_datacube(clusters, progress_bar=False).data[:, 0], averages
    )


def test_a_scan_of_release_0_1_0_is_loaded():
    assert load_scan(DATA / "release_0.1.0.h5").data.sum(dtype=int) == 67111


def test_clusters_of_format_1():
    root = read("clusters_format_1")
    grown, merged = (Clusters.from_node(root.tree(name)) for name in ("grown", "merged"))
    assert [len(grown), len(merged)] == [4, 3]
    assert grown.seeds.tolist() == [[0, 4], [3, 6], [0, 1], [7, 6]]
    assert merged.seeds.tolist() == [[3, 6], [0, 4], [0, 0]]
    assert merged.sizes.tolist() == [24, 22, 10]
    assert grown.settings["level"] == 0.6
    assert grown.settings["fingerprint"] == "0079e731b028f4e51aa2c2739bd48cfa"
    assert merged.settings["gain"] == pytest.approx(1.1037, abs=1e-4)
    assert merged.similarity is None
    assert root.tree("merged").metadata["arrays"]["averages"].shape == (3, 12, 10)
    assert list(nodes.children(root, "clusters")) == ["grown", "merged"]


def test_other_nodes_of_format_1():
    root = read("tree_format_1")
    merging, growth = (
        ClusterTree.from_node(root.tree(f"tree_of_{n}")) for n in ("merging", "growth")
    )
    assert merging.cut().sizes.tolist() == [24, 22, 10]
    assert growth.cut(0.6, min_size=2).seeds.tolist() == [[0, 4], [3, 6], [0, 1], [7, 6]]
    np.testing.assert_array_equal(
        Similarity.from_node(root.tree("similarity")).data, growth.similarity.data
    )
    found = orientation_from_node(root.tree("orientation_map"))
    np.testing.assert_allclose(found.corr.ravel(), 1 - np.deg2rad([0, 10, 20, 30]))
    np.testing.assert_allclose(found.matrix[1, 0, 1, 0, 0], np.cos(np.deg2rad(30)))


def test_a_series_of_format_1():
    series = open_series(DATA / "series_format_1.h5")
    assert series.frames.tolist() == [(0, 0.0, 4, False), (1, 0.5, 0, True), (2, 1.0, 4, False)]
    assert series.errors == {1: "OSError: 1.h5 is damaged"}
    assert series.drift.tolist() == [[0, 0], [0, 1], [0, 2]]
    assert series.settings["cluster"]["threshold"] == 0.6
    assert [None if c is None else len(c) for c in series] == [4, None, 4]
    assert series.averages(2).data.shape == (4, 1, 12, 10)
    assert series.image(0).shape == (8, 7)
    assert len(series.tracks()) >= 3


def test_a_series_with_a_frame_that_is_missing(tmp_path):
    path = copy(tmp_path, "series_format_1")
    with h5py.File(path, "r+") as file:
        del file["series/frame_000001"]
    series = open_series(path)
    assert [info.frame for info in series.infos] == [0, 2]
    assert [len(c) for c in series] == [4, 4]


# --- newer versions ------------------------------------------------------------------------------

READERS = {
    "grown": Clusters.from_node,
    "tree_of_merging": ClusterTree.from_node,
    "similarity": Similarity.from_node,
    "tree_of_growth": ClusterTree.from_node,
    "orientation_map": orientation_from_node,
}


def node_of(name):
    return read("clusters_format_1" if name == "grown" else "tree_format_1").tree(name)


@pytest.mark.parametrize("name", READERS)
def test_a_node_of_a_newer_format(name):
    node = node_of(name)
    node.metadata[nodes.TAG]["format"] = nodes.FORMAT + 1
    node.metadata[nodes.TAG]["version"] = "9.9.0"
    text = rf"'{name}' holds .* in format 2, made by py4dstem_clustering 9.9.0; .* update it"
    with pytest.raises(ValueError, match=text):
        READERS[name](node)
    del node.metadata[nodes.TAG]._params["version"]
    with pytest.raises(ValueError, match="in format 2"):
        READERS[name](node)
    for nonsense in (0, -1, 1.5, "1", None, True, np.arange(3)):
        node.metadata[nodes.TAG]["format"] = nonsense
        with pytest.raises(ValueError, match=r"damaged: its format is .* whole number from 1"):
            READERS[name](node)


def test_a_series_of_a_newer_format(tmp_path, capsys):
    path = copy(tmp_path, "series_format_1")
    with h5py.File(path, "r+") as file:
        file[f"series/metadatabundle/{nodes.TAG}/format"][()] = 2
    with pytest.raises(ValueError, match=r"series_format_1.h5.*in format 2.*update it"):
        open_series(path)
    with pytest.raises(ValueError, match="update it"):
        py4dstem_clustering.cluster_series([DATA / "release_0.1.0.h5"], out=path)
    assert main(["series", str(DATA / "release_0.1.0.h5"), "--out", str(path), "--quiet"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_frame_of_a_newer_format(tmp_path):
    path = copy(tmp_path, "series_format_1")
    with h5py.File(path, "r+") as file:
        file[f"series/frame_000002/metadatabundle/{nodes.TAG}/format"][()] = 3
    series = open_series(path)
    assert len(series[0]) == 4
    with pytest.raises(ValueError, match=r"series_format_1.h5.*in format 3.*update it"):
        series[2]


def test_what_is_written_says_its_format_and_version(cube):
    node = cube.cluster(threshold=0.5, progress_bar=False).to_node()
    tagged = node.metadata[nodes.TAG]._params
    assert tagged["format"] == nodes.FORMAT == 1
    assert tagged["version"] == py4dstem_clustering.__version__


# --- nodes that are not what they say ------------------------------------------------------------


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
        load_scan(tmp_path / "scan.h5")


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


# --- files that are no series, or no more --------------------------------------------------------


def lines_of(error):
    return str(error.value).splitlines()


SIGNATURE = b"\x89HDF\r\n\x1a\n"


@pytest.mark.parametrize(
    "content", [b"", b"x" * 3000, b"\x89HDF\r\n\x1a\n", "cut", "emd", "foreign"]
)
def test_what_is_no_series(tmp_path, content):
    path = tmp_path / "x.h5"
    if content == "cut":
        whole = (DATA / "series_format_1.h5").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "emd":
        path.write_bytes((DATA / "release_0.1.0.h5").read_bytes())
    elif content == "foreign":
        with h5py.File(path, "w") as file:
            file["series"] = np.arange(3)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x.h5") as error:
        open_series(path)
    assert len(lines_of(error)) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("frame", 5), ("frame", "0"), ("time", np.nan), ("n_clusters", -1), ("n_clusters", 3),
     ("source", 4)],
)  # fmt: skip
def test_what_is_known_of_a_frame_is_damaged(tmp_path, key, value):
    path = copy(tmp_path, "series_format_1")
    with h5py.File(path, "r+") as file:
        group = file["series/frame_000002/metadatabundle/frame"]
        kind = "string" if isinstance(value, str) else "number"
        del group[key]
        group[key] = value.encode() if kind == "string" else value
        group[key].attrs["type"] = kind
    with pytest.raises(ValueError, match=r"series_format_1.h5.* damaged: its (\w+)") as error:
        open_series(path)[2]
    assert len(lines_of(error)) == 1


@pytest.mark.parametrize("name", ["image", "averages", "seeds", "similarity_mean"])
def test_a_frame_that_lacks_something(tmp_path, name):
    path = copy(tmp_path, "series_format_1")
    with h5py.File(path, "r+") as file:
        del file[f"series/frame_000000/metadatabundle/arrays/{name}"]
    series = open_series(path)
    with pytest.raises(ValueError, match=rf"series_format_1.h5: 'frame_000000' .* its {name} of"):
        series[0]
    assert len(series[2]) == 4


# --- hostile files -------------------------------------------------------------------------------

HOSTILE = """
import resource, sys, time
from pathlib import Path
import numpy, h5py, py4DSTEM, py4dstem_clustering as pc
from py4dstem_clustering import open_scan, open_series
from py4dstem_clustering.scan.loading import load_scan

def frames(path):
    for clusters in open_series(path):
        pass

def scan(path):
    open_scan(path, dataset="data").data[0]

readers = {"series": frames, "load": load_scan, "open": scan}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + 2**29,) * 2)
for name, reader in zip(sys.argv[1::2], sys.argv[2::2]):
    start = time.perf_counter()
    try:
        readers[reader](Path(name))
        print("read")
    except (ValueError, OSError) as error:
        print(type(error).__name__, error)
    print(time.perf_counter() - start)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def errors_of(files):
    """Errors of readers in a process of its own, which take little memory and time."""
    arguments = [str(part) for pair in files for part in pair]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", HOSTILE,
         *arguments],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, megabytes = done.stdout.splitlines()
    assert len(lines) == 2 * len(files), lines
    assert max(map(float, lines[1::2])) < 5
    assert float(megabytes) < 150
    for (path, _), text in zip(files, lines[::2], strict=True):
        assert re.match(r"(OSError|ValueError) ", text), (path, text)
        assert path.name in text
    return lines[::2]


def huge(group, name, **options):
    attributes = dict(group[name].attrs)
    del group[name]
    dataset = group.create_dataset(name, (2**20, 2**15), dtype="f8", **options)
    dataset.attrs.update(attributes)


def nest(group, depth=2000):
    for _ in range(depth):
        group = group.create_group("x")
        group.attrs["type"] = "dict"


def virtual(group, name):
    attributes = dict(group[name].attrs)
    del group[name]
    layout = h5py.VirtualLayout((2**20, 2**15), "f8")
    layout[...] = h5py.VirtualSource("/etc/passwd", "x", shape=(2**20, 2**15))
    group.create_virtual_dataset(name, layout).attrs.update(attributes)


def raw(group, name):
    attributes = dict(group[name].attrs)
    del group[name]
    data = group.create_dataset(name, (8, 7), "f4", external=[("/etc/passwd", 0, 224)])
    data.attrs.update(attributes)


def packed(group, name):
    """Chunks of which one is written: 2**35 bytes."""
    huge(group, name, chunks=(64, 2**15), compression="gzip")
    group[name][:64] = 0


def chunk(group, name):
    """A dataset of a few values in a chunk of 4 GB."""
    attributes = dict(group[name].attrs)
    del group[name]
    data = group.create_dataset(
        name, (8, 7), "f4", maxshape=(None, None), chunks=(2**15, 2**14 - 1), compression="gzip"
    )
    data.attrs.update(attributes)


FRAME = "series/frame_000000"
ARRAYS_OF = f"{FRAME}/metadatabundle/arrays"
WAYS = {
    "declared": lambda f: huge(f[ARRAYS_OF], "image"),
    "declared in chunks": lambda f: huge(f[ARRAYS_OF], "image", chunks=(1, 2**15)),
    "packed": lambda f: packed(f[ARRAYS_OF], "image"),
    "a large chunk": lambda f: chunk(f[ARRAYS_OF], "image"),
    "virtual": lambda f: virtual(f[ARRAYS_OF], "image"),
    "raw": lambda f: raw(f[ARRAYS_OF], "image"),
    "external": lambda f: f[ARRAYS_OF].__setitem__("x", h5py.ExternalLink("/etc/passwd", "/")),
    "soft": lambda f: f[ARRAYS_OF].__setitem__("x", h5py.SoftLink("/series")),
    "loop": lambda f: f[ARRAYS_OF].__setitem__("x", f["series"]),
    "nested": lambda f: nest(f[f"{FRAME}/metadatabundle/settings"]),
    "objects": lambda f: f[ARRAYS_OF].create_dataset("x", (3,), h5py.string_dtype()),
    "compound": lambda f: f[ARRAYS_OF].create_dataset("x", (3,), [("a", int)]),
    "class": lambda f: f[f"{FRAME}/metadatabundle/arrays"].attrs.modify("python_class", "DataCube"),
    "attribute": lambda f: f[FRAME].attrs.create("python_class", np.arange(2000)),
}  # fmt: skip


@POSIX
@pytest.mark.slow
def test_hostile_files_take_no_memory_and_no_time(tmp_path):
    files = []
    for way, change in WAYS.items():
        path = tmp_path / f"series {way}.h5"
        path.write_bytes((DATA / "series_format_1.h5").read_bytes())
        with h5py.File(path, "r+") as file:
            change(file)
        files.append((path, "series"))
    for way in ("declared", "external", "nested"):
        path = tmp_path / f"scan {way}.h5"
        path.write_bytes((DATA / "release_0.1.0.h5").read_bytes())
        with h5py.File(path, "r+") as file:
            group = file["cube_root/cube"]
            if way == "declared":
                del group["data"]
                huge = group.create_dataset("data", (2**12, 2**12, 2**8, 2**8), "u2")
                huge.attrs["units"] = "x"
            elif way == "nested":
                nest(group["clusters/metadatabundle/settings"])
            else:
                group["x"] = h5py.ExternalLink("/etc/passwd", "/")
        files.append((path, "load"))
    # Zeros in a heap of texts, as where a disk lost a block: HDF5 goes round in it without end.
    for name, reader in (("series_format_1", "series"), ("release_0.1.0", "load")):
        path = tmp_path / f"{name} zeros.h5"
        content = bytearray((DATA / f"{name}.h5").read_bytes())
        for heap in re.finditer(b"GCOL", content):
            content[heap.start() + 16 : heap.start() + 80] = bytes(64)
        path.write_bytes(content)
        files.append((path, reader))
    path = tmp_path / "scan unwritten.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (2**14, 2**14, 2**9, 2**9), "u2", chunks=(1, 1, 2**9, 2**9))
    files.append((path, "open"))
    assert "was not written to its end" in errors_of(files)[-1]


@pytest.mark.parametrize("way", WAYS)
def test_a_hostile_series(tmp_path, way):
    path = copy(tmp_path, "series_format_1")
    with h5py.File(path, "r+") as file:
        WAYS[way](file)
    start = time.perf_counter()
    with pytest.raises((OSError, ValueError), match=r"series_format_1.h5") as error:
        open_series(path)[0]
    assert time.perf_counter() - start < 5
    assert len(lines_of(error)) == 1


@pytest.mark.parametrize("link", [h5py.SoftLink("/other"), h5py.ExternalLink("other.h5", "series")])
def test_a_link_for_the_series_itself(tmp_path, link):
    path = copy(tmp_path, "series_format_1")
    with h5py.File(path, "r+") as file:
        file.move("series", "other")
        file["series"] = link
    (tmp_path / "other.h5").write_bytes((DATA / "series_format_1.h5").read_bytes())
    with pytest.raises(ValueError, match=r"series_format_1.h5.*is a link to .*not followed"):
        open_series(path)


def test_many_attributes_and_names(tmp_path):
    path = copy(tmp_path, "series_format_1")
    with h5py.File(path, "r+") as file:
        for k in range(300):
            file["series"].attrs[f"a{k}"] = "x" * 50
            file[f"series/frame_{k}x"] = k
            file[f"series/frame_٠٠٠{k:03d}"] = k  # digits of another script
    start = time.perf_counter()
    assert len(open_series(path)) == 3
    assert time.perf_counter() - start < 5


def test_names_in_a_journal_are_no_paths(tmp_path):
    path = tmp_path / "s.h5"
    journal = tmp_path / "s.h5.frames"
    journal.mkdir()
    (journal / "frame_000000.h5").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(journal / "frame_000001.h5")  # opening one waits for ever
    (journal / "frame_000002.h5").write_bytes(SIGNATURE)
    with pytest.raises(ValueError, match="holds no series"):
        open_series(path)


def test_a_master_file_that_leads_elsewhere(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    with h5py.File(tmp_path / "out.h5", "w") as file:
        file["entry/data/data"] = np.ones((4, 5, 6), "u2")
    with h5py.File(folder / "a_master.h5", "w") as file:
        file["entry/data/data_000001"] = h5py.ExternalLink("../out.h5", "entry/data/data")
        file["entry"].attrs["NX_class"] = "NXentry"
    with pytest.raises(OSError, match=r"a_master.h5.*'../out.h5', another file.*not followed"):
        load_scan(folder / "a_master.h5")


# --- NumPy ---------------------------------------------------------------------------------------


def header(shape, descr="'<u2'", version=b"\x01\x00"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text


NPY = {
    "huge": header((2**20, 2**20, 2**10, 2**10)),
    "negative": header((-1, 2, 3, 4)) + bytes(48),
    "objects": header((1, 1, 2, 2), "'|O'") + bytes(32),
    "records": header((1, 1, 2, 2), "[('a', '<u2'), ('b', '<u2')]") + bytes(16),
    "code": header("__import__('os').system('false')") + bytes(64),
    "cut": header((4, 3, 6, 5))[:40],
    "flat": header((720,)) + bytes(1440),
    "version": header((4, 3, 6, 5), version=b"\x09\x00") + bytes(720),
    "pickle": b"\x80\x04cos\nsystem\n(S'false'\ntR.",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("kind", NPY)
def test_a_hostile_npy(tmp_path, kind):
    path = tmp_path / "x.npy"
    path.write_bytes(NPY[kind])
    with pytest.raises((ValueError, TypeError), match=r"x.npy") as error:
        load_scan(path)
    assert len(lines_of(error)) == 1


def test_a_command_on_a_hostile_npy(tmp_path, capsys):
    path = tmp_path / "x.npy"
    path.write_bytes(NPY["objects"])
    assert main(["cluster", str(path), "--out", str(tmp_path / "out.h5")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "kind", ["huge", "objects", "cut", "version", "nothing", "packed", "bz2", "foreign", "two"]
)
def test_a_hostile_npz(tmp_path, kind):
    path = tmp_path / "x.npz"
    packing = zipfile.ZIP_BZIP2 if kind == "bz2" else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w", packing) as archive:
        if kind == "foreign":
            archive.writestr("../../x.txt", "text")
        elif kind == "packed":
            archive.writestr("a.npy", header((1, 1, 2**12, 2**12)) + bytes(1000))
        elif kind == "bz2":
            archive.writestr("a.npy", header((4, 3, 6, 5)) + bytes(720))
        else:
            archive.writestr("a.npy", NPY.get(kind, b""))
        if kind == "two":
            archive.writestr("b.npy", b"")
    with pytest.raises((ValueError, TypeError), match=r"x.npz") as error:
        load_scan(path)
    assert len(lines_of(error)) == 1


def test_npz_files_are_read(tmp_path):
    scan = np.arange(360, dtype=np.uint16).reshape(4, 3, 6, 5)
    for save in (np.savez, np.savez_compressed):
        save(
            tmp_path / "a.npz", scan=scan, zeros=np.zeros((9, 9, 30, 30)), f=np.asfortranarray(scan)
        )
        for key in ("scan", "f"):
            np.testing.assert_array_equal(load_scan(tmp_path / "a.npz", key).data, scan)
        assert not load_scan(tmp_path / "a.npz", "zeros").data.any()
        with pytest.raises(ValueError, match=r"key must name one of .*: scan, zeros, f"):
            load_scan(tmp_path / "a.npz")


# --- no code from files --------------------------------------------------------------------------


def test_nothing_of_a_file_is_run():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for pattern in (
            r"\bpickle\b(?!d)", r"\bmarshal\b", r"\bshelve\b", r"\bjoblib\b", r"(?<![\w.])eval\(",
            r"(?<![\w.])exec\(", r"__import__\(", r"allow_pickle\s*=\s*True", r"yaml\.load",
        ):  # fmt: skip
            assert not re.search(pattern, text), f"{pattern} in {path}"
        for call in re.findall(r"(?:np|numpy)\.(?:load|fromfile)\(.*", text):
            assert "allow_pickle=False" in call, call


# --- damaged at random ---------------------------------------------------------------------------


def fuzz(first, count):
    """How cases of tests/data/fuzz.py end, also by a crash or never; and those that are bad."""
    outcomes, bad = Counter(), []
    number, end = first, first + count
    while number < end:
        done = subprocess.run(
            [sys.executable, str(DATA / "fuzz.py"), str(number), str(end - number)],
            capture_output=True, text=True, timeout=120 + 2 * count, check=False,
        )  # fmt: skip
        started = number
        # emdfile prints what it tries.
        for line in re.findall(r"^(?:start|end) \d+.*$", done.stdout, re.MULTILINE):
            what, place, *rest = line.split(maxsplit=3)
            number = int(place) + 1
            if what == "start":
                started = number
                continue
            started, (outcome, text) = None, rest
            if outcome == "BAD":
                bad.append(f"case {place}: {text}")
            outcomes[outcome] += 1
        if done.returncode or started is not None:
            # Which function was at work; HDF5 has loops and faults of its own.
            main_thread = re.split(r"\n(?=Thread|Current thread)", done.stderr)[-1]
            files = re.findall(r'File "(.*?)", line', main_thread)
            in_hdf5 = bool(files) and "h5py" in files[0]
            what = "hang" if done.stderr.startswith("Timeout") else "crash"
            own = next((f for f in files if "/emdfile/" in f or f.startswith(str(PACKAGE))), "")
            whose = "this package" if own.startswith(str(PACKAGE)) else "py4DSTEM"
            outcomes[f"{what} in HDF5, called by {whose}" if in_hdf5 else what] += 1
            print(f"case {number - 1}: {what}", *files[:6], sep="\n  ")
            if not in_hdf5:
                bad.append(f"case {number - 1} ended with {done.returncode}: {done.stderr[-1500:]}")
    return outcomes, bad


@POSIX
@pytest.mark.slow
def test_files_that_are_damaged_at_random():
    count = int(os.environ.get("FUZZ_CASES", "150"))
    first = int(os.environ.get("FUZZ_FIRST", "0"))
    outcomes, bad = fuzz(first, count)
    print(dict(outcomes))
    assert not bad, "\n".join(bad)
    assert outcomes.total() == count
    assert outcomes["read"] > count / 10
    assert outcomes["refused"] > count / 10


def test_a_command_on_a_damaged_file(tmp_path, capsys):
    path = copy(tmp_path, "release_0.1.0")
    whole = path.read_bytes()
    for content in (whole[: len(whole) - 100], b"no HDF5", whole[2000:]):
        path.write_bytes(content)
        assert main(["cluster", str(path), "--out", str(tmp_path / "out.h5"), "--quiet"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(path) in line
        with pytest.raises((OSError, ValueError), match=r"release_0.1.0.h5"):
            open_scan(path, dataset="cube_root/cube/data")
