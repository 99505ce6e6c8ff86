"""How well labels match known grains, and tracks of many frames known particles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import skimage.metrics
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.optimize import linear_sum_assignment

from .base.checks import check_number, values_of
from .base.frozen import Frozen


@dataclass(frozen=True, eq=False)
class PanopticQuality(Frozen):
    """How many grains were found, and how well; from `panoptic_quality`.

    ``quality == segmentation * recognition``, and ``float()`` gives the quality.

    Attributes
    ----------
    quality : float
        Panoptic quality, 0 to 1.
    segmentation : float
        Mean intersection over union of the matched pairs; 0 without any.
    recognition : float
        F1 score of finding grains: harmonic mean of the share of clusters and of grains matched.
    matches : ndarray, (n, 2), int
        Matched pairs [cluster, grain], by rising cluster.
    iou : ndarray, (n,)
        Intersection over union of each pair, above 0.5.
    """

    quality: float
    segmentation: float
    recognition: float
    matches: NDArray[Any] = field(repr=False)
    iou: NDArray[Any] = field(repr=False)

    def __post_init__(self) -> None:
        self._set(matches=np.array(self.matches, dtype=np.int64))
        self._set(iou=np.array(self.iou, dtype=np.float64))

    def __float__(self) -> float:
        return self.quality


def panoptic_quality(labels: Any, truth: Any) -> PanopticQuality:
    """Panoptic quality: are the grains found, one cluster each, and how well do they overlap?

    A cluster and a grain match when their intersection is more than half of their union; then
    neither can match another. The quality is the sum of intersection over union of the matched
    pairs, divided by the number of pairs plus half of the clusters and half of the grains left
    over. Positions of -1 are no segment, but those inside a cluster or a grain count in its union.

    Parameters
    ----------
    labels : ndarray, (Rx, Ry), int, or Clusters
        Number of the cluster of each scan position; -1 where it is in none.
    truth : ndarray, (Rx, Ry), int
        Number of the grain of each scan position; -1 where it is in none.

    Returns
    -------
    PanopticQuality
        Each number is 1 when there are neither clusters nor grains, and 0 without any match.

    Raises
    ------
    TypeError
        If a map does not hold integers.
    ValueError
        If a map is not 2D, is empty or holds less than -1, or the shapes differ.

    References
    ----------
    A. Kirillov et al., Panoptic segmentation, CVPR 2019, doi:10.1109/CVPR.2019.00963

    Examples
    --------
    >>> from py4dstem_clustering.metrics import panoptic_quality
    >>> truth = [[0, 0, 0, 0], [1, 1, 1, -1]]
    >>> labels = [[5, 5, 5, -1], [7, -1, -1, -1]]
    >>> result = panoptic_quality(labels, truth)
    >>> result
    PanopticQuality(quality=0.375, segmentation=0.75, recognition=0.5)
    >>> result.matches.tolist(), result.iou.tolist()
    ([[5, 0]], [0.75])
    """
    table = _overlaps(*_check_maps(labels, truth))
    n_segments = (table.clusters >= 0).sum() + (table.grains >= 0).sum()
    if n_segments == 0:
        return PanopticQuality(1.0, 1.0, 1.0, np.empty((0, 2)), np.empty(0))
    found = np.stack([table.clusters[table.rows], table.grains[table.columns]], axis=1)
    sizes = table.cluster_sizes[table.rows] + table.grain_sizes[table.columns]
    # IoU above 1/2 in whole numbers: 2 * common > sizes - common.
    match = (found >= 0).all(axis=1) & (3 * table.common > sizes)
    iou = table.common[match] / (sizes - table.common)[match]
    return PanopticQuality(
        # TP + FP / 2 + FN / 2 is half of all segments.
        quality=float(2 * iou.sum() / n_segments),
        segmentation=float(iou.mean()) if iou.size else 0.0,
        recognition=float(2 * iou.size / n_segments),
        matches=found[match],
        iou=iou,
    )


def adapted_rand_error(labels: Any, truth: Any) -> float:
    """Adapted Rand error: 1 minus the F score of pairs of positions put together.

    Of all pairs of positions in one cluster, and of all pairs in one grain, how many are both?
    All positions count: -1 is a class of its own in each map, so that a liquid in pieces is an
    error. Computed by `skimage.metrics.adapted_rand_error`.

    Parameters
    ----------
    labels : ndarray, (Rx, Ry), int, or Clusters
        Number of the cluster of each scan position; -1 where it is in none.
    truth : ndarray, (Rx, Ry), int
        Number of the grain of each scan position; -1 where it is in none.

    Returns
    -------
    float
        0 when both maps divide the scan alike, up to 1.

    Raises
    ------
    TypeError
        If a map does not hold integers.
    ValueError
        If a map is not 2D, is empty or holds less than -1, or the shapes differ.

    References
    ----------
    I. Arganda-Carreras et al., Front. Neuroanat. 9, 142 (2015), doi:10.3389/fnana.2015.00142

    Examples
    --------
    One grain of four positions in two halves: 2 pairs of 6 are together.

    >>> from py4dstem_clustering.metrics import adapted_rand_error
    >>> adapted_rand_error([[0, 0, 1, 1]], [[0, 0, 0, 0]])
    0.5
    """
    labels, truth = _check_maps(labels, truth)
    table = _overlaps(labels, truth)
    if table.cluster_sizes.max() == table.grain_sizes.max() == 1:
        return 0.0  # no position is together with another in either map: 0 / 0 in scikit-image
    with np.errstate(invalid="ignore"):  # its precision or recall may still be 0 / 0
        error, _, _ = skimage.metrics.adapted_rand_error(
            _from_one(truth), _from_one(labels), ignore_labels=()
        )
    return float(error)


def adjusted_rand_index(labels: Any, truth: Any) -> float:
    """Adjusted Rand index of Hubert and Arabie: agreement on pairs of positions beyond chance.

    All positions count: -1 is a class of its own in each map.

    Parameters
    ----------
    labels : ndarray, (Rx, Ry), int, or Clusters
        Number of the cluster of each scan position; -1 where it is in none.
    truth : ndarray, (Rx, Ry), int
        Number of the grain of each scan position; -1 where it is in none.

    Returns
    -------
    float
        1 when both maps divide the scan alike, about 0 for chance, negative below.

    Raises
    ------
    TypeError
        If a map does not hold integers.
    ValueError
        If a map is not 2D, is empty or holds less than -1, or the shapes differ.

    References
    ----------
    L. Hubert and P. Arabie, J. Classif. 2, 193 (1985), doi:10.1007/BF01908075

    Examples
    --------
    >>> from py4dstem_clustering.metrics import adjusted_rand_index
    >>> adjusted_rand_index([[3, 3, -1, -1]], [[0, 0, 1, 1]])
    1.0
    >>> adjusted_rand_index([[0, 1, 0, 1]], [[0, 0, 1, 1]])
    -0.5
    """
    table = _overlaps(*_check_maps(labels, truth))
    # Pairs that are together, as Python integers: the products below exceed 64 bits.
    both, in_labels, in_truth, pairs = (
        int((n * (n - 1) // 2).sum())
        for n in (table.common, table.cluster_sizes, table.grain_sizes, table.cluster_sizes.sum())
    )
    chance = 2 * in_labels * in_truth
    best = (in_labels + in_truth) * pairs
    if best == chance:  # one class in both maps, or every position by itself in both
        return 1.0
    return (2 * both * pairs - chance) / (best - chance)


def variation_of_information(labels: Any, truth: Any) -> tuple[float, float]:
    """Variation of information, as splits and merges; their sum is a distance of the maps.

    All positions count: -1 is a class of its own in each map. Computed by
    `skimage.metrics.variation_of_information`.

    Parameters
    ----------
    labels : ndarray, (Rx, Ry), int, or Clusters
        Number of the cluster of each scan position; -1 where it is in none.
    truth : ndarray, (Rx, Ry), int
        Number of the grain of each scan position; -1 where it is in none.

    Returns
    -------
    splits : float
        H(labels | truth), bits: what the cluster still tells once the grain is known. Above 0 when
        grains are divided into several clusters (too many clusters).
    merges : float
        H(truth | labels), bits: what the grain still tells once the cluster is known. Above 0 when
        clusters hold several grains (too few clusters).

    Raises
    ------
    TypeError
        If a map does not hold integers.
    ValueError
        If a map is not 2D, is empty or holds less than -1, or the shapes differ.

    References
    ----------
    M. Meila, J. Multivar. Anal. 98, 873 (2007), doi:10.1016/j.jmva.2006.11.013

    Examples
    --------
    One grain in two halves is one bit of splits.

    >>> from py4dstem_clustering.metrics import variation_of_information
    >>> variation_of_information([[0, 0, 1, 1]], [[0, 0, 0, 0]])
    (1.0, 0.0)
    """
    labels, truth = _check_maps(labels, truth)
    # With the truth first, scikit-image returns H(second | first), then H(first | second).
    splits, merges = skimage.metrics.variation_of_information(
        _from_one(truth), _from_one(labels), ignore_labels=()
    )
    return max(0.0, float(splits)), max(0.0, float(merges))  # rounding may leave -1e-16


def border_f_score(labels: Any, truth: Any, *, tolerance: float = 1.5) -> float:
    """F score of the borders: do they run where they should?

    The border of a map are the positions, on either side, with one of their four neighbours in
    another class; -1 is a class of its own. A border position is right when the other map has a
    border position within `tolerance`. Unlike in the source, one border position may serve several.

    Parameters
    ----------
    labels : ndarray, (Rx, Ry), int, or Clusters
        Number of the cluster of each scan position; -1 where it is in none.
    truth : ndarray, (Rx, Ry), int
        Number of the grain of each scan position; -1 where it is in none.
    tolerance : float
        Largest distance, scan positions. The default takes in the eight neighbours.

    Returns
    -------
    float
        Harmonic mean of the share of the borders of `labels` that are right (precision) and the
        share of the borders of `truth` that are found (recall), 0 to 1. 1 when neither map has
        borders, 0 when just one has.

    Raises
    ------
    TypeError
        If a map does not hold integers, or `tolerance` is no number.
    ValueError
        If a map is not 2D, is empty or holds less than -1, the shapes differ, or `tolerance` is
        negative or not finite.

    References
    ----------
    D. R. Martin et al., IEEE Trans. Pattern Anal. Mach. Intell. 26, 530 (2004),
    doi:10.1109/TPAMI.2004.1273918

    Examples
    --------
    A border two positions off: its nearer side is one position from the nearer side of the true
    one, the farther sides are three apart.

    >>> from py4dstem_clustering.metrics import border_f_score
    >>> labels, truth = [[0, 0, 1, 1, 1, 1]], [[0, 0, 0, 0, 1, 1]]
    >>> border_f_score(labels, truth)
    0.5
    >>> border_f_score(labels, truth, tolerance=2)
    1.0
    """
    labels, truth = _check_maps(labels, truth)
    tolerance = check_number("tolerance", tolerance, 0)
    found, known = _borders(labels), _borders(truth)
    if not (found.any() and known.any()):
        return float(found.any() == known.any())
    precision = (distance_transform_edt(~known)[found] <= tolerance).mean()
    recall = (distance_transform_edt(~found)[known] <= tolerance).mean()
    if precision + recall == 0:
        return 0.0
    return float(2 * precision * recall / (precision + recall))


@dataclass(frozen=True)
class TrackQuality:
    """How well tracks follow known particles; from `track_quality`.

    An appearance is one particle, or one track, in one frame.

    Attributes
    ----------
    mota : float
        Multiple object tracking accuracy: 1 minus misses, false positives and switches, for each
        appearance of a particle; at most 1, below 0 where there are more errors than appearances.
        NaN where there are tracks but no particle.
    idf1 : float
        F1 score of identities, 0 to 1: appearances that one track for each particle explains, and
        one particle for each track, as a share of the mean number of appearances in both.
    precision : float
        Share of the appearances of tracks that match a particle.
    recall : float
        Share of the appearances of particles that match a track.
    misses : int
        Appearances of particles without a track.
    false_positives : int
        Appearances of tracks without a particle.
    switches : int
        How often a particle matches another track than the last time it matched one.
    """

    mota: float
    idf1: float
    precision: float
    recall: float
    misses: int
    false_positives: int
    switches: int


def track_quality(tracks: Any, truth: Any, *, iou: float = 0.5) -> TrackQuality:
    """Track quality: are the particles found in each frame, and do they keep their track?

    In each frame, a particle and a track may match when their intersection is more than `iou` of
    their union. For the accuracy (MOTA), a particle keeps the track that it last matched, while
    they may match; of the others, as many as can be are paired one to one, then those with the
    largest sum of intersection over union. For the identities (IDF1), whole tracks are paired with
    whole particles, one to one, so that they match in as many frames as can be: unlike MOTA, that
    depends on how long a particle has the right track, not on how often it changes.

    Parameters
    ----------
    tracks : ndarray, (T, Rx, Ry), int
        Number of the track of each scan position in each frame; -1 where it is in none. Leave out
        the background, with -1: a track of the liquid counts as a false positive.
    truth : ndarray, (T, Rx, Ry), int
        Number of the particle of each scan position in each frame; -1 where it is in none.
    iou : float
        Least intersection over union of a match, exclusive, from 0 to below 1. From 0.5, matches
        in a frame are unique; take less where particles are of a few positions only.

    Returns
    -------
    TrackQuality
        All scores are 1 when there are neither tracks nor particles. With one of both only, they
        are 0, but MOTA is NaN without particles.

    Raises
    ------
    TypeError
        If the maps do not hold integers, or `iou` is no number.
    ValueError
        If the maps are not 3D, are empty or hold less than -1, the shapes differ, or `iou` breaks
        its rule.

    References
    ----------
    MOTA: K. Bernardin and R. Stiefelhagen, EURASIP J. Image Video Process. 2008, 246309,
    doi:10.1155/2008/246309

    IDF1: E. Ristani et al., ECCV 2016 Workshops, LNCS 9914, 17, doi:10.1007/978-3-319-48881-3_2

    Examples
    --------
    One particle in four frames, which changes its track in the last.

    >>> from py4dstem_clustering.metrics import track_quality
    >>> truth = [[[0, 0, -1]], [[0, 0, -1]], [[-1, 0, 0]], [[-1, 0, 0]]]
    >>> tracks = [[[3, 3, -1]], [[3, 3, -1]], [[-1, 3, 3]], [[-1, 5, 5]]]
    >>> result = track_quality(tracks, truth)
    >>> result.mota, result.idf1, result.switches
    (0.75, 0.75, 1)
    """
    tracks, truth = _check_maps(tracks, truth, "tracks", "T, Rx, Ry")
    iou = check_number("iou", iou, 0, 1)
    if iou == 1:
        raise ValueError(f"{iou=} must be below 1: a match overlaps by more than that")
    # Frames in which each track and each particle may match.
    track_numbers, particle_numbers = np.unique(tracks[tracks >= 0]), np.unique(truth[truth >= 0])
    together = np.zeros((len(track_numbers), len(particle_numbers)), dtype=np.int64)
    last: dict[int, int] = {}  # track that each particle last matched
    n_tracks = n_particles = n_matches = switches = 0
    for found, known in zip(tracks, truth, strict=True):
        table = _overlaps(found, known)
        n_tracks += int((table.clusters >= 0).sum())
        n_particles += int((table.grains >= 0).sum())
        track, particle = table.clusters[table.rows], table.grains[table.columns]
        sizes = table.cluster_sizes[table.rows] + table.grain_sizes[table.columns]
        overlap = table.common / (sizes - table.common)
        may = (track >= 0) & (particle >= 0) & (overlap > iou)
        track, particle, overlap = track[may], particle[may], overlap[may]
        rows = np.searchsorted(track_numbers, track)
        together[rows, np.searchsorted(particle_numbers, particle)] += 1
        matches = _clear_matches(track, particle, overlap, last)
        switches += sum(last.get(k, number) != number for k, number in matches.items())
        last |= matches
        n_matches += len(matches)
    identities = together[linear_sum_assignment(together, maximize=True)].sum()
    misses, false_positives = n_particles - n_matches, n_tracks - n_matches
    if n_particles == 0:
        mota = np.nan if n_tracks else 1.0
    else:
        mota = 1 - (misses + false_positives + switches) / n_particles
    nothing = float(n_tracks == n_particles == 0)
    return TrackQuality(
        mota=mota,
        idf1=float(2 * identities / (n_tracks + n_particles)) if not nothing else 1.0,
        precision=n_matches / n_tracks if n_tracks else nothing,
        recall=n_matches / n_particles if n_particles else nothing,
        misses=misses,
        false_positives=false_positives,
        switches=switches,
    )


def _clear_matches(
    track: NDArray[Any], particle: NDArray[Any], overlap: NDArray[Any], last: dict[int, int]
) -> dict[int, int]:
    """Track of each particle in one frame, of the pairs that may match and the last tracks."""
    matches: dict[int, int] = {}
    kept = [i for i, k in enumerate(particle) if last.get(int(k)) == track[i]]
    # Two particles may have had the same track last, one after the other.
    for i in sorted(kept, key=lambda i: -overlap[i]):
        if track[i] not in matches.values():
            matches[int(particle[i])] = int(track[i])
    free = ~np.isin(track, list(matches.values())) & ~np.isin(particle, list(matches))
    tracks, rows = np.unique(track[free], return_inverse=True)
    particles, columns = np.unique(particle[free], return_inverse=True)
    value = np.zeros((len(tracks), len(particles)))
    # More than all overlaps together, so that the number of pairs comes first.
    value[rows, columns] = min(value.shape) + overlap[free]
    for row, column in zip(*linear_sum_assignment(value, maximize=True), strict=True):
        if value[row, column] > 0:
            matches[int(particles[column])] = int(tracks[row])
    return matches


class _Overlaps(NamedTuple):
    """The contingency table of two maps, without its zeros."""

    clusters: NDArray[Any]  # numbers that occur in the labels, rising, -1 among them
    grains: NDArray[Any]  # the same of the truth
    cluster_sizes: NDArray[Any]
    grain_sizes: NDArray[Any]
    rows: NDArray[Any]  # index to clusters of each pair that overlaps
    columns: NDArray[Any]  # index to grains
    common: NDArray[Any]  # number of positions in both


def _overlaps(labels: NDArray[Any], truth: NDArray[Any]) -> _Overlaps:
    clusters, row, cluster_sizes = np.unique(labels, return_inverse=True, return_counts=True)
    grains, column, grain_sizes = np.unique(truth, return_inverse=True, return_counts=True)
    pairs, common = np.unique(row * len(grains) + column, return_counts=True)
    rows, columns = np.divmod(pairs, len(grains))
    return _Overlaps(clusters, grains, cluster_sizes, grain_sizes, rows, columns, common)


def _from_one(labels: NDArray[Any]) -> NDArray[Any]:
    """Renumber from 1: scikit-image takes numbers as indices, and 0 as what to ignore."""
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape) + 1


def _borders(labels: NDArray[Any]) -> NDArray[Any]:
    """Where a 4-neighbour has another label."""
    border = np.zeros(labels.shape, dtype=bool)
    for values, out in ((labels, border), (labels.T, border.T)):
        differ = values[1:] != values[:-1]
        out[1:] |= differ
        out[:-1] |= differ
    return border


def _check_map(name: str, labels: Any, axes: str) -> NDArray[Any]:
    """A map of whole numbers from -1, not empty."""
    labels = np.asarray(values_of(getattr(labels, "labels", labels)))
    n_axes = len(axes.split(", "))
    if labels.ndim != n_axes:
        raise ValueError(
            f"{name} of shape {labels.shape} must be a {n_axes}D map ({axes}); use "
            f"{name}.reshape({axes})"
        )
    if labels.size == 0:
        raise ValueError(f"{name} of shape {labels.shape} is empty: give at least one position")
    if labels.dtype.kind not in "iu":
        raise TypeError(
            f"{name} of type {labels.dtype} must hold whole numbers; use {name}.astype(int)"
        )
    for value in (int(labels.min()), int(labels.max())):
        if not -1 <= value < 2**63:  # -1 becomes 2**64 - 1 when it is cast to unsigned integers
            raise ValueError(
                f"{name} holds {value}: it must hold numbers from 0, and -1 where there is no "
                "grain; write -1 there"
            )
    return labels.astype(np.int64)


def _check_maps(
    labels: Any, truth: Any, name: str = "labels", axes: str = "Rx, Ry"
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two maps of one shape."""
    labels, truth = _check_map(name, labels, axes), _check_map("truth", truth, axes)
    if labels.shape != truth.shape:
        raise ValueError(
            f"{name} of shape {labels.shape} and truth of shape {truth.shape} must have the same "
            "shape; cut both to the same scan positions"
        )
    return labels, truth
