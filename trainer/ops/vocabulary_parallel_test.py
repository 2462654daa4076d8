"""The loss over a split head is that over the whole head, with its gradients."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.distributed as dist

from finecut.trainer.ops.cross_entropy import IGNORED, HeadConfig, cross_entropy_sum, token_log_probabilities
from finecut.trainer.ops.vocabulary_parallel import VocabularySlice
from finecut.trainer.parallel import process_group
from finecut.trainer.recipes.testing import run_ranks

RANKS = 4
# tokens, hidden size, vocabulary, rows inside; the last rank of the second case has padding only.
SHAPES = [(37, 8, 120, 128), (5, 16, 90, 128), (16, 8, 128, 128)]


def batch(tokens: int, hidden_size: int, vocabulary: int, rows: int, dtype: torch.dtype, scale: float):
    generator = torch.Generator().manual_seed(tokens)
    hidden_TD = torch.randn(tokens, hidden_size, generator=generator).mul(scale).to(dtype)
    weight_VD = torch.randn(rows, hidden_size, generator=generator).mul(scale).to(dtype)
    targets_T = torch.randint(vocabulary, (tokens,), generator=generator)
    targets_T[::3] = IGNORED
    return hidden_TD, weight_VD, targets_T


def compare(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    rank: int,
    group: str,
    scale: float = 1.0,
    soft_cap: float | None = None,
) -> None:
    hidden_TD, weight_VD, targets_T = batch(*shape, dtype, scale)
    vocabulary, own = shape[2], weight_VD.chunk(RANKS)[rank].clone().requires_grad_()
    first_row = rank * own.shape[0]
    split_hidden_TD = hidden_TD.clone().requires_grad_()
    slice = VocabularySlice(first_row, group)
    loss = cross_entropy_sum(split_hidden_TD, own, targets_T, 7, vocabulary, soft_cap=soft_cap, vocabulary=slice)
    (loss / 11).backward()
    hidden_TD.requires_grad_()
    weight_VD.requires_grad_()
    expected = cross_entropy_sum(hidden_TD, weight_VD, targets_T, 7, vocabulary, soft_cap=soft_cap)
    (expected / 11).backward()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
    torch.testing.assert_close(split_hidden_TD.grad, hidden_TD.grad, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(own.grad, weight_VD.grad.chunk(RANKS)[rank], rtol=tolerance, atol=tolerance)


def compare_log_probabilities(rank: int, group: str) -> None:
    hidden_TD, weight_VD, targets_T = batch(*SHAPES[0], torch.float64, 1.0)
    own = weight_VD.chunk(RANKS)[rank].clone().requires_grad_()
    split_hidden_TD = hidden_TD.clone().requires_grad_()
    config = HeadConfig(SHAPES[0][2], 7, temperature=0.7, slice=VocabularySlice(rank * own.shape[0], group))
    found_T = token_log_probabilities(split_hidden_TD, own, targets_T, config)
    weights_T = torch.linspace(-1, 1, len(found_T), dtype=found_T.dtype)
    (found_T * weights_T).sum().backward()
    hidden_TD.requires_grad_()
    weight_VD.requires_grad_()
    expected_T = token_log_probabilities(hidden_TD, weight_VD, targets_T, dataclasses.replace(config, slice=None))
    (expected_T * weights_T).sum().backward()
    torch.testing.assert_close(found_T, expected_T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(split_hidden_TD.grad, hidden_TD.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(own.grad, weight_VD.grad.chunk(RANKS)[rank], rtol=1e-12, atol=1e-12)


def check(folder: Path) -> None:
    with process_group.connect() as devices:
        rank, group = devices.rank, dist.group.WORLD.group_name
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            for shape in SHAPES:
                compare(shape, dtype, rank, group)
        # Logits of several hundred: without the largest taken off first, their exponentials overflow.
        compare(SHAPES[0], torch.float64, rank, group, scale=20.0)

        compare(SHAPES[0], torch.float32, rank, group, soft_cap=3.0)
        compare_log_probabilities(rank, group)

        hidden_TD, weight_VD, targets_T = batch(*SHAPES[0], torch.float32, 1.0)
        hidden_TD.requires_grad_()
        slice = VocabularySlice(32 * rank, group)
        nothing_T = torch.full_like(targets_T, IGNORED)
        none = cross_entropy_sum(hidden_TD, weight_VD[32 * rank :][:32], nothing_T, 7, 120, vocabulary=slice)
        none.backward()
        assert none.item() == 0 and hidden_TD.grad.count_nonzero() == 0
    (folder / str(rank)).touch()


def test_a_split_head_gives_the_loss_and_gradients_of_a_whole_one(tmp_path):
    run_ranks(RANKS, check, tmp_path)
    assert len(list(tmp_path.iterdir())) == RANKS
