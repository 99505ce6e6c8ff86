"""Mixture: which clusters a diffraction pattern is a sum of, and with what shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import emdfile
import numpy as np

from .checks import check_data, check_flag, check_integer, check_n_jobs, check_q_mask
from .kernels.features import Features, features_core
from .kernels.lag import Lag, undo_lag
from .kernels.mixture import mixture_core

MOST = 4
"""Clusters kept for each position: more do not meet at one."""


@dataclass(frozen=True, eq=False, repr=False)
class Mixture:
    """Shares of clusters in the pattern of each scan position; from ``clusters.get_mixture()``.

    Attributes
    ----------
    labels : ndarray, (Rx, Ry, 4), int
        Clusters by falling share; -1 is what belongs to no cluster, -2 no further cluster.
    shares : ndarray, (Rx, Ry, 4)
        Their shares, 0 to 1. They sum to 1 unless more than four clusters meet.
    """

    labels: np.ndarray
    shares: np.ndarray

    @property
    def purity(self) -> np.ndarray:
        """Largest share at each position, (Rx, Ry)."""
        return self.shares[..., 0]

    def share_of(self, label: int) -> np.ndarray:
        """Share of one cluster, or of no cluster (-1), at each position, (Rx, Ry)."""
        label = check_integer("label", label, -1)
        return np.where(self.labels == label, self.shares, 0).sum(axis=2)

    def __repr__(self) -> str:
        rx, ry = self.purity.shape
        pure = (self.purity > 0.9).mean()
        return f"Mixture({rx} x {ry} scan positions, {pure:.0%} of them at least 90 % pure)"


def known_centre(datacube: Any) -> tuple[float, float] | None:
    """Centre of the direct beam by the calibration; None where that does not know it."""
    calibration = datacube.root.metadata.get("calibration")  # some files have none
    if calibration is None:
        return None
    origin = calibration.get_origin_mean()
    if origin is None or not np.isfinite(np.asarray(origin, dtype=float)).all():
        return None
    return float(origin[0]), float(origin[1])


def measure_features(
    datacube: Any,
    q_mask: np.ndarray | None,
    rank: int | None,
    *,
    n_jobs: int | None,
    progress_bar: bool,
) -> Features:
    """Features of a scan, with py4DSTEM's progress bar."""
    bar = emdfile.tqdmnd(2 * datacube.R_Nx, desc="Comparing", unit="rows", disable=not progress_bar)
    try:
        return features_core(
            datacube.data,
            q_mask=q_mask,
            rank=rank,
            centre=known_centre(datacube),
            n_jobs=n_jobs,
            report=bar.update,
        )
    finally:
        bar.close()


def measure_mixture(
    datacube: Any,
    labels: np.ndarray,
    settings: Mapping[str, Any],
    reach: int,
    *,
    n_jobs: int | None,
    progress_bar: bool,
) -> Mixture:
    """Shares of clusters made with `settings`, which say what of the patterns was compared."""
    check_data(getattr(datacube, "data", None))
    reach = check_integer("reach", reach, 1)
    n_jobs = check_n_jobs(n_jobs)
    progress_bar = check_flag("progress_bar", progress_bar)
    if tuple(datacube.Rshape) != labels.shape:
        raise ValueError(
            f"clusters of a scan of {labels.shape} do not fit this scan of {datacube.Rshape}"
        )
    features = measure_features(
        datacube, check_q_mask(settings.get("q_mask"), datacube.Qshape), settings.get("rank"),
        n_jobs=n_jobs, progress_bar=progress_bar,
    )  # fmt: skip
    if settings.get("lag_axis") is not None:
        features = undo_lag(features, Lag.from_name(settings["lag_axis"], settings["lag"]))
    return Mixture(*mixture_core(features.values, labels, reach, MOST))
