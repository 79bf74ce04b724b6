"""What is measured with pixel_ddpg, and the pictures and tables of it."""

import os

import pixel_ddpg  # noqa: F401  (first: from here on Ctrl-C prints one line)

os.environ["MPLBACKEND"] = "agg"  # not a notebook's own, which its programs inherit but may lack
