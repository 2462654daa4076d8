"""Starting and ending the launcher process of a job."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

from google.protobuf import text_format

from finecut.launcher.preemption import Checkpointed
from finecut.launcher.security.authority import write_private
from finecut.launcher.service.child import EXIT_LEASE_ENDED
from finecut.proto import job_pb2

MODULE = "finecut.launcher.service.child"
_HEADER = b"# proto-file: finecut/proto/job.proto\n# proto-message: finecut.v1.JobConfig\n\n"
# Of a lease's time a child may use all but this share: what is left is for its workers to end.
_MARGIN = 0.25


class Child:
    """One launcher process.

    Args:
      folder: Private folder of the job: its config, what the process prints, its answer.
      module: What is started, as `python -m MODULE VERB JOB_FILE`.
    """

    def __init__(self, folder: Path, config: job_pb2.JobConfig, verb: str, module: str = MODULE) -> None:
        file = folder / "job.textproto"
        write_private(file, _HEADER + text_format.MessageToString(config).encode())
        self._answer = folder / "answer.json"
        command = [sys.executable, "-m", module, verb, str(file)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with _private(self._answer, os.O_TRUNC) as answer, _private(folder / "launcher.log", os.O_APPEND) as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=answer,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C in the service's terminal is for the service
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def extend(self, asked: float, seconds: float) -> None:
        """Lets it go on for a part of a lease of `seconds` that was asked for at `asked` (child.now)."""
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.write(f"{asked + seconds * (1 - _MARGIN):.3f}\n".encode())
            self._process.stdin.flush()

    def interrupt(self, number: signal.Signals) -> None:
        """SIGINT: it gives back what it holds and ends. SIGTERM: it writes a checkpoint first."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """Ends it at once, with every process of its session, and waits until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def reason(self) -> str:
        """What it said when it failed, in a sentence."""
        try:
            answer = json.loads(self._answer.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return ""
        if problems := answer.get("problems"):
            return "; ".join(": ".join(filter(None, (each["path"], each["message"]))) for each in problems)
        return str(answer.get("error") or "")


def _private(path: Path, flag: int) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o600), "wb")


def ending(code: int) -> str:
    """A launcher's exit code in words."""
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    if code == Checkpointed.exit_code:
        return "a checkpoint, because its machine went away"
    return "the end of its lease" if code == EXIT_LEASE_ENDED else f"exit code {code}"
