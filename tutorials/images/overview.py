"""Draw the picture at the top of the README: ``python tutorials/images/overview.py``.

Simulated gold particles in a liquid, from the scan to the orientation map. Needs the extra acom.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np

from py4dstem_clustering import plot_averages, plot_clusters, simulate_scan
from py4dstem_clustering.benchmarks.orientation import DISKS, PLAN, disk_template
from py4dstem_clustering.plotting.style import add_scale_bar


def main() -> None:
    """Simulate, cluster, average, match, draw."""
    scan = simulate_scan(
        (64, 60), (96, 90), n_grains=8, electrons=1000, probe_blur=0.7, twins=0.3, seed=11
    )
    cube, crystal = scan.datacube, scan.crystal
    clusters = cube.cluster(min_size=10, progress_bar=False)
    averages = cube.get_clustered_datacube(clusters, progress_bar=False)
    # py4DSTEM prints, warns and draws a window of its own.
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        crystal.orientation_plan(**PLAN)
        bragg = averages.find_Bragg_disks(template=disk_template(cube.Qshape), **DISKS)
        bragg.setcal()
        maps = clusters.expand_orientation_map(crystal.match_orientations(bragg))
        images, figure, (*_, legend) = crystal.plot_orientation_maps(
            maps, corr_range=np.array([0, 1]), returnfig=True
        )
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())
        left, bottom, width, height = map(int, legend.get_window_extent().bounds)
        # With the names of the directions, which lie partly outside.
        top = max(0, len(pixels) - bottom - height - height // 8)
        key = pixels[top : len(pixels) - bottom + height // 8, left - width // 8 :]
        plt.close(figure)
    drawn = (key[..., :3] < 250).any(axis=2)
    rows, columns = (np.flatnonzero(drawn.any(axis=axis)) for axis in (1, 0))
    key = key[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    q_mask = cube.make_detector(cube.Qshape, "annulus", ((47.5, 44.5), (6, 44)))
    dark_field = cube.data[..., q_mask].sum(axis=-1, dtype=float)
    figure, axes = plt.subplots(
        1, 5, figsize=(16, 4.2), layout="constrained", width_ratios=(1, 1, 1, 1, 0.35)
    )
    nothing = clusters.remove(range(clusters.n_clusters))
    plot_clusters(nothing, axes[0], image=dark_field, title="virtual dark field")
    plot_clusters(clusters, axes[1], image=dark_field, title="clusters, nothing tuned")
    plot_averages(averages, axes[2]).set_title("cluster averages")
    orientation = np.where((clusters.labels >= 0)[..., None], images[..., 1], 1)
    axes[3].imshow(np.clip(orientation, 0, 1), interpolation="nearest")
    axes[3].set(title="orientation along the beam", xticks=[], yticks=[])
    add_scale_bar(
        axes[3], clusters.pixel_size, clusters.pixel_units, clusters.shape[1], color="black"
    )
    axes[4].imshow(key)
    axes[4].set_axis_off()
    figure.savefig(Path(__file__).with_name("overview.png"), dpi=110)


if __name__ == "__main__":
    main()
