"""Every cluster is connected, at every level; a number of clusters is met there, too."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from py4DSTEM import DataCube
from scipy.ndimage import gaussian_filter, label

QUIET = {"progress_bar": False}


def random_scan(seed):
    """Spots that come and go over the scan, smoothly and by steps, and some empty frames."""
    rng = np.random.default_rng(seed)
    scan, detector = rng.integers(9, 20, 2), rng.integers(14, 24, 2)
    data = np.full((*scan, *detector), 0.05)
    u, v = np.indices(detector)
    for _ in range(rng.integers(2, 12)):
        strength = gaussian_filter(rng.normal(size=scan), rng.uniform(1, 4))
        strength = np.maximum(strength, 0) / max(strength.max(), 1e-9)
        if rng.random() < 0.5:
            strength = (strength > 0.3).astype(float)
        place = rng.uniform(2, detector - 2)
        spot = np.exp(-((u - place[0]) ** 2 + (v - place[1]) ** 2) / 2)
        data += strength[..., None, None] * spot * rng.uniform(1, 10)
    data = rng.poisson(data * rng.choice([0.3, 3, 30])).astype(np.uint16)
    if rng.random() < 0.3:
        data[rng.random(scan) < 0.05] = 0
    return DataCube(data)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_clusters_are_connected_at_every_level(seed):
    tree = random_scan(seed).get_cluster_tree(**QUIET)
    bridges = ~tree.mask  # lost frames connect what they part
    for drop in (True, False):
        counts = tree.n_clusters(drop_background=drop)
        for level in (0.1, 0.25, 0.4, 0.8, 1.0, 1.3, 2.0, 5.0, 1e3):
            found = tree.cut(level, drop_background=drop)
            at = np.searchsorted(tree.levels, level, side="right") - 1
            assert at < 0 or counts[at] == found.n_clusters
            for k in range(found.n_clusters):
                own = found.labels == k
                parts = label(own | bridges, np.ones((3, 3)))[0]
                assert len(np.unique(parts[own])) == 1, (level, k)
