"""A run as a durable workflow: one DBOS step a stage, recorded in SQLite inside the run folder.

    start or resume -> go back to the first unfinished step -> queue -> stage by stage -> done
                            ^                                                |
                            +---------- launcher killed, stage failed -------+

What survives a kill at any point: finished steps are recorded and are not run again; the stage that was at work is
started again and continues from what it left (checkpoints), because executors are idempotent by their manifest.
Nothing here depends on the code's version: a workflow is its list of stage names, so a run can continue after an update
(where the job accepts other code, see runs.py).

Stages run one after the other, although independent ones could run side by side: on one machine they would compete
for the same cores, memory and GPUs, and the sum would not end earlier.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dbos import DBOS, DBOSClient, DBOSConfig, SetWorkflowID

# Changes only when the meaning of recorded steps does. DBOS then leaves older workflows alone, and the new id below
# starts the run's stages anew; those with a valid artifact return at once.
WORKFLOW_VERSION = "stages-1"
_APPLICATION = "finecut"
_POLL_SECONDS = 0.2


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
      stages: In the order they run.
      execute: Runs one stage; returns when its artifact is there, raises StageError otherwise.
      is_finished: Whether a stage's artifact is there and valid.
    """

    database: Path
    run_id: str
    stages: Sequence[str]
    execute: Callable[[str], None]
    is_finished: Callable[[str], bool]

    @property
    def id(self) -> str:
        return f"{self.run_id}-{WORKFLOW_VERSION}"

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
      StageError: A stage failed; the next run starts with it.
    """
    workflow.database.parent.mkdir(parents=True, exist_ok=True)
    _log_to_file(workflow.database.parent / "logs" / "workflow.log")
    exists = _go_back_to_first_unfinished(workflow)
    DBOS(config=_config(workflow))

    @DBOS.workflow(name="run_stages", max_recovery_attempts=None)  # a run may be killed as often as it likes
    def run_stages(stages: list[str]) -> None:
        for stage in stages:
            DBOS.run_step({"name": stage}, workflow.execute, stage)

    try:
        DBOS.launch()
        if not exists:
            with SetWorkflowID(workflow.id):
                DBOS.start_workflow(run_stages, list(workflow.stages))
        _wait(workflow.id, watch)
    finally:
        DBOS.destroy(destroy_registry=True)


def _go_back_to_first_unfinished(workflow: Workflow) -> bool:
    """Queues a workflow that an earlier launcher has recorded; False where there is none.

    It happens before DBOS starts its threads, so that the workflow cannot be picked up in between.
    """
    DBOS.migrate(workflow.url)
    client = DBOSClient(system_database_url=workflow.url, application_name=_APPLICATION)
    try:
        found = client.list_workflows(workflow_ids=[workflow.id])
        if not found:
            return False
        if found[0].status in ("PENDING", "ENQUEUED", "DELAYED"):  # its launcher was killed; ours holds the lock now
            client.cancel_workflow(workflow.id)
        client.rewind_workflow(
            workflow.id, start_step=_first_unfinished(client, workflow), application_version=WORKFLOW_VERSION
        )
        return True
    finally:
        client.destroy()


def _first_unfinished(client: DBOSClient, workflow: Workflow) -> int:
    """Number of the first step, from 1, that is not recorded as done or whose artifact is gone."""
    recorded = {step["function_id"]: step for step in client.list_workflow_steps(workflow.id)}
    for number, stage in enumerate(workflow.stages, start=1):
        step = recorded.get(number)
        if step is None or step["error"] is not None or not workflow.is_finished(stage):
            return number
    return len(workflow.stages) + 1


def _wait(workflow_id: str, watch: Callable[[threading.Event], None]) -> None:
    """Waits for the workflow in a thread of its own while `watch` has this one."""
    done = threading.Event()
    errors: list[BaseException] = []

    def get_result() -> None:
        try:
            DBOS.retrieve_workflow(workflow_id).get_result(polling_interval_sec=_POLL_SECONDS)
        except BaseException as error:  # handed to the waiting thread below
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=get_result, daemon=True, name="workflow-result").start()
    watch(done)
    if errors:
        raise errors[0]


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
