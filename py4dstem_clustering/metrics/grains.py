"""How well the labels of a scan match known grains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import skimage.metrics
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from ..base.checks import check_number
from ..base.frozen import Frozen
from .overlaps import check_maps, count_overlaps


@dataclass(frozen=True, eq=False)
class PanopticQuality(Frozen):
    """How many grains were found, and how well; from `panoptic_quality`.

    ``quality`` is ``segmentation * recognition``; ``float(result)`` gives the quality.

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
    matches: NDArray[np.int64] = field(repr=False)
    iou: NDArray[np.float64] = field(repr=False)

    def __post_init__(self) -> None:
        self._set(matches=np.array(self.matches, dtype=np.int64))
        self._set(iou=np.array(self.iou, dtype=np.float64))

    def __float__(self) -> float:
        return self.quality


def panoptic_quality(labels: Any, truth: Any) -> PanopticQuality:
    """Panoptic quality: is each grain found as one cluster, and how well do both overlap?

    A cluster and a grain match when their intersection is more than half of their union, so each
    has at most one match. The quality is the sum of the intersections over unions of all
    matched pairs, divided by the number of pairs plus half of the number of unmatched clusters and
    grains. Positions with -1 form no segment, but inside a cluster or a grain they count as part of
    the union.

    Parameters
    ----------
    labels : ndarray, (Rx, Ry), int, or Clusters
        Number of the cluster of each scan position; -1 where it is in none.
    truth : ndarray, (Rx, Ry), int
        Number of the grain of each scan position; -1 where it is in none.

    Returns
    -------
    PanopticQuality
        Each score is 1 when there are neither clusters nor grains, and 0 without any match.

    Raises
    ------
    TypeError, ValueError
        If a map is not 2D, is empty or does not hold whole numbers from -1, or the shapes differ.

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
    table = count_overlaps(*check_maps(labels, truth))
    n_segments = (table.clusters >= 0).sum() + (table.grains >= 0).sum()
    if n_segments == 0:
        return PanopticQuality(1.0, 1.0, 1.0, np.empty((0, 2), dtype=np.int64), np.empty(0))
    found = np.stack([table.clusters[table.rows], table.grains[table.columns]], axis=1)
    sizes = table.cluster_sizes[table.rows] + table.grain_sizes[table.columns]
    # Intersection over union above 1/2, in whole numbers: 2 * common > sizes - common.
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
    """Adapted Rand error: 1 minus the F score of pairs of positions that are together.

    Precision is the share of the pairs in one cluster that are also in one grain; recall is the
    share of the pairs in one grain that are also in one cluster. All positions count: -1 is a class
    of its own in each map, so a liquid that is split into clusters is an error. Computed by
    `skimage.metrics.adapted_rand_error`.

    Parameters
    ----------
    labels : ndarray, (Rx, Ry), int, or Clusters
        Number of the cluster of each scan position; -1 where it is in none.
    truth : ndarray, (Rx, Ry), int
        Number of the grain of each scan position; -1 where it is in none.

    Returns
    -------
    float
        0 when both maps divide the scan in the same way; at most 1.

    Raises
    ------
    TypeError, ValueError
        If a map is not 2D, is empty or does not hold whole numbers from -1, or the shapes differ.

    References
    ----------
    I. Arganda-Carreras et al., Front. Neuroanat. 9, 142 (2015), doi:10.3389/fnana.2015.00142

    Examples
    --------
    One grain of four positions is split into halves: 2 of its 6 pairs share a cluster.

    >>> from py4dstem_clustering.metrics import adapted_rand_error
    >>> adapted_rand_error([[0, 0, 1, 1]], [[0, 0, 0, 0]])
    0.5
    """
    labels, truth = check_maps(labels, truth)
    table = count_overlaps(labels, truth)
    if table.cluster_sizes.max() == table.grain_sizes.max() == 1:
        return 0.0  # every position is alone in both maps: scikit-image would divide 0 / 0
    with np.errstate(invalid="ignore"):  # precision or recall may still be 0 / 0
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
        1 when both maps divide the scan in the same way, about 0 for chance, below 0 if worse.

    Raises
    ------
    TypeError, ValueError
        If a map is not 2D, is empty or does not hold whole numbers from -1, or the shapes differ.

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
    table = count_overlaps(*check_maps(labels, truth))
    # Numbers of pairs in the same class. Python integers, because products may exceed 64 bits.
    both, in_labels, in_truth, pairs = (
        int((n * (n - 1) // 2).sum())
        for n in (table.common, table.cluster_sizes, table.grain_sizes, table.cluster_sizes.sum())
    )
    chance = 2 * in_labels * in_truth
    best = (in_labels + in_truth) * pairs
    if best == chance:  # both maps have one class, or a class for each position
        return 1.0
    return (2 * both * pairs - chance) / (best - chance)


def variation_of_information(labels: Any, truth: Any) -> tuple[float, float]:
    """Variation of information, as splits and merges; the sum is a distance between the maps.

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
        H(labels | truth), bits: what is unknown about the cluster when the grain is known. Above 0
        when grains are divided into several clusters (too many clusters).
    merges : float
        H(truth | labels), bits: what is unknown about the grain when the cluster is known. Above 0
        when clusters hold several grains (too few clusters).

    Raises
    ------
    TypeError, ValueError
        If a map is not 2D, is empty or does not hold whole numbers from -1, or the shapes differ.

    References
    ----------
    M. Meila, J. Multivar. Anal. 98, 873 (2007), doi:10.1016/j.jmva.2006.11.013

    Examples
    --------
    A grain that is split into halves gives one bit of splits.

    >>> from py4dstem_clustering.metrics import variation_of_information
    >>> variation_of_information([[0, 0, 1, 1]], [[0, 0, 0, 0]])
    (1.0, 0.0)
    """
    labels, truth = check_maps(labels, truth)
    # With the truth first, scikit-image returns H(second | first), then H(first | second).
    splits, merges = skimage.metrics.variation_of_information(
        _from_one(truth), _from_one(labels), ignore_labels=()
    )
    return max(0.0, float(splits)), max(0.0, float(merges))  # rounding may leave -1e-16


def border_f_score(labels: Any, truth: Any, *, tolerance: float = 1.5) -> float:
    """F score of borders: are the borders of clusters where the borders of grains are?

    A border position has one of its four neighbours in another class; -1 is a class of its own, and
    both sides of a border count. A border position is right when the other map has a border
    position within `tolerance`. Unlike in the reference, one border position of the other map may
    make several positions right.

    Parameters
    ----------
    labels : ndarray, (Rx, Ry), int, or Clusters
        Number of the cluster of each scan position; -1 where it is in none.
    truth : ndarray, (Rx, Ry), int
        Number of the grain of each scan position; -1 where it is in none.
    tolerance : float
        Largest distance, scan positions. The default includes the eight neighbours.

    Returns
    -------
    float
        Harmonic mean of the share of the borders of `labels` that are right (precision) and the
        share of the borders of `truth` that are found (recall), 0 to 1. 1 when neither map has
        borders, 0 when only one map has.

    Raises
    ------
    TypeError, ValueError
        If a map is not 2D, is empty or does not hold whole numbers from -1, if the shapes differ,
        or if `tolerance` is not a finite number of at least 0.

    References
    ----------
    D. R. Martin et al., IEEE Trans. Pattern Anal. Mach. Intell. 26, 530 (2004),
    doi:10.1109/TPAMI.2004.1273918

    Examples
    --------
    A border two positions away from the true one: the inner sides are one position apart, the
    outer sides three.

    >>> from py4dstem_clustering.metrics import border_f_score
    >>> labels, truth = [[0, 0, 1, 1, 1, 1]], [[0, 0, 0, 0, 1, 1]]
    >>> border_f_score(labels, truth)
    0.5
    >>> border_f_score(labels, truth, tolerance=2)
    1.0
    """
    labels, truth = check_maps(labels, truth)
    tolerance = check_number("tolerance", tolerance, 0)
    found, known = _borders(labels), _borders(truth)
    if not (found.any() and known.any()):
        return float(found.any() == known.any())
    precision = (distance_transform_edt(~known)[found] <= tolerance).mean()
    recall = (distance_transform_edt(~found)[known] <= tolerance).mean()
    if precision + recall == 0:
        return 0.0
    return float(2 * precision * recall / (precision + recall))


def _from_one(labels: NDArray[Any]) -> NDArray[Any]:
    """Numbers from 1 without gaps: scikit-image takes numbers as indices, and ignores 0."""
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape) + 1


def _borders(labels: NDArray[Any]) -> NDArray[Any]:
    """Positions with one of their four neighbours in another class."""
    border = np.zeros(labels.shape, dtype=bool)
    for values, out in ((labels, border), (labels.T, border.T)):
        differ = values[1:] != values[:-1]
        out[1:] |= differ
        out[:-1] |= differ
    return border
