"""Figures of cross-validation, gained disks and phases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from ..base.checks import check_number
from .style import PALETTE, axes_or_new, bare_frame, draw_scale_bar, hatch


def plot_cross_validation(
    validation: Any,
    axes: Any = None,
    *,
    max_error: float | None = None,
    scale_bar: bool | Mapping[str, Any] = True,
) -> Any:
    """Draw the error map of each method side by side, with one colour bar.

    Parameters
    ----------
    validation : CrossValidation
        From ``datacube.cross_validate_orientation()``.
    axes : sequence of matplotlib Axes, optional
        Where to draw, one for each method; by default in a new figure.
    max_error : float, optional
        Error at the upper end of the colour bar, degrees; by default the 95th percentile of all
        errors, but at least 5.
    scale_bar : bool or dict
        As in `plot_clusters`.

    Returns
    -------
    ndarray of matplotlib Axes
        Positions without an error are grey: the position or all four neighbours have no
        orientation. Titles compare the mean errors over the positions where all methods have one
        ("in common"); below stands the mean over all positions of the method, with their share of
        the scan.
    """
    errors = validation.errors
    if max_error is None:
        values = np.concatenate([error[np.isfinite(error)] for error in errors.values()])
        max_error = max(5.0, np.percentile(values, 95)) if values.size else 5.0
    max_error = check_number("max_error", max_error, 1e-6)
    if axes is None:
        rx, ry = validation.shape
        height = np.clip(2.6 * rx / ry, 1.5, 8) + 0.6
        size = (2.6 * len(errors) + 0.8, height + 0.2)
        axes = plt.subplots(1, len(errors), figsize=size, layout="compressed", squeeze=False)[1]
    axes = np.ravel(axes)
    if len(axes) != len(errors):
        raise ValueError(f"axes must be {len(errors)}, one for each method, not {len(axes)}")
    colors = plt.get_cmap("viridis").with_extremes(bad="0.8")
    for ax, row, error in zip(axes, validation.table(), errors.values(), strict=True):
        picture = ax.imshow(error, cmap=colors, vmin=0, vmax=max_error, interpolation="nearest")
        bare_frame(ax, None)
        ax.set_title(f"{row['method']}\n{_errors_text(row, error.size)}", fontsize=9)
    step = validation.pixel_size, validation.pixel_units
    draw_scale_bar(axes[0], scale_bar, step, validation.shape[1])
    ax.figure.colorbar(
        picture, ax=list(axes), label="misorientation (degrees)", extend="max", pad=0.02
    )
    return axes


def _errors_text(row: Any, n_positions: int) -> str:
    """Mean errors of one method, and the share of the scan over which each is a mean."""
    if not row["n_positions"]:
        return "no errors"
    own = f"{row['mean']:.2f}° in {row['n_positions'] / n_positions:.0%} of the scan"
    return f"{row['mean_common']:.2f}° in common\n{own}" if row["n_common"] else own


def plot_disks(gained: Any, ax: Axes | None = None, *, step: float = 0.1) -> Axes:
    """Draw the number of Bragg disks over the scattering vector, in averages and single patterns.

    Parameters
    ----------
    gained : GainedDisks
        From ``clusters.gained_disks()``.
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure.
    step : float
        Width of the bins, 1/Angstrom.

    Returns
    -------
    matplotlib Axes
        Number of disks per pattern in each bin. All clusters have the same weight.
    """
    step = check_number("step", step, 1e-3)
    pairs = [
        (average, np.concatenate(single), len(single))
        for average, single in zip(gained.average, gained.single, strict=True)
        if average is not None
    ]
    farthest = max((q.max(initial=0) for pair in pairs for q in pair[:2]), default=0)
    edges = step * np.arange(np.floor(farthest / step) + 2)
    averages, singles = np.zeros((2, len(edges) - 1))
    for average, single, n_members in pairs:
        averages += np.histogram(average, edges)[0] / len(pairs)
        singles += np.histogram(single, edges)[0] / n_members / len(pairs)
    ax = axes_or_new(ax)
    for counts, name, color in (
        (averages, "averages", PALETTE[0]),
        (singles, "single patterns", PALETTE[1]),
    ):
        label = f"{name}: {counts.sum():.1f} disks"
        ax.stairs(counts, edges, fill=True, color=color, alpha=0.25)
        ax.stairs(counts, edges, color=color, linewidth=1.5, label=label)
    ax.set_xlabel("scattering vector (Å⁻¹)")
    ax.set_ylabel(f"Bragg disks a pattern, in {step:g} Å⁻¹")
    ax.margins(y=0.25)  # room for the legend, which would cover the stairs
    ax.legend(frameon=False, loc="upper right")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_phases(
    phases: Any, ax: Axes | None = None, *, scale_bar: bool | Mapping[str, Any] = True
) -> Axes:
    """Draw which crystal each scan position is.

    Parameters
    ----------
    phases : PhaseMap
        From ``clusters.map_phases()``.
    ax : matplotlib Axes, optional
        Where to draw; by default in a new figure.
    scale_bar : bool or dict
        As in `plot_clusters`.

    Returns
    -------
    matplotlib Axes
        One colour for each crystal. Undecided clusters have the colour of the better crystal, with
        white hatching. Clusters that are none of the crystals are dark grey, positions in no
        cluster light grey. The legend counts clusters.
    """
    ax = axes_or_new(ax)
    names = phases.names
    colors = [PALETTE[k % len(PALETTE)] for k in range(len(names))]
    number = np.append(phases.phase, len(names) + 1)[phases.labels]
    number[number < 0] = len(names)
    ax.imshow(
        number,
        cmap=ListedColormap([*colors, "0.35", "0.88"]),
        vmin=-0.5,
        vmax=len(names) + 1.5,
        interpolation="nearest",
    )
    hatch(ax, np.append(phases.undecided, False)[phases.labels])
    for k in range(len(phases.phase)):
        ax.contour(phases.labels == k, levels=[0.5], colors="black", linewidths=0.6)
    decided = phases.decided
    shown = [
        Patch(color=color, label=f"{name}: {(decided == k).sum()}")
        for k, (name, color) in enumerate(zip(names, colors, strict=True))
    ]
    others = {
        "none of these": ("0.35", None, int((phases.phase < 0).sum())),
        "undecided": ("0.6", "////", int(phases.undecided.sum())),
    }
    shown += [
        Patch(facecolor=color, edgecolor="white", hatch=hatch, label=f"{name}: {count}")
        for name, (color, hatch, count) in others.items()
        if count
    ]
    ax.legend(handles=shown, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    bare_frame(ax, None)
    step = (phases.pixel_size, phases.pixel_units)
    draw_scale_bar(ax, scale_bar, step, phases.labels.shape[1], color="black")
    return ax
