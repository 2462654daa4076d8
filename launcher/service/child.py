"""A job's own launcher process, started by a service, which lives no longer than the service's lease on the job.

The service writes a line to its standard input each time it has renewed the lease: until when it may go on. When that
has passed, or the service has ended, it ends itself at once. So wherever another service takes the job over, no two
launchers work on it, also when the first service hangs or cannot reach the store.

Usage: python -m finecut.launcher.service.child run|release JOB_FILE
"""

import os
import select
import sys
import threading
import time
from pathlib import Path

from finecut.launcher import driver
from finecut.launcher.cli.output import Output
from finecut.launcher.cli.run import run_job
from finecut.launcher.interrupts import Interrupted
from finecut.proto.config import UserError, load_resolved
from finecut.proto.run import RunFolder

EXIT_LEASE_ENDED = 70
_SECONDS_TO_FIRST_LINE = 30.0  # it is written right after the start


def now() -> float:
    """Seconds on a clock that the processes of a machine share, and that runs on while it sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def keep_lease(descriptor: int) -> None:
    """Ends the process when the lease that is prolonged through a pipe runs out, or nobody holds the other end."""
    deadline, rest = now() + _SECONDS_TO_FIRST_LINE, b""
    while (left := deadline - now()) > 0:
        ready, _, _ = select.select([descriptor], [], [], min(left, 1.0))
        if not ready:
            continue
        received = os.read(descriptor, 4096)
        if not received:
            break
        *lines, rest = (rest + received).split(b"\n")
        if lines:
            deadline = float(lines[-1])
    os._exit(EXIT_LEASE_ENDED)


def main(arguments: list[str]) -> int:
    """Runs the job, or gives back what an earlier launcher of it has left; the exit code is that of `run`."""
    verb, path = arguments
    threading.Thread(target=keep_lease, args=(sys.stdin.fileno(),), daemon=True, name="lease").start()
    output = Output(as_json=True)
    try:
        job = load_resolved(Path(path))
        if verb == "release":
            driver.REAL.provider(job, RunFolder.of(job)).release()
            return 0
        return run_job(job, output, driver.REAL)
    except UserError as error:
        output.invalid(error)
        return 2
    except Interrupted as interrupt:
        sys.stdout.flush()
        os._exit(interrupt.exit_code)  # a stage's thread may wait for ever


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
