"""The files of tests/data, their nodes, and what reads them."""

from __future__ import annotations

import os
from pathlib import Path

import py4DSTEM
import pytest

from py4dstem_clustering import Clusters, ClusterTree, Similarity, orientation_from_node

DATA = Path(__file__).parent / "data"
POSIX = pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")


def read(name):
    return py4DSTEM.read(str(DATA / f"{name}.h5"))


def copy(tmp_path, name):
    path = tmp_path / f"{name}.h5"
    path.write_bytes((DATA / f"{name}.h5").read_bytes())
    return path


READERS = {
    "grown": Clusters.from_node,
    "tree_of_merging": ClusterTree.from_node,
    "similarity": Similarity.from_node,
    "tree_of_growth": ClusterTree.from_node,
    "orientation_map": orientation_from_node,
}


def node_of(name):
    return read("clusters_format_1" if name == "grown" else "tree_format_1").tree(name)


def lines_of(error):
    return str(error.value).splitlines()
