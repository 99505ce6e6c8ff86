"""Similarity of each diffraction pattern to those of its eight neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from time import perf_counter
from typing import Any

import emdfile
import numpy as np
from numpy.typing import NDArray
from py4DSTEM import DataCube

from ..base.checks import (
    check_data,
    check_flag,
    check_memory,
    check_n_jobs,
    check_name,
    check_noise,
    check_number,
    check_q_mask,
    check_same_scan,
)
from ..base.frozen import Frozen
from ..base.progress import progress
from ..emd import nodes
from ..emd.settings import PROVENANCE, Settings, add_settings, read_settings
from ..kernels.blocks import MemoryNeed, ignore
from ..kernels.noise import Noise, noise_need
from ..kernels.similarity import (
    DIRECTIONS,
    asymmetry,
    similarity_core,
    similarity_mean,
    similarity_need,
)
from ..scan.calibration import scan_step
from ..scan.datacubes import get_provenance
from .features import measure_noise
from .on_workers import Block, check_client, fill_from_blocks

SIMILARITY_KIND = "similarity"


@dataclass(frozen=True, eq=False, repr=False)
class Similarity(Frozen):
    """Cosine similarity of each diffraction pattern with its eight neighbours.

    ``datacube.get_similarity()`` makes it, and ``datacube.cluster(similarity=...)`` takes it. It
    can be used like an array: ``np.asarray(similarity)``, ``similarity[rx, ry]``.

    Parameters
    ----------
    data : ndarray, (Rx, Ry, 8)
        Similarity from -1 to 1; NaN where the neighbour lies outside the scan. The last axis is in
        the order of `directions`. Each pair of positions has two values, one at each position; the
        two must be equal within 1e-5.
    settings : mapping, optional
        Options of the measurement, and the versions of this package and py4DSTEM.
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
    >>> bool(similarity[2, 3, 7] == similarity[2, 4, 3])  # of the same pair
    True
    """

    data: NDArray[np.float32]
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
        rx, ry, n = self.data.shape
        return rx, ry, n

    @property
    def directions(self) -> tuple[tuple[int, int], ...]:
        """Offset (dRx, dRy) of the neighbour for each element of the last axis."""
        return DIRECTIONS

    @cached_property
    def mean(self) -> NDArray[np.float32]:
        """Mean over the neighbours that exist, (Rx, Ry); NaN for a position without neighbours."""
        mean = similarity_mean(self.data)
        mean.flags.writeable = False
        return mean

    def __getitem__(self, key: Any) -> Any:
        return self.data[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False and dtype is not None and np.dtype(dtype) != self.data.dtype:
            raise ValueError(f"similarity as {np.dtype(dtype)} needs a copy of its float32 data")
        return np.array(self.data, dtype=dtype) if copy else np.asarray(self.data, dtype=dtype)

    def __repr__(self) -> str:
        rx, ry, n = self.shape
        mean = self.mean[np.isfinite(self.mean)]
        level = f"mean {mean.mean():.2f}" if mean.size else "no neighbours"
        return f"Similarity({rx} x {ry} scan positions, {n} directions, {level})"

    def _repr_html_(self) -> str:
        from ..plotting.html import card, map_png

        rx, ry, _ = self.shape
        low, middle, high = np.nanpercentile(self.mean, (5, 50, 95))
        facts = {
            "scan": f"{rx} x {ry} positions, 8 directions",
            "mean similarity": f"{middle:.3f} (from {low:.3f} to {high:.3f} for 90% of positions)",
        }
        return card("Similarity", facts, map_png(self.mean), "similarity.plot()")

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Draw the mean similarity; see `py4dstem_clustering.plot_similarity`."""
        from ..plotting.maps import plot_similarity

        return plot_similarity(self, ax, **options)

    # --- EMD ---------------------------------------------------------------------------------

    def to_node(self: DataCube, name: str = "similarity") -> emdfile.Array:
        """The similarity as an Array of emdfile."""
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
        nodes.tag(node, SIMILARITY_KIND)
        # In metadata, because emdfile 0.0.16 cannot write an axis of strings.
        node.metadata = emdfile.Metadata(
            "directions", {str(k): f"({dx}, {dy})" for k, (dx, dy) in enumerate(DIRECTIONS)}
        )
        add_settings(node, self.settings)
        return node

    @classmethod
    def from_node(cls, node: emdfile.Array) -> Similarity:
        """Read the similarity from a node that `to_node` made; the node may come from a file."""
        nodes.check_kind(node, SIMILARITY_KIND, "similarity", "one with datacube.get_similarity()")
        data = nodes.check_array(
            node, "data", getattr(node, "data", None), (None, None, 8), "f", -1.001, 1.001, nan=True
        )
        settings = read_settings(node)
        step = _step_of_axes(node)
        try:
            return cls(data, settings, *step)
        except (ValueError, TypeError) as error:
            raise nodes.damaged(node, str(error)) from error


