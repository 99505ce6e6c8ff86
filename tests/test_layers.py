"""Imports from folder to folder run downwards only; inside a folder they make no circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import py4dstem_clustering

PACKAGE = Path(py4dstem_clustering.__file__).parent

# From top to bottom: a folder, or a file outside of any, may import what stands below it.
LAYERS = [
    "__main__",
    "cli",
    "benchmarks",
    "__init__",
    "exporting",
    "datacube",
    "series",
    "explore",
    "grains",
    "strain",
    "diffraction",
    "metrics",
    "simulate",
    "patterns",
    "plotting",
    "scan",
    "emd",
    "base",
    "kernels",
    "_version",
]
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")
)


def imports(module):
    """What a module imports: our modules by their name in the package, others by their top name."""
    tree = ast.parse(PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text())
    ours, others = set(), set()
    folder = module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            others.add(node.module.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1]
            path = base + (node.module.split(".") if node.module else [])
            for name in [".".join([*path, alias.name]) for alias in node.names]:
                inside = [name, ".".join(path), f"{name}.__init__", ".".join([*path, "__init__"])]
                ours |= {next(found for found in inside if found in MODULES)}
    return ours, others


def layer(module):
    return module.partition(".")[0]


def test_every_folder_has_its_place():
    assert sorted(LAYERS) == sorted({layer(module) for module in MODULES})


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module):
    below = LAYERS[LAYERS.index(layer(module)) + 1 :]
    upwards = {m for m in imports(module)[0] if layer(m) not in [layer(module), *below]}
    assert not upwards, f"{module} imports upwards"


def test_no_circle():
    TopologicalSorter({module: imports(module)[0] for module in MODULES}).prepare()


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m) == "kernels"])
def test_kernels_know_nothing_of_their_host(module):
    _, others = imports(module)
    assert others - sys.stdlib_module_names <= {"numpy", "scipy", "skimage", "threadpoolctl"}


def test_the_public_names_exist():
    for name in py4dstem_clustering.__all__:
        assert hasattr(py4dstem_clustering, name)


def test_metrics_are_there_after_the_import():
    code = "import py4dstem_clustering as c; print(c.metrics.panoptic_quality.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "panoptic_quality"
