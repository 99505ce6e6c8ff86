"""Camera lag: patterns hold a part of those recorded before them along the fast axis of the scan.

A camera that lags records ``f(y) = a f(y - 1) + (1 - a) u(y)``, where ``u`` are the patterns that
arrive and ``a`` is the share of the pattern before. So, where the probe crosses a border between
two grains, the first grain fades with an exponential tail behind the border, whichever of the two
grains comes first. Two other effects blur a border, and both differ from lag. The probe blurs it
evenly to both sides. Where grains are wedges or overlap, the tail lies on the same grain in both
directions of crossing.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import maximum_filter, minimum_filter
from scipy.optimize import least_squares
from scipy.special import ndtr

from .features import Features, noise_of_neighbours

# The values are tuned on simulated scans (seeds 100 to 115 of the benchmark) and the measured MgO
# scan.
SIDE_POSITIONS = 7
"""Positions on either side of a border, along the axis, that must all lie in one region. With more
of them, longer tails are seen, and fewer borders count."""

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

_MIN_BLUR = 0.25
"""Standard deviation of the blur, scan positions, below which a border is sharp."""

_RUN = np.arange(SIDE_POSITIONS) - SIDE_POSITIONS + 1  # offsets from the last position of a run

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
    def mean(self) -> float:
        """Mean lag, scan positions."""
        return self.decay / (1 - self.decay)

    @property
    def name(self) -> str:
        """Axis and direction: "+Rx", "-Rx", "+Ry" or "-Ry"."""
        return ("+" if self.direction > 0 else "-") + ("Rx", "Ry")[self.axis]

    @classmethod
    def from_name(cls, name: str, mean: float) -> Lag:
        """The lag that has this `name` and `mean`."""
        return cls(("Rx", "Ry").index(name[1:]), 1 if name[0] == "+" else -1, mean / (1 + mean))


class Fit(NamedTuple):
    """A blurred step with a tail, fitted to a profile."""

    decay: float
    error: float
    """Squared error of the fit."""
    even_error: float
    """Squared error of the best fit without a tail."""


def crossings(
    values: NDArray[Any], labels: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Profiles across borders along the second axis, ``(n, 2 SIDE_POSITIONS)``, from about 0 to 1.

    A profile is the features projected on the line from the mean of the region before to that of
    the region after. Also returns the weight of each profile, whether the profile leads into the
    stronger region, and the two regions ``(n, 2)``.
    """
    n = int(labels.max(initial=-1)) + 1
    size = 2 * CORE_DISTANCE + 1
    core = (minimum_filter(labels, size) == maximum_filter(labels, size)) & (labels >= 0)
    count = np.bincount(labels[core], minlength=n)
    mean = np.stack(
        [np.bincount(labels[core], values[core, k], n) for k in range(values.shape[2])], axis=1
    ) / np.maximum(count, 1)[:, None]  # fmt: skip

    # A border lies in front of `y` where two runs of SIDE_POSITIONS equal labels meet.
    x, y = np.nonzero(labels[:, 1:] != labels[:, :-1])
    y += 1
    inside = (y >= SIDE_POSITIONS) & (y + SIDE_POSITIONS <= labels.shape[1])
    x, y = x[inside, None], y[inside, None] + _RUN + SIDE_POSITIONS - 1
    before, after = labels[x, y - SIDE_POSITIONS], labels[x, y]
    clear = (before == before[:, :1]).all(axis=1) & (after == after[:, :1]).all(axis=1)
    pair = np.stack([before[:, -1], after[:, 0]], axis=1)
    clear &= (pair >= 0).all(axis=1)
    clear &= (count[pair] > 0).all(axis=1)
    x, y, pair = x[clear], y[clear], pair[clear]

    first, second = mean[pair[:, 0]], mean[pair[:, 1]]
    across = second - first
    power = (across**2).sum(axis=1)
    line = np.concatenate([y - SIDE_POSITIONS, y], axis=1)
    profile = np.einsum("nyk,nk->ny", values[x, line] - first[:, None], across)
    profile /= np.maximum(power, 1e-9)[:, None]
    weight = power / (1 + CROSSING_SCATTER**2 * power)
    rises = (second**2).sum(axis=1) > (first**2).sum(axis=1)
    return profile, weight, rises, pair


