"""Methods of clusters to look at them: single grains, tables, virtual images, figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_data, check_flag, check_mask, check_n_jobs, check_same_scan
from ..kernels.averaging import member_mean
from ..kernels.virtual import disks_of
from ..plotting.html import card, label_png
from ..scan.axes import unit_sign
from ..scan.calibration import check_calibration, known_centre
from ..scan.virtual import scattered_image
from .grain import Grain
from .table import ClusterTable, property_units


class Viewing:
    """Methods of `Clusters` that show them."""

    labels: NDArray[np.int32]
    averages: NDArray[np.float32] | None
    name: str
    pixel_size: float
    pixel_units: str
    background: tuple[int, ...]
    if TYPE_CHECKING:  # of `Clusters`

        @property
        def n_clusters(self) -> int: ...
        @property
        def shape(self) -> tuple[int, int]: ...
        @property
        def sizes(self) -> NDArray[np.int64]: ...
        def properties(self) -> NDArray[np.void]: ...
        def _check_label(self, label: Any) -> int: ...

    def __getitem__(self, label: int) -> Grain:
        if isinstance(label, (int, np.integer)) and not 0 <= label < self.n_clusters:
            known = f"0 to {self.n_clusters - 1}" if self.n_clusters else "none"
            raise IndexError(f"label {label} does not exist; the labels here are: {known}")
        return Grain(self, self._check_label(label))

    def __iter__(self) -> Iterator[Grain]:
        return (Grain(self, label) for label in range(self.n_clusters))

    def table(self) -> ClusterTable:
        """Make a table of size, shape and place of every cluster that prints itself, with units.

        Returns
        -------
        ClusterTable
            The rows of `properties`. ``print(clusters.table())`` writes them as text, and a
            notebook shows them.

        Examples
        --------
        >>> clusters = datacube.cluster(threshold=0.995, min_size=5, progress_bar=False)
        >>> print(str(clusters.table())[:37])
        label  size  area (Å²)  equivalent di
        """
        return ClusterTable(self.properties(), property_units(self.pixel_units))

    def virtual_image(
        self,
        datacube: Any,
        label: int | None = None,
        *,
        detector: NDArray[np.bool_] | None = None,
        n_jobs: int | None = None,
        max_memory: int | str | None = None,
        progress_bar: bool = True,
    ) -> NDArray[np.float64]:
        """Virtual image of the scan through the Bragg disks of one cluster.

        Where it is bright, patterns have the disks of the cluster. Use it to see whether a grain
        ends where its outline ends, and where else its disks occur.

        Parameters
        ----------
        datacube : DataCube (Rx, Ry, Qx, Qy)
            The scan that was clustered.
        label : int, optional
            The cluster, whose average is measured from the scan unless `averages` holds it. Without
            it, all that is scattered beyond the direct beam makes the image.
        detector : ndarray of bool, (Qx, Qy), optional
            Detector pixels that count, instead of the disks of a cluster.
        n_jobs : int, optional
            Number of threads; by default all cores that the process may use.
        max_memory : int or str, optional
            Bytes, or a text such as "1 GB", that the work may take; see `filter_correlative`.
        progress_bar : bool
            Show progress.

        Returns
        -------
        ndarray, (Rx, Ry), float64
            Sum of each pattern over the detector pixels, in the unit of the data. Disks are pixels
            beyond the direct beam in which the average, blurred by a pixel, exceeds the median at
            the same distance from the centre, by a fifth of its largest excess or more.

        Raises
        ------
        ValueError, TypeError
            If the scan has another shape, the label does not exist, or both `label` and `detector`
            are given.

        Examples
        --------
        >>> clusters = datacube.cluster(threshold=0.995, min_size=5, progress_bar=False)
        >>> clusters.virtual_image(datacube, 0, progress_bar=False).shape
        (8, 10)
        """
        data = getattr(datacube, "data", None)
        check_data(data)
        check_calibration(datacube)
        check_same_scan("clusters", self.shape, datacube.Rshape)
        n_jobs = check_n_jobs(n_jobs)
        progress_bar = check_flag("progress_bar", progress_bar)
        if detector is not None:
            if label is not None:
                raise ValueError("label and detector exclude each other; give one of them")
            detector = check_mask("detector", detector, datacube.Qshape, "detector pixels")
        elif label is not None:
            detector = disks_of(
                self._average(datacube, self._check_label(label)), known_centre(datacube)
            )
        return scattered_image(
            datacube, detector, n_jobs=n_jobs, max_memory=max_memory, progress_bar=progress_bar
        )

    def _average(self, datacube: Any, label: int) -> NDArray[np.float64]:
        """Average pattern of one cluster, known or from its positions in the scan."""
        if self.averages is not None and self.averages.shape[1:] == datacube.Qshape:
            return self.averages[label].astype(np.float64)
        mean = member_mean(datacube.data, np.argwhere(self.labels == label))
        return mean.astype(np.float64)

    # --- pictures ----------------------------------------------------------------------------

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Draw the label map; see `py4dstem_clustering.plot_clusters`."""
        from ..plotting.maps import plot_clusters

        return plot_clusters(self, ax, **options)

    def plot_sizes(self, ax: Any = None, **options: Any) -> Any:
        """Draw the distribution of grain sizes; see `py4dstem_clustering.plot_sizes`."""
        from ..plotting.sizes import plot_sizes

        return plot_sizes(self, ax, **options)

    def plot_orientations(
        self, orientation: Any, crystal: Any, axes: Any = None, **options: Any
    ) -> Any:
        """Draw pole figures of the clusters; see `py4dstem_clustering.plot_orientations`."""
        from ..diffraction.texture import plot_orientations

        return plot_orientations(orientation, crystal, axes, clusters=self, **options)

    def _repr_html_(self) -> str:
        rx, ry = self.shape
        n = self.n_clusters
        facts: dict[str, Any] = {"clusters": n}
        if n:
            low, middle, high = np.percentile(self.sizes, (0, 50, 100))
            facts["sizes"] = f"{low:.0f} to {high:.0f} positions, median {middle:.0f}"
        facts["in clusters"] = f"{(self.labels >= 0).mean():.0%} of {rx} x {ry} positions"
        if self.pixel_units != "pixels":
            facts["scan step"] = f"{self.pixel_size:.4g} {unit_sign(self.pixel_units)}"
        if self.background:
            facts["background"] = ", ".join(map(str, self.background))
        hint = "clusters.plot(), clusters.table(), clusters[0], clusters.describe()"
        return card(f"Clusters {self.name!r}", facts, label_png(self.labels, n), hint)
