"""The window of ``datacube.explore_clusters()``."""
