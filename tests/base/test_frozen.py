"""Results cannot be written to, also those that were copied or came out of a pickle."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest

from py4dstem_clustering import (
    CrossValidation,
    GainedDisks,
    Mixture,
    simulate_scan,
    simulate_series,
)
from py4dstem_clustering.metrics import panoptic_quality

QUIET = {"progress_bar": False}


def results():
    scan = simulate_scan((8, 10), (32, 30), n_grains=1, electrons=20_000, speckle=0, seed=1)
    yield scan
    yield scan.datacube.get_similarity(**QUIET)
    for threshold in (None, 0.95):
        clusters = scan.datacube.cluster(threshold=threshold, **QUIET)
        yield clusters
    yield clusters.get_mixture(scan.datacube, **QUIET)
    yield scan.datacube.get_cluster_tree(**QUIET)
    yield panoptic_quality(clusters, scan.labels)
    movie = simulate_series((16, 14), (32, 30), n_frames=2, n_particles=2, seed=1)
    yield movie
    yield CrossValidation({"raw": np.zeros((2, 2))}, {}, {"raw": (1, 0.0, 0.0)})
    yield GainedDisks((np.ones(3), None), ([np.ones(2), np.ones(1)], None))


RESULTS = list(results())


def arrays(value):
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from arrays(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from arrays(item)
    elif dataclasses.is_dataclass(value):
        for part in dataclasses.fields(value):
            yield from arrays(getattr(value, part.name))


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_arrays_stay_read_only(result):
    known = list(arrays(result))
    assert known
    for made in (result, copy.copy(result), pickle.loads(pickle.dumps(result))):
        found = list(arrays(made))
        assert not any(array.flags.writeable for array in found)
        for array, expected in zip(found, known, strict=True):
            np.testing.assert_array_equal(array, expected)


def test_arrays_are_copies():
    labels = np.zeros((2, 3, 4), int)
    mixture = Mixture(labels, np.ones((2, 3, 4)))
    labels[:] = 7
    assert not mixture.labels.any()
