"""The methods paragraph has the numbers of the clusters, also of clusters read from files."""

from __future__ import annotations

import dataclasses

import numpy as np
import py4DSTEM
import pytest
from py4DSTEM import DataCube

import py4dstem_clustering
from py4dstem_clustering import Clusters, simulate_sample, simulate_scan

QUIET = {"progress_bar": False}


@pytest.fixture(scope="module")
def cube():
    return simulate_scan((24, 20), (48, 44), n_grains=3, seed=1).datacube


def test_merging(cube, tmp_path):
    clusters = cube.cluster(min_size=7, **QUIET)
    text = clusters.describe()
    sizes = clusters.sizes
    for part in (
        "24 x 20 scan positions (20 Å apart), recorded with 48 x 44 detector pixels,",
        f"{clusters.n_clusters} clusters of {sizes.min()} to {sizes.max()} scan positions",
        f"(median {np.median(sizes):.0f}) by merging regions",
        f"py4dstem_clustering {py4dstem_clustering.__version__} and py4DSTEM",
        f"reduced to {clusters.settings['rank']} features",
        "joined into crystals if their Bragg disks lay at the same positions",
        "One region without Bragg peaks was treated as background.",
        f"corresponded to {clusters.settings['gain']:.3g} recorded counts per electron",
        "fewer than 7 positions",
        clusters.settings["fingerprint"],
        "[1] B. H. Savitzky",
        "[2] D. Mumford",
        "[3] G. Koepfler",
    ):
        assert part in text
    assert "lag" not in text
    py4DSTEM.save(str(tmp_path / "scan.h5"), cube)
    assert py4DSTEM.read(str(tmp_path / "scan.h5")).clusters.describe() == text
    q_mask = np.indices((48, 44))[0] > 9
    text = cube.cluster(threshold=2, method="merge", q_mask=q_mask, r_mask=0.1, **QUIET).describe()
    assert f"Only the {q_mask.sum()} detector pixels of a mask were used." in text
    assert "joined into crystals if their Bragg disks lay at the same positions" in text
    assert "similarity to their neighbours exceeded 0.1 were considered" in text


def test_growth_and_edits(cube):
    q_mask = np.indices((48, 44))[0] > 9
    similarity = cube.get_similarity(sigma=1.5, q_mask=q_mask, noise_correct=True, **QUIET)
    clusters = cube.cluster(
        threshold=0.75, min_size=5, r_mask="otsu", similarity=similarity, drop_background=None
    )
    text = clusters.join([0, 1]).describe()
    for part in (
        "growing regions of similar neighbours [1]",
        "and py4DSTEM 0.14",
        "[1] S. Lee",
        "similarity was at least 0.75",
        "after subtraction of their means, after blurring by 1.5 pixels",
        f"within {q_mask.sum()} detector pixels, corrected for counting noise",
        "exceeded the otsu threshold",
        "edited manually: join([0, 1])",
    ):
        assert part in text
    assert "clusters were most stable" in cube.cluster(threshold="auto", **QUIET).describe()
    assert (
        f"Only {480 - 20} selected"
        in cube.cluster(r_mask=np.indices((24, 20))[0] > 0, **QUIET).describe()
    )


def test_what_is_not_known_is_left_out(cube):
    clusters = cube.cluster(threshold=0.9, **QUIET)
    bare = dataclasses.replace(clusters, settings={}, similarity=None)
    assert "of unknown version" in bare.describe()
    for what in ("growing", "merging", "joined", "cosine"):
        assert what not in bare.describe()
    old = dataclasses.replace(clusters, settings={"method": "grow", "threshold": 0.9})
    assert "at least 0.9" in old.describe()


def test_lag(cube):
    clusters = cube.cluster(**QUIET)
    settings = {**clusters.settings.everything, "lag_share": 0.6, "lag_axis": "+Ry"}
    text = dataclasses.replace(clusters, settings=settings).describe()
    assert "a share of 0.6 of each pattern is left in the next one along +Ry (estimated)" in text


# --- results that cannot be right --------------------------------------------------------------


def clusters_of(labels, **settings):
    labels = np.array(labels)
    seeds = [np.argwhere(labels == k)[0] for k in range(labels.max() + 1)]
    settings = {"method": "merge", "rank": 3, "drop_background": True, **settings}
    return Clusters(labels, np.reshape(seeds, (-1, 2)), np.zeros(labels.shape), settings)


def doubts_in(text):
    return text.partition("\n\nTo check: ")[2]


def test_a_result_without_background_is_said():
    scan = simulate_sample("convergent", (24, 20), (48, 44), seed=4).datacube
    clusters = scan.cluster(**QUIET)
    assert (clusters.labels >= 0).all()
    assert "No background was found: every scan position" in doubts_in(clusters.describe())


def test_doubts():
    whole = np.zeros((5, 6), int)
    assert "Cluster 0 fills the field of view (100% of the scan)" in doubts_in(
        clusters_of(whole).describe()
    )
    around = np.where(np.indices((5, 6))[0] == 2, 1, 0)
    around[:, 0] = 0
    around[:, 5] = 0
    text = doubts_in(clusters_of(around).describe())
    assert "No background was found" in text
    assert "Cluster 0 (87% of the scan) reaches all four borders" in text
    grains = np.where(around == 1, 0, -1)
    assert doubts_in(clusters_of(grains).describe()) == ""
    assert "No cluster was found; see drop_background" in doubts_in(
        clusters_of(np.full((5, 6), -1)).describe()
    )
    halves = (np.indices((5, 6))[1] > 2).astype(int)
    text = doubts_in(clusters_of(halves).describe())
    assert text.startswith("No background was found")
    assert "borders" not in text
    assert doubts_in(clusters_of(halves, drop_background=None).describe()) == ""
    halves[2] = -1
    assert doubts_in(clusters_of(halves).describe()) == ""
    # A lost row is no background.
    text = clusters_of(halves, n_lost=6).describe()
    assert doubts_in(text).startswith("No background was found")
    assert "6 frames were lost (one value in all pixels, or none) and in no cluster." in text
    assert "1 frame was lost" in clusters_of(halves, n_lost=1).describe()


def test_background_that_is_kept_is_no_doubt():
    clusters = clusters_of(np.zeros((5, 6), int), drop_background=False)
    assert "fills the field of view" in doubts_in(clusters.describe())
    kept = dataclasses.replace(clusters, background=(0,))
    assert doubts_in(kept.describe()) == ""


@pytest.mark.parametrize("shape", [(1, 60), (60, 1)])
def test_a_line_scan_of_noise_is_said(shape):
    counts = np.random.default_rng(1).poisson(0.5, (*shape, 30, 26)).astype(np.uint16)
    clusters = DataCube(counts).cluster(drop_background=False, **QUIET)
    assert "they may be noise" in doubts_in(clusters.describe())
    assert DataCube(counts).cluster(**QUIET).n_clusters == 0
    # Grains of two or three positions on a line show no disks for sure.
    grains = simulate_scan(shape, (48, 44), n_grains=5, electrons=1000, seed=1000).datacube
    assert "No cluster was found" in doubts_in(grains.cluster(**QUIET).describe())
    rows = simulate_scan((60, 8), (48, 44), n_grains=6, electrons=3000, seed=2).datacube.data
    line = rows[:, 4:5] if shape[0] > 1 else rows[None, :, 4]
    clusters = DataCube(np.ascontiguousarray(line)).cluster(**QUIET)
    assert clusters.n_clusters == 6
    assert "noise" not in doubts_in(clusters.describe())
