"""Similarity: how alike each diffraction pattern is to its eight neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import emdfile
import numpy as np

from .base.frozen import Frozen
from .emd import nodes
from .emd.settings import PROVENANCE, Settings, add_settings, read_settings
from .kernels.similarity import DIRECTIONS, asymmetry, similarity_mean

KIND = "similarity"


@dataclass(frozen=True, eq=False, repr=False)
class Similarity(Frozen):
    """Cosine similarity of each diffraction pattern with its eight neighbours.

    Made by ``datacube.get_similarity()`` and taken by ``datacube.cluster(similarity=...)``. Behaves
    like an array: ``np.asarray(similarity)``, ``similarity[rx, ry]``.

    Parameters
    ----------
    data : ndarray, (Rx, Ry, 8)
        Similarity from -1 to 1; NaN where the neighbour lies outside the scan. The last axis is in
        the order of `directions`. The two values of a pair must be equal within 1e-5.
    settings : mapping, optional
        How it was made.
    pixel_size : float
        Distance of neighbouring scan positions.
    pixel_units : str
        Unit of `pixel_size`.

    Raises
    ------
    ValueError
        If the shape is wrong, a value lies outside [-1, 1], or a pair differs.

    Examples
    --------
    >>> similarity = datacube.get_similarity(progress_bar=False)
    >>> similarity
    Similarity(8 x 10 scan positions, 8 directions, mean 1.00)
    >>> similarity.directions[7]
    (0, 1)
    >>> bool(similarity[2, 3, 7] == similarity[2, 4, 3])  # seen from either side
    True
    """

    data: np.ndarray
    settings: Mapping[str, Any] = field(default_factory=dict)
    pixel_size: float = 1.0
    pixel_units: str = "pixels"

    def __post_init__(self) -> None:
        data = np.array(self.data, dtype=np.float32)
        if data.ndim != 3 or data.shape[2] != 8:
            raise ValueError(
                f"similarity of shape {data.shape} must have the shape (Rx, Ry, 8), the last axis "
                f"in the order {DIRECTIONS}"
            )
        if (np.abs(data) > 1 + 1e-5).any():
            raise ValueError("similarity must lie from -1 to 1: it is a cosine")
        difference = asymmetry(data)
        if difference > 1e-5:
            raise ValueError(
                "similarity must be the same seen from both positions of a pair, and NaN just "
                f"where the neighbour lies outside the scan; pairs differ by {difference:g}"
            )
        self._set(data=data, settings=Settings(self.settings, PROVENANCE))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Rx, Ry, 8)"""
        return self.data.shape

    @property
    def directions(self) -> tuple[tuple[int, int], ...]:
        """Offset (dRx, dRy) of the neighbour for each element of the last axis."""
        return DIRECTIONS

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean over the neighbours that exist, (Rx, Ry); NaN for a position without neighbours."""
        mean = similarity_mean(self.data)
        mean.flags.writeable = False
        return mean

    def __getitem__(self, key: Any) -> Any:
        return self.data[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False and dtype is not None and np.dtype(dtype) != self.data.dtype:
            raise ValueError(f"similarity as {np.dtype(dtype)} needs a copy of its float32 data")
        return np.array(self.data, dtype=dtype) if copy else np.asarray(self.data, dtype=dtype)

    def __repr__(self) -> str:
        rx, ry, n = self.shape
        mean = self.mean[np.isfinite(self.mean)]
        level = f"mean {mean.mean():.2f}" if mean.size else "no neighbours"
        return f"Similarity({rx} x {ry} scan positions, {n} directions, {level})"

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Draw the mean similarity; see `py4dstem_clustering.plot_similarity`."""
        from .plotting.maps import plot_similarity

        return plot_similarity(self, ax, **options)

    # --- EMD ---------------------------------------------------------------------------------

    def to_node(self, name: str = "similarity") -> emdfile.Array:
        """The similarity as a stock emdfile Array."""
        node = emdfile.Array(
            self.data,
            name=name,
            units="cosine",
            dims=[
                np.arange(self.shape[0]) * self.pixel_size,
                np.arange(self.shape[1]) * self.pixel_size,
                np.arange(8),
            ],
            dim_units=[self.pixel_units, self.pixel_units, "index"],
            dim_names=["Rx", "Ry", "direction"],
        )
        nodes.tag(node, KIND)
        # emdfile 0.0.16 cannot write an axis of strings, so the labels go into metadata.
        node.metadata = emdfile.Metadata(
            "directions", {str(k): f"({dx}, {dy})" for k, (dx, dy) in enumerate(DIRECTIONS)}
        )
        add_settings(node, self.settings)
        return node

    @classmethod
    def from_node(cls, node: emdfile.Array) -> Similarity:
        """The similarity in a node that `to_node` made, also one read from a file."""
        nodes.check_kind(node, KIND, "similarity", "one with datacube.get_similarity()")
        data = getattr(node, "data", None)
        nodes.check_array(node, "data", data, (None, None, 8), "f", -1.001, 1.001, nan=True)
        settings = read_settings(node)
        step = _step(node)
        try:
            return cls(data, settings, *step)
        except (ValueError, TypeError) as error:
            raise nodes.damaged(node, str(error)) from error


def _step(node: emdfile.Array) -> tuple[float, str]:
    """Distance of positions and its unit, from the axes of a node."""
    axes, units = getattr(node, "dims", ()), getattr(node, "dim_units", ())
    if len(axes) < 2 or not len(units) or not isinstance(units[0], str):
        raise nodes.damaged(node, "its axes have no unit")
    axis = np.asarray(max(axes[:2], key=len))
    if axis.ndim != 1 or axis.dtype.kind not in "iuf":
        raise nodes.damaged(node, f"its axes hold no numbers but {axis.dtype}")
    step = float(axis[1]) - float(axis[0]) if len(axis) > 1 else 1.0
    if not np.isfinite(step):
        raise nodes.damaged(node, "its axes are not finite")
    return step, units[0]
