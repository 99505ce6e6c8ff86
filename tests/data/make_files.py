"""How the files beside this were made: ``python tests/data/make_files.py release|today FOLDER``.

``release`` runs with release 0.1.0 in the path (commit bdbc885, the last one before [Unreleased]):
``PYTHONPATH=<clone at bdbc885> python make_files.py release tests/data``. ``today`` runs with the
format 1 of the version in development. They are kept, never made anew: new code must read them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import py4DSTEM

import py4dstem_clustering as pc
from py4dstem_clustering.emd import nodes

QUIET = {"progress_bar": False}


def make_cube(shift: int = 0) -> py4DSTEM.DataCube:
    """A scan of 8 x 7 patterns of 12 x 10: three grains in stripes, and noise."""
    rng = np.random.default_rng(0)
    x, y = np.indices((8, 7))
    grain = ((2 * x + 3 * y + shift) // 9) % 3
    means = rng.gamma(0.5, 20, size=(3, 12, 10))
    counts = np.minimum(rng.poisson(means[grain]), 255).astype(np.uint8)
    cube = py4DSTEM.DataCube(counts, name="cube")
    cube.calibration.set_R_pixel_size(2.5)
    cube.calibration.set_R_pixel_units("nm")
    cube.calibration.set_Q_pixel_size(0.02)
    cube.calibration.set_Q_pixel_units("A^-1")
    return cube


def make_release(folder: Path) -> None:
    """One clustering with its similarity and averages, in the tree of the scan."""
    cube = make_cube()
    q_mask = np.indices((12, 10))[0] > 2
    similarity = cube.get_similarity(q_mask=q_mask, **QUIET)
    cube.cluster(threshold=0.6, min_size=2, similarity=similarity)
    cube.get_clustered_datacube(**QUIET)
    py4DSTEM.save(str(folder / "release_0.1.0.h5"), cube, mode="o")


def make_today(folder: Path) -> None:
    """Clusters of both kinds; a tree of what else there is; three frames of which one failed."""
    cube = make_cube()
    similarity = cube.get_similarity(**QUIET)
    cube.cluster(threshold=0.6, min_size=2, similarity=similarity, name="grown", **QUIET)
    cube.cluster(name="merged", **QUIET)
    cube.get_clustered_datacube(**QUIET)
    clusters = make_cube()
    for name in ("grown", "merged"):
        nodes.put(clusters, cube.tree(name))
    py4DSTEM.save(str(folder / "clusters_format_1.h5"), clusters, tree=None, mode="o")

    other = make_cube()
    grown = cube.get_cluster_tree(method="grow", similarity=similarity, **QUIET)
    for node in (
        similarity.to_node(),
        cube.get_cluster_tree(**QUIET).to_node("tree_of_merging"),
        grown.to_node("tree_of_growth"),
        pc.orientation_to_node(make_orientation()),
    ):
        other.attach(node)
    py4DSTEM.save(str(folder / "tree_format_1.h5"), other, tree=None, mode="o")

    def load(path: Path) -> py4DSTEM.DataCube:
        number = int(path.stem)
        if number == 1:
            raise OSError("1.h5 is damaged")
        return make_cube(number)

    pc.cluster_series(
        [Path(f"{number}.h5") for number in range(3)],
        out=folder / "series_format_1.h5",
        load=load,
        times=0.5,
        time_units="s",
        method="grow",
        threshold=0.6,
        drift=np.array([[0, 0], [0, 1], [0, 2.0]]),
        **QUIET,
    )


def make_orientation() -> object:
    """An orientation of two positions: turned by 0, 10, ... degrees about z."""
    from py4DSTEM.process.diffraction.utils import OrientationMap

    found = OrientationMap(2, 1, 2)
    angle = np.deg2rad(np.arange(0, 40, 10.0)).reshape(2, 1, 2)
    found.matrix[..., 2, 2] = 1
    found.matrix[..., 0, 0] = found.matrix[..., 1, 1] = np.cos(angle)
    found.matrix[..., 1, 0], found.matrix[..., 0, 1] = np.sin(angle), -np.sin(angle)
    found.corr[:] = 1 - angle
    return found


if __name__ == "__main__":
    {"release": make_release, "today": make_today}[sys.argv[1]](Path(sys.argv[2]))
