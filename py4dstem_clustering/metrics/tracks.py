"""How well the tracks of many frames match known particles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ..base.checks import check_number
from .overlaps import check_maps, count_overlaps


@dataclass(frozen=True)
class TrackQuality:
    """How well tracks follow known particles; from `track_quality`.

    An appearance is one particle in one frame, or one track in one frame.

    Attributes
    ----------
    mota : float
        Multiple object tracking accuracy: 1 minus the number of misses, false positives and
        switches per appearance of a particle; at most 1, and below 0 with more errors than
        appearances. NaN where there are tracks but no particle.
    idf1 : float
        F1 score of identities, 0 to 1. Each particle is paired with at most one track. The score is
        the number of appearances that match in these pairs, divided by the mean of the numbers of
        appearances of tracks and of particles.
    precision : float
        Share of the appearances of tracks that match a particle.
    recall : float
        Share of the appearances of particles that match a track.
    misses : int
        Appearances of particles without a track.
    false_positives : int
        Appearances of tracks without a particle.
    switches : int
        Number of times that a particle matches another track than at its previous match.
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
    their union. For the accuracy (MOTA), a particle keeps the track of its previous match if both
    may still match. The other particles and tracks are paired one to one: as many pairs as
    possible, and among these the pairs with the largest sum of intersection over union. For the
    identities (IDF1), whole tracks are paired with whole particles, one to one, so that they match
    in as many frames as possible. So IDF1 depends on how long a particle has the right track, and
    MOTA depends on how often the track changes.

    Parameters
    ----------
    tracks : ndarray, (T, Rx, Ry), int
        Number of the track of each scan position in each frame; -1 where it is in none. Write -1
        for the background, since a track of the liquid counts as a false positive.
    truth : ndarray, (T, Rx, Ry), int
        Number of the particle of each scan position in each frame; -1 where it is in none.
    iou : float
        Smallest intersection over union of a match (not included), from 0 to below 1. With 0.5 or
        more, the matches of a frame are unique; use less if particles have only a few positions.

    Returns
    -------
    TrackQuality
        All scores are 1 without tracks and particles. With only tracks or only particles, they are
        0, except that MOTA is NaN if there are only tracks.

    Raises
    ------
    TypeError, ValueError
        If a map is not 3D, is empty or does not hold whole numbers from -1, if the shapes differ,
        or if `iou` is not a number from 0 to below 1.

    References
    ----------
    MOTA: K. Bernardin and R. Stiefelhagen, EURASIP J. Image Video Process. 2008, 246309,
    doi:10.1155/2008/246309

    IDF1: E. Ristani et al., ECCV 2016 Workshops, LNCS 9914, 17, doi:10.1007/978-3-319-48881-3_2

    Examples
    --------
    One particle in four frames changes its track in the last frame.

    >>> from py4dstem_clustering.metrics import track_quality
    >>> truth = [[[0, 0, -1]], [[0, 0, -1]], [[-1, 0, 0]], [[-1, 0, 0]]]
    >>> tracks = [[[3, 3, -1]], [[3, 3, -1]], [[-1, 3, 3]], [[-1, 5, 5]]]
    >>> result = track_quality(tracks, truth)
    >>> result.mota, result.idf1, result.switches
    (0.75, 0.75, 1)
    """
    tracks, truth = check_maps(tracks, truth, "tracks", "T, Rx, Ry")
    iou = check_number("iou", iou, 0, 1)
    if iou == 1:
        raise ValueError(f"{iou=} must be below 1: a match overlaps by more than that")
    # Number of frames in which each track and each particle may match.
    track_numbers, particle_numbers = np.unique(tracks[tracks >= 0]), np.unique(truth[truth >= 0])
    together = np.zeros((len(track_numbers), len(particle_numbers)), dtype=np.int64)
    last: dict[int, int] = {}  # track of the previous match of each particle
    n_tracks = n_particles = n_matches = switches = 0
    for found, known in zip(tracks, truth, strict=True):
        table = count_overlaps(found, known)
        n_tracks += int((table.clusters >= 0).sum())
        n_particles += int((table.grains >= 0).sum())
        track, particle = table.clusters[table.rows], table.grains[table.columns]
        sizes = table.cluster_sizes[table.rows] + table.grain_sizes[table.columns]
        overlap = table.common / (sizes - table.common)
        may = (track >= 0) & (particle >= 0) & (overlap > iou)
        track, particle, overlap = track[may], particle[may], overlap[may]
        rows = np.searchsorted(track_numbers, track)
        together[rows, np.searchsorted(particle_numbers, particle)] += 1
        matches = _match_frame(track, particle, overlap, last)
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


def _match_frame(
    track: NDArray[Any], particle: NDArray[Any], overlap: NDArray[Any], last: dict[int, int]
) -> dict[int, int]:
    """Track of each particle in one frame, from the pairs that may match and previous matches."""
    matches: dict[int, int] = {}
    kept = [i for i, k in enumerate(particle) if last.get(int(k)) == track[i]]
    # Two particles may have matched the same track before, one after the other.
    for i in sorted(kept, key=lambda i: -overlap[i]):
        if track[i] not in matches.values():
            matches[int(particle[i])] = int(track[i])
    free = ~np.isin(track, list(matches.values())) & ~np.isin(particle, list(matches))
    tracks, rows = np.unique(track[free], return_inverse=True)
    particles, columns = np.unique(particle[free], return_inverse=True)
    value = np.zeros((len(tracks), len(particles)))
    # One more pair outweighs all overlaps together.
    value[rows, columns] = min(value.shape) + overlap[free]
    for row, column in zip(*linear_sum_assignment(value, maximize=True), strict=True):
        if value[row, column] > 0:
            matches[int(particles[column])] = int(tracks[row])
    return matches
