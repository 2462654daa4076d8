"""The chunked cross entropy equals torch's own, loss and gradients."""

import pytest
import torch
from torch.nn import functional

from finecut.trainer.ops.cross_entropy import cross_entropy_sum


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


def test_second_backward_raises_rather_than_scaling_twice():
    hidden, weight, targets = tensors(9, 50, 64)
    loss = 2 * cross_entropy_sum(hidden, weight, targets, 4, 50)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
        loss.backward()
