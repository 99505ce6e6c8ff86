"""Clusters through a series of scans: how the sample drifts, and which cluster becomes which.

Drift: particles grow, and a correlation of images takes a particle that grows against the border of
the scan, or against another particle, for one that moves. So, to first order, the difference of two
frames is a displacement of everything, plus an edge of each particle that moves outwards:

    b - a = -d . grad(a) + v_k |grad(a)| + offset + scale a

The speeds ``v_k`` are fitted along with the displacement ``d`` (Gauss-Newton, as Lucas and Kanade
1981), with weights that drop where one particle moves or appears on its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.ndimage import distance_transform_edt, gaussian_filter, label, shift, spline_filter
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation

from .features import bin_factor, bin_matrix, find_centre, nuisances

LAGS = (1, 2, 4, 8)
"""Frames that are compared are so far apart: errors of successive frames alone would add up."""

_SMOOTH = 1.0
"""Blur of images before they are compared, scan positions."""

_DOUBT = 0.3
"""Residual of a pair of frames from which on it counts less, scan positions."""

_ROUNDS = 8
"""Most steps of the fit of a displacement."""

_MOST_STEP = 0.5
"""Farthest step of it, scan positions: edges are a few positions wide."""

_NEAR = 1.5
"""Farthest that a fit may end from where it began, scan positions: else it did not converge."""

_LEAST_BLOB = 4
"""Fewest positions of a particle whose growth is fitted."""


# --- drift -----------------------------------------------------------------------------------


class _Image(NamedTuple):
    """An image, ready to be compared."""

    smooth: np.ndarray
    spline: np.ndarray  # its spline coefficients
    valid: np.ndarray  # where it is known
    nearest: np.ndarray  # number of the nearest particle
    n: int  # of particles
    flat: bool


def find_drift_core(images: Iterable[np.ndarray | None], reach: float | None) -> np.ndarray:
    """Displacement (T, 2) of each image against the first one that is there; NaN for None.

    `images` (Rx, Ry), float64, NaN where unknown, are taken one after the other, and at most
    ``max(LAGS) + 1`` are held. `reach` is the farthest displacement between successive images, by
    default a quarter of the shorter side.
    """
    recent: dict[int, _Image] = {}
    there: list[int] = []
    found: list[np.ndarray] = []
    pairs: list[tuple[int, int]] = []
    values: list[np.ndarray] = []
    weights: list[float] = []
    t = -1
    for t, image in enumerate(images):
        if image is None:
            continue
        k = len(there)
        there.append(t)
        b = recent[k] = _prepare(image)
        sides = [n for n in image.shape if n > 1]
        farthest = max(1.0, min(sides, default=4) / 4) if reach is None else reach
        guesses = []
        for lag in [lag for lag in LAGS if lag <= k]:
            a = recent[k - lag]
            known = not (a.flat or b.flat)
            value = np.zeros(2) if lag == 1 else guesses[0] - found[k - lag]
            if known:
                if lag == 1:
                    value = correlate(a.smooth, b.smooth, a.valid, b.valid, farthest)
                value = _refine(a, b, value)
            pairs.append((k - lag, k))
            values.append(value)
            weights.append(1.0 if known else 1e-3)
            guesses.append(found[k - lag] + value)
        found.append(np.median(guesses, axis=0) if guesses else np.zeros(2))
        recent.pop(k - max(LAGS), None)
    out = np.full((t + 1, 2), np.nan)
    if pairs:
        out[there] = _solve(len(there), np.array(pairs), np.array(values), np.array(weights))
    elif there:
        out[there] = 0
    return out


def _prepare(image: np.ndarray) -> _Image:
    valid = np.isfinite(image)
    amount = gaussian_filter(valid.astype(float), _SMOOTH, mode="nearest")
    filled = np.where(valid, image, image[valid].mean())
    filled -= filled.mean()
    filled /= max(np.abs(filled).max(), 1e-300)
    smooth = gaussian_filter(filled * valid, _SMOOTH, mode="nearest")
    smooth = np.where(amount > 1e-3, smooth / np.maximum(amount, 1e-3), 0)
    flat = bool(np.ptp(image[valid]) <= 1e-9 * np.abs(image[valid]).max())
    nearest, n = _particles(smooth)
    return _Image(smooth, spline_filter(smooth, 3, mode="nearest"), valid, nearest, n, flat)


def _particles(image: np.ndarray) -> tuple[np.ndarray, int]:
    """Number of the bright region nearest to each position, and how many there are."""
    regions, _ = label(image > _otsu(image))
    sizes = np.bincount(regions.ravel())
    keep = sizes >= _LEAST_BLOB
    keep[0] = False
    number = np.cumsum(keep) * keep
    regions = number[regions]
    if not regions.any():
        return np.zeros(image.shape, dtype=int), 1
    index = distance_transform_edt(regions == 0, return_distances=False, return_indices=True)
    return regions[tuple(index)] - 1, int(keep.sum())


def _otsu(image: np.ndarray) -> float:
    """Threshold with the largest variance between the two sides (Otsu 1979)."""
    counts, edges = np.histogram(image, 128)
    middle = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    total = np.cumsum(counts * middle)
    gap = total[:-1] / np.maximum(below, 1) - (total[-1] - total[:-1]) / np.maximum(above, 1)
    return float(middle[(below * above * gap**2).argmax()])


def correlate(
    a: np.ndarray, b: np.ndarray, a_valid: np.ndarray, b_valid: np.ndarray, reach: float
) -> np.ndarray:
    """Displacement (2,) of `b` against `a`, at most `reach`, where they correlate most.

    Each displacement has the correlation of what both images show then, so that the border of the
    scan draws it nowhere (Padfield 2012); at least half of both must be shown. A parabola gives
    parts of a position; 0 where there is nothing to correlate.
    """
    shape = [next_fast_len(2 * n - 1) for n in a.shape]
    steps = [np.fft.fftfreq(n, 1 / n) for n in shape]

    def transform(values: np.ndarray) -> np.ndarray:
        return rfft2(values, shape)

    def cross(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return irfft2(np.conj(first) * second, shape)

    one_a, one_b = transform(a_valid.astype(float)), transform(b_valid.astype(float))
    a, b = a * a_valid, b * b_valid
    fa, fb = transform(a), transform(b)
    n = np.maximum(cross(one_a, one_b), 1)
    sum_a, sum_b = cross(fa, one_b), cross(one_a, fb)
    var_a = cross(transform(a * a), one_b) - sum_a**2 / n
    var_b = cross(one_a, transform(b * b)) - sum_b**2 / n
    spread = np.sqrt(np.maximum(var_a, 0) * np.maximum(var_b, 0))
    allowed = (n >= 0.5 * min(a_valid.sum(), b_valid.sum()) - 0.5) & (spread > 1e-6 * spread.max())
    allowed &= (np.abs(steps[0])[:, None] <= reach) & (np.abs(steps[1]) <= reach)
    if not allowed.any():
        return np.zeros(2)
    value = np.full(n.shape, -1.0)
    value[allowed] = ((cross(fa, fb) - sum_a * sum_b / n)[allowed]) / spread[allowed]
    top = np.unravel_index(value.argmax(), value.shape)
    out = np.empty(2)
    for axis in range(2):
        line = np.moveaxis(value, axis, 0)[:, top[1 - axis]]
        at = top[axis]
        left, middle, right = line[at - 1], line[at], line[(at + 1) % len(line)]
        bend = left - 2 * middle + right
        part = 0.5 * (left - right) / bend if bend < 0 else 0.0
        out[axis] = steps[axis][at] + (np.clip(part, -0.5, 0.5) if min(left, right) > -1 else 0)
    return out


def _gradient(values: np.ndarray, axis: int) -> np.ndarray:
    return np.gradient(values, axis=axis) if values.shape[axis] > 1 else np.zeros(values.shape)


def _refine(a: _Image, b: _Image, start: np.ndarray) -> np.ndarray:
    """Displacement of `b` against `a`, near to `start`, with the growth of each particle."""
    move = start.copy()
    for _ in range(_ROUNDS):
        # Both are moved by half, so that interpolation blurs them alike.
        here = shift(a.spline, move / 2, order=3, mode="nearest", prefilter=False)
        there = shift(b.spline, -move / 2, order=3, mode="nearest", prefilter=False)
        nearest = shift(a.nearest, move / 2, order=0, mode="nearest", prefilter=False)
        inside = shift(a.valid.astype(float), move / 2, order=1, mode="constant") > 0.99
        inside &= shift(b.valid.astype(float), -move / 2, order=1, mode="constant") > 0.99
        if inside.sum() < 16:
            return start
        middle = (here + there) / 2
        slopes = [_gradient(middle, axis)[inside] for axis in range(2)]
        edge = np.hypot(*slopes)
        number = nearest[inside]
        columns = np.stack(
            [*slopes, np.ones(len(edge)), here[inside], (there - here)[inside]], axis=1
        )
        weight = np.ones(len(edge))
        step = np.zeros(2)
        for _ in range(3):
            # What the growth of each particle explains is taken off everything.
            weighted = weight**2 * edge
            power = np.bincount(number, weighted * edge, a.n)
            power += 1e-6 * max(power.sum(), 1e-300) / a.n
            left = np.empty_like(columns)
            for c, column in enumerate(columns.T):
                speed = np.bincount(number, weighted * column, a.n) / power
                left[:, c] = column - speed[number] * edge
            design, target = left[:, :4], left[:, 4]
            square = (design * weight[:, None] ** 2).T @ design
            square[np.diag_indices(4)] += 1e-6 * max(np.trace(square[:2, :2]), 1e-300) / 2
            part = np.linalg.solve(square, (design * weight[:, None] ** 2).T @ target)
            step = -part[:2]
            rest = target - design @ part
            size = np.sqrt((weight**2 * rest**2).sum() / (weight**2).sum())
            weight = 1 / np.sqrt(1 + (rest / max(size, 1e-300)) ** 2)
        move = move + np.clip(step, -_MOST_STEP, _MOST_STEP)
        if np.abs(step).max() < 2e-3:
            break
    return move if np.abs(move - start).max() <= _NEAR else start


def _solve(n: int, pairs: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Places (n, 2) from measured differences, the first 0; outliers count less (Cauchy)."""
    rows = np.arange(len(pairs))
    design = np.zeros((len(pairs), n))
    design[rows, pairs[:, 1]] = 1
    design[rows, pairs[:, 0]] = -1
    design = design[:, 1:]
    weight = weights
    found = np.zeros((n - 1, 2))
    for _ in range(30):
        weighted = design * weight[:, None] ** 2
        found = np.linalg.solve(weighted.T @ design, weighted.T @ values)
        rest = np.hypot(*(design @ found - values).T)
        weight = weights / np.sqrt(1 + (rest / _DOUBT) ** 2)
    return np.concatenate([np.zeros((1, 2)), found])


