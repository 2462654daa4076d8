"""Where the documents of a packed batch lie, worked out once a batch and shared by every layer.

Shapes: B rows, L tokens a row, Q blocks of BLOCK_TOKENS tokens a row, N documents.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
import torch._dynamo
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import flex_attention

PADDING = -1  # document id of padding
BLOCK_TOKENS = 128  # FlexAttention's own block; smaller ones are slower on every GPU


@dataclasses.dataclass(frozen=True)
class Span:
    """A run of neighbouring tokens, in the batch flattened to B * L tokens."""

    length: int
    is_padding: bool


@dataclasses.dataclass(frozen=True)
class DocumentLayout:
    """Documents of a packed batch.

    A document starts where the document id changes, where the position does not rise by one, and at each row's start.
    A run of padding counts as a document, so that no query is without a key.
    """

    # For each token, the index in its row of the first token of its document; int32.
    start_BL: Tensor
    # Whether the token is padding.
    is_padding_BL: Tensor
    # Where documents begin in the batch flattened to B * L tokens, and B * L at the end; int32 [N + 1].
    boundary_N1: Tensor
    # By window, so that layers share them.
    _block_masks: dict[int | None, flex_attention.BlockMask] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    @staticmethod
    def of(document_ids_BL: Tensor, position_ids_BL: Tensor) -> DocumentLayout:
        """The layout of a batch: ids are -1 for padding, positions restart at 0 in each document.

        Waits for the device, which has to say how many documents there are.
        """
        is_padding_BL = document_ids_BL == PADDING
        is_first_BL = torch.ones_like(is_padding_BL)
        same_id = document_ids_BL[:, 1:] == document_ids_BL[:, :-1]
        next_position = position_ids_BL[:, 1:] == position_ids_BL[:, :-1] + 1
        is_first_BL[:, 1:] = ~(same_id & (next_position | is_padding_BL[:, 1:]))
        index_L = torch.arange(document_ids_BL.shape[1], device=document_ids_BL.device, dtype=torch.int32)
        start_BL = torch.where(is_first_BL, index_L, 0).cummax(dim=1).values.to(torch.int32)
        boundary_N1 = functional.pad(is_first_BL.flatten().nonzero().flatten(), (0, 1), value=is_first_BL.numel())
        boundary_N1 = boundary_N1.to(torch.int32)
        # Batches differ in how many documents they have; a compiled layer is made for any number.
        torch._dynamo.maybe_mark_dynamic(boundary_N1, 0)
        return DocumentLayout(start_BL, is_padding_BL, boundary_N1)

    @functools.cached_property
    def spans(self) -> list[Span]:
        """The documents as neighbouring runs that cover the flattened batch. Waits for the device."""
        lengths = torch.diff(self.boundary_N1).tolist()
        paddings = self.is_padding_BL.flatten()[self.boundary_N1[:-1].long()].tolist()
        return [Span(length, is_padding) for length, is_padding in zip(lengths, paddings, strict=True)]

    def block_mask(self, window: int | None = None) -> flex_attention.BlockMask:
        """FlexAttention's mask, where a token sees `window` keys at most, its own among them (None: its document).

        Worked out once a window from where each token's keys begin: no L x L mask ever exists.
        """
        if window not in self._block_masks:
            self._block_masks[window] = _block_mask(self.first_keys(window))
        return self._block_masks[window]

    def first_keys(self, window: int | None) -> Tensor:
        """[B, L] in int32: for each token, the index in its row of the first token that it sees."""
        if window is None:
            return self.start_BL
        index_L = torch.arange(self.start_BL.shape[1], device=self.start_BL.device, dtype=torch.int32)
        return torch.maximum(self.start_BL, index_L - (window - 1))


def _block_mask(first_key_BL: Tensor) -> flex_attention.BlockMask:
    """The mask in which a token sees the keys from its first one up to itself. First keys never fall within a row."""
    B, L = first_key_BL.shape
    num_blocks = -(-L // BLOCK_TOKENS)
    block_Q = torch.arange(num_blocks, device=first_key_BL.device, dtype=torch.int32)
    # A block's first token reaches back furthest and its last one least.
    earliest_BQ = first_key_BL[:, (block_Q * BLOCK_TOKENS).long()]
    latest_BQ = first_key_BL[:, ((block_Q + 1) * BLOCK_TOKENS - 1).clamp(max=L - 1).long()]
    first_block_BQ = earliest_BQ // BLOCK_TOKENS
    # Key blocks that every query of the query block sees in full lie between the latest first key and the diagonal.
    first_full_BQ = torch.minimum(-(-latest_BQ // BLOCK_TOKENS), block_Q)
    partial_BQK = _between(first_block_BQ, first_full_BQ, block_Q)
    partial_BQK |= block_Q[:, None] == block_Q[None, :]
    full_BQK = _between(first_full_BQ, block_Q.expand(B, -1), block_Q)

    def is_visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= first_key_BL[batch, query])

    return flex_attention.BlockMask.from_kv_blocks(
        *_counts_and_indices(partial_BQK),
        *_counts_and_indices(full_BQK),
        BLOCK_SIZE=BLOCK_TOKENS,
        mask_mod=is_visible,
        seq_lengths=(L, L),
    )


def _between(low_BQ: Tensor, high_BQ: Tensor, block_K: Tensor) -> Tensor:
    """Whether low <= key block < high."""
    return (block_K >= low_BQ[:, :, None]) & (block_K < high_BQ[:, :, None])


def _counts_and_indices(chosen_BQK: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks each query block takes, and which (the chosen first), with a head dimension of 1."""
    counts_BQ = chosen_BQK.sum(dim=-1, dtype=torch.int32)
    indices_BQK = torch.argsort(chosen_BQK.to(torch.int32), dim=-1, descending=True, stable=True).to(torch.int32)
    return counts_BQ[:, None].contiguous(), indices_BQK[:, None].contiguous()
