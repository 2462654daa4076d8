"""The weights that a vLLM worker computes with, under Hugging Face's names. Runs inside vLLM's worker process.

vLLM fuses q, k and v into one matrix, gate and up into another, and splits both over tensor-parallel ranks. Here each
fused matrix is cut into the parts that the trainer knows, with the place of each part in the whole tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from finecut.trainer.rollout.checksums import Checksums, Part


@dataclasses.dataclass(frozen=True)
class Held:
    """A part that this rank has; `speaks`: for its replicas on other ranks, too."""

    part: Part
    speaks: bool = True


def weight_checksums(model: nn.Module) -> dict[str, int]:
    """What this rank's memory adds to the checksum of each tensor: replicas count once over all ranks."""
    found = Checksums()
    for one in held(model):
        if one.speaks:
            found.add(one.part)
    return found.settle()


def held(model: nn.Module) -> Iterator[Held]:
    """All parameters of the model, cut into parts of Hugging Face's tensors.

    A parameter whose layout is not known here keeps vLLM's own name, which no tensor of the trainer has, so that
    a comparison shows it rather than skips it.
    """
    fused = getattr(model, "packed_modules_mapping", {})
    # A tied head is the embedding's own parameter and comes once: named_parameters leaves out duplicates.
    for name, parameter in model.named_parameters():
        module_name, _, kind = name.rpartition(".")
        module = model.get_submodule(module_name)
        # With adapters vLLM wraps the layer; the weights are the wrapped layer's.
        module_name = module_name.removesuffix(".base_layer")
        parent, _, leaf = module_name.rpartition(".")
        tensor = parameter.data
        if leaf in fused and hasattr(module, "num_kv_head_replicas"):
            yield from _query_key_value(parent, fused[leaf], kind, module, tensor)
        elif leaf in fused and hasattr(module, "output_sizes"):
            yield from _merged_columns(parent, fused[leaf], kind, module, tensor)
        elif hasattr(module, "shard_indices"):
            yield from _vocabulary(f"{module_name}.{kind}", module, tensor)
        elif hasattr(module, "input_size_per_partition") and hasattr(module, "tp_size"):
            yield from _linear(f"{module_name}.{kind}", module, tensor)
        else:
            yield from _replicated(f"{module_name}.{kind}", tensor)


def _query_key_value(parent: str, leaves: list[str], kind: str, module: Any, tensor: Tensor) -> Iterator[Held]:
    sizes = [module.num_heads, module.num_kv_heads, module.num_kv_heads]
    totals = [module.total_num_heads, module.total_num_kv_heads, module.total_num_kv_heads]
    # Each key head lies on `num_kv_head_replicas` ranks; the first of them speaks for it.
    replicas = module.num_kv_head_replicas
    shards = [module.tp_rank, module.tp_rank // replicas, module.tp_rank // replicas]
    speak = [True, module.tp_rank % replicas == 0, module.tp_rank % replicas == 0]
    first = 0
    for leaf, size, total, shard, speaks in zip(leaves, sizes, totals, shards, speak, strict=True):
        rows = size * module.head_size
        part = tensor[first : first + rows]
        yield _rows(f"{parent}.{leaf}.{kind}", part, shard * rows, total * module.head_size, speaks)
        first += rows


def _merged_columns(parent: str, leaves: list[str], kind: str, module: Any, tensor: Tensor) -> Iterator[Held]:
    first = 0
    for leaf, total in zip(leaves, module.output_sizes, strict=True):
        rows = total // module.tp_size
        yield _rows(f"{parent}.{leaf}.{kind}", tensor[first : first + rows], module.tp_rank * rows, total)
        first += rows


def _vocabulary(name: str, module: Any, tensor: Tensor) -> Iterator[Held]:
    """Rows of the original vocabulary only: vLLM pads it for itself."""
    indices = module.shard_indices
    rows = indices.org_vocab_end_index - indices.org_vocab_start_index
    if rows > 0:
        yield _rows(name, tensor[:rows], indices.org_vocab_start_index, module.org_vocab_size)


def _linear(name: str, module: Any, tensor: Tensor) -> Iterator[Held]:
    columns = getattr(module, "input_size", tensor.shape[-1])
    if tensor.ndim == 2 and module.input_size_per_partition < columns:  # split over inputs
        offset = module.tp_rank * module.input_size_per_partition
        yield Held(Part(name, tensor, (0, offset), (tensor.shape[0], columns)))
    elif module.tp_size > 1 and getattr(module, "output_size_per_partition", 0) < module.output_size:
        yield _rows(name, tensor, module.tp_rank * tensor.shape[0], module.output_size)
    else:
        yield _rows(name, tensor, 0, tensor.shape[0], module.tp_rank == 0)


def _replicated(name: str, tensor: Tensor) -> Iterator[Held]:
    from vllm.distributed import get_tensor_model_parallel_rank

    speaks = get_tensor_model_parallel_rank() == 0
    yield _rows(name, tensor, 0, tensor.shape[0] if tensor.ndim else 1, speaks)


def _rows(name: str, tensor: Tensor, first: int, total: int, speaks: bool = True) -> Held:
    tensor = tensor if tensor.ndim else tensor[None]
    return Held(Part(name, tensor, (first,) + (0,) * (tensor.ndim - 1), (total, *tensor.shape[1:])), speaks)
