"""Says in plain words why a GPU's memory did not do: what was planned, what was used, and what to change.

Symbols: L layers, T tokens of a micro-batch, D hidden size, I intermediate size, Q and G widths of queries and of keys.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import torch

from finecut.proto.config import UserError
from finecut.trainer.config import ActivationCheckpointing, Precision, TrainingConfig
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.lora import LoraConfig, apply_lora
from finecut.trainer.parallel.process_group import Devices

_FP32_BYTES = 4


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes that one rank needs by formula, and the settings that they follow from."""

    parameters: int  # sharded FP32 parameters, and the largest unit gathered for computing
    gradients: int
    optimizer: int
    activations: int  # of one micro-batch, and the logits of one chunk
    frozen: int  # models beside the trained one: a reference, a teacher
    micro_tokens: int
    lora: bool
    training: TrainingConfig
    data_size: int

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.frozen


def plan(
    decoder: DecoderConfig,
    lora: LoraConfig | None,
    training: TrainingConfig,
    precision: Precision,
    block_size: int,
    devices: Devices,
    frozen: Sequence[DecoderConfig] = (),
) -> MemoryPlan:
    """What training needs on this rank, with `frozen` models beside the trained one; `devices` are arranged."""
    with torch.device("meta"):
        model = Decoder(decoder)
        if lora:
            apply_lora(model, lora)
    parallelism = training.parallelism
    on_group = devices.world_size // parallelism.replicate_size  # ranks that share one copy
    number_bytes = _FP32_BYTES if precision is Precision.FP32 else 2
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    in_layers = sum(p.numel() for p in model.layers.parameters())
    gathered = max(total - in_layers, in_layers // decoder.num_layers) + in_layers // decoder.num_layers
    # Micro-batches but the last add up whole gradients: ranks exchange them once a step.
    is_accumulated = training.global_blocks > training.micro_blocks * devices.data_size
    gradient_ranks = parallelism.tensor_size if is_accumulated else on_group
    micro_tokens = training.micro_blocks * block_size
    return MemoryPlan(
        # Frozen ones are kept in the type that they are computed in.
        parameters=(_FP32_BYTES * trained + number_bytes * (total - trained)) // on_group
        + number_bytes * gathered // parallelism.tensor_size,
        gradients=_FP32_BYTES * trained // gradient_ranks,
        optimizer=0 if parallelism.offload_optimizer else 2 * _FP32_BYTES * trained // on_group,
        activations=_activations(decoder, training, micro_tokens, number_bytes),
        frozen=sum(_frozen(model, number_bytes, on_group, parallelism.tensor_size) for model in frozen),
        micro_tokens=micro_tokens,
        lora=lora is not None,
        training=training,
        data_size=devices.data_size,
    )


def _frozen(decoder: DecoderConfig, number_bytes: int, on_group: int, split: int) -> int:
    """Bytes of a model that does not learn, in the type it is computed in; its largest unit is gathered in turn."""
    with torch.device("meta"):
        model = Decoder(decoder)
    total = sum(p.numel() for p in model.parameters())
    in_layers = sum(p.numel() for p in model.layers.parameters())
    return number_bytes * (total // on_group + (total - in_layers + in_layers // decoder.num_layers) // split)


def _activations(decoder: DecoderConfig, training: TrainingConfig, T: int, number_bytes: int) -> int:
    """Bytes kept for the backward pass. Norms, residuals and layers' inputs are whole on each tensor-parallel rank."""
    split = training.parallelism.tensor_size
    D, I_split = decoder.hidden_size, decoder.intermediate_size // split
    Q, G = (n * decoder.head_size // split for n in (decoder.num_heads, decoder.num_key_heads))
    products = 2 * Q + 2 * G + 2 * I_split + 2 * D  # q, attention's output, k, v, gate, up, o, down
    # Besides the products: inputs of both norms in FP32, their outputs, q and k before rotation, the gated product.
    everything = products + 2 * D * (_FP32_BYTES // number_bytes) + 2 * D + Q + G + 2 * I_split
    a_token = {
        ActivationCheckpointing.OFF: decoder.num_layers * everything,
        ActivationCheckpointing.SELECTIVE: decoder.num_layers * (products + D) + everything,
        ActivationCheckpointing.FULL: decoder.num_layers * D + everything,
    }[training.activation_checkpointing]
    vocabulary = decoder.padded_vocabulary_size // split
    chunk = min(T, training.loss_chunk_tokens or 2**30 // (vocabulary * number_bytes))  # None: what fits 1 GiB
    # Hidden states and their gradient; logits of one chunk, and the slope in their place.
    head = 2 * T * D * number_bytes + chunk * vocabulary * number_bytes
    return T * a_token * number_bytes + head


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
    parts = (("parameters", plan.parameters), ("gradients", plan.gradients), ("optimizer", plan.optimizer))
    return (
        f"out of memory on {device}: {asked}. Planned for this rank: {_gib(plan.total)} GiB ("
        + ", ".join(f"{name} {_gib(size)}" for name, size in parts)
        + (f", frozen models {_gib(plan.frozen)}" if plan.frozen else "")
        + f", activations of {plan.micro_tokens:,} tokens about {_gib(plan.activations)}). {_used(device)}"
        f"To fit: {'; '.join(_remedies(plan))}"
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
