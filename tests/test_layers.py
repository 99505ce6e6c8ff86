"""Imports run downwards only, and only the registration layer imports py4DSTEM eagerly."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import py4dstem_clustering

PACKAGE = Path(py4dstem_clustering.__file__).parent

# From top to bottom; a module may import those below it.
LAYERS = [
    "__main__",
    "benchmark_series",
    "benchmark_orientation",
    "benchmark_memory",
    "benchmark_speed",
    "benchmark",
    "__init__",
    "series_run",
    "series",
    "datacube",
    "explore",
    "validation",
    "cluster_tree",
    "clusters",
    "describe",
    "disks",
    "strain",
    "tracks",
    "orientation",
    "mixture",
    "similarity",
    "plotting_series",
    "plotting",
    "reading",
    "arina",
    "simulate_series",
    "simulate",
    "metrics",
    "emd",
    "checks",
    "frozen",
    "_version",
    "kernels.tree",
    "kernels.mixture",
    "kernels.lag",
    "kernels.tracking",
    "kernels.merging",
    "kernels.rotations",
    "kernels.kinematic",
    "kernels.features",
    "kernels.correlative",
    "kernels.similarity",
    "kernels.noise",
    "kernels.averaging",
    "kernels.virtual",
    "kernels.blur",
    "kernels.blocks",
    "kernels.blas",
    "kernels.__init__",
]
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")
)


def imports(module, only_eager=False):
    """Names that a module imports: ours relative to the package, others by their top name."""
    tree = ast.parse(PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text())
    nodes = tree.body if only_eager else ast.walk(tree)
    ours, others = set(), set()
    folder = module.split(".")[:-1]
    for node in nodes:
        if isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            others.add(node.module.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1]
            path = base + (node.module.split(".") if node.module else [])
            if ".".join(path) in MODULES:
                ours.add(".".join(path))
            else:
                ours |= {".".join([*path, alias.name]) for alias in node.names}
    return ours, others


def test_every_module_has_its_place():
    assert sorted(LAYERS) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module):
    below = LAYERS[LAYERS.index(module) + 1 :]
    ours, _ = imports(module)
    assert ours <= set(below), f"{module} imports upwards"


@pytest.mark.parametrize("module", MODULES)
def test_py4dstem_is_imported_eagerly_by_the_registration_only(module):
    _, others = imports(module, only_eager=True)
    assert ("py4DSTEM" in others) == (module == "datacube")


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("kernels")])
def test_kernels_know_nothing_of_their_host(module):
    _, others = imports(module)
    assert others - sys.stdlib_module_names <= {"numpy", "scipy", "threadpoolctl"}


def test_the_public_names_exist():
    for name in py4dstem_clustering.__all__:
        assert hasattr(py4dstem_clustering, name)


def test_metrics_are_there_after_the_import():
    code = "import py4dstem_clustering as c; print(c.metrics.panoptic_quality.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "panoptic_quality"
