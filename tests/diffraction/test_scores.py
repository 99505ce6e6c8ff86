"""Verdicts and scores go where the orientation map goes."""

from __future__ import annotations

import numpy as np
import py4DSTEM
import pytest
from py4DSTEM import DataCube
from py4DSTEM.process.diffraction.utils import OrientationMap
from scipy.spatial.transform import Rotation

from py4dstem_clustering import (
    Clusters,
    orientation_from_node,
    orientation_scores,
    orientation_to_node,
    plot_orientation,
)
from py4dstem_clustering.kernels.evidence import AMBIGUOUS, NOT_INDEXED, SURE
from py4dstem_clustering.simulate.crystals import check_materials

LABELS = np.array([[0, 0, 1, 1], [0, -1, 1, 1], [2, 2, 2, -1]])


@pytest.fixture(scope="module")
def gold():
    return check_materials("gold", 0.08)[0].crystal


@pytest.fixture
def clusters():
    seeds = np.array([np.argwhere(k == LABELS)[0] for k in range(3)])
    return Clusters(LABELS, seeds, np.zeros(LABELS.shape), {})


@pytest.fixture
def refined():
    """As refine_orientations returns it: the third cluster is not indexed."""
    rng = np.random.default_rng(1)
    out = OrientationMap(3, 1, 2)
    out.matrix[:] = (
        Rotation.from_quat(rng.standard_normal((6, 4))).as_matrix().reshape(3, 1, 2, 3, 3)
    )
    out.corr[:, 0] = [[0.9, 0.6], [0.8, 0.79], [0, 0]]
    out.verdict = np.array([[SURE], [AMBIGUOUS], [NOT_INDEXED]], dtype=np.uint8)
    out.n_disks = np.array([[9], [6], [2]])
    for name in ("score", "evidence", "explained", "runner_up", "runner_up_evidence"):
        setattr(out, name, rng.uniform(0.1, 1, (3, 1)))
    out.sigma_excitation_error = np.array([[0.004], [0.008], [0.01]])
    return out


def test_they_are_expanded(clusters, refined):
    before, scores = (
        orientation_scores(refined),
        orientation_scores(clusters.expand_orientation_map(refined)),
    )
    inside = LABELS >= 0
    assert scores.shape == LABELS.shape
    for name in ("verdict", "score", "evidence", "n_disks", "explained", "runner_up"):
        np.testing.assert_array_equal(
            getattr(scores, name)[inside], getattr(before, name)[LABELS[inside], 0]
        )
        assert not getattr(scores, name)[~inside].any()
    np.testing.assert_array_equal(
        scores.runner_up_matrix[LABELS == 1], np.tile(refined.matrix[1, 0, 1], (4, 1, 1))
    )
    assert np.isnan(scores.sigma_excitation_error[~inside]).all()
    assert np.isnan(scores.runner_up_matrix[~inside]).all()
    assert repr(scores) == "OrientationScores(3 x 4: 3 sure, 4 ambiguous, 5 not indexed)"


def test_they_survive_a_file(clusters, refined, tmp_path):
    expanded = clusters.expand_orientation_map(refined)
    cube = DataCube(np.ones((*LABELS.shape, 4, 5), dtype=np.uint16))
    cube.attach(orientation_to_node(expanded))
    py4DSTEM.save(str(tmp_path / "a.h5"), cube)
    back = orientation_from_node(py4DSTEM.read(str(tmp_path / "a.h5")).tree("orientation_map"))
    one, two = orientation_scores(expanded), orientation_scores(back)
    for name in ("verdict", "score", "n_disks", "runner_up_matrix", "sigma_excitation_error"):
        np.testing.assert_array_equal(getattr(two, name), getattr(one, name))
    assert two.verdict.dtype.kind in "iu"


def test_boundaries_tell_the_less_sure_verdict(clusters, refined, gold):
    expanded = clusters.expand_orientation_map(refined)
    for orientation in (refined, expanded):
        table = clusters.get_boundaries(orientation, gold)
        rows = {(row["label_a"], row["label_b"]): row for row in table}
        assert rows[0, 1]["verdict"] == "ambiguous"
        assert rows[0, 1]["angle"] > 0
        for pair in ((0, 2), (1, 2)):  # a lattice that is not indexed has no boundary angle
            assert rows[pair]["verdict"] == ""
            assert np.isnan(rows[pair]["angle"])
    del refined.verdict
    assert set(clusters.get_boundaries(refined, gold)["verdict"]) == {""}


def test_what_is_not_indexed_has_no_strain(clusters, refined, gold):
    """Strain refers to no lattice there, and `reason` says that the verdict is why."""
    from py4DSTEM.braggvectors import BraggVectors

    crystal = check_materials("gold", 0.08)[0].kinematical(1.3, 300e3)
    bragg = BraggVectors(LABELS.shape, (40, 44))
    bragg.calibration.set_Q_pixel_size(0.05)
    bragg.calibration.set_Q_pixel_units("A^-1")
    bragg.calibration.set_origin((20, 22))
    strain = clusters.calculate_strain(
        crystal, bragg, refined, max_distance=0.05, sigma_excitation_error=0.03, progress_bar=False
    )
    reason = strain.data[list(strain.slicelabels).index("reason")]
    assert (reason[LABELS == 2] == 6).all()
    assert (reason[(LABELS == 0) | (LABELS == 1)] == 2).all()


def test_the_figure_hatches_and_greys(clusters, refined, gold):
    expanded = clusters.expand_orientation_map(refined)
    ax = plot_orientation(expanded, gold)
    ax.figure.canvas.draw()
    image = ax.images[0].get_array()
    grey = (image == 0.75).all(axis=2)
    np.testing.assert_array_equal(grey, (LABELS < 0) | (LABELS == 2))
    for label in (0, 1):
        assert np.ptp(image[label == LABELS], axis=0).max() < 1e-12
    assert np.abs(image[0, 0] - image[0, 2]).max() > 0.05
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["ambiguous", "not indexed"]
    del expanded.verdict
    plain = plot_orientation(expanded, gold, direction="x")
    assert [text.get_text() for text in plain.get_legend().get_texts()] == ["not indexed"]
    with pytest.raises(ValueError, match="must be 'beam', 'x' or 'y'"):
        plot_orientation(expanded, gold, direction="z")


def test_equivalent_orientations_have_the_same_colour(gold):
    from py4dstem_clustering import get_symmetry

    symmetry = get_symmetry(gold)
    matrix = Rotation.from_euler("zxz", [0.3, 0.5, 1.1]).as_matrix()
    out = OrientationMap(len(symmetry), 1, 1)
    out.matrix[:, 0, 0], out.corr[:] = symmetry @ matrix, 1
    image = plot_orientation(out, gold).images[0].get_array()
    assert np.ptp(image, axis=0).max() < 1e-9
