"""Evaluation: what a model is worth, with intervals, and the gates that stop a workflow. For the trainer's stages."""
