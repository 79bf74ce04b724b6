"""The loop, and the folder that a run is."""
