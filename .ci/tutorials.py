"""Run the notebooks in tutorials/ from start to end, each in a fresh kernel and an empty folder.

    python .ci/tutorials.py                        run all, and fail on any error
    python .ci/tutorials.py --keep NOTEBOOK ...    and keep the outputs in the notebooks

Every cell is run, as "Run all" does, also those for the reader's own data, whose files are not
there. A cell that prints a traceback or a warning is an error too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "tutorials"
LIMIT_S, LIMIT_BYTES = 180, 1_500_000


def run(path: Path, keep: bool) -> str:
    """Run one notebook; return what is wrong with it, or an empty text."""
    notebook = nbformat.read(path, as_version=4)
    kept = any(cell.get("outputs") for cell in notebook.cells)
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
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times that change with every run
        notebook.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
        nbformat.write(notebook, path)
    size = path.stat().st_size
    print(f"{path.name}: {seconds:.0f} s, {size / 1e6:.2f} MB", flush=True)
    if text := printed_errors(notebook):
        return f"{path.name} prints an error or a warning: {text}"
    if seconds > LIMIT_S:
        return f"{path.name} took more than {LIMIT_S} s"
    if size > LIMIT_BYTES:
        return f"{path.name} is larger than {LIMIT_BYTES} bytes"
    if not (keep or kept):
        return f"{path.name} is kept without its outputs; run with --keep"
    return ""


def printed_errors(notebook: Any) -> str:
    """The first line that a cell wrote to the error stream."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr" and output.text.strip():
                return output.text.strip().splitlines()[0]
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
