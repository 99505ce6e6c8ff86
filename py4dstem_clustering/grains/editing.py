"""Join, remove and renumber clusters that are given as arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def renumber(
    labels: NDArray[np.int32],
    seeds: NDArray[np.int64],
    similarity_mean: NDArray[np.float32],
    background: Sequence[int],
    number: NDArray[np.int32],
) -> tuple[NDArray[np.int32], NDArray[np.int64], tuple[int, ...]]:
    """Labels, seeds and background when cluster ``k`` becomes cluster ``number[k]``.

    Clusters with the same number become one cluster, with the seed of the highest mean similarity.
    This cluster is background if all of its parts are. A number of -1 removes a cluster.
    """
    height = np.nan_to_num(similarity_mean[tuple(seeds.T)], nan=-np.inf)
    new_seeds = np.zeros((number.max(initial=-1) + 1, 2), dtype=np.int64)
    for k in np.argsort(height, kind="stable"):  # the highest seed is written last
        if number[k] >= 0:
            new_seeds[number[k]] = seeds[k]
    crystalline = np.setdiff1d(np.arange(len(seeds)), background)
    still = np.setdiff1d(number[list(background)], [*number[crystalline], -1])
    return np.append(number, -1)[labels], new_seeds, tuple(still.tolist())
