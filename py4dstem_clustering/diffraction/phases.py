"""Phases: which of several crystals each cluster is, and results for each with its own crystal."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import emdfile
import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_flag, check_integer, check_name, check_number
from ..base.frozen import Frozen
from ..base.progress import progress
from ..emd import nodes
from ..emd.settings import add_settings, read_settings
from ..kernels.lattice_fit import usual_deformation
from ..scan.calibration import copy_calibration
from .orientation import (
    BOUNDARIES,
    bragg_with,
    calibrated_peaks,
    check_orientation,
    find_boundaries,
    kept_orientation_map,
    orientation_from_node,
    orientation_to_node,
    plan_options,
)
from .refining import refine_orientations
from .scores import orientation_scores
from .strain import calculate_strain, match_peaks, reference_peaks

PHASES = np.dtype(
    [
        ("label", np.int32),
        ("phase", "U64"),
        ("score", np.float64),
        ("margin", np.float64),
        ("undecided", bool),
    ]
)
"""Fields of `PhaseMap.table`."""

PHASE_BOUNDARIES = np.dtype([*BOUNDARIES.descr, ("phase_a", "U64"), ("phase_b", "U64")])
"""Fields of `Clusters.get_boundaries` with phases."""

KIND = "phase_map"

NO_PHASE = -1
"""Number of the phase where no crystal explains the pattern."""

MIN_MARGIN = 5.0
"""Default of ``min_margin`` of `Clusters.map_phases`."""

USUAL_STRAIN = 0.01
"""Standard deviation of strains that are expected of any crystal.

With a larger value lattices of nearly the same places are harder to tell apart. With a smaller one
strained crystals, or a wrong pixel size, are taken for another crystal.
"""

_PLACE_ERROR = 0.005
"""Error of the place of a disk, 1/Angstrom, in the measurement of this strain. A larger value gives
less strain where disks are few."""

NONE_PER_DISK, NONE_SCORE = 2.5, 0.5
"""Evidence for each disk of a pattern, and score, below which a crystal does not explain it.

Larger values take more clusters for none of the crystals.
"""

SURE_PER_DISK, SURE_SCORE = 4.0, 0.7
"""Evidence for each disk of a pattern, and score, from which on a crystal explains it for sure.

