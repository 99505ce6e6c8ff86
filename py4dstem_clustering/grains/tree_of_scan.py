"""The tree of a scan: from features that merge, or from a similarity over which clusters grow."""

from __future__ import annotations

from functools import lru_cache, partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from py4DSTEM import DataCube

from ..base.checks import check_flag, check_memory, check_n_jobs, resolve_r_mask
from ..base.progress import progress
from ..kernels.blas import single_threaded_blas
from ..kernels.blocks import Report
from ..kernels.connected import connect
from ..kernels.crystals import CRYSTAL_LEVEL, PATTERN_LEVEL, find_crystals
from ..kernels.disks import Disks, get_disks
from ..kernels.features import Features, features_need
from ..kernels.finer import FINER_LEVELS, finer_regions
from ..kernels.lag import Lag, find_lag, join_tails, settle_lag, undo_lag
from ..kernels.lost import lost_in_similarity
from ..kernels.merging import Merges, find_regions, joins_of, merge_positions
from ..kernels.noise import noise_need
from ..kernels.similarity import feature_similarity, similarity_mean
from ..kernels.tree import spanning_forest
from ..patterns.features import measure_features, noise_if_any
from ..patterns.on_workers import check_client
from ..patterns.similarity import measure_similarity
from ..scan.calibration import check_calibration, scan_step
from ..scan.datacubes import get_provenance, warn_of_other_data
from .options import ClusterOptions
from .tree import ClusterTree


def measure_tree(
    datacube: DataCube,
    options: ClusterOptions,
    *,
    n_jobs: Any,
    max_memory: Any,
    progress_bar: Any,
    finer: bool = True,
    client: Any = None,
) -> ClusterTree:
    """Make the tree of a scan; `options` are from `check_options`.

    Without `finer`, the tree of merging has no refined levels below that of regions of one pattern.
    The workers of a dask `client` read and compare patterns.
    """
    start = perf_counter()
    client = check_client(client)
    n_jobs, progress_bar = _check_work(datacube, n_jobs, progress_bar, client)
    if options.method == "grow":
        return _growth_tree(datacube, options, n_jobs, max_memory, progress_bar, start, client)
    return _merge_tree(datacube, options, n_jobs, max_memory, progress_bar, start, finer, client)[0]


def measure_merging(
    datacube: DataCube, options: ClusterOptions, *, n_jobs: Any, max_memory: Any, progress_bar: Any
) -> tuple[ClusterTree, Disks, NDArray[np.int64]]:
    """The tree of merging without refined levels, what turns its features into patterns, and the
    regions of one pattern, before those that vary are cut.
    """
    start = perf_counter()
    n_jobs, progress_bar = _check_work(datacube, n_jobs, progress_bar)
    return _merge_tree(datacube, options, n_jobs, max_memory, progress_bar, start, False)


def _check_work(
    datacube: DataCube, n_jobs: Any, progress_bar: Any, client: Any = None
) -> tuple[int | None, bool]:
    check_calibration(datacube)
    return check_n_jobs(n_jobs, client), check_flag("progress_bar", progress_bar)


def _growth_tree(
    datacube: DataCube,
    options: ClusterOptions,
    n_jobs: int | None,
    max_memory: int | str | None,
    progress_bar: bool,
    start: float,
    client: Any,
) -> ClusterTree:
    known = None
    if options.similarity is None:
        similarity = measure_similarity(
            datacube,
            q_mask=options.q_mask,
            sigma=0 if options.sigma is None else options.sigma,
            subtract_mean=options.subtract_mean is not False,
            client=client,
            n_jobs=n_jobs,
            max_memory=max_memory,
            progress_bar=progress_bar,
        )
        known = similarity.settings["fingerprint"]
    else:
        check_memory(max_memory)
        similarity = options.similarity
        warn_of_other_data("the similarity was", similarity.settings, datacube)
    lost = lost_in_similarity(similarity.data)
    mask = resolve_r_mask(options.r_mask, similarity.mean) & ~lost
    forest = spanning_forest(similarity.data, mask)
    provenance = get_provenance(datacube, start, known)
    # The options are noted only if `cluster` with them would measure this similarity again.
    own = similarity.settings.get("fingerprint") == provenance["fingerprint"]
    own &= not similarity.settings.get("noise_correct")
    measured = ("q_mask", "sigma", "subtract_mean")
    settings = {
        "method": "grow",
        "r_mask": options.r_mask,
        **{key: similarity.settings.get(key) if own else None for key in measured},
        "n_lost": int(lost.sum()),
        **provenance,
    }
    return ClusterTree(
        "grow",
        forest.first,
        forest.second,
        forest.level,
        forest.mask,
        settings,
        similarity,
        pixel_size=similarity.pixel_size,
        pixel_units=similarity.pixel_units,
    )


class _Merged(NamedTuple):
    """Result of merging the features of a scan."""

    similarity: NDArray[Any]
    """Similarity of the features of neighbours, ``(Rx, Ry, 8)``."""
    mask: NDArray[np.bool_]
    merges: Merges
    regions: NDArray[Any]
    """Regions of one pattern, ``(Rx, Ry)``."""


