"""Says in plain words why a GPU's memory did not do: what was planned, what was used, and what to change."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch

from finecut.proto.config import UserError
from finecut.trainer.config import ActivationCheckpointing, TrainingConfig
from finecut.trainer.parallel import planned
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.planning import memory
from finecut.trainer.planning.memory import Memory
from finecut.trainer.planning.workload import Workload


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """What one rank needs by formula, and the settings that it follows from."""

    needed: Memory
    micro_tokens: int
    lora: bool
    training: TrainingConfig


def plan(work: Workload, training: TrainingConfig, devices: Devices) -> MemoryPlan:
    """What training needs on this rank; `devices` are arranged."""
    needed = memory.plan(work, planned.layout(training, devices.world_size))
    return MemoryPlan(needed, training.micro_blocks * work.block_size, work.lora is not None, training)


@contextlib.contextmanager
def explained(plan: MemoryPlan, device: torch.device) -> Iterator[None]:
    """Turns an allocator's error into a UserError that tells all of it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(describe(plan, device, str(error))) from error


def describe(plan: MemoryPlan, device: torch.device, error: str) -> str:
    """The whole sentence. `error` is the allocator's, whose first two sentences say how much was asked for."""
    asked = ". ".join(error.removeprefix("CUDA out of memory. ").split(". ")[:1])
    held = ", ".join(f"{name} {_gib(size)}" for name, size in plan.needed.parts().items())
    return (
        f"out of memory on {device}: {asked}. Planned for this rank: {_gib(plan.needed.total)} GiB ({held};"
        f" micro-batches of {plan.micro_tokens:,} tokens). {_used(device)}To fit: {'; '.join(_remedies(plan))}"
    )


def _used(device: torch.device) -> str:
    if device.type != "cuda" or not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info(device)
    held, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    others = total - free - reserved
    return (
        f"Used: {_gib(held)} GiB held at the time, {_gib(torch.cuda.max_memory_allocated(device))} at most,"
        f" {_gib(reserved - held)} cut up and free, {_gib(others)} by other programs and the driver, of {_gib(total)}. "
    )


def _remedies(plan: MemoryPlan) -> Iterator[str]:
    """What would help, from what costs least; only what is not done yet."""
    training = plan.training
    if not training.parallelism.is_automatic:
        yield "parallelism.mode: AUTO, which chooses what fits"
    if training.micro_blocks > 1:
        yield f"batch.micro_blocks: 1 instead of {training.micro_blocks} (the gradient stays the same)"
    mode = training.activation_checkpointing
    if mode is ActivationCheckpointing.OFF:
        yield (
            "activation_checkpointing: FULL"
            if training.compile_layers
            else "activation_checkpointing: SELECTIVE, or FULL"
        )
    elif mode is ActivationCheckpointing.SELECTIVE:
        yield "activation_checkpointing: FULL"
    if training.parallelism.replicate_size > 1:
        yield "parallelism.replicate_size: 1, so that more ranks share one copy"
    if not plan.lora:
        if not training.parallelism.offload_optimizer:
            yield "parallelism.offload_optimizer: true"
        yield "model.lora, which trains adapters only"
    yield "more GPUs, over which parallelism.shard_size spreads parameters, gradients and optimizer"
    yield "a smaller packing.block_size"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
