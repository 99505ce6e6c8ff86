"""Simulated series of scans (5D-STEM) with known particles: they appear, grow, turn, join, vanish.

Each frame is a scan as from `simulate_scan`: gold nanoparticles in a disordered liquid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from ..base.checks import check_integer, check_number
from ..base.frozen import Frozen
from .scan import check_shape, largest_share
from .scattering import Scattering, count_type, largest_count, random_orientations

EVENTS = np.dtype([("frame", np.int64), ("event", "U8"), ("track", np.int64), ("other", np.int64)])
"""Fields of the events of a series."""

COVER = 0.25
"""Share of the scan that all particles would cover, full-grown."""

NUCLEUS = 7.0
"""Area of a particle in the frame in which it appears, scan positions."""

GAP = 2.0
"""Least distance between full-grown particles that do not coalesce, scan positions."""

APPROACH = 6
"""Frames during which one of two particles moves to the other before they become one."""

TOUCH = 0.85
"""Distance of their centres then, of the sum of their radii."""

FINE = 8
"""Each scan position is a square of so many points along each side, for its shares."""


class _Scene(NamedTuple):
    """What frames are made of."""

    scattering: Scattering
    scan_shape: tuple[int, int]
    centres: NDArray[Any]  # (T, N, 2), of each disc, scan positions, drift included
    radii: NDArray[Any]  # (T, N); 0 while absent
    owners: NDArray[Any]  # (T, N): the particle that the disc is part of
    electrons: float
    speckle: float
    scan_step: float
    probe_blur: float
    seed: int

    def coverage(self, i: int) -> NDArray[Any]:
        """Share of each particle, and of the liquid as the last, in the square of each position.

        (Rx, Ry, N + 1), with a rim of `pad` more positions on each side, where the probe reaches.
        """
        n = self.radii.shape[1]
        shape = tuple(m + 2 * self.pad for m in self.scan_shape)
        best = np.zeros([FINE * m for m in shape])
        owner = np.full(best.shape, n)
        for centre, radius, k in zip(self.centres[i], self.radii[i], self.owners[i], strict=True):
            axes, box = [], []
            for c, m in zip(centre, shape, strict=True):
                place = (np.arange(FINE * m) + 0.5) / FINE - 0.5 - self.pad - c
                low, high = np.searchsorted(place, [-radius, radius])
                axes.append(place[low:high])
                box.append(slice(low, high))
            # Less than 0 within the disc; discs that overlap have a straight border.
            power = axes[0][:, None] ** 2 + axes[1] ** 2 - radius**2
            nearer = power < best[tuple(box)]
            best[tuple(box)][nearer] = power[nearer]
            owner[tuple(box)][nearer] = k
        position = np.arange(shape[0] * shape[1]).reshape(shape).repeat(FINE, 0).repeat(FINE, 1)
        points = np.bincount(
            (position * (n + 1) + owner).ravel(), minlength=shape[0] * shape[1] * (n + 1)
        )
        return points.reshape(*shape, n + 1) / FINE**2

    @property
    def pad(self) -> int:
        return int(4 * self.probe_blur + 0.5)

    def inner(self, values: NDArray[Any]) -> NDArray[Any]:
        """Without the rim."""
        rx, ry = self.scan_shape
        return values[self.pad : self.pad + rx, self.pad : self.pad + ry]

    def shares(self, coverage: NDArray[Any]) -> NDArray[Any]:
        """Shares in the patterns (Rx, Ry, N + 1), blurred by the probe."""
        if self.probe_blur > 0:
            # The rim is as wide as the filter, whose mode therefore does not matter.
            coverage = gaussian_filter(coverage, (self.probe_blur,) * 2 + (0,), mode="nearest")
            coverage /= coverage.sum(axis=2, keepdims=True)
        return self.inner(coverage)


@dataclass(frozen=True, eq=False)
class SimulatedSeries(Frozen):
    """A simulated series and the truth about it; iterating over it yields the DataCubes.

    T frames, N particles; the number of a particle is its track. The arrays are read-only.

    Attributes
    ----------
    labels : ndarray, (T, Rx, Ry), int
        Particle with the largest share of each scan position, from 0; -1 where that is the liquid.
    times : ndarray, (T,)
        Time of each frame, seconds, from 0.
    drift : ndarray, (T, 2)
        How far the sample has moved since frame 0, scan positions along Rx and Ry: what lies at
        ``(x, y)`` in frame 0 lies at ``(x, y) + drift[t]`` in frame t. A particle on its way to
        another moves by itself as well, during the six frames before they become one.
    areas : ndarray, (T, N)
        Area of each particle within the scan, scan positions, with fractions: what others cover
        or lies outside of the scan does not count; the blur of the probe is left out. A particle
        that took over another has the area of both. 0 while absent.
    growth_rates : ndarray, (N,)
        Growth of the area of each whole particle, scan positions a second, from the frame in which
        it appears until it is full-grown, joins another or dissolves; 0 for those that are there
        from frame 0, full-grown.
    rotation_rates : ndarray, (N,)
        How fast each particle turns, degrees a second, always about one axis of its own.
    orientations : ndarray, (T, N, 3, 3)
        Orientation matrices as py4DSTEM writes them: the columns are the image x and y axes and
        the beam in crystal coordinates. NaN while absent.
    events : ndarray, (n,), structured
        What happens to the particles as `labels` show it, by rising frame, then track: ``frame``,
        ``event``, ``track`` and ``other``. 'birth': the first frame in which a particle has a
        position, if that is not frame 0. 'death': the first frame after the last one in which it
        has one. 'merge': the first frame in which it is part of `other`. `other` is -1 but for
        merging.
    crystal : py4DSTEM.process.diffraction.Crystal
        Gold, with structure factors and voltage.
    """

    labels: NDArray[Any]
    times: NDArray[Any]
    drift: NDArray[Any]
    areas: NDArray[Any]
    growth_rates: NDArray[Any]
    rotation_rates: NDArray[Any]
    orientations: NDArray[Any]
    events: NDArray[Any]
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
        detector = self._scene.scattering.shape
        axes = " x ".join(map(str, (*self._scene.scan_shape, *detector)))
        return f"SimulatedSeries({self.n_frames} frames of {axes}, {self.n_particles} particles)"

    def shares(self, i: int) -> NDArray[Any]:
        """Share of each particle in the patterns of frame `i`, and of the liquid as the last.

        (Rx, Ry, N + 1); they sum to 1.
        """
        i = self._check_frame(i)
        return self._scene.shares(self._scene.coverage(i))

    def patterns(self, i: int) -> NDArray[Any]:
        """Expected pattern of each particle in frame `i`, and of the liquid as the last.

        (N + 1, Qx, Qy); each sums to 1. NaN for particles that are absent.
        """
        i = self._check_frame(i)
        scattering = self._scene.scattering
        disks = np.full((self.n_particles, *scattering.shape), np.nan)
        for k in np.flatnonzero(np.isfinite(self.orientations[i, :, 0, 0])):
            disks[k] = scattering.bragg(self.orientations[i, k])
        return scattering.patterns(disks)

    def frame(self, i: int) -> Any:
        """Frame `i` as a calibrated DataCube of counts: the same at each call, in any order."""
        i = self._check_frame(i)
        scene = self._scene
        scattering = scene.scattering
        rng = np.random.default_rng([scene.seed, 5, i + 1])
        shares, patterns = self.shares(i), self.patterns(i)
        electrons = scene.electrons
        # No pixel expects more than half of the electrons.
        dtype = count_type(largest_count(electrons, electrons / 2))
        counts = np.empty((*scene.scan_shape, *scattering.shape), dtype=dtype)
        for position in np.ndindex(*scene.scan_shape):
            share = shares[position]
            expected = np.zeros(scattering.shape)
            for k in np.flatnonzero(share):
                expected += share[k] * patterns[k]
            if share[-1] > 0 and scene.speckle > 0:
                expected += scattering.speckle(0.5 * share[-1], scene.speckle, rng)
            # Rounding may leave less than nothing where nothing scatters.
            counts[position] = rng.poisson(electrons * np.maximum(expected, 0))
        return scattering.datacube(counts, scene.scan_step, f"simulated_frame_{i}")

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

    Particles are round. Some nucleate: they appear in a frame of the first half, small, and their
    area grows steadily until they are full-grown. Some coalesce, in pairs, in a frame of the second
    half: one moves to the other until they touch, and from one frame on both are one particle with
    the orientation of the larger; its shape then stays. Some dissolve: their area shrinks steadily
    to nothing, in a frame of the second half. All of them turn, while the sample drifts. Each scan
    position averages over a square of its own size, so that borders are mixtures.

    A seed means the same particles with any electrons, speckle, detector, and blur. Particles are
    placed apart and wholly within frame 0; drift may take them to the border of the scan.

    Parameters
    ----------
    scan_shape : (Rx, Ry)
        Scan positions.
    detector_shape : (Qx, Qy)
        Detector pixels.
    n_frames : int
        Number of frames; fewer than 3 leave no time to coalesce or to dissolve, and 1 none to
        nucleate.
    n_particles : int
        Number of particles, as far as they find room. Together, full-grown, they cover about a
        quarter of the scan.
    electrons : float
        Expected electrons in each pattern, at most 1e9; the counts are Poisson distributed.
    time_step : float
        Time from frame to frame, seconds.
    nucleation : float
        Share of the particles, 0 to 1, that appear during the series; the others are there from
        frame 0.
    growth : float
        Mean growth rate of the area of those, scan positions a second. Each grows at its own rate,
        from half of this to one and a half.
    rotation : float
        Each particle turns at its own rate, from 0 to this, degrees a second. Patterns become
        dissimilar within a few degrees.
    coalescence : float
        Share of the particles, at most 1 with `dissolution`, that coalesce with another.
    dissolution : float
        Share of the particles, 0 to 1, that dissolve, each during 0.2 to 0.4 of the series.
    drift : float
        How far the sample drifts from frame to frame, scan positions, steadily in one direction.
    jitter : float
        Standard deviation of the place of each frame about that, along Rx and Ry, scan positions.
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
        The same seed gives the same series, everywhere.

    Returns
    -------
    SimulatedSeries
        Its frames are made when asked for, with ``series.frame(i)`` or by iterating.

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
    scan_shape = check_shape("scan_shape", scan_shape)
    detector_shape = check_shape("detector_shape", detector_shape)
    n_frames = check_integer("n_frames", n_frames, 1)
    n_particles = check_integer("n_particles", n_particles, 0)
    electrons = check_number("electrons", electrons, 0, 1e9)
    time_step = check_number("time_step", time_step, 1e-12)
    nucleation = check_number("nucleation", nucleation, 0, 1)
    growth = check_number("growth", growth, 0)
    rotation = check_number("rotation", rotation, 0)
    coalescence = check_number("coalescence", coalescence, 0, 1)
    dissolution = check_number("dissolution", dissolution, 0, 1)
    if coalescence + dissolution > 1 + 1e-9:
        raise ValueError(f"{coalescence=} and {dissolution=} must be at most 1 together")
    drift = check_number("drift", drift, 0, max(scan_shape))
    jitter = check_number("jitter", jitter, 0, max(scan_shape))
    speckle = check_number("speckle", speckle, 0)
    k_max = check_number("k_max", k_max, 1e-3)
    disk_radius = check_number("disk_radius", disk_radius, 0.5, min(detector_shape) / 8)
    scan_step = check_number("scan_step", scan_step, 1e-12)
    probe_blur = check_number("probe_blur", probe_blur, 0, min(scan_shape))
    seed = check_integer("seed", seed, 0)

    # A generator for each, so that one option leaves alone what the others draw.
    places, lives, turns, moves = (np.random.default_rng([seed, 4, n]) for n in (1, 2, 3, 4))
    n_pairs = int(coalescence * n_particles / 2 + 0.5) if n_frames > 2 else 0
    starts, full, pairs = _place(scan_shape, n_particles, min(n_pairs, n_particles // 2), places)
    n = len(full)
    births, deaths, shrinking = _lives(n, 2 * len(pairs), n_frames, nucleation, dissolution, lives)
    growth_rates = growth * lives.uniform(0.5, 1.5, n) * (births > 0)
    times = time_step * np.arange(n_frames)
    areas = _free_areas(np.pi * full**2, births, deaths, shrinking, growth_rates, times)

    angle = moves.uniform(0, 2 * np.pi)
    places_of_frames = drift * np.outer(np.arange(n_frames), [np.cos(angle), np.sin(angle)])
    places_of_frames += jitter * moves.standard_normal((n_frames, 2))
    drifts = places_of_frames - places_of_frames[0]

    radii = np.sqrt(areas / np.pi)
    centres = starts + np.zeros((n_frames, 1, 1))
    owners = np.tile(np.arange(n), (n_frames, 1))
    merges = [
        _coalesce(first, second, frame, centres, radii, owners)
        for (first, second), frame in zip(pairs, _late(len(pairs), n_frames, lives), strict=True)
    ]
    centres += drifts[:, None]

    rotation_rates = rotation * turns.uniform(0, 1, n)
    orientations = _turning(random_orientations(n, turns), rotation_rates, times, turns)
    absent = (radii == 0) | (owners != np.arange(n))
    orientations[absent] = np.nan

    scattering = Scattering(detector_shape, k_max, disk_radius)
    scene = _Scene(
        scattering,
        scan_shape,
        centres,
        radii,
        owners,
        electrons,
        speckle,
        scan_step,
        probe_blur,
        seed,
    )
    visible = np.empty((n_frames, n))
    labels = np.empty((n_frames, *scan_shape), dtype=np.int32)
    for i in range(n_frames):
        coverage = scene.coverage(i)
        visible[i] = scene.inner(coverage)[..., :-1].sum(axis=(0, 1))
        labels[i] = largest_share(scene.shares(coverage))
    return SimulatedSeries(
        labels,
        times,
        drifts,
        visible,
        growth_rates,
        rotation_rates,
        orientations,
        _events(labels, n, merges),
        scattering.crystal,
        scene,
    )


def _place(
    scan_shape: tuple[int, int], n_particles: int, n_pairs: int, rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any], list[tuple[int, int]]]:
    """Centres (N, 2) and radii (N,) of full-grown particles apart; pairs, which come first."""
    scan = np.array(scan_shape)
    radii = np.sqrt(COVER * scan.prod() / (np.pi * max(n_particles, 1)))
    radii = radii * rng.uniform(0.7, 1.3, n_particles)
    groups = [(2 * k, 2 * k + 1) for k in range(n_pairs)]
    groups += [(k,) for k in range(2 * n_pairs, n_particles)]
    best: list[tuple[tuple[int, ...], NDArray[Any]]] = []
    for _ in range(20):  # the first ones may be where they leave no room for others
        placed = _try_to_place(scan, radii, groups, rng)
        if sum(len(group) for group, _ in placed) > sum(len(group) for group, _ in best):
            best = placed
        if len(best) == len(groups):
            break
    found = [k for group, _ in best for k in group]
    centres = np.concatenate([np.empty((0, 2)), *(centres for _, centres in best)])
    n_found = sum(len(group) == 2 for group, _ in best)
    return centres, radii[found], [(2 * k, 2 * k + 1) for k in range(n_found)]


def _try_to_place(
    scan: NDArray[Any], radii: NDArray[Any], groups: list[tuple[int, ...]], rng: np.random.Generator
) -> list[tuple[tuple[int, ...], NDArray[Any]]]:
    """Groups of one or two that found room, with centres (1 or 2, 2)."""
    placed = []
    centres, taken = np.empty((0, 2)), np.empty(0)
    for group in groups:
        own = radii[list(group)]
        room = np.maximum(scan / 2 - own[:, None], 0)  # none: only the middle of the scan
        for _ in range(100):
            new = (scan - 1) / 2 + room * rng.uniform(-1, 1, (len(group), 2))
            if len(group) == 2:
                angle = rng.uniform(0, 2 * np.pi)
                new[1] = new[0] + (own.sum() + GAP) * np.array([np.cos(angle), np.sin(angle)])
            inside = np.abs(new - (scan - 1) / 2) <= room
            distance = np.hypot(*(new[:, None] - centres).transpose(2, 0, 1))
            if inside.all() and (distance >= own[:, None] + taken + GAP).all():
                centres, taken = np.concatenate([centres, new]), np.concatenate([taken, own])
                placed.append((group, new))
                break
    return placed


def _late(n: int, n_frames: int, rng: np.random.Generator) -> NDArray[Any]:
    """Frames (n,) of the second half of three frames or more, after all births."""
    return rng.integers(n_frames // 2 + 1, max(n_frames, n_frames // 2 + 2), n)


def _lives(
    n: int,
    n_paired: int,
    n_frames: int,
    nucleation: float,
    dissolution: float,
    rng: np.random.Generator,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """First frame of each particle, first frame without it (or infinity), and frames it shrinks."""
    order = rng.permutation(n)
    births = rng.integers(1, max(n_frames // 2, 1) + 1, n)
    deaths = _late(n, n_frames, rng).astype(float)
    shrinking = n_frames * rng.uniform(0.2, 0.4, n)
    nucleate = order[: int(nucleation * n + 0.5)] if n_frames > 1 else order[:0]
    single = order[order >= n_paired]
    dissolve = single[: int(dissolution * n + 0.5)] if n_frames > 2 else order[:0]
    births[np.setdiff1d(order, nucleate)] = 0
    deaths[np.setdiff1d(order, dissolve)] = np.inf
    return births, deaths, shrinking


def _free_areas(
    full: NDArray[Any],
    births: NDArray[Any],
    deaths: NDArray[Any],
    shrinking: NDArray[Any],
    growth_rates: NDArray[Any],
    times: NDArray[Any],
) -> NDArray[Any]:
    """Areas (T, N) of whole particles by themselves, given those of full-grown ones (N,)."""
    frames = np.arange(len(times))[:, None]
    nuclei = np.where(births > 0, np.minimum(NUCLEUS, full), full)
    areas = np.minimum(nuclei + growth_rates * (times[:, None] - times[births]), full)
    areas = np.minimum(areas, full * (deaths - frames) / shrinking)
    return np.where(frames >= births, np.maximum(areas, 0), 0)


def _coalesce(
    first: int,
    second: int,
    frame: int,
    centres: NDArray[Any],
    radii: NDArray[Any],
    owners: NDArray[Any],
) -> tuple[int, int, int]:
    """Move the second particle to the first and make them one from `frame` on.

    Changes what is given for all frames. Returns the frame, the one taken over, the one that stays.
    """
    apart = centres[frame, second] - centres[frame, first]
    distance = np.hypot(*apart)
    last = TOUCH * (radii[frame, first] + radii[frame, second])
    begin = max(0, frame - APPROACH)
    way = np.clip((frame - np.arange(len(radii))) / (frame - begin), 0, 1)
    centres[:, second] -= np.outer((1 - way) * (distance - last), apart / distance)
    both = [first, second]
    radii[frame:, both] = radii[frame, both]
    small, large = (first, second) if radii[frame, first] < radii[frame, second] else both[::-1]
    owners[frame:, small] = large
    return frame, small, large


def _turning(
    orientations: NDArray[Any], rates: NDArray[Any], times: NDArray[Any], rng: np.random.Generator
) -> NDArray[Any]:
    """Orientation matrices (T, N, 3, 3) of particles that turn about random axes."""
    turned = np.empty((len(times), *orientations.shape))
    for k, axis in enumerate(rng.standard_normal((len(orientations), 3))):
        angles = np.deg2rad(rates[k] * times)
        turns = Rotation.from_rotvec(np.outer(angles, axis / np.linalg.norm(axis))).as_matrix()
        # In the crystal, which turns one way, the image and the beam turn the other way.
        turned[:, k] = orientations[k] @ turns.transpose(0, 2, 1)
    return turned


def _events(labels: NDArray[Any], n: int, merges: list[tuple[int, int, int]]) -> NDArray[Any]:
    """Events of `EVENTS`, as the labels (T, Rx, Ry) show them; merges: frame, small, large."""
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