Larger values leave more clusters undecided between the best crystal and none.
"""


@dataclass(frozen=True, eq=False, repr=False)
class PhaseMap(Frozen):
    """Which crystal each cluster is, and its orientation; from ``clusters.map_phases()``.

    Attributes
    ----------
    names : tuple of str
        Names of the crystals.
    phase : ndarray, (N,), int
        Number of the best crystal in `names`; -1 where none of them explains the pattern.
    scores : ndarray, (N, P)
        Agreement of each crystal with the average of each cluster, a cosine from 0 to 1.
    evidence : ndarray, (N, P)
        Logarithm of the likelihood of each crystal against no crystal at all; see
        `orientation_scores`. Phases rest on it.
    undecided : ndarray, (N,), bool
        Whether the second crystal, or none at all, explains the average nearly as well as the best
        crystal.
    orientation : OrientationMap, (N, 1)
        Orientation of each cluster, as the crystal `phase`; correlation 0 where there is none.
    labels : ndarray, (Rx, Ry), int
        Labels of the clusters.
    pixel_size : float
    pixel_units : str
        Distance of neighbouring scan positions, and its unit.
    settings : mapping
        Options that made the result.
    """

    names: tuple[str, ...]
    phase: NDArray[np.int64]
    scores: NDArray[np.float64]
    evidence: NDArray[np.float64]
    undecided: NDArray[np.bool_]
    orientation: Any
    labels: NDArray[np.int32]
    pixel_size: float
    pixel_units: str
    settings: Mapping[str, Any]

    @property
    def decided(self) -> NDArray[np.int64]:
        """Number of the crystal of each cluster, (N,); -1 also where it is undecided."""
        return np.where(self.undecided, NO_PHASE, self.phase)

    def table(self) -> NDArray[Any]:
        """Phase of each cluster.

        Returns
        -------
        structured ndarray, (N,)
            For pandas: ``pandas.DataFrame(phases.table())``. Fields:

            ``label``;
            ``phase``, name of the best crystal, "" where none of them explains the pattern;
            ``score`` of the best crystal, 0 to 1;
            ``margin``, by how much the evidence for the second crystal is lower: 3 means that the
            best one is twenty times as likely, 7 a thousand times; NaN with a single crystal;
            ``undecided``, whether the average does not say clearly enough which crystal it is, or
            whether it is one of them at all.
        """
        table = np.zeros(len(self.phase), dtype=PHASES)
        table["label"] = np.arange(len(self.phase))
        table["phase"] = np.array([*self.names, ""])[self.phase]
        best = self.evidence.argmax(axis=1)
        table["score"] = self.scores[np.arange(len(best)), best]
        table["margin"] = _margins(self.evidence)
        table["undecided"] = self.undecided
        return table

    def expand(self) -> NDArray[np.int64]:
        """Number of the crystal at each scan position, (Rx, Ry).

        -1 where there is no cluster, where no crystal explains the pattern, and where it is
        undecided.
        """
        decided = np.append(self.decided, NO_PHASE)
        expanded: NDArray[np.int64] = decided[self.labels]
        return expanded

    def orientation_of(self, name: str) -> Any:
        """Orientations of the clusters that are the crystal `name` for sure.

        Parameters
        ----------
        name : str
            One of `names`.

        Returns
        -------
        OrientationMap, (N, 1)
            A copy of `orientation` in which all other clusters have the correlation 0.
        """
        if name not in self.names:
            raise ValueError(f"phase {name!r} must be one of {', '.join(map(repr, self.names))}")
        return _only(self.orientation, self.decided == self.names.index(name))

    def __repr__(self) -> str:
        decided = self.decided
        parts = [f"{(decided == k).sum()} {name}" for k, name in enumerate(self.names)]
        parts.append(f"{((self.phase == NO_PHASE) & ~self.undecided).sum()} none of these")
        parts.append(f"{self.undecided.sum()} undecided")
        n = len(self.phase)
        return f"PhaseMap({n} cluster{'s' * (n != 1)}: {', '.join(parts)})"

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Draw the phases as a map of the scan; see `py4dstem_clustering.plot_phases`."""
        from ..plotting.results import plot_phases

        return plot_phases(self, ax, **options)

    def to_node(self, name: str = "phases") -> emdfile.Array:
        """The phases as a node that can be saved: ``datacube.attach(phases.to_node())``.

        The node is a stock emdfile Array of the scores; its metadata hold everything else.
        """
        node = emdfile.Array(self.scores.copy(), name=check_name(name))
        nodes.tag(node, KIND)
        inner = orientation_to_node(self.orientation)
        arrays = {"matrix": inner.data, **nodes.read_arrays(inner)}
        arrays = {f"orientation_{key}": value for key, value in arrays.items()}
        own = {key: getattr(self, key) for key in ("phase", "evidence", "undecided", "labels")}
        node.metadata = emdfile.Metadata(
            "arrays", {key: np.array(value) for key, value in (own | arrays).items()}
        )
        settings = {
            **self.settings,
            "names": self.names,
            "pixel_size": self.pixel_size,
            "pixel_units": self.pixel_units,
        }
        add_settings(node, settings)
        return node

    @classmethod
    def from_node(cls, node: emdfile.Node) -> PhaseMap:
        """Read phases from a node, also from a file: ``PhaseMap.from_node(cube.tree("phases"))``.

        Raises
        ------
        ValueError
            If the node holds no phases, was made by a newer version, or is damaged.
        """
        nodes.check_kind(node, KIND, "phases", "some with clusters.map_phases()")
        settings = read_settings(node).everything
        names = settings.pop("names", None)
        size, units = settings.pop("pixel_size", None), settings.pop("pixel_units", None)
        if not (isinstance(names, tuple) and names and all(isinstance(n, str) for n in names)):
            raise nodes.damaged(node, "it holds no names of crystals")
        if not isinstance(size, float) or not isinstance(units, str):
            raise nodes.damaged(node, "it holds no scan step")
        arrays = nodes.read_arrays(node)
        data = getattr(node, "data", None)
        scores = nodes.check_array(node, "scores", data, (None, len(names)), "f", -0.001, 1.001)
        n = len(scores)
        evidence = nodes.check_array(node, "evidence", arrays.get("evidence"), (n, len(names)), "f")
        values = [
            nodes.check_array(node, name, arrays.get(name), *rule)
            for name, *rule in (
                ("phase", (n,), "iu", NO_PHASE, len(names) - 1),
                ("undecided", (n,), "b"),
                ("labels", (None, None), "iu", -1, n - 1),
            )
        ]
        matrix = nodes.check_array(
            node, "matrix", arrays.get("orientation_matrix"), (n, 1, None, 3, 3), nan=True
        )
        inner = emdfile.Array(np.array(matrix), name=node.name)
        nodes.tag(inner, "orientation_map")
        start = "orientation_"
        rest = {
            key[len(start) :]: value
            for key, value in arrays.items()
            if key.startswith(start) and key != "orientation_matrix"
        }
        inner.metadata = emdfile.Metadata("arrays", rest)
        orientation = orientation_from_node(inner)
        phase, undecided, labels = values
        return cls(
            names, phase, scores, evidence, undecided, orientation, labels, size, units, settings
        )


