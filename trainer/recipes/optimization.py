"""One optimizer step, as the supervised recipes share it: accumulate, clip, update; and the held-out loss.

What is summed, and over which units, is the recipe's `Objective`.

Shapes: B blocks, L tokens a block.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
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
from finecut.trainer.recipes.objective import CrossEntropy, Objective, add


@dataclasses.dataclass(frozen=True)
class StepLoss:
    """The loss a unit (of cross entropy, nats a trained token), the tokens and the metrics of a step, of all ranks."""

    mean: float
    tokens: TokenCounts
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class TotalLoss:
    """Sums over held-out blocks, of all ranks."""

    loss: float = 0.0
    num_units: int = 0
    sums: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def mean(self) -> float:
        """The loss a unit."""
        return self.loss / max(1, self.num_units)

    def add(self, other: TotalLoss) -> None:
        """Takes in the sums of other blocks."""
        self.loss, self.num_units = self.loss + other.loss, self.num_units + other.num_units
        add(self.sums, other.sums)


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
    model: FSDPModule,
    micro_batches: list[MicroBatch],
    loss_scale: float,
    devices: Devices,
    objective: Objective | None = None,
) -> StepLoss:
    """Adds the gradients of a whole step, each unit with the same weight wherever it lies. Collective.

    Every micro-batch's sum is divided by the units of all micro-batches of all ranks, and FSDP2 sums over ranks (see
    `parallelize`): the gradient is that of one process with one batch. Gradients carry `loss_scale`.

    Args:
      objective: None: cross entropy, whose unit is the trained token.
    """
    objective = objective or CrossEntropy()
    tokens = _sum_tokens((batch.tokens for batch in micro_batches), devices)
    (total,) = devices.sum_over_data(sum(map(objective.num_units, micro_batches)))
    num_units = int(total)
    weight = loss_scale / max(1, num_units)
    loss_sum = torch.zeros((), dtype=torch.float64, device=devices.device)
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(micro_batches, start=1):
        # Ranks exchange gradients once a step: until then each adds up its own.
        is_last = number == len(micro_batches)
        gathering.begin_micro_batch(model, is_last)
        losses = objective.losses(model, batch, weight)
        (losses.loss * weight).backward()
        loss_sum += losses.loss.detach()
        add(sums, losses.sums)
    mean = devices.sum_over_data(loss_sum.item())[0] / max(1, num_units)
    return StepLoss(mean, tokens, objective.metrics(_sum_over_data(sums, devices), num_units))


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
def total_loss(
    model: FSDPModule, micro_batches: Iterable[MicroBatch], devices: Devices, objective: Objective | None = None
) -> TotalLoss:
    """The objective's sums over micro-batches of all ranks, without dropout. Collective."""
    objective = objective or CrossEntropy()
    model.eval()
    loss_sum = torch.zeros((), dtype=torch.float64, device=devices.device)
    num_units = 0
    sums: dict[str, Tensor] = {}
    for batch in micro_batches:
        losses = objective.losses(model, batch, 1.0)
        loss_sum += losses.loss
        num_units += objective.num_units(batch)
        add(sums, losses.sums)
    model.train()
    gathering.reshard(model)
    loss, units = devices.sum_over_data(loss_sum.item(), num_units)
    return TotalLoss(loss, int(units), _sum_over_data(sums, devices))


def _sum_over_data(sums: Mapping[str, Tensor], devices: Devices) -> dict[str, Tensor]:
    """The same names, with sums over the parts of a batch, on the host. Collective."""
    if not sums:
        return {}
    parts = list(sums.values())
    totals = devices.sum_over_data(*torch.cat([part.flatten() for part in parts]).tolist())
    split = torch.tensor(totals, dtype=torch.float64).split([part.numel() for part in parts])
    return {name: total.view(part.shape) for name, total, part in zip(sums, split, parts, strict=True)}


def _sum_tokens(counts: Iterable[TokenCounts], devices: Devices) -> TokenCounts:
    local = sum(counts, TokenCounts())
    return TokenCounts(*(int(total) for total in devices.sum_over_data(local.trained, local.useful, local.padded)))
