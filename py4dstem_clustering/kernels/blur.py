"""Gaussian blur of diffraction patterns as a matrix product.

Same conventions as `scipy.ndimage.gaussian_filter`: cut at 4 sigma, reflecting border.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blas import matmul


def gaussian_kernel(sigma: float) -> NDArray[Any]:
    """Normalised Gaussian, sampled at whole pixels out to ``int(4 sigma + 1/2)``."""
    radius = int(4 * sigma + 0.5)
    x = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (x / sigma) ** 2)
    return kernel / kernel.sum()


def blur_matrix(n: int, sigma: float) -> NDArray[Any]:
    """Matrix ``K (n, n)``, float32: ``K @ x`` is `x` blurred by `sigma` with reflecting borders."""
    kernel = gaussian_kernel(sigma)
    radius = len(kernel) // 2
    source = np.arange(n)[:, None] + np.arange(-radius, radius + 1)
    source %= 2 * n  # the reflected signal (a b c | c b a) repeats after 2 n
    source = np.where(source < n, source, 2 * n - 1 - source)
    matrix = np.zeros((n, n))
    np.add.at(matrix, (np.arange(n)[:, None], source), kernel)
    return matrix.astype(np.float32)


_PIECE_OUTPUTS = 64
"""Blurred pixels of one matrix product. The matrix of a blur is a band, which is cut into dense
pieces. Larger pieces multiply more zeros; smaller ones are slower for BLAS."""


def _pieces(matrix: NDArray[Any]) -> list[tuple[slice, slice, NDArray[Any]]]:
    """Pieces of a matrix: its rows, the columns that are not zero there, and the numbers."""
    found = []
    n = len(matrix)
    number = max(1, round(n / _PIECE_OUTPUTS))
    edges = [n * i // number for i in range(number + 1)]
    for start, stop in pairwise(edges):
        used = np.flatnonzero(matrix[start:stop].any(axis=0))
        source = slice(int(used[0]), int(used[-1]) + 1)
        piece = np.ascontiguousarray(matrix[start:stop, source])
        found.append((slice(start, stop), source, piece))
    return found


class Blur:
    """Blur patterns ``(n, Nu, Nv)`` along both detector axes, by bands of the two matrices.

    Matrices may hold some rows only: then only those pixels are computed.
    """

    def __init__(self, matrix_u: NDArray[Any], matrix_v: NDArray[Any]) -> None:
        self._along_u, self._along_v = _pieces(matrix_u), _pieces(matrix_v)
        self._shape = len(matrix_u), len(matrix_v)

    def __call__(self, patterns: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
        n, nu, _ = patterns.shape
        to_u, to_v = self._shape
        if out is None:
            out = np.empty((n, to_u, to_v), dtype=np.float32)
        along_v = np.empty((n, nu, to_v), dtype=np.float32)
        # Pattern by pattern: in one product of all patterns, rounding may depend on their number.
        for here, source, matrix in self._along_v:
            matmul(patterns[..., source], matrix.T, out=along_v[..., here])
        for here, source, matrix in self._along_u:
            matmul(matrix, along_v[:, source], out=out[:, here])
        return out
