"""One answer token by token, as a table for people.

Shapes: T tokens that the policy sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from finecut.trainer.rl.sample_log import cell

_SHOWN = 64  # rows


def table(tokens_T: Sequence[str], columns: Mapping[str, Tensor]) -> str:
    """A row for each of the first tokens: its text, and what each column, [T], says of it."""
    lines = [f"| token | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for text, *values in zip(tokens_T[:_SHOWN], *(column.tolist() for column in columns.values()), strict=False):
        lines.append(f"| {cell(text)} | {' | '.join(f'{value:.4f}' for value in values)} |")
    return "\n".join(lines)
