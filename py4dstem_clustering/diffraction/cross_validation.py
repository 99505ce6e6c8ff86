"""The result of a cross-validation of orientations: errors and costs of every method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.frozen import Frozen

RESULTS = np.dtype(
    [
        ("method", "U20"),
        ("mean", np.float64),
        ("median", np.float64),
        ("below_5", np.float64),
        ("n_positions", np.int64),
        ("mean_common", np.float64),
        ("median_common", np.float64),
        ("n_common", np.int64),
        ("n_matches", np.int64),
        ("seconds", np.float64),
        ("seconds_before", np.float64),
    ]
)
"""Fields of `CrossValidation.table`."""


@dataclass(frozen=True, eq=False, repr=False)
class CrossValidation(Frozen):
    """Errors of orientations; from ``datacube.cross_validate_orientation()``.

    Attributes
    ----------
    errors : dict of method: ndarray, (Rx, Ry)
        Smallest misorientation, degrees, between a position and its four neighbours, which belong
        to the other half of the scan. NaN if the position or all four neighbours have no
        orientation.
    orientations : dict of method: ndarray, (Rx, Ry, 3, 3)
        Orientation matrices of both halves together; NaN where there is no orientation.
    costs : dict of method: (n_matches, seconds, seconds_before)
        See `table`.
    pixel_size : float
        Distance between neighbouring scan positions.
    pixel_units : str
        Unit of `pixel_size`.
    """

    errors: Mapping[str, NDArray[Any]]
    orientations: Mapping[str, NDArray[Any]]
    costs: Mapping[str, tuple[int, float, float]]
    pixel_size: float = 1.0
    pixel_units: str = "pixels"

    @property
    def shape(self) -> tuple[int, int]:
        """(Rx, Ry)"""
        rx, ry = next(iter(self.errors.values())).shape
        return rx, ry

    def table(self) -> NDArray[Any]:
        """Errors and costs of every method.

        Returns
        -------
        structured ndarray, a row for each method
            For pandas: ``pandas.DataFrame(validation.table())``. Values are for both halves
            together. Fields:

            ``method``;
            ``mean`` and ``median`` of the errors, degrees, NaN if there are none;
            ``below_5``, share of errors below 5 degrees;
            ``n_positions``, number of positions with an error;
            ``mean_common`` and ``median_common``, the same over the ``n_common`` positions where
            every method has an error, so that no method gains by leaving out difficult positions;
            ``n_matches``, number of patterns that were matched;
            ``seconds``, time for Bragg disks and matching;
            ``seconds_before``, time for filter, clusters and averages. Methods that share a
            filtered scan each count the time of the filter.
        """
        table = np.zeros(len(self.errors), dtype=RESULTS)
        common = np.isfinite(list(self.errors.values())).all(axis=0)
        for row, (method, errors) in zip(table, self.errors.items(), strict=True):
            own, shared = errors[np.isfinite(errors)], errors[common]
            row["method"] = method
            row["mean"], row["median"] = _mean_and_median(own)
            row["below_5"] = (own < 5).mean() if own.size else np.nan
            row["n_positions"], row["n_common"] = own.size, shared.size
            row["mean_common"], row["median_common"] = _mean_and_median(shared)
            row["n_matches"], row["seconds"], row["seconds_before"] = self.costs[method]
        return table

    def __repr__(self) -> str:
        rx, ry = self.shape
        means = ", ".join(
            f"{row['method']} {row['mean']:.2f}" if row["n_positions"] else f"{row['method']} none"
            for row in self.table()
        )
        return f"CrossValidation({rx} x {ry} scan positions; mean error in degrees: {means})"

    def plot(self, axes: Any = None, **options: Any) -> Any:
        """Draw the error maps side by side; see `py4dstem_clustering.plot_cross_validation`."""
        from ..plotting.results import plot_cross_validation

        return plot_cross_validation(self, axes, **options)


def _mean_and_median(values: NDArray[Any]) -> tuple[float, float]:
    if values.size == 0:
        return np.nan, np.nan
    return float(values.mean()), float(np.median(values))
