"""The experiment: many runs on Ray, resumable."""
