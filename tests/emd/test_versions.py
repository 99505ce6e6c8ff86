"""Files of older and newer versions."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from stored import DATA, READERS, copy, node_of, read

import py4dstem_clustering
from py4dstem_clustering import (
    Clusters,
    ClusterTree,
    Similarity,
    open_series,
    orientation_from_node,
)
from py4dstem_clustering.cli.main import main
from py4dstem_clustering.emd import nodes
from py4dstem_clustering.scan.opening import open_scan

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


# --- older versions ------


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
    assert np.asarray(open_scan(DATA / "release_0.1.0.h5").data).sum(dtype=int) == 67111


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


# --- newer versions -----


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
