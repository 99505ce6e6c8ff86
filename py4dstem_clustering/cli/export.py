"""The command ``export``: write results for other programs."""

from __future__ import annotations

import argparse


def run_export(options: argparse.Namespace) -> None:
    """Write clusters, averages and orientations of an EMD file into a folder."""
    from ..exporting.results import export

    files = export(options.file, options.to, overwrite=options.overwrite)
    if not options.quiet:
        print(f"wrote {', '.join(path.name for path in files)} to {options.to}")
