"""Which activations of a layer are kept for the backward pass, and which are computed again there."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
import torch._inductor.config
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from finecut.trainer.config import ActivationCheckpointing

# Selective checkpointing keeps the results of matrix products, of attention, and of what ranks have summed: costly to
# compute again, or to send again. Norms, rotations, activations and casts are done again; they only take bandwidth.
_KEPT = (
    "aten.mm",
    "aten.addmm",
    "aten.bmm",
    "aten._grouped_mm",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_fused_attention_overrideable",
    "_c10d_functional.all_reduce",
    "finecut.flash_attention",
    "higher_order.flex_attention",
    "higher_order.inductor_compiled_code",  # what torch.compile made of a function, such as FlexAttention
)


def checkpoint_layers(layers: Iterable[nn.Module], mode: ActivationCheckpointing) -> None:
    """Makes each layer drop activations and compute them again; names of modules and parameters stay as they are."""
    if mode is ActivationCheckpointing.OFF:
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if mode is ActivationCheckpointing.SELECTIVE:
        settings["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
        # Makes what torch.compile generated visible as one operation; FlexAttention would be run again otherwise.
        if hasattr(torch._inductor.config, "wrap_inductor_compiled_regions"):
            torch._inductor.config.wrap_inductor_compiled_regions = True
    for layer in layers:
        layer.forward = functools.partial(checkpoint, layer.forward, **settings)  # type: ignore[method-assign]


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _kept() else CheckpointPolicy.PREFER_RECOMPUTE


@functools.cache
def _kept() -> frozenset[Any]:
    """The operations that this version of torch has."""
    found: set[Any] = set()
    for name in _KEPT:
        space, _, operation = name.partition(".")
        packet = getattr(getattr(torch.ops, space), operation, None)
        if packet is not None:
            found.add(getattr(packet, "default", packet))
    return frozenset(found)
