"""Find the grains in a 4D-STEM scan and average their diffraction patterns, inside py4DSTEM.

``import py4dstem_clustering`` adds these methods to `py4DSTEM.DataCube`:

``filter_correlative``      average each pattern with the neighbours that look like it
``filter_lowrank``          rebuild each pattern from the few that all are mixtures of
``get_similarity``          how alike each pattern is to its eight neighbours
``cluster``                 the grains: regions of alike patterns, as `Clusters`
``get_cluster_tree``        the order in which positions join, to be cut at any level
``explore_clusters``        a window to cut the tree by sliders and see patterns
``get_clustered_datacube``  the mean pattern of each cluster, as a DataCube
``cross_validate_orientation``  how well orientations of two halves of the scan agree
``clusters``                the newest clustering in the tree; ``get_clusters(name)`` for another

and ``cluster_series`` clusters the scans of an in-situ experiment one after the other, and follows
their grains (5D-STEM).
"""

from . import metrics
from ._version import __version__
from .datacube import register
from .diffraction.cross_validation import CrossValidation
from .diffraction.disks import GainedDisks
from .diffraction.misorientation import get_symmetry, misorientation
from .diffraction.orientation import orientation_from_node, orientation_to_node
from .diffraction.refining import refine_orientations
from .explore.window import ClusterExplorer
from .grains.clusters import Clusters
from .grains.tree import ClusterTree
from .kernels.similarity import DIRECTIONS
from .patterns.mixture import Mixture
from .patterns.similarity import Similarity
from .plotting.areas import plot_areas
from .plotting.film import animate_series
from .plotting.maps import plot_clusters, plot_growth, plot_similarity
from .plotting.patterns import plot_averages, plot_patterns
from .plotting.results import plot_cross_validation, plot_disks, plot_tree
from .plotting.tracks import plot_tracks
from .scan.array import ScanArray
from .scan.dectris import open_scan
from .scan.watching import watch_folder
from .series.linking import link_frames
from .series.motion import find_drift, rotation_rate
from .series.result import ClusterSeries, open_series
from .series.run import cluster_series
from .series.tracks import Track, Tracks
from .simulate.scan import SimulatedScan, simulate_scan
from .simulate.series import SimulatedSeries, simulate_series

__all__ = [
    "DIRECTIONS",
    "ClusterExplorer",
    "ClusterSeries",
    "ClusterTree",
    "Clusters",
    "CrossValidation",
    "GainedDisks",
    "Mixture",
    "ScanArray",
    "Similarity",
    "SimulatedScan",
    "SimulatedSeries",
    "Track",
    "Tracks",
    "__version__",
    "animate_series",
    "cluster_series",
    "find_drift",
    "get_symmetry",
    "link_frames",
    "metrics",
    "misorientation",
    "open_scan",
    "open_series",
    "orientation_from_node",
    "orientation_to_node",
    "plot_areas",
    "plot_averages",
    "plot_clusters",
    "plot_cross_validation",
    "plot_disks",
    "plot_growth",
    "plot_patterns",
    "plot_similarity",
    "plot_tracks",
    "plot_tree",
    "refine_orientations",
    "register",
    "rotation_rate",
    "simulate_scan",
    "simulate_series",
    "watch_folder",
]

register()
