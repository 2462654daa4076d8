"""An example: a reader, a loss, a schedule, a recipe and a reward from a folder that Finecut knows nothing of."""
