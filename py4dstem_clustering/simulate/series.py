"""Simulated series of scans (5D-STEM) with known particles that change.

Each frame is a scan like that of `simulate_scan`: gold nanoparticles in a disordered liquid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_integer, check_number
from ..base.frozen import Frozen
from .grains import blur_shares, largest_share
from .particles import Particles, make_particles
from .scattering import Scattering, count_type, largest_count
from .setup import Setup, check_setup

EVENTS = np.dtype([("frame", np.int64), ("event", "U8"), ("track", np.int64), ("other", np.int64)])
"""Fields of the events of a series."""

POINTS_PER_SIDE = 8
"""Number of points along each side of the square of a scan position, to measure its shares.

A larger value makes shares finer than 1/64, and takes more time and memory.
"""


class _Scene(NamedTuple):
    """Everything from which a frame is made."""

    setup: Setup
    scattering: Scattering
    particles: Particles

    def coverage(self, i: int) -> NDArray[Any]:
        """Share ``(Rx, Ry, N + 1)`` of each particle, and of the liquid (last), in each square.

        Each side of the scan has a rim of `pad` more positions, from which the probe takes a part.
        """
        discs = (self.particles.centres[i], self.particles.radii[i], self.particles.owners[i])
        n = len(discs[1])
        shape = tuple(m + 2 * self.pad for m in self.setup.scan_shape)
        best = np.zeros([POINTS_PER_SIDE * m for m in shape])
        owner = np.full(best.shape, n)
        for centre, radius, k in zip(*discs, strict=True):
            axes, box = [], []
            for c, m in zip(centre, shape, strict=True):
                point = np.arange(POINTS_PER_SIDE * m)
                place = (point + 0.5) / POINTS_PER_SIDE - 0.5 - self.pad - c
                low, high = np.searchsorted(place, [-radius, radius])
                axes.append(place[low:high])
                box.append(slice(low, high))
            # This is below 0 inside the disc, and gives overlapping discs a straight border.
            power = axes[0][:, None] ** 2 + axes[1] ** 2 - radius**2
            nearer = power < best[tuple(box)]
            best[tuple(box)][nearer] = power[nearer]
            owner[tuple(box)][nearer] = k
        position = np.arange(shape[0] * shape[1]).reshape(shape)
        position = position.repeat(POINTS_PER_SIDE, 0).repeat(POINTS_PER_SIDE, 1)
        points = np.bincount(
            (position * (n + 1) + owner).ravel(), minlength=shape[0] * shape[1] * (n + 1)
        )
        return points.reshape(*shape, n + 1) / POINTS_PER_SIDE**2

    @property
    def pad(self) -> int:
        """Positions that the probe reaches beyond the scan: the reach of `gaussian_filter`."""
        return int(4 * self.setup.probe_blur + 0.5)

    def inner(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values without the rim."""
        rx, ry = self.setup.scan_shape
        return values[self.pad : self.pad + rx, self.pad : self.pad + ry]

    def shares(self, coverage: NDArray[Any]) -> NDArray[Any]:
        """Shares ``(Rx, Ry, N + 1)`` in the patterns, blurred by the probe."""
        return self.inner(blur_shares(coverage, self.setup.probe_blur))


