"""Benchmarks against other tools, each with a lock and an environment of its own that nothing else fetches."""
