"""Benchmarks of quality and speed; they make the tables of the guide."""
