"""The mathematics of reinforcement learning and what its recipes run on. For recipes; knows no rollout engine."""
