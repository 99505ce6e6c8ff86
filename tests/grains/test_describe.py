"""The methods paragraph has the numbers of the clusters, also of clusters read from files."""

from __future__ import annotations

import dataclasses

import numpy as np
import py4DSTEM
import pytest

import py4dstem_clustering
from py4dstem_clustering import simulate_scan

QUIET = {"progress_bar": False}


@pytest.fixture(scope="module")
def cube():
    return simulate_scan((24, 20), (48, 44), n_grains=3, seed=1).datacube


def test_merging(cube, tmp_path):
    clusters = cube.cluster(min_size=7, **QUIET)
    text = clusters.describe()
    sizes = clusters.sizes
    for part in (
        "24 x 20 scan positions (20 A apart) with 48 x 44 detector pixels",
        f"{clusters.n_clusters} clusters of {sizes.min()} to {sizes.max()} positions",
        f"(median {np.median(sizes):.0f}) by merging regions",
        f"py4dstem_clustering {py4dstem_clustering.__version__} in py4DSTEM",
        f"reduced to {clusters.settings['rank']} features",
        "the level was found automatically",
        "1 region without Bragg peaks",
        f"estimated as {clusters.settings['gain']:.3g}",
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
    assert f"from the {q_mask.sum()} detector pixels of a mask" in text
    assert "up to level 2" in text
    assert "mean similarity above 0.1 were considered" in text


def test_growth_and_edits(cube):
    q_mask = np.indices((48, 44))[0] > 9
    similarity = cube.get_similarity(sigma=1.5, q_mask=q_mask, noise_correct=True, **QUIET)
    clusters = cube.cluster(
        threshold=0.75, min_size=5, r_mask="otsu", similarity=similarity, drop_background=None
    )
    text = clusters.join([0, 1]).describe()
    for part in (
        "growth over similar neighbours [1]",
        "in py4DSTEM 0.14",
        "[1] S. Lee",
        "similarity was at least 0.75",
        "minus their mean, blurred by 1.5 pixels",
        f"in {q_mask.sum()} detector pixels, corrected for counting noise",
        "mean similarity above the otsu threshold",
        "edited by hand: join([0, 1])",
    ):
        assert part in text
    assert "most stable levels" in cube.cluster(threshold="auto", **QUIET).describe()
    assert (
        f"Only {480 - 20} chosen"
        in cube.cluster(r_mask=np.indices((24, 20))[0] > 0, **QUIET).describe()
    )


def test_what_is_not_known_is_left_out(cube):
    clusters = cube.cluster(threshold=0.9, **QUIET)
    bare = dataclasses.replace(clusters, settings={}, similarity=None)
    assert "of unknown version" in bare.describe()
    for what in ("growth", "merging", "joined", "cosine"):
        assert what not in bare.describe()
    old = dataclasses.replace(clusters, settings={"method": "grow", "threshold": 0.9})
    assert "at least 0.9" in old.describe()


def test_lag(cube):
    clusters = cube.cluster(**QUIET)
    settings = {**clusters.settings.everything, "lag": 1.5, "lag_axis": "+Ry"}
    text = dataclasses.replace(clusters, settings=settings).describe()
    assert "camera lag of 1.5 positions along +Ry" in text
