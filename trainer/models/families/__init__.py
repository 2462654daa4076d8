"""One file a model family: what its config.json means, what its tensors are called. For `trainer/models` only."""