def _margins(evidence: NDArray[Any]) -> NDArray[np.float64]:
    """By how much the second best of ``(N, P)`` is lower than the best; NaN for P = 1."""
    if evidence.shape[1] < 2:
        return np.full(len(evidence), np.nan)
    second, best = np.sort(evidence, axis=1)[:, -2:].T
    margin: NDArray[np.float64] = best - second
    return margin


def _only(orientation: Any, keep: NDArray[np.bool_]) -> Any:
    """A copy of a map of clusters in which those that are not kept have the correlation 0."""
    out = type(orientation)(len(keep), 1, orientation.num_matches)
    for key, value in vars(orientation).items():
        setattr(out, key, value.copy() if isinstance(value, np.ndarray) else value)
    out.corr[~keep] = 0
    return out


def check_crystals(crystals: Any) -> dict[str, Any]:
    """Crystals by their names, after a check of the names."""
    if not isinstance(crystals, Mapping):
        raise TypeError(
            "crystals must be a dictionary of names and py4DSTEM Crystals, such as "
            f'{{"gold": gold, "silicon": silicon}}, not {type(crystals).__name__}'
        )
    if not crystals:
        raise ValueError("crystals is empty; give at least one crystal")
    for name in crystals:
        if not isinstance(name, str) or not 0 < len(name) <= 64:
            raise ValueError(f"the name {name!r} of a crystal must be a text of 1 to 64 characters")
    return dict(crystals)


def map_phases(
    labels: NDArray[Any],
    crystals: Any,
    bragg: Any,
    *,
    min_margin: float,
    num_matches: int,
    progress_bar: bool,
    pixel_size: float,
    pixel_units: str,
) -> PhaseMap:
    """Core of `Clusters.map_phases`."""
    crystals = check_crystals(crystals)
    min_margin = check_number("min_margin", min_margin, 0)
    num_matches = check_integer("num_matches", num_matches, 1)
    progress_bar = check_flag("progress_bar", progress_bar)
    n = int(labels.max(initial=-1)) + 1
    if n == 0:
        raise ValueError("there are no clusters, so there is nothing to find phases of")
    peaks = calibrated_peaks(bragg, (n, 1))
    options = [plan_options(crystal, None) for crystal in crystals.values()]
    reach = max(distance for distance, _ in options)
    refined = []
    with progress(len(crystals), "Comparing crystals", progress_bar, "crystals") as report:
        for crystal in crystals.values():
            matched = _match(crystal, bragg, num_matches)
            # Crystals can be compared only if disks may lie equally far from where they should.
            refined.append(
                refine_orientations(crystal, bragg, matched, max_distance=reach, progress_bar=False)
            )
            report(1)
    found = [orientation_scores(one) for one in refined]
    scores, evidence = (
        np.stack([getattr(one, name)[:, 0] for one in found], axis=1)
        for name in ("score", "evidence")
    )
    # Refining takes strain out, so that a lattice that is some per cent too wide fits as well.
    for k, (crystal, one) in enumerate(zip(crystals.values(), refined, strict=True)):
        evidence[:, k] -= strain_cost(crystal, peaks, one.matrix[:, 0, 0], reach, options[k][1])
    # Peaks nearer to the centre than this are the direct beam.
    beam = 0.5 * min(_shortest(crystal) for crystal in crystals.values())
    n_disks = np.array([(np.hypot(one["qx"], one["qy"]) > beam).sum() for one in peaks])
    phase, undecided = decide(evidence, scores, n_disks, min_margin)
    return PhaseMap(
        tuple(crystals),
        phase,
        scores,
        evidence,
        undecided,
        _joined(refined, phase),
        np.array(labels),
        float(pixel_size),
        str(pixel_units),
        {"min_margin": min_margin, "num_matches": num_matches, "max_distance": reach},
    )


def _match(crystal: Any, bragg: Any, num_matches: int) -> Any:
    """``crystal.match_orientations``; the crystal keeps the map that it had, and bragg its state.

    py4DSTEM 0.14.18 warns of calibrations that do not exist, and applies none that was not chosen.
    """
    ready = bragg_with(bragg, bragg._v_uncal, copy_calibration(bragg.calibration))
    if not any(ready.calstate.values()):
        ready.setcal()
    with kept_orientation_map(crystal), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(Warning: )?bragg peaks not", UserWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        return crystal.match_orientations(ready, num_matches_return=num_matches, progress_bar=False)


def _shortest(crystal: Any) -> float:
    """Length of the shortest reflection of a crystal, 1/Angstrom."""
    length = np.linalg.norm(crystal.g_vec_all, axis=0)
    return float(length[length > 1e-6].min())


