"""The correlative filter: average each pattern with similar patterns of its neighbours."""

from __future__ import annotations

from functools import partial
from os import PathLike
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from py4DSTEM import DataCube

from ..base.checks import (
    check_corr_range,
    check_data,
    check_edge,
    check_flag,
    check_memory,
    check_n_jobs,
    check_name,
    check_number,
)
from ..base.progress import progress
from ..kernels.blocks import ignore
from ..kernels.corr_range import auto_range, auto_range_need
from ..kernels.correlative import correlative_core, correlative_need
from ..kernels.noise import noise_need
from ..scan.calibration import check_calibration
from .features import noise_if_any
from .filtered import check_target, note_filter, write_filtered
from .on_workers import Block, check_client, fill_from_blocks


def filter_correlative(
    self: DataCube,
    *,
    sigma: float = 3,
    radius: float = 4,
    corr_range: tuple[float, float] | Literal["auto"] = (0.85, 0.95),
    edge: int = 12,
    out: str | PathLike[str] | None = None,
    overwrite: bool = False,
    compression: Literal["gzip", "lzf", "bitshuffle"] | None = None,
    name: str | None = None,
    client: Any = None,
    n_jobs: int | None = None,
    max_memory: int | str | None = None,
    progress_bar: bool = True,
) -> DataCube:
    """Average each diffraction pattern with similar patterns of its neighbours.

    Reduces noise without blurring borders of grains. Neighbours are compared by the correlation of
    their blurred patterns; detector pixels are weighted by the squared distance from the centre.
    The higher the correlation, the more a neighbour counts. This is the first step of the published
    workflow. Where grains bend or are wedges, patterns with many electrons become worse than raw
    ones with the published range, since neighbours correlate that differ by more than noise;
    ``corr_range="auto"`` avoids that, and `filter_lowrank` removes more noise.

    Parameters
    ----------
    sigma : float
        Gaussian blur of the patterns that are compared, detector pixels; 0 for none. Choose about
        the radius of a Bragg disk: a larger blur removes more noise, but disks must stay separate.
        The result is not blurred.
    radius : float
        Neighbours up to a distance of ``radius + 1/2`` scan positions count. A radius of 4 gives 69
        positions, including the own one. Choose it well below the size of a grain.
    corr_range : (low, high), or "auto"
        A neighbour has the weight 0 if its correlation is at most `low`, and 1 if it is at least
        `high`; in between the weight is linear. Both are from -1 to 1. With fewer than about 1,000
        electrons in a pattern, noise keeps correlations below 0.85, and the default does nothing.
        Then choose "auto": ranges are placed between the correlations of positions near to each
        other and far apart, the error of each is estimated from the noise of the scan, and the best
        is taken. Where none makes patterns better than raw ones, the range is (0.9999, 1): patterns
        stay as they are. The metadata of the result hold the range that was used.
    edge : int
        Width of the border of the detector that is left out of the comparison, detector pixels.
    out : path, optional
        New EMD file to which the result is written block by block. By default the result is in
        memory, as float32. The file stays open as long as the result exists, so save clusters and
        averages to another file.
    overwrite : bool
        Replace `out` if it exists.
    compression : "gzip", "lzf" or "bitshuffle", optional
        Compress `out`. Averages of counts compress to about two thirds at best, because they are
        fractions; patterns that the filter did not change compress to a tenth. "bitshuffle", with
        LZ4, is the fastest, but such a file opens only where hdf5plugin is imported; "gzip" opens
        everywhere.
    name : str, optional
        Name of the result; by default the name of this datacube.
    client : dask.distributed.Client, optional
        The workers of this client filter blocks of rows, on any number of machines, with the same
        result. Workers read files themselves; arrays in memory are sent. The result comes to this
        process. The automatic range is chosen here.
    n_jobs : int, optional
        Number of threads; by default all cores that the process may use, or 1 with a `client`.
    max_memory : int or str, optional
        Bytes, or a text such as "1 GB", "500 MB" or "1.5 GiB", that the work may take: the scan is
        read in blocks of as many rows as fit. The result does not depend on it. By default about
        half a GB, or the memory for one row of the scan if that is more. A row of 512 patterns of
        192 x 192 takes 1.1 GB in the filter, and at most half of this in other methods. Not counted
        are Python with py4DSTEM (0.3 GB), a result in memory, the memory of dask, and in merging
        0.6 kB for each position (24 features; 160 MB for 512 x 512 positions). Without a limit,
        merging also keeps up to 0.5 GB of binned patterns.
    progress_bar : bool
        Show progress.

    Returns
    -------
    DataCube
        float32, of the same shape, with a copy of the calibration. With `out`, its data are an
        h5py dataset in that file. ``py4DSTEM.read`` can open the file.

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong. The check comes before any work.

    Notes
    -----
    With blurred patterns ``B``, and the weight ``w(q) = |q - q_mean|^2 / (Nu Nv)``, zero in the
    edge, ``F = w (B - mu) / |w (B - mu)|`` where ``mu`` is the w-weighted mean of ``B``. The
    correlation with the neighbour at ``d`` is ``c(d) = sum_q F(r) F(r + d)``, its weight
    ``a(d) = clip((c - low) / (high - low), 0, 1)``, and the result
    ``(I(r) + sum_d a(d) I(r + d)) / (1 + sum_d a(d))``. The sum includes ``d = 0``, so a pattern
    counts twice at its own position, as in the published workflow (Lee et al., 2026, section 2.1).

    A missing pixel (NaN or infinite) counts as the mean of its pattern in the comparison. In the
    average it has no weight, so that it becomes the average of that pixel in the neighbours.

    Examples
    --------
    >>> filtered = datacube.filter_correlative(
    ...     sigma=1, radius=2, corr_range=(0.2, 0.8), edge=2, progress_bar=False
    ... )
    >>> filtered.shape == datacube.shape
    True
    """
    check_data(self.data)
    check_calibration(self)
    sigma = check_number("sigma", sigma, 0)
    radius = check_number("radius", radius, 0)
    limits = check_corr_range(corr_range)
    edge = check_edge(edge, self.Qshape)
    name = self.name if name is None else check_name(name)
    if out is not None:
        check_name(name)  # the datacube may have a name that no file can hold
    client = check_client(client)
    n_jobs = check_n_jobs(n_jobs, client)
    overwrite = check_flag("overwrite", overwrite)
    progress_bar = check_flag("progress_bar", progress_bar)
    path, packing = check_target(self.data, out, overwrite, compression)
    needs = [partial(correlative_need, self.data, sigma, radius, edge, n_jobs)]
    if limits == "auto":
        needs.append(partial(auto_range_need, self.data, sigma, radius, edge, n_jobs))
        needs.append(partial(noise_need, self.data, n_jobs))
    n_rows = check_memory(max_memory, *needs)
    if limits == "auto":
        noise = noise_if_any(self, n_jobs, progress_bar)
        with progress(self.R_Nx, "Choosing range", progress_bar) as report:
            limits = auto_range(
                self.data,
                sigma=sigma,
                edge=edge,
                n_jobs=n_jobs,
                radius=radius,
                noise=noise,
                report=report,
            )

    options: dict[str, Any] = {
        "sigma": sigma,
        "radius": radius,
        "corr_range": limits,
        "edge": edge,
    }
    metadata = note_filter(self, "filter_correlative", options)

    def run(target: Any) -> None:
        work: dict[str, Any] = {**options, "n_jobs": n_jobs, "n_rows": n_rows}
        with progress(self.R_Nx, "Filtering", progress_bar) as report:
            if client is None:
                correlative_core(self.data, target, **work, report=report)
                return
            filter_it = partial(_filter_block, **work)
            fill_from_blocks(client, filter_it, self.data, int(radius + 0.5), target, report)

    return write_filtered(self, name, metadata, run, path, packing)


def _filter_block(rows: Any, block: Block, **options: Any) -> NDArray[np.float32]:
    """The filtered rows of a block."""
    out = np.empty(rows.shape, dtype=np.float32)
    correlative_core(rows, out, **options, report=ignore)
    return out[block.inside]
