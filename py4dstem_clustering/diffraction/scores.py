"""How well refined orientations agree with their patterns, and which of them to believe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.frozen import Frozen
from ..kernels.evidence import AMBIGUOUS, NOT_INDEXED, SURE, VERDICTS
from .orientation import check_orientation

SCORES = np.dtype(
    [
        ("label", np.int32),
        ("verdict", "U11"),
        ("score", np.float64),
        ("runner_up", np.float64),
        ("evidence", np.float64),
        ("runner_up_evidence", np.float64),
        ("n_disks", np.int64),
        ("explained", np.float64),
        ("sigma_excitation_error", np.float64),
    ]
)
"""Fields of `OrientationScores.table`."""

_FIELDS = (
    "verdict", "score", "evidence", "n_disks", "explained", "runner_up", "runner_up_evidence",
    "sigma_excitation_error",
)  # fmt: skip
"""Names of the arrays, both in `OrientationScores` and as attributes of an OrientationMap."""


@dataclass(frozen=True, eq=False, repr=False)
class OrientationScores(Frozen):
    """Scores and verdicts of refined orientations; from `orientation_scores`.

    Attributes
    ----------
    verdict : ndarray, (Rx, Ry), uint8
        2 *sure*: the pattern shows this orientation and no other. 1 *ambiguous*: another
        orientation, `runner_up_matrix`, explains the pattern nearly as well. 0 *not indexed*: no
        orientation explains the pattern; do not use the one in the map. See `VERDICTS`.
    score : ndarray, (Rx, Ry)
        Agreement of measured and expected disks, 0 to 1: a cosine, so it can be compared between
        crystals. 0 where there is no orientation.
    evidence : ndarray, (Rx, Ry)
        Logarithm of the likelihood ratio of this orientation against no lattice at all. Verdicts
        rest on it: where two orientations differ by 3, one is twenty times as likely as the other.
        It can be compared between crystals, too, for the same pattern.
    n_disks : ndarray, (Rx, Ry), int
        Number of measured disks, without the direct beam, that lie where the lattice has a disk.
    explained : ndarray, (Rx, Ry)
        Share of the measured intensity, without the direct beam, that these disks have, 0 to 1.
    runner_up : ndarray, (Rx, Ry)
        Score of the best orientation that differs by more than 5 degrees; 0 without one.
    runner_up_evidence : ndarray, (Rx, Ry)
        Evidence of this orientation; 0 without one.
    runner_up_matrix : ndarray, (Rx, Ry, 3, 3)
        This orientation; NaN without one.
    sigma_excitation_error : ndarray, (Rx, Ry)
        Width of the relrods that fits the pattern best, 1/Angstrom: small where the crystal is
        thick and flat, large where it is thin or bent. NaN where there is no orientation.
    """

    verdict: NDArray[np.uint8]
    score: NDArray[np.float64]
    evidence: NDArray[np.float64]
    n_disks: NDArray[np.int64]
    explained: NDArray[np.float64]
    runner_up: NDArray[np.float64]
    runner_up_evidence: NDArray[np.float64]
    runner_up_matrix: NDArray[np.float64]
    sigma_excitation_error: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int]:
        """(Rx, Ry), that of the map; (N, 1) for clusters."""
        rx, ry = self.score.shape
        return rx, ry

    def is_verdict(self, name: str) -> NDArray[np.bool_]:
        """Where the verdict is `name`: "sure", "ambiguous" or "not indexed"; (Rx, Ry)."""
        if name not in VERDICTS:
            raise ValueError(f"verdict {name!r} must be one of {', '.join(map(repr, VERDICTS))}")
        return self.verdict == VERDICTS.index(name)

    def table(self) -> NDArray[Any]:
        """All values but the matrices, a row for each position, row by row.

        Returns
        -------
        structured ndarray, (Rx * Ry,)
            For pandas: ``pandas.DataFrame(scores.table())``. ``label`` is the number of the row,
            which is the cluster in a map of clusters; ``verdict`` is in words.
        """
        table = np.zeros(self.score.size, dtype=SCORES)
        table["label"] = np.arange(self.score.size)
        table["verdict"] = np.array(VERDICTS)[self.verdict.ravel()]
        for name in _FIELDS[1:]:
            table[name] = getattr(self, name).ravel()
        return table

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{(self.verdict == code).sum()} {VERDICTS[code]}"
            for code in (SURE, AMBIGUOUS, NOT_INDEXED)
        )
        return f"OrientationScores({self.shape[0]} x {self.shape[1]}: {counts})"


def has_scores(orientation: Any) -> bool:
    """Whether an OrientationMap has scores, that is, comes from `refine_orientations`."""
    return all(hasattr(orientation, name) for name in _FIELDS)


def orientation_scores(orientation: Any) -> OrientationScores:
    """Scores and verdicts of the orientations that `refine_orientations` returned.

    Parameters
    ----------
    orientation : OrientationMap, (N, 1) or (Rx, Ry)
        From `refine_orientations`, as it is, expanded with `Clusters.expand_orientation_map`, or
        read from a file: the scores are arrays of the map, and go where it goes.

    Returns
    -------
    OrientationScores, of the same shape

    Raises
    ------
    TypeError, ValueError
        If `orientation` is not an OrientationMap, or not from `refine_orientations`.

    Examples
    --------
    See `refine_orientations`.
    """
    check_orientation(orientation, {"": tuple(np.shape(getattr(orientation, "matrix", 0))[:2])})
    if not has_scores(orientation):
        raise ValueError(
            "the orientation map has no scores, because it does not come from "
            "refine_orientations(); refine it first"
        )
    values = {name: getattr(orientation, name) for name in _FIELDS}
    second = np.full((*orientation.matrix.shape[:2], 3, 3), np.nan)
    if orientation.num_matches > 1:
        known = values["runner_up_evidence"] != 0
        second[known] = orientation.matrix[:, :, 1][known]
    return OrientationScores(runner_up_matrix=second, **values)
