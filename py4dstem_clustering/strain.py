"""Strain, under the path that it had before version 0.2."""

from .diffraction import strain as _strain
from .diffraction.strain import *  # noqa: F403

__doc__ = _strain.__doc__
