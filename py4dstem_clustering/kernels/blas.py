"""Matrix products: which BLAS does them, and with how many threads."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

import numpy as np
from scipy.linalg import cython_blas
from threadpoolctl import threadpool_limits


def _scipy_sgemm() -> Callable[..., None] | None:
    """``sgemm`` of the BLAS that scipy carries, called without Python's global lock.

    NumPy 1.26, the newest that py4DSTEM 0.14 allows, carries an OpenBLAS of 2023 that does not know
    later processors and falls back to code of 2004 there: 2 to 4 times slower than scipy's. The
    wrapper ``scipy.linalg.blas.sgemm`` keeps the lock, so the C function is taken from
    `scipy.linalg.cython_blas`, which exports it for such use. None where its integers are not C's.
    """
    capsule = cython_blas.__pyx_capi__["sgemm"]
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype = ctypes.c_void_p
    get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    signature = get_name(capsule)
    if not signature.startswith(b"void (char *, char *, int *, int *, int *, "):
        return None
    # All thirteen arguments are pointers.
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 13)(get_pointer(capsule, signature))


_sgemm = _scipy_sgemm()
_Sizes = ctypes.c_int * 6
_FACTORS = (ctypes.c_float * 2)(0.0, 1.0)
_ZERO = ctypes.addressof(_FACTORS)
_ONE = _ZERO + 4


def _layout(x: np.ndarray) -> tuple[np.ndarray, bytes, int]:
    """A matrix with rows or columns contiguous, which of them, and the step between them."""
    rows, columns = x.strides
    if columns == 4 and rows % 4 == 0 and rows >= 4 * x.shape[1]:
        return x, b"N", rows // 4
    if rows == 4 and columns % 4 == 0 and columns >= 4 * x.shape[0]:
        return x, b"T", columns // 4
    return np.ascontiguousarray(x), b"N", x.shape[1]


def matmul(
    a: np.ndarray,
    b: np.ndarray,
    add_to: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """``a @ b`` of two float32 matrices, written to `out` or added to `add_to` if given.

    The rows of `out` and of `add_to` are contiguous; there may be gaps between them.
    """
    if _sgemm is None:
        if add_to is not None:
            add_to += a @ b
            return add_to
        return np.matmul(a, b, out=out)

    if add_to is not None:
        out = add_to
    elif out is None:
        out = np.empty((a.shape[0], b.shape[1]), dtype=np.float32)
    a, order_a, step_a = _layout(a)
    b, order_b, step_b = _layout(b)
    step_out = max(out.strides[0] // 4, out.shape[1])
    # BLAS counts down columns, so it sees transposes: out.T = b.T @ a.T.
    # Numbers are passed as addresses in one array: with ctypes' own pointers a call would cost more
    # than many a product.
    sizes = _Sizes(out.shape[1], out.shape[0], a.shape[1], step_b, step_a, step_out)
    m = ctypes.addressof(sizes)
    n, k, ldb, lda, ldc = m + 4, m + 8, m + 12, m + 16, m + 20
    beta = _ZERO if add_to is None else _ONE
    at_b, at_a, at_out = (x.__array_interface__["data"][0] for x in (b, a, out))
    _sgemm(order_b, order_a, m, n, k, _ONE, at_b, ldb, at_a, lda, beta, at_out, ldc)
    return out


def matmul_each(a: np.ndarray, b: np.ndarray, out: np.ndarray, add: bool = False) -> np.ndarray:
    """``out[i] = a[i] @ b[i]`` of float32 stacks, or of one matrix and a stack; or added to it.

    As `matmul`, with less around each product. Rows of all matrices are contiguous.
    """
    if _sgemm is None:
        a, b = (np.broadcast_to(x, (len(out), *x.shape[-2:])) for x in (a, b))
        for x, y, target in zip(a, b, out, strict=True):
            matmul(x, y, **{"add_to" if add else "out": target})
        return out
    found = []
    for x in (b, a, out):
        rows, _ = x.strides[-2:]
        place = x.__array_interface__["data"][0]
        found.append((place, x.strides[0] * (x.ndim > 2), max(rows // 4, x.shape[-1])))
    (at_b, next_b, step_b), (at_a, next_a, step_a), (at_out, next_out, step_out) = found
    sizes = _Sizes(out.shape[2], out.shape[1], a.shape[-1], step_b, step_a, step_out)
    m, n, k, ldb, lda, ldc = range(ctypes.addressof(sizes), ctypes.addressof(sizes) + 24, 4)
    beta = _ONE if add else _ZERO
    for _ in range(len(out)):
        _sgemm(b"N", b"N", m, n, k, _ONE, at_b, ldb, at_a, lda, beta, at_out, ldc)
        at_b, at_a, at_out = at_b + next_b, at_a + next_a, at_out + next_out
    return out


# Pixels summed in float32 before the sum goes on in float64: a long sum in float32 alone is off by
# 1e-3 for a detector of 1024 x 1024.
_SHORT_SUM = 1024
_SHORT_PRODUCT = 2**16  # BLAS sums in blocks by itself


def row_dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dot products of the rows of `a` with those of `b`, or with a single row; float64."""
    n, pixels = a.shape
    whole = pixels - pixels % _SHORT_SUM
    out = np.zeros(n)
    if whole:
        # Cutting the last axis in pieces makes no copy.
        pieces = [x[..., :whole].reshape(*x.shape[:-1], -1, _SHORT_SUM) for x in (a, b)]
        out += np.einsum("...jk,...jk->...j", *pieces).sum(axis=-1, dtype=np.float64)
    if whole < pixels:
        out += np.einsum("...k,...k->...", a[..., whole:], b[..., whole:])
    return out


