"""A stage's stored teacher: what is there is used, what is missing, torn or of another teacher is made.

data, teacher, settings -> key -> shards -> those that are not whole -> a maker -> StoredTeacher
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from finecut.proto.config import UserError
from finecut.proto.run import artifacts, files
from finecut.proto.run.artifacts import ArtifactError
from finecut.proto.run.events import EventLog
from finecut.trainer.config import Precision, StagePlace
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import ModelSource
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.teachers import engine, forward, shards
from finecut.trainer.teachers.config import Maker, TeacherCacheConfig
from finecut.trainer.teachers.forward import AskedModel
from finecut.trainer.teachers.making import Order
from finecut.trainer.teachers.rows import RowReader
from finecut.trainer.teachers.shards import Shard
from finecut.trainer.teachers.stored import StoredTeacher

_FOLDER = "teacher"
_FORMAT = 1  # of what is stored
_TELL_S = 30.0


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is kept of whom. `data_fingerprint` is of the prepared data, `load` loads the teacher for forward passes."""

    config: TeacherCacheConfig
    source: ModelSource
    load: Callable[[], Decoder]
    data_fingerprint: str
    precision: Precision
    top_k: int
    temperature: float
    vocabulary_size: int
    block_size: int
    blocks_at_once: int


def open_stored(
    wanted: Wanted, place: StagePlace, devices: Devices, moved: Callable[[], None]
) -> tuple[StoredTeacher, str]:
    """The stored teacher, complete, and a line that says what was done. Collective.

    Raises UserError where as many tokens cannot be kept, or the teacher cannot be asked.

    Args:
      moved: Called whenever this rank goes forward.
    """
    if wanted.top_k >= wanted.vocabulary_size:
        raise UserError(
            f"top_k: {wanted.top_k:,} is not less than the {wanted.vocabulary_size:,} tokens of the vocabulary; lower"
            " it, or unset teacher_cache"
        )
    order = _order(wanted, place, devices)
    planned = [
        shard
        for split in artifacts.read(place.data).data.splits
        if split.document_count
        for shard in shards.plan(split.name, RowReader(place.data, split.name).num_tokens_R, wanted.top_k)
    ]
    missing = _missing(order, planned, devices, moved)
    began = time.perf_counter()
    if missing:
        _make(order, missing, wanted, place, devices, moved)
        devices.barrier()
    note = _note(order, planned, len(missing), time.perf_counter() - began)
    return StoredTeacher(order.folder, planned, wanted.top_k), note


def _order(wanted: Wanted, place: StagePlace, devices: Devices) -> Order:
    key = devices.from_main(_key(wanted) if devices.is_main else "")
    own = place.artifact.parent / _FOLDER
    folder = (wanted.config.folder or own) / key[:16]
    if devices.is_main:
        if own.is_dir():  # only this stage reads it, so what another teacher said is of no use
            for other in own.iterdir():
                if other != folder:
                    shutil.rmtree(other, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    devices.barrier()
    return Order(place.data, folder, key, wanted.top_k, wanted.vocabulary_size, wanted.block_size)


def _missing(order: Order, planned: list[Shard], devices: Devices, moved: Callable[[], None]) -> list[Shard]:
    """Shards that are not there, or not whole, in order. Collective: ranks share the reading."""
    bad = []
    for shard in planned[devices.rank :: devices.world_size]:
        moved()
        if not shards.is_whole(order.folder, order.key, shard):
            shard.path(order.folder).unlink(missing_ok=True)
            bad.append(shard)
    found = {shard for share in devices.gather_objects(bad) for shard in share}
    return [shard for shard in planned if shard in found]


def _make(
    order: Order,
    missing: list[Shard],
    wanted: Wanted,
    place: StagePlace,
    devices: Devices,
    moved: Callable[[], None],
) -> None:
    with EventLog(place.events, place.stage) if devices.is_main else contextlib.nullcontext() as log:
        num_own, told_at = 0, -math.inf
        for shard in _steps(order, missing, wanted, devices):
            moved()
            num_own += shard is not None
            if log and time.monotonic() - told_at > _TELL_S:
                told_at = time.monotonic()
                log.message(f"rank 0 has asked the teacher for {num_own} of {len(missing)} shards, others for theirs")
    # The student needs what the teacher had.
    gc.collect()
    if devices.device.type == "cuda":
        torch.cuda.empty_cache()


def _steps(order: Order, missing: list[Shard], wanted: Wanted, devices: Devices) -> Iterator[Shard | None]:
    """Makes this rank's share; yields whenever that goes forward, and the shards that it completes."""
    if wanted.config.maker is Maker.VLLM:
        yield from engine.make(order, missing, wanted.source, wanted.precision, devices)
        return
    model = wanted.load()
    asked = AskedModel(model, wanted.top_k, wanted.temperature, devices.device, wanted.blocks_at_once)
    yield from forward.make(order, missing, asked, devices)


def _note(order: Order, planned: list[Shard], num_made: int, seconds: float) -> str:
    size = sum(shard.path(order.folder).stat().st_size for shard in planned)
    made = f"{num_made} of {len(planned)} shards made in {seconds:.1f} s" if num_made else "all of it was there"
    return f"the teacher's {order.top_k} likeliest tokens are kept in {order.folder} ({size / 1e6:,.1f} MB; {made})"


def _key(wanted: Wanted) -> str:
    """Of everything that decides the numbers."""
    parts = {
        "format": _FORMAT,
        "data": wanted.data_fingerprint,
        "teacher": [_weights(folder) for folder in (wanted.source.base, wanted.source.adapter) if folder],
        "maker": wanted.config.maker.value,
        "precision": wanted.precision.value,
        "top_k": wanted.top_k,
        "temperature": wanted.temperature,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _weights(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that decides what a model computes; from the manifest where a stage has written it."""
    try:
        known = {file.path: file.sha256 for file in artifacts.read(folder).files}
    except ArtifactError:
        known = {}
    names = [*(path.name for path in folder.glob("*.safetensors")), "config.json", "adapter_config.json"]
    found = {name: known.get(name) or files.sha256_of_file(folder / name) for name in names if (folder / name).exists()}
    return dict(sorted(found.items()))