# --- which patterns are alike ----------------------------------------------------------------


class Patterns(NamedTuple):
    """What tells patterns apart."""

    values: np.ndarray
    """(N, bins), float32."""
    noise: np.ndarray
    """(N,), what noise adds to the square of each row."""
    freedom: float
    """Number of independent values in the noise of a row."""


class Comparer:
    """Takes off what all patterns of a series share: rings, the direct beam and how it wanders.

    Made from one mean pattern; `centre` of the direct beam, None to find it. Patterns are blurred
    by `blur` pixels, so that disks which appear, vanish and move while a particle turns a little
    cost little, and weighted as counted electrons ask for.
    """

    def __init__(self, mean: np.ndarray, centre: tuple[float, float] | None, blur: float) -> None:
        mean = np.nan_to_num(mean.astype(float), posinf=0, neginf=0)
        self.shape = mean.shape
        self.blur = blur
        factor = bin_factor(self.shape, mean.size)
        sizes = [max(1, round(n / factor)) for n in self.shape]
        self.bins = [bin_matrix(n, bins) for n, bins in zip(self.shape, sizes, strict=True)]
        centre = find_centre(mean) if centre is None else centre
        level = self._binned(np.maximum(mean, 0)[None])[0]
        self.level = np.maximum(level, 0.02 * level.mean() if level.any() else 1.0)
        scale = 1 / np.sqrt(self.level)
        u, v = (m @ np.arange(m.shape[1]) / m.sum(axis=1) for m in self.bins)
        u, v = np.meshgrid(u - centre[0], v - centre[1], indexing="ij")
        pixels = np.outer(*(m.sum(axis=1) for m in self.bins)).ravel()
        self.rings = nuisances(u.ravel(), v.ravel(), scale * pixels, float(factor))
        self.scale = scale
        # How much of counting noise passes, by example.
        smooth = gaussian_filter(np.maximum(mean, 0), 2.0, mode="nearest")
        self.deviation = np.sqrt(np.maximum(smooth, 0.02 * smooth.mean() if smooth.any() else 1.0))
        example = np.random.default_rng(0).standard_normal((4, *self.shape)) * self.deviation
        self.pass_through = 1.0
        values = self._values(example)
        self.pass_through = (values**2).sum() / self._roughness(example).sum()
        # For the noise of two rows: var(a . b) = sum(covariance^2).
        products = values @ values.T
        alike = np.diag(products).mean() ** 2
        unlike = (products[np.triu_indices(4, 1)] ** 2).mean()
        self.freedom = float(np.clip(alike / max(unlike, 1e-300), 1, len(scale)))

    def _binned(self, patterns: np.ndarray) -> np.ndarray:
        blurred = gaussian_filter(patterns, (0, self.blur, self.blur), mode="nearest")
        return (self.bins[0] @ blurred @ self.bins[1].T).reshape(len(patterns), -1)

    def _values(self, patterns: np.ndarray) -> np.ndarray:
        values = self._binned(patterns) * self.scale
        return values - (values @ self.rings) @ self.rings.T

    def _roughness(self, patterns: np.ndarray) -> np.ndarray:
        """Mean variance of noise, from what no smooth pattern has (Immerkaer 1996)."""
        rough = patterns / self.deviation
        for axis in (1, 2):
            if rough.shape[axis] > 2:
                rough = np.diff(rough, 2, axis=axis) / np.sqrt(6)
        return (rough**2).mean(axis=(1, 2))

    def __call__(self, patterns: np.ndarray) -> Patterns:
        patterns = patterns.astype(float)
        known = np.isfinite(patterns)
        if not known.all():
            # An unknown pixel is as bright as the mean pattern of the series.
            patterns = np.where(known, patterns, self.deviation**2)
        values = self._values(patterns)
        noise = self.pass_through * self._roughness(patterns)
        # Sharp disks are rough too.
        noise = np.minimum(noise, 0.9 * (values**2).sum(axis=1))
        return Patterns(values.astype(np.float32), noise, self.freedom)


