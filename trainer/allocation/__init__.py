"""How GPUs are shared between generating and training in reinforcement learning: a policy, and a simulation of it."""
