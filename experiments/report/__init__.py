"""Folders of runs, read back: numbers, tables, figures, one HTML page."""

from pixel_ddpg.errors import require

require("report", "jinja2", "matplotlib")
