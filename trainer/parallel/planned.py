"""The planner's questions in the trainer's terms: this rank's device, its settings, and what AUTO chooses."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import torch

from finecut.proto.config import UserError
from finecut.trainer.config import ActivationCheckpointing, Precision, TrainingConfig
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.lora_config import LoraConfig
from finecut.trainer.parallel import precision as number_formats
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.planning import gpus, proposals
from finecut.trainer.planning.gpus import Device
from finecut.trainer.planning.workload import Frozen, Layout, Recompute, Workload


def workload(
    decoder: DecoderConfig,
    lora: LoraConfig | None,
    training: TrainingConfig,
    precision: Precision,
    block_size: int,
    devices: Devices,
    frozen: Sequence[Frozen] = (),
    num_outputs: int | None = None,
) -> Workload:
    """What is trained on this rank's kind of device; `precision` is resolved, `num_outputs` those of an output head."""
    return Workload(
        config=decoder,
        lora=lora,
        block_size=block_size,
        global_blocks=training.global_blocks,
        device=device_of(devices),
        number_bytes=number_formats.dtype_of(precision).itemsize,
        compiled=training.compile_layers,
        loss_chunk_tokens=training.loss_chunk_tokens,
        frozen=tuple(frozen),
        num_outputs=num_outputs,
        has_dropout=bool(lora and lora.dropout),
    )


def layout(training: TrainingConfig, world_size: int) -> Layout:
    """The configured one."""
    mesh = training.parallelism
    return Layout(
        shard_size=mesh.shard_size or max(1, world_size // (mesh.replicate_size * mesh.tensor_size)),
        replicate_size=mesh.replicate_size,
        tensor_size=mesh.tensor_size,
        offload_optimizer=mesh.offload_optimizer,
        recompute=Recompute[training.activation_checkpointing.name],
        micro_blocks=training.micro_blocks,
    )


def device_of(devices: Devices) -> Device:
    """This rank's device, with the memory that it really has."""
    if devices.device.type != "cuda":
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", devices.world_size))
        cores = max(1, len(os.sched_getaffinity(0)) // ranks)
        return gpus.cpu(cores, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks)
    total = torch.cuda.get_device_properties(devices.device).total_memory
    return gpus.of_driver(torch.cuda.get_device_name(devices.device), total)


def known_device(device: torch.device) -> Device | None:
    """The GPU's kind; None for a CPU, and for kinds that are not in the table."""
    return gpus.of_driver_name(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def chosen(work: Workload, training: TrainingConfig, devices: Devices) -> tuple[TrainingConfig, str]:
    """The training config with the planner's layout, and a line that says which. Collective: rank 0 chooses.

    Raises UserError where no layout is expected to fit.
    """
    per_host = int(os.environ.get("LOCAL_WORLD_SIZE", devices.world_size))
    found = devices.from_main(proposals.best(work, devices.world_size, per_host) if devices.is_main else None)
    if found is None:
        raise UserError(
            f"parallelism.mode: AUTO: no layout of {devices.world_size} x {work.device.name} with"
            f" {work.device.memory / 2**30:.0f} GiB fits {work.global_blocks} blocks of {work.block_size:,} tokens; use"
            " more devices, model.lora, or a smaller packing.block_size"
        )
    mesh = dataclasses.replace(
        training.parallelism,
        shard_size=found.layout.shard_size,
        replicate_size=found.layout.replicate_size,
        tensor_size=found.layout.tensor_size,
        offload_optimizer=found.layout.offload_optimizer,
    )
    taken = dataclasses.replace(
        training,
        parallelism=mesh,
        activation_checkpointing=ActivationCheckpointing[found.layout.recompute.name],
        micro_blocks=found.layout.micro_blocks,
    )
    return taken, (
        f"parallelism AUTO chose {proposals.describe(found.layout)}: {found.memory.total / 2**30:.1f} of"
        f" {work.device.memory / 2**30:.0f} GiB a device, {found.speed.tokens_per_second:,.0f} tokens/s expected"
    )
