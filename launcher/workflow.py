"""A run as durable workflows: one DBOS workflow a stage, recorded in SQLite inside the run folder.

    start or resume -> what is recorded as done, and still there, is done
        -> stages whose needs are done start, side by side where they fit (see scheduling.py) -> their ends are recorded
                            ^                                                          |
                            +-------- launcher killed, or a stage failed --------------+

What survives a kill at any point: a finished stage is recorded and is not run again; those at work are started again
and continue from what they left (checkpoints), because executors are idempotent by their manifest. Nothing here depends
on the code's version: a workflow is a stage's name, so a run can continue after an update (where the job accepts other
code, see runs.py).
"""

import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dbos import DBOS, DBOSClient, DBOSConfig, SetWorkflowID

from finecut.launcher.scheduling import Schedule, Share, Task

# Changes only when the meaning of recorded steps does. DBOS then leaves older workflows alone, and the new ids below
# start the run's stages anew; those with a valid artifact return at once.
WORKFLOW_VERSION = "stages-2"
_APPLICATION = "finecut"
_POLL_SECONDS = 0.2
_LOOK_SECONDS = 1.0


class StageError(Exception):
    """A stage ended without its artifact. Its arguments are kept by the workflow, so they are plain values."""

    def __init__(self, stage: str, reason: str, invalid_input: bool) -> None:
        super().__init__(stage, reason, invalid_input)
        self.stage = stage
        self.reason = reason
        self.invalid_input = invalid_input

    def __str__(self) -> str:
        return f"stage {self.stage!r} failed: {self.reason}"


@dataclass(frozen=True)
class Workflow:
    """What is to be done.

    Attributes:
      database: SQLite file; created when missing.
      run_id: Names the work. Equal for equal work, so that a second start continues the first.
      tasks: The stages, in the order in which they are tried.
      whole: What they share.
      execute: Runs one stage with the share that it was given; returns when its artifact is there, raises StageError
        otherwise. Called in a thread of each stage's own.
      is_finished: Whether a stage's artifact is there and valid.
      given_back: GPUs of its share that a stage at work does without now.
      grant: Tells a stage its share, before it starts and when it is given more.
    """

    database: Path
    run_id: str
    tasks: Sequence[Task]
    whole: Share
    execute: Callable[[str, Share | None], None]
    is_finished: Callable[[str], bool]
    given_back: Callable[[str], int] = lambda stage: 0
    grant: Callable[[Task], None] = lambda task: None

    def id(self, stage: str) -> str:
        return f"{self.run_id}-{WORKFLOW_VERSION}-{stage}"

    @property
    def url(self) -> str:
        return f"sqlite:///{self.database}"


def run(workflow: Workflow, watch: Callable[[threading.Event], None]) -> None:
    """Starts or continues a workflow and waits for its end.

    Args:
      workflow: What to do. No other process may be at work on its database.
      watch: Called in this thread; returns once the event is set. What it raises stops the waiting, and the workflow
        stays resumable.

    Raises:
      StageError: A stage failed; what ran beside it has ended too, and nothing was started after. The next run starts
        with it. Of several the first is raised.
    """
    workflow.database.parent.mkdir(parents=True, exist_ok=True)
    _log_to_file(workflow.database.parent / "logs" / "workflow.log")
    recorded = _read_record(workflow)
    DBOS(config=_config(workflow))

    shares: dict[str, Share | None] = {}

    @DBOS.workflow(name="run_stage", max_recovery_attempts=None)  # a run may be killed as often as it likes
    def run_stage(stage: str) -> None:
        DBOS.run_step({"name": stage}, workflow.execute, stage, shares[stage])

    def start(task: Task) -> None:
        stage, shares[task.name] = task.name, task.share
        if workflow.id(stage) in recorded:  # it failed, was killed, or its artifact is gone
            DBOS.rewind_workflow(workflow.id(stage), start_step=1, application_version=WORKFLOW_VERSION)
            return
        with SetWorkflowID(workflow.id(stage)):
            DBOS.start_workflow(run_stage, stage)

    try:
        DBOS.launch()
        _run_stages(workflow, _done(workflow, recorded), start, watch)
    finally:
        DBOS.destroy(destroy_registry=True)


def _read_record(workflow: Workflow) -> dict[str, str]:
    """Statuses of the stages' workflows by id, where an earlier launcher has started them.

    What it left at work is cancelled before DBOS starts its threads, so that none is picked up in between: its launcher
    was killed, and ours holds the run's lock now.
    """
    DBOS.migrate(workflow.url)
    client = DBOSClient(system_database_url=workflow.url, application_name=_APPLICATION)
    try:
        found = client.list_workflows(workflow_ids=[workflow.id(task.name) for task in workflow.tasks])
        left = [each.workflow_id for each in found if each.status in ("PENDING", "ENQUEUED", "DELAYED")]
        if left:
            client.cancel_workflows(left)
        return {each.workflow_id: each.status for each in found}
    finally:
        client.destroy()


def _done(workflow: Workflow, recorded: dict[str, str]) -> list[str]:
    """Stages that are recorded as done and whose artifact is still there."""
    names = (task.name for task in workflow.tasks)
    return [name for name in names if recorded.get(workflow.id(name)) == "SUCCESS" and workflow.is_finished(name)]


def _run_stages(
    workflow: Workflow, done: list[str], start: Callable[[Task], None], watch: Callable[[threading.Event], None]
) -> None:
    """Runs all stages from a thread of its own while `watch` has this one."""
    all_done = threading.Event()
    errors: list[BaseException] = []

    def run_all() -> None:
        try:
            _follow_schedule(workflow, Schedule(workflow.tasks, workflow.whole, done), start, errors)
        except BaseException as error:  # handed to the waiting thread below
            errors.append(error)
        finally:
            all_done.set()

    threading.Thread(target=run_all, daemon=True, name="schedule").start()
    watch(all_done)
    if errors:
        raise errors[0]


def _follow_schedule(
    workflow: Workflow, schedule: Schedule, start: Callable[[Task], None], errors: list[BaseException]
) -> None:
    """Starts what may start and waits for an end, until nothing runs; after an error nothing more is started.

    Now and then it looks at what stages at work have given back.
    """
    ends: queue.SimpleQueue[tuple[str, BaseException | None]] = queue.SimpleQueue()

    def wait(stage: str) -> None:
        try:
            DBOS.retrieve_workflow(workflow.id(stage)).get_result(polling_interval_sec=_POLL_SECONDS)
        except BaseException as error:
            ends.put((stage, error))
        else:
            ends.put((stage, None))

    while True:
        for task in () if errors else schedule.start():
            workflow.grant(task)
            start(task)
            threading.Thread(target=wait, args=[task.name], daemon=True, name=f"wait-{task.name}").start()
        for task in () if errors else schedule.grow():
            workflow.grant(task)
        if not schedule.running:
            return
        try:
            stage, error = ends.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            for stage in schedule.running:
                schedule.give_back(stage, workflow.given_back(stage))
            continue
        schedule.end(stage, succeeded=error is None)
        if error is not None:
            errors.append(error)


def _config(workflow: Workflow) -> DBOSConfig:
    return DBOSConfig(
        name=_APPLICATION,
        system_database_url=workflow.url,
        application_version=WORKFLOW_VERSION,
        # A name of its own: DBOS would otherwise recover by itself what _go_back_to_first_unfinished has queued.
        executor_id=f"launcher-{os.getpid()}",
        enable_otlp=False,
        run_migrations=False,
    )


def _log_to_file(path: Path) -> None:
    """Sends DBOS's log to a file. It adds a console handler of its own only when it finds none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("dbos")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
