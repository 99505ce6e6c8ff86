"""Numerical kernels: NumPy in, NumPy out; no py4DSTEM, no files, no plots.

Nothing here checks its arguments: the public methods do, once, before any long work.
"""
