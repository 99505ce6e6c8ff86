"""The whole way: scan, disks, orientations, strain, pictures, file, and back."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import py4DSTEM
import pytest

import py4dstem_clustering as clustering
from py4dstem_clustering.benchmarks.orientation import DISKS, PLAN, disk_template
from py4dstem_clustering.simulate.crystals import crystal_of_gold

OURS = str(Path(clustering.__file__).parent)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Everything that a user calls, and every warning on the way."""
    scan = clustering.simulate_scan(
        (18, 14), (72, 66), n_grains=3, electrons=3000, probe_blur=0.5, descan=3, strain=0.01,
        seed=5,
    )  # fmt: skip
    cube = scan.datacube
    centre = np.array([(n - 1) / 2 for n in cube.Qshape])
    cube.calibration.set_origin(tuple(np.moveaxis(centre + scan.shifts, 2, 0)))
    cube.calibration.set_ellipse((1.0, 1.0, 0.0))
    cube.calibration.set_QR_rotation(0.0)
    cube.calibration.set_QR_flip(False)
    out = {"scan": scan, "path": tmp_path_factory.mktemp("chain") / "chain.h5"}
    output = io.StringIO()
    with (
        redirect_stdout(output),
        redirect_stderr(output),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        crystal = out["crystal"] = crystal_of_gold(1.5)
        crystal.orientation_plan(**PLAN)
        clusters = out["clusters"] = cube.cluster(progress_bar=False)
        averages = cube.get_clustered_datacube(progress_bar=False)
        options = {"template": disk_template(cube.Qshape), **DISKS}
        bragg = averages.find_Bragg_disks(**options)
        bragg_scan = cube.find_Bragg_disks(**options)
        bragg.setcal()
        bragg_scan.setcal()
        matched = crystal.match_orientations(bragg, progress_bar=False)
        refined = clustering.refine_orientations(crystal, bragg, matched, progress_bar=False)
        orientation = out["orientation"] = clusters.expand_orientation_map(refined)
        mixture = clusters.get_mixture(cube, progress_bar=False)
        strain = out["strain"] = clusters.calculate_strain(
            crystal, bragg_scan, orientation, mixture=mixture, progress_bar=False
        )
        out["per_cluster"] = clusters.calculate_strain(crystal, bragg, refined, progress_bar=False)
        out["boundaries"] = clusters.get_boundaries(orientation, crystal)
        out["gained"] = clusters.gained_disks(
            bragg, bragg_scan, crystal=crystal, orientation=refined, max_distance=0.04
        )
        clusters.plot()
        clustering.plot_averages(averages)
        out["gained"].plot()
        crystal.plot_orientation_maps(orientation, returnfig=True)
        py4DSTEM.visualize.show_strain(strain, returnfig=True)
        plt.close("all")
        cube.attach(strain)
        cube.attach(clustering.orientation_to_node(orientation))
        py4DSTEM.save(str(out["path"]), cube)
        out["back"] = py4DSTEM.read(str(out["path"]))
    out["caught"] = caught
    return out


def test_no_warnings_of_ours(chain):
    ours = [str(one.message) for one in chain["caught"] if one.filename.startswith(OURS)]
    assert ours == []


def test_grains_and_orientations(chain):
    scan, clusters = chain["scan"], chain["clusters"]
    assert clusters.n_clusters == scan.labels.max() + 1
    grain = scan.labels[tuple(clusters.seeds.T)]
    inside = clusters.labels >= 0
    truth = scan.orientations[grain[clusters.labels[inside]]]
    error = clustering.misorientation(
        chain["orientation"].matrix[inside][:, 0], truth, chain["crystal"]
    )
    assert np.median(error) < 0.5
    assert (error < 3).all()


def test_strain(chain):
    scan, clusters = chain["scan"], chain["clusters"]
    data = chain["strain"].data
    defined = data[4] == 1
    assert 0.4 < defined.sum() / (clusters.labels >= 0).sum() < 1  # borders are mixed
    np.testing.assert_array_equal(np.isfinite(data[:4]).all(axis=0), defined)
    grain = scan.labels[tuple(clusters.seeds.T)]
    truth = clusters.expand(scan.strains[grain])
    error = data[:3, defined].T - truth[defined]
    assert (np.abs(np.median(error, axis=0)) < 0.001).all()
    assert (np.median(np.abs(error), axis=0) < 0.004).all()
    per_cluster = chain["per_cluster"].data[:3, :, 0].T - scan.strains[grain]
    assert (np.abs(per_cluster) < 0.003).all()


def test_everything_is_in_the_file(chain):
    back, clusters = chain["back"], chain["clusters"]
    np.testing.assert_array_equal(back.clusters.labels, clusters.labels)
    np.testing.assert_array_equal(back.tree("strain").data, chain["strain"].data)
    assert back.tree("strain").slicelabels == list(chain["strain"].slicelabels)
    again = clustering.orientation_from_node(back.tree("orientation_map"))
    for key, value in vars(chain["orientation"]).items():
        np.testing.assert_array_equal(getattr(again, key), value)
    assert again.mirror.dtype == bool
    assert again.inds.dtype.kind == "i"
    assert again.get_orientation(3, 4).num_matches == 2


def test_disks_are_counted(chain):
    table = chain["gained"].table()
    # At this dose single patterns show nearly all of them.
    assert (table["n_average"] >= 10).all()
    assert (np.abs(table["n_average"] - table["n_single"]) <= 2).all()


def test_boundaries_are_those_of_touching_clusters(chain):
    for row in chain["boundaries"]:
        assert row["length"] > 0
        assert 0 < row["angle"] < 62.8
