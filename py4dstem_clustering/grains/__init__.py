"""Tree, labels, clusters and their averages."""
