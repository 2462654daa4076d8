"""Executors of the trainer's stages that are not recipes. Called by `trainer/stage.py` only."""
