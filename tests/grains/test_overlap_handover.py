"""Grains that overlap, handed to py4DSTEM: two orientations at one position, strain of one."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import py4DSTEM
import pytest
from py4DSTEM import Calibration
from py4DSTEM.braggvectors import BraggVectors
from py4DSTEM.process.diffraction.utils import OrientationMap
from scipy.spatial.transform import Rotation

from py4dstem_clustering import (
    Clusters,
    OverlappingGrains,
    orientation_from_node,
    orientation_to_node,
    plot_overlaps,
)
from py4dstem_clustering.diffraction.strain import REASONS
from py4dstem_clustering.simulate.crystals import crystal_of_gold

SCAN = (9, 7)
PIXEL = 0.03


@pytest.fixture
def grains():
    """Three grains: 1 lies over the right part of 0, and 2 lies inside 1."""
    supports = np.zeros((*SCAN, 3), dtype=bool)
    supports[1:8, 0:5, 0] = True
    supports[1:8, 3:7, 1] = True
    supports[3:6, 4:6, 2] = True
    weight = supports * np.array([0.6, 0.3, 0.9])
    shares = (weight / np.maximum(weight.sum(axis=2, keepdims=True), 1e-9)).astype(np.float32)
    labels = np.where(supports.any(axis=2), shares.argmax(axis=2), -1)
    seeds = [np.argwhere(labels == k)[0] for k in range(3)]
    clusters = Clusters(labels, seeds, np.ones(SCAN), {}, pixel_size=2.0, pixel_units="A")
    alone = supports.sum(axis=2) == 1
    error = np.where(supports.sum(axis=2) > 1, 0.02, 0).astype(np.float32)
    nothing = np.zeros(SCAN, dtype=np.float32)
    return OverlappingGrains(clusters, supports, shares, alone, nothing, error)


def map_of_grains(n=3, matches=2):
    """An orientation map as `refine_orientations` makes it; the last grain has no orientation."""
    out = OrientationMap(n, 1, matches)
    turns = Rotation.from_euler("zxz", np.arange(3 * n * matches).reshape(-1, 3), degrees=True)
    out.matrix[:, 0] = turns.as_matrix().reshape(n, matches, 3, 3)
    out.corr[:, 0, 0] = np.arange(1, n + 1)
    out.angles[:, 0, :, 0] = np.arange(n)[:, None]
    out.corr[-1] = 0
    out.verdict = np.arange(n, dtype=np.uint8)[:, None]
    out.runner_up = np.ones((n, 1))
    out.runner_up_evidence = np.ones((n, 1))
    out.sigma_excitation_error = np.full((n, 1), 0.03)
    return out


def test_a_position_has_the_orientations_of_all_of_its_grains(grains):
    per_grain = map_of_grains()
    found = grains.expand_orientation_map(per_grain)
    assert found.matrix.shape == (*SCAN, 3, 3, 3)
    for x, y in np.ndindex(*SCAN):
        there = np.flatnonzero(grains.supports[x, y])
        there = there[np.argsort(-grains.shares[x, y, there], kind="stable")]
        for m in range(3):
            if m >= len(there):
                assert found.grain[x, y, m] == -1
                assert found.corr[x, y, m] == found.share[x, y, m] == 0
                np.testing.assert_array_equal(found.matrix[x, y, m], np.eye(3))
                continue
            k = there[m]
            assert found.grain[x, y, m] == k
            assert found.share[x, y, m] == grains.shares[x, y, k]
            assert found.corr[x, y, m] == per_grain.corr[k, 0, 0]
            if k < 2:
                np.testing.assert_array_equal(found.matrix[x, y, m], per_grain.matrix[k, 0, 0])
                assert found.angles[x, y, m, 0] == k
            else:  # without an orientation
                np.testing.assert_array_equal(found.matrix[x, y, m], np.eye(3))
        if len(there):
            assert found.verdict[x, y] == per_grain.verdict[there[0], 0]
    assert np.isnan(found.sigma_excitation_error[0, 0])
    assert not found.runner_up_evidence.any()  # the second match is another grain
    again = orientation_from_node(orientation_to_node(found))
    for name in ("matrix", "corr", "grain", "share", "verdict"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    with pytest.raises(ValueError, match="one for each grain"):
        grains.expand_orientation_map(OrientationMap(2, 1, 1))


def test_strain_is_that_of_the_grain_that_rules(grains):
    crystal = crystal_of_gold(1.5)
    per_grain = map_of_grains()
    zones = Rotation.from_euler("x", [[0], [45], [0]], degrees=True).as_matrix()
    per_grain.matrix[:, 0, 0] = zones  # along 001 and 011, with many disks
    per_grain.verdict[:] = 2
    per_grain.corr[:] = 1
    calibration = Calibration()
    calibration.set_Q_pixel_size(PIXEL)
    calibration.set_Q_pixel_units("A^-1")
    calibration.set_origin((np.full(SCAN, 48.0), np.full(SCAN, 45.0)))
    bragg = BraggVectors(SCAN, (96, 90), calibration=calibration)
    lattices = [
        crystal.generate_diffraction_pattern(orientation_matrix=m, sigma_excitation_error=0.03).data
        for m in zones
    ]
    for x, y in np.ndindex(*SCAN):
        for k in np.flatnonzero(grains.supports[x, y]):
            rows = np.zeros(len(lattices[k]), bragg._v_uncal.dtype)
            rows["qx"] = 48 + lattices[k]["qx"] / PIXEL / 1.01
            rows["qy"] = 45 + lattices[k]["qy"] / PIXEL / 1.01
            rows["intensity"] = lattices[k]["intensity"]
            bragg._v_uncal[x, y].add(rows)
    options = {"max_distance": 0.06, "sigma_excitation_error": 0.03, "progress_bar": False}
    strain = grains.calculate_strain(crystal, bragg, per_grain, min_share=0.72, **options)
    reason = strain.get_slice("reason").data
    largest = grains.shares.max(axis=2)
    inside = grains.clusters.labels >= 0
    rules = inside & (largest - 2 * grains.share_error >= 0.72)
    assert rules.sum() > 10
    assert (inside & ~rules).sum() > 5
    np.testing.assert_array_equal(reason == REASONS.index("mixed"), inside & ~rules)
    e_xx = strain.get_slice("e_xx").data
    np.testing.assert_array_equal(np.isfinite(e_xx), rules)
    alone = grains.alone & inside
    np.testing.assert_allclose(e_xx[alone], 0.01, atol=1e-6)
    # With less noise, a share just above the limit is enough.
    low = grains.calculate_strain(crystal, bragg, per_grain, min_share=0.6, **options)
    assert np.isfinite(low.get_slice("e_xx").data).sum() > rules.sum()
    with pytest.raises(TypeError, match="min_purity is no option here"):
        grains.calculate_strain(crystal, bragg, per_grain, min_purity=0.5)
    with pytest.raises(ValueError, match="min_share"):
        grains.calculate_strain(crystal, bragg, per_grain, min_share=2)


def test_properties_of_supports(grains):
    rows = grains.properties()
    np.testing.assert_array_equal(rows["size"], grains.supports.sum(axis=(0, 1)))
    np.testing.assert_allclose(rows["area"], 4 * rows["size"])
    np.testing.assert_array_equal(rows["label"], [0, 1, 2])
    places = np.argwhere(grains.supports[..., 1])
    np.testing.assert_allclose(rows["centroid_rx"][1], places[:, 0].mean())
    np.testing.assert_allclose(rows["alone_part"], grains.alone_part)
    own = grains.supports[..., 1]
    assert rows["n_covered"][1] == (own & (grains.shares.argmax(axis=2) != 1)).sum() > 0
    np.testing.assert_allclose(rows["mean_share"][1], grains.shares[own][:, 1].mean(), rtol=1e-6)
    assert rows["touches_border"].tolist() == [True, True, False]
    text = repr(grains.table())
    assert "alone part" in text
    assert "area (Å²)" in text


def test_noise_of_pure_patterns_sets_the_options_of_disks(grains):
    sizes = grains.n_averaged
    assert sizes[0] == (grains.alone & grains.supports[..., 0]).sum()
    # A difference has more noise: it is divided by the share.
    own = grains.supports[..., 2]
    np.testing.assert_allclose(
        sizes[2], own.sum() * grains.shares[own][:, 2].mean() ** 2, rtol=1e-6
    )
    rng = np.random.default_rng(2)
    pure = py4DSTEM.DataCube(rng.poisson(20, size=(3, 1, 32, 30)).astype(np.float32))
    probe = py4DSTEM.Probe.generate_synthetic_probe(radius=2, width=1, Qshape=(32, 30))
    kernel = probe.get_kernel(mode="flat", origin=(16, 15), returncalc=True)
    options = grains.propose_disk_options(pure, kernel, significance=5)
    np.testing.assert_allclose(options.noise, 1 / sizes)
    assert options.significance == 5


@pytest.mark.parametrize("show", ["grains", "purity", "above", "residual"])
def test_plots(grains, show):
    fig, ax = plt.subplots()
    assert plot_overlaps(grains, ax, show=show, title="what") is ax
    assert ax.get_title() == "what"
    image = ax.images[-1].get_array()
    if show == "above":
        np.testing.assert_array_equal(image, grains.n_above)
    elif show == "purity":
        np.testing.assert_array_equal(image.mask, ~grains.supports.any(axis=2))
        np.testing.assert_array_equal(image.compressed(), grains.purity[grains.n_above > 0])
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 1  # the grain that is never alone
    plt.close(fig)
    with pytest.raises(ValueError, match="show"):
        grains.plot(show="nothing")
    plt.close("all")
