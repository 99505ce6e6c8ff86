"""Results of one scan that are used with another scan of the same shape."""

from __future__ import annotations

import numpy as np
import py4DSTEM
import pytest
from conftest import make_scan
from py4DSTEM import DataCube

from py4dstem_clustering import Clusters

QUIET = {"progress_bar": False}
FILTER = {"sigma": 1, "radius": 1, "corr_range": (0.2, 0.8), "edge": 2, **QUIET}


@pytest.fixture
def other():
    return DataCube(make_scan(seed=1), name="other")


USES = {
    "averages": lambda cube, made: cube.get_clustered_datacube(made.clusters, **QUIET),
    "mixture": lambda cube, made: made.clusters.get_mixture(cube, **QUIET),
    "similarity": lambda cube, made: cube.cluster(
        threshold=0.5, similarity=made.get_similarity(**QUIET)
    ),
    "tree": lambda cube, made: cube.explore_clusters(tree=made.get_cluster_tree(**QUIET), **QUIET),
}


@pytest.mark.parametrize("use", USES)
def test_what_was_made_from_another_scan_is_warned_of(cube, other, use):
    cube.cluster(threshold=0.5, **QUIET)
    match = "made from 'cube' .* data of this scan, 'other' .*, are others"
    with pytest.warns(UserWarning, match=match) as found:
        USES[use](other, cube)
    assert {warning.filename for warning in found} == {__file__}


@pytest.mark.parametrize("use", USES)
def test_a_filtered_scan_fits_its_source(cube, use, tmp_path):
    once = cube.filter_correlative(**FILTER, out=tmp_path / "once.h5")
    twice = py4DSTEM.read(tmp_path / "once.h5").filter_correlative(**FILTER)
    again = cube.filter_correlative(**{**FILTER, "radius": 2})
    for made in (cube, once, twice):
        made.cluster(threshold=0.5, **QUIET)
        for scan in (cube, once, twice, again):
            USES[use](scan, made)  # warnings are errors
    assert len(twice.cluster(threshold=0.5, **QUIET).settings["parents"]) == 2
    assert "parents" not in cube.cluster(threshold=0.5, **QUIET).settings
    once.data.file.close()


def test_clusters_from_a_file_know_their_scan(cube, other, tmp_path):
    filtered = cube.filter_correlative(**FILTER)
    filtered.cluster(threshold=0.5, **QUIET)
    py4DSTEM.save(tmp_path / "filtered.h5", filtered)
    clusters = py4DSTEM.read(tmp_path / "filtered.h5").clusters
    cube.get_clustered_datacube(clusters, **QUIET)
    with pytest.warns(UserWarning, match="the clusters were made from 'cube'"):
        other.get_clustered_datacube(clusters, **QUIET)


def test_what_knows_no_data_is_taken(cube, other):
    clusters = cube.cluster(threshold=0.5, **QUIET)
    plain = Clusters(clusters.labels, clusters.seeds, clusters.similarity_mean)
    other.get_clustered_datacube(plain, **QUIET)
    other.cluster(threshold=0.5, similarity=np.asarray(cube.get_similarity(**QUIET)))


def test_a_scan_that_was_changed_is_warned_of(cube):
    clusters = cube.cluster(threshold=0.5, **QUIET)
    cube.data[0, 4] += 1  # a pattern that the fingerprint holds
    with pytest.warns(UserWarning, match="unless you only changed its data since"):
        cube.get_clustered_datacube(clusters, **QUIET)
