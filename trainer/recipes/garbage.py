"""Keeps Python's garbage collector from stopping a training step."""

import gc


def settle() -> None:
    """Called once everything is loaded and compiled: collects, and never looks at what is left again.

    Compilation leaves half a million objects and more; a full collection goes through them for 0.3 s and longer, and
    the GPU, which the host is seldom that far ahead of, waits.
    """
    gc.collect()
    gc.freeze()
