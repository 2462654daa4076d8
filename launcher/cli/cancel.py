"""`cancel`: stops a run of this machine and gives back what it holds."""

import contextlib
import os
import signal
import time

from finecut.launcher import driver, runs
from finecut.launcher.cli.output import Output
from finecut.launcher.cli.request import Request, job_from_config_or_run
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder

_SECONDS_TO_END = 60.0


def main(request: Request, output: Output) -> int:
    """Interrupts the run's launcher, kills it if it does not end, and releases what either has left."""
    job = job_from_config_or_run(request)
    folder = RunFolder.of(job)
    if not folder.config.is_file():
        raise UserError(f"{folder.root} holds no run to cancel")
    pid = runs.launcher_pid(folder)
    if pid is not None and not _ended(folder, pid, signal.SIGINT):
        _ended(folder, pid, signal.SIGKILL)
    driver.REAL.provider(job, folder).release()
    what = f"stopped process {pid}" if pid is not None else "no launcher was at work on it"
    output.result(
        {"run": folder.root.name, "launcher_pid": pid},
        lambda console: console.print(f"{folder.root.name}: {what}; its checkpoints stay", markup=False),
    )
    return 0


def _ended(folder: RunFolder, pid: int, number: signal.Signals) -> bool:
    """Sends a signal, and says whether the launcher was gone in time."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    deadline = time.monotonic() + _SECONDS_TO_END
    while runs.launcher_pid(folder) == pid:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