def row_sums(a: np.ndarray) -> np.ndarray:
    """Sums of the rows of a float32 matrix, float64."""
    n, pixels = a.shape
    whole = pixels - pixels % _SHORT_SUM
    out = np.zeros(n)
    if whole:
        pieces = a[:, :whole].reshape(n, -1, _SHORT_SUM)
        out += np.einsum("ijk->ij", pieces).sum(axis=-1, dtype=np.float64)
    if whole < pixels:
        out += np.einsum("ik->i", a[:, whole:])
    return out


def products_of_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a @ b.T`` of two float32 matrices with many columns, summed in float64 where it is long."""
    pixels = a.shape[1]
    if pixels <= _SHORT_PRODUCT:
        return matmul(a, b.T)
    out = np.zeros((len(a), len(b)))
    for start in range(0, pixels, _SHORT_PRODUCT):
        piece = slice(start, start + _SHORT_PRODUCT)
        out += matmul(a[:, piece], b[:, piece].T)
    return out.astype(np.float32)


class _SingleThreadedBlas:
    """Hold every BLAS pool at one thread while at least one caller is inside.

    The pools belong to the process, and threadpoolctl restores what it found on entry: two
    overlapping callers would restore in the wrong order and leave BLAS at one thread for good.
    Since 3.8 it also lets one thread only change them, until that thread leaves its context. So a
    thread of its own enters with the first caller and leaves with the last.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._keeper: threading.Thread | None = None
        self._leave = threading.Event()

    def _hold(self, held: threading.Event, leave: threading.Event) -> None:
        try:
            with threadpool_limits(limits=1, user_api="blas"):
                held.set()
                leave.wait()
        finally:
            held.set()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                held, self._leave = threading.Event(), threading.Event()
                self._keeper = threading.Thread(
                    target=self._hold, args=(held, self._leave), daemon=True
                )
                try:
                    self._keeper.start()
                    held.wait()
                except BaseException:  # Ctrl-C: nobody will come to let the keeper go
                    self._leave.set()
                    raise
            self._inside += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._leave.set()
                self._keeper.join()


single_threaded_blas = _SingleThreadedBlas()
