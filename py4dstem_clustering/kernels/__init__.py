"""Numerical kernels: NumPy in, NumPy out; no py4DSTEM, no files, no plots.

The kernels do not check their arguments: the public methods do so once, before any long work.
"""