def similarities(a: Patterns, b: Patterns) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of each pattern of `a` with each of `b`, without noise; its standard error."""
    products = (a.values @ b.values.T).astype(float)
    power_a, power_b = ((p.values.astype(float) ** 2).sum(axis=1) for p in (a, b))
    clean_a, clean_b = power_a - a.noise, power_b - b.noise
    size = np.sqrt(np.maximum(np.outer(clean_a, clean_b), 1e-300))
    variance = (np.outer(power_a, power_b) - np.outer(clean_a, clean_b)) / a.freedom
    nothing = np.outer(power_a, power_b) <= 0
    value = np.where(nothing, 0, np.clip(products / size, -1, 1))
    error = np.where(nothing, np.inf, np.sqrt(np.maximum(variance, 0)) / size)
    return value, error


# --- linking ---------------------------------------------------------------------------------


_TOUCHING = 0.1
"""Least share of the smaller of two clusters that overlaps with the other."""

_ALIKE = 0.4
"""Least similarity of clusters that do not overlap: of different particles, 1 % are more alike."""

_FORGIVEN = 0.1
"""What a similarity may be lower for each frame that went by unseen."""

_RECENT = 200
"""Links that say how alike the patterns of one particle in successive frames at least are."""

_WAIT = 0.25
"""A track that was missing yields to one that was there: its score counts so much less."""


class Event(NamedTuple):
    """What happened to a track."""

    frame: int
    event: str
    track: int
    other: int


class _Active(NamedTuple):
    """A track that may go on."""

    number: int
    places: np.ndarray  # (n, 2), scan positions of its last cluster, drift taken off
    pattern: Patterns | None  # of that
    last: int  # frame in which it was seen
    missed: int  # frames without it since, failed ones not counted
    gone: int  # the first of those
    within: int  # track that lay on it in that one, or -1


class Linker:
    """Gives the clusters of one frame after the other their tracks.

    Two clusters may be the same when the later one overlaps the earlier one, drift taken off, or
    when no more than `reach` positions are between them and their patterns are alike; not when
    their patterns differ by more than noise explains. Of all ways to link a frame that is the one
    with the largest sum of overlap (Dice) and similarity.
    """

    def __init__(self, memory: int, reach: float, min_similarity: float) -> None:
        self.memory = memory
        self.reach = reach
        self.min_similarity = min_similarity
        self.active: list[_Active] = []
        self.events: list[Event] = []
        self.n_tracks = 0
        self.n_frames = 0  # frames that did not fail
        # Similarities of what surely is one particle; 1 until there are enough, so that the first
        # particle that takes the place of another does not pass for the same one.
        self.seen_alike = [1.0] * 10

    def add(
        self,
        frame: int,
        labels: np.ndarray,
        skip: np.ndarray,
        patterns: Patterns | None,
        drift: np.ndarray,
    ) -> np.ndarray:
        """Track (N,) of each cluster of a frame; -1 for those to `skip` (N,), bool."""
        chosen = np.flatnonzero(~skip)
        number = np.full(len(skip) + 1, -1)
        number[chosen] = np.arange(len(chosen))
        labels = number[labels]  # of the clusters that count
        n = len(chosen)
        inside = labels >= 0
        places = np.argwhere(inside) - drift
        of_place = labels[inside]
        sizes = np.bincount(of_place, minlength=n)
        parts = np.split(places[np.argsort(of_place, kind="stable")], np.cumsum(sizes)[:-1])
        rows = None
        if patterns is not None:
            rows = Patterns(patterns.values[chosen], patterns.noise[chosen], patterns.freedom)

        tracks = np.full(n, -1)
        shared = np.zeros((len(self.active), n))
        if self.active and n:
            shared = _overlaps([a.places for a in self.active], labels, drift, n)
            score = self._score(frame, shared, sizes, parts[:n], rows)
            old, new = linear_sum_assignment(-score)
            for i, k in zip(old, new, strict=True):
                if score[i, k] > 0:
                    tracks[k] = self.active[i].number
        linked = tracks >= 0
        fresh = np.flatnonzero(~linked)
        tracks[fresh] = self.n_tracks + np.arange(len(fresh))
        self._birth(frame, fresh, tracks, linked, shared, sizes)
        self._keep(frame, tracks, linked, shared, parts, rows)
        self.n_tracks += len(fresh)
        self.n_frames += 1
        out = np.full(len(skip), -1)
        out[chosen] = tracks
        return out

    def finish(self) -> list[Event]:
        """All events, by frame, then track; those that were missing at the end have ended."""
        for track in self.active:
            if track.missed:
                self._end(track)
        return sorted(self.events)

    def _score(
        self,
        frame: int,
        shared: np.ndarray,
        sizes: np.ndarray,
        parts: list[np.ndarray],
        rows: Patterns | None,
    ) -> np.ndarray:
        """How good each link is, (tracks, clusters); 0 for none."""
        before = np.array([len(a.places) for a in self.active])
        dice = 2 * shared / (before[:, None] + sizes)
        contained = shared / np.minimum(before[:, None], sizes)
        alike, doubt = np.zeros(shared.shape), np.full(shared.shape, np.inf)
        if rows is not None:
            for i, track in enumerate(self.active):
                if track.pattern is not None:
                    alike[i], doubt[i] = (part[0] for part in similarities(track.pattern, rows))
        centres = [np.array([p.mean(axis=0) for p in group]) for group in (
            [a.places for a in self.active], parts)]  # fmt: skip
        gap = np.hypot(*(centres[0][:, None] - centres[1]).transpose(2, 0, 1))
        gap -= np.sqrt(before / np.pi)[:, None] + np.sqrt(sizes / np.pi)
        elapsed = frame - np.array([a.last for a in self.active])[:, None]
        sure = (dice >= 0.5) & (elapsed == 1) & (doubt < _ALIKE)
        self.seen_alike = (self.seen_alike + alike[sure].tolist())[-_RECENT:]
        typical = float(np.clip(np.quantile(self.seen_alike, 0.1), 0, 1))
        # Where particles turn fast, patterns tell little; and one not seen for a while has turned.
        least = min(self.min_similarity, typical / 2) - _FORGIVEN * (elapsed - 1)
        if typical < 2 * _ALIKE:
            least -= 0.4
        touching = (contained >= _TOUCHING) & (alike + 2 * doubt >= least)
        near = (gap <= self.reach) & (alike - 2 * doubt >= max(self.min_similarity, _ALIKE))
        allowed = touching | near
        # What is nearly noise says little.
        score = dice + typical * np.maximum(alike, 0) / (1 + (doubt / 0.3) ** 2)
        waited = np.array([a.missed for a in self.active])[:, None]
        return np.where(allowed, np.maximum(score, 1e-6) / (1 + _WAIT * waited), 0)

    def _birth(
        self,
        frame: int,
        fresh: np.ndarray,
        tracks: np.ndarray,
        linked: np.ndarray,
        shared: np.ndarray,
        sizes: np.ndarray,
    ) -> None:
        if self.n_frames == 0:
            return  # what is there from the start was not born
        going_on = np.array([(tracks == a.number).any() and not a.missed for a in self.active])
        for k in fresh:
            within = np.where(going_on, shared[:, k], 0) if len(self.active) else np.zeros(1)
            if within.max() > 0.5 * sizes[k]:
                parent = self.active[int(within.argmax())].number
                self.events.append(Event(frame, "split", int(tracks[k]), parent))
            else:
                self.events.append(Event(frame, "birth", int(tracks[k]), -1))

    def _keep(
        self,
        frame: int,
        tracks: np.ndarray,
        linked: np.ndarray,
        shared: np.ndarray,
        parts: list[np.ndarray],
        rows: Patterns | None,
    ) -> None:
        """Update the tracks that may go on, and end those that were missing for too long."""
        kept = []
        for i, track in enumerate(self.active):
            if (tracks == track.number).any():
                continue
            if not track.missed:
                over = np.where(linked, shared[i], 0) if linked.any() else np.zeros(1)
                taken = over.max() > 0.5 * len(track.places)
                within = int(tracks[over.argmax()]) if taken else -1
                track = track._replace(gone=frame, within=within)
            track = track._replace(missed=track.missed + 1)
            if track.missed > self.memory:
                self._end(track)
            else:
                kept.append(track)
        for k, number in enumerate(tracks):
            row = None
            if rows is not None:
                row = Patterns(rows.values[k : k + 1], rows.noise[k : k + 1], rows.freedom)
            kept.append(_Active(int(number), parts[k], row, frame, 0, -1, -1))
        self.active = sorted(kept, key=lambda track: track.number)

    def _end(self, track: _Active) -> None:
        event = "death" if track.within < 0 else "merge"
        self.events.append(Event(track.gone, event, track.number, track.within))


def _overlaps(
    groups: list[np.ndarray], labels: np.ndarray, drift: np.ndarray, n: int
) -> np.ndarray:
    """Positions (groups, n) that places, moved by parts of a position, share with each label."""
    of_group = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
    places = np.concatenate(groups) + drift
    low = np.floor(places + 1e-9).astype(int)
    part = np.clip(places - low, 0, 1)
    out = np.zeros(len(groups) * n)
    for du in (0, 1):
        for dv in (0, 1):
            share = np.abs(1 - du - part[:, 0]) * np.abs(1 - dv - part[:, 1])
            u, v = low[:, 0] + du, low[:, 1] + dv
            ok = (u >= 0) & (v >= 0) & (u < labels.shape[0]) & (v < labels.shape[1]) & (share > 0)
            found = labels[u[ok], v[ok]]
            hit = found >= 0
            at = of_group[ok][hit] * n + found[hit]
            out += np.bincount(at, share[ok][hit], minlength=len(out))
    return out.reshape(len(groups), n)


# --- rotation --------------------------------------------------------------------------------


class Steady(NamedTuple):
    """A rotation that goes on steadily."""

    velocity: np.ndarray  # (3,), radian a time unit, about its direction in image x, y and beam
    error: float  # standard error of its length
    angles: np.ndarray  # (n,), radian about it since the first
    used: np.ndarray  # (n,), bool: near to it


_MOST_STARTS = 600
"""Most guesses of a rotation that are tried."""


def steady_rotation(
    matrices: np.ndarray, times: np.ndarray, symmetry: np.ndarray, tolerance: float
) -> Steady:
    """The steady rotation that most orientations (n, 3, 3) keep within `tolerance`, radian.

    Guessed from every pair of orientations that are 1, 2, 4, ... apart, then fitted to those that
    are near to it (Gauss-Newton).
    """
    n = len(matrices)
    nothing = np.full(3, np.nan), np.nan, np.full(n, np.nan), np.zeros(n, dtype=bool)
    if n < 2:
        return Steady(*nothing)
    pairs = [(i, i + 2**p) for p in range(n.bit_length()) for i in range(n - 2**p)]
    pairs = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, _MOST_STARTS).astype(int))]
    best, start, velocity = np.inf, 0, np.zeros(3)
    for i, j in pairs:
        turn = _turns(matrices[i][None], matrices[j][None], symmetry)[0] / (times[j] - times[i])
        rest = np.linalg.norm(_rest(matrices, times, i, turn, symmetry), axis=1)
        cost = (np.minimum(rest, tolerance) ** 2).sum()
        if cost < best * (1 - 1e-9):
            best, start, velocity = cost, i, turn
    middle = times.mean()
    base = _turned(matrices[start], (middle - times[start]) * velocity[None])[0]
    after = times - middle
    used = np.zeros(n, dtype=bool)
    covariance = np.full((6, 6), np.nan)
    rest = np.zeros((n, 3))
    for _ in range(30):
        rest = _turns(_turned(base, after[:, None] * velocity), matrices, symmetry)
        size = np.linalg.norm(rest, axis=1)
        used = size <= tolerance
        if used.sum() < 2:
            return Steady(*nothing)
        slopes = np.concatenate(
            [
                _rotation(after[:, None] * velocity),
                _left_jacobian(after[:, None] * velocity) * after[:, None, None],
            ],
            axis=2,
        )
        # Cauchy, by the spread of those that are near.
        spread = max(np.median(size[used]), 1e-9)
        weight = used / (1 + (size / (3 * spread)) ** 2)
        square = np.einsum("n,nij,nik->jk", weight, slopes, slopes)
        target = np.einsum("n,nij,ni->j", weight, slopes, rest)
        inverse = np.linalg.pinv(square)
        step = inverse @ target
        freedom = 3 * used.sum() - 6
        if freedom > 0:
            left = rest - slopes @ step
            # Weights are below 1 only for the few that are wrong.
            covariance = inverse * (weight * (left**2).sum(axis=1)).sum() / freedom
        base = _turned(base, step[None, :3])[0]
        velocity = velocity + step[3:]
        if np.abs(step[:3]).max() < 1e-10 and np.abs(step[3:]).max() * np.ptp(times) < 1e-10:
            break
    rate = np.linalg.norm(velocity)
    axis = velocity / rate if rate > 0 else np.array([0.0, 0.0, 1.0])
    error = float(np.sqrt(axis @ covariance[3:, 3:] @ axis))
    angles = rate * (times - times[0]) + (rest - rest[0]) @ axis
    return Steady(velocity, error, angles, used)


def _rotation(vectors: np.ndarray) -> np.ndarray:
    return Rotation.from_rotvec(vectors).as_matrix()


def _turned(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Orientations after rotations ``(n, 3)``, vectors in the axes of the image."""
    return matrices @ np.swapaxes(_rotation(vectors), -1, -2)


