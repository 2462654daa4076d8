"""Runs a program in this process group, of which nothing outlives the program, nor whoever started this process.

    python -m finecut.trainer.serving.guard PROGRAM ARGUMENT...

Standard input is a pipe whose other end the starter keeps: it closes when the starter ends, however it ends. vLLM's own
processes would stay otherwise, and keep their GPU, where the server in front of them is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Returns the program's status; that of a shell where a signal ended it."""
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # the whole group is told, and the program decides
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent)
    threading.Thread(target=_end_with_starter, daemon=True).start()
    status = program.wait()
    _end_others()
    return status if status >= 0 else 128 - status


def _end_with_starter() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def _end_others() -> None:
    """What the program has left of its group."""
    group = os.getpgid(0)
    for path in Path("/proc").glob("[0-9]*"):
        process = int(path.name)
        with contextlib.suppress(ProcessLookupError):
            if process != os.getpid() and os.getpgid(process) == group:
                os.kill(process, signal.SIGKILL)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
