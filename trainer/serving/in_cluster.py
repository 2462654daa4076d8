"""Serving on the nodes of the job's cluster: what they have, and how long the stage is at work there.

The endpoint's process is on the launcher's machine, replicas are on nodes. While the stage is at work its nodes are
needed, so they are kept and replaced; when it ends, however it ends, nothing of it is left in the cluster.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from finecut.proto import job_pb2
from finecut.proto.run import RunFolder, files, node_roles
from finecut.trainer.serving import endpoints, fit, process
from finecut.trainer.serving.control import CONNECTION_LOST, Control
from finecut.trainer.serving.process import Cluster

_POLL_S = 1.0


class EndpointError(RuntimeError):
    """The endpoint's process is gone although nobody told it to end."""


def of_this_process() -> Cluster:
    """The Ray that this process is connected to."""
    import ray

    return Cluster(ray.get_runtime_context().gcs_address, ray.util.get_node_ip_address())


def has_gpus() -> bool:
    """Whether the nodes that serve have GPUs."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return node_roles.of_role(node_roles.SERVE, ray.cluster_resources(), nodes).get("GPU", 0) > 0


def require_fit(model: Path, number_type: str, num_gpus: int, on_gpu: bool) -> None:
    """`fit.require` for one replica on one of the nodes that serve, whose memory is not known here."""
    import ray
    from ray.exceptions import RayTaskError

    role = node_roles.asked(node_roles.SERVE, ray.cluster_resources())
    # A sliver of a core keeps it off the head of a cluster, which has none.
    check = ray.remote(num_cpus=0.001, resources=role)(fit.require)
    try:
        ray.get(check.remote(model, number_type, num_gpus, 1, on_gpu))
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, BaseException) else error from error


class ServingTime:
    """What is left of a stage's serve_for; the part that is used up is kept, so that a run that resumes goes on."""

    def __init__(self, job: job_pb2.JobConfig, stage: str) -> None:
        self._path = RunFolder.of(job).stage(stage) / "served_seconds"
        work = next(found for found in job.stages if found.name == stage).deploy
        self._allowed_s = work.serve_for.ToTimedelta().total_seconds()
        self._before_s = float(self._path.read_text()) if self._path.exists() else 0.0
        self._began = time.monotonic()

    def note(self) -> float:
        """Notes what has passed; the seconds that are left."""
        served_s = self._before_s + time.monotonic() - self._began
        files.write_atomically(self._path, f"{served_s:.1f}")
        return self._allowed_s - served_s


@dataclasses.dataclass(frozen=True)
class Served:
    """A version that answers. Example: Served("chat", "deploy-1a2b3c4d5e", "http://127.0.0.1:8000/v1", 4711, ...).

    Attributes:
      process_id: Of the endpoint.
      folder: Of its status and logs.
    """

    endpoint: str
    version: str
    url: str
    process_id: int
    folder: Path


def serve(control: Control, served: Served, left: ServingTime) -> str:
    """Returns why the stage is done: its time has passed, another version answers, or the process was told to end.

    Raises EndpointError.
    """
    try:
        while process.is_running(served.process_id):
            if done := _is_done(control, served, left):
                return done
            time.sleep(_POLL_S)
        if endpoints.has_ended_by_itself(served.folder):
            return f"{served.endpoint} was told to end"
        raise EndpointError(f"the endpoint's process is gone; its log is {served.folder / 'endpoint.log'}")
    except BaseException:
        clear(control, served)
        raise


def _is_done(control: Control, served: Served, left: ServingTime) -> str | None:
    try:
        status = control.status()
    except (*CONNECTION_LOST, ValueError):  # it is ending, or busy
        return None
    if status["state"] in endpoints.CHANGING:  # another stage's version, whose fate decides
        return None
    if status["stable"] != served.version:
        return f"{status['stable']} has taken over from {served.version}"
    if left.note() > 0:
        return None
    process.end(served.process_id)
    return f"{served.version} has served for its time"


def clear(control: Control, served: Served) -> None:
    """After a stage that failed: ends an endpoint that no version is left of, and what one that was killed has left."""
    if process.is_running(served.process_id):
        if control.status()["stable"] is None:
            process.end(served.process_id)
        return
    from finecut.trainer.serving import serve_replicas

    serve_replicas.end_left(served.endpoint)
