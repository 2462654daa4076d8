"""Tensor parallelism (Shoeybi et al., 2019): which parameter is split how, and where a layer's parts are summed.

    x on every rank --> q, k, v | gate, up   rows of the weight: each rank its own heads or channels
                    --> o       | down       columns of the weight: each rank a part of every output
                    --> sum over the group   x on every rank again

Each expert of a mixture is split like a feed-forward layer, and every rank routes all tokens. The embedding and the
head are split by vocabulary. Norms and scalar heads are whole on every rank.

Parameters become DTensors, so that FSDP2, checkpoints and exports know the whole. Modules compute on plain tensors:
while FSDP2 has a parameter gathered, its attribute gives this rank's part, and kernels need not know of any of this.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.nn import functional

from finecut.proto.config import UserError
from finecut.trainer.ops.tensor_collectives import sum_backward, sum_forward, sum_parameter_gradient
from finecut.trainer.ops.vocabulary_parallel import VocabularySlice

# Linear layers by name: split by output, by output where there are enough key heads, by input, by vocabulary.
_COLUMNS = ("q_proj", "gate_proj", "up_proj")
_KEYS = ("k_proj", "v_proj")
_ROWS = ("o_proj", "down_proj")
_VOCABULARY = ("embedding", "head")
# Norms of single heads: the whole weight on every rank, but each rank's heads alone make its gradient.
_HEAD_NORMS = ("q_norm", "k_norm")
# The stacked weights [experts, out, in] of a mixture.
_EXPERTS = {"gate_proj": Shard(1), "up_proj": Shard(1), "down_proj": Shard(2)}


@dataclasses.dataclass(frozen=True)
class _Split:
    """How a parameter lies on the group, and what of its local part the module computes with."""

    placement: Placement
    view: Callable[[Tensor], Tensor] = lambda local: local


@dataclasses.dataclass(frozen=True)
class _Group:
    """The tensor-parallel group, and this rank's place in it; constants to torch.compile."""

    mesh: DeviceMesh
    size: int
    rank: int
    name: str

    @classmethod
    def of(cls, mesh: DeviceMesh) -> _Group:
        return cls(mesh, mesh.size(), mesh.get_local_rank(), mesh.get_group().group_name)


def split_model(model: nn.Module, mesh: DeviceMesh) -> None:
    """Splits a decoder on the meta device over the one-dimensional `mesh`, in place; before FSDP2.

    Raises UserError for a model with parameters that it does not know how to split.
    """
    group = _Group.of(mesh)
    unknown: list[str] = []
    for name, module in list(model.named_modules()):
        kind = name.rpartition(".")[2]
        splits = {}
        for parameter, value in module.named_parameters(recurse=False):
            split = _split_of(kind, parameter, value, model, group)
            if split is None:
                unknown.append(f"{name}.{parameter}")
            else:
                splits[parameter] = split
        if splits:
            _distribute(module, splits, group)
            _compute_locally(module, splits, _overrides(kind, group))
        if kind in _ROWS and isinstance(getattr(module, "dropout", None), nn.Dropout):
            module.dropout = _SlicedDropout(module.dropout.p, group)
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UserError(
            f"training.parallelism.tensor_parallel_size: {group.size}: {', '.join(unknown[:3])}{more} of this model"
            " cannot be split; leave it unset"
        )
    for block in _blocks(model):
        block.register_forward_pre_hook(functools.partial(_enter_block, group=group))
        block.register_forward_hook(functools.partial(_leave_block, group=group))
    rows = model.config.padded_vocabulary_size // group.size
    model.vocabulary_slice = VocabularySlice(rows * group.rank, group.name)


def _split_of(kind: str, parameter: str, value: Tensor, model: nn.Module, group: _Group) -> _Split | None:
    """How a module of this kind splits that parameter; None for what is not known."""
    summed = functools.partial(sum_parameter_gradient, group_name=group.name)
    if kind in _KEYS and model.config.num_key_heads < group.size:
        return _key_split(parameter, value, model.config.num_key_heads, group)
    if kind in _COLUMNS + _KEYS:
        # Every rank has all of A, and its part of B makes a part of A's gradient.
        columns = {"weight": _Split(Shard(0)), "bias": _Split(Shard(0)), "lora_b": _Split(Shard(0))}
        return (columns | {"lora_a": _Split(Replicate(), summed)}).get(parameter)
    if kind in _ROWS:
        # What every rank adds before the sum must be its share: B applies to a part, the bias is divided.
        bias = _Split(Replicate(), lambda local: summed(local) / group.size)
        rows = {"weight": _Split(Shard(1)), "bias": bias, "lora_a": _Split(Shard(1))}
        return (rows | {"lora_b": _Split(Replicate(), summed)}).get(parameter)
    if kind in _VOCABULARY:
        return _Split(Shard(0)) if parameter == "weight" else None
    if kind == "experts":
        return _Split(_EXPERTS[parameter])
    if kind == "score" and model.output_head.is_scalar:
        return _Split(Replicate())  # one row: every rank has it, and all of x
    # A router weighs outputs of which each rank has a part, and so does each rank's gradient.
    if kind in _HEAD_NORMS or kind == "router":
        return _Split(Replicate(), summed)
    return _Split(Replicate()) if kind.endswith("norm") and value.ndim == 1 else None


