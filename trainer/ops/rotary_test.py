"""Rotation is that of transformers' models and keeps types."""

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from finecut.trainer.ops.rotary import Rotation, rotate


def rotation(length: int, size: int) -> Rotation:
    frequency = 100.0 ** -(torch.arange(size // 2) / (size // 2))
    angle = torch.arange(length)[None, :, None, None] * frequency
    return Rotation(angle.cos(), angle.sin())


def test_equals_transformers():
    q, k = torch.randn(2, 9, 4, 16), torch.randn(2, 9, 2, 16)
    turn = rotation(9, 16)
    cos, sin = (torch.cat([x, x], dim=-1)[:, :, 0] for x in (turn.cos, turn.sin))
    want = apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
    for got, expected in zip(rotate(q, k, turn), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_type_is_kept_and_the_product_with_positions_is_relative(dtype):
    x = torch.randn(1, 1, 1, 16, dtype=torch.float64).to(dtype).expand(1, 12, 1, 16)
    q, k = rotate(x, x, rotation(12, 16))
    assert q.dtype == k.dtype == dtype
    scores = (q[0, :, 0].double() @ k[0, :, 0].double().T).diagonal(offset=3)
    torch.testing.assert_close(scores, scores[:1].expand_as(scores), rtol=0.05, atol=0.05)
