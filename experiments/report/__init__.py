"""Folders of runs, read back: numbers, tables, figures, one HTML page."""
