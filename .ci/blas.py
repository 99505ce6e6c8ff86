"""Run the tests in tests/kernels with each core type that OpenBLAS has for a processor.

The labels of simulated scans must be the same with all of them.

    python .ci/blas.py                       all core types that this processor allows
    python .ci/blas.py slowest fastest       the first and the last of them
    python .ci/blas.py Prescott+default      one core type for NumPy, another for scipy

A core type is the code that OpenBLAS runs on one generation of processors. OpenBLAS chooses it when
it is loaded: by the processor, or by the environment variable OPENBLAS_CORETYPE. NumPy and scipy
each bring an OpenBLAS of their own. On a processor that is newer than NumPy 1.26, the one of NumPy
falls back to "Prescott" and the one of scipy does not: this is "Prescott+default".
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

# From the slowest to the fastest.
CORES = ["Prescott", "Nehalem", "Sandybridge", "Haswell", "Zen", "SkylakeX"]
MIXED = "Prescott+default"

TESTS = Path(__file__).parent.parent / "tests" / "kernels"


def load(cores: str) -> list[str]:
    """Load NumPy, then scipy, each with its core type; return the core types in use."""
    # An empty variable leaves the choice to OpenBLAS.
    default = os.environ.get("OPENBLAS_CORETYPE", "")
    for core, package in zip((cores.split("+") * 2)[:2], ("numpy", "scipy.linalg"), strict=True):
        os.environ["OPENBLAS_CORETYPE"] = default if core == "default" else core
        __import__(package)
    from threadpoolctl import threadpool_info

    pools = [pool for pool in threadpool_info() if pool["internal_api"] == "openblas"]
    # That of NumPy comes first.
    pools.sort(key=lambda pool: "numpy" not in Path(pool["filepath"]).parent.name)
    return [pool["architecture"] for pool in pools]


def probe(cores: str) -> int:
    """Return 0 if the processor allows the core types, after a product of matrices."""
    found = load(cores)
    import numpy as np

    if not found or found[0] != cores.split("+")[0]:
        return 1
    a = np.random.default_rng(0).normal(size=(67, 129)).astype(np.float32)
    exact = a.astype(np.longdouble) @ a.astype(np.longdouble).T
    print(" and ".join(found))
    return 0 if np.abs(a @ a.T - exact).max() < 1e-3 else 1


def test(cores: str) -> int:
    """Load both libraries, and run the tests in this process, the slow ones too."""
    load(cores)
    import pytest

    return int(pytest.main(["-q", "-m", "", "-p", "no:cacheprovider", str(TESTS)]))


def labels(cores: str) -> int:
    """Print a hash of the labels of simulated scans, merged and grown."""
    load(cores)
    import numpy as np

    from py4dstem_clustering import simulate_scan

    found = []
    for seed, electrons in enumerate((100, 1000, 10_000)):
        scan = simulate_scan((32, 28), (48, 44), electrons=electrons, probe_blur=0.8, seed=seed)
        for options in ({}, {"threshold": 0.5}, {"threshold": "auto", "sigma": 1.5}):
            clusters = scan.datacube.cluster(**options, progress_bar=False)
            found.append(clusters.labels.astype(np.int64).tobytes())
    print(hashlib.sha256(b"".join(found)).hexdigest()[:12])
    return 0


def in_another_process(*arguments: str) -> subprocess.CompletedProcess:
    """Run this program in a new process, since a process loads a library only once."""
    return subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)


def main() -> int:
    """Run the core types that are named, or all."""
    if sys.argv[1:2] == ["--probe"]:
        return probe(sys.argv[2])
    if sys.argv[1:2] == ["--test"]:
        return test(sys.argv[2])
    if sys.argv[1:2] == ["--labels"]:
        return labels(sys.argv[2])
    allowed = {}
    for core in [*CORES, MIXED]:
        done = in_another_process("--probe", core)
        if done.returncode == 0:
            allowed[core] = done.stdout.strip()
        else:
            print(f"- {core}: not on this processor")
    if not allowed:
        print("- the BLAS here has no core types to choose from")
        return 0
    single = [core for core in allowed if "+" not in core]
    named = {"slowest": single[0], "fastest": single[-1]}
    wanted = dict.fromkeys(named.get(name, name) for name in sys.argv[1:] or allowed)
    failed, hashes = [], set()
    for core in wanted:
        print(f"+ {core}: {allowed.get(core, 'not on this processor')}", flush=True)
        if core in allowed:
            done = in_another_process("--test", core)
            print(done.stdout if done.returncode else done.stdout.splitlines()[-1], flush=True)
            hashed = in_another_process("--labels", core)
            print(f"labels of nine clusterings: {hashed.stdout or hashed.stderr}", flush=True)
            hashes.add(hashed.stdout)
            failed += [core] * (done.returncode != 0 or hashed.returncode != 0)
    if len(hashes) > 1:
        print("labels differ between kernels of BLAS")
    return 1 if failed or len(hashes) > 1 else 0


if __name__ == "__main__":
    raise SystemExit(main())
