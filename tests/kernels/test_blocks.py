"""Patterns made comparable: the quick way of each type equals the slow one in float64."""

from __future__ import annotations

import numpy as np
import pytest

from py4dstem_clustering.kernels.blocks import as_comparable, nearly_comparable


def counts():
    return np.random.default_rng(0).poisson(5, (6, 3000))


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", ">u2", "f2", "f4", ">f4", "u4", "i8"])
@pytest.mark.parametrize("subtract_mean", [True, False])
def test_every_type_equals_float64(dtype, subtract_mean):
    x = counts().astype(dtype)
    expected = as_comparable(x.astype(np.float64), subtract_mean)
    np.testing.assert_allclose(as_comparable(x, subtract_mean), expected, rtol=0, atol=1e-6)
    out = np.empty(x.shape, np.float32)
    mean = nearly_comparable(x, subtract_mean, out)
    assert mean.shape == (6, 1)
    np.testing.assert_array_equal(out - mean, as_comparable(x, subtract_mean))


@pytest.mark.parametrize("offset", [-(2**19), 1e3, 1e6])
def test_float32_does_not_feel_an_offset_that_it_holds(offset):
    x = counts()
    found = as_comparable((x + offset).astype(np.float32), True)
    np.testing.assert_allclose(found, x - x.mean(axis=1, keepdims=True), rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0, 0.1, -1 / 3, 1e-7, 3e9, 1e-20, 1e-38, 1e20])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_flat_pattern_is_exactly_zero(value, dtype):
    assert not as_comparable(np.full((2, 36864), value, dtype), True).any()


def test_any_flat_pattern_in_float32_is_exactly_zero():
    value = np.random.default_rng(0).random((300, 1), dtype=np.float32)
    assert not as_comparable(np.repeat(value, 5000, axis=1), True).any()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_what_becomes_of_a_pattern_does_not_depend_on_others(dtype):
    x = counts().astype(dtype)
    x[1] *= 1e25
    x[2, 7] = np.nan
    x[3] = 0
    x[4] *= 1e-25
    x[5, 3] = -np.inf
    found = as_comparable(x, True)
    assert np.isfinite(found).all()
    for one, pattern in zip(found, x, strict=True):
        np.testing.assert_array_equal(one, as_comparable(pattern[None], True)[0])
    assert 0.1 < np.abs(found[[1, 4]]).max() <= 1
