"""Checks of the repository itself, as tests: imports, style, types, protos, pre-commit."""
