"""One file a model family: what its config.json means, and what its tensors are called. Used by `trainer/models` only."""
