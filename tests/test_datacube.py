"""The methods on DataCube: registration, results, and errors before any work."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys
import threading
from datetime import datetime

import dask.array as da
import h5py
import numpy as np
import py4DSTEM
import pytest
import reference
from conftest import DETECTOR, SCAN, first_quick, forbid, make_scan
from py4DSTEM import DataCube

import py4dstem_clustering
from py4dstem_clustering import Clusters, Similarity, open_scan, register, simulate_scan
from py4dstem_clustering.kernels import blocks
from py4dstem_clustering.kernels.similarity import similarity_mean
from py4dstem_clustering.scan.datacubes import fingerprint

QUIET = {"progress_bar": False}
FILTER = {"sigma": 1.2, "radius": 2, "corr_range": (0.3, 0.9), "edge": 2, **QUIET}


# --- registration ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "imports",
    first_quick(
        [
            "import py4DSTEM, py4dstem_clustering",
            "import py4dstem_clustering, py4DSTEM",
            "import py4dstem_clustering, importlib; importlib.reload(py4dstem_clustering)",
            "import py4dstem_clustering.datacube as d; d.register(); d.register()",
        ]
    ),
)
def test_registered_in_any_import_order_and_twice(imports):
    code = f"{imports}; from py4DSTEM import DataCube; print(DataCube.cluster.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "py4dstem_clustering.grains.clustering"


def test_registering_twice_and_reloading_is_harmless():
    register()
    importlib.reload(py4dstem_clustering)
    assert DataCube.cluster.__module__ == "py4dstem_clustering.grains.clustering"


def somebody_elses(self):
    """A function of another package."""


@pytest.mark.parametrize("held", [somebody_elses, property(somebody_elses), 5])
def test_a_name_of_somebody_else_stays_and_the_others_are_registered(held):
    class Parent:
        cluster = held

    class Cube(Parent):
        pass

    holder = rf"{__name__}\..*Parent, and stays as it is; call py4dstem_clustering.cluster\("
    with pytest.warns(UserWarning, match=rf"Cube.cluster exists already, in {holder}") as found:
        register(Cube)
    assert len(found) == 1
    assert "cluster" not in vars(Cube)
    assert Parent.__dict__["cluster"] is held
    assert Cube.filter_correlative is DataCube.filter_correlative
    register(type("Another", (), {}))  # no name is taken: warnings are errors


EVERYTHING = """
import warnings
import numpy as np
import py4DSTEM

