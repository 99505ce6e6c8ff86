"""What the documentation shows runs."""

from __future__ import annotations

import doctest
import importlib
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import py4DSTEM
import pytest
from test_layers import MODULES

import py4dstem_clustering
from py4dstem_clustering import simulate_scan
from py4dstem_clustering.benchmarks.orientation import disk_template
from py4dstem_clustering.cli.main import main
from py4dstem_clustering.datacube import _ATTRIBUTES

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("__")])
def test_examples_in_docstrings(module, tmp_path):
    module = importlib.import_module(f"py4dstem_clustering.{module}".removesuffix(".__init__"))
    scan = simulate_scan((8, 10), (32, 30), n_grains=1, electrons=20_000, speckle=0, seed=1)
    failed, _ = doctest.testmod(module, extraglobs={"datacube": scan.datacube, "folder": tmp_path})
    assert failed == 0


def test_the_code_in_the_readme_runs(tmp_path, monkeypatch):
    scan = simulate_scan((24, 20), (192, 192), n_grains=2, electrons=50_000, disk_radius=4, seed=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(py4DSTEM, "import_file", lambda *args, **options: scan.datacube)
    monkeypatch.setattr(py4dstem_clustering, "open_scan", lambda *args, **options: None)
    np.save("scan.npy", scan.datacube.data[:9, :9])
    names = {"paths": ["scan.npy"]}
    code = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)
    assert len(code) == 10
    for block in code:
        if "orientation_plan" in block:
            run_orientations(block)
        elif "watch_folder" in block:
            Path("today").mkdir()
            np.save("today/a_master.h5.npy", scan.datacube.data[:9, :9])
            exec(as_npy(block), names)  # noqa: S102
            assert len(names["live"]) == 1
        elif "LocalCluster" in block:
            run_with_client(block, names)
        else:
            exec(compile(block, "README.md", "exec"), names)  # noqa: S102
    assert py4DSTEM.read("averages.h5").clusters.n_clusters == names["clusters"].n_clusters


def as_npy(block):
    """For a file that can be made here, and in less time."""
    block = block.replace("*_master.h5", "*.npy").replace(", load=open_scan", "")
    return block.replace("settle=5, timeout=600", "settle=0.1, timeout=0.3, poll=0.05")


def run_with_client(block, names):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of distributed, and what it depends on
        exec(as_npy(block), names)  # noqa: S102
        assert len(py4dstem_clustering.open_series("many.h5")) == 1
        names["client"].cluster.close()
        names["client"].close()


def run_orientations(block):
    """With a scan, a crystal and a probe of its own: that is where it starts."""
    pytest.importorskip("pymatgen")
    scan = simulate_scan((14, 12), (96, 90), n_grains=2, electrons=10_000, seed=2)
    cube = scan.datacube
    names = {
        "py4DSTEM": py4DSTEM,
        "scan": cube,
        "clusters": cube.cluster(progress_bar=False),
        "crystal": scan.crystal,
        "k_max": 1.5,
        "probe": SimpleNamespace(kernel=disk_template(cube.Qshape)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of py4DSTEM, and what it depends on
        exec(compile(block, "README.md", "exec"), names)  # noqa: S102
    plt.close("all")
    assert names["strain"].data.shape == (7, 14, 12)
    assert names["whole"].n_clusters == 2
    assert {"strain", "orientation_map"} <= set(cube.treekeys)


def test_the_command_in_the_readme_runs(tmp_path, monkeypatch):
    scan = simulate_scan((12, 10), (192, 180), n_grains=2, electrons=50_000, seed=2)
    monkeypatch.chdir(tmp_path)
    np.save("scan.npy", scan.datacube.data)
    command = re.search(r"python -m py4dstem_clustering (cluster .*)", README.read_text("utf-8"))
    assert main([*command[1].split(), "--quiet"]) == 0


def test_the_readme_lists_all_that_is_public():
    table = README.read_text("utf-8").split("## All of it")[1].split("\n## ")[0]
    names = {*py4dstem_clustering.__all__, *_ATTRIBUTES} - {"__version__"}
    assert sorted(name for name in names if not re.search(rf"\b{name}\b", table)) == []


def test_the_version_is_in_the_changelog():
    changelog = README.with_name("CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{py4dstem_clustering.__version__}]" in changelog
