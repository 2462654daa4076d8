"""vLLM outside of reinforcement learning: answers for evaluation and export, servers for deployment. For the trainer's stages."""
