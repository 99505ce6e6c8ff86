"""Diffraction patterns as unit vectors, whose dot products are the correlations of the filter.

A pattern is blurred and multiplied with the squared distance from the middle of the detector. Then
its mean is subtracted, and it is divided by its norm. The dot product of two such vectors is the
correlation of the two patterns.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .blas import matmul, row_dots
from .blocks import as_comparable, nearly_comparable
from .blur import Blur, blur_matrix

PATTERNS_PER_TASK = 8
"""Patterns that are made unit vectors together. With more, each thread takes more memory, and its
buffers do not fit into the cache of a core."""

_MIN_MODE = 1e-3
"""Share of the largest singular value below which a mode of the blur is left out. A larger
value gives shorter vectors and less exact correlations. The modes left out here hold less than a
millionth of the power of white noise, and change correlations as little as rounding does."""

_MIN_CONTRAST = 1e-6
"""Contrast, relative to the signal, up to which a pattern is flat: the rounding of float32 leaves
about as much."""


def radial_weight(detector: tuple[int, int], edge: int) -> NDArray[np.float64]:
    """``|q - q_mean|^2 / (Qx Qy)``, zero within `edge` pixels of the border of the detector."""
    qx, qy = detector
    u, v = np.ogrid[:qx, :qy]
    weight = ((u - (qx - 1) / 2) ** 2 + (v - (qy - 1) / 2) ** 2) / (qx * qy)
    inside = np.zeros(detector, dtype=bool)
    inside[edge : qx - edge, edge : qy - edge] = True
    return np.where(inside, weight, 0)


def unit_vectors(detector: tuple[int, int], sigma: float, edge: int) -> Pixels | Modes:
    """The shorter of the two ways to make unit vectors: blurred pixels, or modes of the blur."""
    qx, qy = detector
    # Modes need a blur that reaches every pixel of the edge: a pixel that the blur leaves out would
    # leak into the modes. Modes also need more than one line of pixels along each axis.
    if sigma > 0 and int(4 * sigma + 0.5) >= edge and min(detector) - 2 * edge > 1:
        modes = Modes(detector, sigma, edge)
        if 2 * modes.size <= (qx - 2 * edge) * (qy - 2 * edge):
            return modes
    return Pixels(detector, sigma, edge)


class Pixels:
    """Unit vectors of blurred pixels."""

    size: int
    """Length of a unit vector."""

    def __init__(self, detector: tuple[int, int], sigma: float, edge: int) -> None:
        weight = radial_weight(detector, edge).ravel()
        self._detector = detector
        self._inside = np.flatnonzero(weight)
        self.size = self._inside.size
        self._weight = weight[self._inside].astype(np.float32)
        self._mean_share = np.full(
            self.size, 1 / self._weight.sum(dtype=np.float64), dtype=np.float32
        )
        along = [blur_matrix(n, sigma) for n in detector] if sigma > 0 else None
        self._blur = None if along is None else Blur(*along)

    def write(self, patterns: NDArray[Any], out: NDArray[np.float32]) -> None:
        """Write patterns ``(n, pixels)`` to `out` as unit vectors ``(n, size)``."""
        # To subtract the mean changes no correlation, and makes a flat pattern exactly zero.
        x = as_comparable(patterns, subtract_mean=True)
        if self._blur is not None:
            x = self._blur(x.reshape(-1, *self._detector)).reshape(len(x), -1)
        x = np.take(x, self._inside, axis=1)
        np.multiply(x, self._weight, out=out)
        _normalise(out, self._mean_share, self._weight)


class Modes:
    """Unit vectors of modes, for a blur that leaves much fewer numbers than there are pixels.

    A blurred pattern is a sum of few modes along each axis, the singular vectors of the blur. The
    weight is a sum of squares along the axes, and turns these modes into a few more. In an
    orthonormal basis of all these modes, a pattern has few numbers, and dot products are the same
    as between pixels. Each mode is symmetric or antisymmetric, so it needs only half of a pattern,
    folded in the middle.
    """

    size: int
    """Length of a unit vector."""

    def __init__(self, detector: tuple[int, int], sigma: float, edge: int) -> None:
        qx, qy = detector
        self._detector = detector
        self._half_u, self._half_v = (qx + 1) // 2, (qy + 1) // 2
        along_u, along_v = ([_line_modes(n, sigma, edge, sign) for sign in (1, -1)]
                            for n in detector)  # fmt: skip
        one_u, one_v, far_u, far_v = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("one", "far")
            for parts in (along_u, along_v)
        )
        self._n_u, self._n_v = len(one_u), len(one_v)
        self.size = self._n_u * self._n_v
        self._read_u = [part.read for part in along_u]
        # weight * pattern = (plain along v, square along u) + (square along v, plain along u). The
        # rows of the two along v alternate, so that they lie beside each other for the product
        # along u.
        self._to_v = [
            np.stack([part.plain @ part.read, part.square @ part.read], axis=1).reshape(
                -1, self._half_v
            )
            for part in along_v
        ]
        self._to_u = [
            np.concatenate([part.square, part.plain], axis=1).T / np.float32(qx * qy)
            for part in along_u
        ]
        one = np.outer(one_v, one_u).ravel()
        weight = (np.outer(one_v, far_u) + np.outer(far_v, one_u)).ravel() / (qx * qy)
        self._mean_share = (one / (weight @ one)).astype(np.float32)
        self._weight = weight.astype(np.float32)

    def write(self, patterns: NDArray[Any], out: NDArray[np.float32]) -> None:
        """Write patterns ``(n, pixels)`` to `out` as unit vectors ``(n, size)``."""
        n = len(patterns)
        x = np.empty((n, *self._detector), dtype=np.float32)
        mean = nearly_comparable(patterns, True, x.reshape(n, -1))
        target = out.reshape(n, self._n_v, self._n_u)
        half_u, half_v, right = self._half_u, self._half_v, 0
        for read, from_v, fold in zip(self._read_u, self._to_u, _FOLDS, strict=True):
            left, right, bottom = right, right + from_v.shape[1], 0
            folded = fold(x[:, :half_u], x[:, ::-1][:, :half_u])
            if fold is np.add:
                folded -= 2 * mean[:, :, None]
            # Transposed, so that rows are folded next: to reverse each row takes longer.
            modes = matmul(folded.swapaxes(1, 2), read.T)
            for from_line, fold_v in zip(self._to_v, _FOLDS, strict=True):
                top, bottom = bottom, bottom + len(from_line) // 2
                folded = fold_v(modes[:, :half_v], modes[:, ::-1][:, :half_v])
                both = matmul(from_line, folded).reshape(n, bottom - top, -1)
                matmul(both, from_v, out=target[:, top:bottom, left:right])
        _normalise(out, self._mean_share, self._weight)


_FOLDS: tuple[np.ufunc, np.ufunc] = np.add, np.subtract
"""How lines are folded for symmetric modes, and for antisymmetric ones."""


class _LineModes(NamedTuple):
    """Modes that a blur leaves of symmetric, or of antisymmetric, lines of pixels.

    A line is given by its first half, onto which the second half is folded.
    """

    read: NDArray[np.float32]
    """Matrix ``(modes, half)`` from folded lines to the modes of the blur."""
    plain: NDArray[np.float32]
    """Matrix ``(weighted modes, modes)`` from these modes to those of the weighted pattern."""
    square: NDArray[np.float32]
    """As `plain`, times the square of the distance from the middle."""
    one: NDArray[np.float64]
    """Weighted modes of a constant."""
    far: NDArray[np.float64]
    """Weighted modes of the square of the distance from the middle."""


@lru_cache(maxsize=4)  # the estimate of the memory needs the modes, too
def _line_modes(n: int, sigma: float, edge: int, sign: int) -> _LineModes:
    """Modes of lines of `n` pixels that are symmetric (`sign` 1) or antisymmetric (-1)."""
    matrix = blur_matrix(n, sigma)[edge : n - edge].astype(np.float64)
    matrix = (matrix + sign * matrix[:, ::-1]) / 2
    square = (np.arange(n) - (n - 1) / 2)[edge : n - edge, None] ** 2
    # The bases hold a constant and its weight exactly, so that a flat pattern leaves nothing.
    constant = np.ones((n, int(sign > 0)))
    _, size, right = np.linalg.svd(matrix, full_matrices=False)
    keep = right[size > _MIN_MODE * size[0]].T
    read, _ = np.linalg.qr(np.concatenate([constant, keep], axis=1))
    blurred = matrix @ read
    far = square * blurred
    both = np.concatenate([blurred, far / square.max()], axis=1)
    left, size, _ = np.linalg.svd(both, full_matrices=False)
    keep = left[:, size > _MIN_MODE * size[0]]
    inside = constant[edge : n - edge]
    basis, _ = np.linalg.qr(np.concatenate([inside, square * inside, keep], axis=1))
    half = read[: (n + 1) // 2].T.copy()
    if n % 2:
        half[:, -1] /= 2  # folding counts the middle twice
    return _LineModes(
        read=half.astype(np.float32),
        plain=(basis.T @ blurred).astype(np.float32),
        square=(basis.T @ far).astype(np.float32),
        one=basis.sum(axis=0),
        far=(basis.T @ square)[:, 0],
    )


def _normalise(
    x: NDArray[np.float32], mean_share: NDArray[np.float32], weight: NDArray[np.float32]
) -> None:
    """Take the mean off weighted patterns, and divide them by their norm.

    `mean_share` holds the share of each number in the mean of a pattern.
    """
    size = np.sqrt(row_dots(x, x))
    x -= row_dots(x, mean_share).astype(np.float32)[:, None] * weight
    norm = np.sqrt(row_dots(x, x))
    norm[norm <= _MIN_CONTRAST * size] = np.inf
    x *= (1 / norm).astype(np.float32)[:, None]
