"""Long documents: every token and every target that can be kept is kept, and what cannot be used is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.dataprep.config import LongDocuments, PackingConfig
from finecut.dataprep.documents import Document
from finecut.dataprep.long_documents import fit


def config(long_documents: LongDocuments, block_size: int = 4) -> PackingConfig:
    return PackingConfig(block_size=block_size, window_documents=8, long_documents=long_documents)


def document(mask: list[int]) -> Document:
    return Document(np.arange(100, 100 + len(mask), dtype=np.int32), np.array(mask, bool))


@settings(deadline=None, derandomize=True)
@given(mask=st.lists(st.booleans(), min_size=1, max_size=60), block_size=st.integers(2, 20))
def test_split_keeps_all_tokens_and_all_targets_but_the_first_of_each_piece(mask: list[bool], block_size: int) -> None:
    whole = document([False, *mask, True, True])  # of two targets side by side, one is not the first of a piece
    pieces = fit(whole, config(LongDocuments.SPLIT, block_size))
    assert np.concatenate([piece.input_ids_T for piece in pieces]).tolist() == whole.input_ids_T.tolist()
    assert all(0 < len(piece) <= block_size for piece in pieces)
    expected = whole.loss_mask_T.copy()
    expected[::block_size] = False
    assert np.concatenate([piece.loss_mask_T for piece in pieces]).tolist() == expected.tolist()
    assert [piece.later_piece for piece in pieces] == [False] + [True] * (len(pieces) - 1)


def test_split_leaves_the_mask_of_the_whole_document_as_it_is() -> None:
    whole = document([0, 1, 1, 1, 1, 1])
    fit(whole, config(LongDocuments.SPLIT))
    assert whole.loss_mask_T.tolist() == [False, True, True, True, True, True]


def test_truncate_keeps_the_head() -> None:
    (cut,) = fit(document([0, 1, 1, 1, 1, 1]), config(LongDocuments.TRUNCATE))
    assert (cut.input_ids_T.tolist(), cut.truncated) == ([100, 101, 102, 103], True)


@pytest.mark.parametrize("long_documents", LongDocuments)
def test_a_document_of_one_block_is_left_as_it_is(long_documents: LongDocuments) -> None:
    whole = document([0, 0, 1, 1])
    assert fit(whole, config(long_documents)) == [whole]


@pytest.mark.parametrize("long_documents", [LongDocuments.TRUNCATE, LongDocuments.SPLIT])
def test_a_cut_that_leaves_no_target_is_refused(long_documents: LongDocuments) -> None:
    with pytest.raises(ValueError, match="nothing of the answer is left"):
        fit(document([0, 0, 0, 0, 1]), config(long_documents))


def test_rejection_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"5 tokens do not fit a block of 4; raise packing.block_size, or set"):
        fit(document([0, 1, 1, 1, 1]), config(LongDocuments.REJECT))
