"""Run the command line: ``python -m py4dstem_clustering demo|cluster|series|benchmark``."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
