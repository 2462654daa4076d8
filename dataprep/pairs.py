"""Preference pairs: two documents that are one unit, filtered, split, packed and read together."""

from dataclasses import replace

import numpy as np

from finecut.dataprep.documents import Document, Pair


def join(chosen: Document, rejected: Document, margin: float | None = None) -> Document:
    """Two documents as one pair."""
    return Document(
        np.concatenate([chosen.input_ids_T, rejected.input_ids_T]),
        np.concatenate([chosen.loss_mask_T, rejected.loss_mask_T]),
        pair=Pair(len(chosen), margin),
    )


def cut(pair: Document, block_size: int) -> Document:
    """The pair in `block_size` tokens: the longer document loses its tail, and where that is not enough both do.

    Raises ValueError, with a reason for the user, where nothing is left to compare.
    """
    chosen, rejected = (pair.input_ids_T[part] for part in _parts(pair))
    num_chosen = min(len(chosen), max(block_size - len(rejected), block_size - block_size // 2))
    lengths = (num_chosen, min(len(rejected), block_size - num_chosen))
    sides = [
        Document(pair.input_ids_T[part][:length], pair.loss_mask_T[part][:length])
        for part, length in zip(_parts(pair), lengths, strict=True)
    ]
    if not all(side.loss_mask_T.any() for side in sides) or disagreement(*sides):
        raise ValueError(
            f"cut to a block of {block_size:,} tokens, nothing is left of an answer or no difference between the two; "
            "raise packing.block_size"
        )
    assert pair.pair is not None
    joined = join(sides[0], sides[1], pair.pair.margin)
    return replace(
        pair, input_ids_T=joined.input_ids_T, loss_mask_T=joined.loss_mask_T, pair=joined.pair, truncated=True
    )


def _parts(pair: Document) -> tuple[slice, slice]:
    assert pair.pair is not None
    return slice(0, pair.pair.rejected_start), slice(pair.pair.rejected_start, None)


def disagreement(chosen: Document, rejected: Document) -> str:
    """Why these two are no pair; empty where they are one."""
    length = chosen.prompt_length
    if length != rejected.prompt_length or not np.array_equal(
        chosen.input_ids_T[:length], rejected.input_ids_T[:length]
    ):
        return "the chat template writes another prompt before the chosen answer than before the rejected one"
    if np.array_equal(chosen.input_ids_T, rejected.input_ids_T):
        return "chosen and rejected are equal once the chat template has written them, so neither is preferred"
    return ""
