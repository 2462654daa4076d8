"""Seconds of a weight synchronisation: from the trainer's FP32 parameters to engines that vouch for what they hold.

An engine that slept wakes in two parts, its weights before and its cache after they are confirmed; neither is counted.

python -m finecut.tools.gpu_bench.weight_sync --shape=1.7B                   # engine on the trainer's GPU, after wake
python -m finecut.tools.gpu_bench.weight_sync --shape=8B --placement=split   # engine on another GPU, by NCCL
"""

from __future__ import annotations

import collections
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from absl import app, flags
from google.protobuf import text_format

from finecut.proto import rollout_pb2
from finecut.tools.gpu_bench import models, training
from finecut.tools.gpu_bench.cases import Case
from finecut.trainer.config import Precision
from finecut.trainer.models.huggingface import ModelSource
from finecut.trainer.parallel import mesh, process_group
from finecut.trainer.parallel.leaving import leave
from finecut.trainer.rl import engines
from finecut.trainer.rollout.config import RolloutConfig
from finecut.trainer.rollout.weight_source import DecoderSource
from finecut.trainer.rollout.weight_sync import Engines, WeightSync

_SHAPE = flags.DEFINE_enum("shape", "1.7B", list(models.SHAPES), "Size of the model.")
_PLACEMENT = flags.DEFINE_enum("placement", "colocated", ["colocated", "split"], "Where the engine is.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed synchronisations, after one to warm up.", lower_bound=1)
_MEMORY = flags.DEFINE_float("memory", 0.4, "Share of the GPU's memory that the engine takes.")

_ROLLOUT = (
    "max_new_tokens: 512 temperature: 1 top_p: 1 tensor_parallel_size: 1 max_staleness: 1 max_logprob_drift: 0.05"
)


def main(argv: list[str]) -> int:
    """Measures, and prints one line of JSON."""
    del argv
    with process_group.connect() as devices, tempfile.TemporaryDirectory() as folder:
        shape = models.SHAPES[_SHAPE.value]
        case = Case(name=_SHAPE.value, shape=shape, block=1024, micro_blocks=1, num_micro_batches=1)
        settings = training.training_config(case, "compile: false", devices.world_size)
        devices = mesh.arrange(devices, settings.parallelism)
        text = f"{_ROLLOUT} placement: {_PLACEMENT.value.upper()} gpu_memory_fraction: {_MEMORY.value}"
        rollout = RolloutConfig.from_proto(text_format.Parse(text, rollout_pb2.Rollout()))
        source = ModelSource(models.write_config(shape, Path(folder)))
        plan = engines.plan(rollout, source, None, settings, Precision.BF16, 1024, devices)
        began = time.perf_counter()
        fleet = engines.start(plan.fleet, resync=lambda found: None, on_message=print)
        print(f"engine started in {time.perf_counter() - began:.1f} s", flush=True)
        if plan.takes_turns:
            fleet.sleep()
        model = training.build(case, settings, devices)
        timed = _Timed(fleet.engines)
        sync = WeightSync(DecoderSource(model, torch.bfloat16), timed, plan.engine.transfer_backend)
        wakes, sends, caches = [], [], []
        for version in range(1, _ROUNDS.value + 2):
            began = time.perf_counter()
            if plan.takes_turns:
                fleet.wake()
            woken = time.perf_counter()
            timed.seconds.clear()
            sync.send(version)
            sent = time.perf_counter()
            caches.append(fleet.status()[0].cache_wake_seconds if plan.takes_turns else 0.0)
            wakes.append(woken - began + caches[-1])
            sends.append(sent - woken - caches[-1])
            if plan.takes_turns:
                fleet.sleep()
        result: dict[str, Any] = {"shape": _SHAPE.value, "placement": _PLACEMENT.value, "wake_seconds": wakes[1:]}
        result |= {"sync_seconds": sends[1:], "first_sync_seconds": sends[0], "last_sync_parts": dict(timed.seconds)}
        result["cache_wake_seconds"] = caches[1:]
        print(json.dumps(result), flush=True)
        fleet.shut_down()
    return 0


class _Timed:
    """Engines whose calls are timed, by method."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self.tensor_parallel_sizes = engines.tensor_parallel_sizes
        self.seconds: dict[str, float] = collections.defaultdict(float)

    def call(self, method: str, *arguments: Any) -> None:
        """As the engines'."""
        with self._timed(method):
            self._engines.call(method, *arguments)

    def call_each(self, method: str, arguments: Sequence[Any]) -> None:
        """As the engines'."""
        with self._timed(method):
            self._engines.call_each(method, arguments)

    @contextlib.contextmanager
    def _timed(self, method: str) -> Iterator[None]:
        torch.cuda.synchronize()
        began = time.perf_counter()
        yield
        self.seconds[method] += time.perf_counter() - began


if __name__ == "__main__":
    app.run(lambda argv: leave(main(argv)))
