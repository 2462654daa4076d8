"""Packed attention equals dense attention under the document mask, in FP64, outputs and gradients."""

import pytest
import torch
from torch.nn.attention import flex_attention
from transformers import masking_utils

from finecut.trainer.ops import attention
from finecut.trainer.ops.attention import packed_attention
from finecut.trainer.ops.document_layout import DocumentLayout

# Lengths of a row's documents; a negative one is padding.
ROWS = [[5, 1, 7, 3], [16], [4, 4, 4, -4], [3, -13], [-16]]


def ids(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    documents, positions = [], []
    for row in rows:
        documents.append([-1 if n < 0 else i for i, n in enumerate(row) for _ in range(abs(n))])
        positions.append([0 if n < 0 else p for n in row for p in range(abs(n))])
    return torch.tensor(documents), torch.tensor(positions)


def dense_attention(q, k, v, document_ids, position_ids, *, scale=None, window=None, soft_cap=None):
    """The definition: a softmax over the newest `window` tokens of the same document."""
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    scores = torch.einsum("blhk,bmhk->bhlm", q, k) * (scale or q.shape[-1] ** -0.5)
    if soft_cap:
        scores = soft_cap * (scores / soft_cap).tanh()
    same = document_ids[:, :, None] == document_ids[:, None, :]
    earlier = torch.ones(q.shape[1], q.shape[1]).tril().bool()
    if window:
        earlier &= earlier.triu(1 - window)
    weights = scores.masked_fill(~(same & earlier)[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bhlm,bmhk->blhk", weights, v)


KINDS = [
    {},
    {"scale": 0.5},
    {"window": 1},
    {"window": 3},
    {"window": 16},
    {"soft_cap": 0.7},
    {"scale": 2.0, "window": 5, "soft_cap": 1.5},
]


def tensors(rows: int, length: int, heads: int = 4, key_heads: int = 2, size: int = 8):
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, length, h, size) for h in (heads, key_heads, key_heads)]
    return [torch.randn(s, dtype=torch.float64, generator=generator, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("chunk", [4, 512])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_equals_dense_attention_with_gradients(kind, key_heads, chunk, monkeypatch):
    monkeypatch.setattr(attention, "_CHUNK_QUERIES", chunk)
    document_ids, position_ids = ids(ROWS)
    q, k, v = tensors(len(ROWS), 16, key_heads=key_heads)
    real = (document_ids >= 0)[:, :, None, None]
    direction = torch.randn(q.shape, dtype=q.dtype, generator=torch.Generator().manual_seed(1)) * real

    got = packed_attention(q, k, v, document_ids, position_ids, **kind)
    want = dense_attention(q, k, v, document_ids, position_ids, **kind)
    torch.testing.assert_close(got * real, want * real, rtol=0, atol=1e-12)
    got_gradients = torch.autograd.grad((got * direction).sum(), (q, k, v))
    want_gradients = torch.autograd.grad((want * direction).sum(), (q, k, v))
    for a, b in zip(got_gradients, want_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_padding_is_finite_and_gives_no_gradient_to_documents():
    document_ids, position_ids = ids([[6, 4, -6]])
    q, k, v = tensors(1, 16)
    out = packed_attention(q, k, v, document_ids, position_ids)
    assert out.isfinite().all()
    for gradient in torch.autograd.grad(out[:, 10:].sum(), (q, k, v)):
        assert gradient[:, :10].abs().max() == 0


def test_another_document_never_changes_a_document():
    document_ids, position_ids = ids([[6, 10]])
    q, k, v = (t.detach() for t in tensors(1, 16))
    before = packed_attention(q, k, v, document_ids, position_ids)
    k[:, :6] += 100
    v[:, :6] -= 100
    after = packed_attention(q, k, v, document_ids, position_ids)
    assert torch.equal(before[:, 6:], after[:, 6:])
    assert not torch.equal(before[:, :6], after[:, :6])


def test_position_restart_begins_a_document_although_the_id_stays():
    layout = DocumentLayout.of(torch.tensor([[7, 7, 7, 7, 7]]), torch.tensor([[0, 1, 2, 0, 1]]))
    assert layout.start_BL.tolist() == [[0, 0, 0, 3, 3]]


@pytest.mark.parametrize(
    "rows", [[[300, 20, 1, 63]], [[128, 128, 128]], [[384]], [[100, 200, -84], [1, 383]], [[-384]]]
)
@pytest.mark.parametrize("window", [None, 1, 50, 128, 200])
def test_block_mask_shows_exactly_the_visible_keys(window, rows):
    document_ids, position_ids = ids(rows)
    mask = DocumentLayout.of(document_ids, position_ids).block_mask(window)
    q, k, v = (t.detach() for t in tensors(len(rows), 384, heads=2, key_heads=2))
    got = flex_attention.flex_attention(*(t.transpose(1, 2).float() for t in (q, k, v)), block_mask=mask)
    want = dense_attention(q.float(), k.float(), v.float(), document_ids, position_ids, window=window)
    torch.testing.assert_close(got.transpose(1, 2), want, rtol=1e-4, atol=1e-5)
    # The eager path applies only mask_mod; the compiled one goes by the blocks. Hold the blocks to the mask as well.
    visible = flex_attention.create_mask(mask.mask_mod, len(rows), 1, 384, 384, device="cpu")
    per_block = visible[:, 0].unflatten(2, (3, 128)).unflatten(1, (3, 128)).sum(dim=(2, 4))
    assert torch.equal(blocks(mask.full_kv_num_blocks, mask.full_kv_indices), per_block == 128 * 128)
    assert torch.equal(blocks(mask.kv_num_blocks, mask.kv_indices), (per_block > 0) & (per_block < 128 * 128))


def test_layers_share_the_mask_of_a_window():
    layout = DocumentLayout.of(*ids([[384]]))
    assert layout.block_mask(50) is layout.block_mask(50)
    assert layout.block_mask(50) is not layout.block_mask()


def test_soft_cap_is_one_function_and_the_same_in_blocks():
    """FlexAttention compiles anew for each function that it is given."""
    assert attention.soft_capped_score(5.0) is attention.soft_capped_score(5.0)
    document_ids, position_ids = ids([[100, 156]])
    q, k, v = (t.detach().float() for t in tensors(1, 256, heads=2, key_heads=2))
    got = flex_attention.flex_attention(
        *(t.transpose(1, 2) for t in (q, k, v)),
        score_mod=attention.soft_capped_score(0.5),
        block_mask=DocumentLayout.of(document_ids, position_ids).block_mask(),
    )
    want = dense_attention(q, k, v, document_ids, position_ids, soft_cap=0.5)
    torch.testing.assert_close(got.transpose(1, 2), want, rtol=1e-4, atol=1e-5)


def test_window_counts_keys_as_transformers_does():
    """Its mask lets a query see the keys with key > query - sliding_window."""
    is_visible = masking_utils.sliding_window_causal_mask_function(3)
    first_key = DocumentLayout.of(*ids([[8]])).first_keys(3)[0]
    for query in range(8):
        seen = [key for key in range(8) if is_visible(0, 0, torch.tensor(query), torch.tensor(key))]
        assert seen == list(range(first_key[query], query + 1))


def blocks(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """[B, Q, K]: whether a query block takes a key block."""
    chosen = torch.zeros(indices[:, 0].shape, dtype=torch.bool)
    for row, query in torch.cartesian_prod(torch.arange(chosen.shape[0]), torch.arange(chosen.shape[1])).tolist():
        chosen[row, query, indices[row, 0, query, : counts[row, 0, query]].long()] = True
    return chosen
