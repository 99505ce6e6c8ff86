"""Camera lag: patterns hold a part of those recorded before them along the fast axis of the scan.

A camera that lags records ``f(y) = a f(y - 1) + (1 - a) u(y)``, where ``u`` are the patterns that
arrive and ``a`` is the share of the pattern before. So, where the probe crosses a border between
two grains, the first grain fades with an exponential tail behind the border, whichever of the two
grains comes first. Three other effects blur a border, and all differ from lag. The probe blurs it
evenly to both sides. Where grains are wedges or overlap, the tail lies on the same grain in both
directions of crossing. Where a lattice bends, one border has a longer slope on one side, the next
one on the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import maximum_filter, minimum_filter
from scipy.optimize import least_squares, nnls
from scipy.special import ndtr

from .features import Features, noise_of_neighbours
from .regions import consecutive, find_borders, noise_of_sum, region_means

# The values are tuned on simulated scans (seeds 100 to 115 of the benchmark) and the measured MgO
# scan.
SIDE_POSITIONS = 7
"""Positions on either side of a border, along the axis, that must all lie in one region. With more
of them, longer tails are seen, and fewer borders count."""

TAIL = (5, 10)
"""Positions before and behind a border, in the order of recording, that must lie in one region for
the size of a lag to be measured there. A longer tail shows slow decays better."""

MAX_PASSES = 2
"""How often the size is measured again, each time with the regions that are found without the lag
of before: a tail may be a region of its own until it is undone. More take longer."""

SAME_DECAY = 0.02
"""Change of the decay below which it is not measured again."""

CORE_DISTANCE = 3
"""Positions up to this far from another region do not count for the mean of their own region. A
larger distance leaves fewer positions, and less of the tails among them."""

CROSSING_SCATTER = 0.1
"""Standard deviation of a profile beyond its noise, as a share of the difference of its two
regions. The larger it is, the less the weight of a profile depends on that difference."""

MIN_CROSSINGS = 10
"""Smallest number of profiles into the stronger region, and into the weaker one, that a lag is
measured from. With a larger number, lag is found in fewer scans and more surely."""

MIN_DECAY = 0.4
"""Smallest decay that is undone: an even blur may look like a decay of 0.36, and a smaller lag
moves borders little. With a larger value, weak lag stays in the scan."""

MIN_ERROR_RATIO = 2.0
"""How many times larger the squared error of an even blur must be than that of a lag, over all
profiles. With a larger value, lag is found in fewer scans and more surely."""

MIN_ADVANTAGE = 0.25
"""How much better a tail in the direction of recording must fit than one against it: logarithm of
the ratio of squared errors, the mean of all pairs of regions. It is 0.35 to 1.1 for lags of 1 to 4
positions, and up to 0.1 where bend contours look like a lag."""

ADVANTAGE_ERRORS = 1.5
"""Standard errors, from the scatter between pairs of regions, by which this advantage must be above
zero. With a larger value, lag is found in fewer scans and more surely."""

MAX_TAIL_SHARE = 0.5
"""Share of the pattern of a region before it that a tail may hold. Larger shares may be grains."""

MAX_TAIL_REST = 0.1
"""Share of the power of a tail that the regions before it, and the weaker ones beside it, may leave
unexplained. It is 0.05 to 0.09 for tails on film, 0.1 to 0.9 for grains."""

_MIN_BLUR = 0.25
"""Standard deviation of the blur, scan positions, below which a border is sharp."""

_FLOOR = 1e-3
"""Squared error of any fit, as a share of the variation of a profile: noise, and a coarse grid."""

_LEAD_POSITIONS = 32
"""Positions before a profile from which a step is computed, so that its tail is complete."""


class Lag(NamedTuple):
    """Lag along one axis of the scan."""

    axis: int
    """0 for Rx, 1 for Ry."""
    direction: int
    """1 when positions are recorded in rising order, -1 when in falling order."""
    decay: float
    """Share of the signal that is still there one position later."""

    @property
    def name(self) -> str:
        """Axis and direction: "+Rx", "-Rx", "+Ry" or "-Ry"."""
        return ("+" if self.direction > 0 else "-") + ("Rx", "Ry")[self.axis]

    @classmethod
    def from_name(cls, name: str, decay: float) -> Lag:
        """The lag that has this `name` and `decay`."""
        return cls(("Rx", "Ry").index(name[1:]), 1 if name[0] == "+" else -1, decay)


class Fit(NamedTuple):
    """A blurred step with a tail, fitted to a profile."""

    decay: float
    error: float
    """Squared error of the fit."""
    even_error: float
    """Squared error of the best fit without a tail."""


class Crossings(NamedTuple):
    """Profiles across borders along the second axis."""

    profile: NDArray[np.float64]
    """``(n, before + after)``, from about 0 to 1."""
    weight: NDArray[np.float64]
    """Weight of each profile."""
    rises: NDArray[np.bool_]
    """Whether the profile leads into the stronger region."""
    pair: NDArray[np.int64]
    """Regions before and after ``(n, 2)``."""

    def mean(self, which: NDArray[Any] | slice = slice(None)) -> NDArray[np.float64]:
        """Weighted mean of some profiles."""
        weight = self.weight[which]
        return np.asarray(weight @ self.profile[which] / weight.sum())


def crossings(
    values: NDArray[Any],
    labels: NDArray[Any],
    before: int = SIDE_POSITIONS,
    after: int = SIDE_POSITIONS,
) -> Crossings:
    """Profiles across all borders with clear runs of positions on both sides.

    A profile is the features projected on the line from the mean of the region before to that of
    the region after.
    """
    n = int(labels.max(initial=-1)) + 1
    size = 2 * CORE_DISTANCE + 1
    core = (minimum_filter(labels, size) == maximum_filter(labels, size)) & (labels >= 0)
    count = np.bincount(labels[core], minlength=n)
    mean = np.stack(
        [np.bincount(labels[core], values[core, k], n) for k in range(values.shape[2])], axis=1
    ) / np.maximum(count, 1)[:, None]  # fmt: skip

    # A border lies in front of `y` where two runs of equal labels meet.
    x, y = np.nonzero(labels[:, 1:] != labels[:, :-1])
    y += 1
    inside = (y >= before) & (y + after <= labels.shape[1])
    x, y = x[inside, None], y[inside, None]
    line = y + np.arange(-before, after)
    found = labels[x, line]
    pair = found[:, [before - 1, before]]
    clear = (found[:, :before] == pair[:, :1]).all(axis=1)
    clear &= (found[:, before:] == pair[:, 1:]).all(axis=1)
    clear &= (pair >= 0).all(axis=1)
    clear &= (count[pair] > 0).all(axis=1)
    x, line, pair = x[clear], line[clear], pair[clear]

    first, second = mean[pair[:, 0]], mean[pair[:, 1]]
    across = second - first
    power = (across**2).sum(axis=1)
    profile = np.einsum("nyk,nk->ny", values[x, line] - first[:, None], across)
    profile /= np.maximum(power, 1e-9)[:, None]
    weight = power / (1 + CROSSING_SCATTER**2 * power)
    rises = (second**2).sum(axis=1) > (first**2).sum(axis=1)
    return Crossings(profile, weight, rises, pair)


def _blurred_steps(
    decay: ArrayLike, place: ArrayLike, blur: ArrayLike, before: int, after: int
) -> NDArray[np.float64]:
    """Steps at `place`, blurred by a Gaussian, with a tail; along a new last axis.

    Places are relative to the last position before a border.
    """
    n = np.arange(1 - before - _LEAD_POSITIONS, after + 1)
    step = ndtr((n - np.asarray(place)[..., None]) / np.asarray(blur)[..., None])
    for i in range(1, len(n)):
        step[..., i] += np.asarray(decay) * (step[..., i - 1] - step[..., i])
    return step[..., -before - after :]


def _normalized(step: NDArray[Any]) -> NDArray[Any]:
    step = step - step.mean(axis=-1, keepdims=True)
    return step / np.maximum(np.linalg.norm(step, axis=-1, keepdims=True), 1e-9)


@cache
def _grid(before: int, after: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Where fits start: decays, places and blurs ``(n, 3)``, and their steps."""
    decay = np.arange(0, 0.91, 0.1)
    place = np.arange(-6, 3.01, 0.25)
    blur = _MIN_BLUR * 1.4 ** np.arange(9)
    start = np.stack(np.meshgrid(decay, place, blur, indexing="ij"), axis=-1).reshape(-1, 3)
    steps = _blurred_steps(start[:, 0], start[:, 1], start[:, 2], before, after)
    return start, _normalized(steps)


