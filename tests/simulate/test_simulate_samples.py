"""Simulated samples: each kind is what it is said to be."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest
from conftest import first_quick
from scipy.ndimage import label

from py4dstem_clustering import SAMPLE_KINDS, misorientation, simulate_sample
from py4dstem_clustering.simulate.recipes_films import ARC_DEPTH, HALO_DEPTH
from py4dstem_clustering.simulate.scattering import Scattering
from py4dstem_clustering.simulate.two_beam import Exposure

SMALL = {"scan_shape": (20, 18), "detector_shape": (32, 30)}
MEDIUM = {"scan_shape": (64, 56), "detector_shape": (32, 30)}
ONE_CRYSTAL = ("layers", "strain-gradient", "bent-foil", "turning-polymer")
DEFECTS = ("hole", "beam-stop", "dead-quadrant", "dead-row", "fading-beam")
ON_FILM = ("thick-support", "core-shell", "stacked", "particles", *DEFECTS)


# --- all kinds -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SAMPLE_KINDS)
def test_every_kind_is_complete(kind):
    sample = simulate_sample(kind, **SMALL, electrons=500, seed=5)
    n = sample.n_grains
    assert repr(sample) == f"SimulatedSample({kind!r}, 20 x 18 x 32 x 30, {n} grains)"
    assert sample.datacube.data.dtype == np.uint16
    assert sample.labels.dtype == sample.pattern_labels.dtype == np.int32
    assert sample.labels.max() < n
    assert sample.shares.shape == (20, 18, n + 1)
    np.testing.assert_allclose(sample.shares.sum(axis=2), 1)
    assert sample.orientations.shape == (n, 3, 3)
    if "polymer" in kind:
        assert sample.crystals == {}
        assert np.isnan(sample.orientations).all()
    else:
        assert set(sample.crystals) == set(sample.materials)
        products = sample.orientations @ sample.orientations.transpose(0, 2, 1)
        np.testing.assert_allclose(products, np.broadcast_to(np.eye(3), (n, 3, 3)), atol=1e-12)
        assert (np.linalg.det(sample.orientations) > 0).all()
        assert ((sample.thickness > 0) | (sample.shares[..., -1] > 0)).all()
    assert sample.thickness.shape == (20, 18)
    assert sample.tilts.shape == (20, 18, 2)
    assert (sample.labels == -1).any() == (kind in ON_FILM)
    assert (n == 1) == (kind in ONE_CRYSTAL)
    calibration = sample.datacube.calibration
    assert calibration.get_origin_mean() == (15.5, 14.5)
    assert calibration.get_Q_pixel_units() == "A^-1"
    if kind not in ("beam-stop", "dead-quadrant", "dead-row", "fading-beam"):
        total = sample.datacube.data.sum(axis=(2, 3)).mean()
        assert total == pytest.approx(500, rel=5 / np.sqrt(360 * 500))


@pytest.mark.parametrize("kind", first_quick(SAMPLE_KINDS[2:] + SAMPLE_KINDS[:2]))
def test_the_sample_does_not_depend_on_the_dose(kind):
    low = simulate_sample(kind, **SMALL, electrons=10, seed=2)
    high = simulate_sample(kind, **SMALL, electrons=1000, seed=2)
    again = simulate_sample(kind, **SMALL, electrons=1000, seed=2)
    np.testing.assert_array_equal(low.labels, high.labels)
    np.testing.assert_array_equal(low.orientations, high.orientations)
    np.testing.assert_array_equal(again.datacube.data, high.datacube.data)
    other = simulate_sample(kind, **SMALL, electrons=1000, seed=3)
    assert (other.datacube.data != high.datacube.data).any()


@pytest.mark.parametrize("kind", first_quick(SAMPLE_KINDS, 2))
def test_grains_are_in_one_piece(kind):
    for seed in (0, 1):
        sample = simulate_sample(kind, (64, 56), (16, 18), electrons=1, seed=seed)
        labels = sample.labels
        if kind == "dead-row":  # only the lost row parts a grain
            lost = sample.datacube.data.sum(axis=(1, 2, 3)) == 0
            labels = labels[~lost]
        for k in range(sample.n_grains):
            assert label(labels == k, np.ones((3, 3)))[1] <= 1, (seed, k)


@pytest.mark.parametrize("kind", first_quick(SAMPLE_KINDS[::-1], 3))
def test_the_smallest_scans(kind):
    for shape in ((1, 1), (1, 4), (3, 2)):
        sample = simulate_sample(kind, shape, (16, 18), seed=1)
        assert sample.datacube.shape == (*shape, 16, 18)
        assert sample.shares.shape[2] == sample.n_grains + 1


def test_the_same_grains_everywhere():
    # A change of the grain map must be intended.
    labels = simulate_sample("random-film", (64, 56), (16, 18), seed=0).labels
    assert hashlib.sha256(labels.astype("<i4").tobytes()).hexdigest()[:16] == "d977dadb55768922"


def test_bright_scans_are_not_cut_off():
    sample = simulate_sample("hole", (9, 8), (16, 18), electrons=1e7, seed=1)
    assert sample.datacube.data.dtype == np.uint32
    assert sample.datacube.data.max() > 65535


def test_a_broad_probe_mixes_neighbours():
    sharp = simulate_sample("random-film", **SMALL, electrons=1e5, probe_blur=0, seed=1)
    blurred = simulate_sample("random-film", **SMALL, electrons=1e5, seed=1)
    assert set(np.unique(sharp.shares)) == {0, 1}
    assert blurred.shares.max(axis=2).min() < 0.6
    # Next to a border a pattern is the mixture that its shares say.
    means = np.stack([sharp.datacube.data[sharp.labels == k].mean(0) for k in range(3)])
    share = blurred.shares[..., :3]
    x, y = np.argwhere((share.sum(axis=2) > 0.99) & (share.max(axis=2) < 0.7))[0]
    expected = np.tensordot(share[x, y], means, 1)
    got = blurred.datacube.data[x, y].astype(float)
    wrong = np.abs(got - means[share[x, y].argmax()]).sum()
    assert np.abs(got - expected).sum() < 0.5 * wrong


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"kind": "jelly"}, ValueError, "kind='jelly' must be one of 'random-film'"),
        ({"kind": None}, ValueError, "kind=None"),
        ({"scan_shape": 5}, TypeError, "scan_shape=5 must be two whole numbers"),
        ({"detector_shape": (8, 40)}, ValueError, "detector_shape=8 must be at least 16"),
        ({"detector_shape": "ab"}, TypeError, "detector_shape='a' must be a whole number"),
        ({"electrons": -1}, ValueError, "electrons=-1"),
        ({"probe_blur": -1}, ValueError, "probe_blur=-1"),
        ({"seed": None}, TypeError, "seed=None"),
    ],
)
def test_bad_input(options, error, match):
    with pytest.raises(error, match=match):
        simulate_sample(**{"kind": "hole", **SMALL, **options})


@pytest.mark.slow
def test_every_kind_is_quick_enough():
    for kind in SAMPLE_KINDS:
        start = time.perf_counter()
        simulate_sample(kind)
        assert time.perf_counter() - start < 10, kind


# --- what each kind is said to be ------------------------------------------------------------


def neighbours(labels):
    """Pairs of grains that touch."""
    pairs = set()
    for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        pairs |= {tuple(sorted(p)) for p in zip(a[a != b], b[a != b], strict=True)}
    return pairs


@pytest.mark.parametrize("kind", ["random-film", "fibre-film"])
def test_films_have_grains_of_4_to_10_positions(kind):
    for seed in range(2):
        sample = simulate_sample(kind, (64, 56), (16, 18), electrons=1, seed=seed)
        across = 2 * np.sqrt(np.bincount(sample.labels.ravel()) / np.pi)
        assert 5 < np.median(across) < 9
        assert np.mean((across >= 4) & (across <= 10)) > 0.9


def test_fibre_texture():
    sample = simulate_sample("fibre-film", **MEDIUM, seed=1)
    beam = np.abs(sample.orientations[:, :, 2]) @ np.ones(3) / np.sqrt(3)
    assert np.rad2deg(np.arccos(np.minimum(beam, 1))).max() < 3.01
    # Grains that touch differ by more than 8 degrees about the beam, less what tilts them.
    pairs = np.array(sorted(neighbours(sample.labels)))
    a, b = sample.orientations[pairs].transpose(1, 0, 2, 3)
    turn = misorientation(a, b, sample.crystals["gold"])
    assert np.quantile(turn, 0.02) > 5


def test_twins():
    sample = simulate_sample("twin-lamellae", **MEDIUM, probe_blur=0, seed=2)
    gold = sample.crystals["gold"]
    for a, b in neighbours(sample.labels):
        turn = misorientation(sample.orientations[a], sample.orientations[b], gold)
        assert turn == pytest.approx(60, abs=1e-6)
    # The plane that the twins share stands upright between them.
    x, y = np.indices((64, 56))
    across = np.linalg.lstsq(
        np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1), sample.labels.ravel(), rcond=None
    )[0][:2]
    normals = sample.orientations.transpose(0, 2, 1) @ np.ones(3) / np.sqrt(3)
    aligned = np.abs(normals[:, :2] @ across) / np.linalg.norm(across)
    assert aligned.min() > np.cos(np.deg2rad(4))
    widths = []
    for axis in (0, 1):  # along one of them, lamellae look wider than they are
        for line in np.moveaxis(sample.labels, axis, 0):
            widths.append(np.diff(np.flatnonzero(np.diff(line)))[1:-1])
    along = max((w for w in widths), key=len)
    assert along.min() >= 2
    assert sample.n_grains > 8


@pytest.fixture
def stretches(monkeypatch):
    """What is added as a strained crystal: stretch, and where."""
    found = []

    def add(self, crystal, vibration, orientation, thickness, *, stretch):
        found.append((stretch - np.eye(2), thickness > 0))
        return 0.0

    monkeypatch.setattr(Exposure, "add_crystal", add)
    return found


def test_layers(stretches):
    sample = simulate_sample("layers", **MEDIUM, probe_blur=0, seed=1)
    assert (sample.labels == 0).all()
    assert sample.pattern_labels.max() + 1 >= 4
    strain = np.zeros((64, 56))
    x, y = np.indices((64, 56))
    for change, where in stretches:
        strain[where] = np.linalg.norm(change, 2)
        if change.any():  # the lattice is wider across the layer, which is long and narrow
            long = np.cov(x[where], y[where])
            assert np.trace(long @ change) < 0.3 * np.trace(long) * np.trace(change)
    assert (strain[sample.pattern_labels % 2 == 0] == 0).all()
    wide = strain[sample.pattern_labels % 2 == 1]
    assert ((wide >= 0.01) & (wide <= 0.02)).all()


def test_the_gradient_has_no_border(stretches):
    sample = simulate_sample("strain-gradient", **MEDIUM, seed=1)
    assert (sample.labels == 0).all()
    assert (sample.pattern_labels == 0).all()
    assert (np.sum([where for _, where in stretches], axis=0) == 1).all()
    strain = np.sum([np.linalg.norm(change, 2) * where for change, where in stretches], axis=0)
    assert (strain.min(), strain.max()) == (0, pytest.approx(0.02))
    for axis in (0, 1):
        assert np.abs(np.diff(strain, axis=axis)).max() < 7e-4


def test_the_bent_foil_has_contours_and_fringes():
    sample = simulate_sample("bent-foil", **MEDIUM, electrons=1e4, seed=1)
    assert 3 < np.ptp(sample.tilts, axis=(0, 1)).max() < 5
    assert sample.thickness.min() < 200
    assert sample.thickness.max() > 1000
    u, v = np.indices((32, 30))
    bright = sample.datacube.data[..., np.hypot(u - 15.5, v - 14.5) < 2].sum(axis=2)
    assert bright.min() < 0.5 * bright.max()  # the mean changes within one crystal
    # A disk is bright along a line on which its reflection is excited.
    aluminium, orientation = sample.crystals["aluminium"], sample.orientations[0]
    vectors = orientation.T @ aluminium.g_vec_all
    size, disks = sample.datacube.Q_pixel_size, 0
    turns = np.deg2rad(sample.tilts)
    for g, error in zip(vectors.T, aluminium.excitation_errors(vectors), strict=True):
        s = error + turns[..., 0] * g[1] - turns[..., 1] * g[0]
        if not (0.3 < np.hypot(*g[:2]) < 0.9 and (np.abs(s) < 0.001).sum() > 20):
            continue
        place = np.array([15.5, 14.5]) + g[:2] / size
        image = sample.datacube.data[..., np.hypot(u - place[0], v - place[1]) < 1.5].sum(axis=2)
        assert image[np.abs(s) < 0.001].mean() > 2 * image[np.abs(s) > 0.01].mean()
        disks += 1
    assert disks >= 4


def test_precipitates_have_5_to_20_percent(monkeypatch):
    held = []
    add = Exposure.add_crystal

    def record(self, *args, **options):
        held.append((add(self, *args, **options), "weight" in options))
        return held[-1][0]

    monkeypatch.setattr(Exposure, "add_crystal", record)
    sample = simulate_sample("precipitates", **MEDIUM, seed=3)
    matrix, *plates = [value for value, weighted in held if weighted]
    assert len(plates) == sample.n_grains - 1 >= 6
    parts = np.array(plates) / matrix
    assert ((parts > 0.05) & (parts < 0.2)).all()
    np.testing.assert_allclose(sample.shares[..., 1:-1].max(axis=(0, 1)), parts, rtol=0.1)
    # On top of the crystal, though it scatters more.
    assert set(np.unique(sample.labels)) == set(range(sample.n_grains))
    assert (sample.shares.argmax(axis=2) == 0).all()


def twofold(data, size, k_range):
    """Direction ``(Rx, Ry)`` of the strongest pair of arcs on a ring, degrees from 0 to 180."""
    n_qx, n_qy = data.shape[2:]
    u, v = np.indices((n_qx, n_qy))
    u, v = u - (n_qx - 1) / 2, v - (n_qy - 1) / 2
    k = np.hypot(u, v) * size
    ring = (k > k_range[0]) & (k < k_range[1])
    wave = data[..., ring] @ np.exp(2j * np.arctan2(v, u)[ring])
    return np.rad2deg(np.angle(wave)) / 2 % 180


def test_polymers_turn():
    assert ARC_DEPTH < 0.1 * HALO_DEPTH  # weak
    options = {"detector_shape": (64, 60), "electrons": 1e5, "probe_blur": 0}
    sample = simulate_sample("polymer-domains", (40, 36), **options, seed=1)
    size = sample.datacube.Q_pixel_size
    angles = twofold(sample.datacube.data, size, (0.21, 0.27))
    means = []
    for k in range(sample.n_grains):
        inside = np.exp(2j * np.deg2rad(angles[sample.labels == k]))
        assert np.abs(inside.mean()) > 0.95  # one direction in each domain
        means.append(np.rad2deg(np.angle(inside.mean())) / 2)
    for a, b in neighbours(sample.labels):
        assert 22 < abs((means[a] - means[b] + 90) % 180 - 90) <= 90

    sample = simulate_sample("turning-polymer", (40, 36), **options, seed=1)
    angles = twofold(sample.datacube.data, size, (0.21, 0.27))
    for axis in (0, 1):
        step = (np.diff(angles, axis=axis) + 90) % 180 - 90
        assert np.abs(np.median(step)) > 0.3
        assert np.quantile(np.abs(step), 0.99) < 30
    assert len(np.unique(angles // 20)) == 9  # all directions occur


def test_convergent_disks_touch_and_have_structure():
    sample = simulate_sample("convergent", (20, 18), (64, 60), electrons=1e5, probe_blur=0, seed=1)
    size = sample.datacube.Q_pixel_size
    gold = sample.crystals["gold"]
    shortest = np.sort(gold.g_vec_leng)[1]
    scattering = Scattering((64, 60), 1.0, shortest / 2 / size)
    assert scattering.pixel_size == pytest.approx(size, rel=0.01)  # twice the radius is {111}
    u, v = np.indices((64, 60))
    inside = np.hypot(u - 31.5, v - 29.5) < 4
    mean = sample.datacube.data[sample.labels == 0].mean(axis=0)[inside]
    assert mean.std() / mean.mean() > 0.1


def test_the_film_of_the_thick_support():
    thick = simulate_sample("thick-support", **MEDIUM, seed=1)
    thin = simulate_sample("particles", **MEDIUM, seed=1)
    u, v = np.indices((32, 30))
    beam = np.hypot(u - 15.5, v - 14.5) < 2
    left = [s.datacube.data[s.labels < 0][:, beam].sum(axis=1).mean() / 1000 for s in (thick, thin)]
    assert left[0] < 0.5 < 0.8 < left[1]
    across = 2 * np.sqrt(np.bincount(thick.labels[thick.labels >= 0]) / np.pi)
    assert across.max() < 11


def test_cores_lie_in_shells():
    sample = simulate_sample("core-shell", **MEDIUM, probe_blur=0, seed=1)
    assert sample.materials == ("silicon", "gold") * (sample.n_grains // 2)
    for shell in range(0, sample.n_grains, 2):
        core = np.argwhere(sample.labels == shell + 1)
        assert len(core) > 10
        shares = sample.shares[sample.labels == shell + 1]
        # Part of the shell lies above and below the core.
        assert (shares[:, shell] > 0).all()
        assert shares[:, [shell, shell + 1]].sum(axis=1) == pytest.approx(1)


def test_stacked_particles_overlap():
    sample = simulate_sample("stacked", **MEDIUM, probe_blur=0, seed=1)
    both = (sample.shares[..., :-1] > 0).sum(axis=2) > 1
    assert both.sum() > 30
    inside = sample.labels >= 0
    np.testing.assert_array_equal(
        sample.labels[inside], sample.shares[inside][:, :-1].argmax(axis=1)
    )
    apart = simulate_sample("particles", **MEDIUM, probe_blur=0, seed=1)
    assert not ((apart.shares[..., :-1] > 0).sum(axis=2) > 1).any()


def test_defects_lie_on_top_of_an_ordinary_scan():
    plain = simulate_sample("particles", (40, 36), (32, 30), seed=2)
    stop = simulate_sample("beam-stop", (40, 36), (32, 30), seed=2)
    quarter = simulate_sample("dead-quadrant", (40, 36), (32, 30), seed=2)
    fading = simulate_sample("fading-beam", (40, 36), (32, 30), seed=2)
    for sample in (stop, quarter, fading):
        np.testing.assert_array_equal(sample.labels, plain.labels)
    total = plain.datacube.data.sum(axis=(0, 1))
    assert not stop.datacube.data[:, :, 14:18, 13:17].any()
    assert total[14:18, 13:17].max() == total.max()
    assert not quarter.datacube.data[:, :, 16:, :15].any()
    assert quarter.datacube.data[:, :, :16].any()
    assert quarter.datacube.data[:, :, :, 15:].any()
    counts = fading.datacube.data.sum(axis=(2, 3)).ravel()
    assert counts[:100].mean() == pytest.approx(1000, rel=0.03)
    assert counts[-100:].mean() == pytest.approx(600, rel=0.03)
    assert np.polyfit(np.arange(counts.size), counts, 1)[0] == pytest.approx(-400 / 1440, rel=0.08)


def test_a_lost_row_is_no_grain():
    sample = simulate_sample("dead-row", (40, 36), (32, 30), seed=2)
    counts = sample.datacube.data.sum(axis=(1, 2, 3))
    lost = np.flatnonzero(counts == 0)
    assert len(lost) == 1
    assert (sample.labels[lost] == -1).all()
    assert (sample.pattern_labels[lost] == -1).all()
    kept = np.arange(40) != lost[0]
    plain = simulate_sample("particles", (40, 36), (32, 30), seed=2)
    assert (sample.labels[kept] >= 0).any()
    assert sample.n_grains == plain.n_grains


def test_nothing_scatters_in_the_hole():
    sample = simulate_sample("hole", **MEDIUM, probe_blur=0, seed=1)
    u, v = np.indices((32, 30))
    away = sample.datacube.data[..., np.hypot(u - 15.5, v - 14.5) > 3].sum(axis=2)
    empty = (away == 0) & (sample.labels < 0)
    regions, _ = label(empty)
    sizes = np.bincount(regions.ravel())[1:]
    # A disc of 0.22 times the shorter side, less what particles cover.
    assert 0.5 * np.pi * 12.3**2 < sizes.max() <= np.pi * 12.8**2
    assert (away[(sample.labels < 0) & ~empty] > 0).all()


def test_disks_lie_where_py4dstem_puts_them():
    sample = simulate_sample("fibre-film", (12, 10), (64, 60), electrons=1e5, probe_blur=0, seed=4)
    gold, k = sample.crystals["gold"], sample.labels[6, 5]
    peaks = gold.generate_diffraction_pattern(
        orientation_matrix=sample.orientations[k], sigma_excitation_error=0.01
    ).data
    mean = sample.datacube.data[sample.labels == k].mean(axis=0)
    size = sample.datacube.Q_pixel_size
    places = np.stack([peaks["qx"], peaks["qy"]], axis=1) / size + [31.5, 29.5]
    u, v = np.indices(mean.shape)
    distance = np.hypot(u[..., None] - places[:, 0], v[..., None] - places[:, 1]).min(axis=2)
    far = (distance > 4) & (np.hypot(u - 31.5, v - 29.5) > 8)
    near = (distance < 1.5) & (np.hypot(u - 31.5, v - 29.5) > 8)
    assert mean[near].mean() > 10 * mean[far].mean()
    assert mean[far].max() < 0.1 * mean[near].max()
