"""Mixture: the share of each cluster in the pattern of each scan position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.checks import (
    check_data,
    check_flag,
    check_integer,
    check_memory,
    check_n_jobs,
    check_q_mask,
    check_same_scan,
)
from ..base.frozen import Frozen
from ..base.progress import progress
from ..kernels.features import features_need
from ..kernels.lag import Lag, undo_lag
from ..kernels.mixture import mixture_core
from ..scan.calibration import check_calibration
from ..scan.datacubes import marks_of, warn_of_other_data
from .features import measure_features

MAX_CLUSTERS_PER_POSITION = 4
"""Most clusters whose shares are kept for each position; more rarely meet at one position. With a
larger number, results take more memory."""


@dataclass(frozen=True, eq=False, repr=False)
class Mixture(Frozen):
    """Shares of clusters in the pattern of each scan position; from ``clusters.get_mixture()``.

    Attributes
    ----------
    labels : ndarray, (Rx, Ry, 4), int
        Labels of the clusters, the largest share first. -1 stands for positions outside clusters;
        -2 fills places without a further cluster.
    shares : ndarray, (Rx, Ry, 4)
        Shares of these labels, 0 to 1. They add up to 1 unless more than four clusters meet.
    made_from : tuple of str
        Fingerprints of the data of the clusters, if they are known.
    """

    labels: NDArray[Any]
    shares: NDArray[Any]
    made_from: tuple[str, ...] = ()

    @property
    def purity(self) -> NDArray[Any]:
        """Largest share at each position, (Rx, Ry)."""
        return self.shares[..., 0]

    def share_of(self, label: int) -> NDArray[Any]:
        """Share of one cluster, or of no cluster (-1), at each position, (Rx, Ry)."""
        label = check_integer("label", label, -1)
        return self.shares_at(np.full(self.purity.shape, label))

    def shares_at(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Share, at each position, of the cluster that the map `labels` (Rx, Ry) names there."""
        return np.where(self.labels == labels[..., None], self.shares, 0).sum(axis=2)

    def _repr_html_(self) -> str:
        from ..plotting.html import card, map_png

        rx, ry = self.purity.shape
        facts = {
            "scan": f"{rx} x {ry} positions",
            "at least 90% pure": f"{(self.purity > 0.9).mean():.0%} of them",
            "picture": "purity, the largest share",
        }
        return card(
            "Mixture", facts, map_png(self.purity, (0, 1)), "mixture.purity, mixture.share_of(0)"
        )

    def __repr__(self) -> str:
        rx, ry = self.purity.shape
        pure = (self.purity > 0.9).mean()
        return f"Mixture({rx} x {ry} scan positions, {pure:.0%} of them at least 90 % pure)"


def measure_mixture(
    datacube: Any,
    labels: NDArray[Any],
    settings: Mapping[str, Any],
    reach: int,
    *,
    n_jobs: int | None,
    max_memory: int | str | None,
    progress_bar: bool,
) -> Mixture:
    """Shares of clusters; q_mask, rank and lag are those in the `settings` of the clusters."""
    check_data(getattr(datacube, "data", None))
    check_calibration(datacube)
    reach = check_integer("reach", reach, 1)
    n_jobs = check_n_jobs(n_jobs)
    progress_bar = check_flag("progress_bar", progress_bar)
    check_same_scan("clusters", labels.shape, datacube.Rshape)
    warn_of_other_data("the clusters were", settings, datacube)
    n_rows = check_memory(max_memory, partial(features_need, datacube.data, n_jobs))
    features = measure_features(
        datacube,
        check_q_mask(settings.get("q_mask"), datacube.Qshape),
        settings.get("rank"),
        n_jobs=n_jobs,
        progress_bar=progress_bar,
        n_rows=n_rows,
    )
    if settings.get("lag_axis") is not None:
        lag = Lag.from_name(settings["lag_axis"], settings["lag_share"])
        features = undo_lag(features, lag)
    with progress(len(labels), "Finding shares", progress_bar) as report:
        return Mixture(
            *mixture_core(features.values, labels, reach, MAX_CLUSTERS_PER_POSITION, report),
            marks_of(settings),
        )
