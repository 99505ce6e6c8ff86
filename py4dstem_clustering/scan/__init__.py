"""What lies on disk or in memory: files, arrays, calibration."""
