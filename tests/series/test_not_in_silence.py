"""What must not pass without a word: wrong masks, exchanged data, lost frames, failed series."""

from __future__ import annotations

import os
import shutil

import dask.array
import h5py
import numpy as np
import pytest
from conftest import make_scan

from py4dstem_clustering import cluster_series, open_scan, open_series
from py4dstem_clustering.cli.main import main

OPTIONS = {"min_size": 2, "progress_bar": False, "n_jobs": 1}
SHAPE = (6, 7)


@pytest.fixture(scope="module")
def frames():
    return np.stack([make_scan(SHAPE, seed=k) for k in range(3)])


@pytest.fixture
def paths(frames, tmp_path):
    paths = [tmp_path / f"scan_{k}.npy" for k in range(3)]
    for path, frame in zip(paths, frames, strict=True):
        np.save(path, frame)
    return paths


def count_opened(paths):
    """A `load` that counts how often each file is opened."""
    opened = dict.fromkeys((path.name for path in paths), 0)

    def load(path):
        opened[path.name] += 1
        return np.load(path)

    return opened, load


# --- masks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("masks", "text"),
    [
        ({"q_mask": np.ones((11, 14), bool)}, r"q_mask of shape \(11, 14\) must .* \(14, 11\)"),
        ({"image_mask": np.ones((11, 14), bool)}, r"image_mask of shape \(11, 14\) must"),
        ({"r_mask": np.ones((7, 6), bool)}, r"r_mask of shape \(7, 6\) must have .* \(6, 7\)"),
    ],
)
def test_a_mask_that_does_not_fit_the_first_frame_is_an_error(paths, tmp_path, masks, text):
    opened, load = count_opened(paths)
    with pytest.raises(ValueError, match=rf"{text}.*the shape of scan_0.npy"):
        cluster_series(paths, out=tmp_path / "s.h5", load=load, **masks, **OPTIONS)
    assert list(opened.values()) == [1, 0, 0]
    assert not (tmp_path / "s.h5").exists()


def test_a_later_frame_that_the_mask_does_not_fit_is_recorded(frames, tmp_path):
    mask = np.ones((14, 11), bool)
    mask[:2] = False
    given = [frames[0], frames[1][:, :, :10], frames[2]]
    series = cluster_series(given, out=tmp_path / "s.h5", q_mask=mask, **OPTIONS)
    assert list(series.errors) == [1]
    assert series.errors[1].startswith("ValueError: q_mask of shape (14, 11) must have")
    again = cluster_series(given, out=tmp_path / "s.h5", q_mask=mask, **OPTIONS)
    assert list(again.errors) == [1]


def test_a_series_in_which_all_frames_fail_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="all 2 frames failed.* frame 0: .*not a file"):
        series = cluster_series(["no.npy", "none.npy"], out=tmp_path / "s.h5", **OPTIONS)
    assert len(series.errors) == 2


def test_the_command_says_that_all_scans_failed(tmp_path, capsys):
    command = ["series", "no.npy", "none.npy", "--out", str(tmp_path / "s.h5"), "--quiet"]
    assert main(command) == 2
    text = capsys.readouterr().err
    assert text.count("none.npy") == 1
    assert text.endswith("s.h5 holds only the errors\n")


# --- exchanged data --------------------------------------------------------------------------


def test_other_data_in_a_file_of_the_same_size_are_noticed(paths, frames, tmp_path):
    opened, load = count_opened(paths)
    was = cluster_series(paths, out=tmp_path / "s.h5", load=load, **OPTIONS)
    np.save(paths[1], frames[1][::-1, ::-1])
    series = cluster_series(paths, out=tmp_path / "s.h5", load=load, **OPTIONS)
    assert series.infos[1].fingerprint != was.infos[1].fingerprint
    expected = cluster_series([frames[1][::-1, ::-1]], out=tmp_path / "t.h5", **OPTIONS)
    np.testing.assert_array_equal(series[1].labels, expected[0].labels)
    assert list(opened.values()) == [1, 3, 1]  # clustered, compared, clustered; the others once


def test_files_with_another_time_are_compared_and_not_done_again(paths, tmp_path, monkeypatch):
    opened, load = count_opened(paths)
    cluster_series(paths, out=tmp_path / "s.h5", load=load, **OPTIONS)
    for path in paths:
        os.utime(path, (1, 1))
    monkeypatch.setattr("py4dstem_clustering.series.frames.cluster", None)
    series = cluster_series(paths, out=tmp_path / "s.h5", load=load, **OPTIONS)
    assert not series.errors
    assert list(opened.values()) == [2, 2, 2]


