"""The command ``demo``: cluster a simulated scan and draw the figures."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_number
from ..emd import writing
from .options import draw_overview, make_folder, save_figure, time_since


def run_demo(options: argparse.Namespace) -> None:
    """Simulate a scan, cluster it both ways, and write files, figures and a table."""
    from ..grains.averages import get_clustered_datacube
    from ..grains.clustering import cluster
    from ..patterns.filtering import filter_correlative
    from ..patterns.similarity import get_similarity
    from ..simulate.scan import simulate_scan

    check_number("--electrons", options.electrons, 0)
    folder = make_folder(options.out)
    start = time.perf_counter()
    truth = simulate_scan(electrons=options.electrons, seed=options.seed)
    scan = truth.datacube
    print(f"simulated {' x '.join(map(str, scan.data.shape))} in {time_since(start)}")

    clusters: Any = cluster(scan, progress_bar=False)
    averages = get_clustered_datacube(scan, clusters, progress_bar=False)
    print(f"clustered and averaged in {time_since(start)}: {clusters}")

    # The same scan with the method of the paper. Patterns of few electrons correlate little, so no
    # neighbour would have a weight with the published corr_range.
    filtered = filter_correlative(scan, corr_range="auto", progress_bar=False)
    centre = tuple((n - 1) / 2 for n in scan.Qshape)
    q_mask = scan.make_detector(scan.Qshape, "annulus", (centre, (6, min(centre))))
    similarity: Any = get_similarity(filtered, q_mask=q_mask, progress_bar=False)
    grown: Any = cluster(
        filtered, threshold=0.9, min_size=5, r_mask="triangle", similarity=similarity, name="grown"
    )
    print(f"filtered, compared and grown in {time_since(start)}: {grown}")

    writing.save_new(folder / "demo.h5", scan)
    writing.save_new(folder / "averages.h5", averages)
    dark_field = scan.data[..., q_mask].sum(axis=-1, dtype=np.float64)
    draw_overview(folder, None, clusters, averages, dark_field)
    draw_overview(folder, similarity, grown, None, dark_field)
    save_figure(
        folder / "overview.png", lambda figure: _overview(figure, dark_field, clusters, averages)
    )
    print(f"wrote demo.h5, averages.h5 and figures to {folder}")
    _print_table(clusters, truth.labels)


def _print_table(clusters: Any, truth: NDArray[Any]) -> None:
    """Print each cluster beside the simulated grain that most of its positions lie in."""
    print(f"\n{'cluster':>7} {'positions':>9} {'area / nm²':>10} {'similarity':>10}  known grain")
    for row in clusters.properties():
        member = clusters.labels == row["label"]
        names, counts = np.unique(truth[member], return_counts=True)
        grain = names[counts.argmax()]
        iou = counts.max() / (member | (truth == grain)).sum()
        name = "liquid" if grain < 0 else f"grain {grain}"
        print(
            f"{row['label']:>7} {row['size']:>9} {row['area'] / 100:>10.0f} "
            f"{row['similarity']:>10.3f}  {name}, intersection over union {iou:.2f}"
        )


def _overview(figure: Any, image: NDArray[Any], clusters: Any, averages: Any) -> None:
    """Draw scan, clusters and averages side by side."""
    from .. import plotting

    figure.set_size_inches(11, 4)
    left, middle, right = figure.subplots(1, 3)
    plotting.plot_clusters(
        clusters.remove(range(clusters.n_clusters)), left, image=image, title="dark field"
    )
    plotting.plot_clusters(clusters, middle, image=image, title="clusters")
    plotting.plot_averages(averages, right).set_title("cluster averages")
