"""Link the grains of one frame of a series to those of the next."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.optimize import linear_sum_assignment

from .binning import bin_factor, bin_matrix
from .features import find_centre, nuisances

# --- similarity of patterns ------------------------------------------------------------------


MIN_LEVEL_SHARE = 0.02
"""Lowest expected brightness that weights a pixel, as a share of the mean brightness.

A smaller value gives more weight to dark pixels, where a few electrons decide.
"""

MAX_NOISE_SHARE = 0.9
"""Largest share of the power of a pattern that is taken for noise.

A larger value lets sharp disks, which are as rough as noise, pass for noise altogether.
"""


class Patterns(NamedTuple):
    """Features of N patterns in which different particles differ."""

    values: NDArray[np.float32]
    """``(N, bins)``."""
    noise: NDArray[np.float64]
    """Sum of squares ``(N,)`` that noise adds to each row."""
    freedom: float
    """Number of independent values in the noise of a row."""


class Comparer:
    """Turns the patterns of one series into features that can be compared.

    What all patterns share is taken off: the rings, the direct beam and a shift of the direct beam.
    Patterns are blurred, so that a particle that turns a little still looks similar, although
    disks appear, vanish and move. Pixels are weighted by their expected counting noise.

    Parameters
    ----------
    mean : ndarray, (Qx, Qy)
        Mean pattern of the series.
    centre : (Qx, Qy)
        Direct beam, detector pixels; None to find it in `mean`.
    blur : float
        Standard deviation of the blur, detector pixels.
    """

    def __init__(self, mean: NDArray[Any], centre: tuple[float, float] | None, blur: float) -> None:
        mean = np.nan_to_num(mean.astype(float), posinf=0, neginf=0)
        self.shape = mean.shape[0], mean.shape[1]
        self.blur = blur
        factor = bin_factor(self.shape, mean.size)
        sizes = [max(1, round(n / factor)) for n in self.shape]
        self.bins = [bin_matrix(n, bins) for n, bins in zip(self.shape, sizes, strict=True)]
        centre = find_centre(mean) if centre is None else centre
        level = self._binned(np.maximum(mean, 0)[None])[0]
        scale = 1 / np.sqrt(_at_least_a_share(level))
        u, v = (m @ np.arange(m.shape[1]) / m.sum(axis=1) for m in self.bins)
        u, v = np.meshgrid(u - centre[0], v - centre[1], indexing="ij")
        pixels = np.outer(*(m.sum(axis=1) for m in self.bins)).ravel()
        self.rings = nuisances(u.ravel(), v.ravel(), scale * pixels, float(factor))
        self.scale = scale
        # Four examples of counting noise show how much of the noise reaches the features.
        smooth = gaussian_filter(np.maximum(mean, 0), 2.0, mode="nearest")
        self.deviation = np.sqrt(_at_least_a_share(smooth))
        example = np.random.default_rng(0).standard_normal((4, *self.shape)) * self.deviation
        self.pass_through = 1.0
        values = self._values(example)
        self.pass_through = (values**2).sum() / self._roughness(example).sum()
        # For the noise a and b of two rows: var(a . b) = sum(covariance^2).
        products = values @ values.T
        alike = np.diag(products).mean() ** 2
        unlike = (products[np.triu_indices(4, 1)] ** 2).mean()
        self.freedom = float(np.clip(alike / max(unlike, 1e-300), 1, len(scale)))

    def _binned(self, patterns: NDArray[Any]) -> NDArray[Any]:
        blurred = gaussian_filter(patterns, (0, self.blur, self.blur), mode="nearest")
        return (self.bins[0] @ blurred @ self.bins[1].T).reshape(len(patterns), -1)

    def _values(self, patterns: NDArray[Any]) -> NDArray[Any]:
        values = self._binned(patterns) * self.scale
        return values - (values @ self.rings) @ self.rings.T

    def _roughness(self, patterns: NDArray[Any]) -> NDArray[Any]:
        """Mean variance of the noise, from second differences of neighbours (Immerkaer 1996)."""
        rough = patterns / self.deviation
        for axis in (1, 2):
            if rough.shape[axis] > 2:
                rough = np.diff(rough, 2, axis=axis) / np.sqrt(6)
        return (rough**2).mean(axis=(1, 2))

    def __call__(self, patterns: NDArray[Any]) -> Patterns:
        """Features of patterns ``(N, Qx, Qy)``; NaN where a pixel is unknown."""
        patterns = patterns.astype(float)
        known = np.isfinite(patterns)
        if not known.all():
            # An unknown pixel is taken to be as bright as in the mean pattern of the series.
            patterns = np.where(known, patterns, self.deviation**2)
        values = self._values(patterns)
        noise = self.pass_through * self._roughness(patterns)
        noise = np.minimum(noise, MAX_NOISE_SHARE * (values**2).sum(axis=1))
        return Patterns(values.astype(np.float32), noise, self.freedom)


def _at_least_a_share(level: NDArray[Any]) -> NDArray[Any]:
    return np.maximum(level, MIN_LEVEL_SHARE * level.mean() if level.any() else 1.0)


def similarities(a: Patterns, b: Patterns) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Similarity of each pattern of `a` with each of `b`, ``(N_a, N_b)``, and its standard error.

    The similarity is the correlation of the features, from -1 to 1, corrected for noise. It is 0,
    with an infinite error, where a pattern is empty.
    """
    products = (a.values @ b.values.T).astype(float)
    power_a, power_b = ((p.values.astype(float) ** 2).sum(axis=1) for p in (a, b))
    clean_a, clean_b = power_a - a.noise, power_b - b.noise
    size = np.sqrt(np.maximum(np.outer(clean_a, clean_b), 1e-300))
    variance = (np.outer(power_a, power_b) - np.outer(clean_a, clean_b)) / a.freedom
    empty = np.outer(power_a, power_b) <= 0
    value = np.where(empty, 0, np.clip(products / size, -1, 1))
    error = np.where(empty, np.inf, np.sqrt(np.maximum(variance, 0)) / size)
    return value, error


