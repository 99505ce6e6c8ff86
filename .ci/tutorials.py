"""Run the notebooks in tutorials/ from start to end, each in a fresh kernel and an empty folder.

    python .ci/tutorials.py                        run all, and fail on any error
    python .ci/tutorials.py --keep NOTEBOOK ...    and keep the outputs in the notebooks

Cells with the tag "your-data" are for the reader's own files: they are not run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from copy import deepcopy
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "tutorials"
LIMIT_S, LIMIT_BYTES = 180, 1_500_000


def run(path: Path, keep: bool) -> str:
    """Run one notebook; return what is wrong with it, or an empty text."""
    notebook = nbformat.read(path, as_version=4)
    whole = deepcopy(notebook)
    notebook.cells = [c for c in notebook.cells if "your-data" not in c.metadata.get("tags", [])]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=LIMIT_S,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    seconds = time.perf_counter() - start
    if keep:
        done = {cell.id: cell for cell in notebook.cells}
        whole.cells = [done.get(cell.id, cell) for cell in whole.cells]
        for cell in whole.cells:
            cell.metadata.pop("execution", None)  # times that change with every run
        whole.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
        nbformat.write(whole, path)
    size = path.stat().st_size
    print(f"{path.name}: {seconds:.0f} s, {size / 1e6:.2f} MB", flush=True)
    if seconds > LIMIT_S:
        return f"{path.name} took more than {LIMIT_S} s"
    if size > LIMIT_BYTES:
        return f"{path.name} is larger than {LIMIT_BYTES} bytes"
    if not any(cell.get("outputs") for cell in whole.cells):
        return f"{path.name} is kept without its outputs; run with --keep"
    return ""


def main() -> int:
    """Run the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--keep", action="store_true", help="keep the outputs in the notebooks")
    options = parser.parse_args()
    paths = options.notebooks or sorted(FOLDER.glob("*.ipynb"))
    faults = [fault for path in paths if (fault := run(path, options.keep))]
    print("\n".join(faults) or f"{len(paths)} notebooks run")
    return 1 if faults or not paths else 0


if __name__ == "__main__":
    raise SystemExit(main())
