"""Slow, obvious versions of the kernels, written from the formulas of the design."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

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
    """What of a pattern is compared, a vector."""
    pattern = fill_missing(pattern)
    if subtract_mean:
        # The mean of a flat pattern is rounded, and what is left of it would be a pattern.
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


def filter_feature(pattern, w, sigma):
    """What of a pattern is correlated, before it is made a unit vector."""
    pattern = fill_missing(pattern)
    if pattern.max() == pattern.min():
        return np.zeros_like(pattern)
    b = gaussian_filter(pattern, sigma, mode="reflect", truncate=4) if sigma > 0 else pattern
    return w * (b - (w * b).sum() / w.sum())


def within(shape, radius, x, y):
    """Positions within reach of one, itself among them."""
    reach = int(radius + 1)
    for dx in range(-reach, reach + 1):
        for dy in range(-reach, reach + 1):
            near = dx**2 + dy**2 <= (radius + 0.5) ** 2
            if near and inside(shape, x + dx, y + dy):
                yield x + dx, y + dy


def correlative_filter(data, sigma, radius, corr_range, edge):
    return correlative_filter_and_weight(data, sigma, radius, corr_range, edge)[0]


def correlative_filter_and_weight(data, sigma, radius, corr_range, edge):
    """The filtered scan, and the sum of the weights of what is in each of its pixels."""
    rx, ry, nu, nv = data.shape
    data = np.asarray(data, dtype=np.float64)
    lo, hi = corr_range
    w = radial_weight((nu, nv), edge)

    def unit(x, y):
        f = filter_feature(data[x, y], w, sigma)
        norm = np.linalg.norm(f)
        return f / norm if norm > 0 else f

    features = [[unit(x, y) for y in range(ry)] for x in range(rx)]
    out = np.zeros(data.shape)
    weight = np.zeros(data.shape)
    for x in range(rx):
        for y in range(ry):
            terms = [(1.0, data[x, y])]
            for other in within((rx, ry), radius, x, y):
                c = (features[x][y] * features[other[0]][other[1]]).sum()
                terms.append((min(max((c - lo) / (hi - lo), 0), 1), data[other]))
            top = np.zeros((nu, nv))
            bottom = weight[x, y]
            for a, pattern in terms:
                present = np.isfinite(pattern)
                top += np.where(present, a * np.where(present, pattern, 0), 0)
                bottom += a * present
            out[x, y] = np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), np.nan)
    return out, weight


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
    out = []
    for k in range(labels.max() + 1):
        patterns = np.array([data[tuple(r)] for r in np.argwhere(labels == k)], dtype=np.float64)
        present = np.isfinite(patterns)
        count = present.sum(axis=0)
        total = np.where(present, patterns, 0).sum(axis=0)
        out.append(np.where(count > 0, total / np.maximum(count, 1), np.nan))
    return np.array(out)


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
