"""Finds the first module that makes a number that is not finite: the step's batch again, with hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from finecut.trainer.models.sharding import local_part, named_parameters, plain_name

NOTHING = "run again with hooks, the batch gave finite numbers: the fault does not repeat; check the hardware"


def first_source(model: nn.Module, run_again: Callable[[], None]) -> str:
    """Says where the first number comes from that is not finite, of the first rank that has one. Collective.

    Args:
      run_again: the forward and backward passes of this rank's part of the step. Collective.
    """
    found = _of_weights(model)
    with _watched(model) as seen:
        run_again()
    shares: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, found or (seen[0] if seen else None))
    for rank, share in enumerate(shares):
        if share is not None:
            return f"first on rank {rank}: {share}"
    return NOTHING


def _of_weights(model: nn.Module) -> str | None:
    """Weights that are broken already explain all that follows."""
    for name, parameter in named_parameters(model):
        if not torch.isfinite(local_part(parameter)).all():
            return f"the weight {name} is not finite; the step before broke it, or the checkpoint"
    return None


@contextlib.contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """Collects modules in the order in which their results, forward or backward, turn out not to be finite.

    Compiled layers are watched as a whole: their parts run as one function.
    """
    seen: list[str] = []
    handles = []

    def note(name: str, what: str, values: Any) -> None:
        if not all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(values)):
            seen.append(f"{what} of {name or 'the whole model'}")

    for raw_name, module in model.named_modules():
        name = plain_name(raw_name)
        forward = _after_forward(name, note)
        handles.append(module.register_forward_hook(forward))
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            handles.append(module.register_full_backward_hook(_after_backward(name, note)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _after_forward(name: str, note: Callable[[str, str, Any], None]) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: Any, result: Any) -> None:
        note(name, "the output", result)

    return hook


def _after_backward(name: str, note: Callable[[str, str, Any], None]) -> Callable[..., None]:
    def hook(module: nn.Module, of_inputs: Any, of_outputs: Any) -> None:
        note(name, "the gradient of the output", of_outputs)
        note(name, "the gradient of the input", of_inputs)

    return hook


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)