def master_of(tmp_path, frames, name="run_1"):
    """A master file of Dectris whose frames are in another file."""
    flat = frames.reshape(-1, *frames.shape[2:])
    with h5py.File(tmp_path / f"{name}_data_000001.h5", "w") as file:
        file.create_dataset("entry/data/data", data=flat, chunks=(1, *flat.shape[1:]))
    with h5py.File(tmp_path / f"{name}_master.h5", "w") as file:
        link = h5py.ExternalLink(f"{name}_data_000001.h5", "/entry/data/data")
        file["entry/data/data_000001"] = link
        file["entry/instrument/detector/detectorSpecific/ntrigger"] = frames.shape[0]
        file["entry/instrument/detector/detectorSpecific/nimages"] = frames.shape[1]
    return tmp_path / f"{name}_master.h5"


def test_a_change_in_a_file_to_which_a_master_links_is_noticed(frames, tmp_path):
    path = master_of(tmp_path, frames[0])
    was = cluster_series([path], out=tmp_path / "s.h5", load=open_scan, **OPTIONS)
    kept = path.read_bytes()
    master_of(tmp_path, frames[1])
    path.write_bytes(kept)
    series = cluster_series([path], out=tmp_path / "s.h5", load=open_scan, **OPTIONS)
    assert series.infos[0].fingerprint != was.infos[0].fingerprint


# --- lost frames -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deleted", "renamed"])
def test_a_file_that_lost_a_frame_is_warned_of_and_mended(frames, tmp_path, how):
    out, whole = tmp_path / "s.h5", tmp_path / "whole.h5"
    cluster_series(frames, out=out, **OPTIONS)
    shutil.copy(out, whole)
    with h5py.File(out, "r+") as file:
        if how == "renamed":
            file.move("series/frame_000001", "series/backup_of_1")
        else:
            del file["series/frame_000001"]
    with pytest.warns(UserWarning, match=r"s\.h5 has lost 1 of its frames \(1\)") as found:
        assert len(open_series(out)) == 2
    assert found[0].filename == __file__
    series = cluster_series(frames, out=out, **OPTIONS)  # warnings are errors
    assert len(series) == 3
    np.testing.assert_array_equal(series[1].labels, open_series(whole)[1].labels)


def test_a_frame_under_the_number_of_another_is_refused(frames, tmp_path):
    cluster_series(frames, out=tmp_path / "s.h5", **OPTIONS)
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file.move("series/frame_000001", "series/frame_000007")
    with pytest.raises(ValueError, match="frame_000007 is damaged: its frame is 1"):
        open_series(tmp_path / "s.h5")


# --- a particle as large as the scan -----------------------------------------------------------


def test_a_track_that_fills_the_field_of_view_is_warned_of(frames, tmp_path):
    same = np.repeat(frames[:1], 3, axis=0)
    options = {"threshold": -1, **OPTIONS}
    series = cluster_series(same, out=tmp_path / "s.h5", **options)
    assert [len(clusters) for clusters in series] == [1, 1, 1]
    with pytest.warns(UserWarning, match="track 0 fills the field of view in each"):
        series.tracks()


def test_the_command_says_that_nothing_was_found(tmp_path, capsys):
    np.save(tmp_path / "scan.npy", np.zeros((*SHAPE, 14, 11), np.uint8))
    command = ["series", str(tmp_path / "scan.npy"), "--out", str(tmp_path / "s.h5"), "--quiet"]
    assert main(command) == 0
    assert "check: no scan has a cluster" in capsys.readouterr().out


# --- options ---------------------------------------------------------------------------------


def test_overwrite_without_resume_false_is_refused(frames, tmp_path):
    cluster_series(frames[:1], out=tmp_path / "s.h5", **OPTIONS)
    with pytest.raises(ValueError, match="overwrite=True goes with resume=False"):
        cluster_series(frames, out=tmp_path / "s.h5", overwrite=True, **OPTIONS)


# --- data in the memory of workers -----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_data_that_are_persisted_on_workers(frames, tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        lazy = dask.array.from_array(frames, chunks=(1, 3, 7, 14, 11)).persist()
        series = cluster_series(lazy, out=tmp_path / "s.h5", client=client, **OPTIONS)
    assert not series.errors
    expected = cluster_series(frames, out=tmp_path / "t.h5", **OPTIONS)
    for k in range(3):
        np.testing.assert_array_equal(series[k].labels, expected[k].labels)
