"""Runs in the browser, on this machine alone: their live pages, and TensorBoard beside them. A program; nothing imports it."""
