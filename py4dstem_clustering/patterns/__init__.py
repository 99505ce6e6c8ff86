"""Work on the patterns of a scan: filter, similarity, features, mixtures."""
