"""AdamW by NVIDIA Apex's fused kernel, on whole parameters or on one rank's shards of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class ApexAdamW(torch.optim.AdamW):
    """torch's AdamW with Apex's kernel in `step`.

    Apex's own FusedAdam does not know DTensors and keeps one step number a group; this one has torch's state, so that a
    checkpoint of the one is a checkpoint of the other.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update. `closure` is not supported."""
        assert closure is None
        import amp_C
        from apex.multi_tensor_apply import multi_tensor_applier

        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not trained:
                continue
            states = [self._state_of(parameter) for parameter in trained]
            for state in states:
                state["step"] += 1
            lists = [
                [_local(parameter.grad) for parameter in trained],
                [_local(parameter) for parameter in trained],
                [_local(state["exp_avg"]) for state in states],
                [_local(state["exp_avg_sq"]) for state in states],
            ]
            beta1, beta2 = group["betas"]
            # On the host, as with AdamW(foreach=True): Apex takes a number.
            step = int(states[0]["step"])
            overflow = torch.zeros(1, dtype=torch.int32, device=lists[0][0].device)
            settings = (float(group["lr"]), beta1, beta2, group["eps"], step, 1, 1, group["weight_decay"])
            multi_tensor_applier(amp_C.multi_tensor_adam, overflow, lists, *settings)

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