@dataclass(frozen=True, eq=False)
class SimulatedSeries(Frozen):
    """A simulated series and the truth about it; from `simulate_series`.

    A loop over the series gives its frames as DataCubes. It has T frames and N particles; the
    number of a particle is its track. The arrays are read-only.

    Attributes
    ----------
    labels : ndarray, (T, Rx, Ry), int
        Particle with the largest share of each scan position, from 0; -1 where that is the liquid.
    times : ndarray, (T,)
        Time of each frame, seconds, from 0.
    drift : ndarray, (T, 2)
        How far the sample has moved since frame 0, scan positions along Rx and Ry: a particle at
        ``(x, y)`` in frame 0 is at ``(x, y) + drift[t]`` in frame t. A particle that joins another
        also moves towards it, during the six frames before they become one.
    areas : ndarray, (T, N)
        Area of each particle, scan positions, with fractions; 0 while absent. Parts that other
        particles cover, or outside of the scan, do not count; the blur of the probe has no effect.
        A particle that took over another has the area of both.
    growth_rates : ndarray, (N,)
        Growth of the area of each whole particle, scan positions a second, from the frame in which
        it appears until it is full-grown, joins another or dissolves; 0 for particles that are
        full-grown from frame 0 on.
    rotation_rates : ndarray, (N,)
        How fast each particle turns, degrees a second, about a fixed axis of its own.
    orientations : ndarray, (T, N, 3, 3)
        Orientation matrices as py4DSTEM writes them: the columns are the image x and y axes and
        the beam in crystal coordinates. NaN while absent.
    events : ndarray, (n,), structured
        Events of the particles in `labels`, sorted by frame, then by track, with the fields
        ``frame``, ``event``, ``track`` and ``other``. 'birth': the first frame in which the
        particle has a position, if this is not frame 0. 'death': the frame after the last one in
        which the particle has a position. 'merge': the first frame in which the particle is part
        of `other`; for the other events, `other` is -1.
    crystal : py4DSTEM.process.diffraction.Crystal
        Gold, with structure factors and voltage.
    """

    labels: NDArray[np.int32]
    times: NDArray[np.float64]
    drift: NDArray[np.float64]
    areas: NDArray[np.float64]
    growth_rates: NDArray[np.float64]
    rotation_rates: NDArray[np.float64]
    orientations: NDArray[np.float64]
    events: NDArray[np.void]
    crystal: Any
    _scene: _Scene

    @property
    def n_frames(self) -> int:
        """Number of frames, T."""
        return len(self.labels)

    @property
    def n_particles(self) -> int:
        """Number of particles, N."""
        return len(self.growth_rates)

    def __len__(self) -> int:
        return self.n_frames

    def __iter__(self) -> Iterator[Any]:
        return (self.frame(i) for i in range(self.n_frames))

    def __repr__(self) -> str:
        setup = self._scene.setup
        axes = " x ".join(map(str, (*setup.scan_shape, *setup.detector_shape)))
        return f"SimulatedSeries({self.n_frames} frames of {axes}, {self.n_particles} particles)"

    def shares(self, i: int) -> NDArray[np.float64]:
        """Shares ``(Rx, Ry, N + 1)`` of the particles in frame `i`, and of the liquid (last).

        The shares of each position sum to 1.
        """
        i = self._check_frame(i)
        return self._scene.shares(self._scene.coverage(i))

    def patterns(self, i: int) -> NDArray[np.float64]:
        """Expected patterns ``(N + 1, Qx, Qy)`` of the particles in frame `i`, and of the liquid.

        Each pattern sums to 1; NaN for particles that are absent.
        """
        i = self._check_frame(i)
        scattering = self._scene.scattering
        disks = np.full((self.n_particles, *scattering.shape), np.nan)
        for k in np.flatnonzero(np.isfinite(self.orientations[i, :, 0, 0])):
            disks[k] = scattering.bragg(self.orientations[i, k])
        return scattering.patterns(disks)

    def frame(self, i: int) -> Any:
        """Frame `i` as a calibrated DataCube of counts; each call gives the same counts."""
        i = self._check_frame(i)
        setup, scattering = self._scene.setup, self._scene.scattering
        rng = np.random.default_rng([setup.seed, 5, i + 1])
        shares, patterns = self.shares(i), self.patterns(i)
        electrons = setup.electrons
        # No pixel expects more than half of the electrons.
        dtype = count_type(largest_count(electrons, electrons / 2))
        counts = np.empty((*setup.scan_shape, *scattering.shape), dtype=dtype)
        for position in np.ndindex(*setup.scan_shape):
            share = shares[position]
            expected = np.zeros(scattering.shape)
            for k in np.flatnonzero(share):
                expected += share[k] * patterns[k]
            if share[-1] > 0 and setup.speckle > 0:
                expected += scattering.speckle(0.5 * share[-1], setup.speckle, rng)
            # Rounding may leave less than 0 where nothing scatters.
            counts[position] = rng.poisson(electrons * np.maximum(expected, 0))
        return scattering.datacube(counts, setup.scan_step, f"simulated_frame_{i}")

    def _check_frame(self, i: Any) -> int:
        i = check_integer("i", i, 0)
        if i >= self.n_frames:
            raise IndexError(f"{i=} must be below {self.n_frames}, the number of frames")
        return i


