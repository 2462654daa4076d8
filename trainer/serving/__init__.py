"""vLLM outside of reinforcement learning: answers for evaluation and export, and servers for deployment."""
