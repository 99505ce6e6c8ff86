"""`find_overlaps`: grains on top of each other, in the tree, in files and in figures."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import py4DSTEM
import pytest
from conftest import first_quick
from scipy.optimize import linear_sum_assignment

from py4dstem_clustering import Clusters, OverlappingGrains, plot_overlaps, simulate_sample

QUIET = {"progress_bar": False}
SMALL = ((30, 26), (32, 30))


def support_quality(found, truth):
    """Panoptic quality of maps ``(Rx, Ry, n)`` that may overlap."""
    found = found.reshape(-1, found.shape[2]).astype(float)
    truth = truth.reshape(-1, truth.shape[2]).astype(float)
    truth = truth[:, truth.sum(axis=0) > 0]
    both = found.T @ truth
    iou = both / (found.sum(axis=0)[:, None] + truth.sum(axis=0) - both)
    iou = np.where(iou > 0.5, iou, 0)
    matched = iou[linear_sum_assignment(-iou)]
    return 2 * matched.sum() / (found.shape[1] + truth.shape[1])


@pytest.fixture(scope="module")
def stacked():
    return simulate_sample("stacked", *SMALL, electrons=3000, seed=100)


@pytest.fixture(scope="module")
def grains(stacked):
    return stacked.datacube.find_overlaps(**QUIET)


def test_maps_belong_together(stacked, grains):
    supports, shares = grains.supports, grains.shares
    assert (shares[supports] > 0).all()
    np.testing.assert_allclose(shares.sum(axis=2), supports.any(axis=2), atol=1e-6)
    np.testing.assert_array_equal(grains.n_above, supports.sum(axis=2))
    assert not grains.alone[grains.n_above != 1].any()
    assert ((grains.alone_part >= 0) & (grains.alone_part <= 1)).all()
    np.testing.assert_array_equal(grains.never_alone, grains.alone_part == 0)
    assert grains.clusters.n_clusters == grains.n_grains == supports.shape[2]
    assert (np.diff(grains.clusters.sizes) <= 0).all()
    assert not supports.flags.writeable
    assert len(grains.contours(0)) >= 1
    both = grains.n_above > 1
    labels = grains.clusters.labels
    labelled = both & (labels >= 0)
    own = np.take_along_axis(supports, np.maximum(labels, 0)[..., None], 2)[..., 0]
    assert own[labelled].all()
    assert (labels == shares.argmax(axis=2))[labelled].mean() > 0.5
    np.testing.assert_array_equal(grains.purity, shares.max(axis=2))
    mixed = (shares > 0).sum(axis=2) > 1
    assert (grains.share_error[~mixed] == 0).all()
    assert (grains.share_error[mixed] > 0).all()
    assert (grains.share_error <= 1).all()


def test_supports_are_better_than_labels(stacked, grains):
    labels = stacked.datacube.cluster(**QUIET).labels
    alone = np.stack([labels == k for k in range(labels.max() + 1)], axis=2)
    assert support_quality(grains.supports, stacked.supports) > support_quality(
        alone, stacked.supports
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stacked", "core-shell"])
def test_quality_of_supports(kind):
    found = []
    for seed in (102, 103, 104):
        sample = simulate_sample(kind, (48, 42), (48, 44), seed=seed)
        grains = sample.datacube.find_overlaps(**QUIET)
        found.append(support_quality(grains.supports, sample.supports))
    assert np.mean(found) > 0.75


@pytest.mark.parametrize(
    "kind", first_quick(["random-film", "strain-gradient", "bent-foil", "particles"])
)
def test_without_overlaps_labels_are_those_of_cluster(kind):
    sample = simulate_sample(kind, *SMALL, seed=100)
    grains = sample.datacube.find_overlaps(**QUIET)
    labels = sample.datacube.cluster(**QUIET).labels
    np.testing.assert_array_equal(grains.clusters.labels, labels)


def test_truth_of_supports():
    sample = simulate_sample("core-shell", *SMALL, probe_blur=0, seed=2)
    np.testing.assert_array_equal(sample.supports, sample.shares[..., :-1] > 0)
    for shell in range(0, sample.n_grains, 2):
        core = sample.supports[..., shell + 1]
        assert not (core & ~sample.supports[..., shell]).any()


def test_pure_patterns(stacked, grains):
    pure = grains.get_pure_patterns(stacked.datacube, **QUIET)
    assert pure.shape == (grains.n_grains, 1, 32, 30)
    assert pure.name == "pure_patterns"
    data = stacked.datacube.data.astype(float)
    for k in np.flatnonzero(~grains.never_alone):
        own = grains.alone & grains.supports[..., k]
        np.testing.assert_allclose(pure.data[k, 0], data[own].mean(axis=0), rtol=1e-5)
    assert pure.calibration.get_Q_pixel_size() == stacked.datacube.calibration.get_Q_pixel_size()


def test_pure_pattern_of_a_grain_that_is_never_alone():
    """Exact sums without noise: the hidden grain comes out as it went in."""
    rng = np.random.default_rng(4)
    patterns = rng.gamma(0.5, 20, size=(2, 12, 11))
    shares = np.zeros((9, 8, 2), dtype=np.float32)
    shares[1:8, 1:7, 0] = 1
    shares[3:6, 3:5] = (0.25, 0.75)
    cube = py4DSTEM.DataCube(np.tensordot(shares, patterns, 1) + 1e-6)
    labels = np.where(shares[..., 1] > 0, 1, np.where(shares[..., 0] > 0, 0, -1))
    clusters = Clusters(labels, [[1, 1], [4, 4]], np.zeros((9, 8)))
    supports = shares > 0
    grains = OverlappingGrains(
        clusters,
        supports,
        shares,
        supports.sum(axis=2) == 1,
        *np.zeros((2, 9, 8), dtype=np.float32),
    )
    assert grains.never_alone.tolist() == [False, True]
    pure = grains.get_pure_patterns(cube, **QUIET).data[:, 0]
    np.testing.assert_allclose(pure, patterns, rtol=1e-4, atol=1e-3)
    assert "1 of the grains are nowhere alone" in grains.describe()
    assert (
        repr(grains) == "OverlappingGrains(2 grains, 9 x 8 scan positions, 8% of them in overlaps)"
    )


def test_files_go_round_and_are_readable_without_the_package(stacked, grains, tmp_path):
    cube = stacked.datacube
    path = tmp_path / "scan.h5"
    py4DSTEM.save(str(path), cube, mode="o")
    read = py4DSTEM.read(str(path))
    node = read.tree("overlaps")
    assert type(node) is py4DSTEM.RealSlice
    np.testing.assert_array_equal(node.data, grains.clusters.labels)
    again = OverlappingGrains.from_node(node)
    for name in ("supports", "shares", "alone", "residual", "share_error"):
        np.testing.assert_array_equal(getattr(again, name), getattr(grains, name))
    np.testing.assert_array_equal(read.get_clusters("overlaps").labels, grains.clusters.labels)


def test_damaged_nodes(grains):
    node = grains.to_node()
    node.metadata["overlaps"]._params["shares"] = grains.shares[..., :-1]
    with pytest.raises(ValueError, match=r"its shares of shape .* must have the shape"):
        OverlappingGrains.from_node(node)
    node.metadata["overlaps"]._params["shares"] = np.full_like(grains.shares, np.nan)
    with pytest.raises(ValueError, match="its shares must be from 0 to"):
        OverlappingGrains.from_node(node)
    with pytest.raises(ValueError, match=r"holds clusters without overlaps.*find_overlaps"):
        OverlappingGrains.from_node(grains.clusters.to_node())


def test_wrong_arguments(stacked, grains):
    cube = stacked.datacube
    with pytest.raises(ValueError, match="supports of shape"):
        OverlappingGrains(
            grains.clusters,
            grains.supports[1:],
            grains.shares,
            grains.alone,
            grains.residual,
            grains.share_error,
        )
    with pytest.raises(ValueError, match="label 99 does not exist"):
        grains.contours(99)
    with pytest.raises(TypeError, match="progress_bar"):
        cube.find_overlaps(progress_bar=1)
    with pytest.raises(ValueError, match="q_mask"):
        cube.find_overlaps(q_mask=np.ones((3, 3), dtype=bool), **QUIET)
    with pytest.raises(ValueError, match="must fit this scan"):
        grains.get_pure_patterns(py4DSTEM.DataCube(np.ones((5, 4, 32, 30))), **QUIET)


def test_options(stacked):
    cube = py4DSTEM.DataCube(stacked.datacube.data)
    assert cube.find_overlaps(name="mine", returncalc=False, **QUIET) is None
    assert OverlappingGrains.from_node(cube.tree("mine")).clusters.name == "mine"
    r_mask = np.ones(SMALL[0], dtype=bool)
    r_mask[:9] = False
    masked = cube.find_overlaps(r_mask=r_mask, **QUIET)
    assert not masked.supports[:9].any()


def test_no_grains():
    rng = np.random.default_rng(0)
    cube = py4DSTEM.DataCube(rng.poisson(5, size=(12, 10, 16, 15)))
    grains = cube.find_overlaps(**QUIET)
    assert grains.n_grains == 0
    assert grains.supports.shape == (12, 10, 0)
    with pytest.raises(ValueError, match="nothing to average"):
        grains.get_pure_patterns(cube, **QUIET)


def test_plot(grains):
    fig, ax = plt.subplots()
    assert plot_overlaps(grains, ax, title="grains") is ax
    assert ax.get_title() == "grains"
    hatched = [part for part in ax.collections if getattr(part, "hatches", None)]
    assert len(hatched) == int((grains.n_above > 1).any())
    assert len(ax.lines) >= sum(len(grains.contours(k)) for k in range(grains.n_grains))
    plt.close(fig)
    plt.close(grains.plot().figure)
