"""What the user is told while methods run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import warnings

import pytest

from py4dstem_clustering.base import progress as module

REMEDY = "the OpenBLAS of NumPy is old: set OPENBLAS_CORETYPE"


def test_a_slow_blas_is_reported_once_where_the_user_called(monkeypatch):
    monkeypatch.setattr(module, "remedy_for_slow_blas", lambda: REMEDY)
    module._warn_of_slow_blas.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(2):
                with module.progress(1, "Comparing", False):
                    pass
    finally:
        module._warn_of_slow_blas.cache_clear()
    (warning,) = said
    assert str(warning.message) == REMEDY
    assert warning.filename == __file__
    assert warning.category is UserWarning


# A processor that NumPy's OpenBLAS does not know: NumPy loads with the fallback, scipy without.
_SCRIPT = """
import os, sys, warnings
os.environ["OPENBLAS_CORETYPE"] = "Prescott"
import numpy
del os.environ["OPENBLAS_CORETYPE"]
import scipy.linalg
from threadpoolctl import threadpool_info
cores = [p.get("architecture") for p in threadpool_info() if "numpy" in p["filepath"]]
if cores != ["Prescott"]:
    print("skip"); sys.exit()
import py4DSTEM
import py4dstem_clustering
scan = py4DSTEM.DataCube(numpy.arange(4 * 3 * 5 * 6, dtype="u2").reshape(4, 3, 5, 6))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(2):
        scan.get_similarity(progress_bar=False)
print(*[f"{w.filename}: {w.message}" for w in said], sep="\\n")
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="core types of Intel")
def test_in_a_process_whose_numpy_does_not_know_the_processor():
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SCRIPT],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    if done.stdout.strip() == "skip":
        pytest.skip("NumPy has no OpenBLAS with core types")
    (line,) = done.stdout.strip().splitlines()
    assert line.startswith("<string>: the OpenBLAS of NumPy")
    assert "OPENBLAS_CORETYPE=" in line