def strain_cost(
    crystal: Any,
    peaks: list[NDArray[Any]],
    matrices: NDArray[Any],
    max_distance: float,
    sigma: float,
) -> NDArray[np.float64]:
    """By how much strain lowers the evidence for orientations ``(N, 3, 3)`` of a crystal, ``(N,)``.

    It is the logarithm of how unlikely the strain is that brings the lattice to the peaks.
    """
    cost = np.zeros(len(peaks))
    for k, matrix in enumerate(matrices):
        found, expected = match_peaks(
            peaks[k], reference_peaks(crystal, matrix, sigma), max_distance
        )
        places = np.stack([found["qx"], found["qy"]], axis=1)
        m = usual_deformation(places, expected, _PLACE_ERROR, USUAL_STRAIN)
        stretch = np.linalg.svd(m, compute_uv=False)
        cost[k] = 0.5 * (((stretch - 1) / USUAL_STRAIN) ** 2).sum()
    return cost


def decide(
    evidence: NDArray[Any], scores: NDArray[Any], n_disks: NDArray[Any], min_margin: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Phase ``(N,)``, -1 for none, and where it is undecided.

    `evidence` and `scores` ``(N, P)`` are those of each crystal, `n_disks` the number of disks of
    each pattern without the direct beam. A wrong lattice finds some evidence in any pattern with
    many disks, so evidence counts for each disk.
    """
    best = evidence.argmax(axis=1)
    every = np.arange(len(best))
    score, for_each_disk = scores[every, best], evidence[every, best] / np.maximum(n_disks, 1)
    none = (for_each_disk < NONE_PER_DISK) | (score < NONE_SCORE)
    undecided = (for_each_disk < SURE_PER_DISK) | (score < SURE_SCORE)
    if evidence.shape[1] > 1:
        undecided |= _margins(evidence) < min_margin
    return np.where(none, NO_PHASE, best), undecided & ~none


def _joined(maps: list[Any], phase: NDArray[Any]) -> Any:
    """One map ``(N, 1)``, each cluster from the map of its phase; correlation 0 without one."""
    out = _only(maps[0], phase == 0)
    for k, one in enumerate(maps[1:], 1):
        for key, value in vars(one).items():
            if isinstance(value, np.ndarray):
                getattr(out, key)[phase == k] = value[phase == k]
    return out


def crystal_of_each(crystals: Any, phases: PhaseMap) -> dict[str, Any]:
    """The crystals of phases, after a check that none is missing."""
    crystals = check_crystals(crystals)
    missing = [name for name in phases.names if name not in crystals]
    if missing:
        raise ValueError(
            f"crystal must hold the crystals of all phases; {', '.join(map(repr, missing))} is "
            "missing"
        )
    return {name: crystals[name] for name in phases.names}


def strain_of_phases(
    labels: NDArray[Any], crystals: Any, bragg: Any, phases: PhaseMap, **options: Any
) -> Any:
    """`calculate_strain` in which each cluster has the crystal of its phase."""
    check_orientation(phases.orientation, {"each cluster": (int(labels.max(initial=-1)) + 1, 1)})
    crystals = crystal_of_each(crystals, phases)
    parts = [
        calculate_strain(labels, crystal, bragg, phases.orientation_of(name), **options)
        for name, crystal in crystals.items()
    ]
    whole = parts[0]
    decided = phases.decided[:, None]
    if whole.data.shape[1:] == labels.shape:
        decided = np.append(phases.decided, NO_PHASE)[labels]
    for number, part in enumerate(parts):
        whole.data[:, decided == number] = part.data[:, decided == number]
    return whole


def boundaries_of_phases(
    labels: NDArray[Any],
    crystals: Any,
    phases: PhaseMap,
    twin: Any,
    tolerance: float,
    pixel_size: float,
) -> NDArray[Any]:
    """`find_boundaries` in which each cluster has the crystal of its phase.

    Between two phases there is no angle of misorientation: it is NaN.
    """
    crystals = crystal_of_each(crystals, phases)
    parts = [
        find_boundaries(labels, phases.orientation_of(name), crystal, twin, tolerance, pixel_size)
        for name, crystal in crystals.items()
    ]
    names = np.array([*phases.names, ""])[phases.decided]
    whole = np.zeros(len(parts[0]), dtype=PHASE_BOUNDARIES)
    for part in parts:
        here = np.isfinite(part["angle"]) if part is not parts[0] else slice(None)
        for key in BOUNDARIES.names or ():
            whole[key][here] = part[key][here]
    whole["phase_a"], whole["phase_b"] = names[whole["label_a"]], names[whole["label_b"]]
    return whole
