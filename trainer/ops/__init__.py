"""Numerical kernels of the trainer: attention over packed documents and chunked cross entropy.

They take tensors and know nothing of jobs, models or parallelism. Used by `trainer` only.
"""
