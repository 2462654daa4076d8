"""What a job holds and costs, looked up every few seconds for as long as a service runs it."""

import math
import time

from finecut.launcher.views import cost, holdings
from finecut.launcher.views.run_view import RunReader
from finecut.proto import job_pb2, service_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder

_SECONDS = 5.0


class Accounts:
    """Of one job."""

    def __init__(self, config: job_pb2.JobConfig) -> None:
        self._folder = RunFolder.of(config)
        self._has_price = config.cluster.HasField("price_usd_per_hour")
        self._reader: RunReader | None = None
        self._next = -math.inf

    def refresh(self, job: service_pb2.Job, at_once: bool = False) -> bool:
        """Writes machines, cost and endpoints into `job`; whether anything has changed. Looks only now and then."""
        if time.monotonic() < self._next and not at_once:
            return False
        self._next = time.monotonic() + _SECONDS
        before = job.SerializeToString(deterministic=True)
        found = holdings.of_run(self._folder)
        holdings.write(found, job)
        if found.nodes:
            job.cost_usd = sum(node.cost_usd for node in found.nodes)
        elif self._has_price and (usd := self._declared()) is not None:
            job.cost_usd = usd
        return job.SerializeToString(deterministic=True) != before

    def _declared(self) -> float | None:
        """What the time at work costs at the price that the job declares."""
        try:
            self._reader = self._reader or RunReader(self._folder.root)
            return cost.of(self._reader.read()).usd
        except UserError:
            return None  # nothing of the run is there yet
