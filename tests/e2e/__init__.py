"""Whole jobs, run as a user runs them. Nothing imports it."""
