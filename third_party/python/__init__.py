"""Locked Python packages: what is asked for, what is locked, and the rule that installs it."""
