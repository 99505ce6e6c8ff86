"""The command line: ``python -m py4dstem_clustering demo|cluster|series|benchmark``."""

from .main import main

__all__ = ["main"]
