"""What a run has deployed, recorded in its folder by the deploy stage and the endpoint's process.

    RUN/endpoints/STAGE.json             by the deploy stage, once an endpoint takes its version
    RUN/endpoints/NAME/status.json       by the endpoint's process, whenever a version changes

An endpoint outlives the job, so whether it runs is looked up on this machine. No torch, Ray or network is needed.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from finecut.proto.run import RunFolder, files

_STATUS = "status.json"
ENDED = "ended"
CHANGING = ("starting", "shifting")


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """One endpoint. Example: Endpoint("chat", "http://127.0.0.1:8000/v1", "deploy", "serving", ...).

    Attributes:
      stage: The deploy stage that asked for it last.
      state: "empty", "starting", "shifting", "serving", "rolled_back", "failed"; "ended" where its process is gone.
      message: The same in a sentence.
      stable: The version that answers; None while there is none.
      candidate: The version that is taking over, with its share of traffic in percent.
      process_id: SIGTERM ends it once its requests are answered.
    """

    name: str
    url: str
    stage: str
    state: str
    message: str
    stable: str | None
    candidate: str | None
    share_percent: int
    process_id: int


def endpoints_of(run: RunFolder) -> list[Endpoint]:
    """The endpoints that stages of this run deployed to, by stage. Files that cannot be read are left out."""
    records = [_read(path) for path in sorted(_folder(run).glob("*.json"))]
    return [_endpoint(record) for record in records if record]


def record(run: RunFolder, stage: str, name: str, url: str, process_id: int, status: Path) -> None:
    """Notes that `stage` deploys to the endpoint `name`, whose process writes its status to the folder `status`."""
    fields = {"stage": stage, "name": name, "url": url, "process_id": process_id, "status": str(status)}
    files.write_atomically(_folder(run) / f"{stage}.json", json.dumps(fields) + "\n")


def write_status(folder: Path, status: dict[str, Any]) -> None:
    """What the endpoint's process says of itself; see `Endpoint`."""
    files.write_atomically(folder / _STATUS, json.dumps(status) + "\n")


def has_ended_by_itself(folder: Path) -> bool:
    """Whether an endpoint's process, which is gone, was told to end; False: it was killed, or failed."""
    return (_read(folder / _STATUS) or {}).get("state") == ENDED


def folder_of(run: RunFolder, name: str) -> Path:
    """Where an endpoint that this run starts keeps its status and logs."""
    return _folder(run) / name


def _folder(run: RunFolder) -> Path:
    return run.root / "endpoints"


def _endpoint(found: dict[str, Any]) -> Endpoint:
    status = _read(Path(found["status"]) / _STATUS) or {}
    running = status.get("process_id") == found["process_id"] and _is_endpoint(found["process_id"])
    return Endpoint(
        name=found["name"],
        url=found["url"],
        stage=found["stage"],
        state=status.get("state", "empty") if running else ENDED,
        message=status.get("message", "") if running else f"process {found['process_id']} has ended",
        stable=status.get("stable") if running else None,
        candidate=status.get("candidate") if running else None,
        share_percent=status.get("share_percent", 0) if running else 0,
        process_id=found["process_id"],
    )


def _is_endpoint(process_id: int) -> bool:
    """Whether the process runs and is an endpoint: numbers are given out again."""
    try:
        return b"finecut.trainer.serving.gateway_main" in Path(f"/proc/{process_id}/cmdline").read_bytes()
    except OSError:
        return False


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
