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
    pairs: bool = False  # documents 2k and 2k + 1 of a block are the chosen and the rejected one of a pair
    prompts: bool = False  # nothing is a target
    semantic_id_count: int = 0  # ids of events, after the tokenizer's

    @property
    def text_vocabulary_size(self) -> int:
        return self.vocabulary_size - self.semantic_id_count

    @classmethod
    def of(
        cls, stage: data_pb2.DataPrep, data: artifact_pb2.DataArtifact, tokenizer: PreTrainedTokenizerBase
    ) -> "Expectations":
        """`stage` is resolved; `data` is what it made."""
        long_documents = stage.packing.long_documents
        is_split = long_documents == data_pb2.Packing.SPLIT
        added = tokenizer.added_tokens_decoder
        kinds = {source.WhichOneof("record") for source in stage.sources}
        num_semantic_ids = max((source.event_sequence.semantic_id_count for source in stage.sources), default=0)
        return cls(
            vocabulary_size=len(tokenizer) + num_semantic_ids,
            pad_token_id=data.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            special_ids=tuple(sorted(number for number, token in added.items() if token.special)),
            may_be_cut=is_split or long_documents == data_pb2.Packing.TRUNCATE,
            may_train_all=is_split or bool(kinds & {"text", "event_sequence"}),
            may_train_none=is_split,
            max_truncated_fraction=stage.error_budget.max_truncated_fraction,
            pairs="preference" in kinds,
            prompts="prompt" in kinds,
            semantic_id_count=num_semantic_ids,
        )


@dataclass(frozen=True)
class Rule:
    """`find` gives places in the batch, in any number; `says` is what is wrong there and what to do."""

    name: str
    says: str
    find: Callable[[Layout, Expectations], np.ndarray]


_NONE: np.ndarray = np.empty(0, np.int64)


def _nothing_trained(layout: Layout, expected: Expectations) -> np.ndarray:
    return _NONE if expected.may_train_none or expected.prompts else layout.document_start_D[layout.num_trained_D == 0]


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
        ends_well_S |= _cut_spans(layout, expected)
    if expected.may_train_all:
        ends_well_S |= layout.num_trained_D[layout.span_document_S] >= layout.lengths[layout.span_document_S] - 1
    return last_S[~ends_well_S]


def _cut_spans(layout: Layout, expected: Expectations) -> np.ndarray:
    """Whether a span reaches the end of a document, or of one of a pair, that fills its block: there cuts are made."""
    document_S = layout.span_document_S
    room_D = layout.lengths
    if expected.pairs:
        first_D: np.ndarray = np.arange(len(room_D)) // 2 * 2
        second_D = np.minimum(first_D + 1, len(room_D) - 1)
        room_D = room_D[first_D] + room_D[second_D]
    return (room_D[document_S] == layout.block_size) & (layout.span_end_S == layout.document_end_D[document_S])


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


def _text_beside_events(layout: Layout, expected: Expectations) -> np.ndarray:
    """Documents in which only some tokens are ids of events: such a sequence has nothing else."""
    if not expected.semantic_id_count:
        return _NONE
    num_before: np.ndarray = np.concatenate([[0], np.cumsum(layout.ids >= expected.text_vocabulary_size)])
    num_D = num_before[layout.document_end_D] - num_before[layout.document_start_D]
    return layout.document_start_D[(num_D > 0) & (num_D < layout.lengths)]


def _prompt_trained(layout: Layout, expected: Expectations) -> np.ndarray:
    return np.flatnonzero(layout.mask) if expected.prompts else _NONE


def _no_pair(layout: Layout, expected: Expectations) -> np.ndarray:
    """Chosen documents without a rejected one behind the same prompt, or with one that is equal to it."""
    if not expected.pairs:
        return _NONE
    block_D: np.ndarray = layout.document_start_D // layout.block_size
    number_D = layout.document_ids[layout.document_start_D]
    chosen = np.flatnonzero(number_D % 2 == 0)
    next_D = np.minimum(chosen + 1, len(number_D) - 1)
    is_alone = (next_D == chosen) | (block_D[next_D] != block_D[chosen])
    return layout.document_start_D[chosen[is_alone | ~_differ_in_answer(layout, chosen, next_D)]]


def _differ_in_answer(layout: Layout, chosen_P: np.ndarray, rejected_P: np.ndarray) -> np.ndarray:
    """Whether two documents are equal up to the first target of each, and not beyond."""
    found = []
    for one, other in zip(chosen_P.tolist(), rejected_P.tolist(), strict=True):
        length, other_length = layout.prompt_length(one), layout.prompt_length(other)
        ids, other_ids = layout.document(one), layout.document(other)
        same_prompt = length == other_length and np.array_equal(ids[:length], other_ids[:length])
        found.append(same_prompt and not np.array_equal(ids, other_ids))
    return np.array(found, bool)


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
    Rule("vocabulary", "the token is not in the tokenizer's vocabulary, nor an id of an event", _outside_vocabulary),
    Rule("events", "the document mixes ids of events with tokens of text", _text_beside_events),
    Rule("prompts", "a token of a prompt is trained; the answer is the rollout's", _prompt_trained),
    Rule(
        "pairs",
        "the document and the one behind it are no chosen and rejected answer to one prompt; a pair must stay together",
        _no_pair,
    ),
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
