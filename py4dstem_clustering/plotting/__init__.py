"""Figures of a scan and of a series."""

from .areas import plot_areas
from .film import animate_series
from .maps import plot_clusters, plot_growth, plot_residual, plot_similarity
from .orientation import plot_orientation
from .patterns import plot_averages, plot_patterns
from .results import plot_cross_validation, plot_disks, plot_phases
from .sizes import plot_sizes
from .tracks import plot_tracks
from .trees import plot_tree

__all__ = [
    "animate_series",
    "plot_areas",
    "plot_averages",
    "plot_clusters",
    "plot_cross_validation",
    "plot_disks",
    "plot_growth",
    "plot_orientation",
    "plot_patterns",
    "plot_phases",
    "plot_residual",
    "plot_similarity",
    "plot_sizes",
    "plot_tracks",
    "plot_tree",
]