# --- linking ---------------------------------------------------------------------------------


MIN_OVERLAP_SHARE = 0.1
"""Share of the smaller of two clusters that must overlap with the other one to link them.

A larger value asks for more overlap, so that fast particles are linked by their patterns only.
"""

MIN_SIMILARITY_APART = 0.4
"""Similarity, at least, of two clusters that are linked although they do not overlap.

Of all pairs of different particles, 1 % are more similar. A larger value loses particles that jump,
a smaller one links different particles.
"""

SIMILARITY_LOSS_PER_FRAME = 0.1
"""How much lower the similarity may be for each frame in which the particle was not seen.

A larger value takes up particles again that turned while they were missing, but also gives their
track to another particle at the same place.
"""

SIMILARITY_LOSS_FAST = 0.4
"""How much lower the similarity may be in a series in which all particles turn fast.

A larger value links by overlap alone where patterns change from frame to frame.
"""

MAX_RECENT_LINKS = 200
"""Number of latest sure links that say how similar a particle is to itself a frame later.

A larger value follows slower when particles begin to turn faster.
"""

SCORE_LOSS_PER_FRAME = 0.25
"""A score is divided by 1 plus this for each frame in which the track was missing.

A larger value prefers tracks that were seen in the previous frame to tracks that were missing.
"""

ERROR_SCALE = 0.3
"""Standard error of a similarity at which the similarity counts half in the score.

A larger value trusts the patterns more at a low dose, and the overlap less.
"""


class Event(NamedTuple):
    """What happened to a track."""

    frame: int
    event: str
    """'birth', 'death', 'split' or 'merge'."""
    track: int
    other: int
    """Track that this one split from or merged into; -1 for births and deaths."""


class _ActiveTrack(NamedTuple):
    """A track that may go on."""

    number: int
    places: NDArray[Any]  # (n, 2), scan positions of its last cluster, drift taken off
    pattern: Patterns | None  # of its last cluster
    last: int  # frame of its last cluster
    missed: int  # number of frames without the track since then; failed frames do not count
    gone: int  # the first of these frames
    within: int  # track that covered most of its place in that frame, or -1


