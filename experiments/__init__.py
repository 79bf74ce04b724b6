"""What is measured with pixel_ddpg, and the pictures and tables of it."""

import pixel_ddpg  # noqa: F401  (first: from here on Ctrl-C prints one line)
