"""What is measured from the patterns of a scan: filter, similarity, features, mixtures."""
