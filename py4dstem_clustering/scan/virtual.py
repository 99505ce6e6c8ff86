"""Virtual images of a scan in a DataCube."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_data, check_memory, values_of
from ..base.progress import progress
from ..kernels.virtual import sample_mean, scattered, virtual_image_core, virtual_image_need
from .calibration import known_centre


def scattered_image(
    datacube: Any,
    weight: NDArray[Any] | None = None,
    *,
    n_jobs: int | None = None,
    max_memory: int | str | None = None,
    progress_bar: bool = False,
) -> NDArray[np.float64]:
    """Sum of each pattern over the detector pixels in `weight`, (Rx, Ry).

    By default all pixels beyond the direct beam count. A scan that is no DataCube has no known
    origin; the brightest place of its mean pattern is taken then.
    """
    data = values_of(datacube)
    check_data(data)
    if weight is None:
        centre = known_centre(datacube) if hasattr(datacube, "calibration") else None
        weight = scattered(sample_mean(data), centre)
    n_rows = check_memory(max_memory, partial(virtual_image_need, data, n_jobs))
    with progress(data.shape[0], "Virtual image", progress_bar) as report:
        return virtual_image_core(data, weight, n_jobs=n_jobs, report=report, n_rows=n_rows)
