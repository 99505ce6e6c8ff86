"""Any shape, type, layout, scale, gap and mask: what the formulas say, or a clear error."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
from functools import lru_cache

import dask.array as da
import h5py
import numpy as np
import pytest
import reference
from conftest import STRICT, make_scan
from hypothesis import event, given, settings
from hypothesis import strategies as st
from py4DSTEM import DataCube

from py4dstem_clustering import Clusters, simulate_scan
from py4dstem_clustering.benchmarks import slow
from py4dstem_clustering.kernels.virtual import virtual_image_core

QUIET = {"progress_bar": False, "n_jobs": 2}
FILTER = {"sigma": 1.2, "radius": 1, "corr_range": (0.3, 0.9), "edge": 1}

INTEGERS = ("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")
FLOATS = ("f2", "f4", "f8", "g")

# Rounding of float32, in which patterns are compared.
ROUNDING = float(np.finfo(np.float32).eps)

CASES = int(os.environ.get("NUMBERS_CASES", "200"))

SLOW = pytest.mark.slow


def holds(share, **strategies):
    """Test a property with this share of all cases, marked slow, and with a tenth of them."""

    def decorate(check):
        def test(n_cases):
            settings(max_examples=n_cases, deadline=None)(given(**strategies)(check))()

        n_cases = max(1, int(share * CASES))
        quick_and_all = [max(1, n_cases // 10), pytest.param(n_cases, marks=SLOW)]
        return pytest.mark.parametrize("n_cases", quick_and_all)(test)

    return decorate


def some_quick(cases, *quick):
    """Cases of a test: those not named are marked slow."""
    return [case if case in quick else pytest.param(case, marks=SLOW) for case in cases]


# --- what is tried ----------------------------------------------------------------------------


def opened(data):
    """A dataset of HDF5 that is nowhere on disk."""
    file = h5py.File(io.BytesIO(), "w")
    return file.create_dataset("d", data=data, chunks=(1, *data.shape[1:]))


def unaligned(data):
    packed = np.zeros(data.shape, [("before", "u1"), ("value", data.dtype)])
    packed["value"] = data
    return packed["value"]


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "every second": lambda a: np.repeat(np.repeat(a, 2, axis=0), 2, axis=3)[::2, :, :, ::2],
    "backwards": lambda a: a[::-1, ::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1, ::-1],
    "transposed": lambda a: a.transpose(3, 1, 0, 2).copy().transpose(2, 1, 3, 0),
    "read-only": lambda a: np.broadcast_to(a, a.shape),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "unaligned": unaligned,
    "HDF5": opened,
    "dask": lambda a: da.from_array(a, chunks=(2, 3, 5, -1)),
    "masked array": np.ma.masked_invalid,
}


@st.composite
def scans(draw, largest=(9, 7, 12, 10)):
    """Counts of three grains, of some type and scale, with gaps, dead and flat patterns."""
    shape = tuple(draw(st.integers(1, n)) for n in largest)
    dtype = np.dtype(draw(st.sampled_from((*INTEGERS, *FLOATS))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x, y = np.indices(shape[:2])
    means = rng.gamma(0.5, 20, size=(3, *shape[2:]))
    values = rng.poisson(means[((2 * x + 3 * y) // 6) % 3]).astype(float)
    if draw(st.booleans()) and dtype.kind not in "bu":
        values -= draw(st.sampled_from([1, 20, 1000]))
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        if draw(st.booleans()):  # up to the ends of its range
            values *= np.nextafter(float(limits.max), 0) / max(np.abs(values).max(), 1)
        data = np.clip(values, limits.min, np.nextafter(float(limits.max), 0)).astype(dtype)
    else:
        powers = {"b": (0, 0), "f": (-30, 30)}[dtype.kind] if dtype != "f2" else (-2, 1)
        data = (values * 10.0 ** draw(st.integers(*powers))).astype(dtype)

    def some(of, share=0.2):
        return rng.random(of) < share

    spoils = draw(st.sets(st.sampled_from(["zero", "flat", "missing", "infinite", "lost", "dead"])))
    if "zero" in spoils:
        data[some(shape[:2])] = 0
    if "flat" in spoils:
        data[some(shape[:2])] = data.flat[0]
    if dtype.kind != "f":
        return data
    if "missing" in spoils:
        data[some(shape, 0.05)] = np.nan
    if "infinite" in spoils:
        data[some(shape, 0.03)] = np.inf
        data[some(shape, 0.03)] = -np.inf
    if "lost" in spoils:
        data[some(shape[:2])] = np.nan
    if "dead" in spoils:
        data[:, :, some(shape[2:])] = np.nan
    return data


@st.composite
def masks(draw, shape):
    """No mask, or one that selects all elements, a single one or some."""
    mask = np.zeros(shape, bool)
    kind = draw(st.sampled_from(["none", "all", "one", "some"]))
    if kind == "none":
        return None
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind != "one":
        mask |= rng.random(shape) < (0.5 if kind == "some" else 2)
    mask.flat[rng.integers(mask.size)] = True
    return mask


def doubt(data, feature):
    """Rounding of each feature beside its norm, (Rx, Ry): what float32 leaves of a cosine.

    Where a pattern is nearly flat, or the mask leaves nearly nothing, a feature is a small
    difference of large numbers; where these are equal, as by symmetry, it is nothing but rounding.
    """
    out = np.zeros(data.shape[:2])
    for r in np.ndindex(out.shape):
        norm = np.linalg.norm(feature(data[r]))
        pattern = reference.fill_missing(data[r])
        if norm > 0:
            out[r] = ROUNDING * np.linalg.norm(pattern) / norm
        elif np.ptp(pattern) > 0:
            out[r] = 1e9
    return out


def pair_tolerance(doubts):
    """How far cosines may be off, for all directions."""
    out = np.zeros((*doubts.shape, 8))
    for x, y, k in np.ndindex(out.shape):
        other = (x + reference.DIRECTIONS[k][0], y + reference.DIRECTIONS[k][1])
        if reference.inside(doubts.shape, *other):
            out[x, y, k] = 2e-6 + 8 * (doubts[x, y] + doubts[other])
    return out


def assert_within(found, expected, tolerance):
    """Equal within a tolerance of each element, and missing at the same places."""
    assert found.shape == expected.shape
    known = np.isfinite(tolerance)
    np.testing.assert_array_equal(np.isnan(found[known]), np.isnan(expected[known]))
    off = np.nan_to_num(np.abs(found - expected) - tolerance, nan=-1, neginf=-1)
    worst = np.unravel_index(off.argmax(), off.shape)
    assert off[worst] <= 0, f"{found[worst]} at {worst}: {expected[worst]} ± {tolerance[worst]}"


def assert_says(error, rule):
    event("refused: " + type(error).__name__)
    assert re.search(rule, str(error)), error


# --- against slow loops -----------------------------------------------------------------------


@holds(
    0.3, data=st.data(), scan=scans(), sigma=st.sampled_from([0, 0.4, 1.3, 30]), mean=st.booleans()
)
def test_similarity(data, scan, sigma, mean):
    q_mask = data.draw(masks(scan.shape[2:]))
    options = {"q_mask": q_mask, "sigma": sigma, "subtract_mean": mean}
    found = DataCube(scan).get_similarity(**options, **QUIET)
    doubts = doubt(scan, lambda pattern: reference.similarity_feature(pattern, **options))
    assert_within(found.data, reference.similarity(scan, **options), pair_tolerance(doubts))
    np.testing.assert_allclose(found.mean, reference.similarity_mean(found.data), atol=1e-6)


@holds(
    0.3,
    scan=scans(largest=(6, 5, 12, 10)),
    sigma=st.sampled_from([0, 0.4, 1.3, 3]),
    radius=st.sampled_from([0, 0.5, 1, 2.3, 9]),
    corr_range=st.sampled_from([(0.85, 0.95), (0.3, 0.9), (-1, 1), (-0.2, 0.1)]),
    edge=st.sampled_from([0, 0, 1, 2, 4]),
)
def test_filter(scan, sigma, radius, corr_range, edge):
    options = {"sigma": sigma, "radius": radius, "corr_range": corr_range, "edge": edge}
    inner = np.array(scan.shape[2:]) - 2 * edge
    if inner.min() < 1 or inner.prod() < 2:
        with pytest.raises(ValueError, match=rf"edge={edge} leaves no pixel of .*must be below"):
            DataCube(scan).filter_correlative(**options, **QUIET)
        event("refused: ValueError")
        return
    found = DataCube(scan).filter_correlative(**options, **QUIET).data
    weight = reference.radial_weight(scan.shape[2:], edge)
    doubts = doubt(scan, lambda pattern: reference.filter_feature(pattern, weight, sigma))
    doubts *= weight.max()
    expected, total = reference.correlative_filter_and_weight(scan, **options)
    high = np.where(np.isfinite(scan), np.abs(scan.astype(float)), 0).max(axis=(0, 1))
    tolerance = np.zeros(scan.shape)
    for x, y in np.ndindex(scan.shape[:2]):
        near = list(slow.neighbours(scan.shape[:2], (x, y), radius))
        # How far the weights of all neighbours may be off, together.
        off = [2e-6 + 8 * (doubts[x, y] + doubts[r]) for r in near]
        off = np.minimum(np.array(off) / np.ptp(corr_range), 1).sum()
        rest = total[x, y] - off
        share = np.divide(off, rest, out=np.full(rest.shape, np.inf), where=rest > off)
        share[~np.isfinite([scan[r] for r in near]).any(axis=0)] = 0  # missing for sure
        tolerance[x, y] = 8 * ROUNDING * high + 2 * share * np.maximum(high, 1e-45)
    assert_within(found, expected, tolerance)


@holds(0.2, data=st.data(), scan=scans())
def test_averages(data, scan):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(-1, data.draw(st.sampled_from([1, 2, 5])), scan.shape[:2])
    labels.flat[0] = max(labels.flat[0], 0)
    clusters = clusters_of(labels)
    cube = DataCube(scan)
    found = cube.get_clustered_datacube(clusters, **QUIET).data[:, 0]
    expected = reference.averages(scan, clusters.labels)
    finite = np.where(np.isfinite(scan), np.abs(scan.astype(float)), 0).max(axis=(0, 1))
    # Sums are in float64: what cancels leaves its rounding, then the mean is rounded once.
    tolerance = ROUNDING * np.abs(np.nan_to_num(expected)) + 1e-14 * finite + 1e-45
    assert_within(found, expected, tolerance)


def clusters_of(labels):
    number = np.unique(np.append(labels, -1), return_inverse=True)[1][:-1].reshape(labels.shape) - 1
    seeds = [np.argwhere(number == k)[0] for k in range(number.max() + 1)]
    return Clusters(number, seeds, np.zeros(labels.shape), {})


NO_THRESHOLD = "r_mask='minimum' finds no threshold .*give a number"
R_MASKS = st.one_of(
    st.none(),
    st.floats(-1, 1),
    st.sampled_from(["triangle", "otsu", "mean", "li", "isodata", "yen", "minimum"]),
)


@holds(0.3, data=st.data(), scan=scans(), threshold=st.floats(-1, 1), min_size=st.integers(1, 5))
def test_growth(data, scan, threshold, min_size):
    cube = DataCube(scan)
    r_mask = data.draw(st.one_of(R_MASKS, masks(scan.shape[:2])))
    q_mask = data.draw(masks(scan.shape[2:]))
    similarity = cube.get_similarity(q_mask=q_mask, **QUIET)
    options = {"threshold": threshold, "min_size": min_size, "r_mask": r_mask}
    try:
        clusters = cube.cluster(similarity=similarity, **options, **QUIET)
    except ValueError as error:
        assert_says(error, NO_THRESHOLD)
        return
    tree = cube.get_cluster_tree(method="grow", q_mask=q_mask, r_mask=r_mask, **QUIET)
    mask = r_mask if isinstance(r_mask, np.ndarray) else tree.mask
    # A frame that is alike to none of its neighbours, as one without contrast is, is lost.
    known = ~np.isnan(similarity.data)
    alike = (known & (similarity.data != 0)).any(axis=2)
    if alike.any():
        mask = mask & (alike | ~known.any(axis=2))
    labels, seeds = reference.growth(similarity.data, similarity.mean, mask, threshold, min_size)
    np.testing.assert_array_equal(clusters.labels, labels)
    np.testing.assert_array_equal(clusters.seeds, seeds)
    np.testing.assert_array_equal(tree.cut(threshold, min_size=min_size).labels, labels)


@holds(0.2, scan=scans(), seed=st.integers(0, 99))
def test_virtual_image(scan, seed):
    weight = np.random.default_rng(seed).random(scan.shape[2:]) > 0.5
    found = virtual_image_core(scan, weight, n_jobs=2, report=lambda n: None)
    finite = np.where(np.isfinite(scan), scan.astype(float), 0)
    # Types that hold more than float32 are summed in float64.
    wide = scan.dtype.itemsize > 2 and scan.dtype != np.float32
    tolerance = (1e-13 if wide else 4 * ROUNDING) * (np.abs(finite) * weight).sum(axis=(2, 3))
    assert_within(found, (finite * weight).sum(axis=(2, 3)), tolerance)


@holds(0.3, data=st.data(), scan=scans())
def test_merging(data, scan):
    """Labels are valid for any scan, and so are all results that are made from them."""
    r_mask = data.draw(st.one_of(R_MASKS, masks(scan.shape[:2])))
    options = {
        "r_mask": r_mask,
        "q_mask": data.draw(masks(scan.shape[2:])),
        "min_size": data.draw(st.integers(1, 4)),
        "drop_background": data.draw(st.booleans()),
        "rank": data.draw(st.sampled_from(["auto", 1, 3, 60])),
    }
    cube = DataCube(scan)
    try:
        clusters = cube.cluster(**options, **QUIET)
    except ValueError as error:
        assert_says(error, NO_THRESHOLD)
        return
    labels, n = clusters.labels, clusters.n_clusters
    sizes = np.bincount(labels[labels >= 0], minlength=n)
    assert (sizes >= options["min_size"]).all()
    assert (np.diff(sizes) <= 0).all()
    assert len(sizes) == n
    if isinstance(r_mask, np.ndarray):
        assert (labels[~r_mask] == -1).all()
    again = cube.cluster(**options, progress_bar=False, n_jobs=1, max_memory="1 GB")
    np.testing.assert_array_equal(again.labels, labels)
    mixture = clusters.get_mixture(cube, **QUIET)
    assert (mixture.shares >= 0).all()
    assert (mixture.shares.sum(axis=2) <= 1 + 1e-5).all()
    if n:
        found = cube.get_clustered_datacube(clusters, min_purity=0.5, **QUIET)
        assert found.data.shape == (n, 1, *scan.shape[2:])


@holds(
    0.1,
    scan=scans(largest=(3, 4, 6, 5)),
    sigma=st.sampled_from([0.4, 1.3]),
    gain=st.floats(0.01, 100),
    offset=st.floats(-2, 2),
    seed=st.integers(0, 99),
)
def test_similarity_without_noise(scan, sigma, gain, offset, seed):
    size = np.abs(scan.astype(float))
    size = max(np.max(size, where=np.isfinite(size), initial=0), 1e-35)
    gain, offset = gain * size, offset * size
    q_mask = np.random.default_rng(seed).random(scan.shape[2:]) < 0.8
    q_mask.flat[seed % q_mask.size] = True
    options = {"q_mask": q_mask, "sigma": sigma, "noise_correct": True}
    found = DataCube(scan).get_similarity(**options, gain=gain, offset=offset, **QUIET)
    expected = reference.corrected_similarity(scan, gain, offset, q_mask, sigma)
    doubts = doubt(scan, lambda pattern: reference.similarity_feature(pattern, q_mask, sigma))
    assert_within(found.data, expected, 4 * pair_tolerance(doubts))


@holds(0.1, scan=scans(largest=(6, 5, 12, 10)), edge=st.integers(0, 2))
def test_what_is_measured_first(scan, edge):
    """Range and gain of any scan: used as they are reported, or a clear error."""
    cube = DataCube(scan)
    inner = np.array(scan.shape[2:]) - 2 * edge
    if inner.min() >= 1 and inner.prod() >= 2:
        options = {"sigma": 0, "radius": 1, "edge": edge, **QUIET}
        found = cube.filter_correlative(corr_range="auto", **options)
        corr_range = found.metadata["filter_correlative"]["corr_range"]
        again = cube.filter_correlative(corr_range=corr_range, **options)
        np.testing.assert_array_equal(found.data, again.data)
    try:
        found = cube.get_similarity(noise_correct=True, **QUIET)
    except ValueError as error:
        assert_says(error, r"cannot be measured in .* give (it|the gain)")
        return
    gain, offset = found.settings["gain"], found.settings["offset"]
    assert gain > 0
    again = cube.get_similarity(noise_correct=True, gain=gain, offset=offset, **QUIET)
    np.testing.assert_array_equal(found.data, again.data)


@pytest.mark.parametrize(("detector", "edge"), [((1, 9), 0), ((9, 1), 0), ((11, 12), 5)])
def test_filter_of_a_line_of_pixels(detector, edge):
    """With blur, where the edge leaves one pixel along an axis."""
    scan = make_scan((3, 4), detector)
    options = {**FILTER, "edge": edge}
    found = DataCube(scan).filter_correlative(**options, **QUIET).data
    np.testing.assert_allclose(found, reference.correlative_filter(scan, **options), rtol=1e-5)


def test_average_of_both_infinities():
    data = make_scan().astype(np.float32)
    data[2, 3, 4, 5], data[2, 4, 4, 5] = np.inf, -np.inf
    found = DataCube(data).get_clustered_datacube(clusters_of(np.zeros((7, 9))), **QUIET).data
    np.testing.assert_allclose(found[:, 0], reference.averages(data, np.zeros((7, 9), int)), 1e-6)


# --- what does not matter ---------------------------------------------------------------------


def everything(data, scale=1.0):
    """What the methods make of a scan, numbers with a unit in units of `scale`."""
    cube = DataCube(data)
    tree = cube.get_cluster_tree(**QUIET)
    grown = cube.cluster(threshold=0.8, **QUIET)
    merged = cube.cluster(drop_background=False, **QUIET)
    weight = np.indices(data.shape[2:]).sum(axis=0) % 3 > 0
    image = virtual_image_core(data, weight, n_jobs=2, report=lambda n: None)
    return {
        "similarity": cube.get_similarity(sigma=0.7, **QUIET).data,
        "filtered": cube.filter_correlative(**FILTER, **QUIET).data / scale,
        "averages": cube.get_clustered_datacube(grown, **QUIET).data / scale,
        "image": image / scale,
        "features": np.abs(tree.features),  # each but for its sign
        "noise": tree.settings["noise"] / scale,
        "grown": grown.labels,
        "merged": merged.labels,
        "purity": merged.get_mixture(cube, **QUIET).purity,
    }


@pytest.mark.parametrize("layout", some_quick(LAYOUTS, "Fortran", "HDF5", "masked array"))
@given(scan=scans(largest=(5, 6, 12, 10)))
@settings(max_examples=max(1, int(0.02 * CASES)), deadline=None)
def test_layouts(layout, scan):
    """The same bits for the same values, wherever they lie."""
    if min(scan.shape[2:]) < 4:
        scan = np.tile(scan, (1, 1, 4, 4))  # for the edge
    if layout == "HDF5" and scan.dtype == "g":
        scan = scan.astype(float)
    expected, found = everything(scan), everything(LAYOUTS[layout](scan))
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


@lru_cache
def grains():
    """A simulated scan whose grains are clear; counts up to 59."""
    return simulate_scan((16, 14), (32, 30), n_grains=3, electrons=1000, seed=3).datacube.data


@lru_cache
def expected_of_grains():
    return everything(grains())


def assert_same(found, *, tolerance=1e-5, leave_out=()):
    for key, expected in expected_of_grains().items():
        if key in leave_out:
            continue
        if key in ("grown", "merged"):
            np.testing.assert_array_equal(found[key], expected, err_msg=key)
            continue
        # Features are vectors of a covariance, purity a fit to those.
        own = 100 * tolerance if key in ("features", "purity") else tolerance
        limit = own * np.nanmax(np.abs(expected))
        np.testing.assert_allclose(found[key], expected, rtol=0, atol=limit, err_msg=key)


@pytest.mark.parametrize("dtype", some_quick((*INTEGERS[1:], *FLOATS), "u1", "f8"))
def test_types(dtype):
    assert_same(everything(grains().astype(dtype)))


@pytest.mark.parametrize("dtype", some_quick(["f4", "f8"], "f4"))
@pytest.mark.parametrize(
    "scale", some_quick([1e-30, 1e-9, 1e-6, 1e-3, 1e6, 1e9, 1e30], 1e-30, 1e30)
)
def test_scales(scale, dtype):
    """Also where squares, or the squares of the largest pixels alone, are out of float32."""
    assert_same(everything((grains() * scale).astype(dtype), scale))


@pytest.mark.parametrize(
    "level",
    some_quick(
        [("u2", 60000), ("i2", -30000), ("f4", 1e4), ("f4", -1e5), ("u4", 1e9), ("f8", 1e9)],
        ("i2", -30000),
        ("f8", 1e9),
    ),
)
def test_offsets(level):
    """A dark level far from 0 changes nothing but rounding, which is that of the level."""
    dtype, offset = level
    found = everything(grains().astype(dtype) + np.dtype(dtype).type(offset))
    for key in ("filtered", "averages"):
        expected = expected_of_grains()[key]
        assert np.abs(found[key] - offset - expected).max() < 1e-5 * 59 + 4 * ROUNDING * abs(offset)
    assert_same(found, tolerance=1e-4, leave_out=("filtered", "averages", "image"))


@pytest.mark.parametrize("residue", some_quick([1e-8, 1e-12, 1e-30], 1e-12))
def test_what_rounding_leaves_of_nothing_is_nothing(residue):
    """Positions that hold only rounding errors count as empty, not as strong as grains."""
    empty = np.zeros((16, 14), bool)
    empty[:, :3] = True
    noise = np.random.default_rng(0).normal(size=grains().shape)
    data = np.where(empty[..., None, None], residue * noise, grains().astype(float))
    zeros = np.where(empty[..., None, None], 0, grains().astype(float))
    found, expected = (DataCube(values).cluster(**QUIET) for values in (data, zeros))
    # Frames of zeros are lost, and do not count; rounding errors are a background.
    assert (found.labels[empty] == -1).all()
    assert (expected.labels[empty] == -1).all()
    assert (found.labels != expected.labels).mean() < 0.01
    assert found.settings["noise"] < 1.01 * expected.settings["noise"]


@pytest.mark.parametrize(
    "turn", some_quick(["transposed", "rows reversed", "columns reversed"], "transposed")
)
def test_turned_scans(turn):
    """Labels turn with the scan, except for their numbers."""
    turned = {
        "transposed": lambda a: a.swapaxes(0, 1),
        "rows reversed": lambda a: a[::-1],
        "columns reversed": lambda a: a[:, ::-1],
    }[turn]
    found, expected = everything(turned(grains())), expected_of_grains()
    limit = 1e-5 * grains().max()
    np.testing.assert_allclose(found["filtered"], turned(expected["filtered"]), atol=limit)
    np.testing.assert_allclose(found["image"], turned(expected["image"]), rtol=1e-6)
    for key in ("grown", "merged"):
        pairs = np.stack([found[key].ravel(), turned(expected[key]).ravel()])
        assert len(np.unique(pairs, axis=1).T) == expected[key].max() + 1 + (-1 in expected[key])


def test_two_threads_on_one_cube():
    cube, wrong = DataCube(grains()), []
    clusters = cube.cluster(**QUIET)

    def work(name):
        try:
            for _ in range(4):
                filtered = cube.filter_correlative(**FILTER, **QUIET)
                similarity = cube.get_similarity(sigma=0.7, name=f"{name}_similarity", **QUIET)
                found = cube.cluster(drop_background=False, name=name, **QUIET)
                cube.get_clustered_datacube(clusters, **QUIET)
                np.testing.assert_array_equal(filtered.data, expected_of_grains()["filtered"])
                np.testing.assert_array_equal(similarity, expected_of_grains()["similarity"])
                np.testing.assert_array_equal(found.labels, expected_of_grains()["merged"])
        except BaseException as error:
            wrong.append(error)

    expected_of_grains()
    threads = [threading.Thread(target=work, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert set(cube.treekeys) >= {"first", "second", "first_similarity", "second_similarity"}


# --- what is refused --------------------------------------------------------------------------


METHODS = {
    "filter": lambda cube, **o: cube.filter_correlative(**FILTER, **o),
    "similarity": lambda cube, **o: cube.get_similarity(**o),
    "merge": lambda cube, **o: cube.cluster(**o),
    "grow": lambda cube, **o: cube.cluster(threshold=0.9, **o),
    "averages": lambda cube, **o: cube.get_clustered_datacube(
        clusters_of(np.zeros((7, 9), int)), **o
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["c8", "c16", "O", "S3", "U3", "M8[s]", "m8[s]", "f4,f4", "V4"])
def test_no_numbers(method, dtype):
    data = np.zeros((7, 9, 14, 11), dtype)
    with pytest.raises(TypeError, match=r"data of type .* must be integer or .* point; take the"):
        METHODS[method](DataCube(data), **QUIET)


SHAPE, TYPE = "must have the shape .*, True where", "must be boolean.* use mask > 0"
NO_MASKS = {
    **{kind: (lambda a, kind=kind: a.astype(kind), TYPE) for kind in ("i4", "u1", "f8", "c8", "O")},
    "transposed": (lambda a: a.T, SHAPE),
    "flat": (lambda a: a.ravel(), SHAPE),
    "empty": (lambda a: ~a, "must be True for at least one of the"),
}


@pytest.mark.parametrize(
    ("method", "which"),
    [("similarity", "q_mask"), *((m, f"{q}_mask") for m in ("merge", "grow") for q in "qr")],
)
@pytest.mark.parametrize("kind", NO_MASKS)
def test_no_masks(method, which, kind):
    make, rule = NO_MASKS[kind]
    mask = make(np.ones((14, 11) if which == "q_mask" else (7, 9), bool))
    with pytest.raises((TypeError, ValueError), match=f"{which} .*{rule}"):
        METHODS[method](DataCube(make_scan()), **{which: mask}, **QUIET)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_beyond_float32(scale):
    """Float32 cannot hold results in this unit; results without a unit are the same."""
    cube = DataCube(grains() * scale)
    similarity = cube.get_similarity(sigma=0.7, **QUIET)
    np.testing.assert_allclose(similarity, expected_of_grains()["similarity"], atol=1e-5)
    merged = cube.cluster(drop_background=False, **QUIET)
    np.testing.assert_array_equal(merged.labels, expected_of_grains()["merged"])
    for work in (
        lambda: cube.filter_correlative(**FILTER, **QUIET),
        lambda: cube.get_clustered_datacube(merged, **QUIET),
    ):
        with pytest.raises(ValueError, match=r"float32 cannot hold .*multiply the data by a const"):
            work()


# --- warnings as errors -----------------------------------------------------------------------


# Warnings become errors after the imports, since an import of py4DSTEM 0.14.18
# (process/phase/phase_base_class.py) sets UserWarnings to be shown, against the command line. From
# there on, no warning is excused.
WORK = """
import sys, warnings
import numpy, py4DSTEM, py4dstem_clustering
warnings.simplefilter("error")
truth = py4dstem_clustering.simulate_scan((16, 14), (32, 30), n_grains=2, seed=1)
data = truth.datacube.data.astype("f4")
data[3, 4] = 0
data[5, 5] = numpy.nan
data[7, 7, 3, 4] = numpy.inf
scan = py4DSTEM.DataCube(data)
filtered = scan.filter_correlative(sigma=1, radius=2, corr_range="auto", edge=2)
similarity = filtered.get_similarity()
filtered.cluster(threshold="auto", r_mask="triangle", similarity=similarity).get_mixture(filtered)
clusters = scan.cluster()
averages = scan.get_clustered_datacube(clusters, min_purity=0.5)
py4DSTEM.save(sys.argv[1], averages)
assert (py4DSTEM.read(sys.argv[1]).clusters.labels == clusters.labels).all()
"""


def test_warnings_are_errors(tmp_path):
    done = subprocess.run(
        [sys.executable, *STRICT, "-c", WORK, str(tmp_path / "averages.h5")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