TAKEN = (
    "filter_correlative", "get_similarity", "get_cluster_tree", "cluster", "get_clusters",
    "get_clustered_datacube", "explore_clusters", "cross_validate_orientation", "clusters",
)
for name in TAKEN:
    setattr(py4DSTEM.DataCube, name, lambda self, *args, **options: 1 / 0)
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    import py4dstem_clustering as p
ours = [str(w.message) for w in found if "py4dstem_clustering" in str(w.message)]
assert len(ours) == len(TAKEN), ours
assert all("in py4DSTEM.datacube.datacube.DataCube" in text for text in ours), ours
assert {text.split()[0] for text in ours} == {f"DataCube.{name}" for name in TAKEN}
scan = p.simulate_scan((24, 20), (48, 44), n_grains=3, seed=1)
cube, quiet = scan.datacube, {"progress_bar": False}
clusters = p.cluster(cube, **quiet)
filtered = p.filter_correlative(cube, **quiet)
similarity = p.get_similarity(cube, **quiet)
assert p.get_cluster_tree(cube, **quiet).cut().n_clusters == clusters.n_clusters == 3
assert p.get_clustered_datacube(cube, **quiet).shape == (3, 1, 48, 44)
assert p.get_clusters(cube).n_clusters == 3
import matplotlib
matplotlib.use("agg")
assert p.explore_clusters(cube, **quiet).clusters.n_clusters == 3
series = p.cluster_series([cube, cube], out="series.h5", filter=True, **quiet)
assert not series.errors
np.save("scan.npy", cube.data)
from py4dstem_clustering.cli import main
assert main(["cluster", "scan.npy", "--out", "merged.h5", "--quiet"]) == 0
assert main(["cluster", "scan.npy", "--out", "g.h5", "--quiet", "--filter"]) == 0
assert callable(p.cross_validate_orientation)
"""


def test_everything_can_be_had_where_all_names_are_taken(tmp_path):
    command = [sys.executable, "-c", EVERYTHING]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_functions_are_the_methods():
    names = [name for name in vars(DataCube) if name in py4dstem_clustering.__all__]
    assert len(names) == 10
    for name in names:
        assert getattr(py4dstem_clustering, name) is getattr(DataCube, name)


def test_a_class_may_have_clusters_of_its_own(scan):
    class Cube(DataCube):
        def __init__(self, data):
            self.clusters = "mine"
            super().__init__(data)

    cube = Cube(scan.copy())
    assert cube.clusters == "mine"
    made = cube.cluster(threshold=0.5, **QUIET)
    assert cube.get_clusters().n_clusters == made.n_clusters
    assert DataCube.clusters.__doc__.startswith("The newest clusters")


def test_help_shows_the_docstring():
    code = "import py4dstem_clustering; from py4DSTEM import DataCube; help(DataCube.cluster)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Find the grains: regions of the scan in which diffraction patterns" in done.stdout
    assert "threshold : float" in done.stdout


# --- filter ----------------------------------------------------------------------------------


def test_filter_of_every_kind_of_array(scan, wrap):
    result = DataCube(wrap(scan)).filter_correlative(**FILTER)
    options = {k: v for k, v in FILTER.items() if k != "progress_bar"}
    expected = reference.correlative_filter(scan, **options)
    np.testing.assert_allclose(result.data, expected, atol=1e-5 * expected.max())
    assert result.data.dtype == np.float32


def test_filter_carries_name_calibration_and_metadata(cube, scan):
    cube.metadata = py4DSTEM.Metadata("microscope", {"voltage": 300e3})
    result = cube.filter_correlative(**FILTER)
    assert result.name == "cube"
    assert cube.filter_correlative(**FILTER, name="other").name == "other"
    assert result.R_pixel_size == 2.5
    assert result.Q_pixel_units == "A^-1"
    np.testing.assert_array_equal(result.calibration.get_qx0(), cube.calibration.get_qx0())
    assert result.metadata["microscope"]["voltage"] == 300e3
    assert result.metadata["filter_correlative"]["radius"] == 2
    np.testing.assert_array_equal(cube.data, scan)  # raw data are never changed
    result.calibration.set_R_pixel_size(7)
    result.calibration.get_qx0()[:] = 0
    assert cube.R_pixel_size == 2.5  # a copy
    assert cube.calibration.get_qx0().any()


def test_results_share_nothing_with_the_scan(cube):
    cube.metadata = py4DSTEM.Metadata("microscope", {"voltage": 300e3, "log": [1, 2]})
    cube.calibration["probe"] = [1, 2]
    cube.cluster(threshold=0.5, **QUIET)
    filtered, averages = cube.filter_correlative(**FILTER), cube.get_clustered_datacube(**QUIET)
    for result in (filtered, averages):
        result.metadata["microscope"]["log"].append(3)
        result.metadata["microscope"]["voltage"] = 80e3
        result.calibration["probe"].append(3)
    assert cube.metadata["microscope"]["log"] == [1, 2]
    assert cube.metadata["microscope"]["voltage"] == 300e3
    assert cube.calibration["probe"] == [1, 2]
    assert set(cube.metadata) == {"microscope"}
    averages.data[:] = 0
    assert cube.tree("clusters").metadata["arrays"]["averages"].any()


def test_filtering_twice_keeps_both_settings(cube):
    once = cube.filter_correlative(**FILTER)
    twice = once.filter_correlative(**{**FILTER, "radius": 1}, name="twice")
    thrice = twice.filter_correlative(**FILTER)
    assert twice.metadata["filter_correlative"]["radius"] == 2
    assert twice.metadata["filter_correlative_2"]["radius"] == 1
    assert thrice.metadata["filter_correlative_3"]["source"] == "twice"


def test_filter_through_a_link(cube, tmp_path):
    target = tmp_path / "elsewhere"
    target.mkdir()
    link = tmp_path / "link.h5"
    (target / "scan.h5").write_text("old")
    link.symlink_to(target / "scan.h5")
    cube.filter_correlative(**FILTER, out=link, overwrite=True)
    assert link.is_symlink()
    assert py4DSTEM.read(target / "scan.h5").shape == cube.shape


def test_the_chunks_of_a_file(tmp_path):
    wide = DataCube(make_scan((2, 300), (14, 11)))
    result = wide.filter_correlative(**FILTER, out=tmp_path / "x.h5")
    assert 2**15 < 4 * np.prod(result.data.chunks) <= 2**16
    assert result.data.file.mode == "r"


def test_filter_to_a_file_needs_a_name_that_fits(tmp_path):
    cube = DataCube(make_scan(), name="a/b")
    with pytest.raises(ValueError, match="name='a/b' cannot be stored"):
        cube.filter_correlative(**FILTER, out=tmp_path / "x.h5")
    assert cube.filter_correlative(**FILTER, out=tmp_path / "x.h5", name="ab").name == "ab"


def test_n_jobs_reaches_the_kernels(cube, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "py4dstem_clustering.kernels.blocks.count_jobs", lambda n: asked.append(n) or 1
    )
    cube.filter_correlative(**FILTER, n_jobs=3)
    cube.cluster(threshold=0.5, n_jobs=4, **QUIET)
    cube.get_similarity(n_jobs=5, **QUIET)
    cube.get_clustered_datacube(n_jobs=6, **QUIET)
    assert asked == [3, 4, 5, 6]


def test_a_datacube_without_calibration(cube):
    del cube.root._metadata["calibration"]
    assert cube.cluster(threshold=0.5, **QUIET).pixel_size == 1
    assert cube.filter_correlative(**FILTER).R_pixel_size == 1


def test_filter_to_a_file(cube, tmp_path):
    path = tmp_path / "filtered.h5"
    result = cube.filter_correlative(**FILTER, out=path)
    assert isinstance(result.data, h5py.Dataset)
    assert result.data.chunks is not None
    assert result.R_pixel_size == 2.5
    expected = cube.filter_correlative(**FILTER)
    np.testing.assert_array_equal(result.data[:], expected.data)
    assert [p.name for p in tmp_path.iterdir()] == ["filtered.h5"]

    read = py4DSTEM.read(path)  # a file of py4DSTEM
    np.testing.assert_array_equal(read.data, expected.data)
    assert read.Q_pixel_size == 0.02
    assert read.calibration.get_ellipse() == cube.calibration.get_ellipse()
    assert read.metadata["filter_correlative"]["corr_range"] == (0.3, 0.9)
    for n in range(4):
        np.testing.assert_allclose(read.dim(n), cube.dim(n))
        assert read.get_dim_units(n) == cube.get_dim_units(n)

    clusters = result.cluster(threshold=0.5, **QUIET)  # reads from the disk
    assert clusters.n_clusters > 0


def test_out_is_replaced_only_when_told(cube, tmp_path):
    path = tmp_path / "filtered.h5"
    path.write_text("precious")
    with pytest.raises(ValueError, match="exists; give another name, or overwrite=True"):
        cube.filter_correlative(**FILTER, out=path)
    assert path.read_text() == "precious"
    cube.filter_correlative(**FILTER, out=path, overwrite=True)
    assert py4DSTEM.read(path).shape == cube.shape


def test_filter_never_replaces_what_it_reads(cube, tmp_path):
    path = tmp_path / "scan.h5"
    first = cube.filter_correlative(**FILTER, out=path)
    np.save(tmp_path / "scan.npy", cube.data)
    mapped = np.load(tmp_path / "scan.npy", mmap_mode="r")
    (tmp_path / "link").symlink_to(tmp_path / "scan.npy")
    opened = open_scan(path, dataset=f"{first.root.name}/{first.name}/data")
    for data, out in (
        (first.data, path),
        (mapped, tmp_path / "scan.npy"),
        (mapped[1:, ::-1], tmp_path / "link"),
        (opened.data, path),
    ):
        before = out.read_bytes()
        with pytest.raises(ValueError, match="is the file of the scan itself; give another name"):
            DataCube(data).filter_correlative(**FILTER, out=out, overwrite=True)
        assert out.read_bytes() == before
    opened.data.close()
    other = DataCube(mapped.copy()).filter_correlative(
        **FILTER, out=tmp_path / "scan.npy", overwrite=True
    )
    np.testing.assert_array_equal(other.data[:], first.data[:])


@pytest.mark.parametrize("scan_shape", [(1, 5), (5, 1), (1, 1), (2, 2)])
def test_thin_scans_go_all_the_way(scan_shape, tmp_path):
    cube = DataCube(make_scan(scan_shape, (9, 8)), name="thin")
    path = tmp_path / "thin.h5"
    filtered = cube.filter_correlative(**{**FILTER, "edge": 1}, out=path)
    clusters = filtered.cluster(threshold=-1, **QUIET)
    assert clusters.n_clusters == 1
    averages = cube.get_clustered_datacube(clusters, **QUIET)
    np.testing.assert_allclose(averages.data[0, 0], cube.data.mean(axis=(0, 1)), rtol=1e-6)
    py4DSTEM.save(tmp_path / "all.h5", cube)
    assert py4DSTEM.read(tmp_path / "all.h5").clusters.labels.shape == scan_shape


# --- similarity ------------------------------------------------------------------------------


def test_similarity_of_every_kind_of_array(scan, wrap):
    q_mask = np.indices(DETECTOR)[0] > 2
    result = DataCube(wrap(scan)).get_similarity(q_mask=q_mask, sigma=1, **QUIET)
    np.testing.assert_allclose(result, reference.similarity(scan, q_mask, 1), atol=1e-5)


def test_similarity_is_kept_in_the_tree(cube):
    result = cube.get_similarity(**QUIET)
    node = cube.tree("similarity")
    assert type(node) is py4DSTEM.Array
    np.testing.assert_array_equal(node.data, result.data)
    assert node.metadata["directions"]["7"] == "(0, 1)"
    assert node.dim_names == ("Rx", "Ry", "direction")
    assert cube.get_similarity(returncalc=False, name="again", **QUIET) is None
    assert cube.tree("again").data.shape == (*SCAN, 8)


# --- cluster ---------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [-1, 0.3, 0.6, 0.8, 0.95, 1])
def test_cluster_equals_growth(cube, threshold):
    clusters = cube.cluster(threshold=threshold, min_size=2, **QUIET)
    s = np.asarray(cube.get_similarity(**QUIET))
    labels, seeds = reference.growth(s, similarity_mean(s), np.ones(SCAN, bool), threshold, 2)
    np.testing.assert_array_equal(clusters.labels, labels)
    np.testing.assert_array_equal(clusters.seeds, seeds)


def test_cluster_takes_a_similarity_made_earlier(cube, monkeypatch):
    q_mask = np.indices(DETECTOR)[0] > 2
    similarity = cube.get_similarity(q_mask=q_mask, sigma=1, **QUIET)
    expected = cube.cluster(threshold=0.8, q_mask=q_mask, sigma=1, **QUIET)
    forbid(monkeypatch, "similarity_core")  # the similarity is not measured again
    for given in (similarity, cube.tree("similarity"), np.array(similarity)):
        clusters = cube.cluster(threshold=0.8, similarity=given)
        np.testing.assert_array_equal(clusters.labels, expected.labels)
    clusters = cube.cluster(threshold=0.8, similarity=similarity)
    assert clusters.similarity is similarity
    assert clusters.settings["sigma"] == 1
    np.testing.assert_array_equal(clusters.settings["q_mask"], q_mask)


def test_cluster_hands_on_what_belongs_to_the_similarity(cube):
    q_mask = np.ones(DETECTOR, bool)
    q_mask[0] = False
    options = {"q_mask": q_mask, "sigma": 0.7, "subtract_mean": False}
    clusters = cube.cluster(threshold=0.5, **options, **QUIET)
    expected = cube.get_similarity(**options, **QUIET)
    np.testing.assert_array_equal(clusters.similarity.data, expected.data)
    assert q_mask.flags.writeable
    q_mask[:] = True
    assert not clusters.settings["q_mask"][0].any()


def test_settings_hold_every_argument_and_both_versions(cube):
    clusters = cube.cluster(threshold=0.9, r_mask="otsu", min_size=2, **QUIET)
    assert dict(clusters.settings) == {
        "method": "grow",
        "threshold": 0.9,
        "n_clusters": None,
        "min_size": 2,
        "r_mask": "otsu",
        "q_mask": None,
        "sigma": 0.0,
        "subtract_mean": True,
        "name": "clusters",
    }
    noted = clusters.settings.noted
    assert noted.pop("seconds") > 0
    assert datetime.fromisoformat(noted.pop("created")).tzinfo is not None
    assert noted == {
        "level": 0.9,
        "n_lost": 0,
        "source": cube.name,
        "fingerprint": fingerprint(cube.data),
        "shape": cube.data.shape,
        "py4dstem_clustering_version": py4dstem_clustering.__version__,
        "py4DSTEM_version": py4DSTEM.__version__,
    }
    with pytest.raises(TypeError, match="unexpected keyword argument 'gain'"):
        cube.cluster(gain=2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_size": 4, "drop_background": False, "rank": 3},
        {"n_clusters": 3},
        {"method": "merge", "threshold": 1.5, "q_mask": np.indices(DETECTOR)[0] > 2},
        {"threshold": 0.8, "q_mask": np.indices(DETECTOR)[0] > 2, "sigma": 1, "min_size": 3},
        {"threshold": "auto", "r_mask": "otsu", "subtract_mean": False},
        {"method": "grow", "n_clusters": 4, "r_mask": 0.2, "name": "other"},
    ],
)
@pytest.mark.parametrize("through_file", [False, True])
def test_settings_repeat_a_result(cube, tmp_path, options, through_file):
    clusters = cube.cluster(**options, **QUIET)
    if through_file:
        py4DSTEM.save(str(tmp_path / "scan.h5"), cube)
        clusters = py4DSTEM.read(str(tmp_path / "scan.h5")).clusters
    again = cube.cluster(**clusters.settings, **QUIET)
    np.testing.assert_array_equal(again.labels, clusters.labels)
    assert again.name == clusters.name
    assert again.settings.noted.keys() == clusters.settings.noted.keys()
    changes = {"created", "seconds"}
    for key, value in again.settings.everything.items():
        if key not in changes:
            np.testing.assert_equal(clusters.settings[key], value)


def test_settings_of_a_similarity_that_cluster_does_not_make(cube):
    similarity = cube.get_similarity(noise_correct=True, gain=1, **QUIET)
    clusters = cube.cluster(threshold=0.5, similarity=similarity)
    again = cube.cluster(**clusters.settings, similarity=clusters.similarity)
    np.testing.assert_array_equal(again.labels, clusters.labels)


@pytest.mark.parametrize("r_mask", ["triangle", "otsu", "li", "mean", "yen", "isodata", 0.6, -0.5])
def test_r_mask_by_name_and_number(cube, r_mask):
    import skimage.filters

    similarity = cube.get_similarity(**QUIET)
    level = r_mask
    if isinstance(r_mask, str):
        level = getattr(skimage.filters, f"threshold_{r_mask}")(similarity.mean.ravel())
    clusters = cube.cluster(threshold=-1, r_mask=r_mask, similarity=similarity)
    np.testing.assert_array_equal(clusters.labels >= 0, similarity.mean > level)


def test_r_mask_as_a_map(cube):
    r_mask = np.zeros(SCAN, bool)
    r_mask[1:4, 2:7] = True
    clusters = cube.cluster(threshold=-1, r_mask=r_mask, **QUIET)
    np.testing.assert_array_equal(clusters.labels == 0, r_mask)


def test_nothing_stands_out():
    flat = DataCube(np.ones((4, 5, 6, 7), np.float32))
    clusters = flat.cluster(r_mask="triangle", **QUIET)
    assert clusters.n_clusters == 0
    assert "0 clusters" in repr(clusters)
    assert flat.clusters.n_clusters == 0
    with pytest.raises(ValueError, match="nothing to average; lower the threshold"):
        flat.get_clustered_datacube(**QUIET)


@pytest.mark.parametrize("method", ["merge", "grow"])
def test_no_position_is_left(cube, method):
    clusters = cube.cluster(method=method, r_mask=1.0, **QUIET)
    assert clusters.n_clusters == 0
    assert (clusters.labels == -1).all()


def test_a_threshold_that_cannot_be_found(cube, monkeypatch):
    def fail(values):
        raise RuntimeError("Unable to find two maxima in histogram")

    monkeypatch.setattr("skimage.filters.threshold_minimum", fail)
    with pytest.raises(ValueError, match="'minimum' finds no threshold"):
        cube.cluster(r_mask="minimum", **QUIET)


def test_clusterings_live_side_by_side(cube):
    with pytest.raises(AttributeError, match=r"no clusters; make some with datacube.cluster"):
        cube.clusters  # noqa: B018
    assert not hasattr(cube, "clusters")
    zebra = cube.cluster(threshold=0.3, name="zebra", **QUIET)
    fine = cube.cluster(threshold=0.95, name="fine", **QUIET)
    assert cube.clusters.name == "fine"  # the newest, not the last by name
    np.testing.assert_array_equal(cube.get_clusters("zebra").labels, zebra.labels)
    np.testing.assert_array_equal(cube.get_clusters("fine").labels, fine.labels)
    cube.cluster(threshold=0.5, name="zebra", **QUIET)
    assert cube.clusters.settings["threshold"] == 0.5  # replaced, and newest again
    with pytest.raises(ValueError, match="no clusters are called 'x'; there are fine, zebra"):
        cube.get_clusters("x")


def test_clusters_in_the_tree_follow_the_calibration(cube):
    cube.cluster(threshold=0.5, **QUIET)
    assert cube.clusters.pixel_size == 2.5
    cube.calibration.set_R_pixel_size(4)
    assert cube.clusters.pixel_size == 4


def test_a_foreign_node_is_not_replaced(cube):
    cube.attach(py4DSTEM.RealSlice(np.zeros(SCAN), name="mine"))
    for call in (cube.cluster, cube.get_similarity):
        with pytest.raises(ValueError, match=r"name='mine' is taken.*RealSlice"):
            call(name="mine", **QUIET)
    cube.get_similarity(**QUIET)
    with pytest.raises(ValueError, match="name='similarity' is taken"):
        cube.cluster(name="similarity", **QUIET)


def test_a_taken_name_is_refused_before_any_work(cube, monkeypatch):
    cube.attach(py4DSTEM.RealSlice(np.zeros(SCAN), name="mine"))
    mine = dataclasses.replace(cube.cluster(threshold=0.5, **QUIET), name="mine")
    forbid(monkeypatch, "similarity_core", "averaging_core")
    for call in (
        lambda: cube.cluster(name="mine", **QUIET),
        lambda: cube.get_similarity(name="mine", **QUIET),
        lambda: cube.get_clustered_datacube(mine, **QUIET),
    ):
        with pytest.raises(ValueError, match="taken"):
            call()


def test_returncalc(cube):
    assert cube.cluster(threshold=0.5, returncalc=False, **QUIET) is None
    assert isinstance(cube.clusters, Clusters)


def test_growth_order_starts_at_the_seed_and_never_leaves_the_cluster(cube):
    clusters = cube.cluster(threshold=0.6, min_size=3, **QUIET)
    similarity = clusters.similarity
    for k in range(clusters.n_clusters):
        order = clusters.growth_order(k)
        assert order[0].tolist() == clusters.seeds[k].tolist()
        assert sorted(order.tolist()) == clusters.members(k).tolist()
        steps = clusters.growth_steps(k)
        assert (np.diff(steps[tuple(order.T)]) >= 0).all()
        for position in order[1:]:  # each has a neighbour that joined one step before
            before = np.argwhere(steps == steps[tuple(position)] - 1)
            offsets = [tuple(d) for d in before - position]
            alike = [
                similarity[tuple(position)][i] >= 0.6
                for i, d in enumerate(similarity.directions)
                if d in offsets
            ]
            assert any(alike)


# --- averages --------------------------------------------------------------------------------


def test_averages_of_every_kind_of_array(scan, wrap):
    cube = DataCube(wrap(scan))
    clusters = cube.cluster(threshold=0.6, min_size=3, **QUIET)
    averages = cube.get_clustered_datacube(**QUIET)
    assert averages.shape == (clusters.n_clusters, 1, *DETECTOR)
    np.testing.assert_allclose(
        averages.data[:, 0], reference.averages(scan, clusters.labels), rtol=1e-6
    )


def test_averages_of_the_raw_scan_with_clusters_of_the_filtered_one(cube):
    clusters = cube.filter_correlative(**FILTER).cluster(threshold=0.8, min_size=3, **QUIET)
    averages = cube.get_clustered_datacube(clusters, name="means", **QUIET)
    assert averages.name == "means"
    # The clusters travel with the raw cube and with the averages.
    for carrier in (cube, averages):
        np.testing.assert_array_equal(carrier.clusters.labels, clusters.labels)
        np.testing.assert_array_equal(carrier.clusters.seeds, clusters.seeds)
    np.testing.assert_array_equal(
        cube.tree("clusters").metadata["arrays"]["averages"], averages.data[:, 0]
    )


def test_averages_by_name(cube):
    cube.cluster(threshold=0.3, name="coarse", **QUIET)
    cube.cluster(threshold=0.9, name="fine", **QUIET)
    n = cube.get_clusters("coarse").n_clusters
    assert cube.get_clustered_datacube("coarse", **QUIET).shape[0] == n


def test_averages_carry_the_calibration(cube):
    cube.calibration.set_origin_meas((np.ones(SCAN), np.ones(SCAN), np.ones(SCAN, bool)))
    clusters = cube.cluster(threshold=0.6, min_size=3, **QUIET)
    calibration = cube.get_clustered_datacube(**QUIET).calibration
    assert calibration.get_Q_pixel_size() == 0.02
    assert calibration.get_ellipse() == cube.calibration.get_ellipse()
    assert calibration.get_QR_rotation_degrees() == 12
    qx0 = calibration.get_qx0()
    assert qx0.shape == (clusters.n_clusters, 1)
    for k in range(clusters.n_clusters):
        expected = cube.calibration.get_qx0()[clusters.labels == k].mean()
        assert qx0[k, 0] == pytest.approx(expected)
    assert calibration.get_origin_meas_mask() is None
    assert calibration.get_qx0_mean() == cube.calibration.get_qx0_mean()


def test_the_first_axis_of_averages_counts_clusters(cube, tmp_path):
    clusters = cube.cluster(threshold=0.6, min_size=3, **QUIET)
    averages = cube.get_clustered_datacube(**QUIET)
    averages.calibration.set_Q_pixel_size(0.03)  # py4DSTEM makes all axes anew
    assert "cluster = [0,1," in repr(averages)
    assert averages.dim_units == ("", "", "A^-1", "A^-1")
    py4DSTEM.save(tmp_path / "averages.h5", averages)
    with h5py.File(tmp_path / "averages.h5") as file:
        axis = file["py4DSTEM_root/averages/dim0"]
        assert dict(axis.attrs) == {"name": "cluster", "units": ""}
        np.testing.assert_array_equal(axis[:2], [0, 1])
    for made in (averages, py4DSTEM.read(tmp_path / "averages.h5")):
        np.testing.assert_array_equal(made.dim(0), np.arange(clusters.n_clusters))
        assert made.get_dim_units(0) == ""
        assert (made.clusters.pixel_size, made.clusters.pixel_units) == (2.5, "nm")
        made.calibration.set_R_pixel_size(7)  # by the user
        made.calibration.set_R_pixel_units("A")
        assert (made.clusters.pixel_size, made.clusters.pixel_units) == (7, "A")


def test_unknown_origins_are_left_out_of_the_mean(cube):
    clusters = cube.cluster(threshold=0.6, min_size=3, **QUIET)
    qx0 = np.ones(SCAN)
    qx0[clusters.labels == 0] = np.nan
    qx0[tuple(clusters.members(1)[0])] = np.nan
    cube.calibration.set_origin((qx0, qx0))
    found = cube.get_clustered_datacube(**QUIET).calibration.get_qx0()
    assert np.isnan(found[0, 0])
    assert found[1, 0] == 1


def test_averages_from_joined_clusters(cube):
    clusters = cube.cluster(threshold=0.8, min_size=2, **QUIET)
    averages = cube.get_clustered_datacube(clusters.join([0, 1]), **QUIET)
    assert len(averages.data) == clusters.n_clusters - 1
    assert averages.clusters.settings["edits"] == ("join([0, 1])",)


# --- progress --------------------------------------------------------------------------------


def test_progress_bar_can_be_silenced(cube, capsys):
    cube.cluster(threshold=0.5, progress_bar=True)
    assert "Comparing" in capsys.readouterr().err
    cube.cluster(threshold=0.5, progress_bar=False)
    cube.filter_correlative(**FILTER)
    cube.get_clustered_datacube(progress_bar=False)
    assert capsys.readouterr() == ("", "")


# --- bad input -------------------------------------------------------------------------------

EMPTY_Q, EMPTY_R = np.zeros(DETECTOR, bool), np.zeros(SCAN, bool)
MASK_Q, MASK_R = np.ones(DETECTOR, bool), np.ones(SCAN, bool)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"sigma": -1}, ValueError, "sigma=-1 must be a finite number of at least 0"),
        ({"sigma": np.nan}, ValueError, "sigma=nan"),
        ({"sigma": "3"}, TypeError, "sigma='3' must be a number, not str"),
        ({"sigma": True}, TypeError, "sigma=True"),
        ({"radius": -1}, ValueError, "radius=-1"),
        ({"radius": np.inf}, ValueError, "radius=inf"),
        ({"corr_range": (0.9, 0.5)}, ValueError, "must rise"),
        ({"corr_range": (0.9, 0.9)}, ValueError, "must rise"),
        ({"corr_range": (0.9, 1.5)}, ValueError, "from -1 to 1"),
        ({"corr_range": (-2, 0.5)}, ValueError, "from -1 to 1"),
        ({"corr_range": (np.nan, 0.5)}, ValueError, "corr_range"),
        ({"corr_range": 0.9}, TypeError, "two numbers"),
        ({"corr_range": (0.1, 0.2, 0.3)}, TypeError, "two numbers"),
        ({"corr_range": "auto!"}, TypeError, "two numbers"),
        ({"edge": 6}, ValueError, "edge=6 leaves no pixel of a detector of 14 x 11"),
        ({"edge": -1}, ValueError, "edge=-1 must be at least 0"),
        ({"edge": 1.5}, TypeError, "whole number"),
        ({"n_jobs": 0}, ValueError, "n_jobs=0 must be at least 1"),
        ({"n_jobs": 1.5}, TypeError, "n_jobs=1.5"),
        ({"name": ""}, ValueError, "name='' cannot be stored"),
        ({"name": "a/b"}, ValueError, "contain '/'"),
        ({"name": "data"}, ValueError, "cannot be stored"),
        ({"name": 3}, TypeError, "must be a string"),
        ({"out": 3}, TypeError, "out=3 must be a path"),
        ({"out": "/no/such/folder/x.h5"}, ValueError, "folder that does not exist"),
        ({"out": "."}, ValueError, "is a folder"),
        ({"overwrite": 1}, TypeError, "True or False"),
        ({"progress_bar": "yes"}, TypeError, "True or False"),
    ],
)
def test_filter_refuses(cube, monkeypatch, options, error, match):
    forbid(monkeypatch, "correlative_core")
    with pytest.raises(error, match=match):
        cube.filter_correlative(**{**FILTER, **options})


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"q_mask": EMPTY_Q}, ValueError, "q_mask is empty"),
        ({"q_mask": MASK_Q.T}, ValueError, r"q_mask of shape \(11, 14\) must have the shape"),
        ({"q_mask": MASK_Q.astype(int)}, TypeError, "q_mask of type int64 must be boolean"),
        ({"sigma": -0.1}, ValueError, "sigma=-0.1"),
        ({"subtract_mean": 1}, TypeError, "subtract_mean=1 must be True or False"),
        ({"returncalc": None}, TypeError, "returncalc=None must be True or False"),
        ({"name": "metadatabundle"}, ValueError, "cannot be stored"),
        ({"n_jobs": -1}, ValueError, "n_jobs=-1"),
    ],
)
def test_similarity_refuses(cube, monkeypatch, options, error, match):
    forbid(monkeypatch, "similarity_core")
    with pytest.raises(error, match=match):
        cube.get_similarity(**{**QUIET, **options})


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"method": "shrink"}, ValueError, "method='shrink' must be one of"),
        ({"threshold": np.nan}, ValueError, "threshold=nan must be a finite number from -1 to 1"),
        ({"threshold": 1.01}, ValueError, "threshold=1.01"),
        ({"threshold": "0.9"}, ValueError, "threshold='0.9'"),
        ({"min_size": 0}, ValueError, "min_size=0 must be at least 1"),
        ({"min_size": 2.5}, TypeError, "min_size=2.5"),
        ({"r_mask": "triangel"}, ValueError, "r_mask='triangel' must be one of isodata"),
        ({"r_mask": EMPTY_R}, ValueError, "r_mask is empty"),
        ({"r_mask": MASK_R.T}, ValueError, "r_mask of shape"),
        ({"r_mask": MASK_R.astype(float)}, TypeError, "must be boolean"),
        ({"r_mask": 1.5}, ValueError, "r_mask=1.5"),
        ({"r_mask": True}, TypeError, "r_mask=True"),
        ({"q_mask": EMPTY_Q}, ValueError, "q_mask is empty"),
        ({"sigma": -1}, ValueError, "sigma=-1"),
        ({"similarity": np.zeros((4, 5, 8))}, ValueError, "similarity must be the same"),
        ({"similarity": np.full((1, 1, 8), np.nan)}, ValueError, "must fit this scan"),
        ({"similarity": np.zeros((7, 9, 7))}, ValueError, "must have the shape"),
        ({"similarity": "similarity"}, TypeError, "must hold real numbers"),
        (
            {"similarity": np.zeros((7, 9, 8)), "q_mask": MASK_Q, "sigma": 1},
            ValueError,
            "q_mask and sigma cannot change a similarity made earlier",
        ),
        ({"name": "dim0"}, ValueError, "cannot be stored"),
        ({"n_jobs": 0}, ValueError, "n_jobs=0"),
        ({"progress_bar": 1}, TypeError, "progress_bar=1"),
    ],
)
def test_cluster_refuses(cube, monkeypatch, options, error, match):
    forbid(monkeypatch, "similarity_core")
    with pytest.raises(error, match=match):
        cube.cluster(**{**QUIET, **options})


def test_cluster_refuses_another_node_as_similarity(cube):
    with pytest.raises(ValueError, match="holds no similarity"):
        cube.cluster(similarity=py4DSTEM.Array(np.zeros((7, 9, 8)), name="x"), **QUIET)


def test_averages_refuse(cube, monkeypatch):
    forbid(monkeypatch, "averaging_core")
    with pytest.raises(ValueError, match="has no clusters"):
        cube.get_clustered_datacube(**QUIET)
    other = DataCube(make_scan((9, 7))).cluster(threshold=0.5, **QUIET)
    with pytest.raises(ValueError, match=r"clusters of a scan of \(9, 7\) must fit this scan"):
        cube.get_clustered_datacube(other, **QUIET)
    with pytest.raises(TypeError, match="clusters must be Clusters"):
        cube.get_clustered_datacube(other.labels, **QUIET)
    cube.cluster(threshold=0.5, **QUIET)
    with pytest.raises(ValueError, match="n_jobs=0"):
        cube.get_clustered_datacube(n_jobs=0, **QUIET)
    with pytest.raises(ValueError, match="name='a/b'"):
        cube.get_clustered_datacube(name="a/b", **QUIET)


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        (np.zeros((4, 5, 6)), ValueError, "four axes"),
        (np.zeros((1, 4, 5, 6, 7)), ValueError, "four axes"),
        (np.zeros((4, 0, 6, 7)), ValueError, "is empty"),
        (np.zeros((4, 5, 6, 7), complex), TypeError, "complex128 cannot be clustered"),
        (np.zeros((4, 5, 6, 7), object), TypeError, "object cannot be clustered"),
        (np.zeros((4, 5, 6, 7), "U3"), TypeError, "cannot be clustered"),
        (da.zeros((4, 5, 6, 7), dtype=complex), TypeError, "cannot be clustered"),
    ],
)
@pytest.mark.parametrize(
    "method", ["filter_correlative", "get_similarity", "cluster", "get_clustered_datacube"]
)
def test_every_method_refuses_what_is_not_a_scan(data, error, match, method):
    cube = DataCube(np.zeros((4, 5, 6, 7)))
    cube.data = data
    with pytest.raises(error, match=match):
        getattr(cube, method)(**QUIET)


# --- does it find the grains? ----------------------------------------------------------------


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_growth_finds_sharp_grains(seed):
    # The threshold was chosen on seeds 0 to 5.
    truth = simulate_scan((30, 24), (48, 44), n_grains=4, electrons=3000, seed=seed)
    cube = truth.datacube
    centre = tuple((n - 1) / 2 for n in cube.Qshape)
    q_mask = cube.make_detector(cube.Qshape, "annulus", (centre, (5, 20)))
    clusters = cube.cluster(threshold=0.7, min_size=8, q_mask=q_mask, **QUIET)
    overlaps = []
    for k in range(len(truth.orientations)):
        grain = truth.labels == k
        found = np.bincount(clusters.labels[grain] + 1, minlength=2)[1:].argmax()
        member = clusters.labels == found
        overlaps.append((grain & member).sum() / (grain | member).sum())
    assert np.mean(overlaps) > 0.9, overlaps


def test_similarity_object_is_what_it_says(cube):
    assert isinstance(cube.get_similarity(**QUIET), Similarity)


# --- memory ----------------------------------------------------------------------------------


def least_memory(run):
    """The smallest number of bytes for an operation, from its error message."""
    with pytest.raises(ValueError, match=r"max_memory=1 must be at least \d+ bytes") as refused:
        run(1)
    return int(re.search(r"at least (\d+) bytes", str(refused.value))[1])


MEMORY = {
    "filter": lambda cube, m: cube.filter_correlative(**FILTER, max_memory=m).data,
    "auto": lambda cube, m: (
        cube.filter_correlative(**{**FILTER, "corr_range": "auto"}, max_memory=m).data
    ),
    "similarity": lambda cube, m: cube.get_similarity(sigma=1, max_memory=m, **QUIET).data,
    "noise": lambda cube, m: cube.get_similarity(noise_correct=True, max_memory=m, **QUIET).data,
    "tree": lambda cube, m: cube.get_cluster_tree(max_memory=m, **QUIET).cut().labels,
    "merge": lambda cube, m: cube.cluster(max_memory=m, **QUIET).labels,
    "grow": lambda cube, m: cube.cluster(threshold=0.6, max_memory=m, **QUIET).similarity.data,
    "averages": lambda cube, m: cube.get_clustered_datacube(max_memory=m, **QUIET).data,
    "pure": lambda cube, m: cube.get_clustered_datacube(min_purity=0.8, max_memory=m, **QUIET).data,
    "mixture": lambda cube, m: cube.clusters.get_mixture(cube, max_memory=m, **QUIET).shares,
}


@pytest.mark.parametrize("name", MEMORY)
def test_any_memory_gives_the_same_bits(cube, name, monkeypatch, tmp_path):
    with h5py.File(tmp_path / "scan.h5", "w") as file:  # an array would take no memory
        file["scan"] = cube.data
        cube.data = file["scan"]
        cube.cluster(threshold=0.6, min_size=2, **QUIET)
        sizes = []

        def noted(data, copies=1, n_rows=None, **options):
            sizes.append(n_rows)
            return iterate(data, copies, n_rows, **options)

        iterate = blocks.iterate_blocks
        for kernel in ("correlative", "similarity", "features", "averaging"):
            monkeypatch.setattr(f"py4dstem_clustering.kernels.{kernel}.iterate_blocks", noted)
        run = MEMORY[name]
        expected = run(cube, None)
        assert set(sizes) == {None}
        least = least_memory(lambda m: run(cube, m))
        for more in (0, 30_000, 80_000, 10**8):
            sizes.clear()
            np.testing.assert_array_equal(run(cube, least + more), expected)
            assert min(sizes) >= 1
        assert max(sizes) > SCAN[0]  # in one block
        with pytest.raises(ValueError, match="give more, fewer n_jobs, or bin the detector"):
            run(cube, least - 1)
        np.testing.assert_array_equal(run(cube, "0.2 GB"), expected)


@pytest.mark.parametrize("name", MEMORY)
def test_what_is_no_memory_is_refused_before_any_work(cube, name, monkeypatch):
    cube.cluster(threshold=0.6, **QUIET)
    cores = "correlative_core", "similarity_core", "averaging_core", "noise_core"
    forbid(monkeypatch, *cores, "auto_range", "features_core")
    with pytest.raises(ValueError, match="max_memory='much' must be a number of bytes"):
        MEMORY[name](cube, "much")
    with pytest.raises(TypeError, match=r"max_memory=1\.5 must be"):
        MEMORY[name](cube, 1.5)


def test_a_similarity_made_earlier_takes_no_memory(cube):
    similarity = cube.get_similarity(**QUIET)
    cube.cluster(threshold=0.6, similarity=similarity, max_memory=1)
    with pytest.raises(ValueError, match="max_memory='x' must be"):
        cube.cluster(threshold=0.6, similarity=similarity, max_memory="x")


@pytest.mark.parametrize("compression", ["gzip", "lzf", "bitshuffle"])
def test_a_compressed_file(cube, tmp_path, compression):
    path = tmp_path / "x.h5"
    result = cube.filter_correlative(**FILTER, out=path, compression=compression)
    np.testing.assert_array_equal(result.data[:], cube.filter_correlative(**FILTER).data)
    np.testing.assert_array_equal(py4DSTEM.read(path).data, result.data[:])
    assert result.data.id.get_create_plist().get_nfilters() > 0
    with pytest.raises(ValueError, match=f"compression='{compression}' does nothing without out"):
        cube.filter_correlative(**FILTER, compression=compression)
    with pytest.raises(ValueError, match="compression='zip' must be None or one of"):
        cube.filter_correlative(**FILTER, out=tmp_path / "y.h5", compression="zip")


def test_threads_may_share_a_datacube():
    cube = simulate_scan((16, 14), (32, 30), n_grains=2, seed=1).datacube
    labels = cube.cluster(**QUIET).labels
    similarity = cube.get_similarity(**QUIET).data
    wrong = []

    def work(k):
        try:
            for i in range(3):
                found = cube.cluster(name=f"clusters_{k}_{i}", **QUIET)
                np.testing.assert_array_equal(found.labels, labels)
                again = cube.get_similarity(name=f"similarity_{k}_{i}", **QUIET)
                np.testing.assert_array_equal(again.data, similarity)
                cube.get_clustered_datacube(found, **QUIET)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(cube.treekeys) == 2 + 3 * 3 * 2


# --- an origin of a map and a number -------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
def test_an_origin_of_a_map_and_one_number(cube, flip):
    data = np.asarray(cube.data)
    along = np.linspace(5, 6, data.shape[0])[:, None] + np.zeros(data.shape[:2])
    fixed = np.full(data.shape[:2], 5.0)
    averages = []
    for other in (5.0, fixed):
        scan = DataCube(data)
        scan.calibration.set_origin((other, along) if flip else (along, other))
        clusters = scan.cluster(threshold=0.5, **QUIET)
        averages.append(scan.get_clustered_datacube(clusters, **QUIET).data)
    np.testing.assert_array_equal(*averages)


def test_options_of_the_wrong_method_are_named_in_english(cube):
    with pytest.raises(ValueError, match="sigma and subtract_mean belong to growth"):
        cube.cluster(method="merge", sigma=1, subtract_mean=True)
    with pytest.raises(ValueError, match="sigma belongs to growth"):
        cube.cluster(method="merge", sigma=1)


def test_growth_samples_the_data_once(cube, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "py4dstem_clustering.scan.datacubes.fingerprint", lambda data: seen.append(1) or "known"
    )
    clusters = cube.cluster(threshold=0.5, **QUIET)
    assert seen == [1]
    assert clusters.settings["fingerprint"] == "known"
    assert clusters.similarity.settings["fingerprint"] == "known"
    assert clusters.settings["subtract_mean"] is True


SPAWN = """
import multiprocessing
import numpy as np

def labels_of(cube):
    import py4dstem_clustering
    made = cube.cluster(threshold=0.5, progress_bar=False)
    averages = cube.get_clustered_datacube(made, progress_bar=False)
    return made, averages.data, cube.clusters.settings["fingerprint"]

if __name__ == "__main__":
    from py4dstem_clustering import simulate_scan
    cube = simulate_scan((16, 14), (32, 30), n_grains=2, seed=1).datacube
    cube.calibration.set_origin((np.full((16, 14), 15.5), 14.5))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        clusters, averages, mark = pool.apply(labels_of, (cube,))
    own, expected, own_mark = labels_of(cube)
    np.testing.assert_array_equal(clusters.labels, own.labels)
    np.testing.assert_array_equal(averages, expected)
    assert mark == own_mark
    print("done")
"""


@pytest.mark.slow
def test_a_datacube_goes_to_a_spawned_process(tmp_path):
    (tmp_path / "spawn.py").write_text(SPAWN)
    done = subprocess.run(
        [sys.executable, "spawn.py"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "done\n", done.stderr
