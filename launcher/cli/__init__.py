"""The verbs, one file each, and how they print. Only launcher/main.py may use it."""
