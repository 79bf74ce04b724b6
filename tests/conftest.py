"""One torch thread, so that tests neither fight over cores nor change with them; hypothesis without a stop-watch."""

import hypothesis
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("pixel_ddpg", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("pixel_ddpg")
