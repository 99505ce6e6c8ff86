"""Benchmark: orientations and verdicts on Bloch-wave patterns of five materials.

Averages are made with the true labels, so that finding grains plays no part, and with the clusters
that are found. Grains are wedges of 5 to 40 nm that bend by 2 degrees, in vacuum with a film.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..base.progress import progress
from ..diffraction.misorientation import misorientation
from ..diffraction.refining import refine_orientations
from ..diffraction.scores import orientation_scores
from ..grains.clusters import Clusters
from ..kernels.evidence import SURE, VERDICTS
from ..simulate.crystals import ACCELERATING_VOLTAGE, PRESETS, check_materials
from ..simulate.scan import simulate_scan
from .common import doses_of, markdown_table
from .orientation import PLAN, disk_template, find_disks, quiet

ELECTRONS = (1000.0, 10000.0)
"""Electrons a pattern."""

TUNING_SEEDS = range(100, 106)
"""Seeds on which evidence and verdicts were tuned; the benchmark refuses them."""

MATERIALS = ("gold", "silicon", "NaCl", "magnesium", "titanium")
"""Materials on which evidence and verdicts were tuned and measured."""

SHAPES = {False: ((40, 36), (96, 90)), True: ((16, 14), (64, 60))}
"""Shapes of scan and detector. True: small scans, for tests of the benchmark itself."""

SAMPLE: dict[str, Any] = {
    "scattering": "dynamical",
    "thickness": (5, 40),
    "thickness_profile": "wedge",
    "bending": 2.0,
    "surroundings": "vacuum",
    "film": 0.05,
    "probe_blur": 0.7,
}

LABELS = ("true", "own")

_K_MAX = 1.95
"""Largest scattering vector, 1/Angstrom: the corner of the detector."""


class Row(NamedTuple):
    """One average; the columns of the CSV file. Angles are in degrees."""

    material: str
    electrons: float
    labels: str
    """"true" or "own": which labels the average was made with."""
    seed: int
    grain: int
    n_positions: int
    matched: float
    """Misorientation between the truth and the match of py4DSTEM."""
    refined: float
    """Misorientation from the truth after `refine_orientations`."""
    runner_up: float
    """Misorientation of the runner-up from the truth."""
    verdict: str
    score: float
    evidence: float
    n_disks: int
    explained: float


def run_benchmark(
    doses: Sequence[float],
    seeds: range,
    *,
    materials: Sequence[str] = MATERIALS,
    small: bool = False,
    progress_bar: bool = True,
) -> list[Row]:
    """Return the rows of every material, seed and dose (electrons a pattern)."""
    rows: list[Row] = []
    n_scans = len(materials) * len(doses) * len(seeds)
    with progress(n_scans, "Matching", progress_bar, "scans") as report:
        for material in materials:
            crystal = planned_crystal(material)
            for dose in doses:
                for seed in seeds:
                    rows += _run_scan(material, crystal, dose, seed, small)
                    report(1)
    return rows


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of materials, each once, after a check."""
    unknown = [name for name in names if name not in PRESETS]
    if unknown:
        raise ValueError(
            f"materials {', '.join(map(repr, unknown))} must be among {', '.join(PRESETS)}"
        )
    return tuple(dict.fromkeys(names))


def planned_crystal(material: str) -> Any:
    """A crystal with structure factors, and a plan over all orientations."""
    chosen = check_materials(material, 0.08)[0]
    crystal = chosen.kinematical(_K_MAX, ACCELERATING_VOLTAGE)
    # All zone axes of a cubic crystal are in the triangle of PLAN; others need pymatgen.
    own = {} if chosen.cubic else {"zone_axis_range": "auto"}
    with quiet():
        crystal.orientation_plan(**{**PLAN, **own})
    return crystal


