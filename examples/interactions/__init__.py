"""Example: a log of viewing events becomes conversations, and a model learns to say what a member watches next."""
