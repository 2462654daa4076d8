"""Running one stage: its executor, its entry in the journal, and what a failure means to the user."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from finecut.launcher import planner, scheduling
from finecut.launcher.executors import ExecutorError, Executors
from finecut.launcher.journal import Journal
from finecut.launcher.workflow import StageError
from finecut.proto import job_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder, artifacts, given_back

_log = logging.getLogger("finecut.launcher")


class Stopping:
    """How the launcher and the stages' threads part when the launcher is to end.

    Attributes:
      asked: Set by the launcher: a stage that breaks off from now on is not failed but interrupted, and none starts.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._changed = threading.Condition()
        self._running: set[str] = set()

    @property
    def running(self) -> set[str]:
        """The stages that are at work."""
        with self._changed:
            return set(self._running)

    def wait_until_ended(self, stages: set[str], timeout_s: float) -> bool:
        """Waits until none of `stages` is at work; False where some still is after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running & stages, timeout_s)

    def started(self, stage: str) -> None:
        """A stage's thread begins; it waits for the process to end where the launcher has asked all to stop."""
        if self.asked.is_set():
            threading.Event().wait()
        with self._changed:
            self._running.add(stage)

    def ended(self, stage: str) -> None:
        """A stage's thread is no longer at work."""
        with self._changed:
            self._running.discard(stage)
            self._changed.notify_all()


def runner(
    job: job_pb2.JobConfig, executors: Executors, stopping: Stopping
) -> Callable[[str, scheduling.Share | None], None]:
    """A function that runs a stage by name, with its share, and returns when its artifact is there.

    It raises StageError: with `invalid_input` when the executor blames an input (a corrupt line, an empty data set),
    without when something broke. A stage that is interrupted (see Stopping) records nothing: its thread waits for the
    process to end.
    """
    folder = RunFolder.of(job)
    journal = Journal(folder)
    kinds = {stage.name: planner.stage_kind(stage) for stage in job.stages}

    def run_stage(stage: str, share: scheduling.Share | None) -> None:
        stopping.started(stage)
        journal.started(stage)
        given_back.clear(folder.stage(stage))
        try:
            executors[kinds[stage]](scheduling.given(job, stage, share), stage)
            artifacts.read(folder.artifact(stage))
        except Exception as error:
            stopping.ended(stage)
            if stopping.asked.is_set():
                threading.Event().wait()
            failure = _failure(stage, error)
            _log.error("stage %s failed", stage, exc_info=error)
            journal.failed(stage, failure.reason)
            raise failure from error
        journal.succeeded(stage)
        stopping.ended(stage)

    return run_stage


def log_to_file(path: Path) -> None:
    """Keeps tracebacks for whoever needs them; users are shown sentences."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for old in list(_log.handlers):
        _log.removeHandler(old)
        old.close()
    _log.addHandler(handler)
    _log.propagate = False


def _failure(stage: str, error: BaseException) -> StageError:
    if isinstance(error, UserError):
        return StageError(stage, str(error), invalid_input=True)
    if isinstance(error, ExecutorError):
        return StageError(stage, str(error), invalid_input=False)
    first_line = next(iter(str(error).strip().splitlines()), "")
    return StageError(stage, f"{type(error).__name__}: {first_line}".removesuffix(": "), invalid_input=False)
