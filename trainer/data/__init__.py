"""From packed shards to the micro-batches of one rank, in an order independent of the rank count. For the recipes."""
