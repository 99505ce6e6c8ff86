"""EMD files: nodes, settings, complete writing, and checks of files that may be hostile."""
