"""Matrix products: which BLAS does them, and with how many threads."""

from __future__ import annotations

import ctypes
import importlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cython_blas
from threadpoolctl import ThreadpoolController

# The BLAS libraries of NumPy and of scipy, both loaded by now. To look for them takes 3 ms.
_POOLS = ThreadpoolController()


_FALLBACKS = {"Prescott", "Katmai"}
"""Names of the oldest code of OpenBLAS, which it uses on a processor that it does not know."""


def _architectures(pools: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Core types of the BLAS of NumPy, and of all others that are loaded."""
    numpys: list[str] = []
    others: list[str] = []
    for pool in pools:
        of_numpy = "numpy" in Path(pool["filepath"]).parent.name
        (numpys if of_numpy else others).append(pool.get("architecture", "Prescott"))
    return numpys, others


def _numpy_is_slow(pools: list[dict[str, Any]]) -> bool:
    """Whether NumPy's BLAS does not know this processor, and another BLAS that is loaded does.

    NumPy 1.26, the newest that py4DSTEM 0.14 allows, carries an OpenBLAS of 2023. On some later
    processors it uses code of 2004, 2 to 4 times slower than the BLAS that scipy carries.
    """
    numpys, others = _architectures(pools)
    return bool(_FALLBACKS & set(numpys)) and any(name not in _FALLBACKS for name in others)


def remedy_for_slow_blas() -> str:
    """What to do where NumPy's BLAS does not know this processor; an empty text where it does.

    Also empty where the core type was chosen by hand, or where no faster one is known to be safe.
    """
    return _remedy(_POOLS.info(), _instructions())


def _remedy(pools: list[dict[str, Any]], instructions: Mapping[str, bool]) -> str:
    fallback = _FALLBACKS & set(_architectures(pools)[0])
    if instructions.get("AVX512_SKX"):
        better = "SkylakeX"
    elif instructions.get("AVX2") and instructions.get("FMA3"):
        better = "Haswell"
    else:
        return ""
    if not fallback or os.environ.get("OPENBLAS_CORETYPE"):
        return ""
    how_far = (
        "many products go through the BLAS of scipy, the others are 2 to 4 times slower"
        if _numpy_is_slow(pools)
        else "matrix products are 2 to 4 times slower"
    )
    return (
        f"the OpenBLAS of NumPy {np.__version__} does not know this processor and runs as on a "
        f"{min(fallback)} of 2004: {how_far}. Set the environment variable "
        f"OPENBLAS_CORETYPE={better} before Python starts, on this computer only: on a processor "
        "without these instructions, Python would crash"
    )


def _instructions() -> Mapping[str, bool]:
    """Sets of instructions that this processor has, as NumPy found them; empty if not known."""
    for name in ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath"):
        with suppress(ImportError, AttributeError):
            found: Mapping[str, bool] = importlib.import_module(name).__cpu_features__
            return found
    return {}


def _scipy_sgemm() -> Callable[..., None] | None:
    """``sgemm`` of the BLAS that scipy carries, called without Python's global lock.

    The wrapper ``scipy.linalg.blas.sgemm`` keeps the lock, so the C function is taken from
    `scipy.linalg.cython_blas`, which exports it for such use. None where its integers are not those
    of C.
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


# None where NumPy's own product is fast: NumPy multiplies a whole stack without Python's global
# lock. `_sgemm` takes the lock between any two products, and with small products a second thread
# gains nothing. scipy's OpenBLAS also has `cblas_sgemm_batch`, which would multiply a stack in one
# call, but 0.3.30 crashes with small matrices (OpenBLAS pull request 5980).
_sgemm = _scipy_sgemm() if _numpy_is_slow(_POOLS.info()) else None
_Sizes = ctypes.c_int * 6
_FACTORS = (ctypes.c_float * 2)(0.0, 1.0)
_ZERO = ctypes.addressof(_FACTORS)
_ONE = _ZERO + 4


def _layout(x: NDArray[Any]) -> tuple[bytes, int] | None:
    """Whether rows or columns of a matrix are contiguous, and the step between them."""
    rows, columns = x.strides
    if columns == 4 and rows % 4 == 0 and rows >= 4 * x.shape[1]:
        return b"N", rows // 4
    if rows == 4 and columns % 4 == 0 and columns >= 4 * x.shape[0]:
        return b"T", columns // 4
    return None


def matmul(a: NDArray[Any], b: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """``a @ b`` of float32 matrices, or stacks of them: ``out[i] = a[i] @ b[i]``.

    One of `a` and `b` may be a single matrix for a whole stack; stacks of stacks have the same
    shape. The rows of `out` are contiguous; there may be gaps between them.
    """
    if _sgemm is None:
        return np.matmul(a, b, out=out)
    if out is None:
        stack = max(a.shape[:-2], b.shape[:-2], key=len)
        out = np.empty((*stack, a.shape[-2], b.shape[-1]), dtype=np.float32)
    if out.ndim > 3:
        for x, y, target in zip(a, b, out, strict=True):
            matmul(x, y, out=target)
    elif out.ndim == 2:
        _matmul_each(_sgemm, a[None], b[None], out[None])
    else:
        _matmul_each(_sgemm, a if a.ndim > 2 else a[None], b if b.ndim > 2 else b[None], out)
    return out


def _matmul_each(
    sgemm: Callable[..., None], a: NDArray[Any], b: NDArray[Any], out: NDArray[Any]
) -> None:
    """As `matmul`, by `sgemm`; each of `a` and `b` holds as many matrices as `out`, or one."""
    found = []
    for x in (b, a):
        layout = _layout(x[0])
        if layout is None:
            x = np.ascontiguousarray(x)
            layout = b"N", x.shape[-1]
        step = x.strides[0] if len(x) > 1 else 0
        found.append((x, x.__array_interface__["data"][0], step, *layout))
    # BLAS counts down columns, so it sees transposes: out.T = b.T @ a.T.
    # Numbers are passed as addresses in one array: with the pointers of ctypes, a call would take
    # longer than a small product.
    (b, at_b, next_b, order_b, step_b), (a, at_a, next_a, order_a, step_a) = found
    step_out = max(out.strides[-2] // 4, out.shape[2])
    at_out, next_out = out.__array_interface__["data"][0], out.strides[0]
    sizes = _Sizes(out.shape[2], out.shape[1], a.shape[-1], step_b, step_a, step_out)
    m, n, k, ldb, lda, ldc = range(ctypes.addressof(sizes), ctypes.addressof(sizes) + 24, 4)
    for _ in range(len(out)):
        sgemm(order_b, order_a, m, n, k, _ONE, at_b, ldb, at_a, lda, _ZERO, at_out, ldc)
        at_b, at_a, at_out = at_b + next_b, at_a + next_a, at_out + next_out


def times_vector(matrices: NDArray[Any], vectors: NDArray[Any]) -> NDArray[Any]:
    """``matrices @ vectors`` of stacks ``(..., m, k)`` and ``(..., k, 1)``, float32."""
    if _sgemm is None:
        return np.matmul(matrices, vectors)
    # NumPy's own loops take half the time of its BLAS, where that does not know the processor.
    return np.einsum("...ij,...j->...i", matrices, vectors[..., 0])[..., None]


_SUM_PIXELS = 1024
"""Pixels summed in float32 before the sum goes on in float64. More of them are faster and less
exact: a sum in float32 alone is off by 1e-3 for a detector of 1024 x 1024."""

_PRODUCT_PIXELS = 2**16
"""The same for a product of matrices, which BLAS sums in short pieces by itself."""


def row_dots(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Dot products of the rows of `a` with those of `b`, or with a single row `b`."""
    n, pixels = a.shape
    whole = pixels - pixels % _SUM_PIXELS
    out = np.zeros(n)
    if whole:
        # To cut the last axis in pieces makes no copy.
        pieces = [x[..., :whole].reshape(*x.shape[:-1], -1, _SUM_PIXELS) for x in (a, b)]
        out += np.einsum("...jk,...jk->...j", *pieces).sum(axis=-1, dtype=np.float64)
    if whole < pixels:
        out += np.einsum("...k,...k->...", a[..., whole:], b[..., whole:])
    return out


def row_sums(a: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sums of the rows of a float32 matrix, in float64."""
    n, pixels = a.shape
    whole = pixels - pixels % _SUM_PIXELS
    out = np.zeros(n)
    if whole:
        pieces = a[:, :whole].reshape(n, -1, _SUM_PIXELS)
        out += np.einsum("ijk->ij", pieces).sum(axis=-1, dtype=np.float64)
    if whole < pixels:
        out += np.einsum("ik->i", a[:, whole:])
    return out


def sum_counts(parts: Iterable[NDArray[Any]], n_pixels: int) -> NDArray[np.int32]:
    """Sum of a few thousand patterns of whole numbers of 8 or 16 bits, exact.

    `parts` yields some patterns ``(n, pixels)`` at a time, up to 256 if they are whole numbers in
    float32. They are added in 16 bits as long as these hold the sum, which takes half the time.
    """
    most = np.iinfo(np.uint16).max
    total, small = np.zeros(n_pixels, dtype=np.int32), np.zeros(n_pixels, dtype=np.uint16)
    highest = 0
    for patterns in parts:
        if patterns.dtype.kind == "f":
            total += (np.ones(len(patterns), dtype=patterns.dtype) @ patterns).astype(np.int32)
            continue
        added = int(patterns.max(initial=0)) * len(patterns)
        if patterns.dtype.kind not in "bu" or added > most:
            total += np.add.reduce(patterns, axis=0, dtype=np.int32)
            continue
        if highest + added > most:
            total += small
            small[:] = highest = 0
        small += np.add.reduce(patterns, axis=0, dtype=np.uint16)
        highest += added
    total += small
    return total


def sum_present(patterns: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum over the first axis, float64, of what is not missing, and how many numbers these are."""
    if patterns.dtype.kind != "f":  # nothing is missing, and to look for it takes long
        total = patterns.sum(axis=0, dtype=np.float64)
        return total, np.full(total.shape, len(patterns))
    present = np.isfinite(patterns)
    return patterns.sum(axis=0, dtype=np.float64, where=present), present.sum(axis=0)


def products_of_rows(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """``a @ b.T`` of two float32 matrices; sums of many columns are in float64."""
    pixels = a.shape[1]
    if pixels <= _PRODUCT_PIXELS:
        return matmul(a, b.T)
    out = np.zeros((len(a), len(b)))
    for start in range(0, pixels, _PRODUCT_PIXELS):
        piece = slice(start, start + _PRODUCT_PIXELS)
        out += matmul(a[:, piece], b[:, piece].T)
    return out.astype(np.float32)


class _SingleThreadedBlas:
    """Hold every BLAS library at one thread while at least one caller is inside.

    The settings belong to the process, and threadpoolctl restores those that it found on entry: two
    overlapping callers would restore in the wrong order and leave BLAS at one thread for good.
    Since threadpoolctl 3.8, only the thread that changed the settings may change them back. So a
    separate thread, the keeper, changes them for the first caller, and back after the last.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._keeper: threading.Thread | None = None
        self._leave = threading.Event()

    def _hold(self, held: threading.Event, leave: threading.Event) -> None:
        try:
            with _POOLS.limit(limits=1, user_api="blas"):
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
                except BaseException:  # Ctrl-C: no caller will end the keeper later
                    self._leave.set()
                    raise
            self._inside += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._keeper is not None:
                self._leave.set()
                self._keeper.join()


single_threaded_blas = _SingleThreadedBlas()
"""A context, in which BLAS uses one thread: the threads of `blocks.workers` share the work."""
