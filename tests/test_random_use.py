"""Random use of the package for some seconds; `random_use.py` runs as long as one likes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import STRICT

SCRIPT = Path(__file__).with_name("random_use.py")


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", [0, 10**6])
def test_random_use(first_seed):
    command = [sys.executable, str(SCRIPT), "--seconds", "30", "--first-seed", str(first_seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout


def test_a_few_scans_give_no_warning():
    command = [sys.executable, *STRICT, str(SCRIPT), "--only", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
