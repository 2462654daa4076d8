"""The linter as a whole: what it lists, counts and compares across splits."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from finecut.dataprep import tokenization
from finecut.dataprep.lint.findings import MAX_LISTED
from finecut.dataprep.lint.layout import Layout
from finecut.dataprep.lint.linter import Linter
from finecut.dataprep.lint.rules import Expectations
from finecut.dataprep.shards import Blocks
from finecut.dataprep.testing import write_tiny_tokenizer
from finecut.proto import artifact_pb2
from finecut.proto.config import UserError

PAD, START, END = 0, 3, 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return tokenization.load(write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def linter(tokenizer: PreTrainedTokenizerBase) -> Linter:
    return Linter(Expectations(512, PAD, 2, (0, 1, 2, 3, 4), max_truncated_fraction=0.1), tokenizer)


def block_of(*documents: list[int]) -> Blocks:
    """One block of 32 tokens; the second half of each document is trained."""
    ids = np.full((1, 32), PAD, np.int32)
    mask, numbers, positions = np.zeros((1, 32), bool), np.full((1, 32), -1, np.int32), np.zeros((1, 32), np.int32)
    start = 0
    for number, document in enumerate(documents):
        end = start + len(document)
        ids[0, start:end], numbers[0, start:end] = document, number
        positions[0, start:end] = range(len(document))
        mask[0, start + len(document) // 2 : end] = True
        start = end
    return Blocks(ids, mask, numbers, positions)


def document(word: int) -> list[int]:
    return [START, word, word, word, word, END]


def listed(linter: Linter) -> list[str]:
    return [str(finding) for finding in linter.findings.listed]


def test_a_finding_names_split_block_document_reason_and_text(
    linter: Linter, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = tokenizer("How are you today?", add_special_tokens=False)["input_ids"]
    linter.add("train", Layout.of(block_of(document(50), [START, *ids])), first_block=40)
    before, last = tokenizer.decode(ids[:-1])[-8:], tokenizer.decode(ids[-1:])
    (line,) = listed(linter)
    assert line.startswith("train block 40, document 1: the trained text ends without a special token, so the model ")
    assert f"{before}⟦{last}⟧{tokenizer.pad_token}" in line


def test_tokens_outside_the_vocabulary_are_shown_as_numbers(linter: Linter) -> None:
    linter.add("train", Layout.of(block_of([START, 50, 99999, 50, 50, END])), first_block=0)
    assert "the token is not in the tokenizer's vocabulary" in listed(linter)[0]
    assert "⟦⟨99999⟩⟧" in listed(linter)[0]


def test_many_breaches_are_counted_once_a_document_and_the_list_is_cut(linter: Linter) -> None:
    data = block_of(*[document(50 + number) for number in range(5)])
    data.position_id_NL[:] = 7  # wrong at each token of the five documents
    for number in range(10):
        linter.add("train", Layout.of(data), first_block=number)
    assert linter.findings.count_by_rule == {"positions": 50}
    assert len(listed(linter)) == MAX_LISTED
    with pytest.raises(
        UserError, match=r"must not be trained on: 50 findings \(positions 50\)(.|\n)*\.\.\. and 30 more$"
    ):
        linter.findings.check()


def test_documents_of_evaluation_are_found_in_training(linter: Linter) -> None:
    linter.add("evaluation", Layout.of(block_of(document(50), document(51))), first_block=0)
    linter.add("train", Layout.of(block_of(document(60), document(51))), first_block=0)
    linter.add("train", Layout.of(block_of(document(61), document(60))), first_block=1)  # repeats within training
    assert linter.findings.count_by_rule == {"duplicates across splits": 1}
    assert listed(linter)[0].startswith("train block 0, document 1: the document stands in the evaluation split too")


def pairs_linter(tokenizer: PreTrainedTokenizerBase, **fields: bool) -> Linter:
    return Linter(Expectations(512, PAD, 2, (0, 1, 2, 3, 4), pairs=True, **fields), tokenizer)


def answer(prompt: int, said: int) -> list[int]:
    """A document of which the second half, the answer, is trained."""
    return [START, prompt, prompt, said, said, END]


def test_pairs_are_right_where_two_answers_follow_one_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    linter = pairs_linter(tokenizer)
    linter.add("train", Layout.of(block_of(answer(50, 60), answer(50, 61), answer(51, 60), answer(51, 61))), 0)
    assert not linter.findings.listed


@pytest.mark.parametrize(
    "documents",
    [
        [answer(50, 60), answer(51, 61)],  # two prompts
        [answer(50, 60), answer(50, 60)],  # nothing to prefer
        [answer(50, 60)],  # alone
        [answer(50, 60), answer(50, 61), answer(51, 60)],
        [[START, 50, 60, END], answer(50, 61)],  # a longer prompt
    ],
)
def test_what_is_no_pair_is_found(tokenizer: PreTrainedTokenizerBase, documents: list[list[int]]) -> None:
    linter = pairs_linter(tokenizer)
    linter.add("train", Layout.of(block_of(*documents)), 0)
    assert linter.findings.count_by_rule == {"pairs": 1}
    assert "are no chosen and rejected answer to one prompt" in listed(linter)[0]


def test_a_pair_that_two_blocks_part_is_found(tokenizer: PreTrainedTokenizerBase) -> None:
    first, second = block_of(answer(50, 60)), block_of(answer(50, 61))
    both = Blocks(
        *(np.concatenate(two) for two in zip(*(list(vars(b).values())[:4] for b in (first, second)), strict=True))
    )
    linter = pairs_linter(tokenizer)
    linter.add("train", Layout.of(both), 0)
    assert linter.findings.count_by_rule == {"pairs": 2}


def test_a_prompt_on_both_sides_is_a_leak_whatever_the_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    linter = pairs_linter(tokenizer)
    linter.add("evaluation", Layout.of(block_of(answer(50, 60), answer(50, 61))), 0)
    linter.add("train", Layout.of(block_of(answer(50, 70), answer(50, 71), answer(52, 60), answer(52, 61))), 0)
    assert linter.findings.count_by_rule == {"duplicates across splits": 2}
    assert listed(linter)[0].startswith("train block 0, document 0: the prompt stands in the evaluation split too")


def test_a_pair_may_be_cut_where_it_fills_its_block(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = [START, *[50] * 7, *[60] * 8], [START, *[50] * 7, *[61] * 8]
    short = [START, *[50] * 7, *[60] * 8], [START, *[50] * 6, *[61] * 7]
    for documents, number in ((whole, 0), (short, 2)):
        linter = pairs_linter(tokenizer, may_be_cut=True)
        linter.add("train", Layout.of(block_of(*documents)), 0)
        assert linter.findings.count_by_rule["end of turn"] == number


def test_nothing_of_a_prompt_may_be_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    linter = Linter(Expectations(512, PAD, 2, (0, 1, 2, 3, 4), prompts=True), tokenizer)
    data = block_of([START, 50, 51, 52, END])
    data.loss_mask_NL[:] = False
    linter.add("train", Layout.of(data), 0)
    assert not linter.findings.listed
    linter.add("train", Layout.of(block_of(document(50))), 1)
    assert linter.findings.count_by_rule == {"prompts": 1}


def test_ids_of_events_are_known_and_stand_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    expected = Expectations(522, PAD, 2, (0, 1, 2, 3, 4), may_train_all=True, semantic_id_count=10)
    linter = Linter(expected, tokenizer)
    data = block_of([512, 521, 515], [START, 50, 51, END])
    data.loss_mask_NL[0, 1] = True
    linter.add("train", Layout.of(data), 0)
    assert not linter.findings.listed
    linter.add("train", Layout.of(block_of([START, 50, 512, END], [512, 522, END])), 1)
    assert linter.findings.count_by_rule == {"vocabulary": 1, "events": 2}


def test_an_empty_block_is_found(linter: Linter) -> None:
    linter.add("train", Layout.of(block_of()), first_block=3)
    assert listed(linter)[0].startswith("train block 3, padding: ")
    assert set(linter.findings.count_by_rule) == {"empty blocks", "document ids"}


def manifest(**counts: int) -> artifact_pb2.DataArtifact:
    split = {"block_count": 1, "document_count": 2, "token_count": 12, "trained_token_count": 6} | counts
    return artifact_pb2.DataArtifact(splits=[artifact_pb2.DataArtifact.Split(name="train", **split)])


def test_the_manifest_must_say_what_the_shards_hold(linter: Linter) -> None:
    linter.add("train", Layout.of(block_of(document(50), document(51))), first_block=0)
    assert not linter.finish(manifest()).listed
    linter.finish(manifest(document_count=3))
    assert listed(linter) == ["train: the manifest says document_count 3, the shards hold 2"]


def test_more_cut_documents_than_declared_are_found(linter: Linter) -> None:
    linter.add("train", Layout.of(block_of(document(50), document(51))), first_block=0)
    findings = linter.finish(manifest(truncated_document_count=1))
    assert findings.count_by_rule == {"truncated documents": 1}
    assert "1 of 2 documents are cut, 0.1 of them may be" in listed(linter)[0]


def test_nothing_found_raises_nothing(linter: Linter) -> None:
    linter.add("train", Layout.of(block_of(document(50))), first_block=0)
    linter.findings.check()
    assert len(linter.findings) == 0
