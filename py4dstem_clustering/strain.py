"""Where strain was before version 0.2: `py4dstem_clustering.diffraction.strain`."""

from .diffraction.strain import *  # noqa: F403
