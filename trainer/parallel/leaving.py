"""How a rank's process ends."""

import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """Ends this process at once with an exit code; what is buffered for standard output and error is written.

    A rank that ends as Python does may abort after its work is done ("terminate called without an active exception"):
    gloo's threads still let go of tensors, need the interpreter for that, and find it shutting down. Everything that
    must last is on disk by then.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
