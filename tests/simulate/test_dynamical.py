"""Dynamical scans are what py4DSTEM computes at each position, and their truth is true."""

from __future__ import annotations

import time
import warnings
from functools import lru_cache

import numpy as np
import pytest
from py4DSTEM.process.diffraction import Crystal
from scipy.spatial.transform import Rotation
from test_bloch import orientation, skewed
from test_simulate import HARD, SMALL, disagreement, neighbours, reference_grains

from py4dstem_clustering import simulate_scan
from py4dstem_clustering.simulate.bloch import BlochCrystal
from py4dstem_clustering.simulate.crystals import check_materials
from py4dstem_clustering.simulate.dynamical import GrainDisks
from py4dstem_clustering.simulate.grains import Lattice
from py4dstem_clustering.simulate.scattering import Scattering

DYNAMICAL = {**SMALL, "scattering": "dynamical", "materials": "silicon", "thickness": (4, 15)}
"""Silicon scatters weakly, so that there are few beams and tests are quick."""

PURE = {"surroundings": "vacuum", "speckle": 0, "electrons": 1e9}


@lru_cache
def crystal_of_py4dstem(material, voltage, k_max=3.0):
    """A crystal with dynamical and kinematical structure factors."""
    (found,) = check_materials(material, 0.08)
    crystal = found.dynamical(2 * k_max, voltage)
    crystal.calculate_structure_factors(k_max)
    return crystal


