"""From cluster averages to orientation and strain, by py4DSTEM."""