def fit_step(profile: NDArray[Any], before: int = SIDE_POSITIONS) -> Fit:
    """Fit a profile with so many positions `before` the border; its two levels are free."""
    after = len(profile) - before
    profile = profile - profile.mean()
    start, steps = _grid(before, after)
    squared = (profile**2).sum() - (steps @ profile) ** 2

    def left(parameters: NDArray[Any], decay: float | None = None) -> NDArray[Any]:
        decay = parameters[2] if decay is None else decay
        place, blur = parameters[0], np.exp(parameters[1])
        step = _normalized(_blurred_steps(decay, place, blur, before, after))
        return profile - (step @ profile) * step

    low, high = [-9.0, np.log(_MIN_BLUR) - 1e-6, 0.0], [5.0, np.log(6.0), 0.95]
    even = start[:, 0] == 0
    decay, place, blur = start[even][squared[even].argmin()]
    without = least_squares(
        left, [place, np.log(blur)], bounds=(low[:2], high[:2]), args=(0.0,), xtol=1e-6
    )
    decay, place, blur = start[squared.argmin()]
    within = [place, np.log(blur), max(decay, 0.01)]
    tail = least_squares(left, within, bounds=(low, high), xtol=1e-6)
    if tail.cost >= without.cost:
        return Fit(0.0, 2 * without.cost, 2 * without.cost)
    return Fit(float(tail.x[2]), 2 * tail.cost, 2 * without.cost)


