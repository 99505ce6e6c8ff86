"""Mixtures: shares of clusters at each position, and averages of pure positions only."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from py4DSTEM import DataCube
from scipy.optimize import nnls

from py4dstem_clustering import Clusters, simulate_scan
from py4dstem_clustering.kernels.mixture import mixture_core
from py4dstem_clustering.patterns.features import measure_features
from py4dstem_clustering.patterns.mixture import Mixture

QUIET = {"progress_bar": False}


@lru_cache
def simulation(seed=1, **options):
    return simulate_scan((24, 20), (48, 44), **{"n_grains": 4, **options}, seed=seed)


@lru_cache
def blurred(seed):
    """A scan with mixed borders, clusters from the true labels, and their mixture."""
    scan = simulation(seed, probe_blur=0.8)
    clusters = clusters_of(scan.labels)
    return scan, clusters, clusters.get_mixture(scan.datacube, **QUIET)


def clusters_of(labels, **settings):
    n = labels.max() + 1
    seeds = [np.argwhere(labels == k)[0] for k in range(n)]
    return Clusters(labels, seeds, np.zeros(labels.shape), settings)


def share_map(mixture, n):
    """Shares of clusters 0 to n - 1, and of no cluster as the last."""
    return np.stack([mixture.share_of(k) for k in (*range(n), -1)], axis=2)


def slow(values, labels, reach, most):
    """Shares position by position, slowly and from the definition."""
    rx, ry = labels.shape

    def window(array, x, y, size):
        return array[max(0, x - size) : x + size + 1, max(0, y - size) : y + size + 1]

    means = {}
    for k in np.unique(labels):
        means[k] = values[labels == k].mean(axis=0)
        for distance in range(1, reach + 1):  # as far inside as eight members lie
            inner = [
                values[x, y]
                for x, y in np.argwhere(labels == k)
                if (window(labels, x, y, distance) == k).all()
            ]
            if len(inner) >= 8:
                means[k] = np.mean(inner, axis=0)
    which = np.full((rx, ry, most), -2)
    shares = np.zeros((rx, ry, most))
    scale = 1e3 * max(np.abs(mean).max() for mean in means.values())
    for x in range(rx):
        for y in range(ry):
            near = np.unique(window(labels, x, y, reach))
            system = np.array([[*means[k], scale] for k in near]).T
            share = nnls(system, [*values[x, y], scale])[0] if len(near) > 1 else np.ones(1)
            found = sorted(zip(-share, near, strict=True))[:most]
            for i, (negative, k) in enumerate(found):
                if negative < 0:
                    which[x, y, i], shares[x, y, i] = k, -negative / share.sum()
    return which, shares


@pytest.mark.parametrize(("reach", "most"), [(1, 4), (2, 4), (4, 4), (3, 2)])
def test_mixtures_equal_a_slow_reference(reach, most):
    rng = np.random.default_rng(reach)
    x, y = np.indices((13, 11))
    labels = ((2 * x + 3 * y) // 12) % 4 - 1
    labels[10:, :3] = 3
    means = rng.normal(0, 20, (5, 6))
    values = means[labels] + rng.normal(0, 1, (13, 11, 6))
    which, shares = mixture_core(values, labels, reach, most)
    expected_which, expected = slow(values, labels, reach, most)
    np.testing.assert_allclose(shares, expected, atol=1e-5)
    clear = expected > 1e-4
    np.testing.assert_array_equal(which[clear], expected_which[clear])
    assert (expected[..., 1] > 1e-3).any()


def test_known_mixtures_are_recovered():
    means = np.array([[30.0, 0, 5, 2], [0, 25, -4, 1], [-3, 2, 20, -20]])
    # Columns 10 and 20 are mixed; all else is pure.
    labels = np.repeat([[0] * 10 + [1] * 10 + [2] * 10], 12, axis=0)
    shares = np.eye(3)[labels]
    rng = np.random.default_rng(0)
    part = rng.uniform(0.05, 0.95, (12, 2))
    shares[:, 10] = np.stack([part[:, 0], 1 - part[:, 0], 0 * part[:, 0]], axis=1)
    shares[:, 20] = np.stack([0 * part[:, 1], part[:, 1], 1 - part[:, 1]], axis=1)
    found = Mixture(*mixture_core(shares @ means, labels, 4, 4))
    np.testing.assert_allclose(share_map(found, 3)[..., :3], shares, atol=1e-5)
    assert (found.share_of(-1) == 0).all()


def test_three_that_meet_are_recovered_exactly():
    means = np.array([[30.0, 0, 5, 2], [0, 25, -4, 1], [-3, 2, 20, -20]])
    labels = np.zeros((30, 31), int)
    labels[15:, :15], labels[15:, 15:] = 1, 2
    shares = np.eye(3)[labels]
    shares[15, 15], shares[14, 14] = (0.25, 0.35, 0.4), (0.5, 0.3, 0.2)
    found = Mixture(*mixture_core(shares @ means, labels, 3, 4))
    np.testing.assert_allclose(share_map(found, 3)[..., :3], shares, atol=1e-5)
    assert found.labels[15, 15].tolist() == [2, 1, 0, -2]
    assert found.labels[0, 0].tolist() == [0, -2, -2, -2]
    assert found.purity[14, 14] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("low", [-1, 0])
def test_one_cluster_is_pure(low):
    labels = np.full((5, 6), low)
    which, shares = mixture_core(np.random.default_rng(0).normal(size=(5, 6, 3)), labels, 4, 4)
    assert (which == [low, -2, -2, -2]).all()
    assert (shares == [1, 0, 0, 0]).all()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_shares_are_shares(seed):
    _, clusters, found = blurred(seed)
    assert found.labels.shape == found.shares.shape == (24, 20, 4)
    assert (found.shares >= 0).all()
    assert (np.diff(found.shares, axis=2) <= 0).all()
    np.testing.assert_array_equal(found.purity, found.shares.max(axis=2))
    np.testing.assert_array_equal(found.labels == -2, found.shares == 0)
    assert (found.labels >= -2).all()
    assert (found.labels < clusters.n_clusters).all()
    total = found.shares.sum(axis=2)
    assert (total <= 1 + 1e-5).all()
    for x, y in np.ndindex(24, 20):
        near = clusters.labels[max(0, x - 4) : x + 5, max(0, y - 4) : y + 5]
        if len(np.unique(near)) <= 4:
            assert total[x, y] == pytest.approx(1, abs=1e-5)
    assert (found.labels[..., 0] == clusters.labels).mean() > 0.9
    np.testing.assert_allclose(share_map(found, clusters.n_clusters).sum(axis=2), total, rtol=1e-6)


def test_positions_out_of_reach_of_a_border_are_pure():
    scan, clusters, _ = blurred(1)
    wide = clusters.get_mixture(scan.datacube, **QUIET)
    narrow = clusters.get_mixture(scan.datacube, reach=1, **QUIET)
    padded = np.pad(clusters.labels, 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    inner = (windows == clusters.labels[..., None, None]).all(axis=(2, 3))
    assert (narrow.purity[inner] == 1).all()
    np.testing.assert_array_equal(narrow.labels[inner][:, 0], clusters.labels[inner])
    assert (wide.purity[inner] < 1).any()


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_shares_are_nearer_to_the_truth_than_labels(seed):
    scan, clusters, found = blurred(seed)
    n = clusters.n_clusters
    mixed = scan.shares.max(axis=2) < 0.95
    assert mixed.sum() > 50
    one_hot = np.eye(n + 1)[np.where(scan.labels < 0, n, scan.labels)]
    error, error_of_labels = (
        np.sqrt(((shares - scan.shares)[mixed] ** 2).mean())
        for shares in (share_map(found, n), one_hot)
    )
    assert error < 0.5 * error_of_labels
    assert error < 0.08


def test_any_number_of_threads_gives_the_same_bits():
    scan, clusters, found = blurred(1)
    again = clusters.get_mixture(scan.datacube, n_jobs=1, **QUIET)
    np.testing.assert_array_equal(again.shares, found.shares)
    np.testing.assert_array_equal(again.labels, found.labels)


def test_settings_say_what_is_compared():
    scan, clusters, _ = blurred(1)
    q_mask = np.ones((48, 44), bool)
    q_mask[:, 30:] = False
    part = clusters_of(scan.labels, q_mask=q_mask, rank=3)
    found = part.get_mixture(scan.datacube, **QUIET)
    features = measure_features(scan.datacube, q_mask, 3, n_jobs=1, **QUIET)
    assert features.values.shape[2] == 3
    expected = Mixture(*mixture_core(features.values, clusters.labels, 4, 4))
    np.testing.assert_array_equal(found.shares, expected.shares)
    other = clusters_of(scan.labels, q_mask=q_mask[:40])
    with pytest.raises(ValueError, match="q_mask of shape"):
        other.get_mixture(scan.datacube, **QUIET)


@pytest.mark.parametrize("drop_background", [True, False])
def test_merged_clusters_have_mixtures(drop_background):
    scan, *_ = blurred(1)
    found = scan.datacube.cluster(drop_background=drop_background, **QUIET)
    mixture = found.get_mixture(scan.datacube, **QUIET)
    assert (mixture.labels[..., 0] == found.labels).mean() > 0.9
    assert 0.2 < mixture.purity.min() < 0.8


def test_grown_clusters_have_mixtures():
    scan = simulation(1, n_grains=3, electrons=10_000)
    q_mask = np.hypot(*(np.indices((48, 44)) - np.array([23.5, 21.5])[:, None, None])) > 4
    found = scan.datacube.cluster(threshold="auto", sigma=1, q_mask=q_mask, **QUIET)
    mixture = found.get_mixture(scan.datacube, **QUIET)
    inside = found.labels >= 0
    assert found.n_clusters >= 3
    assert (mixture.labels[..., 0] == found.labels)[inside].mean() > 0.9


def test_mixtures_use_the_detector_mask_of_a_similarity_made_earlier():
    scan = simulation(1, n_grains=3, electrons=10_000)
    q_mask = np.indices((48, 44))[0] > 20
    similarity = scan.datacube.get_similarity(q_mask=q_mask, noise_correct=True, gain=1, **QUIET)
    found = scan.datacube.cluster(threshold="auto", similarity=similarity, **QUIET)
    assert found.settings["q_mask"] is None
    shares = found.get_mixture(scan.datacube, **QUIET).shares
    masked = replace(found, settings={"q_mask": q_mask}, similarity=None)
    np.testing.assert_array_equal(shares, masked.get_mixture(scan.datacube, **QUIET).shares)
    plain = replace(found, similarity=None)
    assert not np.array_equal(shares, plain.get_mixture(scan.datacube, **QUIET).shares)


def test_repr_and_share_of():
    labels = np.array([[[0, -2, -2, -2], [1, 0, -1, -2]]])
    shares = np.array([[[1, 0, 0, 0], [0.6, 0.3, 0.1, 0]]])
    mixture = Mixture(labels, shares)
    assert repr(mixture) == "Mixture(1 x 2 scan positions, 50% of them at least 90 % pure)"
    assert mixture.purity.tolist() == [[1, 0.6]]
    assert mixture.share_of(0).tolist() == [[1, 0.3]]
    assert mixture.share_of(-1).tolist() == [[0, 0.1]]
    assert mixture.share_of(7).tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="label=-2 must be at least -1"):
        mixture.share_of(-2)
    with pytest.raises(TypeError, match="label"):
        mixture.share_of(0.5)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"reach": 0}, ValueError, "reach=0 must be at least 1"),
        ({"reach": 1.5}, TypeError, r"reach=1\.5 must be a whole number"),
        ({"n_jobs": 0}, ValueError, "n_jobs=0"),
        ({"progress_bar": 1}, TypeError, "progress_bar=1"),
    ],
)
def test_wrong_arguments(options, error, match):
    scan, clusters, _ = blurred(1)
    with pytest.raises(error, match=match):
        clusters.get_mixture(scan.datacube, **{**QUIET, **options})


def test_another_scan_is_refused():
    scan, clusters, _ = blurred(1)
    with pytest.raises(ValueError, match=r"of \(24, 20\) must fit this scan of \(23, 20\)"):
        clusters.get_mixture(DataCube(scan.datacube.data[:23]), **QUIET)
    with pytest.raises(ValueError, match="is not a scan"):
        clusters.get_mixture(None, **QUIET)


# --- averages of pure positions --------------------------------------------------------------


def test_averages_are_over_pure_positions():
    scan, clusters, mixture = blurred(2)
    cube = DataCube(scan.datacube.data, calibration=scan.datacube.calibration)
    averages = cube.get_clustered_datacube(clusters, min_purity=0.9, **QUIET)
    plain = cube.get_clustered_datacube(clusters, **QUIET)
    for k in range(clusters.n_clusters):
        pure = (clusters.labels == k) & (mixture.share_of(k) >= 0.9)
        assert 0 < pure.sum() < clusters.sizes[k]
        expected = scan.datacube.data[pure].mean(axis=0)
        np.testing.assert_allclose(averages.data[k, 0], expected, rtol=1e-6)
        assert not np.allclose(averages.data[k, 0], plain.data[k, 0])
        assert scan.shares[pure, k].mean() > scan.shares[clusters.labels == k, k].mean() + 0.03
    np.testing.assert_array_equal(averages.clusters.labels, clusters.labels)


@pytest.mark.parametrize("min_purity", [0.5, 0.99, 1])
def test_each_cluster_keeps_a_position(min_purity):
    scan, *_ = blurred(1)
    labels = scan.labels.copy()
    labels[9:11, 7:9] = labels.max() + 1  # a small cluster without pure positions
    clusters = clusters_of(labels)
    mixture = clusters.get_mixture(scan.datacube, **QUIET)
    averages = scan.datacube.get_clustered_datacube(clusters, min_purity=min_purity, **QUIET)
    assert averages.data.shape[0] == clusters.n_clusters
    single = 0
    for k in range(clusters.n_clusters):
        own = np.where(labels == k, mixture.share_of(k), -1)
        pure = own >= min_purity
        if not pure.any():
            pure.flat[own.argmax()] = True
            single += 1
        expected = scan.datacube.data[pure].mean(axis=0)
        np.testing.assert_allclose(averages.data[k, 0], expected, rtol=1e-6)
    assert np.isfinite(averages.data).all()
    assert single or min_purity == 0.5


def test_no_purity_is_all_of_a_cluster():
    scan, clusters, _ = blurred(3)
    cube = scan.datacube
    plain = cube.get_clustered_datacube(clusters, **QUIET).data
    np.testing.assert_array_equal(
        cube.get_clustered_datacube(clusters, min_purity=0, **QUIET).data, plain
    )


@pytest.mark.parametrize(
    ("value", "error"), [(2, ValueError), (-0.1, ValueError), ("x", TypeError), (True, TypeError)]
)
def test_purity_is_a_share(value, error):
    scan, clusters, _ = blurred(1)
    with pytest.raises(error, match=f"min_purity={value!r} must be"):
        scan.datacube.get_clustered_datacube(clusters, min_purity=value, **QUIET)
