"""Numbers of a service for Prometheus."""

from collections.abc import Callable, Iterator

import prometheus_client
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finecut.proto import service_pb2
from finecut.proto.config import UserError

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class Metrics:
    """Counts calls and launchers; the numbers of jobs and watchers are read when Prometheus asks."""

    def __init__(self) -> None:
        self._registry = prometheus_client.CollectorRegistry()
        self._calls = prometheus_client.Counter(
            "finecut_calls", "Calls by method and status.", ["method", "code"], registry=self._registry
        )
        self._seconds = prometheus_client.Histogram(
            "finecut_call_seconds", "Duration of calls.", ["method"], buckets=_SECONDS, registry=self._registry
        )
        self.launchers_started = prometheus_client.Counter(
            "finecut_launchers_started", "Launcher processes started for jobs.", registry=self._registry
        )
        self.leases_lost = prometheus_client.Counter(
            "finecut_leases_lost", "Jobs that another service took over.", registry=self._registry
        )

    def observe(self, method: str, code: str, seconds: float) -> None:
        """Counts one call. A watch's duration is how long somebody watched, which says nothing, and is left out."""
        self._calls.labels(method, code).inc()
        if method != "WatchJob":
            self._seconds.labels(method).observe(seconds)

    def watch(self, jobs_by_state: Callable[[], dict[int, int]], watcher_count: Callable[[], int]) -> None:
        """Says where the numbers of jobs and watchers come from."""
        self._registry.register(_Gauges(jobs_by_state, watcher_count))

    def serve(self, address: str) -> tuple[int, Callable[[], None]]:
        """Answers Prometheus at HOST:PORT.

        Returns:
          The port, and what ends it.

        Raises:
          UserError: The address cannot be listened on.
        """
        host, _, port = address.rpartition(":")
        try:
            server, thread = prometheus_client.start_http_server(int(port), host.strip("[]"), self._registry)
        except (OSError, OverflowError) as error:
            raise UserError(f"metrics: cannot listen on {address}: {error}") from None

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return server.server_port, stop


class _Gauges(Collector):
    def __init__(self, jobs_by_state: Callable[[], dict[int, int]], watcher_count: Callable[[], int]) -> None:
        self._jobs_by_state = jobs_by_state
        self._watcher_count = watcher_count

    def describe(self) -> list[GaugeMetricFamily]:
        return []  # so that registering does not ask the store

    def collect(self) -> Iterator[GaugeMetricFamily]:
        counts = self._jobs_by_state()
        jobs = GaugeMetricFamily("finecut_jobs", "Jobs by state.", labels=["state"])
        for name, number in service_pb2.JobState.items():
            if number:
                jobs.add_metric([name], counts.get(number, 0))
        yield jobs
        yield GaugeMetricFamily("finecut_watchers", "Open watches.", value=self._watcher_count())
