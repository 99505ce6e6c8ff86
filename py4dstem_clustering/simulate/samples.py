"""Simulated scans of many kinds of sample, with known grains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ..base.checks import check_choice
from ..base.frozen import Frozen
from . import recipes_films as films
from . import recipes_particles as particles
from .grains import blur_shares, largest_share
from .recipes import Sample, Scene
from .scan import check_setup
from .scattering import Scattering, count_type, largest_count
from .two_beam import Exposure


class _Kind(NamedTuple):
    """A kind of sample, and how it is usually measured."""

    make: Callable[[Scene], Sample]
    scan_step: float = 10.0
    """Distance of scan positions, Angstrom."""
    k_max: float = 1.3
    """Scattering vector at the nearest border of the detector, 1/Angstrom."""
    disk: float = 0.0897
    """Radius of disks, 1/Angstrom; by default two pixels of 60 along the shorter side."""


_PARTICLES_STEP = particles.SCAN_STEP

_KINDS = {
    "random-film": _Kind(films.random_film),
    "fibre-film": _Kind(films.fibre_film),
    "precipitates": _Kind(particles.precipitates, 40.0),
    "twin-lamellae": _Kind(films.twin_lamellae),
    "layers": _Kind(films.mismatched_layers),
    "strain-gradient": _Kind(films.strain_gradient),
    "polymer-domains": _Kind(films.polymer_domains, 50.0, 0.6, 0.0414),
    "turning-polymer": _Kind(films.turning_polymer, 50.0, 0.6, 0.0414),
    # Half of the distance from the direct beam to {111} of gold: these disks touch.
    "convergent": _Kind(films.convergent, 20.0, 1.0, 0.2123),
    "thick-support": _Kind(particles.thick_support, _PARTICLES_STEP),
    "bent-foil": _Kind(films.bent_foil, 80.0),
    "core-shell": _Kind(particles.core_shell, _PARTICLES_STEP),
    "stacked": _Kind(particles.stacked, _PARTICLES_STEP),
    "particles": _Kind(particles.plain, _PARTICLES_STEP),
    "hole": _Kind(particles.hole, _PARTICLES_STEP),
    "beam-stop": _Kind(particles.beam_stop, _PARTICLES_STEP),
    "dead-quadrant": _Kind(particles.dead_quadrant, _PARTICLES_STEP),
    "dead-row": _Kind(particles.dead_row, _PARTICLES_STEP),
    "fading-beam": _Kind(particles.fading_beam, _PARTICLES_STEP),
}

SAMPLE_KINDS = tuple(_KINDS)
"""The kinds of sample that `simulate_sample` knows."""


@dataclass(frozen=True, eq=False)
class SimulatedSample(Frozen):
    """A simulated scan of a kind of sample, and the truth about it; from `simulate_sample`.

    It has N grains, numbered from 0. The arrays are read-only.

    Attributes
    ----------
    kind : str
        The kind of sample.
    datacube : DataCube
        Counts, calibrated: pixel sizes in Angstrom and inverse Angstrom, and the origin (the
        centre of the detector).
    labels : ndarray, (Rx, Ry), int
        Grain of each scan position; -1 for film, hole and lost frames. A grain is one crystal,
        whatever thickness, bending and strain do to its patterns: there is one in a bent foil, in
        layers and in a strain gradient. Of a polymer it is a domain of one direction; a polymer
        that turns smoothly has one. Where grains lie on top of each other, it is the one that is
        thicker along the beam; a precipitate or the core of a particle counts as on top. A grain
        that nowhere is on top has no position.
    pattern_labels : ndarray, (Rx, Ry), int
        Regions in which the lattice is the same. They differ from `labels` for layers only, whose
        lattices differ by 1 to 2 %.
    shares : ndarray, (Rx, Ry, N + 1)
        Share of each grain in each scan position, and of the background as the last; they sum to 1.
        On top of each other, grains have shares in the ratio of their thicknesses along the beam;
        precipitates have their part of the intensity of the disks.
    supports : ndarray, (Rx, Ry, N), bool
        Where each grain lies, also under or inside others: where it covers at least half of the
        probe.
    orientations : ndarray, (N, 3, 3)
        Orientation matrix of each grain as py4DSTEM writes it: the columns are the image x and y
        axes and the beam in crystal coordinates. NaN for polymers. Of a bent crystal, the one where
        `tilts` are 0.
    materials : tuple of str, N
        Material of each grain: 'gold', 'silicon', 'aluminium' or 'polymer'.
    crystals : dict
        py4DSTEM's Crystal of each material, with structure factors and voltage.
    thickness : ndarray, (Rx, Ry)
        Thickness of all crystals together, Angstrom; 0 for polymers.
    tilts : ndarray, (Rx, Ry, 2)
        By how much the bend turns the lattice about the image x and y axes, degrees. In a crystal
        with precipitates, only the large crystal bends.
    """

    kind: str
    datacube: Any
    labels: NDArray[np.int32]
    pattern_labels: NDArray[np.int32]
    shares: NDArray[np.float64]
    supports: NDArray[np.bool_]
    orientations: NDArray[np.float64]
    materials: tuple[str, ...]
    crystals: dict[str, Any]
    thickness: NDArray[np.float64]
    tilts: NDArray[np.float64]

    @property
    def n_grains(self) -> int:
        """Number of grains, N."""
        return len(self.materials)

    def __repr__(self) -> str:
        axes = " x ".join(map(str, self.datacube.shape))
        return f"SimulatedSample({self.kind!r}, {axes}, {self.n_grains} grains)"


def simulate_sample(
    kind: str,
    scan_shape: tuple[int, int] = (64, 56),
    detector_shape: tuple[int, int] = (64, 60),
    *,
    electrons: float = 1000,
    probe_blur: float = 0.7,
    seed: int = 0,
) -> SimulatedSample:
    """Simulate a scan of a kind of sample that people measure.

    Use `simulate_scan` for particles in a liquid with many options; here each kind has its own
    sizes, thicknesses and scattering angles, at 300 kV. Intensities of crystals follow the
    two-beam formula with the extinction distances of py4DSTEM's structure factors, so that they
    change with thickness and tilt, also within each disk. Reflections that are excited together
    share the direct beam, but do not scatter into each other as they would in Bloch waves. Memory
    is about 20 bytes for each detector pixel of each pattern.

    Parameters
    ----------
    kind : str
        Films that fill the scan:

        - 'random-film': grains of gold of 4 to 10 positions, in every orientation
        - 'fibre-film': the same with <111> within 3 degrees of the beam, turned about the beam
        - 'convergent': larger grains of gold; disks touch, and have fringes inside
        - 'twin-lamellae': gold seen along <110>, cut into twins 3 to 6 positions wide
        - 'polymer-domains': a strong halo and two weak arcs, in one direction in each domain
        - 'turning-polymer': the same, but the direction turns smoothly by 180 degrees

        One crystal (one grain):

        - 'bent-foil': aluminium 15 to 120 nm thick near a zone axis, bent by 2 degrees to either
          side: bend contours and thickness fringes
        - 'layers': silicon in layers that differ by 1 to 2 % in one lattice constant
        - 'strain-gradient': silicon whose lattice widens smoothly by 2 % over the scan
        - 'precipitates': aluminium bent by 1.5 degrees to either side, in which plates of silicon
          scatter 5 to 20 % of the intensity of the disks

        Particles of gold on a thin film:

        - 'particles': round, some of which touch
        - 'stacked': some lie on top of each other
        - 'core-shell': cores of gold in shells of silicon
        - 'thick-support': small, on a support that is thick and uneven; hard at 30 to 100 electrons

        The particles of 'particles' in scans with a defect:

        - 'hole': a hole in the film; particles whose middle is in it are missing
        - 'beam-stop': a beam stop hides the direct beam
        - 'dead-quadrant': a quarter of the detector records nothing
        - 'dead-row': a row of the scan is lost
        - 'fading-beam': the beam loses 40 % from the first to the last position
    scan_shape : (Rx, Ry)
        Scan positions. Sizes of grains in positions stay the same.
    detector_shape : (Qx, Qy)
        Detector pixels. Scattering angles stay the same: disks have a radius of two pixels on 60
        pixels (5 for 'convergent').
    electrons : float
        Expected electrons in each pattern, at most 1e9, without what a defect loses; the counts
        are Poisson distributed.
    probe_blur : float
        Standard deviation of the probe, scan positions: borders become mixtures. Probes of real
        scans overlap about as much as the default says; 0 for sharp borders.
    seed : int
        The same seed gives the same sample at every dose and blur.

    Returns
    -------
    SimulatedSample

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule.

    Examples
    --------
    >>> from py4dstem_clustering import simulate_sample
    >>> sample = simulate_sample("twin-lamellae", (16, 12), (32, 30), seed=1)
    >>> sample
    SimulatedSample('twin-lamellae', 16 x 12 x 32 x 30, 2 grains)
    >>> sample.labels.shape, sample.materials
    ((16, 12), ('gold', 'gold'))
    """
    usual = _KINDS[check_choice("kind", kind, SAMPLE_KINDS)]
    scan = (scan_shape, usual.scan_step, probe_blur)
    detector_shape = check_setup(scan, (detector_shape, 1, 0.5), electrons, 0, seed).detector_shape
    # The radius in pixels for which `Scattering` makes it the usual one in 1/Angstrom.
    radius = usual.disk * (min(detector_shape) / 2 - 1) / (usual.k_max + usual.disk)
    detector = (detector_shape, usual.k_max, max(radius, 0.5))
    setup = check_setup(scan, detector, electrons, 0, seed)

    # Noise has a generator of its own, so that the sample does not depend on the dose.
    places, noise = (np.random.default_rng([setup.seed, 6, n]) for n in (1, 2))
    scattering = Scattering(setup.detector_shape, setup.k_max, setup.disk_radius)
    exposure = Exposure(scattering, setup.scan_shape)
    scene = Scene(setup.scan_shape, scattering, exposure, setup.k_max, places, {})
    sample = usual.make(scene)

    expected = _blurred(exposure.expected(), setup.probe_blur) * sample.seen
    dose = setup.electrons * np.broadcast_to(sample.brightness, setup.scan_shape)
    labels = largest_share(blur_shares(sample.regions, setup.probe_blur))
    pattern_labels = labels
    if sample.pattern_regions is not None:
        pattern_labels = largest_share(blur_shares(sample.pattern_regions, setup.probe_blur))
    lost = np.broadcast_to(sample.brightness == 0, setup.scan_shape)
    return SimulatedSample(
        kind=kind,
        datacube=scattering.datacube(
            _counts(expected, dose, noise), setup.scan_step, "simulated_sample"
        ),
        labels=np.where(lost, np.int32(-1), labels),
        pattern_labels=np.where(lost, np.int32(-1), pattern_labels),
        shares=blur_shares(sample.shares, setup.probe_blur),
        supports=_blurred((sample.shares[..., :-1] > 0) * 1.0, setup.probe_blur) >= 0.5,
        orientations=sample.orientations,
        materials=sample.materials,
        crystals=scene.crystals,
        thickness=sample.thickness,
        tilts=np.rad2deg(sample.tilts),
    )


def _blurred(expected: NDArray[Any], probe_blur: float) -> NDArray[Any]:
    """Arrays ``(Rx, Ry, ...)``, each with what a broad probe takes from its neighbours."""
    if probe_blur == 0:
        return expected
    widths = (probe_blur, probe_blur, *(0,) * (expected.ndim - 2))
    return np.asarray(gaussian_filter(expected, widths, mode="nearest"))


def _counts(expected: NDArray[Any], dose: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Electrons that arrive; `dose` ``(Rx, Ry)`` are the expected ones of each position."""
    brightest = float(dose.max() * expected.max())
    counts = np.empty(expected.shape, dtype=count_type(largest_count(dose.max(), brightest)))
    for row in range(len(counts)):
        # Rounding may leave less than 0 where nothing scatters.
        mean = dose[row][:, None, None] * np.maximum(expected[row], 0, dtype=np.float64)
        counts[row] = rng.poisson(mean)
    return counts
