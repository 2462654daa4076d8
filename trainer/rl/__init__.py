"""The mathematics of reinforcement learning, and what the recipes run on it. Used by recipes; knows no rollout engine."""
