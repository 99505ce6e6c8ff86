"""The command line, as a user calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import py4DSTEM
import pytest
from arina import write_arina
from conftest import STRICT, make_scan

from py4dstem_clustering import Clusters, open_series, simulate_series
from py4dstem_clustering.cli.main import main


@pytest.fixture
def npy(tmp_path, scan):
    path = tmp_path / "scan.npy"
    np.save(path, scan)
    return path


def run(*arguments):
    return main([str(a) for a in arguments])


def cluster(path, tmp_path, *arguments):
    out = tmp_path / "out.h5"
    code = run("cluster", path, "--out", out, "--quiet", *arguments)
    return code, out


def error_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_cluster_of_an_npy_file(npy, tmp_path, scan, capsys):
    code, out = cluster(npy, tmp_path, "--threshold", 0.6, "--min-size", 3, "--step", 3.03, "nm")
    assert code == 0
    averages = py4DSTEM.read(out)
    clusters = averages.clusters
    expected = py4DSTEM.DataCube(scan).cluster(threshold=0.6, min_size=3, progress_bar=False)
    np.testing.assert_array_equal(clusters.labels, expected.labels)
    assert (clusters.pixel_size, clusters.pixel_units) == (3.03, "nm")
    assert averages.shape == (clusters.n_clusters, 1, *scan.shape[2:])
    assert clusters.similarity.shape == (7, 9, 8)
    assert repr(expected) in capsys.readouterr().out


def test_levels_of_merging(npy, tmp_path, scan, capsys):
    options = "--method", "merge", "--threshold", 1, 3, "--lag", 0, "--keep-background"
    assert cluster(npy, tmp_path, *options)[0] == 0
    averages = py4DSTEM.read(tmp_path / "out.h5")
    for level in (1.0, 3.0):
        found = averages.get_clusters(f"clusters_{level}")
        assert found.settings["level"] == level
        assert found.settings["lag"] == 0
        expected = py4DSTEM.DataCube(scan).cluster(
            method="merge", threshold=level, lag=0, drop_background=False, progress_bar=False
        )
        np.testing.assert_array_equal(found.labels, expected.labels)
    assert "level 3: Clusters('clusters_3.0'" in capsys.readouterr().out
    # Growth without a threshold.
    assert cluster(npy, tmp_path, "--method", "grow", "--overwrite")[0] == 0
    assert py4DSTEM.read(tmp_path / "out.h5").clusters.settings["threshold"] == 0.9


def test_low_rank_filter(npy, tmp_path, scan, capsys):
    options = ("--threshold", 0.5, "--min-size", 2, "--filter-lowrank")
    code, out = cluster(npy, tmp_path, *options)
    assert code == 0
    filtered = py4DSTEM.DataCube(scan).filter_lowrank(progress_bar=False)
    expected = filtered.cluster(threshold=0.5, min_size=2, progress_bar=False)
    np.testing.assert_array_equal(py4DSTEM.read(out).clusters.labels, expected.labels)
    assert "filtered in" in capsys.readouterr().out


def test_several_thresholds_and_the_other_options(npy, tmp_path, scan):
    figures = tmp_path / "figures" / "new"
    code, out = cluster(
        npy, tmp_path, "--threshold", 0.5, 0.6, 1, "--min-size", 3, "--filter",
        "--filter-edge", 2, "--filter-sigma", 1, "--filter-radius", 2, "--corr-range", 0.3, 0.9,
        "--q-range", 1, 5, "--q-center", 6, 5, "--sigma", 0.5, "--r-mask", "0.1",
        "--figures", figures, "--n-jobs", 1,
    )  # fmt: skip
    assert code == 0
    averages = py4DSTEM.read(out)
    assert averages.clusters.name == "clusters_0.6"  # the last that holds any
    assert averages.get_clusters("clusters_1.0").n_clusters == 0
    assert len(averages.data) == averages.clusters.n_clusters
    settings = averages.clusters.settings
    assert settings["sigma"] == 0.5
    assert settings["r_mask"] == 0.1
    mask = py4DSTEM.DataCube.make_detector(scan.shape[2:], "annulus", ((6, 5), (1, 5)))
    np.testing.assert_array_equal(settings["q_mask"], mask)
    # Averages are of the unfiltered scan.
    labels = averages.clusters.labels
    np.testing.assert_allclose(averages.data[0, 0], scan[labels == 0].mean(axis=0), rtol=1e-6)
    assert {p.name for p in figures.iterdir()} == {
        "similarity.png", "averages.png", "clusters_0.5.png", "clusters_0.5_growth.png",
        "clusters_0.6.png", "clusters_0.6_growth.png",
        "clusters_1.0.png", "clusters_1.0_growth.png",
    }  # fmt: skip


def test_the_centre_is_found(tmp_path):
    data = np.ones((3, 4, 20, 24))
    data[..., 8:11, 13:16] = 100
    np.save(tmp_path / "scan.npy", data)
    code, out = cluster(tmp_path / "scan.npy", tmp_path, "--q-range", 3, 6, "--keep-background")
    assert code == 0
    q_mask = py4DSTEM.read(out).clusters.settings["q_mask"]
    np.testing.assert_allclose(np.argwhere(q_mask).mean(axis=0), [9, 14])


def test_npz(tmp_path, scan, capsys):
    np.savez(tmp_path / "one.npz", scan=scan)
    assert cluster(tmp_path / "one.npz", tmp_path, "--threshold", 0.5)[0] == 0
    np.savez(tmp_path / "two.npz", scan=scan, other=scan[:4])
    capsys.readouterr()
    assert cluster(tmp_path / "two.npz", tmp_path, "--overwrite")[0] == 2
    assert "holds 2 scans; name one with dataset: 'scan' (7, 9, 14, 11), " in error_line(capsys)
    code, out = cluster(
        tmp_path / "two.npz", tmp_path, "--overwrite", "--key", "other", "--threshold", 0.5
    )
    assert code == 0
    assert py4DSTEM.read(out).clusters.shape == (4, 9)


def test_a_stack_of_patterns_with_its_scan_shape(tmp_path, scan, capsys):
    np.save(tmp_path / "stack.npy", scan.reshape(63, 14, 11))
    assert cluster(tmp_path / "stack.npy", tmp_path)[0] == 2
    assert "63 frames are a stack, without rows; give --scan-shape: (1, 63) or" in error_line(
        capsys
    )
    assert cluster(tmp_path / "stack.npy", tmp_path, "--scan-shape", 8, 8)[0] == 2
    assert "does not fit" in error_line(capsys)
    code, out = cluster(tmp_path / "stack.npy", tmp_path, "--scan-shape", 9, 7, "--threshold", 0.1)
    assert code == 0
    assert py4DSTEM.read(out).clusters.shape == (9, 7)


def test_emd_and_its_calibration(tmp_path, cube):
    py4DSTEM.save(tmp_path / "scan.h5", cube)
    code, out = cluster(tmp_path / "scan.h5", tmp_path, "--threshold", 0.6)
    assert code == 0
    assert py4DSTEM.read(out).Q_pixel_size == 0.02
    assert py4DSTEM.read(out).clusters.pixel_units == "nm"


def test_emd_with_a_scan_among_others(tmp_path, cube, capsys):
    root = py4DSTEM.Root("root")
    root.force_add_to_tree(cube)
    root.force_add_to_tree(py4DSTEM.Array(np.zeros(3), name="other"))
    py4DSTEM.save(tmp_path / "two.h5", root)
    code, out = cluster(
        tmp_path / "two.h5", tmp_path, "--threshold", 0.6, "--step", 2, "nm", "--scan-shape", 9, 7
    )
    assert code == 0  # although this file has no calibration
    assert py4DSTEM.read(out).clusters.pixel_units == "nm"
    capsys.readouterr()
    assert cluster(tmp_path / "two.h5", tmp_path, "--overwrite", "--key", "root/other")[0] == 2
    assert "'root/other' of" in error_line(capsys)


def test_an_arina_master_file(tmp_path):
    data = make_scan((4, 9), (12, 10))
    with h5py.File(tmp_path / "scan_data_000001.h5", "w") as file:
        file["entry/data/data"] = data.reshape(36, 12, 10)
    with h5py.File(tmp_path / "scan_master.h5", "w") as file:
        file.create_group("entry").attrs["NX_class"] = "NXentry"
        file["entry/data/data_000001"] = h5py.ExternalLink("scan_data_000001.h5", "entry/data/data")
    options = tmp_path / "scan_master.h5", tmp_path, "--threshold", 0.5
    code, out = cluster(*options, "--scan-shape", 4, 9)
    assert code == 0
    expected = py4DSTEM.DataCube(data).cluster(threshold=0.5, progress_bar=False)
    np.testing.assert_array_equal(py4DSTEM.read(out).clusters.labels, expected.labels)
    code, _ = cluster(*options, "--scan-shape", 4, 8)
    assert code == 2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            ["--threshold", 3],
            "clusters grow; for a level of merging add --method merge",
        ),
        (["--threshold", -1, "--method", "merge"], "--threshold=-1.0 must be"),
        (["--threshold", 1, "--level", "pattern", "--method", "merge"], "exclude each other"),
        (["--method", "merge", "--filter"], "go with growth; leave them out, or give --method"),
        (["--method", "grow", "--lag", 0.5], "--lag goes with merging"),
        (["--threshold", 0.9, "--level", "pattern"], "--level goes with merging"),
        (["--lag", 2], "a mean delay of 2 positions is lag=0.67"),
        (["--threshold", "nan"], "threshold=nan"),
        (["--min-size", 0], "min_size=0"),
        (["--r-mask", "triangel"], "must be a number from -1 to 1 or one of"),
        (["--q-range", 5, 2], "must rise"),
        (["--q-range", 50, 60], "q_mask is empty"),
        (["--q-center", 5, 2], "goes with --q-range"),
        (["--n-jobs", 0], "n_jobs=0"),
        (["--r-mask", 1.2], "must be a number from -1 to 1"),
        (["--corr-range", 0.5, 0.9], "go with --filter"),
        (["--filter", "--filter-lowrank"], "exclude each other"),
        (["--filter-edge", 2], "go with --filter"),
        (["--step", "wide", "nm"], "--step wide nm must be a number and a unit"),
        (["--filter"], "edge=12 leaves no pixel"),
        (["--threshold", 1, "--min-size", 50], "nothing to average"),
        (["--sigma", -1], "sigma=-1.0"),
    ],
)
def test_an_error_of_the_user_is_one_line(npy, tmp_path, capsys, arguments, match):
    code, out = cluster(npy, tmp_path, *arguments)
    assert code == 2
    assert match in error_line(capsys)
    assert not out.exists()


def test_files_that_are_not_there_or_not_scans(npy, tmp_path, capsys):
    assert cluster(tmp_path / "nothing.npy", tmp_path)[0] == 2
    assert "is not a file" in error_line(capsys)
    for name in ("text.h5", "text.npy", "text.npz", "text.dm4", "text.xyz"):
        (tmp_path / name).write_text("not a scan")
        assert cluster(tmp_path / name, tmp_path)[0] == 2, name
        assert name in error_line(capsys)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    assert cluster(tmp_path / "objects.npy", tmp_path)[0] == 2
    assert "objects.npy" in error_line(capsys)


def test_out_is_checked_before_the_file_is_opened(npy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("py4dstem_clustering.cli.options.open_scan", None)
    (tmp_path / "out.h5").write_text("precious")
    assert cluster(npy, tmp_path)[0] == 2
    assert "exists; give another name, or --overwrite" in error_line(capsys)
    assert run("cluster", npy, "--out", tmp_path / "no" / "x.h5") == 2
    assert "folder that does not exist" in error_line(capsys)
    assert (tmp_path / "out.h5").read_text() == "precious"


def test_ctrl_c(npy, tmp_path, capsys, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("py4dstem_clustering.cli.options.open_scan", interrupt)
    assert cluster(npy, tmp_path)[0] == 130
    assert error_line(capsys).startswith("interrupted")


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("bin/py4dstem-clustering", "py4dstem-clustering"),
        ("py4dstem_clustering/__main__.py", "python -m py4dstem_clustering"),
    ],
)
def test_help_names_the_command_that_was_called(capsys, monkeypatch, program, name):
    monkeypatch.setattr(sys, "argv", [f"/somewhere/{program}", "cluster", "--help"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {name} cluster ")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--threshold", 1.5), "--threshold=1.5 must be a finite number from -1 to 1"),
        (("--threshold", "nan"), "--threshold=nan must be"),
        (("--min-size", 0), "min_size=0 must be at least 1"),
        (("--sigma", -1), "--sigma=-1.0 must be"),
        (("--filter", "--filter-edge", -1), "--filter-edge=-1 must be"),
        (("--filter", "--corr-range", 0.9, 0.8), "must rise"),
        (("--q-range", 5, 3), "--q-range 5 3 must rise"),
        (("--q-center", 3, 4), "--q-center goes with --q-range"),
        (("--n-jobs", 0), "n_jobs=0 must be"),
        (("--max-memory", "much"), "max_memory='much' must be"),
        (("--r-mask", 2), "--r-mask 2 must be"),
    ],
)
@pytest.mark.parametrize("command", ["cluster", "series"])
def test_what_can_be_known_is_checked_before_a_file_is_opened(
    npy, tmp_path, capsys, monkeypatch, command, options, text
):
    monkeypatch.setattr("py4dstem_clustering.cli.options.open_scan", None)
    arguments = [command, npy, "--out", tmp_path / "out.h5", "--quiet", *options]
    assert main([str(argument) for argument in arguments]) == 2
    assert text in error_line(capsys)
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder of Linux")
@pytest.mark.parametrize("command", ["cluster", "series"])
def test_a_folder_in_which_nothing_can_be_written(npy, tmp_path, capsys, monkeypatch, command):
    monkeypatch.setattr("py4dstem_clustering.cli.options.open_scan", None)
    assert main([command, str(npy), "--out", "/proc/self/out.h5", "--quiet"]) == 2
    assert "/out.h5 cannot be written" in error_line(capsys)
    figures = ["--figures", "/proc/self"]
    assert main([command, str(npy), "--out", str(tmp_path / "x.h5"), "--quiet", *figures]) == 2
    assert "cannot be written" in error_line(capsys)


@pytest.mark.parametrize("command", ["cluster", "series", "demo"])
def test_a_missing_out_is_said_in_one_line(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command] if command == "demo" else [command, "scan.npy"])
    assert caught.value.code == 2
    line = error_line(capsys)
    assert line.endswith(
        f"{command}: error: the following arguments are required: --out; --help lists all options"
    )


def test_usage_errors_exit_with_2(capsys):
    for arguments in ([], ["demo"], ["cluster", "x.npy"], ["dance"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    capsys.readouterr()


@pytest.mark.slow
def test_demo(tmp_path):
    done = subprocess.run(
        [sys.executable, *STRICT, "-m", "py4dstem_clustering", "demo", "--out", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "intersection over union" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {
        "demo.h5", "averages.h5", "similarity.png", "clusters.png", "grown.png", "grown_growth.png",
        "averages.png", "overview.png",
    }  # fmt: skip
    scan, averages = py4DSTEM.read(tmp_path / "demo.h5"), py4DSTEM.read(tmp_path / "averages.h5")
    np.testing.assert_array_equal(scan.clusters.labels, averages.clusters.labels)
    assert isinstance(scan.clusters, Clusters)
    assert len(scan.tree("clusters").metadata["arrays"]["averages"]) == scan.clusters.n_clusters


def test_demo_refuses(tmp_path, capsys):
    assert run("demo", "--out", tmp_path, "--electrons", -5) == 2
    assert "--electrons" in error_line(capsys)
    (tmp_path / "file").write_text("")
    assert run("demo", "--out", tmp_path / "file") == 2
    assert "is not a folder" in error_line(capsys)


# --- series --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def movie_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("movie")
    movie = simulate_series((24, 20), (32, 30), n_frames=3, n_particles=2, nucleation=0.0,
                            coalescence=0.0, dissolution=0.0, seed=1)  # fmt: skip
    for k, cube in enumerate(movie):
        np.save(folder / f"scan_{k}.npy", cube.data)
    return sorted(folder.glob("*.npy"))


def series(files, out, *options):
    return main(["series", *map(str, files), "--out", str(out), "--quiet", *map(str, options)])


def test_series(movie_files, tmp_path, capsys):
    out = tmp_path / "movie.h5"
    options = ("--time-step", 0.5, "s", "--step", 2, "nm", "--min-size", 5)
    assert series(movie_files, out, *options, "--figures", tmp_path / "figures") == 0
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert figures == {"tracks.png", "areas.png", "series.gif"}
    printed = capsys.readouterr().out
    assert "ClusterSeries('movie.h5', 3 frames, 2 to 2 clusters)" in printed
    assert "Tracks(2 tracks, 6 clusters in 3 frames)" in printed
    assert "nm² / s" in printed
    found = open_series(out)
    assert found.times.tolist() == [0, 0.5, 1]
    assert found[0].pixel_units == "nm"
    before = out.stat().st_mtime_ns
    assert series(movie_files, out, *options) == 0  # nothing left to do
    assert out.stat().st_mtime_ns == before
    capsys.readouterr()
    assert series(movie_files, out, *options, "--threshold", 0.9) == 2
    assert "were made with other options: cluster" in error_line(capsys)
    annulus = ("--q-range", 4, 14, "--threshold", 0.5, "--filter", "--filter-edge", 2)
    assert series(movie_files, out, *options, *annulus, "--overwrite") == 0
    assert open_series(out).settings["cluster"]["threshold"] == 0.5
    assert open_series(out).settings["filter"]["edge"] == 2


def test_a_series_with_a_bad_file(movie_files, tmp_path, capsys):
    (tmp_path / "bad.npy").write_text("x")
    assert series([movie_files[0], tmp_path / "bad.npy"], tmp_path / "out.h5") == 0
    assert "frame 1 failed: ValueError: NumPy cannot open" in capsys.readouterr().err
    assert series([tmp_path / "bad.npy"], tmp_path / "none.h5") == 2
    assert "no scan could be clustered" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--time-step", "x", "s"), "--time-step x must be a number"),
        (("--threshold", 0.9, "--keep-background"), "--keep-background goes with merging"),
        (("--q-center", 3, 4), "--q-center goes with --q-range"),
        (("--corr-range", 0, 1), "go with --filter"),
    ],
)
def test_what_series_refuses(movie_files, tmp_path, capsys, options, text):
    assert series(movie_files, tmp_path / "out.h5", *options) == 2
    assert text in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


# --- what is read is never replaced --------------------------------------------------------------


def test_cluster_refuses_to_replace_the_scan(npy, tmp_path, scan, capsys):
    (tmp_path / "link.h5").symlink_to(npy)
    for out in (npy, tmp_path / "link.h5"):
        assert run("cluster", npy, "--out", out, "--overwrite", "--quiet") == 2
        assert "is the scan itself; give another name" in error_line(capsys)
    np.testing.assert_array_equal(np.load(npy), scan)


def test_cluster_refuses_to_replace_a_file_of_the_scan(tmp_path, scan, capsys):
    master = write_arina(tmp_path, scan.astype(np.uint16).reshape(-1, *scan.shape[2:]), per_file=30)
    with h5py.File(master, "r+") as file:
        file["entry"].attrs["NX_class"] = "NXentry"  # py4DSTEM knows it by this
    chunk = tmp_path / "scan_data_000002.h5"
    before = chunk.read_bytes()
    code = run("cluster", master, "--scan-shape", 7, 9, "--out", chunk, "--overwrite", "--quiet")
    assert code == 2
    assert "is the scan itself" in capsys.readouterr().err
    assert chunk.read_bytes() == before


def test_series_refuses_to_replace_a_scan(npy, capsys):
    assert run("series", npy, "--out", npy, "--overwrite", "--quiet") == 2
    assert "is the scan itself" in error_line(capsys)
    assert np.load(npy).shape == (7, 9, 14, 11)


# --- growth --------------------------------------------------------------------------------------


def test_series_at_the_threshold_0(npy, tmp_path):
    out = tmp_path / "series.h5"
    assert run("series", npy, "--out", out, "--threshold", 0, "--quiet") == 0
    assert open_series(out)[0].settings["threshold"] == 0
    assert run("series", npy, "--out", tmp_path / "b.h5", "--sigma", 1, "--quiet") == 0
    assert open_series(tmp_path / "b.h5")[0].settings["threshold"] == 0.9


def test_keeping_the_background_is_refused_before_the_scan_is_read(
    tmp_path, monkeypatch, npy, capsys
):
    monkeypatch.setattr("py4dstem_clustering.cli.cluster.load_datacube", None)
    assert cluster(npy, tmp_path, "--threshold", 0.5, "--keep-background")[0] == 2
    assert "--keep-background goes with merging" in error_line(capsys)


def test_the_centre_in_the_file_counts(tmp_path):
    data = np.ones((3, 4, 20, 24))
    data[..., 2:5, 3:6] = 100  # a bright shadow of something
    cube = py4DSTEM.DataCube(data, name="scan")
    cube.calibration.set_origin((9.0, 14.0))
    py4DSTEM.save(tmp_path / "scan.h5", cube)
    code, out = cluster(tmp_path / "scan.h5", tmp_path, "--q-range", 3, 6, "--keep-background")
    assert code == 0
    q_mask = py4DSTEM.read(out).clusters.settings["q_mask"]
    np.testing.assert_allclose(np.argwhere(q_mask).mean(axis=0), [9, 14])
