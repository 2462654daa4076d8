"""Training recipes: one file each, read top to bottom. Called by `trainer.stage` only."""
