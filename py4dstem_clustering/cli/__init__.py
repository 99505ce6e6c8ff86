"""The command line, ``py4dstem-clustering`` or ``python -m py4dstem_clustering``."""

from .main import main

__all__ = ["main"]
