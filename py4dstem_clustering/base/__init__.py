"""What every other folder needs: checks of arguments, frozen results, the progress bar."""