def _merge(features: Features, r_mask: Any) -> _Merged:
    """Merge positions by their features."""
    values = features.values
    similarity = feature_similarity(values)
    mask = resolve_r_mask(r_mask, similarity_mean(similarity))
    mask = mask & ~(features.lost & ~features.bridged)
    merges = merge_positions(values, mask)
    return _Merged(similarity, mask, merges, find_regions(values, merges))


def _merge_without_lag(
    features: Features, options: ClusterOptions, report: Report
) -> tuple[Features, _Merged, Lag | None]:
    """Features without the lag of the camera, what merging finds in them, and the lag.

    A lag shows only at borders, and moves them, so positions merge again without it.
    """

    @lru_cache(maxsize=1)  # the last lag that was tried is mostly the one that is taken
    def without(lag: Lag) -> tuple[Features, _Merged]:
        undone = undo_lag(features, lag)
        return undone, _merge(undone, options.r_mask)

    if options.lag in ("auto", 0):
        merged = _merge(features, options.r_mask)
        found = find_lag(features.values, merged.regions) if options.lag == "auto" else None
        if found is None:
            report(2)
            return features, merged, None
        del merged
        lag = settle_lag(features.values, found, lambda lag: without(lag)[1].regions)
    else:
        lag = Lag(1, 1, float(options.lag))
    report(1)
    undone, merged = without(lag)
    regions = join_tails(merged.regions, undone.values, lag)
    report(1)
    return undone, merged._replace(regions=regions), lag


def _all_joins(
    merges: Merges,
    finest: float,
    labels: NDArray[Any],
    pairs: NDArray[Any],
    level: NDArray[Any],
) -> list[NDArray[Any]]:
    """First position, second position and level of all joins: of positions, then of regions.

    Positions join up to the level of the `finest` regions. A join of two regions is stored as a
    join of one position in each region.
    """
    joins = joins_of(merges)
    fine = [part[joins[2] <= finest] for part in joins]
    inside = np.flatnonzero(labels >= 0)
    member = np.zeros(int(labels.max(initial=-1)) + 1, dtype=np.int64)
    member[labels.ravel()[inside]] = inside
    coarse = member[pairs[:, 0]], member[pairs[:, 1]], level
    return [np.concatenate(both) for both in zip(fine, coarse, strict=True)]


def _merge_tree(
    datacube: DataCube,
    options: ClusterOptions,
    n_jobs: int | None,
    max_memory: int | str | None,
    progress_bar: bool,
    start: float,
    finer: bool,
    client: Any = None,
) -> tuple[ClusterTree, Disks, NDArray[np.int64]]:
    n_rows = check_memory(
        max_memory,
        partial(features_need, datacube.data, n_jobs),
        partial(noise_need, datacube.data, n_jobs),
    )
    features = measure_features(
        datacube,
        options.q_mask,
        options.rank if isinstance(options.rank, int) else None,
        n_jobs=n_jobs,
        n_rows=n_rows,
        progress_bar=progress_bar,
        client=client,
    )
    noise = noise_if_any(datacube, n_jobs, progress_bar)
    with progress(3, "Merging", progress_bar, "steps") as report:
        features, merged, lag = _merge_without_lag(features, options, report)
        disks = get_disks(features)
        with single_threaded_blas:  # many small products
            crystals = find_crystals(
                features.values, merged.merges, merged.regions, disks, features.radial
            )
            regions, pairs, heights = crystals.labels, crystals.pairs, crystals.level
            if finer:
                regions, whole, parts, below = finer_regions(
                    features.values, merged.merges, regions, crystals.background, PATTERN_LEVEL
                )
                pairs = np.concatenate([parts, whole[pairs]])
                heights = np.concatenate([below, heights])
        regions, pairs, heights = connect(regions, pairs, heights, features.lost)
        finest = min(FINER_LEVELS) if finer else PATTERN_LEVEL
        first, second, level = _all_joins(merged.merges, finest, regions, pairs, heights)
        report(1)
    settings = {
        "method": "merge",
        "r_mask": options.r_mask,
        "q_mask": options.q_mask,
        "rank": features.values.shape[2],
        "automatic_level": CRYSTAL_LEVEL,
        "finest_level": finest,
        "gain": noise.gain,
        "offset": noise.offset,
        "noise": float(np.sqrt(np.median(features.variance / features.pixels))),
        "n_lost": int(features.lost.sum()),
        "lag": options.lag,
        "lag_share": 0.0 if lag is None else lag.decay,
        "lag_axis": None if lag is None else lag.name,
        **get_provenance(datacube, start),
    }
    tree = ClusterTree(
        "merge",
        first,
        second,
        level,
        merged.mask & ~features.lost,
        settings,
        merged.similarity,
        regions,
        features.values,
        crystals.background & ~features.lost,
        *scan_step(datacube),
    )
    return tree, disks, merged.regions
