"""Correlative filter: average each pattern with those neighbours that look like it.

One pass over the scan with a sliding window of rows. Each pattern is read, blurred and normalised
once; each pair is correlated once; correlations and weighted sums are matrix products over tiles
of neighbouring columns.

The products are cut so small that OpenBLAS multiplies without copying its operands first: for few
rows on one side the copy takes longer than the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from .blas import matmul, products_of_rows, row_dots
from .blocks import (
    Need,
    Report,
    as_comparable,
    count_jobs,
    iterate_blocks,
    nearly_comparable,
    read_rows,
    row_blocks,
    row_need,
    scratch_need,
    tiles,
    to_float32,
    workers,
)
from .blur import Blur, blur_matrix

# Columns per matrix product. A tile of T columns meets T + 2 radius neighbours, so small tiles
# waste little and large ones feed BLAS better.
_TILE = 8

# Tiles whose correlations are one task.
_TILES = 8

# Patterns that are normalised together.
_PATTERNS = 8

# Pieces of pixels that are averaged in one task, one after the other.
_PIECES = 20

# Multiplications up to which OpenBLAS takes small matrices as they lie.
_SMALL_PRODUCT = 10**6

# Rows that are averaged together, so that what lies around them is fetched once.
_GROUP = 10

# Pixels of all positions around a tile that stay in the cache of a core.
_NEAR = 2**17

_PUBLISHED_RANGE = (0.85, 0.95)

# The sample that an automatic range is taken from: pairs of rows, and positions far apart.
_WINDOWS, _FAR = 12, 480


def footprint(radius: float) -> NDArray[Any]:
    """Offsets ``(n, 2)`` with ``dx^2 + dy^2 <= (radius + 1/2)^2``, the centre among them."""
    reach = int(radius + 0.5)
    steps = np.arange(-reach, reach + 1)
    dx, dy = (grid.ravel() for grid in np.meshgrid(steps, steps, indexing="ij"))
    inside = dx**2 + dy**2 <= (radius + 0.5) ** 2
    return np.stack([dx[inside], dy[inside]], axis=1)


def radial_weight(detector: tuple[int, int], edge: int) -> NDArray[Any]:
    """``|q - q_mean|^2 / (Nu Nv)``, zero within `edge` pixels of the border of the detector."""
    nu, nv = detector
    u, v = np.ogrid[:nu, :nv]
    weight = ((u - (nu - 1) / 2) ** 2 + (v - (nv - 1) / 2) ** 2) / (nu * nv)
    inside = np.zeros(detector, dtype=bool)
    inside[edge : nu - edge, edge : nv - edge] = True
    return np.where(inside, weight, 0)


# Share of the largest singular value below which a mode of the blur is left out. Of white noise it
# is less than a millionth of the power, and changes correlations as little as rounding does.
_LEAST_MODE = 1e-3


class _Modes(NamedTuple):
    """What a blur leaves of symmetric or antisymmetric lines, in few numbers.

    See `_mode_normaliser`. Lines are given by their first half, folded.
    """

    read: NDArray[Any]
    """From folded lines to the modes of the blur, ``(modes, half)``."""
    plain: NDArray[Any]
    """From these to the modes of the weighted pattern, ``(weighted modes, modes)``."""
    square: NDArray[Any]
    """The same, times the square of the distance from the middle."""
    one: NDArray[Any]
    """Weighted modes of a constant."""
    far: NDArray[Any]
    """Weighted modes of the square of the distance."""


@lru_cache(maxsize=4)  # to ask for the memory needs them, too
def _modes(n: int, sigma: float, edge: int, sign: int) -> _Modes:
    """For lines of `n` pixels that are symmetric (`sign` 1) or antisymmetric (-1)."""
    matrix = blur_matrix(n, sigma)[edge : n - edge].astype(np.float64)
    matrix = (matrix + sign * matrix[:, ::-1]) / 2
    square = (np.arange(n) - (n - 1) / 2)[edge : n - edge, None] ** 2
    # A constant and its weight are in the bases exactly, so that a flat pattern leaves nothing.
    constant = np.ones((n, int(sign > 0)))
    _, size, right = np.linalg.svd(matrix, full_matrices=False)
    keep = right[size > _LEAST_MODE * size[0]].T
    read, _ = np.linalg.qr(np.concatenate([constant, keep], axis=1))
    blurred = matrix @ read
    far = square * blurred
    both = np.concatenate([blurred, far / square.max()], axis=1)
    left, size, _ = np.linalg.svd(both, full_matrices=False)
    keep = left[:, size > _LEAST_MODE * size[0]]
    inside = constant[edge : n - edge]
    basis, _ = np.linalg.qr(np.concatenate([inside, square * inside, keep], axis=1))
    half = read[: (n + 1) // 2].T.copy()
    if n % 2:
        half[:, -1] /= 2  # folding counts the middle twice
    return _Modes(
        read=half.astype(np.float32),
        plain=(basis.T @ blurred).astype(np.float32),
        square=(basis.T @ far).astype(np.float32),
        one=basis.sum(axis=0),
        far=(basis.T @ square)[:, 0],
    )


def _mode_normaliser(
    detector: tuple[int, int], along_u: list[_Modes], along_v: list[_Modes]
) -> tuple[int, Callable[[NDArray[Any], NDArray[Any]], None]]:
    """As `_normaliser`, for a blur that leaves much fewer numbers than there are pixels.

    A blurred pattern has few modes along each axis, the singular vectors of the blur. The weight is
    a sum of squares along the axes, and takes these to a few more. In an orthonormal basis of them
    all a pattern is short, and dot products are what they are between pixels. Each mode is
    symmetric or antisymmetric, and sees half of a pattern that is folded in the middle.
    """
    qx, qy = detector
    half_u, half_v = (qx + 1) // 2, (qy + 1) // 2
    one_u, one_v, far_u, far_v = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("one", "far")
        for parts in (along_u, along_v)
    )
    n_u, n_v = len(one_u), len(one_v)
    # weight * pattern = (plain along v, square along u) + (square along v, plain along u): the two
    # along v in turn, so that they lie beside each other for the product along u.
    to_v = [
        np.stack([part.plain @ part.read, part.square @ part.read], axis=1).reshape(-1, half_v)
        for part in along_v
    ]
    to_u = [
        np.concatenate([part.square, part.plain], axis=1).T / np.float32(qx * qy)
        for part in along_u
    ]
    one = np.outer(one_v, one_u).ravel()
    weight = (np.outer(one_v, far_u) + np.outer(far_v, one_u)).ravel() / (qx * qy)
    share = (one / (weight @ one)).astype(np.float32)
    weight = weight.astype(np.float32)
    folds = np.add, np.subtract

    def normalise(patterns: NDArray[Any], unit: NDArray[Any]) -> None:
        n = len(patterns)
        x = np.empty((n, qx, qy), dtype=np.float32)
        mean = nearly_comparable(patterns, True, x.reshape(n, -1))
        target = unit.reshape(n, n_v, n_u)
        right = 0
        for part, from_v, fold in zip(along_u, to_u, folds, strict=True):
            left, right, bottom = right, right + from_v.shape[1], 0
            folded = fold(x[:, :half_u], x[:, ::-1][:, :half_u])
            if fold is np.add:
                folded -= 2 * mean[:, :, None]
            # Turned, for rows of it to be folded: to turn a row itself around takes longer.
            modes = matmul(folded.swapaxes(1, 2), part.read.T)
            for from_line, fold_v in zip(to_v, folds, strict=True):
                top, bottom = bottom, bottom + len(from_line) // 2
                folded = fold_v(modes[:, :half_v], modes[:, ::-1][:, :half_v])
                both = matmul(from_line, folded).reshape(n, bottom - top, -1)
                matmul(both, from_v, out=target[:, top:bottom, left:right])
        _to_unit(unit, share, weight)

    return n_u * n_v, normalise


def _to_unit(x: NDArray[Any], share: NDArray[Any], weight: NDArray[Any]) -> None:
    """Take the mean off weighted patterns, and divide by their norm."""
    size = np.sqrt(row_dots(x, x))
    x -= row_dots(x, share).astype(np.float32)[:, None] * weight
    norm = np.sqrt(row_dots(x, x))
    # Contrast below a millionth of the signal is the rounding of float32, not a pattern.
    norm[norm <= 1e-6 * size] = np.inf
    x *= (1 / norm).astype(np.float32)[:, None]


def _normaliser(
    detector: tuple[int, int], sigma: float, edge: int
) -> tuple[int, Callable[[NDArray[Any], NDArray[Any]], None]]:
    """Pixels that are compared, and a function that writes patterns as unit vectors of these."""
    qx, qy = detector
    # Not where the blur leaves some pixels unseen, which would leak into the modes, nor for a line,
    # whose distance from the middle is none.
    if sigma > 0 and int(4 * sigma + 0.5) >= edge and min(detector) - 2 * edge > 1:
        along_u, along_v = ([_modes(n, sigma, edge, sign) for sign in (1, -1)] for n in detector)
        modes = int(np.prod([sum(len(p.one) for p in parts) for parts in (along_u, along_v)]))
        if 2 * modes <= (qx - 2 * edge) * (qy - 2 * edge):
            return _mode_normaliser(detector, along_u, along_v)
    weight = radial_weight(detector, edge).ravel()
    inside = np.flatnonzero(weight)
    weight = weight[inside].astype(np.float32)
    share = np.full(inside.size, 1 / weight.sum(dtype=np.float64), dtype=np.float32)
    blur = Blur(blur_matrix(qx, sigma), blur_matrix(qy, sigma)) if sigma > 0 else None

    def normalise(patterns: NDArray[Any], unit: NDArray[Any]) -> None:
        # Correlations do not feel a constant; without it a flat pattern is exactly zero.
        x = as_comparable(patterns, subtract_mean=True)
        if blur is not None:
            x = blur(x.reshape(-1, qx, qy)).reshape(len(x), -1)
        x = np.take(x, inside, axis=1)
        np.multiply(x, weight, out=unit)
        _to_unit(unit, share, weight)

    return inside.size, normalise


def auto_range(
    data: Any,
    *,
    sigma: float,
    edge: int,
    n_jobs: int | None,
    report: Report = lambda n: None,
) -> tuple[float, float]:
    """A range of correlations for `correlative_core` that suits the noise of a scan.

    From a sample of positions: `same`, the correlation that one tenth of neighbours exceeds, and
    `other`, the median of positions far apart. The range lies between them, near `same` where
    there is little noise. The noisier the patterns, the nearer to `other`: to lose neighbours of
    the same kind then costs more than to take in some of another.
    """
    rx, ry, qx, qy = data.shape
    n_pixels, normalise = _normaliser((qx, qy), sigma, edge)
    height = min(rx, 2)
    n = min(rx // height, _WINDOWS)
    starts = np.linspace(0, rx - height, n).astype(int)
    columns = np.unique(np.linspace(0, ry - 1, min(ry, _FAR // n)).astype(int))
    near, far, places, done = [], [], [], 0
    with workers(n_jobs) as run:
        for start in starts:
            rows = read_rows(data, start, start + height).reshape(height, ry, -1)
            unit = np.empty((height, ry, n_pixels), dtype=np.float32)

            def prepare(
                task: tuple[int, slice], rows: NDArray[Any] = rows, unit: NDArray[Any] = unit
            ) -> None:
                normalise(rows[task], unit[task])

            run(prepare, product(range(height), tiles(ry, _PATTERNS)))
            near += [row_dots(row[1:], row[:-1]) for row in unit]
            near += [row_dots(a, b) for a, b in pairwise(unit)]
            far.append(unit[0, columns])
            places += [(start, column) for column in columns]
            report(int(start) + height - done)
            done = int(start) + height
        near = np.concatenate(near)
        if near.size == 0:  # a single position
            return _PUBLISHED_RANGE
        far = np.concatenate(far)
        distance = np.linalg.norm(np.array(places)[:, None] - np.array(places), axis=2)
        apart = distance >= max(np.median(distance), 1)
        other = np.median(products_of_rows(far, far)[apart]) if apart.any() else near.min()
    same = np.quantile(near, 0.9)
    return _place_range(float(same), float(other))


def _place_range(same: float, other: float) -> tuple[float, float]:
    """From correlations of the same and of other patterns, see `auto_range`.

    What tells patterns apart lies between `other` and 1; `kept` is the share of it that noise
    leaves. The third power is measured on simulated scans of 30 to 10,000 electrons a pattern: a
    higher one gains a little at low dose, and loses as much where grains are bent or blurred.
    """
    step = max(same - other, 0.02)
    kept = np.clip((same - other) / max(1 - other, 0.02), 0, 1)
    low = min(max(same - step + 0.75 * kept**3 * step, -1), 0.99)
    return round(float(low), 4), round(float(min(low + 0.25 * step, 1)), 4)


def correlative_need(data: Any, sigma: float, radius: float, edge: int, n_jobs: int | None) -> Need:
    """Memory that `correlative_core` takes: rows within reach of those that are averaged."""
    ry, qx, qy = data.shape[1:]
    offsets = footprint(radius)
    reach = int(offsets[:, 0].max())
    read, row = row_need(data), 4 * ry * qx * qy
    positions, wide = -(-ry // _TILE) * _TILE, _TILE + 2 * reach
    dtype = _kept_as(data)
    kept = 0 if _is_in_place(data) else dtype.itemsize * ry * qx * qy
    made = row if dtype != data.dtype else 0
    unit = 4 * (positions + 2 * reach) * _normaliser((qx, qy), sigma, edge)[0]
    weights = 4 * ry * len(offsets)
    bands = 4 * positions * wide * (2 * reach + 1)
    rows = max(_GROUP + 2 * reach, _tiles_at_once(1) * (1 + 2 * reach))
    near = 4 * rows * wide * min(_pixels_per_product(reach), qx * qy)
    if np.dtype(data.dtype).kind == "f":
        near *= 2.25  # what is missing
    return Need(
        2 * reach * kept
        + reach * unit
        + 2 * reach * weights
        + int(count_jobs(n_jobs) * near)
        + scratch_need(data, n_jobs, _PATTERNS, 4),
        kept + made + 2 * read + unit + 2 * weights + 3 * bands + row,
    )


def auto_range_need(data: Any, sigma: float, edge: int, n_jobs: int | None) -> Need:
    """Memory that `auto_range` takes."""
    ry, qx, qy = data.shape[1:]
    unit = 4 * _normaliser((qx, qy), sigma, edge)[0]
    return Need(
        4 * row_need(data) + (5 * ry + 2 * _FAR) * unit + scratch_need(data, n_jobs, _PATTERNS, 5)
    )


def _diagonals(matrices: NDArray[Any], shift: int, count: int) -> NDArray[Any]:
    """View ``(..., n, count)`` of matrices: each row i from column i + `shift` on."""
    *outer, down, right = matrices.strides
    shape = (*matrices.shape[:-1], count)
    return as_strided(matrices[..., shift:], shape, (*outer, down + right, right))


def _products(a: NDArray[Any], b: NDArray[Any], out: NDArray[Any]) -> None:
    """``a[i] @ b[i].T`` of few rows and many columns, summed in float64 where it is long."""
    length = max(1, _SMALL_PRODUCT // (a.shape[1] * b.shape[1]))
    turned = b.swapaxes(1, 2)
    if a.shape[2] <= length:
        matmul(a, turned, out=out)
        return
    total = np.zeros(out.shape)
    for piece in tiles(a.shape[2], length):
        total += matmul(a[..., piece], turned[:, piece])
    out[:] = total


def _pixels_per_product(reach: int) -> int:
    """Pixels that are averaged at a time."""
    wide = 2 * reach + _TILE
    pixels = min(
        _SMALL_PRODUCT // (_TILE * (2 * reach + 1) * wide), _NEAR // ((_GROUP + 2 * reach) * wide)
    )
    return int(np.clip(pixels // 16 * 16, 256, 4096))


def _kept_as(data: Any) -> np.dtype:
    """Type of rows in the window: as they are, to become float32 when fetched, or float32."""
    dtype = np.dtype(data.dtype)
    as_it_is = dtype.isnative and dtype.itemsize <= 4 and dtype != np.float16
    return dtype if as_it_is and not isinstance(data, np.ma.MaskedArray) else np.dtype(np.float32)


def _is_in_place(data: Any) -> bool:
    """Whether all rows are in memory, as they would be kept."""
    return (
        row_need(data) == 0
        and _kept_as(data) == data.dtype
        and data.strides[2:] == (data.shape[3] * data.itemsize, data.itemsize)
    )


def _tiles_at_once(rows: int) -> int:
    """Tiles that are averaged in one call: of few rows one would be too little work."""
    return max(1, 5 // rows)


def correlative_core(
    data: Any,
    out: Any,
    *,
    sigma: float,
    radius: float,
    corr_range: tuple[float, float],
    edge: int,
    n_jobs: int | None,
    report: Report,
    n_rows: int | None = None,
) -> None:
    """Write the filtered scan to `out`, anything that takes ``out[start:stop] = rows``."""
    rx, ry, qx, qy = data.shape
    low, high = corr_range
    n_pixels, normalise = _normaliser((qx, qy), sigma, edge)
    offsets = footprint(radius)
    reach = int(offsets[:, 0].max())
    # Columns go in tiles. To a tile belong 2 reach + 1 rows of neighbours, each `wide`.
    n_tiles, wide = -(-ry // _TILE), _TILE + 2 * reach
    # Offsets with one dx are contiguous and run from dy = -width to width.
    band_of, width_of = {}, {}
    for dx in range(-reach, reach + 1):
        (indices,) = np.nonzero(offsets[:, 0] == dx)
        band_of[dx] = slice(int(indices[0]), int(indices[-1]) + 1)
        width_of[dx] = len(indices) // 2
    trim = reach - width_of[reach]  # what is never near in the first row, and in the last
    neighbours = np.arange(ry)[:, None] + offsets[:, 1]
    inside = (neighbours >= 0) & (neighbours < ry)

    # Long rows are worth more memory: of a single one, all that lies around is fetched anew.
    copies = 4 if next(iter(row_blocks(data.shape, 4)))[1] >= _GROUP // 2 else 1
    in_block = n_rows or next(iter(row_blocks(data.shape, copies)))[1]
    # Rows in the window, which goes round, or all that are in memory anyway. By their number in the
    # scan, what is known of them.
    in_place = _is_in_place(data)
    if in_place:
        kept = data.reshape(rx, ry, -1)
    else:
        kept = np.empty((min(in_block + 2 * reach, rx), ry, qx * qy), dtype=_kept_as(data))
    units: dict[int, NDArray[Any]] = {}
    weights: dict[int, NDArray[Any]] = {}
    has_missing: dict[int, bool] = {}

    def correlate(row: int, some: slice, products: NDArray[Any]) -> None:
        """With the row itself and those above it: ``products[dx, tile, position, neighbour]``."""
        step, item = units[row].strides
        near = as_strided(
            units[row], (n_tiles, wide, n_pixels), (_TILE * step, step, item), writeable=False
        )[some]
        for dx in range(min(reach, row) + 1):
            first, last = reach - width_of[dx], reach + width_of[dx] + _TILE
            own = units[row - dx][reach : reach + n_tiles * _TILE]
            _products(
                own.reshape(n_tiles, _TILE, n_pixels)[some],
                near[:, first:last],
                out=products[dx, some, :, first:last],
            )

    def weigh(row: int, products: NDArray[Any]) -> None:
        """From correlations to weights, of both positions of each pair."""
        for dx in range(min(reach, row) + 1):
            width = width_of[dx]
            a = _diagonals(products[dx], reach - width, 2 * width + 1)
            a = a.reshape(-1, 2 * width + 1)[:ry] - np.float32(low)
            a /= high - low
            np.clip(a, 0, 1, out=a)
            a *= inside[:, band_of[dx]]
            weights[row - dx][:, band_of[dx]] = a
            if dx == 0:
                continue
            opposite = weights[row][:, band_of[-dx]][:, ::-1]
            for dy in range(-min(width, ry - 1), min(width, ry - 1) + 1):
                here = slice(max(0, -dy), ry - max(0, dy))
                opposite[here.start + dy : here.stop + dy, width + dy] = a[here, width + dy]

    def bands(rows: range) -> NDArray[Any]:
        """Weights of the neighbours for every position, ``(row, tile, position, neighbour)``.

        They are shares: of the position's own pattern, which counts once more, and of all others.
        """
        share = np.zeros((len(rows), n_tiles * _TILE, len(offsets)), dtype=np.float32)
        np.stack([weights[row] for row in rows], out=share[:, :ry])
        share[:, :ry, band_of[0].start + width_of[0]] += 1
        share[:, :ry] /= share[:, :ry].sum(axis=2, dtype=np.float64)[..., None]
        share = share.reshape(len(rows), n_tiles, _TILE, -1)
        matrices = np.zeros((*share.shape[:3], 2 * reach + 1, wide), dtype=np.float32)
        for dx, band in band_of.items():
            width = width_of[dx]
            matrix = matrices[..., reach + dx, :]
            _diagonals(matrix, reach - width, 2 * width + 1)[:] = share[..., band]
        return matrices.reshape(*share.shape[:3], -1)[..., trim : -trim or None]

    def in_window(first: int, last: int) -> Iterator[tuple[slice, slice]]:
        """Rows, and where they are: at most twice, since the window goes round."""
        size = len(kept)
        for a, b in pairwise([first, *range(first - first % size + size, last, size), last]):
            yield slice(a, b), slice(a % size, (b - 1) % size + 1)

    def tile_groups(rows: int) -> list[slice]:
        whole = ry // _TILE
        return tiles(whole, _tiles_at_once(rows)) + [slice(whole, n_tiles)] * (n_tiles > whole)

    def windows(near: NDArray[Any]) -> NDArray[Any]:
        """What lies around each row follows each other, ``(tile, row, neighbour, pixel)``."""
        tile, row, column, item = near.strides
        n_rows = near.shape[1] - 2 * reach
        shape = len(near), n_rows, (2 * reach + 1) * wide - 2 * trim, near.shape[3]
        return as_strided(near[:, 0, trim:], shape, (tile, row, column, item), writeable=False)

    def average(
        first: int, some: slice, pieces: list[slice], shares: NDArray[Any], target: NDArray[Any]
    ) -> None:
        """As many rows as `target` has, from `first` on; some of the tiles, and of the pixels."""
        last, n = first + len(target), some.stop - some.start
        above, below = max(0, first - reach), min(rx, last + reach)
        columns = slice(some.start * _TILE, min(some.stop * _TILE, ry))
        share = shares[:, some, : columns.stop - columns.start].swapaxes(0, 1)
        missing = [
            i
            for i in range(len(target))
            if any(has_missing.get(first + i + dx) for dx in range(-reach, reach + 1))
        ]
        shape = n, last - first + 2 * reach, wide, pieces[0].stop - pieces[0].start
        empty = np.zeros(shape, dtype=np.float32)  # as is what lies outside the scan
        for pixels in pieces:
            near = empty[..., : pixels.stop - pixels.start]
            for rows, slots in in_window(above, below):
                to = slice(rows.start - first + reach, rows.stop - first + reach)
                for tile in range(n):
                    start = (some.start + tile) * _TILE - reach
                    left, right = max(0, start), min(ry, start + wide)
                    np.copyto(
                        near[tile, to, left - start : right - start],
                        kept[slots, left:right, pixels],
                        casting="same_kind",
                    )
            if missing:
                present = np.isfinite(near)
                near[~present] = 0
            result = target[:, columns, pixels]
            result = result.reshape(len(target), n, -1, result.shape[2]).swapaxes(0, 1)
            matmul(share, windows(near), out=result)
            if missing:  # has no weight, so the weights differ from pixel to pixel
                weight = matmul(share, windows(present.astype(np.float32)))[:, missing]
                weight[weight == 0] = np.nan  # missing everywhere
                result[:, missing] /= weight

    written = 0
    # An array takes results where they are made.
    direct = isinstance(out, np.ndarray) and out.dtype == np.float32 and out.flags.c_contiguous
    pieces = tiles(qx * qy, _pixels_per_product(reach))
    pieces = [pieces[some] for some in tiles(len(pieces), _PIECES)]
    with workers(n_jobs) as run:
        for start, rows in iterate_blocks(data, copies=copies, n_rows=n_rows):
            stop = start + len(rows)
            made = rows
            if rows.dtype != kept.dtype:
                made = to_float32(rows, f"row {start} to {stop - 1} of the scan")
            for row in range(start, stop):
                units[row] = np.zeros((n_tiles * _TILE + 2 * reach, n_pixels), dtype=np.float32)
                weights[row] = np.zeros((ry, len(offsets)), dtype=np.float32)
            products = np.empty((len(rows), reach + 1, n_tiles, _TILE, wide), dtype=np.float32)

            def prepare(
                task: tuple[int, slice],
                rows: NDArray[Any] = rows,
                made: NDArray[Any] = made,
                start: int = start,
            ) -> None:
                row, columns = task
                patterns = rows[row - start, columns]
                unit = units[row][columns.start + reach : columns.stop + reach]
                normalise(patterns.reshape(len(patterns), -1), unit)
                if not in_place:
                    patterns = made[row - start, columns]
                    kept[row % len(kept), columns] = patterns.reshape(len(patterns), -1)

            def check(row: int, rows: NDArray[Any] = rows, start: int = start) -> None:
                has_missing[row] = not np.isfinite(rows[row - start]).all()

            run(prepare, product(range(start, stop), tiles(ry, _PATTERNS)))
            if rows.dtype.kind == "f":
                run(check, range(start, stop))
            del check, made
            del rows, prepare  # before the next are read
            run(
                lambda task, products=products, start=start: correlate(
                    *task, products[task[0] - start]
                ),
                product(range(start, stop), tiles(n_tiles, _TILES)),
            )
            # Many short calls, which threads would only wait for each other in.
            for row in range(start, stop):
                weigh(row, products[row - start])
            del products

            last = rx if stop == rx else max(written, stop - reach)
            while written < last:
                ready = min(written + stop - start, last)  # no more at a time than were read
                if direct:
                    filtered = out[written:ready].reshape(-1, ry, qx * qy)
                else:
                    filtered = np.empty((ready - written, ry, qx * qy), dtype=np.float32)
                shares = bands(range(written, ready))
                n_groups = -(-(ready - written) // _GROUP)
                edges = np.linspace(0, ready - written, n_groups + 1).astype(int).tolist()
                groups = [slice(a, b) for a, b in pairwise(edges)]
                run(
                    lambda task, filtered=filtered, written=written, shares=shares: average(
                        written + task[0].start, *task[1:], shares[task[0]], filtered[task[0]]
                    ),
                    (
                        (group, some, part)
                        for group in groups
                        for some in tile_groups(group.stop - group.start)
                        for part in pieces
                    ),
                )
                if not direct:
                    out[written:ready] = filtered.reshape(-1, ry, qx, qy)
                report(ready - written)
                written = ready
                del filtered
            for row in [row for row in weights if row < written - reach]:
                del weights[row]
                has_missing.pop(row, None)
            for row in [row for row in units if row < stop - reach]:
                del units[row]
