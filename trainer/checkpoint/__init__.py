"""Train state on disk: sharded, checksummed, manifest last, resumed exactly. For the recipes."""
