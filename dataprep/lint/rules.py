"""The rules. Each looks at a batch of blocks and gives the places that break it, one a document or stretch of padding.

Rules are pure and vectorised: clean data costs a few passes of numpy, whatever its size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from finecut.dataprep.lint.layout import Layout
from finecut.proto import artifact_pb2, data_pb2


@dataclass(frozen=True)
class Expectations:
    """What the blocks must agree with: the tokenizer's ids and what the stage was asked for."""

    vocabulary_size: int
    pad_token_id: int
    eos_token_id: int | None
    special_ids: tuple[int, ...]
    may_be_cut: bool = False  # long documents are truncated or split, so that a document may end without an end of turn
    may_train_all: bool = False  # plain text, or a piece of a long answer
    may_train_none: bool = False  # a piece of a long prompt
    max_truncated_fraction: float = 0.0

    @classmethod
    def of(
        cls, stage: data_pb2.DataPrep, data: artifact_pb2.DataArtifact, tokenizer: PreTrainedTokenizerBase
    ) -> "Expectations":
        """`stage` is resolved; `data` is what it made."""
        long_documents = stage.packing.long_documents
        is_split = long_documents == data_pb2.Packing.SPLIT
        added = tokenizer.added_tokens_decoder
        return cls(
            vocabulary_size=len(tokenizer),
            pad_token_id=data.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            special_ids=tuple(sorted(number for number, token in added.items() if token.special)),
            may_be_cut=is_split or long_documents == data_pb2.Packing.TRUNCATE,
            may_train_all=is_split or any(source.WhichOneof("record") == "text" for source in stage.sources),
            may_train_none=is_split,
            max_truncated_fraction=stage.error_budget.max_truncated_fraction,
        )


@dataclass(frozen=True)
class Rule:
    """`find` gives places in the batch, in any number; `says` is what is wrong there and what to do."""

    name: str
    says: str
    find: Callable[[Layout, Expectations], np.ndarray]


_NONE: np.ndarray = np.empty(0, np.int64)


def _nothing_trained(layout: Layout, expected: Expectations) -> np.ndarray:
    return _NONE if expected.may_train_none else layout.document_start_D[layout.num_trained_D == 0]


def _everything_trained(layout: Layout, expected: Expectations) -> np.ndarray:
    """The first token can never be a target, so all but one is everything."""
    if expected.may_train_all:
        return _NONE
    return layout.document_start_D[(layout.num_trained_D > 0) & (layout.num_trained_D >= layout.lengths - 1)]


def _first_token_trained(layout: Layout, expected: Expectations) -> np.ndarray:
    return layout.document_start_D[layout.mask[layout.document_start_D]]


def _untrained_end(layout: Layout, expected: Expectations) -> np.ndarray:
    """Last tokens of trained spans that end without a special token, where the document is not cut there."""
    last_S: np.ndarray = layout.span_end_S - 1
    ends_well_S = np.isin(layout.ids[last_S], expected.special_ids)
    if expected.may_be_cut:
        ends_well_S |= _cut_spans(layout)
    if expected.may_train_all:
        ends_well_S |= layout.num_trained_D[layout.span_document_S] >= layout.lengths[layout.span_document_S] - 1
    return last_S[~ends_well_S]


def _cut_spans(layout: Layout) -> np.ndarray:
    """Whether a span reaches the end of a document that fills its block, which is where cuts are made."""
    document_S = layout.span_document_S
    return (layout.lengths[document_S] == layout.block_size) & (layout.span_end_S == layout.document_end_D[document_S])


def _padding_trained(layout: Layout, expected: Expectations) -> np.ndarray:
    return np.flatnonzero(layout.mask & (layout.document_ids < 0))


def _end_of_sequence_padding_trained(layout: Layout, expected: Expectations) -> np.ndarray:
    return _padding_trained(layout, expected) if expected.pad_token_id == expected.eos_token_id else _NONE


