"""Results for other programs: read back, they are the same clusters, steps and angles."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ET
from importlib.util import find_spec

import numpy as np
import py4DSTEM
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from py4DSTEM.process.diffraction.utils import OrientationMap

from py4dstem_clustering import Clusters, cluster_series, export, orientation_to_node, simulate_scan
from py4dstem_clustering.cli.main import main
from py4dstem_clustering.exporting.ang import euler_angles, write_ang
from py4dstem_clustering.exporting.indexed import index_map

HAS_EXTRA = find_spec("rsciio") is not None
OF_CLUSTERS = ["clusters.csv", "clusters.geojson", "clusters.npz", "clusters.svg", "clusters.tif"]

LABELS = np.array(
    [
        [-1, 0, 0, 0, 0, 1, 1],
        [-1, 0, -1, -1, 0, 1, 1],
        [-1, 0, -1, 2, 0, 1, 1],
        [-1, 0, 0, 0, 0, -1, -1],
        [1, 1, -1, -1, -1, -1, 2],
    ]
)
"""A cluster with a hole, one of two pieces, and one inside the hole and far away."""


def make_clusters(labels=LABELS, **options):
    seeds = [np.argwhere(labels == k)[0] for k in range(labels.max() + 1)]
    return Clusters(labels, seeds, np.full(labels.shape, 0.9), **options)


@pytest.fixture
def clusters():
    return make_clusters(pixel_size=2.5, pixel_units="nm")


def area(ring):
    x, y = np.asarray(ring)[:-1].T
    return (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2


def inside(ring, point):
    """By the angles that the ring turns around the point."""
    d = np.asarray(ring) - point
    turns = np.angle((d[1:, 0] + 1j * d[1:, 1]) / (d[:-1, 0] + 1j * d[:-1, 1]))
    return abs(turns.sum()) > 1


def test_labels_as_tiff_and_numpy(tmp_path, clusters):
    files = export(clusters, tmp_path / "new" / "folder")
    assert sorted(path.name for path in files) == OF_CLUSTERS
    with tifffile.TiffFile(tmp_path / "new" / "folder" / "clusters.tif") as tiff:
        assert_array_equal(tiff.asarray().astype(int) - 1, LABELS)
        assert tiff.imagej_metadata["unit"] == "nm"
        each, per = tiff.pages[0].tags["XResolution"].value
        assert per / each == pytest.approx(2.5)
    with np.load(tmp_path / "new" / "folder" / "clusters.npz") as found:
        assert_array_equal(found["labels"], LABELS)
        assert (found["scan_step"], found["scan_step_unit"]) == (2.5, "nm")


def test_the_table(tmp_path, clusters):
    export(clusters, tmp_path)
    with (tmp_path / "clusters.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = clusters.properties()
    assert [int(row["label"]) for row in rows] == [0, 1, 2]
    assert_array_equal([float(row["area / nm^2"]) for row in rows], expected["area"])
    assert_array_equal([float(row["perimeter / nm"]) for row in rows], expected["perimeter"])
    assert [row["touches_border"] for row in rows] == [str(b) for b in expected["touches_border"]]


NESTED = np.zeros((9, 11), int)  # rings of a cluster inside each other
NESTED[1:-1, 1:-1] = 1
NESTED[2:-2, 2:-2] = 0
NESTED[3:-3, 3:-3] = 1


@pytest.mark.parametrize("labels", [LABELS, NESTED], ids=["pieces", "nested"])
def test_contours_as_geojson(tmp_path, labels):
    export(make_clusters(labels, pixel_size=2.5, pixel_units="nm"), tmp_path)
    content = json.loads((tmp_path / "clusters.geojson").read_text(encoding="utf-8"))
    assert content["unit"] == "nm"
    kinds = [feature["geometry"]["type"] for feature in content["features"]]
    if labels is LABELS:
        assert kinds == ["Polygon", "MultiPolygon", "MultiPolygon"]
    for label, feature in enumerate(content["features"]):
        assert feature["id"] == feature["properties"]["label"] == label
        polygons = feature["geometry"]["coordinates"]
        polygons = [polygons] if feature["geometry"]["type"] == "Polygon" else polygons
        for outer, *holes in polygons:
            assert outer[0] == outer[-1]
            assert area(outer) > 0  # anticlockwise, as RFC 7946 asks for
            assert all(area(hole) < 0 for hole in holes)
        # The middle of each position lies in the polygons of its own cluster only.
        for (rx, ry), value in np.ndenumerate(labels):
            point = 2.5 * np.array([ry, rx])
            count = sum(
                inside(outer, point) and not any(inside(hole, point) for hole in holes)
                for outer, *holes in polygons
            )
            assert count == (value == label), (label, rx, ry)


def test_contours_as_svg(tmp_path, clusters):
    export(clusters, tmp_path)
    root = ET.parse(tmp_path / "clusters.svg").getroot()  # noqa: S314
    assert root.get("viewBox") == "-0.5 -0.5 7 5"
    paths = root.findall("{http://www.w3.org/2000/svg}path")
    assert [path.get("id") for path in paths] == ["cluster-0", "cluster-1", "cluster-2"]
    assert [path.get("d").count("M") for path in paths] == [2, 2, 2]
    points = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", paths[1].get("d")), float)
    assert_array_equal(points.max(axis=0), [6.5, 4.5])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A scan and averages in files, with clusters, an orientation map, and one of the averages."""
    folder = tmp_path_factory.mktemp("results")
    cube = simulate_scan((12, 10), (32, 30), n_grains=2, electrons=20_000, seed=1).datacube
    cube.calibration.set_R_pixel_size(3.0)
    cube.calibration.set_R_pixel_units("nm")
    clusters = cube.cluster(progress_bar=False)
    averages = cube.get_clustered_datacube(clusters, progress_bar=False)
    for target, shape in ((cube, (12, 10)), (averages, (clusters.n_clusters, 1))):
        orientation = OrientationMap(*shape, 1)
        orientation.matrix[...] = np.eye(3)
        orientation.corr[...] = 0.5
        target.attach(orientation_to_node(orientation))
    py4DSTEM.save(folder / "scan.h5", cube)
    py4DSTEM.save(folder / "averages.h5", averages)
    return folder, cube, averages