class Linker:
    """Gives the clusters of each frame, one frame after the other, their tracks.

    Two clusters of different frames may be linked when they overlap, drift taken off, unless their
    patterns differ by more than noise explains. They may also be linked without overlap, when the
    gap between them is at most `reach` and their patterns are similar. Of all ways to link a frame,
    the one with the largest sum of scores is taken; a score is overlap (Dice) plus similarity.

    Parameters
    ----------
    memory : int
        Number of frames that a track may be missing for before it ends.
    reach : float
        Largest gap between clusters that do not overlap, scan positions.
    min_similarity : float
        Similarity of patterns, at least, of clusters that are linked; less is enough after frames
        without the particle, and where all particles turn fast.
    """

    def __init__(self, memory: int, reach: float, min_similarity: float) -> None:
        self.memory = memory
        self.reach = reach
        self.min_similarity = min_similarity
        self.active: list[_ActiveTrack] = []
        self.events: list[Event] = []
        self.n_tracks = 0
        self.n_frames = 0  # frames that did not fail
        # Similarities of links that are sure. At first they are taken to be 1, so that a particle
        # that takes the place of another in an early frame is not linked to it.
        self.sure_similarities = [1.0] * 10

    def add(
        self,
        frame: int,
        labels: NDArray[Any],
        skip: NDArray[Any],
        patterns: Patterns | None,
        drift: NDArray[Any],
    ) -> NDArray[Any]:
        """Track ``(N,)`` of each of the N clusters of the next frame.

        Parameters
        ----------
        frame : int
            Number of the frame; larger than before. Failed frames are left out.
        labels : ndarray, (Rx, Ry), int, or (Rx, Ry, N), bool
            Cluster of each scan position, from 0; -1 for none. Or the support of each cluster, if
            clusters may lie above one another.
        skip : ndarray, (N,), bool
            Clusters without a track, such as the liquid; their track is -1.
        patterns : Patterns
            Features of the N patterns; None to link by overlap alone.
        drift : ndarray, (2,)
            How far the sample has moved since the first frame, scan positions.
        """
        chosen = np.flatnonzero(~skip)
        n = len(chosen)
        layers = _layers(labels, skip)
        parts = _places(layers, n)
        sizes = np.array([len(places) for places in parts], dtype=np.int64)
        parts = [places - drift for places in parts]
        rows = None
        if patterns is not None:
            rows = Patterns(patterns.values[chosen], patterns.noise[chosen], patterns.freedom)

        tracks = np.full(n, -1)
        shared = np.zeros((len(self.active), n))
        if self.active and n:
            groups = [a.places for a in self.active]
            shared = np.sum([_overlaps(groups, layer, drift, n) for layer in layers], axis=0)
            score = self._score(frame, shared, sizes, parts, rows)
            # In the order of their places, so that numbers do not decide between equal scores.
            old, new = (
                np.lexsort(np.array([places[0] for places in group]).T) for group in (groups, parts)
            )
            i_old, i_new = linear_sum_assignment(-score[np.ix_(old, new)])
            for i, k in zip(old[i_old], new[i_new], strict=True):
                if score[i, k] > 0:
                    tracks[k] = self.active[i].number
        linked = tracks >= 0
        fresh = np.flatnonzero(~linked)
        tracks[fresh] = self.n_tracks + np.arange(len(fresh))
        self._add_births(frame, fresh, tracks, shared, sizes)
        self._keep(frame, tracks, linked, shared, parts, rows)
        self.n_tracks += len(fresh)
        self.n_frames += 1
        out = np.full(len(skip), -1)
        out[chosen] = tracks
        return out

    def finish(self) -> list[Event]:
        """All events, by frame, then track; tracks that are missing at the end have ended."""
        for track in self.active:
            if track.missed:
                self._end(track)
        return sorted(self.events)

    def _score(
        self,
        frame: int,
        shared: NDArray[Any],
        sizes: NDArray[Any],
        parts: list[NDArray[Any]],
        rows: Patterns | None,
    ) -> NDArray[Any]:
        """Score of each possible link, ``(tracks, clusters)``; 0 where a link is not allowed."""
        before = np.array([len(a.places) for a in self.active])
        dice = 2 * shared / (before[:, None] + sizes)
        contained = shared / np.minimum(before[:, None], sizes)
        similarity, error = np.zeros(shared.shape), np.full(shared.shape, np.inf)
        if rows is not None:
            for i, track in enumerate(self.active):
                if track.pattern is not None:
                    found = similarities(track.pattern, rows)
                    similarity[i], error[i] = found[0][0], found[1][0]
        old = np.array([a.places.mean(axis=0) for a in self.active])
        new = np.array([places.mean(axis=0) for places in parts])
        gap = np.hypot(*(old[:, None] - new).transpose(2, 0, 1))
        gap -= np.sqrt(before / np.pi)[:, None] + np.sqrt(sizes / np.pi)  # as if both were round
        elapsed = frame - np.array([a.last for a in self.active])[:, None]
        sure = (dice >= 0.5) & (elapsed == 1) & (error < MIN_SIMILARITY_APART)
        recent = self.sure_similarities + similarity[sure].tolist()
        self.sure_similarities = recent[-MAX_RECENT_LINKS:]
        typical = float(np.clip(np.quantile(self.sure_similarities, 0.1), 0, 1))
        # The patterns of a particle that turns become less similar with each frame.
        lowest = min(self.min_similarity, typical / 2) - SIMILARITY_LOSS_PER_FRAME * (elapsed - 1)
        if typical < 2 * MIN_SIMILARITY_APART:
            lowest -= SIMILARITY_LOSS_FAST
        overlap = (contained >= MIN_OVERLAP_SHARE) & (similarity + 2 * error >= lowest)
        lowest_apart = max(self.min_similarity, MIN_SIMILARITY_APART)
        near = (gap <= self.reach) & (similarity - 2 * error >= lowest_apart)
        score = dice + typical * np.maximum(similarity, 0) / (1 + (error / ERROR_SCALE) ** 2)
        missed = np.array([a.missed for a in self.active])[:, None]
        score = np.maximum(score, 1e-6) / (1 + SCORE_LOSS_PER_FRAME * missed)
        return np.where(overlap | near, score, 0)

    def _add_births(
        self,
        frame: int,
        fresh: NDArray[Any],
        tracks: NDArray[Any],
        shared: NDArray[Any],
        sizes: NDArray[Any],
    ) -> None:
        """Add the births and splits of tracks that begin in this frame (`fresh`)."""
        if self.n_frames == 0:
            return  # particles of the first frame were there before
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
        tracks: NDArray[Any],
        linked: NDArray[Any],
        shared: NDArray[Any],
        parts: list[NDArray[Any]],
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
            kept.append(_ActiveTrack(int(number), parts[k], row, frame, 0, -1, -1))
        self.active = sorted(kept, key=lambda track: track.number)

    def _end(self, track: _ActiveTrack) -> None:
        event = "death" if track.within < 0 else "merge"
        self.events.append(Event(track.gone, event, track.number, track.within))