def _plain_padding_trained(layout: Layout, expected: Expectations) -> np.ndarray:
    return _NONE if expected.pad_token_id == expected.eos_token_id else _padding_trained(layout, expected)


def _padding_inside_answer(layout: Layout, expected: Expectations) -> np.ndarray:
    """Trained padding tokens inside a document that cannot be its end of turn.

    Padding may well be the end of turn: it is fine as a span's last token, unless a special token stands before it.
    A tokenizer without any such token pads with an ordinary one, which says nothing where it stands in a text.
    """
    if expected.pad_token_id not in expected.special_ids:
        return _NONE
    places = np.flatnonzero(layout.mask & (layout.document_ids >= 0) & (layout.ids == expected.pad_token_id))
    is_last = np.isin(places + 1, layout.span_end_S)
    is_first = np.isin(places, layout.span_start_S)
    after_special = np.isin(layout.ids[places - 1], expected.special_ids) & ~is_first
    return places[~is_last | after_special]


def _outside_vocabulary(layout: Layout, expected: Expectations) -> np.ndarray:
    return np.flatnonzero((layout.ids < 0) | (layout.ids >= expected.vocabulary_size))


def _wrong_padding(layout: Layout, expected: Expectations) -> np.ndarray:
    return np.flatnonzero((layout.document_ids < 0) & (layout.ids != expected.pad_token_id))


def _positions_do_not_restart(layout: Layout, expected: Expectations) -> np.ndarray:
    """Positions count from 0 in each document; that is how attention knows where a document begins."""
    place = np.arange(len(layout.ids))
    start_of_run: np.ndarray = np.flatnonzero(np.diff(layout.run_of, prepend=-1))
    expected_positions = place - start_of_run[layout.run_of]
    return np.flatnonzero((layout.document_ids >= 0) & (layout.positions != expected_positions))


def _documents_out_of_order(layout: Layout, expected: Expectations) -> np.ndarray:
    """Document ids are 0, 1, 2.. and then padding, so that no two documents share one."""
    starts: np.ndarray = np.flatnonzero(np.diff(layout.run_of, prepend=-1))
    block_of_run: np.ndarray = starts // layout.block_size
    is_first = np.append(True, block_of_run[1:] != block_of_run[:-1])
    number = np.arange(len(starts)) - np.flatnonzero(is_first)[np.cumsum(is_first) - 1]
    found = layout.document_ids[starts]
    is_last = np.append(is_first[1:], True)
    return starts[(found != number) & ~((found == -1) & is_last & (number > 0))]


RULES = (
    Rule("nothing trained", "no token of the document is trained; it teaches nothing", _nothing_trained),
    Rule(
        "everything trained",
        "every token is trained, the prompt too; the mask must leave out what the user says",
        _everything_trained,
    ),
    Rule(
        "first token trained",
        "the first token of the document is a target, although nothing stands before it to predict it from",
        _first_token_trained,
    ),
    Rule(
        "end of turn",
        "the trained text ends without a special token, so the model would not learn to stop",
        _untrained_end,
    ),
    Rule("padding in the loss", "padding is trained", _plain_padding_trained),
    Rule(
        "end of sequence as padding",
        "padding is trained, and it is the end of sequence, so the model would learn to say nothing else",
        _end_of_sequence_padding_trained,
    ),
    Rule(
        "padding in an answer",
        "the padding token is trained inside a document, where it does not end the turn",
        _padding_inside_answer,
    ),
    Rule("padding", "padding holds another token than the padding token; text would be lost", _wrong_padding),
    Rule("vocabulary", "the token is not in the tokenizer's vocabulary", _outside_vocabulary),
    Rule(
        "positions",
        "positions do not count from 0 in the document; attention would reach across documents",
        _positions_do_not_restart,
    ),
    Rule(
        "document ids",
        "documents of the block are not numbered 0, 1, 2, then padding; attention would reach across documents",
        _documents_out_of_order,
    ),
)
