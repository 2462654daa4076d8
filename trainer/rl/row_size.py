"""How long the rows are that answers are packed into. Without torch: the planner asks, too."""

from __future__ import annotations

# Rows are a multiple of this: attention kernels compile for a length, and dislike odd ones.
_MULTIPLE = 128
# A GPU wants so much to do at a time: with fewer tokens its host is the slower of the two.
_GPU_TOKENS = 8192


def row_tokens(max_sequence_tokens: int, num_answers: int, on_gpu: bool) -> int:
    """Tokens of a row.

    Args:
      max_sequence_tokens: of a prompt with its answer.
      num_answers: of a batch that one rank gets; no row is longer than all of them.
    """
    one = -(-max_sequence_tokens // _MULTIPLE) * _MULTIPLE
    fit = max(1, min(_GPU_TOKENS // one, num_answers)) if on_gpu else 1
    return fit * one