@pytest.mark.parametrize("name", ["scan", "averages"])
def test_of_a_file_and_on_the_command_line(tmp_path, results, name, capsys):
    folder, cube, averages = results
    expected = [*OF_CLUSTERS, "orientation_map.ang"] + ["averages.hspy"] * HAS_EXTRA
    for source in (cube, averages):
        out = tmp_path / source.name
        assert sorted(path.name for path in export(source, out)) == sorted(expected)
    assert main(["export", str(folder / f"{name}.h5"), "--to", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(expected)
    assert "wrote clusters.tif, " in capsys.readouterr().out
    with np.load(tmp_path / "out" / "clusters.npz") as found:
        assert_array_equal(found["labels"], cube.clusters.labels)
        assert found["scan_step"] == 3
    same = tmp_path / {"scan": cube, "averages": averages}[name].name
    for path in expected:
        if not path.endswith((".hspy", ".npz")):  # these hold times
            assert (tmp_path / "out" / path).read_bytes() == (same / path).read_bytes()


@pytest.mark.skipif(not HAS_EXTRA, reason="needs RosettaSciIO")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_averages_as_hspy(tmp_path, results):
    from rsciio.hspy import file_reader

    folder, _, averages = results
    export(folder / "averages.h5", tmp_path)
    (signal,) = file_reader(str(tmp_path / "averages.hspy"))
    assert_array_equal(signal["data"], averages.data[:, 0])
    assert [axis["name"] for axis in signal["axes"]] == ["cluster", "ky", "kx"]
    pixel = averages.calibration.get_Q_pixel_size()
    assert [axis["scale"] for axis in signal["axes"]] == pytest.approx([1, pixel, pixel])


def test_the_tracks_of_a_series(tmp_path):
    scans = []
    for seed in (1, 1):
        cube = simulate_scan((12, 10), (32, 30), n_grains=2, electrons=20_000, seed=seed).datacube
        cube.calibration.set_R_pixel_size(3.0)
        cube.calibration.set_R_pixel_units("nm")
        scans.append(cube)
    series = cluster_series(
        scans, out=tmp_path / "series.h5", times=0.5, time_units="s", progress_bar=False
    )
    assert main(["export", str(tmp_path / "series.h5"), "--to", str(tmp_path / "out")]) == 0
    names = ["events.csv", "tracks.csv", "tracks.tif"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert sorted(path.name for path in export(series, tmp_path / "again")) == names
    tracks = series.tracks()
    with (tmp_path / "out" / "tracks.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert_array_equal([int(row["track"]) for row in rows], tracks.table["track"])
    assert_array_equal([float(row["time / s"]) for row in rows], tracks.table["time"])
    assert_array_equal([float(row["area / nm^2"]) for row in rows], tracks.table["area"])
    maps = tifffile.imread(tmp_path / "out" / "tracks.tif").astype(int) - 1
    assert_array_equal(maps, tracks.maps(series))


def test_nothing_is_written_where_something_is_wrong(tmp_path, clusters):
    (tmp_path / "clusters.csv").write_text("precious")
    with pytest.raises(ValueError, match=r"clusters.csv exists; give another folder"):
        export(clusters, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["clusters.csv"]
    export(clusters, tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="is a file; give the name of a folder"):
        export(clusters, tmp_path / "clusters.csv")
    with pytest.raises(ValueError, match="holds no clusters; cluster it first"):
        export(py4DSTEM.DataCube(np.ones((2, 3, 4, 5))), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no.h5 is not a file"):
        export(tmp_path / "no.h5", tmp_path)


# --- .ang ---------------------------------------------------------------------------------------


def turn_of_axes(axis, angle):
    """The rotation of axes by an angle about one of them, as in Bunge's book."""
    c, s = np.cos(angle), np.sin(angle)
    if axis == "z":
        return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    return np.array([[1, 0, 0], [0, c, s], [0, -s, c]])


def from_euler(first, middle, last):
    return turn_of_axes("z", last) @ turn_of_axes("x", middle) @ turn_of_axes("z", first)


@settings(deadline=None)
@given(
    st.floats(0, 2 * np.pi), st.sampled_from([0.0, 1e-3, 0.7, np.pi / 2, 3.0, np.pi]),
    st.floats(0, 2 * np.pi),
)  # fmt: skip
def test_euler_angles_turn_the_axes_back(first, middle, last):
    matrix = from_euler(first, middle, last)
    angles = euler_angles(matrix)
    assert (angles >= 0).all()
    assert (angles <= 2 * np.pi).all()
    assert_allclose(from_euler(*angles), matrix, atol=1e-6)


@pytest.mark.parametrize(("unit", "factor"), [("nm", 1e-3), ("A", 1e-4), ("pixels", 1)])
def test_an_orientation_map_as_ang(tmp_path, unit, factor):
    """A known crystal direction along each axis of the picture is found from the angles."""
    orientation = OrientationMap(3, 4, 1)
    rng = np.random.default_rng(0)
    turns = np.linalg.qr(rng.normal(size=(3, 4, 3, 3)))[0]
    turns[np.linalg.det(turns) < 0] *= -1
    orientation.matrix[:, :, 0] = turns
    orientation.matrix[1, 2] = 0
    orientation.corr[..., 0] = 0.25
    write_ang(tmp_path / "map.ang", index_map(orientation, None), (3.0, unit))
    lines = (tmp_path / "map.ang").read_text(encoding="utf-8").splitlines()
    head = [line for line in lines if line.startswith("#")]
    assert "# NCOLS_ODD: 4" in head
    assert "# NROWS: 3" in head
    assert f"# XSTEP: {3 * factor:.6g}" in head
    rows = np.loadtxt(tmp_path / "map.ang")
    assert rows.shape == (12, 10)
    assert_allclose(rows[:4, 3], np.arange(4) * 3 * factor, atol=1e-5)  # x along Ry, first
    assert_array_equal(rows[:4, 4], 0)
    assert_allclose(rows[6, :3], 4 * np.pi, atol=1e-5)  # position (1, 2)
    assert rows[6, 6] == -1
    for number in (0, 5, 11):
        g, matrix = from_euler(*rows[number, :3]), turns[number // 4, number % 4]
        right, down = matrix[:, 1], matrix[:, 0]  # py4DSTEM: columns are Rx, Ry and the beam
        assert_allclose(g[:, 0], right, atol=1e-4)
        assert_allclose(g[:, 1], down, atol=1e-4)
        assert_allclose(g[:, 2], -matrix[:, 2], atol=1e-4)


def test_symmetry_and_lattice_of_a_crystal(tmp_path):
    orientation = OrientationMap(1, 1, 1)
    orientation.matrix[...] = np.eye(3)
    orientation.corr[...] = 1
    cells = {43: 4.08, 62: [3.2, 3.2, 5.2, 90, 90, 120], 42: [3, 3, 5, 90, 90, 90]}
    for code, cell in cells.items():
        crystal = py4DSTEM.process.diffraction.Crystal([[0, 0, 0]], 79, cell)
        write_ang(tmp_path / "map.ang", index_map(orientation, crystal), (1.0, "nm"))
        text = (tmp_path / "map.ang").read_text(encoding="utf-8")
        assert f"# Symmetry              {code}\n" in text
        assert f"# LatticeConstants      {np.ravel(cell)[0]:.4f}" in text
