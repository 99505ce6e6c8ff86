"""The two-beam formula, and patterns that are made with it, beside slow ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from py4dstem_clustering.simulate.crystals import named_material
from py4dstem_clustering.simulate.scattering import Scattering, random_orientations
from py4dstem_clustering.simulate.two_beam import (
    MEAN_FREE_PATH,
    Exposure,
    extinction_distances,
    two_beam,
)


def make_crystal(name, k_max):
    """A named crystal, and the displacement of its atoms."""
    material = named_material(name)
    (displacement,) = material.displacements.values()
    return material.kinematical(k_max), displacement


def test_two_beam_in_known_cases():
    # In the Bragg condition, electrons go to and fro.
    np.testing.assert_allclose(two_beam(0.0, 250.0, np.array([0, 125, 250])), [0, 1, 0], atol=1e-12)
    # Far from it, a crystal is kinematical: the excitation error alone gives the fringes.
    np.testing.assert_allclose(two_beam(0.02, 1e5, 25.0), (np.sin(np.pi / 2) / 2e3) ** 2, rtol=1e-4)
    # Thin: the square of the thickness over the extinction distance.
    np.testing.assert_allclose(two_beam(0.001, 400.0, 2.0), (np.pi * 2 / 400) ** 2, rtol=1e-3)


@pytest.mark.parametrize(
    ("material", "hkl", "known"),
    [("gold", (1, 1, 1), 183), ("aluminium", (1, 1, 1), 563), ("silicon", (2, 2, 0), 757)],
)
def test_extinction_distances_are_those_of_tables(material, hkl, known):
    # Tables are for 100 kV; the distance grows as the velocity: by 0.776 / 0.548 at 300 kV.
    crystal, displacement = make_crystal(material, 1.0)
    found = extinction_distances(crystal, displacement)
    k = np.flatnonzero((np.array(hkl) == crystal.hkl.T).all(axis=1))[0]
    assert found[k] == pytest.approx(known * 0.776 / 0.548, rel=0.1)


def test_an_exposure_agrees_with_a_slow_one(monkeypatch):
    monkeypatch.setattr("py4dstem_clustering.simulate.two_beam.WEAKEST", 0)
    rng = np.random.default_rng(3)
    scattering = Scattering((32, 30), 0.6, 2.5)
    crystal, displacement = make_crystal("silicon", 0.75)
    orientation = random_orientations(1, rng)[0]
    thickness = rng.uniform(100, 900, (1, 3))
    thickness[0, 1] = 0
    tilts = np.deg2rad(rng.uniform(-0.5, 0.5, (1, 3, 2)))
    stretch = np.array([[1.03, 0.01], [0.0, 0.98]])
    ring = np.full((1, 3), 0.2)

    exposure = Exposure(scattering, (1, 3))
    options = {"tilts": tilts, "stretch": stretch, "weight": 0.8}
    held = exposure.add_crystal(crystal, displacement, orientation, thickness, **options)
    exposure.add_diffuse(scattering.film_ring, ring)
    got = exposure.expected()

    slow = [
        slow_pattern(
            scattering, crystal, displacement, orientation, thickness[p], tilts[p], stretch
        )
        for p in np.ndindex(1, 3)
    ]
    np.testing.assert_allclose(got[0], [s[0] for s in slow], atol=1e-6, rtol=0.01)
    assert held == pytest.approx(np.mean([s[1] for s in slow if s[1] > 0]), rel=0.01)
    np.testing.assert_allclose(got.sum(axis=(2, 3)), 1, rtol=1e-5)


def slow_pattern(scattering, crystal, displacement, orientation, thickness, tilt, stretch):
    """Pattern of one position, one pixel after the other; the lattice is turned exactly."""
    size, centre, radius = scattering.pixel_size, scattering.centre, scattering.disk_radius
    turned = orientation @ Rotation.from_rotvec([*tilt, 0]).as_matrix().T
    vectors = turned.T @ crystal.g_vec_all
    flat = orientation.T @ crystal.g_vec_all
    area = np.pi * (radius**2 + 1 / 12)
    pattern, held = np.zeros(scattering.shape), 0.0
    beam = {p: scattering.beam[p] for p in zip(*np.nonzero(scattering.beam), strict=True)}
    depth = dict.fromkeys(beam, 0.2 + 0.8 * thickness / MEAN_FREE_PATH)
    for k, extinction in enumerate(extinction_distances(crystal, displacement)):
        if np.hypot(*flat[:2, k]) < 1e-3:
            continue

        def share(offset, k=k, extinction=extinction):
            # The beam comes from another direction of the cone.
            error = crystal.excitation_errors(vectors[:, [k]])[0]
            error -= crystal.wavelength * offset @ flat[:2, k] * size
            return 0.8 * two_beam(error, extinction, thickness)

        for p in beam:
            depth[p] += share(np.array(p) - centre)
        place = centre + np.linalg.inv(stretch).T @ flat[:2, k] / size
        low = np.maximum(np.ceil(place - radius - 1), 0).astype(int)
        high = np.minimum(place + radius + 2, scattering.shape).astype(int)
        for u in range(low[0], high[0]):
            for v in range(low[1], high[1]):
                offset = np.array([u, v]) - place
                cover = np.clip(radius + 0.5 - np.hypot(*offset), 0, 1)
                pattern[u, v] += share(offset) * cover / area
                held += share(offset) * cover / area
    k = np.hypot(*(np.indices(scattering.shape) - centre[:, None, None])) * size
    diffuse = np.exp(-k / 0.12)
    pattern += 0.8 * thickness / MEAN_FREE_PATH * diffuse / diffuse.sum()
    pattern += 0.2 * scattering.film_ring
    mean = sum(beam[p] * depth[p] for p in beam)
    pattern *= (1 - np.exp(-mean)) / mean
    for p in beam:
        pattern[p] += beam[p] * np.exp(-depth[p])
    return pattern / pattern.sum(), held