def _gain_of_tail(profiles: NDArray[Any]) -> NDArray[np.float64]:
    """Logarithm of the squared error of an even blur over that with a tail, of each profile."""
    half = profiles.shape[1] // 2
    start, steps = _grid(half, half)
    profiles = profiles - profiles.mean(axis=1, keepdims=True)
    power = (profiles**2).sum(axis=1, keepdims=True)
    squared = np.maximum(power - (profiles @ steps.T) ** 2, 0) + _FLOOR * power + 1e-30
    even = squared[:, start[:, 0] == 0].min(axis=1)
    return np.asarray(np.log(even / squared.min(axis=1)))


def _is_one_sided(found: Crossings, direction: int) -> bool:
    """Whether tails lie behind borders, and not before them, between most pairs of regions."""
    pair, which = np.unique(found.pair, axis=0, return_inverse=True)
    which = which.ravel()
    weight = np.bincount(which, found.weight, len(pair))
    total = [np.bincount(which, found.weight * part, len(pair)) for part in found.profile.T]
    profiles = np.stack(total, axis=1) / np.maximum(weight, 1e-12)[:, None]
    gain = direction * (_gain_of_tail(profiles) - _gain_of_tail(1 - profiles[:, ::-1]))
    mean = weight @ gain / weight.sum()
    error = np.sqrt(weight**2 @ (gain - mean) ** 2) / weight.sum()
    return bool(mean >= max(MIN_ADVANTAGE, ADVANTAGE_ERRORS * error))


def find_lag(values: NDArray[Any], labels: NDArray[Any]) -> Lag | None:
    """Lag of the camera, from features and the regions found in them; None unless it is certain.

    A lag has one axis and one direction. Its tails lie behind borders into stronger regions as well
    as behind borders into weaker ones, and behind the borders of most pairs of regions. Where noise
    is so strong that the borders follow it (in simulations, with 100 electrons a pattern), the
    profiles jump at the border and no lag is found.
    """
    lags = []
    for axis in (0, 1):
        found = crossings(*_along(values, labels, axis, 1))
        if min(found.rises.sum(), (~found.rises).sum()) < MIN_CROSSINGS:
            continue
        means = [found.mean(found.rises), found.mean(~found.rises), found.mean()]
        for direction in (1, -1):
            # Reversed, a step from 0 to 1 becomes one from 1 to 0.
            fits = [fit_step(mean if direction > 0 else 1 - mean[::-1]) for mean in means]
            all_of_them = fits[-1]
            if (
                min(fit.decay for fit in fits) >= MIN_DECAY
                and all_of_them.even_error >= MIN_ERROR_RATIO * all_of_them.error
                and _is_one_sided(found, direction)
            ):
                lags.append(Lag(axis, direction, _rounded(all_of_them.decay)))
    return lags[0] if len(lags) == 1 else None


def measure_decay(values: NDArray[Any], labels: NDArray[Any], lag: Lag) -> Lag:
    """The lag with its decay measured over a longer tail; as it is where too few borders allow it.

    `values` are features with the lag, `labels` regions that were found without it.
    """
    found = crossings(*_along(values, labels, lag.axis, lag.direction), *TAIL)
    if len(found.profile) < 2 * MIN_CROSSINGS:
        return lag
    return lag._replace(decay=_rounded(fit_step(found.mean(), TAIL[0]).decay))


