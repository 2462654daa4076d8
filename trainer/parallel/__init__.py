"""Process group, device mesh, and the one function that shards a model. For the recipes."""
