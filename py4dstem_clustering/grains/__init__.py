"""Cluster trees, clusters and their average patterns."""
