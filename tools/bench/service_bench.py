"""Submissions of many programs at once to one service, with others watching; then the service is killed.

Usage: bazel run //tools/bench:service -- [--jobs=1000] [--connections=16] [--watchers=200] [--store=URL | --postgresql]

Prints a JSON object: submissions a second, their latencies in milliseconds, the processor time that each took here and
in the service, the machine's load, and how many jobs the killed service lost.
"""

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from absl import app, flags

from finecut.launcher import testing
from finecut.launcher.client import JobClient, ServiceError
from finecut.launcher.service.testing import Service
from finecut.launcher.store import testing as stores
from finecut.proto import job_pb2
from finecut.proto.config import load_submission

_JOBS = flags.DEFINE_integer("jobs", 1000, "Jobs to submit.", lower_bound=1)
_CONNECTIONS = flags.DEFINE_integer("connections", 16, "Programs that submit, each on a connection.", lower_bound=1)
_WATCHERS = flags.DEFINE_integer("watchers", 200, "Open watches of one running job.", lower_bound=0)
_STORE = flags.DEFINE_string("store", "", "URL of the store. Unset: SQLite.")
_POSTGRESQL = flags.DEFINE_bool("postgresql", False, "Start Debian's PostgreSQL, and keep the jobs there.")


def main(arguments: list[str]) -> None:
    """Measures, and prints the result."""
    if _POSTGRESQL.value and _STORE.value:
        raise app.UsageError("--store and --postgresql are both set; leave one of them out")
    with tempfile.TemporaryDirectory(prefix="finecut-bench-") as folder, store() as url:
        config = 'principals { name: "ann" max_active_jobs: 1000000 }'
        config += f' store: "{url}"' if url else ""
        # Jobs wait behind one that hangs, as behind a real one that trains.
        service = Service(Path(folder) / "s", config, ["ann"], {"FINECUT_TEST_MISBEHAVE": "hang:prepare"})
        job = load_submission(testing.write_job(Path(folder)))
        try:
            result = measure(service, job)
        finally:
            service.stop()
    json.dump(result, sys.stdout, indent=2)
    print()


@contextlib.contextmanager
def store() -> Iterator[str]:
    """The store's URL; empty for the service's default."""
    if not _POSTGRESQL.value:
        yield _STORE.value
        return
    if (programs := stores.programs()) is None:
        raise app.UsageError("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with stores.running_postgresql(programs) as url:
        yield url


def measure(service: Service, job: job_pb2.JobConfig) -> dict[str, float]:
    """Submits and watches, kills the service, and counts what is left."""
    with service.client() as client:
        watch_all(client, client.submit(job, "watched").id, _WATCHERS.value)
        load = os.getloadavg()[0]
        before, own, start = cpu_seconds(service), time.process_time(), time.perf_counter()
        latencies, ids = submit_all(service, job)
        seconds, cpu, own = time.perf_counter() - start, cpu_seconds(service) - before, time.process_time() - own
    service.kill()
    service.start()
    with service.client() as client:
        lost = ids - {found.id for found in client.jobs()}
    latencies.sort()
    return {
        "jobs": len(ids),
        "connections": _CONNECTIONS.value,
        "watchers": _WATCHERS.value,
        "submissions_per_second": round(len(latencies) / seconds, 1),
        "p50_ms": round(latencies[len(latencies) // 2] * 1e3, 1),
        "p99_ms": round(latencies[len(latencies) * 99 // 100] * 1e3, 1),
        "service_cpu_ms_per_job": round(cpu / len(latencies) * 1e3, 2),
        "callers_cpu_ms_per_job": round(own / len(latencies) * 1e3, 2),
        "load_before": round(load, 1),
        "lost": len(lost),
    }


def cpu_seconds(service: Service) -> float:
    """What the service's process has used, so that a run on a busy machine still says something."""
    fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watch_all(client: JobClient, job_id: str, count: int) -> None:
    """Watches a job `count` times in the background; returns once each watch has had an event."""
    begun = threading.Semaphore(0)

    def watch() -> None:
        with contextlib.suppress(ServiceError):  # the service is killed in the end
            for _ in client.watch(job_id):
                begun.release()

    for _ in range(count):
        threading.Thread(target=watch, daemon=True).start()
    for _ in range(count):
        begun.acquire()


def submit_all(service: Service, job: job_pb2.JobConfig) -> tuple[list[float], set[str]]:
    """Submits jobs over all connections at once; seconds of each call, and the jobs' ids."""
    count, connections = _JOBS.value, _CONNECTIONS.value

    def submit(connection: int) -> list[tuple[float, str]]:
        done = []
        with service.client() as client:
            for index in range(connection, count, connections):
                own = job_pb2.JobConfig()
                own.CopyFrom(job)
                own.name = f"job-{index}"
                start = time.perf_counter()
                made = client.submit(own, f"request-{index}")
                done.append((time.perf_counter() - start, made.id))
        return done

    with ThreadPoolExecutor(connections) as pool:
        done = [each for part in pool.map(submit, range(connections)) for each in part]
    return [seconds for seconds, _ in done], {made for _, made in done}


if __name__ == "__main__":
    app.run(main)
