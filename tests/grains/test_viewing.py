"""Single grains, tables, virtual images and what a notebook shows of results."""

from __future__ import annotations

import base64
import dataclasses
import io
import pickle
import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pandas
import pytest
from PIL import Image
from py4DSTEM import DataCube

from py4dstem_clustering import Clusters, Grain, simulate_scan
from py4dstem_clustering.kernels.virtual import disks_of

QUIET = {"progress_bar": False}


@pytest.fixture(scope="module")
def scan():
    return simulate_scan((24, 20), (48, 44), n_grains=3, electrons=1000, seed=2).datacube


@pytest.fixture(scope="module")
def clusters(scan):
    return scan.cluster(**QUIET)


@pytest.fixture(scope="module")
def averages(scan, clusters):
    return scan.get_clustered_datacube(clusters, **QUIET)


class Elements(HTMLParser):
    """The elements of a page: names, attributes and text; each that opens must close."""

    def __init__(self, page):
        super().__init__()
        self.open, self.found, self.text = [], [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "br", "link", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def pictures(self):
        for tag, attrs in self.found:
            if tag == "img":
                kind, _, data = attrs["src"].partition(",")
                assert kind == "data:image/png;base64"
                assert attrs["alt"]
                yield Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


# --- grains ------------------------------------------------------------------------------------


def test_a_grain_is_what_clusters_say_of_it(clusters):
    table = clusters.properties()
    assert [grain.label for grain in clusters] == list(range(len(clusters)))
    for grain in clusters:
        k = grain.label
        assert isinstance(clusters[k], Grain)
        np.testing.assert_array_equal(grain.members, clusters.members(k))
        np.testing.assert_array_equal(grain.mask, clusters.labels == k)
        for mine, theirs in zip(grain.contours, clusters.contours(k), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert list(grain.properties) == list(table.dtype.names)
        for name, value in grain.properties.items():
            assert value == pytest.approx(table[name][k].item())
        assert grain.size == clusters.sizes[k]
        assert grain.area == table["area"][k]
        assert grain.seed == tuple(clusters.seeds[k])
        assert not grain.is_background
        np.testing.assert_array_equal(clusters.members(grain), grain.members)
    assert clusters.join(list(clusters)).n_clusters == 1
    assert re.fullmatch(
        rf"Grain\(1, {clusters.sizes[1]} positions, [\d.]+ nm², equivalent diameter [\d.]+ nm\)",
        repr(clusters[np.int64(1)]),
    )


def test_a_grain_does_not_change(clusters):
    grain = clusters[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        grain.label = 1
    with pytest.raises(TypeError):
        grain.properties["size"] = 1
    for array in (grain.mask, grain.members, *grain.contours):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    again = pickle.loads(pickle.dumps(grain))
    np.testing.assert_array_equal(again.members, grain.members)


@pytest.mark.parametrize("label", [-1, 3, np.int64(99)])
def test_there_is_no_such_grain(clusters, label):
    with pytest.raises(
        IndexError, match=rf"label {label} does not exist; the labels here are: 0 to"
    ):
        clusters[label]


@pytest.mark.parametrize("label", [1.0, "1", True, slice(0, 2), None])
def test_no_label(clusters, label):
    with pytest.raises(TypeError, match="label="):
        clusters[label]


def test_clusters_without_any():
    none = Clusters(np.full((3, 4), -1), np.zeros((0, 2)), np.zeros((3, 4)))
    assert list(none) == []
    assert len(none.table()) == 0
    assert "clusters" in Elements(none._repr_html_()).text
    with pytest.raises(IndexError, match="the labels here are: none"):
        none[0]
    plt.close(none.plot_sizes().figure)


def test_background_is_a_grain_that_says_so(scan):
    # A datacube of its own: clusters of the same name would replace those in the tree of `scan`.
    kept = DataCube(scan.data).cluster(drop_background=False, **QUIET)
    assert [grain.label for grain in kept if grain.is_background] == list(kept.background) != []
    assert repr(kept[kept.background[0]]).endswith(", background)")


# --- averages ----------------------------------------------------------------------------------


def test_averages_come_with_the_clusters_of_a_datacube(scan, clusters, averages, tmp_path):
    import py4DSTEM

    assert clusters.averages is None
    assert clusters[1].average is None
    py4DSTEM.save(str(tmp_path / "scan.h5"), scan)
    py4DSTEM.save(str(tmp_path / "averages.h5"), averages)
    for cube in (
        scan,
        averages,
        py4DSTEM.read(str(tmp_path / "scan.h5")),
        py4DSTEM.read(str(tmp_path / "averages.h5")),
    ):
        found = cube.clusters
        np.testing.assert_array_equal(found.averages, averages.data[:, 0])
        np.testing.assert_array_equal(found[1].average, averages.data[1, 0])
        assert not found.averages.flags.writeable
        assert found.remove(0).averages is None
        assert found.join([0, 1]).averages is None
    assert averages.data.flags.writeable


def test_wrong_averages(clusters):
    with pytest.raises(ValueError, match=r"averages of shape \(2, 5, 4\) must be 3 patterns"):
        dataclasses.replace(clusters, averages=np.zeros((2, 5, 4)))


# --- table -------------------------------------------------------------------------------------


def test_table(clusters):
    table = clusters.table()
    np.testing.assert_array_equal(table.rows, clusters.properties())
    np.testing.assert_array_equal(table["area"], clusters.properties()["area"])
    assert len(table) == len(list(table)) == len(clusters)
    assert table[1]["label"] == 1
    assert list(pandas.DataFrame(np.asarray(table)).columns) == list(table.names)
    head, *lines = str(table).splitlines()
    for part in ("label", "size", "area (Å²)", "equivalent diameter (Å)", "touches border"):
        assert part in head
    assert len(lines) == len(clusters)
    assert {len(line) for line in lines} == {len(head)}
    assert lines[0].split()[:3] == ["0", str(clusters.sizes[0]), f"{table['area'][0]:.0f}"]
    text = Elements(table._repr_html_()).text
    assert "eccentricity" in text
    with pytest.raises(TypeError, match="no array of float64"):
        np.asarray(table, dtype=float)


@pytest.mark.parametrize(("units", "shown"), [("um", "µm"), ("nm", "nm"), ("A", "Å")])
def test_units_are_printed_with_their_signs(clusters, units, shown):
    found = replace(clusters, pixel_units=units)
    head = str(found.table()).splitlines()[0]
    assert f"area ({shown}²)" in head
    assert f"equivalent diameter ({shown})" in head
    assert f" {'nm' if units == 'A' else shown}²" in repr(found[0])


def test_a_long_table_is_cut():
    labels = np.arange(60).reshape(6, 10)
    table = Clusters(labels, np.argwhere(labels >= 0), np.zeros((6, 10))).table()
    assert str(table).splitlines()[-1] == "... and 20 more"
    assert len(str(table).splitlines()) == 42
    assert "... and 20 more" in table._repr_html_()


# --- virtual images ----------------------------------------------------------------------------


def test_the_virtual_image_of_a_grain_shows_it(scan, clusters, averages):
    """Its positions are brighter than all others, by what disks have more than noise."""
    for grain in clusters:
        image = clusters.virtual_image(scan, grain, **QUIET)
        inside, outside = image[grain.mask], image[~grain.mask]
        assert np.median(inside) > 2 * np.median(outside)
        expected = disks_of(averages.data[grain.label, 0].astype(float), (23.5, 21.5))
        np.testing.assert_allclose(image, (scan.data * expected).sum(axis=(2, 3)), rtol=1e-6)
        # From the averages that are known, without reading the scan for them.
        np.testing.assert_allclose(scan.clusters.virtual_image(scan, grain, **QUIET), image)


def test_disks_of_a_pattern():
    """Disks of radius 2 in a halo; neither the halo nor the direct beam is a disk."""
    u, v = np.indices((50, 46))
    distance = np.hypot(u - 24, v - 22)
    pattern = 20 * np.exp(-((distance / 12) ** 2)) + 5000 * (distance <= 2)
    disks = np.zeros((50, 46), bool)
    for place in ((35, 30), (13, 14), (24, 38)):
        disks |= np.hypot(u - place[0], v - place[1]) <= 2
    pattern[disks] += 40
    found = disks_of(pattern, (24.0, 22.0))
    assert found[disks].all()
    assert not (found & (distance < 5)).any()
    assert found.sum() <= 2.6 * disks.sum()
    np.testing.assert_array_equal(disks_of(pattern, None), found)
    assert not disks_of(np.zeros((50, 46)), None).any()
    pattern[0, 0] = np.nan
    assert disks_of(pattern, (24.0, 22.0))[disks].all()


def test_other_virtual_images(scan, clusters):
    detector = np.indices((48, 44))[0] > 30
    np.testing.assert_allclose(
        clusters.virtual_image(scan, detector=detector, **QUIET),
        (scan.data * detector).sum(axis=(2, 3)),
        rtol=1e-6,
    )
    whole = clusters.virtual_image(scan, **QUIET)
    assert 0 < whole.mean() < scan.data.sum(axis=(2, 3)).mean()
    with pytest.raises(ValueError, match="label and detector exclude each other"):
        clusters.virtual_image(scan, 0, detector=detector)
    with pytest.raises(ValueError, match="label 7 does not exist"):
        clusters.virtual_image(scan, 7)
    with pytest.raises(ValueError, match="detector"):
        clusters.virtual_image(scan, detector=detector[1:])
    with pytest.raises(ValueError, match="clusters"):
        clusters.virtual_image(DataCube(scan.data[1:]), 0)
    with pytest.raises(ValueError, match="not a scan"):
        clusters.virtual_image(np.zeros((3, 4)), 0)


# --- notebooks ---------------------------------------------------------------------------------


def test_what_a_notebook_shows(scan, clusters, averages):
    results = {
        "Clusters": clusters,
        "Similarity": scan.get_similarity(**QUIET),
        "ClusterTree": scan.get_cluster_tree(**QUIET),
        "Mixture": clusters.get_mixture(scan, **QUIET),
        "Grain 0": clusters[0],
        "Grain 1": averages.clusters[1],
    }
    for name, result in results.items():
        page = Elements(result._repr_html_())
        assert name in page.text
        (picture,) = page.pictures()
        assert max(picture.size) <= 500
        assert len(result._repr_html_()) < 60_000
    widths = [
        next(Elements(results[name]._repr_html_()).pictures()).size[0]
        for name in ("Grain 0", "Grain 1")
    ]
    assert widths[1] > 1.5 * widths[0]  # the average stands beside the map


def test_the_small_picture_of_clusters_has_their_colours(clusters):
    from py4dstem_clustering.plotting.style import cluster_colors

    (picture,) = Elements(clusters._repr_html_()).pictures()
    pixels = np.asarray(picture.convert("RGB")) / 255
    factor = pixels.shape[0] // clusters.shape[0]
    assert pixels.shape[:2] == tuple(factor * n for n in clusters.shape)
    colors = cluster_colors(clusters.labels, clusters.n_clusters)
    for grain in clusters:
        np.testing.assert_allclose(
            pixels[::factor, ::factor][grain.mask],
            np.broadcast_to(colors[grain.label], (grain.size, 3)),
            atol=1 / 255,
        )


def test_a_large_scan_has_a_small_picture():
    labels = np.zeros((1200, 500), np.int32)
    large = Clusters(labels, np.zeros((1, 2)), np.zeros(labels.shape))
    (picture,) = Elements(large._repr_html_()).pictures()
    assert 100 < max(picture.size) <= 300


def test_names_are_escaped(clusters):
    renamed = dataclasses.replace(clusters, name="a<b>&c")
    page = renamed._repr_html_()
    assert "a&lt;b&gt;&amp;c" in page
    assert "<b>&c" not in page
