"""Find the grains in a 4D-STEM scan and average their diffraction patterns, inside py4DSTEM.

``import py4dstem_clustering`` adds these methods to `py4DSTEM.DataCube`:

``filter_correlative``      average each pattern with the neighbours that look like it
``filter_lowrank``          rebuild each pattern from the few that all are mixtures of
``get_similarity``          how alike each pattern is to its eight neighbours
``cluster``                 the grains: regions of alike patterns, as `Clusters`
``find_overlaps``           grains that lie on top of each other, each with a map of its own
``get_cluster_tree``        the order in which positions join, to be cut at any level
``explore_clusters``        a window to cut the tree by sliders and see patterns
``get_clustered_datacube``  the mean pattern of each cluster, as a DataCube
``cross_validate_orientation``  how well orientations of two halves of the scan agree
``clusters``                the newest clustering in the tree; ``get_clusters(name)`` for another

and ``cluster_series`` clusters the scans of an in-situ experiment one after the other, and follows
their grains (5D-STEM). Each method is also a function, ``py4dstem_clustering.cluster(datacube)``,
in case another package has taken its name on DataCube.
"""

from . import metrics
from ._version import __version__
from .datacube import register
from .diffraction.cross_validation import CrossValidation
from .diffraction.disk_options import DiskOptions
from .diffraction.disk_places import refine_disks
from .diffraction.disks import GainedDisks
from .diffraction.misorientation import get_symmetry, misorientation
from .diffraction.orientation import orientation_from_node, orientation_to_node
from .diffraction.phases import PhaseMap
from .diffraction.refining import refine_orientations
from .diffraction.scores import OrientationScores, orientation_scores
from .diffraction.texture import plot_orientations
from .explore.start import explore_clusters
from .explore.window import ClusterExplorer
from .exporting.orix_maps import to_orix
from .exporting.results import export
from .grains.averages import get_clustered_datacube, get_clusters
from .grains.clustering import cluster, get_cluster_tree
from .grains.clusters import Clusters
from .grains.edits import cluster_names, edit_clusters
from .grains.grain import Grain
from .grains.overlaps import OverlappingGrains, find_overlaps
from .grains.table import ClusterTable
from .grains.tree import ClusterTree
from .grains.validation import cross_validate_orientation
from .kernels.similarity import DIRECTIONS
from .patterns.filtering import filter_correlative
from .patterns.lowrank import filter_lowrank
from .patterns.mixture import Mixture
from .patterns.similarity import Similarity, get_similarity
from .plotting.areas import plot_areas
from .plotting.film import animate_series
from .plotting.maps import plot_clusters, plot_growth, plot_residual, plot_similarity
from .plotting.orientation import plot_orientation
from .plotting.overlaps import plot_overlaps
from .plotting.patterns import plot_averages, plot_patterns
from .plotting.results import plot_cross_validation, plot_disks, plot_phases
from .plotting.sizes import plot_sizes
from .plotting.tracks import plot_tracks
from .plotting.trees import plot_tree
from .scan.array import ScanArray
from .scan.hyperspy import from_hyperspy, to_hyperspy
from .scan.opening import open_scan
from .scan.watching import watch_folder
from .series.linking import link_frames
from .series.motion import find_drift, rotation_rate
from .series.result import ClusterSeries, open_series
from .series.run import cluster_series
from .series.tracks import Track, Tracks
from .simulate.samples import SAMPLE_KINDS, SimulatedSample, simulate_sample
from .simulate.scan import SimulatedScan, simulate_scan
from .simulate.series import SimulatedSeries, simulate_series

__all__ = [
    "DIRECTIONS",
    "SAMPLE_KINDS",
    "ClusterExplorer",
    "ClusterSeries",
    "ClusterTable",
    "ClusterTree",
    "Clusters",
    "CrossValidation",
    "DiskOptions",
    "GainedDisks",
    "Grain",
    "Mixture",
    "OrientationScores",
    "OverlappingGrains",
    "PhaseMap",
    "ScanArray",
    "Similarity",
    "SimulatedSample",
    "SimulatedScan",
    "SimulatedSeries",
    "Track",
    "Tracks",
    "__version__",
    "animate_series",
    "cluster",
    "cluster_names",
    "cluster_series",
    "cross_validate_orientation",
    "edit_clusters",
    "explore_clusters",
    "export",
    "filter_correlative",
    "filter_lowrank",
    "find_drift",
    "find_overlaps",
    "from_hyperspy",
    "get_cluster_tree",
    "get_clustered_datacube",
    "get_clusters",
    "get_similarity",
    "get_symmetry",
    "link_frames",
    "metrics",
    "misorientation",
    "open_scan",
    "open_series",
    "orientation_from_node",
    "orientation_scores",
    "orientation_to_node",
    "plot_areas",
    "plot_averages",
    "plot_clusters",
    "plot_cross_validation",
    "plot_disks",
    "plot_growth",
    "plot_orientation",
    "plot_orientations",
    "plot_overlaps",
    "plot_patterns",
    "plot_phases",
    "plot_residual",
    "plot_similarity",
    "plot_sizes",
    "plot_tracks",
    "plot_tree",
    "refine_disks",
    "refine_orientations",
    "register",
    "rotation_rate",
    "simulate_sample",
    "simulate_scan",
    "simulate_series",
    "to_hyperspy",
    "to_orix",
    "watch_folder",
]

register()