def _step_of_axes(node: emdfile.Array) -> tuple[float, str]:
    """Distance of scan positions and its unit, from the axes of a node."""
    axes: Any = getattr(node, "dims", ())
    units: Any = getattr(node, "dim_units", ())
    if len(axes) < 2 or not len(units) or not isinstance(units[0], str):
        raise nodes.damaged(node, "its axes have no unit")
    axis = np.asarray(max(axes[:2], key=len))
    if axis.ndim != 1 or axis.dtype.kind not in "iuf":
        raise nodes.damaged(node, f"its axes hold no numbers but {axis.dtype}")
    step = float(axis[1]) - float(axis[0]) if len(axis) > 1 else 1.0
    if not np.isfinite(step):
        raise nodes.damaged(node, "its axes are not finite")
    return step, units[0]


def get_similarity(
    self: DataCube,
    *,
    q_mask: NDArray[np.bool_] | None = None,
    sigma: float = 0,
    subtract_mean: bool = True,
    noise_correct: bool = False,
    gain: float | None = None,
    offset: float | None = None,
    returncalc: bool = True,
    name: str = "similarity",
    client: Any = None,
    n_jobs: int | None = None,
    max_memory: int | str | None = None,
    progress_bar: bool = True,
) -> Similarity | None:
    """Measure the similarity of each diffraction pattern to those of its eight neighbours.

    Parameters
    ----------
    q_mask : ndarray of bool, (Qx, Qy), optional
        Detector pixels that count; by default all. Leave out the direct beam, because it is the
        same in every grain and much stronger than the rest, and the area outside the last Bragg
        disks:
        ``datacube.make_detector(datacube.Qshape, "annulus", ((qx0, qy0), (inner, outer)))``.
    sigma : float
        Gaussian blur of each pattern, detector pixels; 0 for none. A blur of up to the radius of a
        Bragg disk helps with noisy patterns that were not filtered.
    subtract_mean : bool
        Subtract from each pattern its mean over the whole detector. With False, any two patterns
        that share a background are similar.
    noise_correct : bool
        Correct for counting noise, so that patterns of one grain have a similarity near 1 at any
        dose, and one threshold works for many scans. Use it for raw counts only: in filtered or
        averaged patterns there is less noise than it subtracts. At most 70 % of the power of a
        pattern is subtracted. If noise makes up more, the similarity stays too low: blur more
        (`sigma`), or leave out empty parts of the detector (`q_mask`).
    gain : float, optional
        Recorded value of one electron, for `noise_correct`; 1 for counts. By default it is measured
        from the noise where neighbouring patterns differ least. This needs at least three positions
        in a row or column, and grains in at least about a fifth of the scan. If the camera lags,
        saturates or cuts off low values, give the gain: the noise does not show it then.
    offset : float, optional
        Recorded value without electrons, for `noise_correct`. By default it is measured with the
        gain, or 0 if `gain` is given.
    returncalc : bool
        Return the result. The tree of the datacube keeps it in any case.
    name : str
        Name in the tree of this datacube. A similarity replaces another of the same name.
    client : dask.distributed.Client, optional
        The workers of this client compare blocks of rows, on any number of machines, with the same
        result. Workers read files themselves; arrays in memory are sent.
    n_jobs : int, optional
        Number of threads; by default all cores that the process may use, or 1 with a `client`.
    max_memory : int or str, optional
        Bytes, or a text such as "1 GB", that the work may take; see `filter_correlative`.
    progress_bar : bool
        Show progress.

    Returns
    -------
    Similarity
        Array-like, (Rx, Ry, 8), from -1 to 1, NaN where the neighbour lies outside the scan. The
        last axis is in the order of `Similarity.directions`. Its settings hold the gain and offset
        that were used.

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong; this check comes before any work. With `noise_correct`, also if the
        gain cannot be measured because the scan holds no noise.

    Notes
    -----
    ``J`` is the pattern minus its mean, blurred, inside `q_mask`. The similarity is
    ``S(r, d) = <J(r), J(r + d)> / (|J(r)| |J(r + d)|)``, the cosine of the paper (Lee et al., 2026,
    section 2.3). It is 0 where a pattern is empty or constant. A missing pixel (NaN or infinite)
    counts as the mean of its pattern.

    With `noise_correct`, ``S`` is divided by the square root of ``1 - V(r) / |J(r)|^2`` and by that
    of the same term of the neighbour, and clipped to -1 and 1. ``V(r)`` is the noise power: the
    gain times the sum over `q_mask` of ``I(r) - offset``, blurred by the square of the blur kernel;
    at most ``0.7 |J(r)|^2``.

    Examples
    --------
    >>> similarity = datacube.get_similarity(progress_bar=False)
    >>> similarity.shape
    (8, 10, 8)
    >>> datacube.tree("similarity").shape  # kept in the tree, for py4DSTEM.save
    (8, 10, 8)
    """
    returncalc = check_flag("returncalc", returncalc)
    name = check_name(name)
    nodes.check_free(self, name, SIMILARITY_KIND)
    similarity = measure_similarity(
        self,
        q_mask=q_mask,
        sigma=sigma,
        subtract_mean=subtract_mean,
        noise_correct=noise_correct,
        gain=gain,
        offset=offset,
        client=client,
        n_jobs=n_jobs,
        max_memory=max_memory,
        progress_bar=progress_bar,
    )
    nodes.put(self, similarity.to_node(name))
    return similarity if returncalc else None


