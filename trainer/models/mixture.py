"""A mixture of experts as a feed-forward part (Shazeer et al., 2017).

Shapes: B rows, L tokens a row, T = B * L, D hidden size, E experts, C chosen a token, S = T * C token copies sorted by
expert, I intermediate size of an expert.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from finecut.trainer.models.architecture import Experts
from finecut.trainer.ops.swiglu import swiglu


class MixtureOfExperts(nn.Module):
    """Each token goes through its C best experts, whose outputs are summed by the router's weights.

    No token is dropped and nothing is balanced: there is no capacity, and no loss beside the model's own.
    """

    def __init__(self, hidden_size: int, config: Experts) -> None:
        super().__init__()
        self.chosen = config.chosen
        self.normalized = config.normalized
        self.router = nn.Linear(hidden_size, config.count, bias=False)
        self.experts = ExpertWeights(hidden_size, config)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x_TD = x_BLD.flatten(0, 1)
        weight_TC, expert_TC = self.route(x_TD)
        order_S = expert_TC.flatten().argsort(stable=True)
        count_E = torch.bincount(expert_TC.flatten(), minlength=self.router.out_features)
        out_SD = self.experts(x_TD[order_S // self.chosen], count_E)
        # Back to the tokens' order with a gather, whose sum, unlike that of a scatter, has one order.
        out_TCD = out_SD[order_S.argsort()].unflatten(0, expert_TC.shape)
        return (out_TCD * weight_TC[:, :, None]).sum(dim=1).view(x_BLD.shape)

    def route(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Weights, in x's type, and indices of each token's experts, both [T, C]."""
        logits_TE = self.router(x_TD)
        shares_TE = logits_TE.softmax(-1, dtype=torch.promote_types(logits_TE.dtype, torch.float32))
        weight_TC, expert_TC = shares_TE.topk(self.chosen, dim=-1)
        if self.normalized:
            weight_TC = weight_TC / weight_TC.sum(dim=-1, keepdim=True)
        return weight_TC.to(logits_TE.dtype), expert_TC


class ExpertWeights(nn.Module):
    """The weights of all experts of a layer, stacked: gate and up [E, I, D], down [E, D, I]."""

    def __init__(self, hidden_size: int, config: Experts) -> None:
        super().__init__()
        inner = (config.count, config.intermediate_size, hidden_size)
        self.gate_proj = nn.Parameter(torch.empty(inner))
        self.up_proj = nn.Parameter(torch.empty(inner))
        self.down_proj = nn.Parameter(torch.empty(config.count, hidden_size, config.intermediate_size))

    def forward(self, x_SD: Tensor, count_E: Tensor) -> Tensor:
        """Runs the first count_E[0] rows through expert 0, the next through expert 1, and so on."""
        inner_SI = swiglu(grouped_linear(x_SD, self.gate_proj, count_E), grouped_linear(x_SD, self.up_proj, count_E))
        return grouped_linear(inner_SI, self.down_proj, count_E)


def grouped_linear(x_SI: Tensor, weight_EOI: Tensor, count_E: Tensor) -> Tensor:
    """A linear layer whose rows have different weights: the first count_E[0] weight_EOI[0], and so on; [S, O]."""
    weight_EOI = weight_EOI.to(_compute_type(x_SI))
    x_SI = x_SI.to(weight_EOI.dtype)
    if x_SI.is_cuda and x_SI.dtype == torch.bfloat16 and hasattr(torch, "_grouped_mm"):
        return torch._grouped_mm(x_SI, weight_EOI.mT, offs=count_E.cumsum(0, dtype=torch.int32))
    parts = x_SI.split(count_E.tolist())
    # `unbind` rather than indices: its backward is one stack, not a full-size zero tensor for each expert.
    return torch.cat([functional.linear(x, w) for x, w in zip(parts, weight_EOI.unbind(), strict=True)])


def _compute_type(x: Tensor) -> torch.dtype:
    """What autocast makes of x in a matrix product; grouped products are unknown to it."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
