"""Slow, obvious versions of the kernels, written from the formulas of the design.

The benchmark of speed compares the kernels with the loops of filter and averages in this file.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from py4dstem_clustering.benchmarks import slow

DIRECTIONS = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (1, 1), (1, 0), (1, -1), (0, 1)]


def fill_missing(pattern):
    """A missing pixel counts as the mean of its pattern."""
    pattern = np.array(pattern, dtype=np.float64)
    present = np.isfinite(pattern)
    if present.any():
        pattern[~present] = pattern[present].mean()
    else:
        pattern[:] = 0
    return pattern


def inside(shape, x, y):
    return 0 <= x < shape[0] and 0 <= y < shape[1]


def similarity_feature(pattern, q_mask=None, sigma=0, subtract_mean=True):
    """The vector that is compared with that of a neighbour."""
    pattern = fill_missing(pattern)
    if subtract_mean:
        # The mean of a flat pattern is rounded, so that the difference would not be 0.
        flat = pattern.max() == pattern.min()
        pattern = pattern * 0 if flat else pattern - pattern.mean()
    if sigma > 0:
        pattern = gaussian_filter(pattern, sigma, mode="reflect", truncate=4)
    return pattern.ravel() if q_mask is None else pattern[q_mask]


def similarity(data, q_mask=None, sigma=0, subtract_mean=True):
    rx, ry = data.shape[:2]
    options = q_mask, sigma, subtract_mean
    features = [[similarity_feature(data[x, y], *options) for y in range(ry)] for x in range(rx)]
    out = np.full((rx, ry, 8), np.nan)
    for x in range(rx):
        for y in range(ry):
            for k, (dx, dy) in enumerate(DIRECTIONS):
                if inside((rx, ry), x + dx, y + dy):
                    a, b = features[x][y], features[x + dx][y + dy]
                    norm = np.linalg.norm(a) * np.linalg.norm(b)
                    out[x, y, k] = a @ b / norm if norm > 0 else 0
    return out


def similarity_mean(s):
    out = np.full(s.shape[:2], np.nan)
    for x in range(s.shape[0]):
        for y in range(s.shape[1]):
            values = [v for v in s[x, y] if not np.isnan(v)]
            if values:
                out[x, y] = np.mean(values)
    return out


def radial_weight(detector, edge):
    nu, nv = detector
    u, v = np.meshgrid(np.arange(nu), np.arange(nv), indexing="ij")
    w = ((u - u.mean()) ** 2 + (v - v.mean()) ** 2) / (nu * nv)
    for i in range(nu):
        for j in range(nv):
            if min(i, j, nu - 1 - i, nv - 1 - j) < edge:
                w[i, j] = 0
    return w


def filter_feature(pattern, weight, sigma):
    """The image that is correlated with that of a neighbour, before it is divided by its norm."""
    return slow.filter_feature(fill_missing(pattern), weight, sigma)


def correlative_filter(data, sigma, radius, corr_range, edge):
    return correlative_filter_and_weight(data, sigma, radius, corr_range, edge)[0]


def correlative_filter_and_weight(data, sigma, radius, corr_range, edge):
    """The filtered scan, and for each of its pixels the sum of the weights of the pixels used.

    It is a weighted mean of the pixels that are present: the weighted sum of their values, divided
    by the weighted sum of ones.
    """
    data = np.asarray(data, dtype=np.float64)
    weight = radial_weight(data.shape[2:], edge)
    places = list(np.ndindex(data.shape[:2]))
    features = {place: slow.unit(filter_feature(data[place], weight, sigma)) for place in places}
    both = values_and_ones(data)
    options = {"radius": radius, "corr_range": corr_range}
    sums = [slow.filter_sums(both, place, features, **options)[0] for place in places]
    top, bottom = np.moveaxis(np.reshape(sums, (*data.shape[:2], 2, *data.shape[2:])), 2, 0)
    return ratio(top, bottom), bottom


def values_and_ones(data):
    """Each pattern and an image of ones ``(Rx, Ry, 2, Qx, Qy)``; 0 where a pixel is missing."""
    present = np.isfinite(data)
    return np.stack([np.where(present, data, 0), present.astype(np.float64)], axis=2)


def ratio(top, bottom):
    return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), np.nan)


def growth(s, mean, mask, threshold, min_size):
    """The paper's growth, one seed and one neighbour at a time."""
    rx, ry = mask.shape
    assigned = ~mask
    clusters = []
    while not assigned.all():
        best = None
        for x in range(rx):
            for y in range(ry):
                value = -np.inf if np.isnan(mean[x, y]) else mean[x, y]
                if not assigned[x, y] and (best is None or value > best[0]):
                    best = (value, (x, y))
        seed = best[1]
        assigned[seed] = True
        members, to_visit = [seed], [seed]
        while to_visit:
            x, y = to_visit.pop(0)
            for k, (dx, dy) in enumerate(DIRECTIONS):
                n = (x + dx, y + dy)
                if inside((rx, ry), *n) and not assigned[n] and float(s[x, y, k]) >= threshold:
                    assigned[n] = True
                    members.append(n)
                    to_visit.append(n)
        clusters.append((seed, members))
    labels = np.full((rx, ry), -1)
    seeds = []
    for seed, members in clusters:
        if len(members) >= min_size:
            for position in members:
                labels[position] = len(seeds)
            seeds.append(seed)
    return labels, np.array(seeds).reshape(-1, 2)


def averages(data, labels):
    sums = slow.label_sums(values_and_ones(np.asarray(data, dtype=np.float64)), labels)
    return ratio(sums[:, 0], sums[:, 1])


def symmetric(forward):
    """A similarity from the values of its forward half, NaN outside the scan."""
    rx, ry, _ = forward.shape
    s = np.full((rx, ry, 8), np.nan, np.float32)
    for x, y, i in np.ndindex(rx, ry, 4):
        dx, dy = DIRECTIONS[4 + i]
        if inside((rx, ry), x + dx, y + dy):
            s[x, y, 4 + i] = s[x + dx, y + dy, i] = forward[x, y, i]
    return s


def corrected_similarity(data, gain, offset, q_mask, sigma):
    plain = similarity(data, q_mask, sigma)
    factor = np.ones(data.shape[:2])
    for r in np.ndindex(data.shape[:2]):
        pattern = fill_missing(data[r])
        noise = np.where(np.isfinite(data[r]), gain * (pattern - offset), 0)
        power = 0.0
        for q in np.ndindex(noise.shape):
            pulse = np.zeros(noise.shape)
            pulse[q] = 1
            power += noise[q] * (gaussian_filter(pulse, sigma, truncate=4)[q_mask] ** 2).sum()
        feature = gaussian_filter(pattern - pattern.mean(), sigma, truncate=4)[q_mask]
        if (feature**2).sum() > 0:
            factor[r] = 1 / np.sqrt(1 - np.clip(power / (feature**2).sum(), 0, 0.7))
    for x, y, k in np.ndindex(plain.shape):
        dx, dy = DIRECTIONS[k]
        if inside(factor.shape, x + dx, y + dy):
            plain[x, y, k] *= factor[x, y] * factor[x + dx, y + dy]
    return np.clip(plain, -1, 1)