def measure_similarity(
    datacube: DataCube,
    *,
    q_mask: NDArray[Any] | None,
    sigma: float,
    subtract_mean: bool,
    noise_correct: bool = False,
    gain: float | None = None,
    offset: float | None = None,
    client: Any = None,
    n_jobs: int | None,
    max_memory: int | str | None,
    progress_bar: bool,
) -> Similarity:
    """Check the options of `get_similarity`, and measure the similarity."""
    start = perf_counter()
    check_data(datacube.data)
    options: dict[str, Any] = {
        "q_mask": check_q_mask(q_mask, datacube.Qshape),
        "sigma": check_number("sigma", sigma, 0),
        "subtract_mean": check_flag("subtract_mean", subtract_mean),
    }
    noise_correct, gain, offset = check_noise(noise_correct, gain, offset, datacube.Rshape)
    client = check_client(client)
    n_jobs = check_n_jobs(n_jobs, client)
    progress_bar = check_flag("progress_bar", progress_bar)

    def need() -> MemoryNeed:
        own = similarity_need(datacube.data, options["q_mask"], noise_correct, n_jobs)
        if not noise_correct or gain is not None:
            return own
        # The process keeps most of the memory with which the noise was measured.
        return MemoryNeed(own.fixed + noise_need(datacube.data, n_jobs).fixed, own.row)

    n_rows = check_memory(max_memory, need)
    noise = None
    if noise_correct and gain is None:
        noise = measure_noise(datacube, n_jobs, progress_bar, offset)
    elif gain is not None:
        noise = Noise(gain, 0.0 if offset is None else offset)
    work: dict[str, Any] = {**options, "noise": noise, "n_jobs": n_jobs, "n_rows": n_rows}
    with progress(datacube.R_Nx, "Comparing", progress_bar) as report:
        if client is None:
            data = similarity_core(datacube.data, **work, report=report)
        else:
            data = np.empty((*datacube.Rshape, len(DIRECTIONS)), dtype=np.float32)
            compare = partial(_compare_block, **work)
            fill_from_blocks(client, compare, datacube.data, 1, data, report)
    options["noise_correct"] = noise_correct
    options["gain"], options["offset"] = (None, None) if noise is None else noise
    settings = {**options, **get_provenance(datacube, start)}
    return Similarity(data, settings, *scan_step(datacube))


def _compare_block(rows: Any, block: Block, **options: Any) -> NDArray[np.float32]:
    """Similarity of the rows of a block."""
    return similarity_core(rows, **options, report=ignore)[block.inside]


def as_similarity(similarity: Any, scan: tuple[int, int]) -> Similarity:
    """Turn what `cluster` takes as `similarity` into a Similarity of a scan of this shape."""
    if isinstance(similarity, emdfile.Array):
        similarity = Similarity.from_node(similarity)
    elif not isinstance(similarity, Similarity):
        values = np.asarray(similarity)
        if values.dtype.kind not in "fiu":
            raise TypeError(f"similarity of type {values.dtype} must hold real numbers")
        similarity = Similarity(values)
    check_same_scan("similarity", similarity.shape[:2], scan)
    return similarity
