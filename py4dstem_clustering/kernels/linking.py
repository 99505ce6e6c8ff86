"""Link the grains of one frame of a series to those of the next."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.optimize import linear_sum_assignment

from .binning import bin_factor, bin_matrix
from .features import find_centre, nuisances

# --- which patterns are alike ----------------------------------------------------------------


class Patterns(NamedTuple):
    """What tells patterns apart."""

    values: NDArray[Any]
    """(N, bins), float32."""
    noise: NDArray[Any]
    """(N,), what noise adds to the square of each row."""
    freedom: float
    """Number of independent values in the noise of a row."""


class Comparer:
    """Takes off what all patterns of a series share: rings, the direct beam and how it wanders.

    Made from one mean pattern; `centre` of the direct beam, None to find it. Patterns are blurred
    by `blur` pixels, so that disks which appear, vanish and move while a particle turns a little
    cost little, and weighted as counted electrons ask for.
    """

    def __init__(self, mean: NDArray[Any], centre: tuple[float, float] | None, blur: float) -> None:
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

    def _binned(self, patterns: NDArray[Any]) -> NDArray[Any]:
        blurred = gaussian_filter(patterns, (0, self.blur, self.blur), mode="nearest")
        return (self.bins[0] @ blurred @ self.bins[1].T).reshape(len(patterns), -1)

    def _values(self, patterns: NDArray[Any]) -> NDArray[Any]:
        values = self._binned(patterns) * self.scale
        return values - (values @ self.rings) @ self.rings.T

    def _roughness(self, patterns: NDArray[Any]) -> NDArray[Any]:
        """Mean variance of noise, from what no smooth pattern has (Immerkaer 1996)."""
        rough = patterns / self.deviation
        for axis in (1, 2):
            if rough.shape[axis] > 2:
                rough = np.diff(rough, 2, axis=axis) / np.sqrt(6)
        return (rough**2).mean(axis=(1, 2))

    def __call__(self, patterns: NDArray[Any]) -> Patterns:
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


def similarities(a: Patterns, b: Patterns) -> tuple[NDArray[Any], NDArray[Any]]:
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
    places: NDArray[Any]  # (n, 2), scan positions of its last cluster, drift taken off
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
        labels: NDArray[Any],
        skip: NDArray[Any],
        patterns: Patterns | None,
        drift: NDArray[Any],
    ) -> NDArray[Any]:
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
        shared: NDArray[Any],
        sizes: NDArray[Any],
        parts: list[NDArray[Any]],
        rows: Patterns | None,
    ) -> NDArray[Any]:
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
        fresh: NDArray[Any],
        tracks: NDArray[Any],
        linked: NDArray[Any],
        shared: NDArray[Any],
        sizes: NDArray[Any],
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
            kept.append(_Active(int(number), parts[k], row, frame, 0, -1, -1))
        self.active = sorted(kept, key=lambda track: track.number)

    def _end(self, track: _Active) -> None:
        event = "death" if track.within < 0 else "merge"
        self.events.append(Event(track.gone, event, track.number, track.within))


def _overlaps(
    groups: list[NDArray[Any]], labels: NDArray[Any], drift: NDArray[Any], n: int
) -> NDArray[Any]:
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
