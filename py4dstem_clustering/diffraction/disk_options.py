"""Options of disk detection that follow from the noise of averages."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_number, values_of
from ..base.frozen import Frozen
from ..base.progress import warn_user
from ..kernels.standout import stand_out, template_radius, zero_sum_template

MIN_DISKS = 8
"""Number of disks, without the direct beam, below which `DiskOptions.find` warns."""

_MOST_PEAKS = 400
"""Peaks of a pattern that are looked at; more cost time, fewer may leave out weak disks."""


@dataclass(frozen=True, eq=False, repr=False)
class DiskOptions(Frozen):
    """Options of disk detection for averages; from `Clusters.propose_disk_options`.

    Attributes
    ----------
    options : dict
        For ``averages.find_Bragg_disks(**options)``; a scan of single patterns may use them, too.
        The template is that of the probe less a ring around it, so that a background does not
        count. `minAbsoluteIntensity` follows from the noise; no limit is relative to the brightest
        disk, which is the direct beam.
    radius : float
        Radius of the disks, detector pixels, from the template.
    noise : ndarray, (N,)
        Variance of a pixel of each average divided by its value: the recorded value of an electron
        over the number of averaged positions.
    gain, offset : float
        Recorded value of an electron, and recorded value without electrons.
    significance : float
        Standard deviations of the noise by which a disk must stand out.
    """

    options: dict[str, Any]
    radius: float
    noise: NDArray[np.float64]
    gain: float
    offset: float
    significance: float

    def __repr__(self) -> str:
        return (
            f"DiskOptions({len(self.noise)} averages; disks of {self.radius:.3g} pixels radius "
            f"that stand out by {self.significance:g} standard deviations)"
        )

    def find(self, datacube: Any) -> Any:
        """Find the disks of averages or of a scan: those that stand out of the noise.

        Disks are found with ``find_Bragg_disks(**options)``. Then each is compared with its
        surroundings: it is kept if it is brighter than they are, in every direction, by
        `significance` standard deviations. So a ring of a film, or noise on a bright background,
        is no disk. Its intensity becomes what it has above the background.

        Parameters
        ----------
        datacube : DataCube, (N, 1, Qx, Qy) or (Rx, Ry, Qx, Qy)
            The averages, or the scan.

        Returns
        -------
        BraggVectors
            All calibrations that are known are chosen (``setcal()``).

        Raises
        ------
        ValueError
            If the patterns do not have the shape of the template.

        Warns
        -----
        UserWarning
            With the names of clusters that have fewer than eight disks, the direct beam not
            counted. Their orientations will rarely be sure.
        """
        data = values_of(datacube)
        shape = self.options["template"].shape
        if np.shape(data)[2:] != shape:
            raise ValueError(
                f"patterns of shape {np.shape(data)[2:]} must have that of the template, {shape}"
            )
        of_averages = np.shape(data)[:2] == (len(self.noise), 1)
        noise = self.noise if of_averages else np.full(np.prod(np.shape(data)[:2]), self.gain)
        options = self.options
        if not of_averages:
            # Noise is that of one pattern, not of an average.
            ratio = np.sqrt(self.gain / self.noise.min(initial=self.gain))
            options = {**options, "minAbsoluteIntensity": options["minAbsoluteIntensity"] * ratio}
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            bragg = datacube.find_Bragg_disks(**options)
        few = []
        for k, position in enumerate(np.ndindex(*np.shape(data)[:2])):
            found = bragg._v_uncal[position].data
            places = np.stack([found["qx"], found["qy"]], axis=1)
            pattern = np.asarray(data[position], dtype=float) - self.offset
            excess, significance = stand_out(pattern, places, self.radius, float(noise[k]))
            kept = (significance >= self.significance) & (excess > 0)
            found["intensity"] = excess
            bragg._v_uncal[position].remove(~kept)
            if of_averages and kept.sum() - 1 < MIN_DISKS:
                few.append((k, int(max(kept.sum() - 1, 0))))
        bragg.setcal()
        if few:
            names = ", ".join(f"{label} ({n})" for label, n in few)
            warn_user(
                f"fewer than {MIN_DISKS} disks stand out of the noise in {len(few)} of "
                f"{len(self.noise)} averages: clusters {names}; their orientations will rarely be "
                "sure. More electrons, larger clusters or a larger detector give more disks"
            )
        return bragg


def propose_disk_options(
    sizes: NDArray[Any],
    averages: Any,
    template: Any,
    *,
    gain: float,
    offset: float,
    significance: float,
) -> DiskOptions:
    """Core of `Clusters.propose_disk_options`."""
    data = values_of(averages)
    if np.ndim(data) != 4 or np.shape(data)[:2] != (len(sizes), 1):
        raise ValueError(
            f"averages of shape {np.shape(data)} must have one pattern for each of the "
            f"{len(sizes)} clusters, (N, 1, Qx, Qy)"
        )
    template = np.asarray(template, dtype=float)
    if template.shape != np.shape(data)[2:]:
        raise ValueError(
            f"template of shape {template.shape} must have that of the patterns, "
            f"{np.shape(data)[2:]}"
        )
    positive = np.maximum(template, 0)
    row, column = (np.minimum(np.arange(n), n - np.arange(n)) < n / 4 for n in template.shape)
    if not positive[np.ix_(row, column)].sum() > 0.5 * positive.sum():
        raise ValueError(
            "template must be a kernel with the disk around pixel (0, 0); use probe.kernel after "
            "probe.get_kernel(mode='flat', origin=...), not probe.probe"
        )
    gain = check_number("gain", gain, 1e-12)
    significance = check_number("significance", significance, 0)
    radius = template_radius(template)
    noise = gain / np.maximum(np.asarray(sizes, dtype=float), 1)
    kernel = zero_sum_template(template, radius)
    level = np.nanmedian(np.asarray(data[:, 0], dtype=float) - offset, axis=(1, 2))
    limit = np.sqrt(noise * np.maximum(level, noise) * (kernel**2).sum())
    options = {
        "template": kernel,
        "corrPower": 1,
        "sigma_cc": max(0.5 * radius, 0.5),
        "subpixel": "multicorr",
        "upsample_factor": 16,
        "minRelativeIntensity": 0,
        # Smoothing lowers the peak and the noise; half of the limit leaves no disk out.
        "minAbsoluteIntensity": 0.5 * significance * float(limit.min(initial=np.inf)),
        "minPeakSpacing": max(2 * radius, 2),
        "edgeBoundary": max(round(radius), 1),
        "maxNumPeaks": _MOST_PEAKS,
    }
    return DiskOptions(options, radius, noise, gain, offset, significance)
