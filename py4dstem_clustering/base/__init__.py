"""Used by every other folder: checks of arguments, frozen results, the progress bar."""
