"""Times training steps: the trainer's decoder, sharding, loss, clipping and optimizer on random weights and text."""

from __future__ import annotations

import dataclasses
import functools
import gc
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from google.protobuf import text_format

from finecut.proto import training_pb2
from finecut.tools.gpu_bench.cases import Case
from finecut.tools.gpu_bench.documents import BenchBatch, make_batch
from finecut.trainer.config import TrainingConfig
from finecut.trainer.metrics import flops
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.lora import apply_lora, initialize_a
from finecut.trainer.models.sharding import local_part, named_parameters
from finecut.trainer.ops import kernels
from finecut.trainer.parallel import mesh
from finecut.trainer.parallel import precision as number_formats
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.parallel.sharding import check_layout, parallelize
from finecut.trainer.recipes import garbage, optimization

_WARM_UP = 3
_OPTIMIZER = "optimizer { learning_rate: 1e-5 beta1: 0.9 beta2: 0.95 epsilon: 1e-8 max_gradient_norm: 1 }"


@dataclasses.dataclass(frozen=True)
class Result:
    """What one case measured, per GPU. `spread` is (slowest - fastest) / median over steps."""

    tokens_per_second: float
    flops_per_second: float
    peak_gib: float
    spread: float
    step_seconds: tuple[float, ...]
    first_step_seconds: float
    loss: float


def training_config(case: Case, options: str, world_size: int) -> TrainingConfig:
    """The case's config; `options` is text format of fields that the command line adds."""
    text = f"precision: BF16 compile: true kernels: KERNELS_AUTO {_OPTIMIZER}"
    message = text_format.Parse(text, training_pb2.TrainingConfig())
    for extra in (case.training, options):
        message.MergeFrom(text_format.Parse(extra, training_pb2.TrainingConfig()))
    tensor_size = max(1, message.parallelism.tensor_parallel_size)
    message.parallelism.tensor_parallel_size = tensor_size
    message.parallelism.replicate_size = max(1, message.parallelism.replicate_size)
    message.batch.micro_blocks = case.micro_blocks
    message.batch.global_blocks = case.micro_blocks * case.num_micro_batches * world_size // tensor_size
    return TrainingConfig.from_proto(message)


def build(case: Case, training: TrainingConfig, devices: Devices) -> Decoder:
    """The decoder as the trainer builds it, with random weights in place of a checkpoint's."""
    precision = number_formats.resolve(training.precision, devices.device, case.shape.family)
    with torch.device("meta"):
        model = Decoder(case.shape, loss_chunk_tokens=training.loss_chunk_tokens)
        if case.lora:
            apply_lora(model, case.lora)
    parallelize(model, training, precision, devices)
    model.to_empty(device=devices.device)
    with torch.no_grad():
        for name, parameter in named_parameters(model):
            part = local_part(parameter)
            if name.endswith("lora_a"):
                initialize_a(part)
            elif name.endswith("lora_b"):
                part.zero_()
            else:
                part.fill_(1.0) if part.ndim == 1 else part.normal_(std=0.02)
    return model


class Session:
    """A case's model and optimizer on this rank's GPU, ready for steps."""

    def __init__(self, case: Case, options: str, world: Devices) -> None:
        self.case = case
        self.training = training_config(case, options, world.world_size)
        check_layout(self.training, case.shape, world.world_size)
        self.devices = mesh.arrange(world, self.training.parallelism)
        kernels.use(self.training.kernels, self.devices.device)
        self.model = build(case, self.training, self.devices)
        self.optimizer = optimization.adamw(
            self.model, self.training.optimizer, self.training.parallelism.offload_optimizer
        )
        self._random = np.random.default_rng(self.devices.data_rank)  # a tensor group takes the same batches
        self._took_steps = False

    def batches(self) -> list[BenchBatch]:
        """New ones for a step."""
        return [make_batch(self.case, self._random, self.devices.device) for _ in range(self.case.num_micro_batches)]

    def step(self, batches: list[BenchBatch]) -> tuple[float, float]:
        """Trains on a batch; seconds until the device is done, and the loss."""
        torch.cuda.synchronize()
        started = time.perf_counter()
        loss = optimization.forward_backward(self.model, [batch.batch for batch in batches], 1.0, self.devices)
        optimization.clip_gradients(self.model, 1.0, self.training.optimizer.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        if not self._took_steps:
            garbage.settle()
            self._took_steps = True
        return seconds, loss.mean


def free() -> None:
    """Gives back the memory of what nothing refers to any more; models are in cycles, which `settle` froze."""
    gc.unfreeze()
    gc.collect()
    torch.cuda.empty_cache()


def run(case: Case, options: str, num_steps: int, devices: Devices, profile: str = "") -> Result:
    """Trains `num_steps` steps after warming up. `profile`: a file for a table of the kernels of one more step."""
    torch.cuda.reset_peak_memory_stats()
    session = Session(case, options, devices)
    seconds, tokens, operations, loss = [], 0, 0.0, float("nan")
    for step in range(_WARM_UP + num_steps):
        batches = session.batches()
        taken, loss = session.step(batches)
        seconds.append(taken)
        if step >= _WARM_UP:
            tokens += sum(batch.batch.tokens.useful for batch in batches)
            lengths = [length for batch in batches for length in batch.lengths]
            trained = sum(batch.batch.tokens.trained for batch in batches)
            operations += flops.step_flops(case.shape, lengths, trained, session.model.lora)
    timed = seconds[_WARM_UP:]
    if profile:
        _profile(functools.partial(session.step, batches[:1]), profile)
    peak = torch.cuda.max_memory_allocated() / 2**30
    tensor_size = session.devices.tensor_size
    del session, batches
    free()
    return Result(
        tokens_per_second=tokens / sum(timed) / tensor_size,
        flops_per_second=operations / sum(timed) / tensor_size,
        peak_gib=peak,
        spread=(max(timed) - min(timed)) / statistics.median(timed),
        step_seconds=tuple(timed),
        first_step_seconds=seconds[0],
        loss=loss,
    )


def _profile(step: Callable[[], object], path: str) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        started = time.perf_counter()
        step()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    table = profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=90)
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"one micro-batch and an optimizer step under the profiler: {1e3 * seconds:.1f} ms\n{table}\n")
