"""Cross entropy of a Gemma-2 2B head: error against FP64, time beside that of its three matrix products, memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from finecut.tools.gpu_bench.timing import extra_bytes, milliseconds
from finecut.trainer.ops.cross_entropy import HeadConfig, cross_entropy_sum, token_log_probabilities

TOKENS, HIDDEN, VOCABULARY = 8_192, 2_304, 256_000
_CHECKED_TOKENS = 1_500


def _inputs(tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(tokens, HIDDEN, generator=generator, device="cuda").to(dtype).requires_grad_()
    weight = (torch.randn(VOCABULARY, HIDDEN, generator=generator, device="cuda") * 0.02).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (tokens,), generator=generator, device="cuda")
    return hidden, weight, targets


def errors(dtype: torch.dtype, soft_cap: float | None, chunk: int | None) -> dict[str, float]:
    """Relative errors of loss, log-probabilities and gradients against FP64 on the same inputs."""
    hidden, weight, targets = _inputs(_CHECKED_TOKENS, dtype)
    targets[::3] = -100
    exact = _exact(hidden, weight, targets, soft_cap)
    scale = 1024.0 if dtype == torch.float16 else 1.0
    loss = cross_entropy_sum(hidden, weight, targets, chunk, VOCABULARY, soft_cap=soft_cap, gradient_scale=scale)
    hidden_grad, weight_grad = torch.autograd.grad(loss * scale, (hidden, weight))
    chosen = token_log_probabilities(hidden, weight, targets, HeadConfig(VOCABULARY, chunk, soft_cap))
    rl_hidden_grad, rl_weight_grad = torch.autograd.grad(-chosen.sum(), (hidden, weight))
    return {
        "loss": abs(loss.item() - exact[0].item()) / exact[0].item(),
        "hidden": _relative(hidden_grad / scale, exact[1]),
        "weight": _relative(weight_grad / scale, exact[2]),
        "log-probability": abs(chosen.sum().item() + exact[0].item()) / exact[0].item(),
        "its hidden": _relative(rl_hidden_grad, exact[1]),
        "its weight": _relative(rl_weight_grad, exact[2]),
    }


def _exact(hidden: Tensor, weight: Tensor, targets: Tensor, soft_cap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients in FP64, by slices of tokens."""
    hidden64, weight64 = (x.detach().double().requires_grad_() for x in (hidden, weight))
    total = torch.zeros((), dtype=torch.float64, device="cuda")
    for begin in range(0, len(targets), 250):
        logits = hidden64[begin : begin + 250] @ weight64.T
        if soft_cap is not None:
            logits = soft_cap * torch.tanh(logits / soft_cap)
        loss = functional.cross_entropy(logits, targets[begin : begin + 250], reduction="sum")
        loss.backward()
        total += loss.detach()
    assert hidden64.grad is not None and weight64.grad is not None
    return total, hidden64.grad, weight64.grad


def _relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def measure(chunk: int | None) -> dict[str, float]:
    """Milliseconds of forward with backward, of the three products, and GB beside inputs and gradients, in BF16."""
    hidden, weight, targets = _inputs(TOKENS, torch.bfloat16)

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(cross_entropy_sum(hidden, weight, targets, chunk, VOCABULARY), (hidden, weight))

    gradients = sum(x.numel() * x.element_size() for x in (hidden, weight))
    return {"ms": milliseconds(step, 5, 2), "GB": (extra_bytes(step) - gradients) / 1e9}


def products_ms() -> float:
    """The three matrix products alone: logits of 2,048 tokens at a time, as many as one chunk has."""
    hidden, weight, _ = (x.detach() for x in _inputs(TOKENS, torch.bfloat16))
    slope = torch.randn(2_048, VOCABULARY, device="cuda", dtype=torch.bfloat16)
    part = hidden[:2_048]

    def products() -> None:
        for _ in range(TOKENS // 2_048):
            part @ weight.T
            slope @ weight
            slope.T @ part

    return milliseconds(products, 5, 2)
