"""A series of scans: clustered one after the other, and followed through time."""

from .result import ClusterSeries, open_series
from .run import cluster_series

__all__ = ["ClusterSeries", "cluster_series", "open_series"]
