"""What the documentation shows runs."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import numpy as np
import py4DSTEM
import pytest
from test_layers import MODULES

import py4dstem_clustering
from py4dstem_clustering import simulate_scan
from py4dstem_clustering.__main__ import main

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("__")])
def test_examples_in_docstrings(module):
    module = importlib.import_module(f"py4dstem_clustering.{module}".removesuffix(".__init__"))
    scan = simulate_scan((8, 10), (32, 30), n_grains=1, electrons=20_000, speckle=0, seed=1)
    failed, _ = doctest.testmod(module, extraglobs={"datacube": scan.datacube})
    assert failed == 0


def test_the_code_in_the_readme_runs(tmp_path, monkeypatch):
    scan = simulate_scan((24, 20), (192, 192), n_grains=2, electrons=50_000, disk_radius=4, seed=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(py4DSTEM, "import_file", lambda *args, **options: scan.datacube)
    names = {}
    code = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)
    assert len(code) == 4
    for block in code:
        exec(compile(block, "README.md", "exec"), names)  # noqa: S102
    assert py4DSTEM.read("averages.h5").clusters.n_clusters == names["clusters"].n_clusters


def test_the_command_in_the_readme_runs(tmp_path, monkeypatch):
    scan = simulate_scan((12, 10), (192, 180), n_grains=2, electrons=50_000, seed=2)
    monkeypatch.chdir(tmp_path)
    np.save("scan.npy", scan.datacube.data)
    command = re.search(r"python -m py4dstem_clustering (cluster .*)", README.read_text("utf-8"))
    assert main([*command[1].split(), "--quiet"]) == 0


def test_the_version_is_in_the_changelog():
    changelog = README.with_name("CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{py4dstem_clustering.__version__}]" in changelog
