"""The process that asks vLLM: python -m finecut.trainer.teachers.engine_process DESCRIPTOR PARENT.

DESCRIPTOR is a pipe of JSON messages to the process PARENT, with which this one dies:

    -> a Task
    <- {"is_shard": false}      after each call of the engine, true where a shard is written; or {"error": sentence}
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from finecut.proto.config import UserError
from finecut.trainer.serving import offline
from finecut.trainer.serving.offline import OfflineConfig, OfflineModel
from finecut.trainer.teachers.making import Order, ShardMaker
from finecut.trainer.teachers.rows import RowBlocks
from finecut.trainer.teachers.shards import Kept, Shard

_PR_SET_PDEATHSIG = 1
# Log-probabilities of one call, which vLLM holds as Python's numbers: some 100 bytes each.
_CALL_NUMBERS = 4 * 2**20
# Tokens whose logits vLLM has at a time: over 150,000 tokens in FP32 1.2 GB, several times.
_BATCHED_TOKENS = 2048
# What the log-probabilities of K tokens in FP32 leave to others cannot be less.
_LEAST_REST = float(np.finfo(np.float32).eps)


@dataclasses.dataclass(frozen=True)
class Task(Order):
    """Which shards, and with which model; `max_positions` are the model's."""

    model: Path
    number_type: str
    max_positions: int
    wanted: tuple[Shard, ...]


class AskedEngine:
    """A model in vLLM. Temperature is 1: prompts' log-probabilities know no other."""

    def __init__(self, model: OfflineModel, top_k: int, block_size: int) -> None:
        self._model = model
        self._top_k = top_k
        self.blocks_at_once = max(1, _CALL_NUMBERS // (block_size * (top_k + 1)))

    def ask(self, rows: RowBlocks) -> Kept:
        """Documents without a trained token are not sent."""
        documents = [(ids_T, has_target_T) for ids_T, has_target_T in rows.documents() if has_target_T.any()]
        found = self._model.likeliest([ids_T.tolist() for ids_T, _ in documents], self._top_k)
        parts = [Kept.empty(self._top_k)]
        for (_, has_target_T), (ids_SK, log_probs_SK) in zip(documents, found, strict=True):
            places = has_target_T[:-1]  # nothing follows the last token
            ids_NK, log_probs_NK = ids_SK[places], log_probs_SK[places]
            rest_N = 1 - np.exp(log_probs_NK.astype(np.float64)).sum(1)
            parts.append(Kept(ids_NK, log_probs_NK, np.log(np.maximum(rest_N, _LEAST_REST)).astype(np.float32)))
        return Kept.joined(parts)


def main(descriptor: int, parent: int) -> None:
    """Makes the shards of one task."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be watched
        return
    pipe = Connection(descriptor)
    task = decode(pipe.recv_bytes().decode())
    try:
        for is_shard in _work(task):
            _send(pipe, {"is_shard": is_shard})
    except UserError as error:
        _send(pipe, {"error": str(error)})
    except (RuntimeError, ValueError) as error:  # a shape for which it has no kernel, such as small heads on CPUs
        _send(pipe, {"error": f"teacher: vLLM loads {task.model} and cannot run it: {str(error).strip()[-300:]}"})


def _work(task: Task) -> Iterator[bool]:
    """Whether each call completed a shard."""
    config = OfflineConfig(
        task.model,
        number_type=task.number_type,
        max_sequence_tokens=min(task.block_size + 1, task.max_positions),
        max_logprobs=task.top_k,
        max_batched_tokens=_BATCHED_TOKENS,
        own_process=False,  # nothing is left on the GPU when this process is ended
    )
    with offline.load(config) as model:
        teacher = AskedEngine(model, task.top_k, task.block_size)
        for shard in ShardMaker(task, task.wanted, teacher.blocks_at_once).make(teacher):
            yield shard is not None


def encode(task: Task) -> str:
    """As a message."""
    return json.dumps(dataclasses.asdict(task), default=str)


def decode(message: str) -> Task:
    """From a message."""
    fields = json.loads(message)
    paths = {name: Path(fields[name]) for name in ("data", "folder", "model")}
    return Task(**{**fields, **paths, "wanted": tuple(Shard(**shard) for shard in fields["wanted"])})


def _send(pipe: Connection, message: dict[str, object]) -> None:
    pipe.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
