"""Virtual images beside a loop written from the formula."""

from __future__ import annotations

import dask.array
import h5py
import numpy as np
import pytest

from py4dstem_clustering.kernels.virtual import sample_mean, scattered, virtual_image_core


def slow_image(data, weight):
    out = np.zeros(data.shape[:2])
    for x, y in np.ndindex(*out.shape):
        pattern = np.asarray(data[x, y], dtype=float)
        out[x, y] = np.sum(np.where(np.isfinite(pattern), pattern, 0) * weight)
    return out


@pytest.fixture
def data():
    return np.random.default_rng(0).gamma(0.5, 400, (5, 11, 13, 9))


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", ">u2", "f2", "f4", "f8"])
@pytest.mark.parametrize("n_rows", [None, 1, 2])
def test_image_is_the_sum(data, dtype, n_rows):
    data = np.minimum(data, 120).astype(dtype)
    weight = np.random.default_rng(1).random((13, 9)) > 0.6
    image = virtual_image_core(data, weight, n_jobs=2, report=lambda rows: None, n_rows=n_rows)
    np.testing.assert_allclose(image, slow_image(data, weight), rtol=2e-6)


def test_image_of_any_array(data, tmp_path):
    weight = np.zeros((13, 9), bool)
    weight[3:9, 2:5] = True
    expected = virtual_image_core(data, weight, n_jobs=1, report=lambda rows: None)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for other in (
            file.create_dataset("a", data=data),
            dask.array.from_array(data, chunks=(2, 3, 13, 9)),
            np.asfortranarray(data),
        ):
            found = virtual_image_core(other, weight, n_jobs=2, report=lambda rows: None, n_rows=2)
            np.testing.assert_array_equal(found, expected)


def test_missing_pixels_add_nothing(data):
    data[1, 2, 4, 4] = np.nan
    data[2, 3, 5, 3] = np.inf
    data[3, 3, 5, 3] = -np.inf
    weight = np.ones((13, 9), bool)
    image = virtual_image_core(data, weight, n_jobs=1, report=lambda rows: None)
    np.testing.assert_allclose(image, slow_image(data, weight), rtol=1e-12)


def test_values_beyond_float32(data):
    image = virtual_image_core(
        data * 1e300, np.ones((13, 9), bool), n_jobs=1, report=lambda rows: None
    )
    np.testing.assert_allclose(image, data.sum(axis=(2, 3)) * 1e300, rtol=1e-12)


def test_sample_mean(data):
    many = np.tile(data, (10, 1, 1, 1))
    np.testing.assert_allclose(sample_mean(data), data.mean(axis=(0, 1)))
    rows = [0, 7, 14, 21, 28, 35, 42, 49]
    np.testing.assert_allclose(sample_mean(many), many[rows].mean(axis=(0, 1)))
    data[:, :, 2, 3] = np.nan
    data[0, 0, 1, 1] = np.inf
    mean = sample_mean(data)
    assert mean[2, 3] == 0
    assert mean[1, 1] == pytest.approx(data[..., 1, 1][np.isfinite(data[..., 1, 1])].mean())


@pytest.mark.parametrize("centre", [None, (21.0, 17.0)])
@pytest.mark.parametrize("offset", [0, 50])
def test_what_is_scattered_lies_beyond_the_beam(centre, offset):
    u, v = np.indices((45, 38))
    distance = np.hypot(u - 21, v - 17)
    mean = 100 * (distance < 3.5) + 2 * np.exp(-0.5 * ((distance - 12) / 3) ** 2) + offset
    found = scattered(mean, centre)
    assert not found[distance < 4].any()
    assert found[distance > 8].all()


@pytest.mark.parametrize("mean", [np.zeros((6, 7)), np.ones((6, 7)), np.full((6, 7), np.nan)])
def test_where_there_is_no_beam_all_counts(mean):
    assert scattered(mean, None).any()
