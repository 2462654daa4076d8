"""The deploy stage: starts the endpoint where it is not there, has it change to the new version, and waits.

model -> (evaluation passed) -> endpoint process on this machine -> its own account of the change -> artifact
                                          \\-> replicas: beside it, or on nodes of the job's cluster (see in_cluster)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

from finecut.proto import artifact_pb2, delivery_pb2, job_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder, artifacts, fingerprint
from finecut.proto.run.events import EventLog
from finecut.trainer.models.source import locate_model
from finecut.trainer.serving import authentication, endpoints, fit, gpus, in_cluster, number_types, process
from finecut.trainer.serving.control import Control
from finecut.trainer.serving.in_cluster import Served, ServingTime
from finecut.trainer.serving.process import Cluster
from finecut.trainer.serving.rollout_plan import Canary
from finecut.trainer.serving.vllm_server import ServerSettings

_DEFAULT_SHARES = (5, 50, 100)
_POLL_S = 0.2
# Stages that run side by side change an endpoint one after the other, as they start, and only one of them starts it.
_TURN = threading.Lock()


def run_deploy(job: job_pb2.JobConfig, stage: str) -> artifact_pb2.Artifact:
    """Runs the stage in this process. With placement OWN the endpoint lives on; with CLUSTER the stage serves.

    Raises UserError where the model does not fit, the port is another program's, or the new version was rolled back:
    then the version before answers as it did. Raises in_cluster.EndpointError where an endpoint ended while it served.
    """
    run = RunFolder.of(job)
    work = next(s for s in job.stages if s.name == stage).deploy
    control = _control(work)
    with EventLog(run.events(stage), stage) as log:
        with _TURN:
            settings = _settings(job, work, run)
            version = f"{stage}-{_digest(work, settings, run)}"
            served = _deploy(control, version, settings, work, run, stage, log)
        log.message(f"version {version} of {settings.name} answers on {served.url}; kill {served.process_id} ends it")
        if work.placement == delivery_pb2.Deploy.CLUSTER:
            log.message(in_cluster.serve(control, served, ServingTime(job, stage)))
    artifact = artifact_pb2.Artifact(job=job.name, stage=stage)
    endpoint = artifact_pb2.EndpointArtifact(
        url=served.url, version=version, endpoint=settings.name, process_id=served.process_id
    )
    artifact.endpoint.CopyFrom(endpoint)
    artifact.fingerprints.config = fingerprint.of_stage(job, stage)
    artifact.fingerprints.code = fingerprint.code_version()
    run.artifact(stage).mkdir(parents=True, exist_ok=True)
    return artifacts.write(run.artifact(stage), artifact)


def _deploy(
    control: Control,
    version: str,
    settings: ServerSettings,
    work: delivery_pb2.Deploy,
    run: RunFolder,
    stage: str,
    log: EventLog,
) -> Served:
    """Returns once the version answers all requests."""
    cluster = in_cluster.of_this_process() if work.placement == delivery_pb2.Deploy.CLUSTER else Cluster()
    status = _endpoint(control, settings.name, work, run, cluster, log)
    url, folder = f"{control.address}/v1", Path(status["folder"])
    served = Served(settings.name, version, url, int(status["process_id"]), folder)
    endpoints.record(run, stage, settings.name, url, served.process_id, folder)
    if status["stable"] != version:
        try:
            _change(control, version, settings, work, log)
        except BaseException:
            if cluster.address:
                in_cluster.clear(control, served)
            raise
    return served


def _endpoint(
    control: Control, name: str, work: delivery_pb2.Deploy, run: RunFolder, cluster: Cluster, log: EventLog
) -> dict[str, Any]:
    """The status of the endpoint, which is started where it is not there."""
    status = control.find(name)
    if status is None:
        process.start(control, name, work, endpoints.folder_of(run, name), cluster)
        log.message(f"endpoint {name} started on {control.address}")
        return control.status()
    if status["cluster"] != cluster.address:
        raise UserError(
            f"deploy.placement: endpoint {name!r} on port {work.port} has its replicas elsewhere (in"
            f" {'the cluster of a job' if status['cluster'] else 'a Ray of its own'}); choose another port, or end it"
        )
    return status


def _settings(job: job_pb2.JobConfig, work: delivery_pb2.Deploy, run: RunFolder) -> ServerSettings:
    folder = run.locate(work.model)
    if work.model.startswith("@"):
        artifacts.read(folder)
    source = locate_model(folder)
    is_serving = work.placement == delivery_pb2.Deploy.CLUSTER
    on_gpu = in_cluster.has_gpus() if is_serving else bool(gpus.visible())
    number_type = number_types.of_folder(source.base, on_gpu)
    num_gpus = work.tensor_parallel_size if on_gpu else 1
    if is_serving:
        in_cluster.require_fit(source.base, number_type, num_gpus, on_gpu)
    else:
        fit.require(source.base, number_type, num_gpus, work.replica_count, on_gpu)
    rank = 0
    if source.adapter:
        rank = int(json.loads((source.adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"])
    return ServerSettings(
        model=str(source.base),
        name=work.endpoint or job.name,
        adapter=str(source.adapter) if source.adapter else None,
        adapter_rank=rank,
        tensor_parallel_size=num_gpus,
        max_sequence_tokens=work.max_sequence_tokens if work.HasField("max_sequence_tokens") else None,
        number_type=number_type,
        compiled=on_gpu,
    )


def _digest(work: delivery_pb2.Deploy, settings: ServerSettings, run: RunFolder) -> str:
    """Of what is served, so that an unchanged model is not deployed anew and a retrained one is."""
    manifest = run.locate(work.model) / artifacts.MANIFEST
    text = json.dumps(dataclasses.asdict(settings), sort_keys=True).encode()
    return hashlib.sha256(text + (manifest.read_bytes() if manifest.exists() else b"")).hexdigest()[:10]


def _control(work: delivery_pb2.Deploy) -> Control:
    key = authentication.read_key(work.api_key.file, work.api_key.environment_variable)
    return Control(work.listen_address, work.port, key, work.tls.certificate_file)


def _change(control: Control, version: str, settings: ServerSettings, work: delivery_pb2.Deploy, log: EventLog) -> None:
    control.begin(
        {
            "version": version,
            "settings": dataclasses.asdict(settings),
            "replica_count": work.replica_count,
            "canary": dataclasses.asdict(_canary(work.canary)) if work.HasField("canary") else None,
            "start_limit_s": work.start_limit.ToTimedelta().total_seconds(),
        }
    )
    num_told = 0
    while True:
        status = control.status()
        for told in status["told"][num_told:]:
            log.message(told)
        num_told, told = len(status["told"]), status["message"]
        if status["state"] == "serving":
            return
        if status["state"] == "failed":
            raise UserError(f"version {version} was not deployed: {told}")
        if status["state"] == "rolled_back":
            raise UserError(f"version {version} was rolled back, {status['stable']} answers as before: {told}")
        time.sleep(_POLL_S)


def _canary(canary: delivery_pb2.Deploy.Canary) -> Canary:
    return Canary(
        traffic_percent=tuple(canary.traffic_percent) or _DEFAULT_SHARES,
        step_s=canary.step_time.ToTimedelta().total_seconds(),
        max_error_fraction=canary.max_error_fraction,
        prompts=tuple(canary.prompts),
        max_new_tokens=canary.max_new_tokens,
        max_latency_ratio=canary.max_latency_ratio,
    )
