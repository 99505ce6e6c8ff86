"""EMD files: nodes, settings, complete writing, and files that may not be trusted."""
