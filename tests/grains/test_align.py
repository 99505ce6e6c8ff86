"""Averages of patterns that are moved to a common origin first."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from conftest import SCAN, make_scan
from py4DSTEM import DataCube
from scipy.ndimage import shift

from py4dstem_clustering import Clusters, simulate_scan
from py4dstem_clustering.kernels import blocks
from py4dstem_clustering.kernels.averaging import averaging_core, move_pattern

QUIET = {"progress_bar": False}

# --- one pattern -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "move",
    [(0, 0), (0.3, -0.7), (-1.25, 2.5), (2, -3), (1, 0.5), (0, -0.01), (-30.4, 0.2), (5.5, 40)],
)
@pytest.mark.parametrize("dtype", [np.uint16, np.float32, bool])
def test_moves_equal_those_of_scipy(move, dtype):
    pattern = np.random.default_rng(0).poisson(2, (14, 11)).astype(dtype)
    kept = pattern.copy()
    found = move_pattern(pattern, np.array(move))
    assert found.dtype == np.float64
    expected = shift(pattern.astype(float), move, order=1, mode="nearest")
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert (found >= 0).all()
    np.testing.assert_array_equal(pattern, kept)


def test_whole_pixels_are_exact():
    pattern = np.random.default_rng(0).poisson(2e8, (14, 11)).astype(np.uint32)
    found = move_pattern(pattern, np.array([2.0, -3.0]))
    np.testing.assert_array_equal(found[2:, :-3], pattern[:-2, 3:])
    np.testing.assert_array_equal(found[:2, :-3], np.repeat(pattern[:1, 3:], 2, axis=0))
    np.testing.assert_array_equal(found[2:, -3:], np.repeat(pattern[:-2, -1:], 3, axis=1))
    still = move_pattern(pattern, np.zeros(2))
    np.testing.assert_array_equal(still, pattern)
    assert not np.shares_memory(still, pattern)


def test_counts_and_their_centre_are_kept():
    pattern = np.zeros((24, 20))
    pattern[8:14, 7:12] = np.random.default_rng(0).poisson(5, (6, 5))
    u, v = np.indices(pattern.shape)
    for move in ((0.3, -0.7), (-2.6, 4.1), (5.5, 0)):
        found = move_pattern(pattern, np.array(move))
        assert found.sum() == pytest.approx(pattern.sum())
        for axis, distance in zip((u, v), move, strict=True):
            centre = [(axis * data).sum() / data.sum() for data in (pattern, found)]
            assert centre[1] - centre[0] == pytest.approx(distance)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_missing_pixel_stays_missing(value):
    pattern = np.ones((9, 8))
    pattern[4, 3] = value
    found = ~np.isfinite(move_pattern(pattern, np.array([0.5, 1.0])))
    assert set(zip(*np.nonzero(found), strict=True)) == {(4, 4), (5, 4)}
    found = ~np.isfinite(move_pattern(pattern, np.array([-2.0, 1.0])))
    assert set(zip(*np.nonzero(found), strict=True)) == {(2, 4)}


# --- averages --------------------------------------------------------------------------------


def no_report(rows):
    pass


def labels_and_shifts(seed=0):
    rng = np.random.default_rng(seed)
    x, y = np.indices(SCAN)
    labels = ((2 * x + 3 * y) // 12) % 3
    labels[2, 3:6] = -1
    shifts = rng.uniform(-2, 2, (*SCAN, 2))
    shifts[0] = 0
    shifts[3] = np.round(shifts[3])
    return labels, shifts


def slow_averages(data, labels, shifts):
    out = []
    for label in range(labels.max() + 1):
        moved = [
            shift(data[position].astype(float), shifts[position], order=1, mode="nearest")
            for position in map(tuple, np.argwhere(labels == label))
        ]
        out.append(np.mean(moved, axis=0))
    return np.array(out)


def test_averages_of_every_kind_of_array(scan, wrap):
    labels, shifts = labels_and_shifts()
    found = averaging_core(wrap(scan), labels, n_jobs=2, report=no_report, shifts=shifts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow_averages(scan, labels, shifts), rtol=1e-6, atol=1e-6)


def test_no_shifts_are_plain_averages(scan):
    labels, shifts = labels_and_shifts()
    plain = averaging_core(scan, labels, n_jobs=1, report=no_report)
    still = averaging_core(scan, labels, n_jobs=1, report=no_report, shifts=0 * shifts)
    np.testing.assert_array_equal(still, plain)


@pytest.mark.parametrize("block_bytes", [1, 20_000, 2**27])
@pytest.mark.parametrize("n_jobs", [1, 3])
def test_any_block_and_any_number_of_threads_give_the_same_bits(monkeypatch, block_bytes, n_jobs):
    data = make_scan().astype(np.float32) * 1.1
    labels, shifts = labels_and_shifts()
    expected = averaging_core(data, labels, n_jobs=1, report=no_report, shifts=shifts)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    found = averaging_core(data, labels, n_jobs=n_jobs, report=no_report, shifts=shifts)
    np.testing.assert_array_equal(found, expected)


def test_missing_pixels_have_no_weight_after_they_moved():
    data = make_scan().astype(np.float32)
    rng = np.random.default_rng(0)
    data[rng.random(data.shape) < 0.02] = np.nan
    labels, shifts = labels_and_shifts()
    found = averaging_core(data, labels, n_jobs=2, report=no_report, shifts=shifts)
    for label in range(3):
        moved = np.array(
            [move_pattern(data[x, y], shifts[x, y]) for x, y in np.argwhere(labels == label)]
        )
        np.testing.assert_allclose(found[label], np.nanmean(moved, axis=0), rtol=1e-6)


# --- DataCube --------------------------------------------------------------------------------


@pytest.fixture
def clusters():
    labels, _ = labels_and_shifts()
    seeds = [np.argwhere(labels == k)[0] for k in range(3)]
    return Clusters(labels, seeds, np.zeros(SCAN), {})


def test_aligned_where_the_origin_varies(cube, clusters):
    origin = np.stack(cube.calibration.get_origin(), axis=2)
    data = cube.data.copy()
    found = cube.get_clustered_datacube(clusters, **QUIET)
    middle = np.array([origin[clusters.labels == k].mean(axis=0) for k in range(3)])
    np.testing.assert_allclose(np.stack(found.calibration.get_origin(), axis=2)[:, 0], middle)
    shifts = middle[clusters.labels] - origin
    expected = slow_averages(data, clusters.labels, shifts)
    np.testing.assert_allclose(found.data[:, 0], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(cube.data, data)
    again = cube.get_clustered_datacube(clusters, align=True, n_jobs=1, **QUIET)
    np.testing.assert_array_equal(again.data, found.data)
    plain = cube.get_clustered_datacube(clusters, align=False, **QUIET)
    np.testing.assert_allclose(
        plain.data[:, 0], reference.averages(data, clusters.labels), rtol=1e-6
    )
    assert np.abs(plain.data - found.data).max() > 0.1


@pytest.mark.parametrize("origin", [None, "number", "map"])
def test_not_aligned_where_the_origin_is_the_same(scan, clusters, origin):
    cube = DataCube(scan.copy())
    if origin == "number":
        cube.calibration.set_origin((6.3, 5.1))
    if origin == "map":
        cube.calibration.set_origin((np.full(SCAN, 6.3), np.full(SCAN, 5.1)))
    found = cube.get_clustered_datacube(clusters, **QUIET)
    expected = averaging_core(scan, clusters.labels, n_jobs=1, report=no_report)
    np.testing.assert_array_equal(found.data[:, 0], expected)
    off = cube.get_clustered_datacube(clusters, align=False, **QUIET)
    np.testing.assert_array_equal(off.data, found.data)


@pytest.mark.parametrize("origin", [None, np.nan])
def test_alignment_needs_an_origin(scan, clusters, origin):
    cube = DataCube(scan.copy())
    if origin is not None:
        cube.calibration.set_origin((np.full(SCAN, origin), np.full(SCAN, 5.1)))
    with pytest.raises(ValueError, match="align=True needs the origin of each pattern; measure"):
        cube.get_clustered_datacube(clusters, align=True, **QUIET)
    assert "clusters" not in cube.treekeys


@pytest.mark.parametrize("origin", [(6.3, 5.1), (np.full(SCAN, 6.3), np.full(SCAN, 5.1))])
def test_alignment_to_an_origin_that_is_the_same_everywhere_does_nothing(scan, clusters, origin):
    cube = DataCube(scan.copy())
    cube.calibration.set_origin(origin)
    found = cube.get_clustered_datacube(clusters, align=True, **QUIET)
    expected = averaging_core(scan, clusters.labels, n_jobs=1, report=no_report)
    np.testing.assert_array_equal(found.data[:, 0], expected)


def test_positions_without_an_origin_are_not_moved(cube, clusters):
    qx0, qy0 = (part.copy() for part in cube.calibration.get_origin())
    qx0[clusters.labels == 0] = np.nan  # a cluster without any origin
    qy0[clusters.labels == 0] = np.nan
    qx0[4, 4] = qy0[4, 4] = np.nan
    cube.calibration.set_origin((qx0, qy0))
    found = cube.get_clustered_datacube(clusters, **QUIET).data[:, 0]
    assert np.isfinite(found).all()
    origin = np.stack([qx0, qy0], axis=2)
    shifts = np.zeros((*SCAN, 2))
    for k in (1, 2):
        member = clusters.labels == k
        shifts[member] = np.nanmean(origin[member], axis=0) - origin[member]
    shifts[np.isnan(qx0)] = 0
    expected = slow_averages(cube.data, clusters.labels, shifts)
    expected_0 = cube.data[clusters.labels == 0].mean(axis=0)
    np.testing.assert_allclose(found[1:], expected[1:], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found[0], expected_0, rtol=1e-6)


@pytest.mark.parametrize("value", [1, "yes"])
def test_align_is_a_flag(cube, clusters, value):
    with pytest.raises(TypeError, match=f"align={value!r} must be True or False"):
        cube.get_clustered_datacube(clusters, align=value, **QUIET)


CENTRE = np.array([31.5, 29.5])


def descanned(**options):
    """A scan with descan of some pixels, its true origin, and clusters from the true labels."""
    options = {"descan": 12, "electrons": 3000, "seed": 1, **options}
    scan = simulate_scan((24, 20), (64, 60), **options)
    origin = CENTRE + scan.shifts
    scan.datacube.calibration.set_origin((origin[..., 0], origin[..., 1]))
    seeds = [np.argwhere(scan.labels == k)[0] for k in range(scan.labels.max() + 1)]
    return scan, Clusters(scan.labels, seeds, np.zeros(scan.labels.shape), {})


def test_pure_positions_are_aligned_to_their_own_mean():
    scan, clusters = descanned(n_grains=3, probe_blur=1.0)
    found = scan.datacube.get_clustered_datacube(clusters, min_purity=0.9, **QUIET)
    mixture = clusters.get_mixture(scan.datacube, **QUIET)
    origin = np.stack(scan.datacube.calibration.get_origin(), axis=2)
    for k in range(clusters.n_clusters):
        pure = (clusters.labels == k) & (mixture.share_of(k) >= 0.9)
        assert 0 < pure.sum() < clusters.sizes[k]
        middle = origin[pure].mean(axis=0)
        np.testing.assert_allclose([o[k, 0] for o in found.calibration.get_origin()], middle)
        moved = [
            move_pattern(scan.datacube.data[x, y], middle - origin[x, y])
            for x, y in np.argwhere(pure)
        ]
        np.testing.assert_allclose(found.data[k, 0], np.mean(moved, axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", [1, 2])
def test_descan_does_not_smear_disks(seed):
    scan, clusters = descanned(n_grains=1, seed=seed)
    inner = np.s_[8:-8, 8:-8]
    error, height = {}, {}
    for align in (None, False):
        averages = scan.datacube.get_clustered_datacube(clusters, align=align, **QUIET)
        middle = np.stack(averages.calibration.get_origin(), axis=2)[0, 0]
        expected = 3000 * move_pattern(scan.patterns[0], middle - CENTRE)[inner]
        found = averages.data[0, 0][inner]
        error[align] = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        height[align] = found.max() / expected.max()
    assert error[None] < 0.12
    assert error[False] > 0.3
    assert height[None] > 0.93
    assert height[False] < 0.75
