"""Checks of arguments, frozen results and the progress bar, for all other folders."""
