"""Features in which the patterns of a scan differ, and their noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from py4DSTEM import DataCube

from ..base.progress import progress
from ..kernels.features import Features, features_core
from ..kernels.noise import Noise, noise_core, noise_windows
from ..scan.calibration import known_centre, whole_shifts


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
) -> Features:
    """Features of each pattern, at most `rank`; None takes all that stand out of the noise."""
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
        )
