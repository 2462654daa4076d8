"""Runs in the browser, on this machine alone: live pages, and TensorBoard. A program; nothing imports it."""
