"""The experiment: many runs on Ray, resumable."""

from pixel_ddpg.errors import require

require("suite", "ray")
