"""DDPG as the paper has it: networks, exploration, replay, and Algorithm 1."""