def _layers(labels: NDArray[Any], skip: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Label maps ``(Rx, Ry)`` of the clusters that are not skipped, numbered anew; -1 elsewhere.

    Clusters that lie above one another are in different maps.
    """
    chosen = np.flatnonzero(~skip)
    if labels.ndim == 2:
        number = np.full(len(skip) + 1, -1)
        number[chosen] = np.arange(len(chosen))
        return [number[labels]]
    layers: list[NDArray[np.int64]] = []
    for k, cluster in enumerate(chosen.tolist()):
        own = labels[..., cluster]
        for layer in layers:
            if not (layer[own] >= 0).any():
                layer[own] = k
                break
        else:
            layers.append(np.where(own, k, -1))
    return layers or [np.full(labels.shape[:2], -1)]


def _places(layers: list[NDArray[np.int64]], n: int) -> list[NDArray[np.int64]]:
    """Scan positions ``(m, 2)`` of each cluster, row by row; each is in one layer."""
    found: list[NDArray[np.int64]] = [np.empty((0, 2), dtype=np.int64)] * n
    for layer in layers:
        inside = layer >= 0
        places, number = np.argwhere(inside), layer[inside]
        order = np.argsort(number, kind="stable")
        there, first = np.unique(number[order], return_index=True)
        for k, part in zip(there.tolist(), np.split(places[order], first[1:]), strict=False):
            found[k] = part
    return found


def _overlaps(
    groups: list[NDArray[Any]], labels: NDArray[Any], drift: NDArray[Any], n: int
) -> NDArray[Any]:
    """Area ``(groups, n)``, scan positions, that each group of places shares with each label.

    The places are moved by the drift; a place between positions shares a part with each of them.
    """
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
