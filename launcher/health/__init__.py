"""Whether nodes may work: notices, GPU errors, counts, the network between them. The launcher and its agents use it."""