def settle_lag(
    values: NDArray[Any], lag: Lag, regions_without: Callable[[Lag], NDArray[Any]]
) -> Lag:
    """The lag with its decay measured again, until it stays, with regions found without the lag.

    ``regions_without(lag)`` finds these regions. `values` are features with the lag.
    """
    for _ in range(MAX_PASSES):
        measured = measure_decay(values, regions_without(lag), lag)
        if abs(measured.decay - lag.decay) < SAME_DECAY:
            break
        lag = measured
    return lag


def join_tails(labels: NDArray[Any], values: NDArray[Any], lag: Lag) -> NDArray[np.int64]:
    """Join regions whose reflections are all a tail of the regions before them to what lies below.

    Parameters
    ----------
    labels : ndarray, (Rx, Ry)
        Regions that were found without the lag.
    values : ndarray, (Rx, Ry, rank)
        Features without the lag. A camera whose signal does not fall exponentially leaves a part
        of its tail in them.
    lag : Lag
        Its axis and direction are used.
    """
    n = int(labels.max(initial=-1)) + 1
    if n < 3:
        return labels
    mean, size = region_means(labels, values)
    rank = values.shape[2]
    power = np.maximum((mean**2).sum(axis=1) - rank / size, 1e-9)
    borders = find_borders(labels)[0]
    near: list[list[int]] = [[] for _ in range(n)]
    for i, j in zip(borders.first.tolist(), borders.second.tolist(), strict=True):
        near[i].append(j)
        near[j].append(i)
    line = _along(values, labels, lag.axis, lag.direction)[1]
    before: list[set[int]] = [set() for _ in range(n)]
    for i, j in np.unique(np.stack([line[:, :-1], line[:, 1:]], axis=-1).reshape(-1, 2), axis=0):
        if i >= 0 and j >= 0:
            before[j].add(int(i))

    target = np.arange(n)
    for k in np.argsort(power, kind="stable").tolist():
        sources = [j for j in sorted(before[k]) if power[j] > power[k]]
        below = [j for j in near[k] if power[j] < power[k]]
        if not sources or not below:
            continue
        share, rest = nnls(mean[sources + below].T, mean[k])
        without = nnls(mean[below].T, mean[k])[1]
        noise = noise_of_sum(rank, size[k], share, size[sources + below])
        left = max(rest**2 - noise, 0.0)
        part = share[: len(sources)].sum()
        explained = left <= MAX_TAIL_REST * power[k] and without**2 - noise > 2 * left
        if explained and 0 < part < MAX_TAIL_SHARE and share[len(sources) :].any():
            held = share[len(sources) :] ** 2 * power[below]
            target[k] = target[below[int(held.argmax())]]
    return consecutive(np.where(labels >= 0, target[labels], -1))


def _rounded(decay: float) -> float:
    """A decay, so that the last digits of a fit change no result."""
    return round(decay, 2)


def _along(
    values: NDArray[Any], labels: NDArray[Any], axis: int, direction: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Maps whose second axis is `axis`, in rising or falling order."""
    if axis == 0:
        values, labels = values.swapaxes(0, 1), labels.T
    return values[:, ::direction], labels[:, ::direction]


def without_lag(values: NDArray[Any], lag: Lag) -> NDArray[Any]:
    """Maps ``(Rx, Ry, ...)`` as they would be without lag, float32.

    The pattern before the first position of a line is not known, so the first position is set to
    the values of the second.
    """
    line = np.moveaxis(values, lag.axis, 0)[:: lag.direction]
    out = np.empty(line.shape, dtype=np.float32)
    out[1:] = (line[1:] - lag.decay * line[:-1]) / (1 - lag.decay)
    out[0] = out[1] if len(out) > 1 else line[0]
    return np.ascontiguousarray(np.moveaxis(out[:: lag.direction], 0, lag.axis))


def undo_lag(features: Features, lag: Lag) -> Features:
    """Features as they would be without lag, with noise of standard deviation 1 again."""
    values = without_lag(features.values, lag)
    gone = features.lost & ~features.bridged
    # What a frame that is lost has left is not known.
    behind = np.zeros_like(gone)
    line, source = (np.moveaxis(x, lag.axis, 0)[:: lag.direction] for x in (behind, gone))
    line[1:] = source[:-1]
    values[behind] = features.values[behind]
    values[gone] = 0
    radial = without_lag(features.radial, lag)
    radial[behind] = features.radial[behind]
    radial[gone] = 0
    noise = noise_of_neighbours(values, gone)
    return features._replace(
        values=(values / noise).astype(np.float32),
        directions=(features.directions * noise).astype(np.float32),
        radial=(radial / noise_of_neighbours(radial, gone)).astype(np.float32),
    )
