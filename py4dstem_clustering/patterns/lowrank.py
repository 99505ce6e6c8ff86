"""The low-rank filter: rebuild patterns from the few that all of them are mixtures of."""

from __future__ import annotations

from functools import partial
from os import PathLike
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from py4DSTEM import DataCube

from ..base.checks import (
    check_data,
    check_flag,
    check_integer,
    check_lag,
    check_memory,
    check_n_jobs,
    check_name,
    check_q_mask,
)
from ..base.progress import progress
from ..kernels.lag import Lag
from ..kernels.lowrank import Model, model_core, model_need
from ..kernels.lowrank_basis import MAX_DIRECTIONS
from ..kernels.lowrank_filter import lowrank_core, lowrank_need, whole_noise
from ..kernels.lowrank_windows import N_REGIONS
from ..kernels.noise import noise_need
from ..kernels.unlagged import WithoutLag
from ..scan.calibration import check_calibration, whole_shifts
from .features import noise_if_any
from .filtered import check_target, note_filter, write_filtered


def filter_lowrank(
    self: DataCube,
    *,
    rank: int | Literal["auto"] = "auto",
    q_mask: NDArray[np.bool_] | None = None,
    local: bool = True,
    lag: float | Literal["auto"] | None = "auto",
    out: str | PathLike[str] | None = None,
    overwrite: bool = False,
    compression: Literal["gzip", "lzf", "bitshuffle"] | None = None,
    name: str | None = None,
    n_jobs: int | None = None,
    max_memory: int | str | None = None,
    progress_bar: bool = True,
) -> DataCube:
    """Remove noise: rebuild each pattern from the few patterns that all are mixtures of.

    Grains, thickness and bending change patterns in few ways, and noise changes them in as many
    ways as there are pixels. The ways that stand out of noise are found in the whole scan. A
    pattern keeps what lies in them, and whatever differs from them by more than noise can. There is
    nothing to choose.

    Parameters
    ----------
    rank : int or "auto"
        Number of patterns to rebuild from, 1 to 100. "auto" takes all that stand out of noise; the
        metadata of the result hold the number. A smaller one removes more noise, and structure with
        it.
    q_mask : ndarray of bool, (Qx, Qy), optional
        Detector pixels in which those patterns are looked for; by default all. All pixels are
        filtered. Leave out pixels that flicker or saturate.
    local : bool
        Also compare each position with the 7 x 7 positions around, whose patterns differ in fewer
        ways than those of the whole scan. This lowers the error by a tenth. Without it a result
        depends on its own pattern and the scan as a whole.
    lag : float or "auto", optional
        Share of each pattern that a slow camera leaves in the next one, 0 to below 1, along rising
        Ry. It is undone before anything else. "auto", the default, finds share, axis and direction
        from tails behind the borders of grains, as `cluster` does, and undoes the lag only if it is
        certain. Give a share where a lag is known and not found, or 0 if the camera has none.
    out, overwrite, compression, name, n_jobs, max_memory, progress_bar
        As in `filter_correlative`. By default the work takes up to 1.3 GB for rows of 512 patterns
        of 192 x 192 pixels.

    Returns
    -------
    DataCube
        float32, of the same shape, with a copy of the calibration. Its tree holds three arrays:

        ``noise`` (Rx, Ry, 8, 8): estimated standard deviation of the error of a pixel, in the unit
        of the data, root mean square over each of 8 x 8 equal regions of the detector. In simulated
        scans of 40 x 36 positions with 30 to 100,000 electrons a pattern it was 0.71 to 1.44 of the
        true one; where a lag was undone, up to 2.4 times.
        ``residual`` (Rx, Ry): squared difference of pattern and result, relative to noise. It is
        about 1; a position with a larger one holds what the rest of the scan does not.
        ``kept`` (Rx, Ry): share of the detector in which the pattern kept values of its own,
        because they differed by more than 5 standard deviations.

        Its metadata ``filter_lowrank`` hold rank, gain, offset, and the lag that was undone:
        ``lag_share`` (0 for none) and ``lag_axis``, such as "+Ry".

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong. The check comes before any work.

    Notes
    -----
    Values can be negative, where a pixel holds nearly nothing. They stay, because without them
    averages of such pixels would be too large. A missing pixel (NaN or infinite) gets the value of
    the rebuilt pattern. Hot pixels do not count when patterns are compared. Patterns that descan
    has moved, by the calibration, are moved to the mean origin in whole pixels, and back. Where a
    lag is undone, each pattern loses the share of the pattern before it and is scaled up; the first
    pattern of a line stays, and so do patterns behind a lost one.

    The mean pattern of the scan stays as it is.

    The scan is read four times. The first pass sums up the covariance of binned patterns, each
    divided by the root of its noise, with the mean of the 3 x 3 patterns around. Eigenvectors whose
    eigenvalues exceed those of pure noise (Silverstein and Choi, 1995) are taken, and some more.
    The second pass measures patterns along them, removes from these scores what does not stand out
    of noise in windows of 7 x 7 positions (singular values are shrunk: Gavish and Donoho, 2017),
    and fits every detector pixel by the scores; the fits are shrunk in windows of the detector in
    the same way. Counting noise of each window follows from the model. The third pass does the same
    along the directions just found, at the full resolution. The fourth rebuilds the patterns.

    Examples
    --------
    >>> filtered = datacube.filter_lowrank(progress_bar=False)
    >>> filtered.shape == datacube.shape
    True
    >>> filtered.tree("noise").data.shape[:2] == datacube.Rshape
    True
    """
    check_data(self.data)
    wanted = check_rank(rank)
    mask = check_q_mask(q_mask, self.Qshape)
    local = check_flag("local", local)
    share = check_lag(lag)
    name = self.name if name is None else check_name(name)
    if out is not None:
        check_name(name)
    check_calibration(self)
    n_jobs = check_n_jobs(n_jobs)
    overwrite = check_flag("overwrite", overwrite)
    progress_bar = check_flag("progress_bar", progress_bar)
    path, packing = check_target(self.data, out, overwrite, compression)
    n_rows = check_memory(
        max_memory,
        partial(model_need, self.data, n_jobs),
        partial(lowrank_need, self.data, n_jobs),
        partial(noise_need, self.data, n_jobs),
    )
    shifts = whole_shifts(self)

    def find(data: Any, seek_lag: bool) -> Model | Lag:
        noise = noise_if_any(self, n_jobs, progress_bar, data)
        with progress(3 * self.R_Nx, "Comparing", progress_bar) as report:
            return model_core(
                data,
                q_mask=mask,
                rank=wanted,
                noise=noise if np.isfinite(noise.gain) else None,
                shifts=shifts,
                local=local,
                n_jobs=n_jobs,
                report=report,
                n_rows=n_rows,
                seek_lag=seek_lag,
            )

    undone = None if share in ("auto", 0) else Lag(1, 1, float(share))
    data: Any = self.data if undone is None else WithoutLag(self.data, undone)
    found = find(data, share == "auto")
    if isinstance(found, Lag):
        undone, data = found, WithoutLag(self.data, found)
        found = find(data, False)
    model = cast(Model, found)
    unit, zero = model.bins.unit, model.bins.zero
    settings = {
        "rank": model.rank,
        "q_mask": mask,
        "local": local,
        "lag": share,
        "lag_share": 0.0 if undone is None else undone.decay,
        "lag_axis": None if undone is None else undone.name,
        "gain": model.gain * unit,
        "offset": model.offset * unit + zero,
    }
    metadata = note_filter(self, "filter_lowrank", settings)

    def run(target: Any) -> dict[str, NDArray[Any]]:
        with progress(self.R_Nx, "Filtering", progress_bar) as report:
            left = lowrank_core(
                data,
                target,
                model,
                shifts=shifts,
                n_jobs=n_jobs,
                report=report,
                n_rows=n_rows,
            )
        return {
            "noise": whole_noise(model, left, known_gain=undone is None),
            "residual": left.residual,
            "kept": left.kept,
        }

    regions = (min(N_REGIONS, self.Q_Nx), min(N_REGIONS, self.Q_Ny))
    maps = {
        "noise": (*self.Rshape, *regions),
        "residual": self.Rshape,
        "kept": self.Rshape,
    }
    return write_filtered(self, name, metadata, run, path, packing, maps)


def check_rank(rank: Any) -> int | None:
    """Return the rank of `filter_lowrank`; None for "auto"."""
    if isinstance(rank, str) and rank == "auto":
        return None
    found = MAX_DIRECTIONS + 1 if isinstance(rank, str) else check_integer("rank", rank, 1)
    if found > MAX_DIRECTIONS:
        raise ValueError(
            f"rank={rank!r} must be 'auto' or a whole number from 1 to {MAX_DIRECTIONS}"
        )
    return found
