"""What the documentation shows runs."""

from __future__ import annotations

import doctest
import importlib

import pytest
from test_layers import MODULES

from py4dstem_clustering import simulate_scan


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("__")])
def test_examples_in_docstrings(module):
    module = importlib.import_module(f"py4dstem_clustering.{module}".removesuffix(".__init__"))
    scan = simulate_scan((8, 10), (32, 30), n_grains=1, electrons=20_000, speckle=0, seed=1)
    failed, _ = doctest.testmod(module, extraglobs={"datacube": scan.datacube})
    assert failed == 0
