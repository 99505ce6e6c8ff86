"""The command ``cluster``: cluster one scan."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ..base.checks import check_out
from ..emd import writing
from ..scan.datacubes import files_of
from ..scan.opening import notes_of
from .options import (
    check_before_opening,
    check_other_file,
    check_report,
    command_line,
    common_options,
    draw_overview,
    filter_and_r_mask,
    is_growth,
    load_datacube,
    make_folder,
    make_q_mask,
    opening_options,
    parse_step,
    time_since,
)


def run_cluster(options: argparse.Namespace) -> None:
    """Cluster a scan, and write averages, clusters and figures."""
    from ..grains.averages import get_clustered_datacube, keep_clusters
    from ..grains.describe import find_doubts

    if options.out.exists() and not options.overwrite:
        raise ValueError(f"--out {options.out} exists; give another name, or --overwrite")
    path = check_out(options.out, options.overwrite)
    check_other_file(path, [options.file])
    check_before_opening(options)
    grows = is_growth(options)
    filtering, r_mask = filter_and_r_mask(options)
    step = None if options.step is None else parse_step(*options.step)
    opening = opening_options(options)
    figures = options.figures and make_folder(options.figures)
    report = check_report(options.report, [options.file, path])
    start = time.perf_counter()
    scan = load_datacube(options.file, opening, step)
    check_other_file(path, files_of(scan.data))
    common = common_options(options)
    shape = " x ".join(map(str, scan.data.shape))
    print(f"{options.file}: {shape}, {scan.data.dtype}, opened in {time_since(start)}")
    if notes := notes_of(scan):
        print(f"the file: {'; '.join(notes)}")

    q_mask = make_q_mask(scan, options.q_range, options.q_center)

    if grows:
        found, similarity = _grow(scan, options, filtering, q_mask, r_mask, common)
    else:
        found, similarity = _merge(scan, options, q_mask, r_mask, common), None
    found.sort(key=lambda clusters: clusters.n_clusters > 0)  # results without clusters come first
    start = time.perf_counter()
    averages = get_clustered_datacube(scan, found[-1], **common)
    for clusters in found:
        for doubt in find_doubts(clusters):
            print(f"check {clusters.name!r}: {doubt}")
    print(f"averaged {found[-1].name!r} in {time_since(start)}")
    for clusters in found:
        keep_clusters(averages, clusters)
    writing.save_new(path, averages)
    print(f"wrote {path}")
    if figures is not None:
        for clusters in found:
            draw_overview(
                figures, similarity, clusters, averages if clusters is found[-1] else None
            )
    if report is not None:
        _write_report(report, options, scan, found, averages)


def _write_report(
    path: Path, options: argparse.Namespace, scan: Any, found: list[Any], averages: Any
) -> None:
    """Write the page of ``--report``."""
    from ..exporting.report import write_report
    from ..scan.virtual import scattered_image
    from .info import describe_scan

    start = time.perf_counter()
    image = scattered_image(scan, **common_options(options))
    write_report(
        path,
        found,
        averages,
        image=image,
        facts={"file": options.file, **describe_scan(scan, options.file)},
        command=command_line(options),
    )
    print(f"wrote {path} in {time_since(start)}")


def _merge(
    scan: Any, options: argparse.Namespace, q_mask: Any, r_mask: Any, common: dict[str, Any]
) -> list[Any]:
    """Merge regions, and cut their tree at each level that was given."""
    from ..grains.clustering import get_cluster_tree

    start = time.perf_counter()
    tree: Any = get_cluster_tree(scan, lag=options.lag, r_mask=r_mask, q_mask=q_mask, **common)
    print(f"merged in {time_since(start)}: {tree}")
    thresholds = options.threshold or [None]
    found = []
    for threshold in thresholds:
        clusters = tree.cut(
            threshold,
            level=options.level,
            min_size=options.min_size,
            drop_background=not options.keep_background,
            name=_name(threshold, thresholds),
        )
        found.append(clusters)
        print(f"level {clusters.settings['level']:g}: {clusters}")
    return found


def _name(threshold: float | None, thresholds: list[Any]) -> str:
    """Name of the clusters of one of several thresholds."""
    return f"clusters_{threshold}" if len(thresholds) > 1 else "clusters"


def _grow(
    scan: Any,
    options: argparse.Namespace,
    filtering: dict[str, Any],
    q_mask: Any,
    r_mask: Any,
    common: dict[str, Any],
) -> tuple[list[Any], Any]:
    """As in the paper: filter, compare neighbours, and grow clusters at each threshold."""
    from ..grains.clustering import cluster
    from ..patterns.filtering import filter_correlative
    from ..patterns.lowrank import filter_lowrank
    from ..patterns.similarity import get_similarity

    source = scan
    if options.filter or options.filter_lowrank:
        start = time.perf_counter()
        if options.filter:
            source = filter_correlative(scan, **filtering, **common)
        else:
            source = filter_lowrank(scan, **common)
        print(f"filtered in {time_since(start)}")
    start = time.perf_counter()
    similarity: Any = get_similarity(source, q_mask=q_mask, sigma=options.sigma or 0, **common)
    print(f"compared in {time_since(start)}: {similarity}")
    thresholds = options.threshold or [0.9]
    found = []
    for threshold in thresholds:
        start = time.perf_counter()
        clusters: Any = cluster(
            source,
            threshold=threshold,
            min_size=options.min_size,
            r_mask=r_mask,
            similarity=similarity,
            name=_name(threshold, thresholds),
        )
        found.append(clusters)
        print(f"threshold {threshold}, {time_since(start)}: {clusters}")
    return found, similarity
