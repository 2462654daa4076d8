"""Each rule finds what breaks it, once a document, and clean blocks break none."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.dataprep.lint.layout import Layout
from finecut.dataprep.lint.rules import RULES, Expectations
from finecut.dataprep.shards import Blocks

PAD, END, START = 0, 1, 2  # the special tokens; the rest of 100 are words
EXPECTED = Expectations(vocabulary_size=100, pad_token_id=PAD, eos_token_id=END, special_ids=(PAD, END, START))


def blocks(ids: list[list[int]], mask: list[list[int]], documents: list[list[int]]) -> Blocks:
    """Positions count from where a document begins."""
    positions = [[row[:place].count(row[place]) * (row[place] >= 0) for place in range(len(row))] for row in documents]
    return Blocks(
        input_ids_NL=np.array(ids, np.int32),
        loss_mask_NL=np.array(mask, bool),
        document_id_NL=np.array(documents, np.int32),
        position_id_NL=np.array(positions, np.int32),
    )


def clean() -> Blocks:
    """Two blocks: two documents, the second of two turns, then padding; and one document that fills its block."""
    return blocks(
        [
            [START, 10, 11, END, START, 20, 21, END, 22, 23, END, PAD],
            [START, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, END],
        ],
        [[0, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]],
        [[0] * 4 + [1] * 7 + [-1], [0] * 12],
    )


def broken(data: Blocks, expected: Expectations = EXPECTED) -> dict[str, list[int]]:
    """Places of each rule that is broken."""
    layout = Layout.of(data)
    found = {rule.name: rule.find(layout, expected).tolist() for rule in RULES}
    return {name: places for name, places in found.items() if places}


def test_clean_blocks_break_no_rule() -> None:
    assert broken(clean()) == {}


def test_the_layout_of_documents_and_spans() -> None:
    layout = Layout.of(clean())
    assert list(zip(layout.document_start_D, layout.document_end_D, strict=True)) == [(0, 4), (4, 11), (12, 24)]
    assert layout.num_trained_D.tolist() == [2, 4, 6]
    assert list(zip(layout.span_start_S, layout.span_end_S, strict=True)) == [(2, 4), (6, 8), (9, 11), (18, 24)]
    assert layout.span_document_S.tolist() == [0, 1, 1, 2]
    assert layout.block_tokens.tolist() == [11, 12]


def test_a_trained_span_never_reaches_into_the_next_document() -> None:
    layout = Layout.of(blocks([[5, 6, 7, 8]], [[0, 1, 1, 1]], [[0, 0, 1, 1]]))
    assert list(zip(layout.span_start_S, layout.span_end_S, strict=True)) == [(1, 2), (2, 4)]


def change(field: str, block: int, place: int, value: int) -> Blocks:
    data = clean()
    getattr(data, field)[block, place] = value
    return data


@pytest.mark.parametrize(
    ("field", "block", "place", "value", "expected"),
    [
        pytest.param("loss_mask_NL", 0, 3, 0, {"end of turn": [2]}, id="end of turn left out of the mask"),
        pytest.param("loss_mask_NL", 0, 10, 0, {"end of turn": [9]}, id="end of a second turn left out"),
        pytest.param("input_ids_NL", 0, 7, 24, {"end of turn": [7]}, id="no end of turn in the text"),
        pytest.param("loss_mask_NL", 0, 4, 1, {"first token trained": [4]}, id="first token is a target"),
        pytest.param("loss_mask_NL", 0, 11, 1, {"padding in the loss": [11]}, id="padding trained"),
        pytest.param("input_ids_NL", 0, 2, PAD, {"padding in an answer": [2]}, id="padding within an answer"),
        pytest.param("input_ids_NL", 0, 11, 40, {"padding": [11]}, id="text where padding should be"),
        pytest.param("input_ids_NL", 1, 5, 100, {"vocabulary": [17]}, id="one beyond the vocabulary"),
        pytest.param("input_ids_NL", 1, 5, -1, {"vocabulary": [17]}, id="negative token"),
        pytest.param("position_id_NL", 0, 4, 4, {"positions": [4]}, id="position does not restart"),
        pytest.param("position_id_NL", 1, 3, 9, {"positions": [15]}, id="position jumps"),
    ],
)
def test_one_wrong_value_breaks_one_rule(
    field: str, block: int, place: int, value: int, expected: dict[str, list[int]]
) -> None:
    assert broken(change(field, block, place, value)) == expected


def test_masks_of_nothing_and_of_everything() -> None:
    data = clean()
    data.loss_mask_NL[0, :4] = False
    data.loss_mask_NL[1, 1:] = True
    assert broken(data) == {"nothing trained": [0], "everything trained": [12]}


def test_one_document_that_swallows_another_is_seen_by_its_positions() -> None:
    data = clean()
    data.document_id_NL[0, :11] = 0  # attention would reach across
    assert broken(data) == {"positions": [4, 5, 6, 7, 8, 9, 10]}


@pytest.mark.parametrize(
    ("ids", "places"),
    [
        ([0, 0, 0, 0, 2, 2, 2, 2], [4]),  # a number is left out
        ([1, 1, 1, 1, 0, 0, 0, 0], [0, 4]),
        ([0, 0, 0, 1, 1, 0, 0, 0], [5]),  # one document in two pieces
        ([0, 0, 0, -1, 1, 1, 1, 1], [3, 4]),  # padding between documents
    ],
)
def test_document_ids_out_of_order(ids: list[int], places: list[int]) -> None:
    data = blocks([[9] * 8], [[0] * 8], [ids])
    assert broken(data)["document ids"] == places


def test_padding_that_ends_turns_may_be_trained_there_and_only_there() -> None:
    same = dataclasses.replace(EXPECTED, pad_token_id=END)
    data = clean()
    data.input_ids_NL[0, 11] = END
    assert broken(data, same) == {}
    data.loss_mask_NL[0, 11] = True
    assert broken(data, same) == {"end of sequence as padding": [11]}
    data = clean()
    data.input_ids_NL[0, 9:12] = END  # padding taken for text: it follows an end of turn
    assert broken(data, same) == {"padding in an answer": [9, 10]}


def test_a_padding_token_that_is_a_word_may_stand_in_text() -> None:
    data = clean()
    data.input_ids_NL[0, 11] = 11
    assert broken(data, dataclasses.replace(EXPECTED, pad_token_id=11)) == {}


def test_a_cut_document_may_end_without_end_of_turn_where_cuts_are_allowed() -> None:
    data = change("input_ids_NL", 1, 11, 50)
    assert broken(data) == {"end of turn": [23]}
    allowed = dataclasses.replace(EXPECTED, may_be_cut=True)
    assert broken(data, allowed) == {}
    data.loss_mask_NL[1, 9] = False  # an answer within the document is no cut
    assert broken(data, allowed) == {"end of turn": [20]}
    short = change("input_ids_NL", 0, 10, 50)  # nor is a document that had room
    assert broken(short, allowed) == {"end of turn": [10]}


def test_plain_text_is_trained_whole() -> None:
    data = blocks([[9, 10, 11, 12]], [[0, 1, 1, 1]], [[0] * 4])
    assert set(broken(data)) == {"everything trained", "end of turn"}
    assert broken(data, dataclasses.replace(EXPECTED, may_train_all=True)) == {}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_layout_agrees_with_a_slow_one(data: st.DataObject) -> None:
    size = 12
    rows = []
    for _ in range(data.draw(st.integers(1, 3))):
        lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4).filter(lambda n: sum(n) <= size))
        row = [number for number, length in enumerate(lengths) for _ in range(length)]
        rows.append(row + [-1] * (size - len(row)))
    mask = [[data.draw(st.booleans()) and document >= 0 for document in row] for row in rows]
    layout = Layout.of(blocks([[5] * size for _ in rows], [list(map(int, row)) for row in mask], rows))
    spans, open_span = [], None
    for place, (document, trained) in enumerate(zip(np.ravel(rows), np.ravel(mask), strict=True)):
        same = open_span is not None and open_span[2] == (place // size, document)
        if open_span is not None and not (trained and same):
            spans.append((open_span[0], place))
            open_span = None
        if trained and open_span is None:
            open_span = (place, place, (place // size, document))
    if open_span is not None:
        spans.append((open_span[0], size * len(rows)))
    assert list(zip(layout.span_start_S.tolist(), layout.span_end_S.tolist(), strict=True)) == spans
    assert layout.num_trained_D.sum() == np.sum(mask)
