"""A job of a service as the terminal's view shows it: GetJob says where it stands, WatchJob what happens."""

import threading
import time

from finecut.launcher import planner
from finecut.launcher.client import JobClient, ServiceError
from finecut.launcher.report import RunReport, StageReport
from finecut.launcher.views import holdings
from finecut.launcher.views.history import StageHistory
from finecut.launcher.views.run_view import RunView, StageView
from finecut.proto import service_pb2

_STATES = {
    service_pb2.PENDING: "waiting",
    service_pb2.RUNNING: "running",
    service_pb2.SUCCEEDED: "succeeded",
    service_pb2.FAILED: "failed",
    service_pb2.CANCELLED: "cancelled",
}


class RemoteReader:
    """Follows one job until `close`; a lost connection is made again.

    Raises:
      ServiceError: There is no such job, or the service cannot be reached.
    """

    def __init__(self, client: JobClient, job_id: str) -> None:
        self._client = client
        self._id = job_id
        self._plan = planner.plan(client.get(job_id).config)
        self._histories = {name: StageHistory() for name in self._plan.order}
        self._lock = threading.Lock()
        self._failure: ServiceError | None = None
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def read(self) -> RunView:
        """The job as it is now; what has ended is shown with all its events. Raises ServiceError."""
        job = self._client.get(self._id)
        if job.state not in (service_pb2.PENDING, service_pb2.RUNNING):
            self._thread.join()
        if self._failure is not None:
            raise self._failure
        with self._lock:
            return _view(job, self._plan, self._histories)

    def _follow(self) -> None:
        try:
            for event in self._client.watch(self._id):
                with self._lock:
                    if event.stage in self._histories:
                        self._histories[event.stage].add(event)
        except ServiceError as error:
            self._failure = error


def _view(job: service_pb2.Job, plan: planner.Plan, histories: dict[str, StageHistory]) -> RunView:
    is_live = job.state in (service_pb2.PENDING, service_pb2.RUNNING)
    statuses = {stage.name: stage for stage in job.stages}
    stages = {}
    for wave in plan.waves:
        for stage in wave:
            status, history = statuses[stage.name], histories[stage.name]
            state = "pending" if status.state == service_pb2.PENDING else _STATES[status.state]
            if status.state == service_pb2.RUNNING and not is_live:
                state = "interrupted"
                history.close(history.last_event)
            places = {"artifact": status.artifact} if status.artifact else {}
            report = StageReport(stage.name, stage.kind, state, status.error, places)
            stages[stage.name] = StageView(stage, report, history, ranks=(), artifact=None)
    state = "cancelling" if is_live and job.cancel_requested else _STATES[job.state]
    report = RunReport(
        f"{job.config.name} ({job.id})", state, plan.root, None, tuple(s.report for s in stages.values())
    )
    waves = tuple(tuple(stages[stage.name] for stage in wave) for wave in plan.waves)
    return RunView(job.config, report, waves, time.time(), "", holdings.of_job(job))
