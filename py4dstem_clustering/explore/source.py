"""What the window reads from the scan: trees, virtual images, patterns and averages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from py4DSTEM import DataCube

from ..base.checks import check_name
from ..base.progress import progress
from ..emd import nodes
from ..emd.settings import Settings
from ..grains.averages import keep_clusters
from ..grains.clusters import Clusters
from ..grains.node import CLUSTERS_KIND
from ..grains.options import ClusterOptions
from ..grains.tree import ClusterTree
from ..grains.tree_of_scan import measure_tree
from ..kernels.averaging import member_mean
from ..kernels.blocks import read_window
from ..kernels.virtual import sample_mean, scattered
from ..scan.calibration import detector_step, known_centre, known_origins, scan_step, varies
from ..scan.virtual import scattered_image

MAX_AVERAGES = 64
"""Number of averages that are kept in memory. With a larger number, fewer averages are read again
after a click, but more memory is used."""

Annulus = tuple[tuple[float, float], tuple[float, float]]
"""Centre (qx, qy) and radii of a ring, as for ``datacube.make_detector``."""


class Source:
    """A scan, and how the window reads it.

    Parameters
    ----------
    datacube : DataCube
    options : mapping
        Checked options of `cluster` for both methods.
    n_jobs, max_memory, progress_bar
        How the scan is read, see `explore_clusters`.
    colors : mapping
        Colours of each scan position, (Rx, Ry, 3), for "phase" and "orientation" if known.
    """

    def __init__(
        self,
        datacube: DataCube,
        options: Mapping[str, ClusterOptions],
        *,
        n_jobs: int | None,
        max_memory: int | str | None,
        progress_bar: bool,
        colors: Mapping[str, NDArray[Any]],
    ) -> None:
        self._cube, self.options = datacube, options
        self._n_jobs, self._max_memory = n_jobs, max_memory
        self._progress_bar = progress_bar
        self.colors = colors
        self._averages: dict[bytes, NDArray[Any]] = {}

    @property
    def name(self) -> str:
        """Name of the datacube."""
        return str(self._cube.name)

    @property
    def shape(self) -> tuple[int, int]:
        """(Rx, Ry)"""
        rx, ry = self._cube.Rshape
        return int(rx), int(ry)

    @property
    def detector(self) -> tuple[int, int]:
        """(Qx, Qy)"""
        qx, qy = self._cube.Qshape
        return int(qx), int(qy)

    @property
    def steps(self) -> tuple[tuple[float, str], tuple[float, str]]:
        """Pixel size and unit of the scan, and of the detector."""
        return scan_step(self._cube), detector_step(self._cube)

    # --- trees -------------------------------------------------------------------------------

    def needs_annulus(self) -> bool:
        """Whether nothing says yet which part of the detector growth compares."""
        options = self.options["grow"]
        return options.q_mask is None and options.similarity is None

    def measure(self, method: str, annulus: Annulus | None = None) -> ClusterTree:
        """Measure the tree of a method; growth compares only the `annulus` if there is one."""
        options = self.options[method]
        if annulus is not None:
            mask = self._cube.make_detector(self.detector, "annulus", annulus)
            options = replace(options, q_mask=np.asarray(mask, dtype=bool), similarity=None)
        return measure_tree(
            self._cube,
            options,
            n_jobs=self._n_jobs,
            max_memory=self._max_memory,
            progress_bar=self._progress_bar,
        )

    def keep(self, clusters: Clusters, name: str) -> Clusters:
        """Put clusters into the tree of the datacube under another name."""
        name = check_name(name)
        nodes.check_free(self._cube, name, CLUSTERS_KIND)
        settings = {**Settings(clusters.settings).everything, "name": name}
        clusters = replace(clusters, name=name, settings=settings)
        keep_clusters(self._cube, clusters)
        return clusters

    # --- images ------------------------------------------------------------------------------

    @cached_property
    def mean(self) -> NDArray[np.float64]:
        """Mean pattern of a few rows of the scan."""
        return sample_mean(self._cube.data)

    @cached_property
    def _scattered(self) -> NDArray[np.bool_]:
        return scattered(self.mean, known_centre(self._cube))

    def annulus(self) -> Annulus:
        """A ring from the edge of the direct beam to the edge of the detector."""
        beam = np.argwhere(~self._scattered)
        size = np.array(self.detector)
        known = known_centre(self._cube)
        at = beam.mean(axis=0) if len(beam) else (size - 1) / 2
        if known is not None:
            at = np.array(known, dtype=np.float64)
        outer = float(min(*at, *(size - 1 - at)))
        inner = min(float(np.sqrt(len(beam) / np.pi)), outer / 2)
        return (float(at[0]), float(at[1])), (round(inner, 1), round(outer, 1))

    def image(self) -> NDArray[Any]:
        """Sum of each pattern without the direct beam."""
        return self._virtual_image(self._scattered)

    def disk_image(self, center: tuple[float, float], radius: float) -> NDArray[Any]:
        """Sum of each pattern inside a circle on the detector."""
        mask = self._cube.make_detector(self.detector, "circle", (center, radius))
        return self._virtual_image(np.asarray(mask, dtype=bool))

    def _virtual_image(self, weight: NDArray[Any]) -> NDArray[Any]:
        return scattered_image(
            self._cube,
            weight,
            n_jobs=self._n_jobs,
            max_memory=self._max_memory,
            progress_bar=self._progress_bar,
        )

    def purity(self, clusters: Clusters) -> NDArray[Any]:
        """Largest share of a cluster at each scan position."""
        mixture = clusters.get_mixture(
            self._cube,
            n_jobs=self._n_jobs,
            max_memory=self._max_memory,
            progress_bar=self._progress_bar,
        )
        return np.asarray(mixture.purity)

    # --- patterns ----------------------------------------------------------------------------

    def pattern(self, rx: int, ry: int) -> NDArray[Any]:
        """Pattern of a scan position."""
        return read_window(self._cube.data, (rx, rx + 1), (ry, ry + 1))[0, 0]

    def known_average(self, member: NDArray[np.bool_]) -> NDArray[Any] | None:
        """Average pattern of a cluster, if it was read."""
        return self._averages.get(key_of(member))

    @cached_property
    def _origin(self) -> NDArray[Any] | None:
        """Origin of each pattern; None if all have the same origin, or if it is unknown."""
        origin = known_origins(self._cube)
        return origin if origin is not None and varies(origin) else None

    def read_average(self, member: NDArray[np.bool_]) -> None:
        """Read the average of a cluster, unless it is in memory."""
        key = key_of(member)
        if key in self._averages:
            return
        members = np.argwhere(member)
        shifts = None
        if self._origin is not None:
            # Patterns are moved to the mean origin of the cluster, as in get_clustered_datacube.
            origin = self._origin[member]
            known = np.isfinite(origin).all(axis=1)
            shifts = np.zeros(origin.shape)
            if known.any():
                shifts[known] = origin[known].mean(axis=0) - origin[known]
        with progress(len(members), "Averaging", self._progress_bar, "patterns") as report:
            average = member_mean(self._cube.data, members, shifts, report)
        if len(self._averages) >= MAX_AVERAGES:
            del self._averages[next(iter(self._averages))]
        self._averages[key] = average


def key_of(member: NDArray[np.bool_]) -> bytes:
    """Key of a set of scan positions."""
    return np.packbits(member).tobytes()
