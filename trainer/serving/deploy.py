"""The deploy stage: starts the endpoint where it is not there, has it change to the new version, and waits.

model -> (evaluation passed) -> endpoint process on this machine -> its own account of the change -> artifact
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from finecut.proto import artifact_pb2, delivery_pb2, job_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder, artifacts, fingerprint
from finecut.proto.run.events import EventLog
from finecut.trainer.models.source import locate_model
from finecut.trainer.serving import endpoints, fit, number_types
from finecut.trainer.serving.gateway_main import gpus
from finecut.trainer.serving.rollout_plan import Canary
from finecut.trainer.serving.vllm_server import ServerSettings

_DEFAULT_SHARES = (5, 50, 100)
_POLL_S = 0.2
_START_S = 120.0  # for the endpoint's own process, which loads no model
_CONNECTION_LOST = (urllib.error.URLError, http.client.HTTPException, OSError)


def run_deploy(job: job_pb2.JobConfig, stage: str) -> artifact_pb2.Artifact:
    """Runs the stage in this process; the endpoint's lives on.

    Raises UserError where the model does not fit, the port is another program's, or the new version was rolled back:
    then the version before answers as it did.
    """
    run = RunFolder.of(job)
    work = next(s for s in job.stages if s.name == stage).deploy
    settings = _settings(job, work, run)
    version = f"{stage}-{_digest(work, settings, run)}"
    address = f"http://127.0.0.1:{work.port}"
    with EventLog(run.events(stage), stage) as log:
        status = _find_endpoint(address, work.port, settings.name)
        if status is None:
            _start_endpoint(settings.name, work, endpoints.folder_of(run, settings.name), address)
            status = _status(address)
            log.message(f"endpoint {settings.name} started on {address}")
        process_id, url = int(status["process_id"]), f"{address}/v1"
        endpoints.record(run, stage, settings.name, url, process_id, Path(status["folder"]))
        if status["stable"] != version:
            _change(address, version, settings, work, log)
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
    on_gpu = bool(gpus())
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
    )


def _digest(work: delivery_pb2.Deploy, settings: ServerSettings, run: RunFolder) -> str:
    """Of what is served, so that an unchanged model is not deployed anew and a retrained one is."""
    manifest = run.locate(work.model) / artifacts.MANIFEST
    text = json.dumps(dataclasses.asdict(settings), sort_keys=True).encode()
    return hashlib.sha256(text + (manifest.read_bytes() if manifest.exists() else b"")).hexdigest()[:10]


def _find_endpoint(address: str, port: int, name: str) -> dict[str, Any] | None:
    """The endpoint's status, None where nobody listens. Raises UserError where somebody else does."""
    with socket.socket() as probe:
        probe.settimeout(2)
        if probe.connect_ex(("127.0.0.1", port)):
            return None
    try:
        status = _status(address)
    except (*_CONNECTION_LOST, ValueError):
        status = {}
    if status.get("endpoint") != name:
        owner = f"endpoint {status['endpoint']!r}" if "endpoint" in status else "another program"
        raise UserError(f"deploy.port: port {port} is in use by {owner}; choose another, or end that one")
    return status


def _start_endpoint(name: str, work: delivery_pb2.Deploy, folder: Path, address: str) -> None:
    """Starts its process as nobody's child: neither a launcher nor Ray ends it with itself."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "finecut.trainer.serving.gateway_main", f"--name={name}", f"--folder={folder}"]
    command += [f"--port={work.port}", f"--max_request_bytes={work.max_request_bytes}"]
    log = folder / "endpoint.log"
    starter = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with log.open("wb") as file:
        subprocess.run(
            [sys.executable, "-c", starter, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=True,
        )
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        try:
            _status(address)
            return
        except _CONNECTION_LOST:
            time.sleep(_POLL_S)
    said = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"])[-1]
    raise UserError(f"the endpoint's process did not start; it said: {said} (log: {log})")


def _change(address: str, version: str, settings: ServerSettings, work: delivery_pb2.Deploy, log: EventLog) -> None:
    asked = {
        "version": version,
        "settings": dataclasses.asdict(settings),
        "replica_count": work.replica_count,
        "canary": dataclasses.asdict(_canary(work.canary)) if work.HasField("canary") else None,
        "start_limit_s": work.start_limit.ToTimedelta().total_seconds(),
    }
    request = urllib.request.Request(f"{address}/finecut/versions", json.dumps(asked).encode(), method="POST")
    request.add_header("Content-Type", "application/json")
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except urllib.error.HTTPError as error:
        raise UserError(f"the endpoint refused: {json.load(error)['error']['message']}") from None
    num_told = 0
    while True:
        status = _status(address)
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


def _status(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}/finecut/status", timeout=10) as response:
        return json.load(response)
