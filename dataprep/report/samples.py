"""The start of a block as the report shows it: every token with its text, and whether it is trained."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from transformers import PreTrainedTokenizerBase

from finecut.dataprep.documents import show_example_id
from finecut.dataprep.shards import Blocks

_VISIBLE = {" ": "·", "\n": "⏎\n", "\t": "⇥\t", "\r": "␍", "\N{NO-BREAK SPACE}": "⍽"}
_SPACE = re.compile(r"([ \n\t\r\N{NO-BREAK SPACE}])")
# A token that is part of a character has no text; the character stands at the last of its tokens.
_PART = "▯"
# The longest UTF-8 character has four bytes, each a token at worst.
_MAX_PARTS = 4


@dataclass(frozen=True)
class Piece:
    """Text of a token, or white space made visible."""

    text: str
    is_space: bool


@dataclass(frozen=True)
class Token:
    """One token on the page."""

    token_id: int
    position: int  # in its document
    is_trained: bool
    is_special: bool
    pieces: tuple[Piece, ...]
    starts_word: bool  # a line may break before it


@dataclass(frozen=True)
class DocumentSample:
    """A document, or as much of it as is shown. Counts are of all of it that is in the block."""

    number: int
    num_tokens: int
    num_trained: int
    tokens: tuple[Token, ...]
    role: str = ""  # of a pair's: which answer it holds, and the margin
    example: str = ""  # its example id

    @property
    def num_hidden(self) -> int:
        return self.num_tokens - len(self.tokens)


@dataclass(frozen=True)
class BlockSample:
    """A block: the documents at its start, how many more there are, and the padding at its end."""

    number: int
    documents: tuple[DocumentSample, ...]
    num_more_documents: int
    num_padding: int


def sample_block(
    blocks: Blocks,
    number: int,
    tokenizer: PreTrainedTokenizerBase,
    special_ids: frozenset[int],
    max_tokens: int,
    pairs: bool = False,
) -> BlockSample:
    """The first `max_tokens` tokens of the only block in `blocks`, which has this number in its split.

    `pairs`: its documents 2k and 2k + 1 are the chosen and the rejected one of a pair.
    """
    document_id_L = blocks.document_id_NL[0]
    documents = []
    start, num_documents = 0, int(document_id_L.max()) + 1
    for document in range(num_documents):
        end = start + int((document_id_L == document).sum())
        if start >= max_tokens:
            break
        shown = slice(start, min(end, max_tokens))
        ids, mask_T = blocks.input_ids_NL[0, shown].tolist(), blocks.loss_mask_NL[0]
        tokens = tuple(
            Token(
                token_id=token_id,
                position=int(blocks.position_id_NL[0, start + index]),
                is_trained=bool(mask_T[start + index]),
                is_special=token_id in special_ids,
                pieces=pieces_of(text),
                starts_word=text[:1].isspace(),
            )
            for index, (token_id, text) in enumerate(zip(ids, texts_of(ids, tokenizer), strict=True))
        )
        documents.append(
            DocumentSample(
                number=document,
                num_tokens=end - start,
                num_trained=int(mask_T[start:end].sum()),
                tokens=tokens,
                role=_role(blocks, document) if pairs else "",
                example=_example(blocks, document),
            )
        )
        start = end
    return BlockSample(
        number, tuple(documents), num_documents - len(documents), int(np.count_nonzero(document_id_L < 0))
    )


def _role(blocks: Blocks, document: int) -> str:
    pair, is_rejected = divmod(document, 2)
    margins_P = blocks.margin_NP[0]
    margin = f", margin {margins_P[pair]:g}" if pair < len(margins_P) and not np.isnan(margins_P[pair]) else ""
    return f"pair {pair}{margin}: prompt with the {'rejected' if is_rejected else 'chosen'} answer"


def _example(blocks: Blocks, document: int) -> str:
    known = blocks.example_id_ND[0] if len(blocks.example_id_ND) else ()
    return show_example_id(int(known[document])) if document < len(known) and known[document] else ""


def texts_of(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each token, blanks included, so that together they are the text of all."""
    texts: list[str] = []
    parts: list[int] = []  # tokens that are not a whole character yet
    size = len(tokenizer)
    for token_id in ids:
        if token_id >= size:  # an event has no text
            texts.append(f"⟨{token_id}⟩")
            continue
        raw = tokenizer.convert_ids_to_tokens(token_id)
        parts.append(token_id)
        text = tokenizer.decode(parts, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(parts) < _MAX_PARTS:
            texts.append(_PART)
            continue
        # A SentencePiece decoder drops the blank before a text's first word; each token is one here.
        is_blank_lost = str(raw).startswith("▁") and not text.startswith(" ")
        texts.append(" " + text if is_blank_lost else text)
        parts = []
    return texts


def pieces_of(text: str) -> tuple[Piece, ...]:
    """A token's text with its white space visible; an empty text is a box."""
    found = ((part in _VISIBLE, _VISIBLE.get(part, part)) for part in _SPACE.split(text) if part)
    pieces = (
        Piece("".join(text for _, text in group), is_space) for is_space, group in groupby(found, lambda item: item[0])
    )
    return tuple(pieces) or (Piece(_PART, True),)
