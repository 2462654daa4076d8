"""Numerical kernels of the trainer: attention over packed documents, norms, rotary positions, gated products, loss.

They take tensors and know nothing of jobs, models or parallelism. Used by `trainer` only.
"""
