"""Simulated scans are as documented, and a seed always gives the same scan."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from py4dstem_clustering import simulate_scan
from py4dstem_clustering.simulate.grains import bend_places
from py4dstem_clustering.simulate.scattering import Scattering

SMALL = {"scan_shape": (12, 10), "detector_shape": (40, 36), "n_grains": 3}


def test_shapes_and_calibration():
    scan = simulate_scan(**SMALL, seed=3)
    n = len(scan.orientations)
    assert scan.datacube.shape == (12, 10, 40, 36)
    assert scan.datacube.data.dtype == np.uint16
    assert scan.patterns.shape == (n + 1, 40, 36)
    assert set(np.unique(scan.labels)) == set(range(-1, n))
    calibration = scan.datacube.calibration
    assert calibration.get_R_pixel_units() == "A"
    assert calibration.get_Q_pixel_units() == "A^-1"
    assert calibration.get_origin_mean() == (19.5, 17.5)
    np.testing.assert_allclose(scan.patterns.sum(axis=(1, 2)), 1)
    for orientation in scan.orientations:
        np.testing.assert_allclose(orientation @ orientation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(orientation) > 0


def test_the_same_seed_gives_the_same_scan():
    a, b = simulate_scan(**SMALL, seed=3), simulate_scan(**SMALL, seed=3)
    np.testing.assert_array_equal(a.datacube.data, b.datacube.data)
    np.testing.assert_array_equal(a.orientations, b.orientations)
    assert (simulate_scan(**SMALL, seed=4).labels != a.labels).any()


def test_the_same_grains_everywhere():
    # Fixed when first released: a change of the grain map must be intended.
    labels = simulate_scan((48, 40), (32, 30), seed=0).labels
    digest = hashlib.sha256(labels.astype("<i4").tobytes()).hexdigest()
    assert digest[:16] == "07f28f221941f4da"


@pytest.mark.parametrize(
    ("hard", "digest"), [(False, "b21fb09d6072261b"), (True, "202a729e02d222bd")]
)
def test_the_same_kinematical_counts_as_before_there_were_dynamical_ones(hard, digest):
    options = {**HARD, "strain": 0.02} if hard else {}
    scan = simulate_scan((12, 10), (40, 36), n_grains=5, seed=3, **options)
    found = hashlib.sha256(scan.datacube.data.astype("<u4").tobytes()).hexdigest()
    assert found[:16] == digest


@pytest.mark.parametrize("electrons", [30, 1000, 100_000])
def test_electrons(electrons):
    counts = simulate_scan(**SMALL, electrons=electrons, seed=1).datacube.data.sum(axis=(2, 3))
    assert counts.mean() == pytest.approx(electrons, rel=5 / np.sqrt(120 * electrons))


def test_bright_scans_are_not_cut_off():
    scan = simulate_scan((3, 4), (40, 36), n_grains=0, electrons=1e7, disk_radius=0.5, seed=1)
    assert scan.datacube.data.dtype == np.uint32
    assert scan.datacube.data.max() > 65535


def test_means_converge_to_the_expected_patterns():
    scan = simulate_scan(**SMALL, electrons=50_000, seed=2)
    for k in range(len(scan.orientations)):
        counts = scan.datacube.data[scan.labels == k]
        expected = 50_000 * scan.patterns[k]
        error = np.sqrt(expected / len(counts))
        assert (np.abs(counts.mean(axis=0) - expected) < 6 * error + 1e-3).all()


def test_gold_has_its_rings():
    # {111} at 0.425, {200} at 0.490 inverse Angstrom.
    scan = simulate_scan((24, 20), (120, 110), n_grains=12, seed=5)
    size = scan.datacube.Q_pixel_size
    u, v = np.indices((120, 110))
    k = np.hypot(u - 59.5, v - 54.5) * size
    gain = scan.patterns[:-1].max(axis=0) - 0.6 * scan.patterns[-1]
    bright = k[gain > 0.3 * gain[k > 0.2].max()]
    assert ((bright < 0.05) | (bright > 0.425 - 3.5 * size)).all()


def test_a_scan_of_liquid_only():
    scan = simulate_scan((4, 5), (20, 18), n_grains=0, seed=0)
    assert (scan.labels == -1).all()
    assert scan.orientations.shape == (0, 3, 3)
    assert scan.patterns.shape == (1, 20, 18)


def test_speckle_makes_the_liquid_disordered():
    smooth = simulate_scan((6, 5), (40, 36), n_grains=0, electrons=1e5, speckle=0, seed=0)
    rough = simulate_scan((6, 5), (40, 36), n_grains=0, electrons=1e5, seed=0)
    centre = (19.5, 17.5)
    mask = smooth.datacube.make_detector((40, 36), "annulus", (centre, (4, 17)))
    level = {
        name: scan.datacube.get_similarity(q_mask=mask, progress_bar=False).mean.mean()
        for name, scan in (("smooth", smooth), ("rough", rough))
    }
    assert level["rough"] < level["smooth"] - 0.05


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"scan_shape": (0, 5)}, ValueError, "scan_shape=0 must be at least 1"),
        ({"scan_shape": 5}, TypeError, "two whole numbers"),
        ({"detector_shape": (8, 40)}, ValueError, "detector_shape=8 must be at least 16"),
        ({"n_grains": -1}, ValueError, "n_grains=-1"),
        ({"electrons": -1}, ValueError, "electrons=-1"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"seed": None}, TypeError, "seed=None"),
        ({"disk_radius": 0}, ValueError, "disk_radius=0"),
        ({"disk_radius": 30}, ValueError, "disk_radius=30"),
        ({"electrons": 1e10}, ValueError, "electrons=10000000000.0"),
    ],
)
def test_bad_input(options, error, match):
    with pytest.raises(error, match=match):
        simulate_scan(**{**SMALL, **options})


# Options that make a scan harder. Each scan is compared with its known truth.

HARD = {
    "probe_blur": 1.2,
    "twins": 0.5,
    "small_angles": 0.5,
    "bending": 3.0,
    "uneven": 0.6,
    "overlap": 0.3,
    "film": 0.3,
    "descan": 3.0,
    "gain": 2.5,
    "offset": 7.3,
    "hot_pixels": 0.05,
    "lag": 0.5,
}


def reference_grains(shape, n_grains, rng, overlap=0.0):
    """Centres and radii of the grains, as first released."""
    radius = np.sqrt(0.6 * shape[0] * shape[1] / (np.pi * n_grains))
    found = []
    for _ in range(1000 * n_grains):
        if len(found) == n_grains:
            break
        centre, size = rng.uniform(0, shape), radius * rng.uniform(0.7, 1.3)
        if all(np.hypot(*(centre - c)) > (0.8 - overlap) * (size + r) for c, r in found):
            found.append((centre, size))
    x, y = np.indices(shape)
    distance = np.array([np.hypot(x - c[0], y - c[1]) for c, _ in found])
    return distance, np.array([r for _, r in found])[:, None, None]


def liquid_parts(scan, disk_radius=2.0):
    """The direct beam and the diffuse ring, each with a sum of 1."""
    shape = scan.patterns.shape[1:]
    u, v = np.ogrid[: shape[0], : shape[1]]
    r = np.hypot(u - (shape[0] - 1) / 2, v - (shape[1] - 1) / 2)
    beam = np.clip(disk_radius + 0.5 - r, 0, 1)
    beam /= beam.sum()
    return beam, 2 * scan.patterns[-1] - beam, r * scan.datacube.Q_pixel_size


def disagreement(counts, expected):
    """Largest deviation from expected Poisson counts, in standard deviations plus 1."""
    counts = np.asarray(counts, dtype=float)
    return (np.abs(counts - expected) / (np.sqrt(expected) + 1)).max()


def neighbours(labels):
    """How often each pair of grains, the earlier one first, is side by side."""
    pairs = {}
    for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        for pair in zip(np.minimum(a, b).flat, np.maximum(a, b).flat, strict=True):
            if pair[0] >= 0 and pair[0] != pair[1]:
                pairs[pair] = pairs.get(pair, 0) + 1
    return pairs


def most_touched(labels):
    """For each grain that touches earlier grains, the one of them that it touches most."""
    best = {}
    for (a, b), times in sorted(neighbours(labels).items()):
        if times > best.get(b, (0, 0))[0]:
            best[b] = times, a
    return {b: a for b, (_, a) in best.items()}


@pytest.mark.parametrize("options", [{}, {"n_grains": 5, "electrons": 300, "seed": 9}])
def test_the_defaults_are_those_first_released(options):
    options = {**SMALL, "electrons": 1000, "seed": 0, **options}
    scan = simulate_scan(**options)
    rng = np.random.default_rng(options["seed"])
    distance, radii = reference_grains(options["scan_shape"], options["n_grains"], rng)
    nearest = np.where((distance < radii).any(axis=0), (distance / radii).argmin(axis=0), -1)
    labels = np.unique(nearest, return_inverse=True)[1].reshape(nearest.shape) - 1
    np.testing.assert_array_equal(scan.labels, labels)
    quaternions = rng.standard_normal((labels.max() + 1, 4))
    np.testing.assert_allclose(
        scan.orientations, [Rotation.from_quat(q).as_matrix() for q in quaternions], atol=1e-12
    )
    diffuse = liquid_parts(scan)[1]
    for position in np.ndindex(*labels.shape):
        expected = scan.patterns[labels[position]]
        if labels[position] < 0:
            grains = gaussian_filter(rng.standard_normal(diffuse.shape), 2)
            grains = np.exp(0.5 * grains / grains.std())
            expected = expected + 0.5 * diffuse * (grains / np.average(grains, weights=diffuse) - 1)
        counts = rng.poisson(options["electrons"] * expected)
        np.testing.assert_array_equal(scan.datacube.data[position], counts)


@pytest.mark.parametrize("options", [{}, HARD, {"overlap": 0.5}, {"probe_blur": 2}])
def test_shares_and_labels(options):
    scan = simulate_scan(**{**SMALL, "n_grains": 5}, **options, seed=3)
    n = len(scan.orientations)
    assert scan.shares.shape == (12, 10, n + 1)
    assert (scan.shares >= 0).all()
    np.testing.assert_allclose(scan.shares.sum(axis=2), 1)
    largest = scan.shares.argmax(axis=2)
    np.testing.assert_array_equal(scan.labels, np.where(largest == n, -1, largest))
    assert scan.labels.dtype == np.int32
    assert scan.shifts.shape == (12, 10, 2)
    assert (scan.shares.max(axis=2) < 0.999).any() == bool(options)


@pytest.mark.parametrize("option", list(HARD))
def test_a_seed_means_the_same_grains_with_every_option(option):
    options = {**SMALL, "n_grains": 5, "seed": 3}
    plain, scan = simulate_scan(**options), simulate_scan(**options, **{option: HARD[option]})
    if option == "overlap":  # this option moves the grains, the others do not
        plain, scan = scan, simulate_scan(**{**options, **HARD, "twins": 0, "small_angles": 0})
    if option not in ("probe_blur", "overlap"):
        np.testing.assert_array_equal(scan.labels, plain.labels)
        np.testing.assert_array_equal(scan.shares, plain.shares)
    if option not in ("twins", "small_angles"):
        np.testing.assert_array_equal(scan.orientations, plain.orientations)
        np.testing.assert_array_equal(scan.patterns, plain.patterns)
    assert scan.datacube.data.shape == plain.datacube.data.shape
    assert (scan.datacube.data != plain.datacube.data).any()
    again = simulate_scan(**options, **{option: HARD[option]})
    if option != "overlap":
        np.testing.assert_array_equal(again.datacube.data, scan.datacube.data)


def test_probe_blur():
    sharp = simulate_scan(**SMALL, seed=3)
    scan = simulate_scan(**SMALL, speckle=0, electrons=1e6, probe_blur=1.2, seed=3)
    blurred = gaussian_filter(sharp.shares, (1.2, 1.2, 0), mode="nearest")
    np.testing.assert_allclose(scan.shares, blurred, atol=1e-12)
    expected = 1e6 * np.tensordot(blurred, scan.patterns, 1)
    assert disagreement(scan.datacube.data, expected) < 6


@pytest.mark.parametrize("seed", [0, 1, 8])
def test_twins(seed):
    scan = simulate_scan((24, 20), (16, 16), n_grains=10, twins=1, seed=seed)
    partners = most_touched(scan.labels)
    assert len(partners) > 2
    for k, partner in partners.items():
        turn = Rotation.from_matrix(scan.orientations[k] @ scan.orientations[partner].T)
        assert np.rad2deg(turn.magnitude()) == pytest.approx(60)
        axis = turn.as_rotvec() / turn.magnitude()
        np.testing.assert_allclose(np.abs(axis), 1 / np.sqrt(3))
    # Grains that touch never have the same lattice, also not as twins of a third.
    symmetry = Rotation.create_group("O").as_matrix()
    for a, b in neighbours(scan.labels):
        turn = symmetry @ scan.orientations[a] @ scan.orientations[b].T
        angles = Rotation.from_matrix(turn).magnitude()
        assert np.rad2deg(angles.min()) > 1


@pytest.mark.parametrize("angle", [2.5, 45])
def test_small_angles(angle):
    options = {"small_angles": 1, "small_angle": angle, "seed": 2}
    scan = simulate_scan((24, 20), (16, 16), n_grains=10, **options)
    partners = most_touched(scan.labels)
    assert len(partners) > 2
    symmetry = Rotation.create_group("O").as_matrix()
    for k, partner in partners.items():
        turn = symmetry @ scan.orientations[k] @ scan.orientations[partner].T
        angles = Rotation.from_matrix(turn).magnitude()
        assert np.rad2deg(angles.min()) == pytest.approx(angle)


def test_chances_of_twins_and_small_angles():
    options = {"scan_shape": (24, 20), "detector_shape": (16, 16), "n_grains": 10}
    turned = {"twins": 0, "small_angles": 0, "none": 0}
    for seed in range(12):
        plain = simulate_scan(**options, seed=seed)
        scan = simulate_scan(**options, twins=0.3, small_angles=0.4, small_angle=3, seed=seed)
        for k, partner in most_touched(scan.labels).items():
            turn = scan.orientations[k] @ scan.orientations[partner].T
            angle = np.rad2deg(Rotation.from_matrix(turn).magnitude())
            if (scan.orientations[k] == plain.orientations[k]).all():
                turned["none"] += 1
            else:
                assert angle == pytest.approx(60) or angle == pytest.approx(3)
                turned["twins" if angle > 30 else "small_angles"] += 1
    n = sum(turned.values())
    for name, chance in (("twins", 0.3), ("small_angles", 0.4), ("none", 0.3)):
        assert abs(turned[name] - chance * n) < 2.5 * np.sqrt(chance * (1 - chance) * n)


def test_bending():
    options = {"n_grains": 1, "electrons": 1e6, "speckle": 0, "seed": 4}
    flat, bent = (simulate_scan((14, 14), (40, 36), **options, bending=b) for b in (0, 6))
    np.testing.assert_array_equal(bent.patterns, flat.patterns)
    x, y = np.nonzero(flat.labels == 0)
    differences = {}
    for name, scan in (("flat", flat), ("bent", bent)):
        counts = scan.datacube.data[x, y] / 1e6
        for angle in np.linspace(0, np.pi, 8, endpoint=False):
            order = np.argsort(x * np.cos(angle) + y * np.sin(angle))
            ends = counts[order[:8]].mean(axis=0), counts[order[-8:]].mean(axis=0)
            change = np.abs(ends[0] - ends[1]).sum()
            differences[name] = max(differences.get(name, 0), change)
    assert differences["bent"] > 5 * differences["flat"]
    # The position most like the unbent pattern is near the middle, and very like it.
    error = np.abs(bent.datacube.data[x, y] / 1e6 - bent.patterns[0]).sum(axis=(1, 2))
    middle = np.array([x.max() + x.min(), y.max() + y.min()]) / 2
    assert error[np.hypot(x - middle[0], y - middle[1]) < 1.5].max() < 0.35 * error.max()
    sums = bent.datacube.data.sum(axis=(2, 3))
    assert (np.abs(sums - 1e6) < 6e3).all()


def test_the_ends_of_a_bent_grain(monkeypatch):
    turned = []

    bragg = Scattering.bragg

    def spy(self, orientation, strain):
        turned.append(orientation)
        return bragg(self, orientation, strain)

    monkeypatch.setattr(Scattering, "bragg", spy)
    scan = simulate_scan((6, 5), (16, 16), n_grains=1, bending=4, seed=1)
    turns = [Rotation.from_matrix(turn @ turned[0].T).magnitude() for turn in turned]
    np.testing.assert_allclose(np.rad2deg(turns), np.linspace(0, 4, len(turned)), atol=1e-6)
    assert len(turned) % 2 == 1
    np.testing.assert_allclose(turned[len(turned) // 2], scan.orientations[0], atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 30), (7, 9), (30, 2)])
def test_a_bend_runs_from_end_to_end(shape):
    shares = np.zeros((*shape, 2))
    shares[shape[0] // 4 :, :-1, 0] = 1
    for seed in range(5):
        ((bend, half),) = bend_places(shares, np.random.default_rng(seed))
        inside = bend[shares[..., 0] > 0]
        assert np.abs(bend).max() <= 1
        assert -inside.min() == pytest.approx(inside.max())
        assert inside.max() > 0.99
        # Along the direction of the bend, the place changes by 1 over half the length.
        middle = tuple(n // 2 for n in shape)
        steps = [
            np.diff(bend, axis=k)[tuple(np.minimum(middle, np.array(bend.shape) - 2))]
            if shape[k] > 1
            else 0
            for k in (0, 1)
        ]
        if min(shape) > 2:
            assert np.hypot(*steps) == pytest.approx(1 / half)


def test_no_strain_by_default():
    a, b = simulate_scan(**SMALL, seed=3), simulate_scan(**SMALL, strain=0, seed=3)
    np.testing.assert_array_equal(a.datacube.data, b.datacube.data)
    assert a.strains.shape == (len(a.orientations), 3)
    assert not a.strains.any()
    assert simulate_scan((4, 5), (20, 18), n_grains=0, strain=0.02).strains.shape == (0, 3)


@pytest.mark.parametrize("strain", [0.02, 0.1])
def test_strains_are_drawn_evenly_up_to_the_largest(strain):
    scans = [
        simulate_scan((24, 20), (16, 16), n_grains=10, strain=strain, seed=k) for k in range(6)
    ]
    drawn = np.concatenate([scan.strains for scan in scans])
    assert len(drawn) > 40
    assert 0.93 * strain < np.abs(drawn).max() <= strain
    for column in drawn.T:  # standard deviation of evenly drawn numbers
        assert column.std() == pytest.approx(strain / 3**0.5, rel=0.2)
        assert abs(column.mean()) < 4 * strain / (3 * len(drawn)) ** 0.5
    assert np.abs(np.corrcoef(drawn.T)[np.triu_indices(3, 1)]).max() < 0.4


def test_strain_changes_nothing_else():
    plain, scan = (simulate_scan(**SMALL, seed=3, strain=strain) for strain in (0, 0.05))
    for name in ("labels", "orientations", "shares", "shifts"):
        np.testing.assert_array_equal(getattr(scan, name), getattr(plain, name))
    np.testing.assert_array_equal(scan.patterns[-1], plain.patterns[-1])
    assert (np.abs(scan.patterns - plain.patterns)[:-1].max(axis=(1, 2)) > 1e-4).all()
    np.testing.assert_array_equal(scan.crystal.lat_real, plain.crystal.lat_real)
    # Drawn from a generator of its own, so that older options give the same scan as before.
    own = np.random.default_rng([3, 2]).uniform(-0.05, 0.05, scan.strains.shape)
    np.testing.assert_allclose(scan.strains, own, rtol=1e-12)
    again = simulate_scan(**SMALL, seed=3, strain=0.1)
    np.testing.assert_allclose(again.strains, 2 * scan.strains, rtol=1e-12)


@pytest.mark.parametrize("bending", [0, 2])
def test_disks_lie_where_the_strain_puts_them(bending):
    options = {"n_grains": 3, "speckle": 0, "strain": 0.08, "bending": bending, "seed": 4}
    scan = simulate_scan((8, 7), (120, 110), **options)
    centre = np.array([59.5, 54.5])
    u, v = np.indices((120, 110))
    for k, orientation in enumerate(scan.orientations):
        xx, yy, xy = scan.strains[k]
        deformation = np.array([[1 + xx, xy], [xy, 1 + yy]])
        peaks = scan.crystal.generate_diffraction_pattern(
            orientation_matrix=orientation, sigma_excitation_error=0.03
        ).data
        bragg = scan.patterns[k] - 0.6 * scan.patterns[-1]
        checked = 0
        places = np.stack([peaks["qx"], peaks["qy"]], axis=1) / scan.datacube.Q_pixel_size
        # q = F^-T q_0
        places = centre + places @ np.linalg.inv(deformation)
        for place in places:
            distance = np.hypot(u - place[0], v - place[1])
            others = np.hypot(*(places - place).T)
            inside = (place > 4).all() and (place < [115, 105]).all()
            if not inside or np.sort(others)[1] < 7 or np.hypot(*(place - centre)) < 10:
                continue
            disk = np.where(distance < 3.3, bragg, 0)
            found = [(axis * disk).sum() / disk.sum() for axis in (u, v)]
            np.testing.assert_allclose(found, place, atol=0.05)
            checked += 1
        assert checked >= 4


def test_uneven():
    options = {"n_grains": 1, "speckle": 0, "electrons": 1e6, "seed": 4}
    for uneven, least, most in ((0, 0.97, 1.03), (0.7, 0.27, 0.75), (1, -0.03, 0.65)):
        scan = simulate_scan((14, 12), (40, 36), **options, uneven=uneven)
        beam, diffuse, _ = liquid_parts(scan)
        bragg = (scan.patterns[0] - 0.6 * scan.patterns[1]) / 0.4
        parts = np.stack([beam, diffuse, bragg]).reshape(3, -1).T
        counts = scan.datacube.data.reshape(14 * 12, -1)
        found = np.linalg.lstsq(parts, counts.T / 1e6, rcond=None)[0].reshape(3, 14, 12)
        grain = scan.labels == 0
        np.testing.assert_allclose(found[2][~grain], 0, atol=0.01)
        thickness = found[2][grain] / 0.4
        wet = np.where(grain, found[1] / 0.3, found[1] / 0.5)
        assert least <= thickness.min() <= most
        assert thickness.max() < 1.03
        assert wet.min() == pytest.approx(1 - uneven, abs=0.03)
        assert wet.max() == pytest.approx(1, abs=0.03)
        assert wet[grain].min() < 1.03 - 0.4 * uneven
        np.testing.assert_allclose(found.sum(axis=0), 1, atol=0.02)
        assert disagreement(counts.sum(axis=1), 1e6) < 6


def test_uneven_without_any_disk_on_the_detector():
    options = {"k_max": 0.25, "electrons": 1e6, "speckle": 0, "seed": 4}
    scan = simulate_scan(**SMALL, **options, uneven=0.9, bending=1)
    assert (scan.labels >= 0).any()
    assert disagreement(scan.datacube.data.sum(axis=(2, 3)), 1e6) < 6


@pytest.mark.parametrize("seed", range(4))
def test_uneven_down_to_nothing(seed):
    # Nothing scatters somewhere: no expectation below 0, which numpy would refuse.
    scan = simulate_scan(**SMALL, uneven=1, probe_blur=seed, speckle=2, electrons=1e4, seed=seed)
    assert disagreement(scan.datacube.data.sum(axis=(2, 3)), 1e4) < 6


def test_overlap():
    options = {**SMALL, "n_grains": 5, "electrons": 1e6, "speckle": 0}
    scan = simulate_scan(**options, overlap=0.4, seed=2)
    shares = scan.shares
    both = ((shares[..., :-1] > 0) & (shares[..., :-1] < 1)).sum(axis=2) >= 2
    assert both.sum() > 5
    assert not (shares[both, -1] > 0).any()
    expected = 1e6 * np.tensordot(shares, scan.patterns, 1)
    assert disagreement(scan.datacube.data, expected) < 6
    # The thickness of a sphere is twice the root of its radius squared less the distance squared.
    rng = np.random.default_rng(2)
    distance, radii = reference_grains((12, 10), 5, rng, overlap=0.4)
    thickness = 2 * np.sqrt(np.maximum(radii**2 - distance**2, 0))
    thickness = thickness[thickness.any(axis=(1, 2))]
    total = thickness.sum(axis=0)
    with_liquid = np.concatenate([thickness / np.maximum(total, 1e-9), [total == 0]])
    np.testing.assert_allclose(shares, np.moveaxis(with_liquid, 0, 2), atol=1e-9)
    assert (simulate_scan(**options, seed=2).shares % 1 == 0).all()


@pytest.mark.parametrize("film", [0.25, 1])
def test_film(film):
    scan = simulate_scan((4, 3), (60, 56), n_grains=0, speckle=0, electrons=1e7, film=film, seed=0)
    counts = scan.datacube.data.mean(axis=(0, 1)) / 1e7
    added = counts - (1 - film) * scan.patterns[-1]
    assert added.sum() == pytest.approx(film, abs=0.002)
    assert added.min() > -1e-4
    k = liquid_parts(scan)[2]
    ring = (k > 0.3) & (k < 1.2)
    assert np.average(k[ring], weights=added[ring] ** 2) == pytest.approx(0.55, abs=0.02)
    near = np.abs(k - 0.55) < 0.05
    assert added[near].mean() > 5 * added[(k > 0.8) & (k < 1.2)].mean()


def test_descan():
    options = {"n_grains": 0, "speckle": 0, "electrons": 1e6, "seed": 0}
    scan = simulate_scan((7, 6), (40, 36), **options, descan=5)
    moved = scan.shifts
    for a, b in (((0, 0), (-1, -1)), ((0, -1), (-1, 0))):
        assert np.hypot(*(moved[a] - moved[b])) == pytest.approx(5)
    u, v = np.indices((40, 36))
    still = simulate_scan((7, 6), (40, 36), **options)
    assert not still.shifts.any()
    for data, shifts in ((scan.datacube.data, moved), (still.datacube.data, still.shifts)):
        beam = np.maximum(data - 0.2 * data.max(axis=(2, 3), keepdims=True), 0)
        total = beam.sum(axis=(2, 3))
        centre = np.stack([(beam * w).sum(axis=(2, 3)) / total for w in (u, v)], axis=2)
        np.testing.assert_allclose(centre, shifts + np.array([19.5, 17.5]), atol=0.1)


@pytest.mark.parametrize(("gain", "offset"), [(3.7, 12.5), (40, 0), (0.3, 0), (1, 0.25)])
def test_gain_and_offset(gain, offset):
    options = {"n_grains": 0, "speckle": 0, "electrons": 20_000, "seed": 0}
    scan = simulate_scan((24, 20), (20, 18), **options, gain=gain, offset=offset)
    data = scan.datacube.data.reshape(480, -1).astype(float)
    expected = 20_000 * scan.patterns[-1].ravel()
    error = np.sqrt((gain**2 * expected + 0.25) / 480)  # 0.25: rounding to whole numbers
    assert (np.abs(data.mean(axis=0) - gain * expected - offset) < 5 * error).all()
    slope = np.polyfit(data.mean(axis=0) - offset, data.var(axis=0), 1)[0]
    assert slope == pytest.approx(gain, rel=0.08)


def test_hot_pixels():
    options = {**SMALL, "electrons": 1e5, "seed": 1}
    plain = simulate_scan(**options)
    scan = simulate_scan(**options, hot_pixels=0.1)
    added = scan.datacube.data.astype(float) - plain.datacube.data
    hot = (added != 0).any(axis=(0, 1))
    n = hot.size
    assert abs(hot.sum() - 0.1 * n) < 4 * np.sqrt(0.09 * n)
    assert (added[..., hot] > 0).all()
    level = added[..., hot].mean(axis=(0, 1)) / (1e5 * plain.patterns[-1].max())
    assert 0.19 < level.min() < 0.4
    assert 1.6 < level.max() < 2.01
    spread = added[..., hot].var(axis=(0, 1)) / added[..., hot].mean(axis=(0, 1))
    assert spread.mean() == pytest.approx(1, abs=0.1)
    everywhere = simulate_scan(**options, hot_pixels=1)
    assert (everywhere.datacube.data > plain.datacube.data).all()


@pytest.mark.parametrize("lag", [0.3, 2])
def test_lag(lag):
    options = {**SMALL, "electrons": 1e5, "seed": 1}
    plain = simulate_scan(**options).datacube.data.astype(float)
    data = simulate_scan(**options, lag=lag).datacube.data.astype(float)
    expected = np.zeros_like(plain)
    for later in range(10):  # of each electron, this share arrives so many positions later
        response = 1 / (1 + lag) * (lag / (1 + lag)) ** later
        expected[:, later:] += response * plain[:, : 10 - later]
    assert (np.abs(data - expected) < 1 + 1e-6).all()
    # What has not arrived by the end of the row is all that is missing.
    missing = (plain - data).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(missing, lag * data[:, -1].sum(axis=(1, 2)), rtol=0.02, atol=1000)


def test_recorded_values_never_wrap():
    # A single electron worth almost all of 16 bits; a beam of one pixel that nothing scatters.
    scan = simulate_scan((9, 8), (33, 31), electrons=1, disk_radius=0.5, gain=60_000, seed=0)
    assert set(np.unique(scan.datacube.data) % 60_000) == {0}
    assert scan.datacube.data.max() > 65535
    options = {"n_grains": 0, "electrons": 65535, "disk_radius": 0.5, "seed": 0}
    scan = simulate_scan((9, 8), (33, 31), **options, uneven=1)
    assert disagreement(scan.datacube.data.sum(axis=(2, 3)), 65535) < 6
    assert scan.datacube.data.dtype == np.uint32
    assert simulate_scan((3, 3), (33, 31), **options).datacube.data.dtype == np.uint16
    assert simulate_scan(**SMALL, offset=65_535).datacube.data.min() == 65_535


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        *(({name: -0.1}, ValueError, f"{name}=-0.1 must be") for name in [*HARD, "small_angle"]),
        *(({name: "1"}, TypeError, f"{name}='1' must be") for name in [*HARD, "small_angle"]),
        ({"probe_blur": 10.5}, ValueError, r"probe_blur=10.5 .* from 0 to 10"),
        ({"twins": 1.1}, ValueError, r"twins=1.1 .* from 0 to 1"),
        ({"small_angles": 1.1}, ValueError, r"small_angles=1.1 .* from 0 to 1"),
        ({"twins": 0.6, "small_angles": 0.5}, ValueError, "twins=0.6 and small_angles=0.5 must be"),
        ({"small_angle": 46}, ValueError, r"small_angle=46 .* from 0 to 45"),
        ({"bending": 31}, ValueError, r"bending=31 .* from 0 to 30"),
        ({"strain": -0.01}, ValueError, r"strain=-0.01 must be .* from 0 to 0.1"),
        ({"strain": 0.11}, ValueError, r"strain=0.11 must be .* from 0 to 0.1"),
        ({"strain": "1"}, TypeError, "strain='1' must be"),
        ({"uneven": 1.1}, ValueError, r"uneven=1.1 .* from 0 to 1"),
        ({"overlap": 0.6}, ValueError, r"overlap=0.6 .* from 0 to 0.5"),
        ({"film": 1.1}, ValueError, r"film=1.1 .* from 0 to 1"),
        ({"descan": 9.1}, ValueError, r"descan=9.1 .* from 0 to 9"),
        ({"gain": 0}, ValueError, r"gain=0 .* from 1e-06 to 1e\+06"),
        ({"gain": 2e6}, ValueError, r"gain=2000000.0 .* from 1e-06 to 1e\+06"),
        ({"offset": 2e6}, ValueError, r"offset=2000000.0 .* from 0 to 1e\+06"),
        ({"hot_pixels": 1.1}, ValueError, r"hot_pixels=1.1 .* from 0 to 1"),
        ({"lag": float("inf")}, ValueError, r"lag=inf .* of at least 0"),
        ({"electrons": 1e9, "gain": 5}, ValueError, r"electrons=1000000000.0 with gain=5.0 .* 32"),
        ({"disk_radius": 0.4}, ValueError, r"disk_radius=0.4 .* from 0.5"),
    ],
)
def test_bad_options(options, error, match):
    with pytest.raises(error, match=match):
        simulate_scan(**{**SMALL, **options})


def test_chances_may_add_up_to_one():
    for twins in np.linspace(0, 1, 21):
        simulate_scan((2, 2), (16, 16), n_grains=1, twins=twins, small_angles=1 - twins)
    simulate_scan((2, 2), (16, 16), n_grains=1, twins=0.9, small_angles=0.1)
