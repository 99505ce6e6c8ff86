"""Gaussian blur of diffraction patterns as a matrix product.

Same conventions as `scipy.ndimage.gaussian_filter`: cut at 4 sigma, reflecting border.
"""

from __future__ import annotations

import numpy as np

from .blas import matmul


def gaussian_kernel(sigma: float) -> np.ndarray:
    """Normalised Gaussian, sampled at whole pixels out to ``int(4 sigma + 1/2)``."""
    radius = int(4 * sigma + 0.5)
    x = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (x / sigma) ** 2)
    return kernel / kernel.sum()


def blur_matrix(n: int, sigma: float) -> np.ndarray:
    """Matrix ``K (n, n)``, float32: ``K @ x`` is `x` blurred by `sigma` with reflecting borders."""
    kernel = gaussian_kernel(sigma)
    radius = len(kernel) // 2
    source = np.arange(n)[:, None] + np.arange(-radius, radius + 1)
    source %= 2 * n  # the reflected signal (a b c | c b a) repeats after 2 n
    source = np.where(source < n, source, 2 * n - 1 - source)
    matrix = np.zeros((n, n))
    np.add.at(matrix, (np.arange(n)[:, None], source), kernel)
    return matrix.astype(np.float32)


def blur(patterns: np.ndarray, matrix_u: np.ndarray, matrix_v: np.ndarray) -> np.ndarray:
    """Blur patterns ``(n, Nu, Nv)`` along both detector axes."""
    n, nu, nv = patterns.shape
    along_v = matmul(patterns.reshape(n * nu, nv), matrix_v.T).reshape(n, nu, nv)
    return np.stack([matmul(matrix_u, pattern) for pattern in along_v])
