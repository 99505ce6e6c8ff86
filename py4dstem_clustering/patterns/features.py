"""Features in which the patterns of a scan differ, and their noise."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from py4DSTEM import DataCube

from ..base.progress import progress
from ..kernels.binning import Binning
from ..kernels.features import BinnedRows, Features, bin_blocks_here, features_core
from ..kernels.kept_rows import as_small_integers
from ..kernels.noise import Noise, noise_core, noise_windows
from ..scan.calibration import known_centre, whole_shifts
from .on_workers import Block, cut_in_blocks, map_blocks


def measure_noise(
    datacube: DataCube,
    n_jobs: int | None,
    progress_bar: bool,
    offset: float | None = None,
    data: Any = None,
) -> Noise:
    """Gain and offset of the camera, from the noise of a scan; `data` may stand for its data."""
    data = datacube.data if data is None else data
    total = 2 * sum(stop - start for start, stop in noise_windows(datacube.Rshape))
    with progress(total, "Measuring noise", progress_bar) as report:
        return noise_core(data, n_jobs=n_jobs, report=report, offset=offset)


def noise_if_any(
    datacube: DataCube, n_jobs: int | None, progress_bar: bool, data: Any = None
) -> Noise:
    """As `measure_noise`; NaN if the scan is too small or has no noise."""
    try:
        return measure_noise(datacube, n_jobs, progress_bar, data=data)
    except ValueError:
        return Noise(np.nan, np.nan)


def measure_features(
    datacube: DataCube,
    q_mask: NDArray[Any] | None,
    rank: int | None,
    *,
    n_jobs: int | None,
    progress_bar: bool,
    n_rows: int | None = None,
    client: Any = None,
) -> Features:
    """Features of each pattern, at most `rank`; None takes all that stand out of the noise.

    With a dask `client`, its workers read and bin the scan.
    """
    bin_blocks = None
    if client is not None:
        bin_blocks = partial(_bin_on_workers, client, datacube.data, n_jobs, n_rows)
    with progress(2 * datacube.R_Nx, "Comparing", progress_bar) as report:
        return features_core(
            datacube.data,
            q_mask=q_mask,
            rank=rank,
            centre=known_centre(datacube),
            shifts=whole_shifts(datacube),
            n_jobs=n_jobs,
            report=report,
            n_rows=n_rows,
            bin_blocks=bin_blocks,
        )


def _bin_on_workers(
    client: Any,
    data: Any,
    n_jobs: int | None,
    n_rows: int | None,
    bins: Binning,
    shifts: NDArray[np.int64] | None,
    with_sums: bool,
) -> Iterator[BinnedRows]:
    """Bin a scan on dask workers; see `BinBlocks`."""

    def of_block(block: Block) -> dict[str, Any]:
        return {
            "bins": bins,
            "shifts": None if shifts is None else shifts[block.start : block.stop],
            "with_sums": with_sums,
            "n_jobs": n_jobs,
            "n_rows": n_rows,
        }

    blocks = cut_in_blocks(client, data, 0)
    for block, parts in map_blocks(client, _bin_block, data, blocks, of_block):
        for part in parts:
            binned = part.binned.astype(np.float32, copy=False)
            yield part._replace(start=block.start + part.start, binned=binned)


def _bin_block(rows: Any, block: Block, **options: Any) -> list[BinnedRows]:
    """The rows of a block in bins, as small as they can be sent without loss."""
    is_exact = options["bins"].holds_counts(rows.dtype)
    found = []
    for part in bin_blocks_here(rows, **options):
        if is_exact:
            part = part._replace(binned=as_small_integers(part.binned))
        found.append(part)
    return found