def of_py4dstem(material, turn, thickness, voltage, sigma):
    """Places ``(n, 2)`` and intensities ``(n,)`` by py4DSTEM alone, thickness in nm."""
    crystal = crystal_of_py4dstem(material, voltage)
    beams = crystal.generate_diffraction_pattern(
        orientation_matrix=turn, sigma_excitation_error=sigma, tol_intensity=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = crystal.generate_dynamical_diffraction_pattern(
            beams, 10 * thickness, zone_axis_cartesian=turn[:, 2]
        ).data
    return np.stack([found["qx"], found["qy"]], axis=1), found["intensity"]


@pytest.mark.parametrize(
    # What may differ is due to faint reflections that the scan leaves out, shares of the electrons.
    ("material", "options", "tolerance"),
    [
        ("silicon", {"thickness": (5, 25), "bending": 2}, 0.01),
        ("magnesium", {"thickness": (20, 30), "bending": 6, "thickness_profile": "sphere"}, 0.01),
        pytest.param("gold", {"thickness": (5, 25), "bending": 2}, 0.02, marks=pytest.mark.slow),
        pytest.param(
            "gold",
            {"thickness": 12, "bending": 2, "accelerating_voltage": 80e3},
            0.03,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_disks_of_a_scan_are_those_of_py4dstem_at_its_truth(material, options, tolerance):
    options = {**SMALL, "detector_shape": (100, 92), "materials": material, **options, **PURE}
    scan = simulate_scan(**options, scattering="dynamical", even_disks=True, k_max=1.1, seed=6)
    size = scan.datacube.Q_pixel_size
    u, v = np.indices((100, 92))
    checked = 0
    for position in np.argwhere(scan.labels >= 0)[::4]:
        position = tuple(position)
        turn, thickness = scan.orientation_at[position], scan.thickness[position]
        voltage = options.get("accelerating_voltage", 300e3)
        sigma = 0.03 if material == "gold" else 0.01
        places, intensities = of_py4dstem(material, turn, thickness, voltage, sigma)
        # Electrons that are absorbed go to a background, a Gaussian of 0.6 inverse Angstrom.
        lost = 1 - intensities.sum()
        pixel = size**2 / (2 * np.pi * 0.6**2)
        for place, intensity in zip(places, intensities, strict=True):
            at = [49.5, 45.5] + place / size
            inside = (at > 4).all() and (at < [95, 87]).all()
            others = np.hypot(*(places - place).T) / size
            near = others < 6.5
            if not inside or (near.sum() > 1 and intensities[near].sum() > intensity + 1e-3):
                continue
            disk = np.hypot(u - at[0], v - at[1]) < 3.3
            counts = scan.datacube.data[position][disk].sum() / 1e9
            background = disk.sum() * lost * pixel * np.exp(-0.5 * (place**2).sum() / 0.6**2)
            assert counts - background == pytest.approx(intensity, abs=tolerance)
            if intensity > 0.01:
                checked += 1
                found = scan.datacube.data[position][disk] / 1e9
                found = np.maximum(found - 1.2 * background / disk.sum(), 0)
                middle = [(found * axis[disk]).sum() / found.sum() for axis in (u, v)]
                np.testing.assert_allclose(middle, at, atol=0.2)
    assert checked > 15


def test_each_pixel_of_a_disk_is_a_direction_of_the_cone():
    """The direct beam is the bright-field disk of py4DSTEM's own convergent beam pattern."""
    options = {**SMALL, "detector_shape": (97, 91), "n_grains": 1, "disk_radius": 5, **PURE}
    scan = simulate_scan(
        **options, scattering="dynamical", materials="silicon", thickness=70, bending=0.3, seed=3
    )
    size = scan.datacube.Q_pixel_size
    position = tuple(np.argwhere(scan.labels == 0)[10])
    turn = scan.orientation_at[position]
    (material,) = check_materials("silicon", 0.08)
    # As far as the corner of the detector: lines of far reflections cross the disk.
    reach = max(size * np.hypot(97, 91) / 2, 3.0)
    crystal = material.dynamical(2 * reach, 300e3)
    crystal.calculate_structure_factors(reach)
    beams = crystal.generate_diffraction_pattern(
        orientation_matrix=turn, sigma_excitation_error=0.012, tol_intensity=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        images = crystal.generate_CBED(
            beams,
            700.0,
            alpha_mrad=1e3 * 5 * size * crystal.wavelength,
            pixel_size_inv_A=size,
            zone_axis_cartesian=turn[:, 2],
            foil_normal_cartesian=turn[:, 2],
            LACBED=True,
            dtype=float,
            progress_bar=False,
        )
    expected = images[0, 0, 0]  # 10 x 10, the middle of the cone at (5, 5)
    inner = np.hypot(*(np.indices(expected.shape) - 5)) < 4.4
    middle = crystal.generate_dynamical_diffraction_pattern
    data = scan.datacube.data[position][48 - 5 : 48 + 5, 45 - 5 : 45 + 5] / 1e9
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        lost = 1 - middle(beams, 700.0, zone_axis_cartesian=turn[:, 2]).data["intensity"].sum()
    data = data - lost * size**2 / (2 * np.pi * 0.6**2)  # the background of what is absorbed
    found = data * np.clip(5.5 - np.hypot(*(np.indices((13, 13)) - 6)), 0, 1).sum()
    assert np.ptp(expected[inner]) > 0.1  # fringes and lines, not an even disk
    np.testing.assert_allclose(found[inner], expected[inner], atol=0.015)
    # Turned by half a turn, or with its axes exchanged, it does not fit.
    for wrong in (np.roll(found[::-1, ::-1], 1, axis=(0, 1)), found.T):
        assert np.abs(wrong - expected)[inner].max() > 0.05


def test_the_truth_about_a_bent_wedge():
    scan = simulate_scan(**{**DYNAMICAL, "bending": 3}, seed=3)
    inside = scan.labels >= 0
    assert scan.orientation_at.shape == (12, 10, 3, 3)
    assert np.isnan(scan.orientation_at[~inside]).all()
    assert np.isnan(scan.bend_at[~inside]).all()
    assert (scan.thickness[~inside] == 0).all()
    assert scan.phases.tolist() == [0] * len(scan.orientations)
    for k, middle in enumerate(scan.orientations):
        here = scan.labels == k
        turns = Rotation.from_matrix(middle.T @ scan.orientation_at[here])
        np.testing.assert_allclose(
            np.rad2deg(turns.magnitude()), np.abs(scan.bend_at[here]), atol=1e-6
        )
        ends = scan.bend_at[here].min(), scan.bend_at[here].max()
        assert ends == (pytest.approx(-1.5, abs=0.2), pytest.approx(1.5, abs=0.2))
        # About one axis: turns of different sign have opposite vectors.
        vectors = turns.as_rotvec()
        assert np.linalg.matrix_rank(vectors, tol=1e-9) == 1
        low, high = scan.thickness[here].min(), scan.thickness[here].max()
        assert (low, high) == (pytest.approx(4, abs=0.1), pytest.approx(15, abs=0.1))
        # Even slope: the thickness is a plane over the grain.
        x, y = np.nonzero(here)
        plane = np.column_stack([x, y, np.ones(len(x))])
        residual = np.linalg.lstsq(plane, scan.thickness[here], rcond=None)[1]
        assert residual.max(initial=0) < 1e-9


def test_the_truth_about_a_kinematical_scan():
    scan = simulate_scan(**SMALL, bending=4, seed=3)
    assert scan.thickness is None
    assert scan.crystals == (scan.crystal,)
    for k, middle in enumerate(scan.orientations):
        here = scan.labels == k
        turns = Rotation.from_matrix(middle.T @ scan.orientation_at[here])
        np.testing.assert_allclose(
            np.rad2deg(turns.magnitude()), np.abs(scan.bend_at[here]), atol=1e-6
        )
        assert np.ptp(scan.bend_at[here]) == pytest.approx(4, abs=0.1)


def test_flat_and_round_grains():
    options = {**DYNAMICAL, "n_grains": 5, "even_disks": True, "seed": 2}
    flat = simulate_scan(**options, thickness_profile="flat")
    heights = [np.unique(flat.thickness[flat.labels == k]) for k in range(len(flat.orientations))]
    assert all(len(height) == 1 for height in heights)
    assert len(np.unique(np.concatenate(heights))) == len(heights)
    assert 4 <= np.min(heights) < np.max(heights) <= 15
    round_ = simulate_scan(**options, thickness_profile="sphere")
    np.testing.assert_array_equal(round_.labels, flat.labels)
    distance, radii = reference_grains((12, 10), 5, np.random.default_rng(2))
    nearest = (distance / radii).argmin(axis=0)
    relative = np.sqrt(np.maximum(1 - np.min(distance / radii, axis=0) ** 2, 0))
    for k, height in enumerate(heights):
        here = flat.labels == k
        assert len(np.unique(nearest[here])) == 1
        # The same draw is the thickness in the centre of a sphere.
        np.testing.assert_allclose(round_.thickness[here], height * relative[here], atol=1e-9)


def test_thin_rims_look_like_what_is_around():
    """Where a sphere ends, the pattern goes over into that of liquid or vacuum."""
    for surroundings in ("liquid", "vacuum"):
        scan = simulate_scan(
            (24, 20),
            (40, 36),
            n_grains=1,
            electrons=1e8,
            speckle=0,
            scattering="dynamical",
            materials="silicon",
            thickness=4,
            thickness_profile="sphere",
            surroundings=surroundings,
            even_disks=True,
            seed=3,
        )
        inside = scan.labels == 0
        change = np.abs(scan.datacube.data / 1e8 - scan.patterns[-1]).sum(axis=(2, 3))
        assert change[~inside].max() < 0.01
        thick = scan.thickness[inside]
        order = np.argsort(thick)
        thin = change[inside][order[:3]]
        assert thick[order[2]] < 1
        assert thin.max() < 0.2 * change[inside][order[-3:]].min()


def test_vacuum_and_a_film():
    options = {**DYNAMICAL, "even_disks": True, "seed": 3, "electrons": 1e6}
    vacuum = simulate_scan(**options, surroundings="vacuum")
    beside = vacuum.datacube.data[vacuum.labels < 0].mean(axis=0) / 1e6
    u, v = np.ogrid[:40, :36]
    beam = np.clip(2.5 - np.hypot(u - 19.5, v - 17.5), 0, 1)
    np.testing.assert_allclose(beside, beam / beam.sum(), atol=1e-3)
    film = simulate_scan(**options, surroundings="vacuum", film=0.2)
    added = film.datacube.data[film.labels < 0].mean(axis=0) / 1e6 - 0.8 * beside
    assert added.sum() == pytest.approx(0.2, abs=0.003)
    k = np.hypot(u - 19.5, v - 17.5) * film.datacube.Q_pixel_size
    assert added[np.abs(k - 0.55) < 0.05].mean() > 2 * added[k > 0.8].mean()


def test_electrons_are_not_made():
    options = {**DYNAMICAL, "materials": "gold", "even_disks": True, "thickness": (10, 30)}
    scan = simulate_scan(**options, electrons=1e6, seed=3)
    sums = scan.datacube.data.sum(axis=(2, 3)) / 1e6
    assert sums.max() < 1.01
    assert sums[scan.labels < 0].mean() == pytest.approx(1, abs=0.002)
    grains = scan.patterns[:-1].sum(axis=(1, 2))
    assert (grains > 0.8).all()
    assert (grains < 0.9999).all()
    assert (scan.patterns >= 0).all()


def test_means_converge_to_the_expected_patterns():
    scan = simulate_scan(**DYNAMICAL, electrons=50_000, bending=1, even_disks=True, seed=2)
    for k in range(len(scan.orientations)):
        counts = scan.datacube.data[scan.labels == k]
        expected = 50_000 * scan.patterns[k]
        # Sums of Poisson counts of different expectations are Poisson distributed.
        assert disagreement(counts.sum(axis=0), len(counts) * expected) < 6


def test_two_materials():
    options = {**DYNAMICAL, "scan_shape": (24, 20), "n_grains": 4, "even_disks": True, "seed": 2}
    scan = simulate_scan(**{**options, "materials": ("gold", "silicon")})
    n = len(scan.orientations)
    assert sorted(np.bincount(scan.phases).tolist()) == [n // 2, n - n // 2]
    assert [crystal.numbers[0] for crystal in scan.crystals] == [79, 14]
    assert scan.crystal is scan.crystals[0]
    for crystal in scan.crystals:
        assert crystal.wavelength == pytest.approx(0.0197, abs=1e-4)
        assert crystal.struct_factors_int.max() > 0
    only = simulate_scan(**{**options, "materials": "gold"})
    gold = scan.phases == 0
    np.testing.assert_allclose(scan.patterns[:-1][gold], only.patterns[:-1][gold], atol=1e-12)
    assert (np.abs(scan.patterns - only.patterns)[:-1][~gold].max(axis=(1, 2)) > 1e-4).all()


def test_any_crystal_of_py4dstem():
    given = skewed()
    before = dict(vars(given))
    options = {**DYNAMICAL, "materials": given, "thermal_displacement": {22: 0.07, 8: 0.09}}
    scan = simulate_scan(**options, even_disks=True, seed=3)
    assert set(vars(given)) == set(before)
    np.testing.assert_array_equal(scan.crystal.lat_real, given.lat_real)
    warm = simulate_scan(**{**options, "thermal_displacement": 0.3}, even_disks=True, seed=3)
    k = np.hypot(*(np.indices((40, 36)).T - [19.5, 17.5]).T) * scan.datacube.Q_pixel_size
    far = k > 0.6
    assert warm.patterns[:-1, far].sum() != pytest.approx(scan.patterns[:-1, far].sum(), rel=0.01)


@pytest.mark.parametrize("twins", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_every_difficulty_works_with_dynamical_scattering(twins):
    options = {**SMALL, "n_grains": 5, **HARD, "twins": twins, "small_angles": 1 - twins}
    options |= {"strain": 0.02, "bending": 1.0, "seed": 3}
    plain = simulate_scan(**options)
    scan = simulate_scan(
        **options, scattering="dynamical", materials="NaCl", thickness=(4, 12), even_disks=True
    )
    for name in ("labels", "shares", "orientations", "shifts", "strains", "orientation_at"):
        np.testing.assert_array_equal(getattr(scan, name), getattr(plain, name))
    data = scan.datacube.data
    assert data.shape == plain.datacube.data.shape
    assert (data != plain.datacube.data).any()
    assert data.mean() == pytest.approx(plain.datacube.data.mean(), rel=0.1)
    assert (data >= 7).all()  # the offset
    again = simulate_scan(
        **options, scattering="dynamical", materials="NaCl", thickness=(4, 12), even_disks=True
    )
    np.testing.assert_array_equal(again.datacube.data, data)
    assert neighbours(scan.labels)


def test_uneven_thickness_is_in_the_truth():
    options = {**DYNAMICAL, "thickness": 10, "even_disks": True, "seed": 4}
    scan = simulate_scan(**options, uneven=0.6)
    inside = scan.labels >= 0
    assert 3.9 < scan.thickness[inside].min() < 8
    assert np.ptp(scan.thickness[inside]) > 1
    assert simulate_scan(**options, uneven=1).datacube.data.sum() > 0


def test_strain_moves_disks_and_nothing_else():
    options = {**DYNAMICAL, "detector_shape": (100, 92), "even_disks": True, "seed": 4}
    plain, strained = (simulate_scan(**options, strain=strain) for strain in (0, 0.05))
    outside = np.hypot(*(np.indices((100, 92)).T - [49.5, 45.5]).T) > 5
    for k in range(len(plain.orientations)):
        np.testing.assert_allclose(
            strained.patterns[k][~outside].sum(), plain.patterns[k][~outside].sum(), atol=1e-4
        )
        assert np.abs(strained.patterns[k] - plain.patterns[k]).max() > 1e-5


def test_bending_for_each_position():
    options = {**DYNAMICAL, "scan_shape": (24, 20), "even_disks": True, "seed": 3}
    scan = simulate_scan(**options, bending_per_position=0.1)
    lengths = []
    for k in range(len(scan.orientations)):
        slopes = [np.diff(np.where(scan.labels == k, scan.bend_at, np.nan), axis=a) for a in (0, 1)]
        steps = [slope[np.isfinite(slope)] for slope in slopes]
        assert all(np.ptp(step) < 1e-9 for step in steps)
        assert np.hypot(steps[0][0], steps[1][0]) == pytest.approx(0.1)
        lengths.append(np.ptp(scan.bend_at[scan.labels == k]))
    assert max(lengths) > 1.2 * min(lengths)  # larger grains bend more


def test_even_disks_are_even_and_others_are_not():
    scattering = Scattering((64, 60), 1.2, 5)
    (material,) = check_materials("silicon", 0.08)
    crystal = BlochCrystal(material.dynamical(4, 300e3), 2)
    inside = np.ones((1, 3), dtype=bool)
    lattice = Lattice(orientation(8), np.array([1.0, 0, 0]), np.zeros((1, 3)), np.zeros(3))
    thick = np.array([[10, 20, 40.0]])
    even, uneven = (
        GrainDisks(scattering, crystal, lattice, thick, inside, e) for e in (True, False)
    )
    for n in range(3):
        flat, rough = (d.at((0, n))[0].reshape(64, 60)[29:35, 27:33] for d in (even, uneven))
        assert np.ptp(flat) < 0.01 * flat.max()  # faint disks lie over the edge
        assert rough.mean() == pytest.approx(flat.mean(), rel=0.3)
    assert np.ptp(rough) > 0.05 * rough.max()


def test_no_grain_and_a_seed():
    empty = simulate_scan(**{**DYNAMICAL, "n_grains": 0})
    assert empty.orientation_at.shape == (12, 10, 3, 3)
    assert (empty.thickness == 0).all()
    one = simulate_scan((5, 4), (20, 18), n_grains=1, scattering="dynamical", thickness=5, seed=1)
    two = simulate_scan((5, 4), (20, 18), n_grains=1, scattering="dynamical", thickness=5, seed=1)
    np.testing.assert_array_equal(one.datacube.data, two.datacube.data)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"scattering": "bloch"}, ValueError, "scattering='bloch' must be one of"),
        ({"materials": "copper"}, ValueError, "materials='copper' must be one of 'gold'"),
        ({"materials": ()}, ValueError, "at least one material"),
        ({"materials": ["gold", 79]}, TypeError, "materials=79 must be one of .* not int"),
        ({"thickness": 1}, ValueError, "thickness=1 must be a finite number from 2 to 150"),
        ({"thickness": (5, 200)}, ValueError, "thickness=200 must be"),
        ({"thickness": (40, 5)}, ValueError, r"thickness=\(40, 5\) must not fall"),
        ({"thickness": (4, 5, 6)}, TypeError, "two numbers"),
        ({"thickness": "thin"}, TypeError, "must be a number"),
        ({"thickness_profile": "cube"}, ValueError, "thickness_profile='cube'"),
        ({"accelerating_voltage": 300}, ValueError, "accelerating_voltage=300"),
        ({"even_disks": 1}, TypeError, "even_disks=1 must be True or False"),
        ({"surroundings": "air"}, ValueError, "surroundings='air'"),
        ({"bending_per_position": -1}, ValueError, "bending_per_position=-1"),
        ({"bending_per_position": 9}, ValueError, "bends a grain by .* at most"),
        ({"bending_per_position": 0.1, "bending": 1}, ValueError, "give one of them"),
        ({"materials": ("gold", "silicon"), "twins": 0.5}, ValueError, "twins=0.5 .* 2 materials"),
        ({"materials": ("gold", "NaCl"), "small_angles": 1}, ValueError, "small_angles=1"),
        ({"materials": "titanium", "twins": 1}, ValueError, "twins=1.0 needs a cubic"),
        ({"materials": "gold", "thickness": 150, "bending": 30}, ValueError, "million"),
        ({"electrons": 1e9, "gain": 1e5}, ValueError, "32 bits"),
    ],
)
def test_bad_options(options, error, match, monkeypatch):
    def never(*_):
        raise AssertionError("work began before the checks")

    monkeypatch.setattr(BlochCrystal, "intensities", never)
    with pytest.raises(error, match=match):
        simulate_scan(**{**DYNAMICAL, **options})


def test_bad_displacements():
    for wrong, error, match in (
        (0, ValueError, "thermal_displacement=0 must be"),
        ({22: 0.07}, ValueError, r"add \[8\]"),
        ("warm", TypeError, "thermal_displacement='warm'"),
    ):
        options = {"materials": skewed(), "thermal_displacement": wrong}
        with pytest.raises(error, match=match):
            simulate_scan(**{**DYNAMICAL, **options})


@pytest.mark.parametrize(
    "option",
    [
        {"materials": "gold"},
        {"thickness": 5},
        {"thickness_profile": "flat"},
        {"bending_per_position": 0.1},
        {"accelerating_voltage": 300e3},
        {"even_disks": True},
        {"surroundings": "vacuum"},
        {"thermal_displacement": 0.1},
    ],
)
def test_dynamical_options_need_dynamical_scattering(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))}=.* needs scattering='dynamical'"):
        simulate_scan(**SMALL, **option)


@pytest.mark.slow
def test_a_scan_takes_less_than_a_minute_on_one_core():
    start = time.process_time()
    scan = simulate_scan(
        (64, 56), (96, 90), n_grains=6, scattering="dynamical", bending=2, thickness=(5, 40), seed=1
    )
    assert time.process_time() - start < 60
    assert len(scan.orientations) == 6


def test_the_crystal_of_a_preset_is_made_anew():
    (one,), (two,) = check_materials("gold", 0.08), check_materials("gold", 0.08)
    assert isinstance(one.crystal, Crystal)
    assert one.crystal is not two.crystal
