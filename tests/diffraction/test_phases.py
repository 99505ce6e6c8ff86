"""Phases: the right crystal, honest doubts, results for each grain with its own crystal."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import py4DSTEM
import pytest
from py4DSTEM import DataCube
from py4DSTEM.braggvectors import BraggVectors
from py4DSTEM.process.diffraction import Crystal
from test_strain import bragg_of, random_rotations

from py4dstem_clustering import Clusters, PhaseMap, misorientation, to_orix
from py4dstem_clustering.benchmarks.orientation import quiet
from py4dstem_clustering.diffraction.phases import PHASE_BOUNDARIES, PHASES, decide, strain_cost
from py4dstem_clustering.diffraction.scores import SURE
from py4dstem_clustering.diffraction.strain import REASONS
from py4dstem_clustering.exporting.results import export

FCC = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
CELLS = {
    "gold": (FCC, 79, 4.0782),
    "silicon": (np.concatenate([FCC, FCC + 0.25]), 14, 5.431),
}
LABELS = np.array([[0, 0, 1, 1, -1], [0, 2, 2, 1, 3], [2, 2, 3, 3, 3], [2, 2, 3, 3, 3]])
TRUTH = np.array([0, 1, 0, 1])


def crystals():
    made = {}
    for name, cell in CELLS.items():
        made[name] = Crystal(*cell)
        made[name].calculate_structure_factors(1.5)
        with quiet():
            made[name].orientation_plan(
                zone_axis_range=np.array([[0, 1, 1], [1, 1, 1]]),
                angle_step_zone_axis=4.0,
                angle_step_in_plane=6.0,
                corr_kernel_size=0.08,
                sigma_excitation_error=0.03,
                accel_voltage=300e3,
                progress_bar=False,
            )
    return made


@pytest.fixture(scope="module")
def world():
    """Four grains of two crystals, strained by half a per cent, with exact disks."""
    made = crystals()
    matrices = random_rotations(4, 3)
    strain = np.array([[1.005, 0.001], [0.001, 0.997]])
    peaks, intensities = {}, {}
    for k, phase in enumerate(TRUTH):
        pattern = (
            list(made.values())[phase]
            .generate_diffraction_pattern(
                orientation_matrix=matrices[k], sigma_excitation_error=0.02
            )
            .data
        )
        places = np.stack([pattern["qx"], pattern["qy"]], axis=1)
        length = np.hypot(*places.T)
        strongest = pattern["intensity"][length > 0.1].max()
        seen = (length < 1.35) & (pattern["intensity"] > 0.01 * strongest)
        peaks[k, 0], intensities[k] = (
            places[seen] @ np.linalg.inv(strain),
            pattern["intensity"][seen],
        )
    bragg = bragg_of(peaks)
    for k in range(4):
        bragg._v_uncal[k, 0].data["intensity"] = intensities[k] ** 0.5
    seeds = np.array([np.argwhere(k == LABELS)[0] for k in range(4)])
    clusters = Clusters(LABELS, seeds, np.zeros(LABELS.shape), pixel_size=2.0, pixel_units="nm")
    phases = clusters.map_phases(made, bragg, progress_bar=False)
    return SimpleNamespace(
        crystals=made, clusters=clusters, bragg=bragg, phases=phases, matrices=matrices
    )


def test_the_right_crystals_and_orientations(world):
    phases = world.phases
    table = phases.table()
    assert table.dtype == PHASES
    names = list(world.crystals)
    assert table["phase"].tolist() == [names[k] for k in TRUTH]
    assert not table["undecided"].any()
    assert (table["margin"] > 10).all()
    assert (table["score"] > 0.6).all()
    for k, phase in enumerate(TRUTH):
        angle = misorientation(
            phases.orientation.matrix[k, 0, 0], world.matrices[k], world.crystals[names[phase]]
        )
        assert angle < 2
    np.testing.assert_array_equal(phases.expand(), np.append(TRUTH, -1)[LABELS])
    assert "2 gold, 2 silicon, 0 none of these, 0 undecided" in repr(phases)


def test_one_crystal_or_none_of_it(world):
    gold = {"gold": world.crystals["gold"]}
    phases = world.clusters.map_phases(gold, world.bragg, progress_bar=False)
    assert phases.table()["phase"].tolist() == ["gold", "", "gold", ""]
    assert np.isnan(phases.table()["margin"]).all()
    np.testing.assert_array_equal(phases.expand(), np.array([0, -1, 0, -1, -1])[LABELS])
    none = phases.orientation.corr[:, 0, 0] == 0
    np.testing.assert_array_equal(none, TRUTH == 1)


def test_undecided_between_two_names_of_one_crystal(world):
    gold = world.crystals["gold"]
    phases = world.clusters.map_phases(
        {"gold": gold, "again": gold}, world.bragg, progress_bar=False
    )
    assert phases.undecided[TRUTH == 0].all()
    assert (phases.expand() == -1).all()
    assert (phases.orientation_of("gold").corr == 0).all()


def test_what_is_decided():
    evidence = np.array([[60.0, 20], [60, 57], [35, 0], [20, 10], [60, 52], [60, 0], [60, 0]])
    scores = np.full(evidence.shape, 0.9)
    scores[5:, 0] = 0.6, 0.4
    n_disks = np.full(7, 10)
    phase, undecided = decide(evidence, scores, n_disks, 5.0)
    np.testing.assert_array_equal(phase, [0, 0, 0, -1, 0, 0, -1])
    np.testing.assert_array_equal(undecided, [False, True, True, False, False, True, False])
    assert decide(evidence, scores, n_disks, 10.0)[1].tolist() == [0, 1, 1, 0, 1, 1, 0]
    # A pattern without disks is none of the crystals.
    assert decide(np.zeros((1, 2)), np.zeros((1, 2)), np.zeros(1), 5.0)[0].tolist() == [-1]


def test_a_lattice_that_is_too_wide_costs_evidence():
    """By the square of its strain, over the expected one, for both axes."""
    crystal = Crystal(*CELLS["gold"])
    crystal.calculate_structure_factors(1.5)
    crystal.setup_diffraction(300e3)
    matrix = random_rotations(1, 2)
    peaks = crystal.generate_diffraction_pattern(
        orientation_matrix=matrix[0], sigma_excitation_error=0.03
    ).data
    costs = []
    for stretch in (1.0, 1.01, 1.04):
        moved = peaks.copy()
        moved["qx"], moved["qy"] = peaks["qx"] * stretch, peaks["qy"] * stretch
        costs.append(float(strain_cost(crystal, [moved], matrix, 0.08, 0.03)[0]))
    assert costs[0] == pytest.approx(0, abs=1e-6)
    assert costs[1] == pytest.approx(1, rel=0.2)
    assert costs[2] == pytest.approx(16, rel=0.2)


def test_strain_with_the_crystal_of_each_grain(world):
    options = {"max_distance": 0.05, "progress_bar": False}
    strain = world.clusters.calculate_strain(world.crystals, world.bragg, world.phases, **options)
    assert (strain.get_slice("mask").data == 1).all()
    reason = np.array(REASONS)[strain.get_slice("reason").data.astype(int)]
    sure = world.phases.orientation.verdict == SURE
    np.testing.assert_array_equal(reason, np.where(sure, "defined", "ambiguous"))
    assert np.abs(strain.get_slice("e_xx").data - 0.005).max() < 2e-3
    assert np.abs(strain.get_slice("e_yy").data + 0.003).max() < 2e-3
    alone = world.clusters.calculate_strain(
        world.crystals["silicon"], world.bragg, world.phases.orientation_of("silicon"), **options
    )
    assert not alone.get_slice("mask").data[TRUTH == 0].any()
    np.testing.assert_allclose(alone.data[:4, TRUTH == 1], strain.data[:4, TRUTH == 1])


def test_boundaries_with_the_crystal_of_each_grain(world):
    table = world.clusters.get_boundaries(world.phases, world.crystals)
    assert table.dtype == PHASE_BOUNDARIES
    names = list(world.crystals)
    for row in table:
        a, b = TRUTH[row["label_a"]], TRUTH[row["label_b"]]
        assert (row["phase_a"], row["phase_b"]) == (names[a], names[b])
        assert np.isfinite(row["angle"]) == (a == b)
        if a == b:
            pair = world.matrices[[row["label_a"], row["label_b"]]]
            expected = misorientation(*pair, world.crystals[names[a]])
            assert row["angle"] == pytest.approx(expected, abs=2.5)
    assert (table["length"] > 0).all()
    joined = world.clusters.join_by_misorientation(world.phases, world.crystals, max_angle=180)
    assert joined.n_clusters == 2  # never across phases


def test_a_file_and_back(world, tmp_path):
    cube = DataCube(np.zeros((*LABELS.shape, 4, 4), np.uint16))
    cube.attach(world.phases.to_node())
    cube.attach(world.clusters.to_node())
    py4DSTEM.save(tmp_path / "scan.h5", cube)
    read = py4DSTEM.read(tmp_path / "scan.h5")
    back = PhaseMap.from_node(read.tree("phases"))
    assert type(read.tree("phases")).__module__.startswith("emdfile")
    np.testing.assert_array_equal(back.table(), world.phases.table())
    np.testing.assert_array_equal(back.expand(), world.phases.expand())
    np.testing.assert_array_equal(back.orientation.matrix, world.phases.orientation.matrix)
    assert (back.pixel_size, back.pixel_units) == (2.0, "nm")
    assert back.settings == world.phases.settings
    with pytest.raises(ValueError, match="read-only"):
        back.scores[0] = 1
    files = export(cube, tmp_path / "out", crystal=world.crystals)
    text = (tmp_path / "out" / "phases.ang").read_text()
    assert tmp_path / "out" / "phases.ang" in files
    assert text.index("# Phase 2") < text.index("# Phase 1")
    assert "silicon" in text
    rows = np.loadtxt(tmp_path / "out" / "phases.ang")
    np.testing.assert_array_equal(rows[:, 7], (world.phases.expand() + 1).ravel())
    np.testing.assert_array_equal(rows[:, 6] == -1, world.phases.expand().ravel() < 0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"names": ("gold",)}, "shape"),
        ({"names": 3}, "names"),
        ({"pixel_size": "x"}, "scan step"),
    ],
)
def test_damaged_settings(world, change, match):
    node = world.phases.to_node()
    for key, value in change.items():
        node.metadata["settings"][key] = value
    with pytest.raises(ValueError, match=match):
        PhaseMap.from_node(node)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("phase", np.array([0, 1, 2, 0]), "phase must be"),
        ("labels", np.array([[7]]), "labels must be"),
        ("undecided", np.zeros(3, bool), "shape"),
        ("evidence", None, "evidence"),
        ("orientation_matrix", None, "matrix of type"),
        ("orientation_evil", np.zeros((2, 1)), "positions"),
    ],
)
def test_damaged_arrays(world, key, value, match):
    node = world.phases.to_node()
    node.metadata["arrays"][key] = value
    with pytest.raises(ValueError, match=match):
        PhaseMap.from_node(node)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"crystals": []}, TypeError, "dictionary"),
        ({"crystals": {}}, ValueError, "empty"),
        ({"crystals": {3: None}}, ValueError, "name 3"),
        ({"crystals": {"gold": Crystal(FCC, 79, 4.08)}}, ValueError, "orientation plan"),
        ({"min_margin": -1}, ValueError, "min_margin"),
        ({"num_matches": 0}, ValueError, "num_matches"),
        ({"bragg": BraggVectors((3, 1), (8, 8))}, ValueError, "shape"),
    ],
)
def test_wrong_arguments(world, change, error, match):
    options = {"crystals": world.crystals, "bragg": world.bragg, "progress_bar": False, **change}
    with pytest.raises(error, match=match):
        world.clusters.map_phases(options.pop("crystals"), options.pop("bragg"), **options)


def test_a_missing_crystal(world):
    gold = {"gold": world.crystals["gold"]}
    with pytest.raises(ValueError, match="'silicon' is missing"):
        world.clusters.get_boundaries(world.phases, gold)
    with pytest.raises(ValueError, match="'silicon' is missing"):
        world.clusters.calculate_strain(gold, world.bragg, world.phases)
    with pytest.raises(ValueError, match="must be one of"):
        world.phases.orientation_of("copper")


def test_the_picture(world):
    def texts(phases):
        return [text.get_text() for text in phases.plot().get_legend().get_texts()]

    assert texts(world.phases) == ["gold: 2", "silicon: 2"]
    other = replace(
        world.phases, phase=np.array([0, -1, 0, 1]), undecided=np.array([True, False, False, False])
    )
    assert texts(other) == ["gold: 1", "silicon: 1", "none of these: 1", "undecided: 1"]
    np.testing.assert_array_equal(other.decided, [-1, -1, 0, 1])


def test_orix_reads_the_same(world, tmp_path):
    io = pytest.importorskip("orix.io")
    made = to_orix(world.phases, world.crystals)
    cube = DataCube(np.zeros((*LABELS.shape, 4, 4), np.uint16))
    cube.attach(world.phases.to_node())
    cube.attach(world.clusters.to_node())
    export(cube, tmp_path / "out", crystal=world.crystals)
    read = io.load(tmp_path / "out" / "phases.ang")
    np.testing.assert_array_equal(made.phase_id.reshape(LABELS.shape), world.phases.expand())
    np.testing.assert_array_equal(
        np.where(read.phase_id < 0, -1, read.phase_id - 1), world.phases.expand().ravel()
    )
    assert [made.phases[k].name for k in (0, 1)] == ["gold", "silicon"]
    assert made.phases[1].point_group.name == "m-3m"
    assert read.phases[2].name == "Si"  # orix prefers the formula
    indexed = made.is_indexed
    assert indexed.sum() == (LABELS >= 0).sum()
    np.testing.assert_allclose(
        made.rotations.to_matrix()[indexed], read.rotations.to_matrix()[indexed], atol=1e-4
    )
    # The axis down the picture, Rx, in the crystal: first column of py4DSTEM's matrix.
    k = LABELS.ravel()[indexed]
    down = made.rotations.to_matrix()[indexed][:, :, 1]
    np.testing.assert_allclose(down, world.phases.orientation.matrix[k, 0, 0, :, 0], atol=1e-6)
    assert made.scan_unit == "nm"
    assert np.ptp(made.x) == pytest.approx(2.0 * (LABELS.shape[1] - 1))