def _key_split(parameter: str, value: Tensor, num_key_heads: int, group: _Group) -> _Split | None:
    """Fewer key heads than ranks: every rank has them all, and computes the one that its query heads look at."""
    summed = functools.partial(sum_parameter_gradient, group_name=group.name)
    if parameter == "lora_a":
        return _Split(Replicate(), summed)
    rows = value.shape[0] // num_key_heads
    first = group.rank * num_key_heads // group.size * rows
    return _Split(Replicate(), lambda local: summed(local)[first : first + rows])


def _distribute(module: nn.Module, splits: dict[str, _Split], group: _Group) -> None:
    for name, split in splits.items():
        parameter = getattr(module, name)
        assert parameter.is_meta, "the weights come after the split"
        value = distribute_tensor(parameter.detach(), group.mesh, [split.placement], src_data_rank=None)
        setattr(module, name, nn.Parameter(value, requires_grad=parameter.requires_grad))


def _compute_locally(module: nn.Module, splits: dict[str, _Split], overrides: dict[str, Callable[..., Any]]) -> None:
    """Gives the module a class whose parameters read as this rank's part; it keeps its name and its `_parameters`."""
    views = {name: property(functools.partial(_read, name, split.view)) for name, split in splits.items()}
    base = type(module)
    module.__class__ = type(f"TensorParallel{base.__name__}", (base,), views | overrides)


def _read(name: str, view: Callable[[Tensor], Tensor], module: nn.Module) -> Tensor:
    parameter = module._parameters[name]
    assert isinstance(parameter, DTensor), name
    # FSDP2 holds a parameter on the whole mesh while it is sharded, and on ours, of one dimension, while it is gathered
    # for computing.
    return view(parameter.to_local()) if parameter.device_mesh.ndim == 1 else parameter


def _overrides(kind: str, group: _Group) -> dict[str, Callable[..., Any]]:
    return {"forward": functools.partialmethod(_embed, group)} if kind == "embedding" else {}  # type: ignore[dict-item]


def _embed(embedding: nn.Embedding, group: _Group, input_ids_BL: Tensor) -> Tensor:
    """Each rank looks up the tokens of its own rows; the others' are zero, until the sum."""
    weight_VD = embedding.weight
    own_ids_BL = input_ids_BL - weight_VD.shape[0] * group.rank
    is_own_BL = (own_ids_BL >= 0) & (own_ids_BL < weight_VD.shape[0])
    x_BLD = functional.embedding(own_ids_BL.where(is_own_BL, 0), weight_VD)
    return sum_forward(x_BLD * is_own_BL[..., None], group.name)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Modules that go from a whole x to a whole x: attention and feed-forward."""
    for module in model.modules():
        if any(name in (*_ROWS, "experts") for name, _ in module.named_children()):
            yield module


def _enter_block(block: nn.Module, arguments: tuple[Any, ...], group: _Group) -> tuple[Any, ...]:
    return sum_backward(arguments[0], group.name), *arguments[1:]


def _leave_block(block: nn.Module, arguments: tuple[Any, ...], output: Tensor, group: _Group) -> Tensor:
    return sum_forward(output, group.name)


class _SlicedDropout(nn.Module):
    """Dropout on this rank's channels with the mask that one rank would draw for all of them.

    The generators of a group draw the same numbers, so a mask of its own width would repeat from rank to rank.
    """

    def __init__(self, p: float, group: _Group) -> None:
        super().__init__()
        self.p = p
        self._group = group

    def forward(self, x_BLI: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x_BLI
        width = x_BLI.shape[-1]
        mask = functional.dropout(x_BLI.new_ones(*x_BLI.shape[:-1], width * self._group.size), self.p)
        return x_BLI * mask.narrow(-1, width * self._group.rank, width)
