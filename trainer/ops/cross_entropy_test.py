"""The chunked cross entropy equals torch's own, loss and gradients."""

import pytest
import torch
from torch.nn import functional

from finecut.trainer.ops.cross_entropy import HeadConfig, TrainedTokens, cross_entropy_sum, token_log_probabilities


def tensors(tokens: int, vocabulary: int, padded: int, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 16, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(padded, 16, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    targets[::3] = -100
    return hidden, weight, targets


@pytest.mark.parametrize("chunk_tokens", [1, 7, 20, 1000])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_equals_torch_with_gradients(chunk_tokens, scale):
    hidden, weight, targets = tensors(31, 50, 64)
    got = cross_entropy_sum(hidden, weight, targets, chunk_tokens, 50)
    want = functional.cross_entropy(hidden @ weight[:50].T, targets, reduction="sum", ignore_index=-100)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    got_gradients = torch.autograd.grad(scale * got, (hidden, weight))
    want_gradients = torch.autograd.grad(scale * want, (hidden, weight))
    for a, b in zip(got_gradients, want_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gradients_equal_finite_differences():
    hidden, weight, targets = tensors(5, 10, 12)
    loss = cross_entropy_sum(hidden, weight, targets, 2, 10)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    for tensor, gradient in zip((hidden, weight), gradients, strict=True):
        for i in range(0, tensor.numel(), 7):
            losses = []
            for step in (1e-6, -1e-6):
                moved = tensor.detach().clone()
                moved.view(-1)[i] += step
                pair = (moved, weight) if tensor is hidden else (hidden, moved)
                losses.append(cross_entropy_sum(*pair, targets, 2, 10).item())
            slope = (losses[0] - losses[1]) / 2e-6
            assert gradient.view(-1)[i].item() == pytest.approx(slope, abs=1e-6)


def test_padded_rows_get_no_gradient_even_when_they_are_not_zero():
    hidden, weight, targets = tensors(9, 50, 64)
    cross_entropy_sum(hidden, weight, targets, 4, 50).backward()
    assert weight.grad[50:].abs().max() == 0
    assert weight.grad[:50].abs().min() > 0


def test_no_target_gives_zero_loss_and_zero_gradients():
    hidden, weight, _ = tensors(4, 50, 64)
    loss = cross_entropy_sum(hidden, weight, torch.full((4,), -100), 2, 50)
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad.abs().max() == 0 and weight.grad.abs().max() == 0


def test_frozen_head_gets_no_gradient_and_does_not_change_that_of_hidden():
    hidden, weight, targets = tensors(9, 50, 64)
    (want,) = torch.autograd.grad(cross_entropy_sum(hidden, weight, targets, 4, 50), hidden)
    frozen = weight.detach()
    (got,) = torch.autograd.grad(cross_entropy_sum(hidden, frozen, targets, 4, 50), hidden)
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_sums_in_fp32(dtype):
    hidden, weight, targets = tensors(3000, 50, 64, dtype)
    loss = cross_entropy_sum(hidden, weight, targets, 64, 50)
    exact = functional.cross_entropy(hidden.double() @ weight[:50].double().T, targets, reduction="sum")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=2e-3)
    got = torch.autograd.grad(loss, weight)[0].double()
    want = torch.autograd.grad(exact, weight)[0].double()
    # One rounding of the result, not one for each of 47 chunks.
    assert (got - want).norm() / want.norm() < 4 * torch.finfo(dtype).eps


def plain_log_probabilities(hidden, weight, targets, config: HeadConfig):
    """The definition, all logits at once."""
    logits = hidden @ weight[: config.vocabulary_size].T
    if config.soft_cap is not None:
        logits = config.soft_cap * torch.tanh(logits / config.soft_cap)
    chosen = (logits / config.temperature).log_softmax(-1).gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return torch.where(targets >= 0, chosen, 0)


@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_token_weights_soft_cap_and_gradient_scale(soft_cap):
    hidden, weight, targets = tensors(31, 50, 64)
    weights = torch.rand(31, generator=torch.Generator().manual_seed(1))
    settings = {"token_weights_T": weights, "soft_cap": soft_cap, "gradient_scale": 0.125}
    got = cross_entropy_sum(hidden, weight, TrainedTokens.of(targets), 8, 50, **settings)
    want = -(plain_log_probabilities(hidden, weight, targets, HeadConfig(50, soft_cap=soft_cap)) * weights).sum()
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    for factor in (0.125, 0.7):  # announced, and not
        got = cross_entropy_sum(hidden, weight, targets, 8, 50, **settings)
        got_gradients = torch.autograd.grad(factor * got, (hidden, weight))
        want_gradients = torch.autograd.grad(factor * want, (hidden, weight), retain_graph=True)
        for a, b in zip(got_gradients, want_gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "config", [HeadConfig(50), HeadConfig(50, 4, soft_cap=3.0), HeadConfig(50, 7, temperature=0.6)]
)
def test_token_log_probabilities_and_their_gradients(config):
    hidden, weight, targets = tensors(31, 50, 64)
    direction = torch.randn(31, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = token_log_probabilities(hidden, weight, targets, config)
    want = plain_log_probabilities(hidden, weight, targets, config)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    assert got[targets < 0].abs().max() == 0
    got_gradients = torch.autograd.grad((got * direction).sum(), (hidden, weight))
    want_gradients = torch.autograd.grad((want * direction).sum(), (hidden, weight))
    for a, b in zip(got_gradients, want_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_fp16_keeps_slopes_that_fp16_itself_would_lose():
    """One token among 64,000: each wrong one has a slope of 1.6e-5, subnormal in FP16; a loss scale comes too late."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 16, generator=generator).half().requires_grad_()
    weight = (0.02 * torch.randn(64_000, 16, generator=generator)).half().requires_grad_()
    targets, scale = torch.tensor([1, 2, 3, 4]), 1024.0
    loss = cross_entropy_sum(hidden, weight, targets, None, 64_000, gradient_scale=scale)
    got = torch.autograd.grad(scale * loss, weight)[0].double()
    exact = functional.cross_entropy(hidden.double() @ weight.double().T, targets, reduction="sum")
    want = torch.autograd.grad(scale * exact, weight)[0].double()
    wrong = torch.ones(64_000, dtype=torch.bool)
    wrong[targets] = False
    assert (got - want)[wrong].norm() / want[wrong].norm() < torch.finfo(torch.float16).eps


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_fp16_log_probabilities_take_gradients_of_any_size(size):
    hidden, weight, targets = tensors(31, 50, 64, torch.float16)
    direction = size * torch.rand(31, generator=torch.Generator().manual_seed(1))
    want = plain_log_probabilities(hidden.double(), weight.double(), targets, HeadConfig(50))
    (want_gradient,) = torch.autograd.grad((want * direction).sum(), hidden)
    got = token_log_probabilities(hidden, weight, targets, HeadConfig(50, 8))
    (got_gradient,) = torch.autograd.grad((got * direction).sum(), hidden)
    error = (got_gradient - want_gradient).double().norm() / want_gradient.double().norm()
    assert error < (2e-3 if size >= 1 else 0.05)  # results below 6e-5 are subnormal themselves


def test_chunks_of_an_unset_size_fit_a_gibibyte():
    weight = torch.empty(256_000, 1, dtype=torch.bfloat16, device="meta")
    assert HeadConfig(256_000).chunk_of(weight) == 2_048
    assert HeadConfig(256_000, 100).chunk_of(weight) == 100
    assert HeadConfig(10**8).chunk_of(torch.empty(10**8, 1, device="meta")) == 128


def test_second_backward_raises_rather_than_scaling_twice():
    hidden, weight, targets = tensors(9, 50, 64)
    loss = 2 * cross_entropy_sum(hidden, weight, targets, 4, 50)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
        loss.backward()
