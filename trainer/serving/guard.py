"""Runs a program in this process group, of which nothing outlives the program, nor whoever started this process.

    python -m finecut.trainer.serving.guard PROGRAM ARGUMENT...

    starter -- standard input, a pipe --> watcher, which kills the group where either pipe closes
    this process, the program's parent -- a pipe --^

vLLM's own processes would stay otherwise, and keep their GPU, where the server in front of them is killed. The watcher
is a process of its own, because Ray kills the children of a worker that ends, and not theirs.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Returns the program's status; that of a shell where a signal ended it."""
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # the whole group is told, and the program decides
    closed, kept = os.pipe()
    if os.fork() == 0:
        os.close(kept)
        select.select([0, closed], [], [])  # nothing is ever written
        os.killpg(0, signal.SIGKILL)
    status = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent).wait()
    return status if status >= 0 else 128 - status


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
