"""The planner with full access to the dynamics, and the measured returns that a score is made of."""
