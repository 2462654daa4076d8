"""Data preparation: from records on disk to packed, masked, checksummed token shards.

The launcher runs the stage; the trainer reads its shards. Nothing here imports the trainer or the launcher.
"""