def _run_scan(material: str, crystal: Any, dose: float, seed: int, small: bool) -> list[Row]:
    scan = simulate_scan(
        *SHAPES[small], n_grains=6, electrons=dose, materials=material, seed=seed, **SAMPLE
    )
    rows: list[Row] = []
    for labels in LABELS:
        if labels == "true":
            clusters = _true_clusters(scan.labels)
        else:
            clusters = scan.datacube.cluster(progress_bar=False)
        if clusters.n_clusters:
            rows += _rows(labels, material, crystal, dose, seed, scan, clusters)
    return rows


def _true_clusters(labels: NDArray[Any]) -> Clusters:
    n = int(labels.max()) + 1
    seeds = np.array([np.argwhere(labels == k)[0] for k in range(n)]).reshape(-1, 2)
    return Clusters(labels, seeds, np.zeros(labels.shape, dtype=np.float32), {})


def _rows(
    labels: str,
    material: str,
    crystal: Any,
    dose: float,
    seed: int,
    scan: Any,
    clusters: Clusters,
) -> list[Row]:
    averages = scan.datacube.get_clustered_datacube(clusters, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of clusters with few disks
        bragg = find_disks(clusters.sizes, averages, disk_template(averages.Qshape))
    with quiet():
        matched = crystal.match_orientations(bragg, num_matches_return=3, progress_bar=False)
    refined = refine_orientations(crystal, bragg, matched, progress_bar=False)
    scores = orientation_scores(refined)
    rows = []
    for label in range(clusters.n_clusters):
        inside = clusters.labels == label
        grain = int(np.bincount(scan.labels[inside] + 1).argmax()) - 1
        if grain < 0:
            continue
        turns = scan.orientation_at[inside & (scan.labels == grain)]
        truth = turns[0] @ Rotation.from_matrix(turns[0].T @ turns).mean().as_matrix()
        matrices = (
            matched.matrix[label, 0, 0],
            refined.matrix[label, 0, 0],
            scores.runner_up_matrix[label, 0],
        )
        errors = [float(misorientation(each, truth, crystal)) for each in matrices]
        rows.append(
            Row(
                material=material,
                electrons=dose,
                labels=labels,
                seed=seed,
                grain=grain,
                n_positions=int(inside.sum()),
                matched=errors[0],
                refined=errors[1],
                runner_up=errors[2],
                verdict=VERDICTS[scores.verdict[label, 0]],
                score=float(scores.score[label, 0]),
                evidence=float(scores.evidence[label, 0]),
                n_disks=int(scores.n_disks[label, 0]),
                explained=float(scores.explained[label, 0]),
            )
        )
    return rows


def verdict_table(rows: list[Row]) -> str:
    """Errors of matches and of refined orientations, and how far verdicts are right."""
    heads = [
        "material",
        "electrons",
        "labels",
        "averages",
        "matched: median / above 5°",
        "refined: median / 95 % / above 5°",
        "sure",
        "wrong of the sure",
        "of all wrong, the truth is the runner-up",
    ]
    table = []
    for material in dict.fromkeys(row.material for row in rows):
        for dose in doses_of(rows):
            for labels in LABELS:
                chosen = [
                    row
                    for row in rows
                    if (row.material, row.electrons, row.labels) == (material, dose, labels)
                ]
                if chosen:
                    table.append([material, f"{dose:,.10g}", labels, *_cells(chosen)])
    return markdown_table(heads, table, texts=(0, 2))


def _cells(rows: list[Row]) -> list[str]:
    matched, refined = (
        np.nan_to_num([getattr(row, name) for row in rows], nan=180.0)
        for name in ("matched", "refined")
    )
    sure = np.array([row.verdict == VERDICTS[SURE] for row in rows])
    wrong = refined > 5
    second = np.array([row.runner_up <= 5 for row in rows])
    return [
        f"{len(rows)}",
        f"{np.median(matched):.2f} / {100 * (matched > 5).mean():.0f} %",
        f"{np.median(refined):.2f} / {np.percentile(refined, 95):.1f} / {100 * wrong.mean():.0f} %",
        f"{100 * sure.mean():.0f} %",
        f"{(wrong & sure).sum()} of {sure.sum()}",
        f"{(wrong & second).sum()} of {wrong.sum()}",
    ]