def _turns(a: np.ndarray, b: np.ndarray, symmetry: np.ndarray) -> np.ndarray:
    """Smallest rotations (n, 3) from `a` to `b` (n, 3, 3), vectors in the axes of the image."""
    # The trace of b^T S^T a, for each operator of the symmetry.
    between = a @ np.swapaxes(b, -1, -2)
    operators = symmetry.reshape(-1, 9).T
    best = (between.reshape(-1, 9) @ operators).argmax(axis=1)
    turns = np.swapaxes(symmetry[best] @ b, -1, -2) @ a
    return Rotation.from_matrix(turns).as_rotvec()


def _rest(
    matrices: np.ndarray, times: np.ndarray, start: int, velocity: np.ndarray, symmetry: np.ndarray
) -> np.ndarray:
    expected = _turned(matrices[start], (times - times[start])[:, None] * velocity)
    return _turns(expected, matrices, symmetry)


def _left_jacobian(vectors: np.ndarray) -> np.ndarray:
    """How a rotation changes with its vector, (n, 3, 3): exp(v + d) = exp(J d) exp(v)."""
    angle = np.linalg.norm(vectors, axis=1)[:, None, None]
    safe = np.maximum(angle, 1e-9)
    axis = vectors / safe[:, 0]
    x, y, z = axis.T
    zero = np.zeros(len(x))
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
    sine = np.where(angle > 1e-6, np.sin(safe) / safe, 1)
    along = axis[:, :, None] * axis[:, None]
    return sine * np.eye(3) + (1 - sine) * along + (1 - np.cos(angle)) / safe * cross
