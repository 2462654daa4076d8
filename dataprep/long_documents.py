"""Documents longer than a block: refused, cut or split, as declared. None is dropped without a word."""

from collections.abc import Sequence
from dataclasses import replace

from finecut.dataprep import pairs
from finecut.dataprep.config import LongDocuments, PackingConfig
from finecut.dataprep.documents import Document


def fit(document: Document, config: PackingConfig) -> Sequence[Document]:
    """Documents of at most `config.block_size` tokens, made of this one, in order; at least one.

    Raises ValueError, with a reason for the user, where the document must not be used.
    """
    if len(document) <= config.block_size:
        return [document]
    if document.pair is not None:
        return [_fit_pair(document, config)]
    if document.task is not None:
        raise ValueError(
            f"the prompt has {len(document):,} tokens, more than packing.block_size, {config.block_size:,}; raise it, "
            "or leave the record out by filter.max_tokens: cut, it would ask something else"
        )
    if config.long_documents is LongDocuments.TRUNCATE:
        fitted = [_piece(document, 0, config.block_size, truncated=True)]
    elif config.long_documents is LongDocuments.SPLIT:
        fitted = split(document, config.block_size)
    else:
        raise ValueError(
            f"{len(document):,} tokens do not fit a block of {config.block_size:,}; "
            "raise packing.block_size, or set packing.long_documents to SPLIT or TRUNCATE"
        )
    if not any(piece.loss_mask_T.any() for piece in fitted):
        raise ValueError(
            f"cut to a block of {config.block_size:,} tokens, nothing of the answer is left; raise packing.block_size"
        )
    return fitted


def _fit_pair(pair: Document, config: PackingConfig) -> Document:
    """A pair stands in one block. Half of it in another could not be compared."""
    if config.long_documents is LongDocuments.TRUNCATE:
        return pairs.cut(pair, config.block_size)
    chosen, rejected = pair.lengths
    raise ValueError(
        f"{chosen:,} + {rejected:,} tokens of the pair do not fit a block of {config.block_size:,}; raise "
        "packing.block_size, or set packing.long_documents to TRUNCATE"
    )


def split(document: Document, block_size: int) -> list[Document]:
    """All tokens in order: pieces of `block_size` tokens, the last one shorter.

    Each keeps its part of the loss mask, save its first token: what it would be predicted from is in another piece.
    Pieces without a target stay: nothing of the document is dropped.
    """
    starts = range(0, len(document), block_size)
    return [_piece(document, start, start + block_size, later_piece=start > 0) for start in starts]


def _piece(document: Document, start: int, end: int, truncated: bool = False, later_piece: bool = False) -> Document:
    mask_T = document.loss_mask_T[start:end].copy()
    mask_T[0] = False
    ids_T = document.input_ids_T[start:end]
    return replace(document, input_ids_T=ids_T, loss_mask_T=mask_T, truncated=truncated, later_piece=later_piece)
