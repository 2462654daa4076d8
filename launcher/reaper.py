"""A process that outlives the launcher by a moment and ends what Ray leaves when its driver is killed.

The launcher holds the other end of its standard input, which closes when the launcher ends, however it ends. Ray's
daemons then end with the kernel's help, and workers after them, but Ray's agents may stay.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_SECONDS_TO_END = 10.0


def start(token: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Starts the reaper for processes that are started with the token file `token`.

    Closing its standard input releases it. It has a session of its own, so that Ctrl-C does not reach it.
    """
    command = [sys.executable, "-m", "finecut.launcher.reaper", str(token)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)


def end_processes(token: Path) -> None:
    """Ends every process of ours that was started with this token, and waits until they are gone."""
    deadline = time.monotonic() + _SECONDS_TO_END
    while (processes := processes_with(token)) and time.monotonic() < deadline:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


def processes_with(token: Path) -> list[int]:
    mark = f"RAY_AUTH_TOKEN_PATH={token}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0") and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:  # another user's process, or one that has just ended
            continue
    return found


def main() -> None:
    """Waits for the launcher's end."""
    sys.stdin.buffer.read()
    end_processes(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
