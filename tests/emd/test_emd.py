"""Files: everything survives, opens without this package, and is complete or absent."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import py4DSTEM
import pytest
from conftest import DETECTOR, SCAN, STRICT, forbid, make_scan

from py4dstem_clustering import Clusters, Similarity, cluster_series
from py4dstem_clustering.emd import nodes, settings, writing
from py4dstem_clustering.grains.averages import keep_clusters

QUIET = {"progress_bar": False}


def assert_same(settings, expected):
    assert list(settings) == list(expected) or set(settings) == set(expected)
    for key, value in expected.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(settings[key], value)
            assert settings[key].dtype == value.dtype
        else:
            assert settings[key] == value
            assert type(settings[key]) is type(value)


@pytest.fixture
def saved(cube, tmp_path):
    """A cube with a similarity, two clusterings and averages, in a file."""
    q_mask = np.indices(DETECTOR)[0] > 2
    r_mask = np.indices(SCAN)[1] < 8
    similarity = cube.get_similarity(q_mask=q_mask, sigma=1, **QUIET)
    cube.cluster(threshold=0.3, name="zebra", r_mask="otsu", similarity=similarity)
    clusters = cube.cluster(threshold=0.6, r_mask=r_mask, min_size=2, similarity=similarity)
    clusters = clusters.join([0, 1])
    averages = cube.get_clustered_datacube(clusters, **QUIET)
    path = tmp_path / "scan.h5"
    py4DSTEM.save(path, cube)
    return path, cube, similarity, clusters, averages


def test_everything_survives_exactly(saved):
    path, cube, similarity, clusters, averages = saved
    read = py4DSTEM.read(path)
    np.testing.assert_array_equal(read.data, cube.data)

    found = read.clusters
    assert found.name == "clusters"
    for field in ("labels", "seeds", "similarity_mean"):
        np.testing.assert_array_equal(getattr(found, field), getattr(clusters, field))
        assert getattr(found, field).dtype == getattr(clusters, field).dtype
    assert (found.pixel_size, found.pixel_units) == (2.5, "nm")
    assert_same(found.settings, clusters.settings)
    np.testing.assert_array_equal(found.similarity.data, similarity.data)
    assert_same(found.similarity.settings, similarity.settings)

    again = Similarity.from_node(read.tree("similarity"))
    np.testing.assert_array_equal(again.data, similarity.data)
    assert_same(again.settings, similarity.settings)
    assert (again.pixel_size, again.pixel_units) == (2.5, "nm")

    kept = read.tree("clusters").metadata["arrays"]["averages"]
    np.testing.assert_array_equal(kept, averages.data[:, 0])
    assert kept.dtype == averages.data.dtype
    zebra = read.get_clusters("zebra")
    np.testing.assert_array_equal(zebra.labels, cube.get_clusters("zebra").labels)
    assert zebra.settings["r_mask"] == "otsu"


def test_a_second_round_changes_nothing(saved, tmp_path):
    path, *_ = saved
    first = py4DSTEM.read(path)
    py4DSTEM.save(tmp_path / "again.h5", first)
    second = py4DSTEM.read(tmp_path / "again.h5")
    np.testing.assert_array_equal(second.clusters.labels, first.clusters.labels)
    assert_same(second.clusters.settings, first.clusters.settings)


def test_clustering_goes_on_after_reading(saved):
    path, *_, averages = saved
    read = py4DSTEM.read(path)
    again = read.get_clustered_datacube(**QUIET)
    np.testing.assert_array_equal(again.data, averages.data)
    other = read.cluster(threshold=0.6, similarity=read.clusters.similarity, name="other")
    assert read.clusters.name == "other"
    assert other.n_clusters > 0
    filtered = read.filter_correlative(edge=2, **QUIET)
    assert "_root_treepath" not in filtered.calibration._params


def test_averages_make_a_small_file_of_their_own(saved, tmp_path):
    _, _, _, clusters, averages = saved
    py4DSTEM.save(tmp_path / "averages.h5", averages)
    read = py4DSTEM.read(tmp_path / "averages.h5")
    assert type(read) is py4DSTEM.DataCube
    np.testing.assert_array_equal(read.data, averages.data)
    np.testing.assert_array_equal(read.clusters.labels, clusters.labels)
    assert read.Q_pixel_size == 0.02
    np.testing.assert_array_equal(read.calibration.get_qx0(), averages.calibration.get_qx0())


def test_clusters_without_the_scan(saved, tmp_path):
    _, cube, _, clusters, _ = saved
    py4DSTEM.save(tmp_path / "tree.h5", cube, tree=None)
    root = py4DSTEM.read(tmp_path / "tree.h5")
    found = Clusters.from_node(root.tree("clusters"))
    np.testing.assert_array_equal(found.labels, clusters.labels)


def test_no_clusters_survive_too(cube, tmp_path):
    cube.cluster(threshold=1, min_size=50, **QUIET)
    py4DSTEM.save(tmp_path / "none.h5", cube)
    assert py4DSTEM.read(tmp_path / "none.h5").clusters.n_clusters == 0


WITHOUT = """
import sys
sys.modules["py4dstem_clustering"] = None  # as on a machine where it is missing
import numpy as np, py4DSTEM
cube = py4DSTEM.read(sys.argv[1])
labels = cube.tree("clusters")
arrays, settings = labels.metadata["arrays"], labels.metadata["settings"]
print(type(cube).__name__, type(labels).__name__, type(cube.tree("similarity")).__name__)
print(labels.data.max(), labels.calibration.get_R_pixel_size(), settings["threshold"])
print(*sorted(arrays.keys), arrays["seeds"].shape, arrays["averages"].shape)
print(arrays["similarity"].shape, cube.tree("similarity").data.shape, settings["edits"])
cube.tree(), repr(labels), repr(arrays), repr(settings), repr(cube.tree("similarity"))
"""


def test_opens_where_this_package_is_missing(saved):
    path, _, _, clusters, averages = saved
    done = subprocess.run(
        [sys.executable, *STRICT, "-c", WITHOUT, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    n = clusters.n_clusters
    assert done.stdout.splitlines()[:4] == [
        "DataCube RealSlice Array",
        f"{n - 1} 2.5 0.6",
        "averages background seeds similarity similarity_mean "
        f"({n}, 2) {averages.data[:, 0].shape}",
        "(7, 9, 8) (7, 9, 8) ('join([0, 1])',)",
    ]


@pytest.mark.parametrize("mode", ["a", "ao"])
def test_clusters_appended_to_a_file(cube, tmp_path, mode):
    path = tmp_path / "scan.h5"
    py4DSTEM.save(path, cube)
    first = cube.cluster(threshold=0.3, **QUIET)
    other = cube.cluster(threshold=0.9, name="other", **QUIET)
    py4DSTEM.save(path, cube, mode=mode)
    read = py4DSTEM.read(path)
    np.testing.assert_array_equal(read.get_clusters("clusters").labels, first.labels)
    np.testing.assert_array_equal(read.clusters.labels, other.labels)

    # A clustering is kept or replaced as a whole, never mixed with another of its name.
    second = cube.cluster(threshold=0.6, **QUIET)
    averages = cube.get_clustered_datacube(second, **QUIET)
    py4DSTEM.save(path, cube, mode=mode)
    read = py4DSTEM.read(path)
    found, arrays = read.get_clusters("clusters"), read.tree("clusters").metadata["arrays"]
    kept = first if mode == "a" else second
    np.testing.assert_array_equal(found.labels, kept.labels)
    assert found.settings["threshold"] == kept.settings["threshold"]
    assert ("averages" in arrays.keys) == (mode == "ao")
    if mode == "ao":
        np.testing.assert_array_equal(arrays["averages"], averages.data[:, 0])


def test_only_stock_classes_are_written(saved):
    path, *_ = saved
    classes = set()

    def visit(name, item):
        classes.add(item.attrs.get("python_class"))

    with h5py.File(path) as file:
        file.visititems(visit)
    stock = {"Root", "DataCube", "Array", "RealSlice", "Metadata"}
    assert classes - {None} <= stock | {"Calibration"}


def test_the_newest_is_kept_as_a_number(cube, tmp_path):
    for name in ("b", "c", "a"):
        cube.cluster(threshold=0.5, name=name, **QUIET)
    py4DSTEM.save(tmp_path / "x.h5", cube)  # HDF5 sorts by name
    read = py4DSTEM.read(tmp_path / "x.h5")
    assert read.clusters.name == "a"
    assert list(nodes.children(read, "clusters")) == ["b", "c", "a"]


def test_from_node_refuses_a_foreign_node(cube):
    with pytest.raises(ValueError, match="holds no clusters"):
        Clusters.from_node(py4DSTEM.Node("other"))
    with pytest.raises(ValueError, match="holds no similarity"):
        Similarity.from_node(py4DSTEM.Node("other"))


def test_keep_clusters_on_an_empty_tree(cube):
    clusters = cube.cluster(threshold=0.5, **QUIET)
    other = py4DSTEM.DataCube(np.zeros((2, 2, 3, 3)))
    keep_clusters(other, clusters)
    np.testing.assert_array_equal(other.clusters.labels, clusters.labels)


def test_settings_become_plain_python():
    mask = np.array([True, False])
    frozen = settings.Settings({"a": np.float32(0.5), "b": [np.int64(1), 2], "c": mask, "d": None})
    assert (frozen["a"], frozen["b"], frozen["d"]) == (0.5, (1, 2), None)
    assert type(frozen["a"]) is float
    assert type(frozen["b"][0]) is int
    mask[:] = False
    assert frozen["c"].tolist() == [True, False]


@pytest.mark.parametrize("scan", [(9, 1), (1, 9)])
def test_the_step_of_a_thin_scan_survives(scan):
    cube = py4DSTEM.DataCube(make_scan(scan))
    cube.calibration.set_R_pixel_size(2.5)
    cube.get_similarity(**QUIET)
    assert Similarity.from_node(cube.tree("similarity")).pixel_size == 2.5


# --- complete or absent ----------------------------------------------------------------------


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.h5"
    path.write_text("old")

    def write():
        with writing.complete_or_absent(path) as partial:
            partial.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_other_name_lies_in_the_same_folder(tmp_path):
    # Moving a file into place is all or nothing on one disk only.
    with writing.complete_or_absent(tmp_path / "a") as partial:
        assert partial.parent == tmp_path
        partial.write_text("x")


def test_a_new_file_has_the_usual_permissions(tmp_path):
    with writing.complete_or_absent(tmp_path / "a") as partial:
        partial.write_text("x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the disk, in order: the path that is synced, or the new name."""
    found = []
    fsync, replace = os.fsync, os.replace

    def record_sync(handle):
        found.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def record_replace(old, new):
        found.append(("rename", str(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    return found


LINUX = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="names of open files")


@LINUX
def test_a_power_loss_leaves_the_old_file_or_the_new_one(tmp_path, calls):
    path = tmp_path / "x"
    with writing.complete_or_absent(path) as partial:
        partial.write_text("new")
        assert calls == []
    # The data are on the disk before the name is, and then the folder that holds the name.
    assert calls == [("sync", str(partial)), ("rename", str(path)), ("sync", str(tmp_path))]


@LINUX
def test_results_and_filtered_scans_are_synced(cube, tmp_path, calls):
    for name, write in {
        "filtered.h5": lambda path: cube.filter_correlative(edge=2, out=path, **QUIET),
        "saved.h5": lambda path: writing.save_new(path, cube),
    }.items():
        del calls[:]
        write(tmp_path / name)
        assert [what for what, _ in calls] == ["sync", "rename", "sync"]
        assert calls[1:] == [("rename", str(tmp_path / name)), ("sync", str(tmp_path))]


def test_data_that_cannot_be_synced_get_no_name(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_text("old")

    def fail(handle):
        raise OSError("Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with (
        pytest.raises(OSError, match="Input/output error"),
        writing.complete_or_absent(path) as partial,
    ):
        partial.write_text("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_filtering_leaves_no_file(cube, tmp_path, monkeypatch):
    def fail(data, out, **options):
        out[0:1] = data[0:1]
        raise OSError("No space left on device")

    monkeypatch.setattr("py4dstem_clustering.patterns.filtering.correlative_core", fail)
    with pytest.raises(OSError, match="No space left"):
        cube.filter_correlative(edge=2, out=tmp_path / "x.h5", **QUIET)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys, time
import emdfile, numpy as np, py4DSTEM, py4dstem_clustering
class Bar:
    def __init__(self, *arguments, **options):
        pass
    def update(self, n):
        print("written", flush=True)
        time.sleep(60)
emdfile.tqdmnd = Bar
cube = py4DSTEM.DataCube(np.ones((4, 5, 16, 14), np.float32))
cube.filter_correlative(edge=2, out=sys.argv[1], progress_bar=False)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_killed_process_leaves_no_result(tmp_path):
    path = tmp_path / "x.h5"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().strip() == "written"
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not path.exists()
    assert all(p.suffix == ".partial" for p in tmp_path.iterdir())


def test_only_a_scan_can_be_compressed_to_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: type("", (), {"free": 1000}))
    cube = py4DSTEM.DataCube(np.zeros((2, 2, 3, 3), np.float32))
    with pytest.raises(OSError, match=r"GB free; make room, or choose another disk$"):
        writing.save_new(tmp_path / "averages.h5", cube)
    with (
        pytest.raises(OSError, match=r"or compress it \(compression='bitshuffle'\)$"),
        writing.scan_writer(tmp_path / "scan.h5", cube, (9, 9, 9, 9)),
    ):
        pass
    assert not list(tmp_path.iterdir())


# --- a target that is open in another program ------------------------------------------------


def refuse(*names):
    raise PermissionError(13, "The process cannot access the file", *names)


def test_a_target_that_is_open_elsewhere_is_found_before_the_work(cube, tmp_path, monkeypatch):
    path = tmp_path / "scan.h5"
    path.write_text("open in another program")
    forbid(monkeypatch, "correlative_core")
    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match=r"scan.h5 cannot be replaced .*close the program"):
        cube.filter_correlative(edge=2, out=path, overwrite=True, progress_bar=False)
    with pytest.raises(OSError, match=r"scan.h5 cannot be replaced"):
        cluster_series([cube], out=path, progress_bar=False)
    assert path.read_text() == "open in another program"


def test_a_finished_file_is_kept_where_it_cannot_take_its_name(cube, tmp_path, monkeypatch):
    path = tmp_path / "scan.h5"
    path.write_text("open in another program")
    (tmp_path / "scan_new1.h5").write_text("of an earlier time")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match=r"The result is complete in .*scan_new2.h5: close"):
            writing.save_new(path, cube)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "scan.h5", "scan_new1.h5", "scan_new2.h5",
    ]  # fmt: skip
    assert py4DSTEM.read(tmp_path / "scan_new2.h5").shape == cube.shape
    assert path.read_text() == "open in another program"
    (tmp_path / "scan_new2.h5").replace(path)


def test_a_full_disk_is_found_before_the_work(cube, tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, values):
            raise OSError(28, "No space left on device")

    forbid(monkeypatch, "correlative_core")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: Full())
    with pytest.raises(OSError, match=r"x.h5 cannot be written .*No space left.*Make room"):
        cube.filter_correlative(edge=2, out=tmp_path / "x.h5", progress_bar=False)
    assert list(tmp_path.iterdir()) == []