def simulate_series(
    scan_shape: tuple[int, int] = (48, 40),
    detector_shape: tuple[int, int] = (64, 60),
    *,
    n_frames: int = 20,
    n_particles: int = 8,
    electrons: float = 1000,
    time_step: float = 1.0,
    nucleation: float = 0.5,
    growth: float = 8.0,
    rotation: float = 2.0,
    coalescence: float = 0.5,
    dissolution: float = 0.125,
    drift: float = 0.2,
    jitter: float = 0.1,
    speckle: float = 0.5,
    k_max: float = 1.3,
    disk_radius: float = 2.0,
    scan_step: float = 20.0,
    probe_blur: float = 0.0,
    seed: int = 0,
) -> SimulatedSeries:
    """Simulate a series of scans over gold particles that change, in a disordered liquid.

    Particles are round. Some nucleate: they appear in the first half of the series, small, and
    their area grows steadily until they are full-grown. Some coalesce in pairs in the second half:
    one particle moves to the other until they touch. From this frame on, both are one particle with
    the orientation of the larger one, and the shape stays. Some dissolve: their area shrinks
    steadily and is 0 from a frame of the second half on. All particles turn, while the sample
    drifts. Each scan position averages over a square of its own size, so borders are mixtures.

    A seed gives the same particles whatever the electrons, speckle, detector and blur. In frame 0,
    particles lie apart and wholly inside the scan; drift may move them over its border.

    Parameters
    ----------
    scan_shape : (Rx, Ry)
        Scan positions.
    detector_shape : (Qx, Qy)
        Detector pixels.
    n_frames : int
        Number of frames. With fewer than 3, no particle coalesces or dissolves; with 1, none
        nucleates.
    n_particles : int
        Number of particles, as far as they find room. Together, full-grown, they cover about a
        quarter of the scan.
    electrons : float
        Expected electrons in each pattern, at most 1e9; the counts are Poisson distributed.
    time_step : float
        Time from frame to frame, seconds.
    nucleation : float
        Share of the particles, 0 to 1, that appear during the series; the others are full-grown
        in frame 0.
    growth : float
        Mean growth rate of the area of nucleated particles, scan positions a second. Each grows at
        its own rate, from 0.5 to 1.5 times the mean.
    rotation : float
        Largest rotation rate, degrees a second; each particle turns at its own rate. A turn of a
        few degrees makes a pattern dissimilar.
    coalescence : float
        Share of the particles that coalesce with another; at most 1 together with `dissolution`.
    dissolution : float
        Share of the particles, 0 to 1, that dissolve, each within 0.2 to 0.4 of the series.
    drift : float
        Steady drift of the sample in one direction, scan positions from frame to frame.
    jitter : float
        Standard deviation of each frame from the steady drift, along Rx and Ry, scan positions.
    speckle : float
        Relative strength of the speckle of the liquid; 0 for a smooth ring.
    k_max : float
        Scattering vector at the nearest border of the detector, inverse Angstrom.
    disk_radius : float
        Radius of the Bragg disks, detector pixels, from 0.5 to an eighth of the detector.
    scan_step : float
        Distance of scan positions, Angstrom.
    probe_blur : float
        Standard deviation of the probe, scan positions, beyond the square of a position.
    seed : int
        The same seed gives the same series on every computer.

    Returns
    -------
    SimulatedSeries
        Frames are made on demand, by ``series.frame(i)`` or in a loop over the series.

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule.

    Examples
    --------
    >>> from py4dstem_clustering import simulate_series
    >>> series = simulate_series((24, 20), (32, 30), n_frames=6, n_particles=3, seed=1)
    >>> series
    SimulatedSeries(6 frames of 24 x 20 x 32 x 30, 3 particles)
    >>> series.frame(2).shape
    (24, 20, 32, 30)
    >>> series.labels.shape, series.areas.shape
    ((6, 24, 20), (6, 3))
    """
    scan = (scan_shape, scan_step, probe_blur)
    detector = (detector_shape, k_max, disk_radius)
    setup = check_setup(scan, detector, electrons, speckle, seed)
    n_frames = check_integer("n_frames", n_frames, 1)
    n_particles = check_integer("n_particles", n_particles, 0)
    time_step = check_number("time_step", time_step, 1e-12)
    nucleation = check_number("nucleation", nucleation, 0, 1)
    growth = check_number("growth", growth, 0)
    rotation = check_number("rotation", rotation, 0)
    coalescence = check_number("coalescence", coalescence, 0, 1)
    dissolution = check_number("dissolution", dissolution, 0, 1)
    if coalescence + dissolution > 1 + 1e-9:
        raise ValueError(f"{coalescence=} and {dissolution=} must be at most 1 together")
    drift = check_number("drift", drift, 0, max(setup.scan_shape))
    jitter = check_number("jitter", jitter, 0, max(setup.scan_shape))

    times = time_step * np.arange(n_frames)
    particles = make_particles(
        setup.scan_shape,
        times,
        n_particles,
        nucleation=nucleation,
        growth=growth,
        rotation=rotation,
        coalescence=coalescence,
        dissolution=dissolution,
        drift=drift,
        jitter=jitter,
        seed=setup.seed,
    )
    scattering = Scattering(setup.detector_shape, setup.k_max, setup.disk_radius)
    scene = _Scene(setup, scattering, particles)
    areas = np.empty(particles.radii.shape)
    labels = np.empty((n_frames, *setup.scan_shape), dtype=np.int32)
    for i in range(n_frames):
        coverage = scene.coverage(i)
        areas[i] = scene.inner(coverage)[..., :-1].sum(axis=(0, 1))
        labels[i] = largest_share(scene.shares(coverage))
    return SimulatedSeries(
        labels=labels,
        times=times,
        drift=particles.drift,
        areas=areas,
        growth_rates=particles.growth_rates,
        rotation_rates=particles.rotation_rates,
        orientations=particles.orientations,
        events=_events(labels, particles.radii.shape[1], particles.merges),
        crystal=scattering.crystal,
        _scene=scene,
    )


def _events(labels: NDArray[Any], n: int, merges: list[tuple[int, int, int]]) -> NDArray[Any]:
    """Events in labels ``(T, Rx, Ry)``, as `EVENTS`; merges are (frame, small, large)."""
    found = []
    for k in range(n):
        seen = np.flatnonzero((labels == k).any(axis=(1, 2)))
        if seen.size == 0:
            continue
        if seen[0] > 0:
            found.append((seen[0], "birth", k, -1))
        gone = seen[-1] + 1
        if gone < len(labels):
            taken_over = [large for frame, small, large in merges if (frame, small) == (gone, k)]
            found.append((gone, "merge", k, *taken_over) if taken_over else (gone, "death", k, -1))
    found.sort(key=lambda event: (event[0], event[2]))
    return np.array(found, dtype=EVENTS)
