"""One optimizer step, as the supervised recipes share it: accumulate, clip, update; and the held-out loss.

Shapes: B blocks, L tokens a block.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from finecut.trainer.config import OptimizerConfig
from finecut.trainer.data.batches import MicroBatch, TokenCounts
from finecut.trainer.ops import kernels
from finecut.trainer.ops.apex_adamw import ApexAdamW
from finecut.trainer.ops.kernels import Kernels, Op
from finecut.trainer.parallel import gathering
from finecut.trainer.parallel.gradient_norm import total_norm
from finecut.trainer.parallel.offloaded_adamw import OffloadedAdamW
from finecut.trainer.parallel.process_group import Devices


@dataclasses.dataclass(frozen=True)
class StepLoss:
    """Cross entropy a trained token, in nats, and the tokens it was taken over; both over all ranks."""

    mean: float
    tokens: TokenCounts


def adamw(model: nn.Module, config: OptimizerConfig, offload: bool = False) -> torch.optim.AdamW:
    """AdamW over the trained parameters; only matrices decay. `offload`: its moments stay in host memory."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
    }
    groups = [group for group in groups if group["params"]]
    if offload:
        return OffloadedAdamW(groups, **settings)
    if kernels.takes(Op.ADAMW, trained[0]) is Kernels.APEX:
        return ApexAdamW(groups, **settings)
    return torch.optim.AdamW(groups, fused=trained[0].device.type == "cuda", **settings)


def forward_backward(
    model: FSDPModule, micro_batches: list[MicroBatch], loss_scale: float, devices: Devices
) -> StepLoss:
    """Adds the gradients of a whole step, each trained token with the same weight wherever it lies. Collective.

    Every micro-batch's sum is divided by the trained tokens of all micro-batches of all ranks, and FSDP2 sums over
    ranks (see `parallelize`): the gradient is that of one process with one batch. Gradients carry `loss_scale`.
    """
    tokens = _sum_tokens((batch.tokens for batch in micro_batches), devices)
    weight = loss_scale / max(1, tokens.trained)
    loss_sum = torch.zeros((), dtype=torch.float64, device=devices.device)
    for number, batch in enumerate(micro_batches, start=1):
        # Ranks exchange gradients once a step: until then each adds up its own.
        is_last = number == len(micro_batches)
        gathering.begin_micro_batch(model, is_last)
        loss = _loss_sum(model, batch, weight)
        (loss * weight).backward()
        loss_sum += loss.detach()
    return StepLoss(devices.sum_over_data(loss_sum.item())[0] / max(1, tokens.trained), tokens)


def clip_gradients(model: nn.Module, loss_scale: float, max_norm: float) -> float:
    """Takes the loss scale out of the gradients and bounds their global norm. Collective.

    Returns:
      The norm before clipping, the same on every rank. Where it is not finite, the gradients are left as they are.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    total = total_norm(gradients) / loss_scale
    if math.isfinite(total):
        factor = min(1.0, max_norm / (total + 1e-6)) / loss_scale
        if factor != 1.0:
            torch._foreach_mul_(gradients, factor)
    return total


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


@torch.no_grad()
def total_loss(model: FSDPModule, micro_batches: Iterable[MicroBatch], devices: Devices) -> tuple[float, int]:
    """Cross entropy in nats and the trained tokens that it is summed over, of all ranks, no dropout. Collective."""
    model.eval()
    loss_sum = torch.zeros((), dtype=torch.float64, device=devices.device)
    trained = 0
    for batch in micro_batches:
        loss_sum += _loss_sum(model, batch)
        trained += batch.tokens.trained
    model.train()
    gathering.reshard(model)
    loss, num_trained = devices.sum_over_data(loss_sum.item(), trained)
    return loss, int(num_trained)


def _loss_sum(model: nn.Module, batch: MicroBatch, gradient_scale: float = 1.0) -> Tensor:
    ids = (batch.input_ids_BL, batch.position_ids_BL, batch.document_ids_BL, batch.targets_BL)
    return model(*ids, gradient_scale=gradient_scale)


def _sum_tokens(counts: Iterable[TokenCounts], devices: Devices) -> TokenCounts:
    local = sum(counts, TokenCounts())
    return TokenCounts(*(int(total) for total in devices.sum_over_data(local.trained, local.useful, local.padded)))
