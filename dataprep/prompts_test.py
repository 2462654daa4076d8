"""Prompt records and event sequences: what is read, and a reason for what is not."""

from typing import Any

import numpy as np
import pytest

from finecut.dataprep import event_sequences, prompts
from finecut.dataprep.config import EventSequenceConfig, PromptConfig
from finecut.dataprep.messages import USER, Message
from finecut.dataprep.records import Record, RecordError

JUDGED = PromptConfig(reference_field="answer", verifier_field="verifier")
GOOD = {"prompt": "What is 6 x 7?", "answer": 42, "verifier": "math"}


def read(content: Any) -> prompts.Prompt:
    return prompts.parse(Record("maths", "maths.jsonl:1", content), JUDGED)


def test_a_prompt_brings_its_reference_and_verifier() -> None:
    found = read(GOOD)
    assert found.messages == (Message(USER, "What is 6 x 7?"),)
    assert (found.reference, found.verifier) == ("42", "math")
    assert read({**GOOD, "prompt": [{"role": "user", "content": "What is 6 x 7?"}]}).messages == found.messages
    assert prompts.parse(Record("", "", {"prompt": "x"}), PromptConfig()).reference is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": ""}, "prompt: the text is empty"),
        ({"prompt": 3}, "prompt: a number where a list of messages"),
        ({"prompt": []}, "prompt: the list is empty"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, r"prompt\[0\].role: 'assistant'"),
        ({"answer": None}, "answer: a null where text"),
        ({"answer": True}, "answer: a boolean where text"),
        ({"answer": " "}, "answer: the text is empty"),
        ({"verifier": 1}, "verifier: a number where text"),
    ],
)
def test_prompts_are_refused_with_a_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        read({**GOOD, **changes})


@pytest.mark.parametrize("field", list(GOOD))
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(RecordError, match=f"no field '{field}'; the record has "):
        read({name: value for name, value in GOOD.items() if name != field})


def events(ids: Any) -> event_sequences.EventSequence:
    return event_sequences.parse(Record("log", "log.jsonl:1", {"ids": ids}), EventSequenceConfig(semantic_id_count=10))


def test_events_follow_the_text_vocabulary_and_all_but_the_first_are_targets() -> None:
    (document,) = event_sequences.documents([events([9, 0, 3])], text_vocabulary_size=500)
    assert document.input_ids_T.tolist() == [509, 500, 503]
    assert document.input_ids_T.dtype == np.int32
    assert document.loss_mask_T.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([1], "ids: 1 ids; a sequence needs 2"),
        ("1 2", "ids: a text where a list of ids"),
        ([1, 2.0], r"ids\[1\]: a number where an id"),
        ([1, True], r"ids\[1\]: a boolean where an id"),
        ([1, "2"], r"ids\[1\]: a text where an id"),
        ([1, 10], r"ids\[1\]: 10 is out of range; ids are from 0 to 9"),
        ([-1, 1], r"ids\[0\]: -1 is out of range"),
        ([1, 10**400], r"ids\[1\]: 1000.* is out of range"),
    ],
)
def test_event_sequences_are_refused_with_a_reason(ids: Any, reason: str) -> None:
    with pytest.raises(RecordError, match=reason) as caught:
        events(ids)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("content", [[], {"events": [1, 2]}])
def test_a_record_without_ids_is_refused(content: Any) -> None:
    with pytest.raises(RecordError, match="'ids'"):
        event_sequences.parse(Record("", "", content), EventSequenceConfig(10))
