"""The teacher's shards by vLLM, in a process of its own: it wants a process group, and all of the memory, for itself.

On GPUs each rank starts an engine on its own; on CPUs rank 0 starts the one.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

import torch

from finecut.proto.config import UserError
from finecut.trainer.config import Precision
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.huggingface import ModelSource
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.teachers import engine_process
from finecut.trainer.teachers.engine_process import Task
from finecut.trainer.teachers.making import Order
from finecut.trainer.teachers.shards import Shard

_NUMBER_TYPES = {Precision.FP32: "float32", Precision.BF16: "bfloat16", Precision.FP16: "float16"}
_POLL_S = 0.5
# While an engine starts, which says nothing, to wait for it is to go forward.
_START_S = 900.0
# They describe the group of ranks, which is not the engine's.
_OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def make(
    order: Order, missing: Sequence[Shard], source: ModelSource, precision: Precision, devices: Devices
) -> Iterator[Shard | None]:
    """This rank's share of the missing shards; returns when all ranks' are there. None: a call of the engine.

    Raises UserError where vLLM cannot start with the teacher, or cannot read the documents.
    """
    if source.adapter is not None:
        raise UserError(
            f"teacher: {source.adapter} is an adapter, whose log-probabilities vLLM does not give; export it MERGED, or"
            " set teacher_cache.maker: FORWARD"
        )
    num_engines = devices.world_size if devices.device.type == "cuda" else 1
    own = missing[devices.rank :: num_engines] if devices.rank < num_engines else []
    if own:
        limit = DecoderConfig.from_folder(source.base).max_positions
        task = Task(
            **{field.name: getattr(order, field.name) for field in dataclasses.fields(order)},
            model=source.base,
            number_type=_NUMBER_TYPES[precision],
            max_positions=limit,
            wanted=tuple(own),
        )
        yield from _run(task, _environment(devices.device))
    while not all(shard.path(order.folder).exists() for shard in missing):  # a collective would time out
        time.sleep(_POLL_S)


def _run(task: Task, environment: Mapping[str, str]) -> Iterator[Shard | None]:
    ours, theirs = multiprocessing.Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", engine_process.__name__, str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=environment,
        )
    try:
        ours.send_bytes(engine_process.encode(task).encode())
        num_done, starts_until = 0, time.monotonic() + _START_S
        while num_done < len(task.wanted):
            if not ours.poll(_POLL_S):
                if time.monotonic() < starts_until:
                    yield None
                continue
            starts_until = 0.0
            message = json.loads(ours.recv_bytes())
            if "error" in message:
                raise UserError(message["error"])
            done = bool(message["is_shard"])
            yield task.wanted[num_done] if done else None
            num_done += done
    except (EOFError, OSError) as error:
        raise UserError(
            f"teacher_cache.maker: VLLM: its process ended with exit code {process.wait()}; see standard error"
        ) from error
    finally:
        ours.close()
        process.kill()
        process.wait()


def _environment(device: torch.device) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in _OF_RANKS}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    if device.type == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
        environment["CUDA_VISIBLE_DEVICES"] = names[device.index or 0]
    return environment
