"""The container image of nodes: its Dockerfile, and what holds that to the locks."""
