"""Results as files of other programs: TIFF, CSV, GeoJSON, SVG, .hspy and .ang."""
