"""Scans on disk or in memory: files, arrays, calibration."""
