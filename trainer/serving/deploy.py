"""The deploy stage: starts the endpoint where it is not there, has it change to the new version, and waits.

model -> (evaluation passed) -> endpoint process on this machine -> its own account of the change -> artifact
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from finecut.proto import artifact_pb2, delivery_pb2, job_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder, artifacts, fingerprint
from finecut.proto.run.events import EventLog
from finecut.trainer.models.source import locate_model
from finecut.trainer.serving import authentication, endpoints, fit, gpus, number_types
from finecut.trainer.serving.control import CONNECTION_LOST, Control
from finecut.trainer.serving.rollout_plan import Canary
from finecut.trainer.serving.vllm_server import ServerSettings

_DEFAULT_SHARES = (5, 50, 100)
_POLL_S = 0.2
_STARTER = """
import subprocess, sys
with open(sys.argv[1], "wb") as log:
    streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
    print(subprocess.Popen(sys.argv[2:], start_new_session=True, **streams).pid)
"""
_START_S = 600.0  # for the endpoint's process with Ray and Serve, before any model; 20 s on an idle machine


def run_deploy(job: job_pb2.JobConfig, stage: str) -> artifact_pb2.Artifact:
    """Runs the stage in this process; the endpoint's lives on.

    Raises UserError where the model does not fit, the port is another program's, or the new version was rolled back:
    then the version before answers as it did.
    """
    run = RunFolder.of(job)
    work = next(s for s in job.stages if s.name == stage).deploy
    settings = _settings(job, work, run)
    version = f"{stage}-{_digest(work, settings, run)}"
    control = _control(work)
    with EventLog(run.events(stage), stage) as log:
        status = control.find(settings.name)
        if status is None:
            _start_endpoint(control, settings.name, work, endpoints.folder_of(run, settings.name))
            status = control.status()
            log.message(f"endpoint {settings.name} started on {control.address}")
        process_id, url = int(status["process_id"]), f"{control.address}/v1"
        endpoints.record(run, stage, settings.name, url, process_id, Path(status["folder"]))
        if status["stable"] != version:
            _change(control, version, settings, work, log)
        artifact = artifact_pb2.Artifact(job=job.name, stage=stage)
        endpoint = artifact_pb2.EndpointArtifact(
            url=url, version=version, endpoint=settings.name, process_id=process_id
        )
        artifact.endpoint.CopyFrom(endpoint)
        artifact.fingerprints.config = fingerprint.of_stage(job, stage)
        artifact.fingerprints.code = fingerprint.code_version()
        run.artifact(stage).mkdir(parents=True, exist_ok=True)
        artifact = artifacts.write(run.artifact(stage), artifact)
        log.message(f"version {version} of {settings.name} answers on {url}; kill {process_id} ends it")
    return artifact


def _settings(job: job_pb2.JobConfig, work: delivery_pb2.Deploy, run: RunFolder) -> ServerSettings:
    folder = run.locate(work.model)
    if work.model.startswith("@"):
        artifacts.read(folder)
    source = locate_model(folder)
    on_gpu = bool(gpus.visible())
    number_type = number_types.of_folder(source.base, on_gpu)
    fit.require(source.base, number_type, work.tensor_parallel_size if on_gpu else 1, work.replica_count, on_gpu)
    rank = 0
    if source.adapter:
        rank = int(json.loads((source.adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"])
    return ServerSettings(
        model=str(source.base),
        name=work.endpoint or job.name,
        adapter=str(source.adapter) if source.adapter else None,
        adapter_rank=rank,
        tensor_parallel_size=work.tensor_parallel_size if on_gpu else 1,
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


def _start_endpoint(control: Control, name: str, work: delivery_pb2.Deploy, folder: Path) -> None:
    """Starts its process as nobody's child: neither a launcher nor Ray ends it with itself."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {
        "name": name,
        "folder": folder,
        "host": work.listen_address,
        "port": work.port,
        "max_request_bytes": work.max_request_bytes,
        "api_key_file": work.api_key.file,
        "api_key_variable": work.api_key.environment_variable,
        "certificate": work.tls.certificate_file,
        "certificate_key": work.tls.key_file,
    }
    command = [sys.executable, "-m", "finecut.trainer.serving.gateway_main"]
    command += [f"--{flag}={value}" for flag, value in given.items()]
    log = folder / "endpoint.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    started = subprocess.run(
        [sys.executable, "-c", _STARTER, str(log), *command], env=environment, stdout=subprocess.PIPE, check=True
    )
    process_id, deadline = int(started.stdout), time.monotonic() + _START_S
    while time.monotonic() < deadline and _is_running(process_id):
        try:
            control.status()
            return
        except CONNECTION_LOST:
            time.sleep(_POLL_S)
    said = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"])[-1]
    raise UserError(f"the endpoint's process did not start; it said: {said} (log: {log})")


def _is_running(process_id: int) -> bool:
    try:
        status = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


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
