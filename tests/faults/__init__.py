"""Faults to order: crashes at each write, torn files, slow and failing storage, killed and frozen processes, clocks
that jump; and the tests that nothing is lost by them. For tests anywhere above `trainer`.
"""
