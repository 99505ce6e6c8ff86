"""Disk options from noise: found disks, false ones, warnings, and what does not fit."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from py4DSTEM import DataCube

from py4dstem_clustering import Clusters, plot_averages
from py4dstem_clustering.benchmarks.orientation import disk_template
from py4dstem_clustering.diffraction.disk_options import MIN_DISKS

SHAPE = (60, 54)
CENTRE = np.array([29.5, 26.5])
RING = 15.0
N_POSITIONS = 40


def disk(place, sum_of):
    u, v = np.ogrid[: SHAPE[0], : SHAPE[1]]
    image = np.clip(2.5 - np.hypot(u - place[0], v - place[1]), 0, 1)
    return sum_of * image / image.sum()


def places(n, seed):
    """Places apart from each other, from the border, the direct beam and the rim of the ring."""
    rng = np.random.default_rng(seed)
    kept = [CENTRE]
    while len(kept) <= n:
        place = rng.uniform(5, np.array(SHAPE) - 6)
        apart = np.hypot(*(np.array(kept) - place).T)
        if apart.min() > 8 and abs(apart[0] - RING) > 5:
            kept.append(place)
    return np.array(kept[1:])


def expected(found, electrons, dose=2000):
    """A pattern with a bright beam, a ring of a film, a background, and disks."""
    u, v = np.ogrid[: SHAPE[0], : SHAPE[1]]
    distance = np.hypot(u - CENTRE[0], v - CENTRE[1])
    ring = np.exp(-0.5 * ((distance - RING) / 2.0) ** 2)
    background = np.exp(-0.5 * (distance / 20) ** 2)
    pattern = 0.5 * dose * disk(CENTRE, 1)
    pattern += 0.1 * dose * ring / ring.sum() + 0.1 * dose * background / background.sum()
    return pattern + sum(disk(place, electrons) for place in found)


@pytest.fixture(scope="module")
def scan():
    """Two clusters; the second has four disks only."""
    true = [places(12, 1), places(4, 2)]
    labels = np.repeat([[0], [1]], N_POSITIONS, axis=1)
    rng = np.random.default_rng(3)
    data = np.stack(
        [rng.poisson(expected(one, 5.0), (N_POSITIONS, *SHAPE)) for one in true]
    ).astype(np.float32)
    clusters = Clusters(labels, np.array([[0, 0], [1, 0]]), np.zeros(labels.shape), {})
    averages = DataCube(data.mean(axis=1)[:, None])
    for cube in (averages, scan := DataCube(data)):
        cube.calibration.set_Q_pixel_size(0.03)
        cube.calibration.set_Q_pixel_units("A^-1")
        cube.calibration.set_origin(tuple(CENTRE))
    return clusters, averages, scan, true


def found_places(bragg, position):
    found = bragg.raw[position].data
    return np.stack([found["qx"], found["qy"]], axis=1), found["intensity"]


def test_disks_of_averages(scan):
    clusters, averages, _, true = scan
    options = clusters.propose_disk_options(averages, disk_template(SHAPE))
    assert options.radius == pytest.approx(2, abs=0.1)
    np.testing.assert_allclose(options.noise, 1 / N_POSITIONS)
    assert repr(options).startswith("DiskOptions(2 averages; disks of 2")
    with pytest.warns(UserWarning, match=r"in 1 of 2 averages: clusters 1 \(\d\);"):
        bragg = options.find(averages)
    for k in range(2):
        found, intensity = found_places(bragg, (k, 0))
        beam = np.hypot(*(found - CENTRE).T) < 1
        assert beam.sum() == 1
        gap = np.hypot(*(found[:, None] - true[k]).transpose(2, 0, 1))
        assert (gap.min(axis=0) < 1).all()  # every disk is found
        false = (gap.min(axis=1) > 2) & ~beam
        assert false.sum() <= 1
        near = gap.argmin(axis=1)[(gap.min(axis=1) < 1)]
        assert len(np.unique(near)) == len(near)
        # Intensities are electrons above the background, not relative to the beam.
        weak = intensity[gap.min(axis=1) < 1]
        np.testing.assert_allclose(weak, 5, rtol=0.5)
    assert bragg.calstate["center"]
    assert bragg.calstate["pixel"]


def test_the_options_alone_find_all_disks(scan):
    """Those that do not stand out are left out afterwards."""
    clusters, averages, _, true = scan
    options = clusters.propose_disk_options(averages, disk_template(SHAPE)).options
    assert options["minRelativeIntensity"] == 0
    bragg = averages.find_Bragg_disks(**options)
    for k in range(2):
        found, _ = found_places(bragg, (k, 0))
        gap = np.hypot(*(found[:, None] - true[k]).transpose(2, 0, 1))
        assert (gap.min(axis=0) < 1).all()


def test_single_patterns_have_the_noise_of_one_pattern(scan):
    clusters, averages, raw, _ = scan
    options = clusters.propose_disk_options(averages, disk_template(SHAPE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no warning about single patterns
        bragg = options.find(raw)
    n = [len(bragg.raw[position].data) for position in np.ndindex(2, N_POSITIONS)]
    assert tuple(bragg.shape) == (2, N_POSITIONS)
    assert 1 <= np.median(n) <= 4


def test_a_larger_gain_is_more_noise(scan):
    clusters, averages, _, _ = scan
    template = disk_template(SHAPE)
    scaled = DataCube(averages.data * 50 + 30)
    scaled.calibration.set_Q_pixel_size(0.03)
    scaled.calibration.set_Q_pixel_units("A^-1")
    scaled.calibration.set_origin(tuple(CENTRE))
    known = {"gain": 50, "offset": 30}
    numbers = []
    for cube, options in ((averages, {}), (scaled, known)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            bragg = clusters.propose_disk_options(cube, template, **options).find(cube)
        numbers.append(len(bragg.raw[1, 0].data))
    assert numbers[1] == numbers[0]


def test_disks_are_drawn(scan):
    clusters, averages, _, _ = scan
    with pytest.warns(UserWarning, match=f"fewer than {MIN_DISKS} disks"):
        bragg = clusters.propose_disk_options(averages, disk_template(SHAPE)).find(averages)
    ax = plot_averages(averages, bragg=bragg)
    drawn = sum(len(rings.get_offsets()) for rings in ax.collections)
    assert drawn == sum(len(bragg.raw[k, 0].data) for k in range(2))
    assert any(text.get_text() == f"1: {len(bragg.raw[1, 0].data)} disks" for text in ax.texts)
    with pytest.raises(ValueError, match="must hold the disks of the averages"):
        plot_averages(averages, bragg="none")


def test_what_does_not_fit(scan):
    clusters, averages, raw, _ = scan
    template = disk_template(SHAPE)
    with pytest.raises(ValueError, match="must have one pattern for each of the 2 clusters"):
        clusters.propose_disk_options(raw, template)
    with pytest.raises(ValueError, match="must have that of the patterns"):
        clusters.propose_disk_options(averages, template[:-1])
    centred = np.roll(template, (SHAPE[0] // 2, SHAPE[1] // 2), axis=(0, 1))
    for wrong in (centred, np.zeros(SHAPE)):
        with pytest.raises(ValueError, match="template must be a kernel"):
            clusters.propose_disk_options(averages, wrong)
    for options in ({"gain": 0}, {"significance": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            clusters.propose_disk_options(averages, template, **options)
    with pytest.raises(ValueError, match="patterns of shape"):
        clusters.propose_disk_options(averages, template).find(DataCube(np.zeros((2, 1, 9, 8))))
