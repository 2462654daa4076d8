"""Pairs as documents: joined behind one prompt, masked as conversations are, cut so that they can still be compared."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from finecut.dataprep import pairs, tokenization
from finecut.dataprep.config import LongDocuments, PackingConfig
from finecut.dataprep.documents import Document
from finecut.dataprep.long_documents import fit
from finecut.dataprep.messages import ASSISTANT, USER, Message
from finecut.dataprep.pair_tokenizer import PairTokenizer
from finecut.dataprep.preferences import Preference
from finecut.dataprep.prompt_tokenizer import PromptTokenizer
from finecut.dataprep.prompts import Prompt
from finecut.dataprep.records import BadRecord
from finecut.dataprep.split import content_digest
from finecut.dataprep.testing import SMOLLM2_TEMPLATE, write_tiny_tokenizer
from finecut.dataprep.testing_templates import FAMILIES, tokenizer_of


# With generation markers, and the families', some of which rewrite what was said before.
@pytest.fixture(scope="module", params=["markers", *FAMILIES])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return tokenization.load(folder) if request.param == "markers" else tokenizer_of(FAMILIES[request.param], folder)


def preference(chosen: str, rejected: str, *before: Message) -> Preference:
    messages = (*before, Message(USER, "How are you?"))
    return Preference("s", "s:1", messages, Message(ASSISTANT, chosen), Message(ASSISTANT, rejected), margin=2.0)


HISTORY = (Message(USER, "Hi"), Message(ASSISTANT, "Hello there"))


def test_both_answers_and_nothing_else_are_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    (pair,) = PairTokenizer(tokenizer).documents([preference("I am well", "Go away", *HISTORY)])
    assert isinstance(pair, Document) and pair.pair is not None
    sides = [slice(0, pair.lengths[0]), slice(pair.lengths[0], None)]
    for side, answer in zip(sides, ["I am well", "Go away"], strict=True):
        trained = tokenizer.decode(pair.input_ids_T[side][pair.loss_mask_T[side]])
        before, after = trained.split(answer)
        assert after in tokenizer.all_special_tokens and "How are" not in before and "Hello there" not in before
    prompts = [pair.input_ids_T[side][: pair.prompt_length].tolist() for side in sides]
    assert prompts[0] == prompts[1] and "Hello there" in tokenizer.decode(prompts[0])
    assert pair.pair.margin == 2.0


def test_a_rollout_starts_where_the_answers_of_a_pair_start(tokenizer: PreTrainedTokenizerBase) -> None:
    (pair,) = PairTokenizer(tokenizer).documents([preference("I am well", "Go away", *HISTORY)])
    asked = Prompt("s", "s:1", (*HISTORY, Message(USER, "How are you?")), reference="well")
    (prompt,) = PromptTokenizer(tokenizer).documents([asked])
    assert isinstance(pair, Document) and isinstance(prompt, Document) and prompt.task is not None
    assert prompt.input_ids_T.tolist() == pair.input_ids_T[: pair.prompt_length].tolist()
    assert not prompt.loss_mask_T.any() and prompt.task.reference == "well"


def test_bad_sides_are_named_and_the_others_go_on(tokenizer: PreTrainedTokenizerBase) -> None:
    found = PairTokenizer(tokenizer).documents(
        [preference("Fine", tokenizer.all_special_tokens[0]), preference("Fine", "Bad")]
    )
    assert isinstance(found[0], BadRecord) and found[0].reason.startswith(
        "rejected: messages[1].content holds the spec"
    )
    assert isinstance(found[1], Document)


def test_pairs_that_the_template_makes_equal_are_refused(tmp_path: Path) -> None:
    template = SMOLLM2_TEMPLATE.replace("message['content']", "message['content'].strip()")
    tokenizer = tokenization.load(write_tiny_tokenizer(tmp_path, chat_template=template))
    (found,) = PairTokenizer(tokenizer).documents([preference("Fine", "Fine  ")])
    assert isinstance(found, BadRecord) and "are equal once the chat template has written them" in found.reason


def pair_of(prompt: int, chosen: int, rejected: int) -> Document:
    """Answers that differ from their first token on."""

    def side(length: int, token: int) -> Document:
        ids_T = np.concatenate([np.arange(prompt), np.full(length, token)]).astype(np.int32)
        return Document(ids_T, np.arange(prompt + length) >= prompt)

    return pairs.join(side(chosen, 1000), side(rejected, 2000), margin=0.5)


@settings(deadline=None, derandomize=True)
@given(
    prompt=st.integers(1, 30), chosen=st.integers(1, 60), rejected=st.integers(1, 60), block_size=st.integers(4, 100)
)
def test_a_cut_pair_fills_its_block_and_keeps_both_heads(
    prompt: int, chosen: int, rejected: int, block_size: int
) -> None:
    whole = pair_of(prompt, chosen, rejected)
    assume(len(whole) > block_size)
    if prompt >= block_size // 2:
        if prompt >= block_size - block_size // 2:
            with pytest.raises(ValueError, match="nothing is left of an answer"):
                pairs.cut(whole, block_size)
        return
    cut = pairs.cut(whole, block_size)
    assert len(cut) == block_size and cut.truncated and cut.pair is not None and cut.pair.margin == 0.5
    for ids, length, original in zip(
        np.split(cut.input_ids_T, [cut.lengths[0]]),
        whole.lengths,
        np.split(whole.input_ids_T, [whole.lengths[0]]),
        strict=True,
    ):
        assert ids.tolist() == original[: len(ids)].tolist()
        assert len(ids) == length or len(ids) >= block_size // 2
    assert whole.loss_mask_T.sum() == chosen + rejected  # left as it is


def test_long_pairs_are_refused_or_cut_as_declared() -> None:
    whole = pair_of(4, 10, 6)
    with pytest.raises(ValueError, match=r"14 \+ 10 tokens of the pair do not fit a block of 16"):
        fit(whole, PackingConfig(16, 8, long_documents=LongDocuments.REJECT))
    (cut,) = fit(whole, PackingConfig(16, 8, long_documents=LongDocuments.TRUNCATE))
    assert cut.lengths == (8, 8)
    assert fit(whole, PackingConfig(24, 8)) == [whole]


def test_answers_that_are_equal_up_to_the_cut_are_refused() -> None:
    chosen = Document(np.arange(12, dtype=np.int32), np.arange(12) > 2)
    rejected = Document(np.append(np.arange(11), 99).astype(np.int32), np.arange(12) > 2)
    with pytest.raises(ValueError, match="no difference between the two"):
        pairs.cut(pairs.join(chosen, rejected), 16)


def test_pairs_of_one_prompt_are_never_parted() -> None:
    assert content_digest(pair_of(4, 10, 6)) == content_digest(pair_of(4, 2, 9))
    assert content_digest(pair_of(4, 10, 6)) != content_digest(pair_of(5, 10, 6))