def _blurred_steps(decay: ArrayLike, place: ArrayLike, blur: ArrayLike) -> NDArray[np.float64]:
    """Steps at `place`, blurred by a Gaussian, with a tail; along a new last axis."""
    n = np.arange(_RUN[0] - _LEAD_POSITIONS, SIDE_POSITIONS + 1)
    step = ndtr((n - np.asarray(place)[..., None]) / np.asarray(blur)[..., None])
    for i in range(1, len(n)):
        step[..., i] += np.asarray(decay) * (step[..., i - 1] - step[..., i])
    return step[..., -2 * SIDE_POSITIONS :]


def _normalized(step: NDArray[Any]) -> NDArray[Any]:
    step = step - step.mean(axis=-1, keepdims=True)
    return step / np.maximum(np.linalg.norm(step, axis=-1, keepdims=True), 1e-9)


@cache
def _grid() -> tuple[NDArray[Any], NDArray[Any]]:
    """Where fits start: decays, places and blurs ``(n, 3)``, and their steps."""
    decay = np.arange(0, 0.91, 0.1)
    place = np.arange(-6, 3.01, 0.25)
    blur = _MIN_BLUR * 1.4 ** np.arange(9)
    start = np.stack(np.meshgrid(decay, place, blur, indexing="ij"), axis=-1).reshape(-1, 3)
    return start, _normalized(_blurred_steps(*start.T))


def fit_step(profile: NDArray[Any]) -> Fit:
    """Fit a profile of `crossings`; its levels before and after are free."""
    profile = profile - profile.mean()
    start, steps = _grid()
    squared = (profile**2).sum() - (steps @ profile) ** 2

    def left(parameters: NDArray[Any], decay: float | None = None) -> NDArray[Any]:
        decay = parameters[2] if decay is None else decay
        step = _normalized(_blurred_steps(decay, parameters[0], np.exp(parameters[1])))
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


def find_lag(values: NDArray[Any], labels: NDArray[Any]) -> Lag | None:
    """Lag of the camera, from features and the regions found in them; None unless it is certain.

    A lag has one axis and one direction. Its tails lie behind borders into stronger regions as well
    as behind borders into weaker ones. Where noise is so strong that the borders follow it (in
    simulations, with 100 electrons a pattern), the profiles jump at the border and no lag is found.
    """
    found = []
    for axis in (0, 1):
        if axis == 0:
            profile, weight, rises, _ = crossings(values.swapaxes(0, 1), labels.T)
        else:
            profile, weight, rises, _ = crossings(values, labels)
        if min(rises.sum(), (~rises).sum()) < MIN_CROSSINGS:
            continue
        means = [weight[part] @ profile[part] / weight[part].sum()
                 for part in (rises, ~rises, np.ones_like(rises))]  # fmt: skip
        for direction in (1, -1):
            # Reversed, a step from 0 to 1 becomes one from 1 to 0.
            fits = [fit_step(mean if direction > 0 else 1 - mean[::-1]) for mean in means]
            all_of_them = fits[-1]
            if (
                min(fit.decay for fit in fits) >= MIN_DECAY
                and all_of_them.even_error >= MIN_ERROR_RATIO * all_of_them.error
            ):
                # Rounded, so that the last digits of a fit change no result.
                found.append(Lag(axis, direction, round(all_of_them.decay, 2)))
    return found[0] if len(found) == 1 else None


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
    noise = noise_of_neighbours(values)
    return features._replace(
        values=(values / noise).astype(np.float32),
        directions=(features.directions * noise).astype(np.float32),
        brightness=without_lag(features.brightness, lag) / np.float32(np.median(noise)),
    )
