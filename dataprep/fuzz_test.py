"""Whatever a file holds, reading and parsing it ends in samples or in reported errors, never in another exception."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finecut.dataprep import readers
from finecut.dataprep.config import (
    ConversationConfig,
    EventSequenceConfig,
    FilterConfig,
    InteractionConfig,
    PreferenceConfig,
    PromptConfig,
    RecordConfig,
    SourceConfig,
    TextConfig,
)
from finecut.dataprep.filtering import Filter
from finecut.dataprep.parsing import parser_of
from finecut.dataprep.records import BadRecord, RecordError
from finecut.proto.config import UserError

CALL = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
GOOD: dict[str, tuple[RecordConfig, dict[str, Any]]] = {
    "openai": (
        ConversationConfig(system_prompt="Be kind."),
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "21", "tool_call_id": "a"},
                {"role": "assistant", "content": "Mild.", "weight": 1},
            ],
            "tools": [{"name": "weather"}],
            "lang": "en",
        },
    ),
    "sharegpt": (
        ConversationConfig(schema="SHAREGPT", messages_field="conversations"),
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {}}'},
                {"from": "observation", "value": "21"},
                {"from": "gpt", "value": "Mild.", "weight": 0},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello"},
            ],
            "system": "Be kind.",
            "lang": "en",
        },
    ),
    "alpaca": (
        ConversationConfig(schema="ALPACA"),
        {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be kind.", "lang": "en"},
    ),
    "text": (TextConfig(), {"text": "Once upon a time.", "lang": "en"}),
    "interaction": (
        InteractionConfig("{% for event in events %}{{ event.item }}{% endfor %}", "{{ event.item }}"),
        {"events": [{"item": "tea"}, {"item": "rain"}, {"item": "cake"}], "lang": "en"},
    ),
    "preference": (
        PreferenceConfig(margin_field="margin"),
        {
            "prompt": "Hi",
            "chosen": "Hello",
            "rejected": [{"role": "assistant", "content": "Go"}],
            "margin": 1.5,
            "lang": "en",
        },
    ),
    "whole conversations": (
        PreferenceConfig(),
        {
            "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
            "rejected": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Go", "tool_calls": [CALL]},
            ],
            "tools": [{"name": "weather"}],
            "lang": "en",
        },
    ),
    "prompt": (
        PromptConfig(reference_field="answer", verifier_field="verifier"),
        {"prompt": [{"role": "user", "content": "6 x 7?"}], "answer": 42, "verifier": "math", "lang": "en"},
    ),
    "events": (EventSequenceConfig(10), {"ids": [1, 2, 9, 0], "lang": "en"}),
}
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(
        ["", " ", "\ud800", "user", "assistant", "tool", "system", "{", "[]", "{}", [], {}, [[]], [{}], 10**400]
    ),
)


def positions(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value below, outermost first."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [found for name, item in items for found in positions(item, (*path, name))]


def replace(parent: Any, name: Any, odd: Any) -> None:
    parent[name] = odd


def remove(parent: Any, name: Any, odd: Any) -> None:
    del parent[name]


def disorder(parent: Any, name: Any, odd: Any) -> None:
    if isinstance(parent, list):
        parent.reverse()
    else:
        parent["extra"] = odd


@st.composite
def mutated(draw: st.DrawFn, kind: str) -> bytes:
    """A good record with some values replaced, removed or moved, and then perhaps some bytes."""
    record = json.loads(json.dumps(GOOD[kind][1]))
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(positions(record)[1:] or [()]))
        if not path:
            break
        parent = record
        for name in path[:-1]:
            parent = parent[name]
        draw(st.sampled_from([replace, remove, disorder]))(parent, path[-1], copy.deepcopy(draw(ODD)))
    line = json.dumps(record).encode()
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(line)))
        line = line[:at] + draw(st.binary(max_size=3)) + line[at + draw(st.integers(0, 3)) :]
    return line


def outcomes(path: Path, record: RecordConfig) -> list[str]:
    """What became of each record: "sample", or the reason why not."""
    source = SourceConfig("fuzz", (str(path),), record=record, read_all_fields=True)
    parse, found = parser_of(record), []
    wanted = Filter(FilterConfig(expression="lang != 'de'", language_field="lang", languages=("en",)))
    for item in readers.read(source, path):
        if isinstance(item, BadRecord):
            found.append(str(item))
            continue
        try:
            found.append("sample" if wanted.keeps_record(item) and parse(item) else "left out")
        except RecordError as error:
            found.append(str(BadRecord(item.source, item.place, str(error))))
    return found


@pytest.mark.parametrize("kind", GOOD)
def test_a_good_record_is_a_sample(kind: str, tmp_path: Path) -> None:
    record, content = GOOD[kind]
    (tmp_path / "a.jsonl").write_text(json.dumps(content))
    assert outcomes(tmp_path / "a.jsonl", record) == ["sample"]


@pytest.mark.parametrize("kind", GOOD)
@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_records_are_samples_or_reported(kind: str, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(data.draw(mutated(kind)) + b"\n" + json.dumps(GOOD[kind][1]).encode())
    *_, last = found = outcomes(path, GOOD[kind][0])
    assert last == "sample"  # a bad line never harms the next
    assert all(what in ("sample", "left out") or what.startswith(f"{path}:") for what in found)
    assert all("\n" not in what for what in found)


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=st.lists(st.sampled_from([b"a", b",", b'"', b"\n", b"\r", b"\xff", b"\x00", "é".encode()]), max_size=40))
def test_any_csv_is_samples_or_reported(tmp_path: Path, body: list[bytes]) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,lang\n" + b"".join(body))
    try:
        assert all(
            what in ("sample", "left out") or what.startswith(f"{path}:") for what in outcomes(path, TextConfig())
        )
    except UserError as error:
        pytest.fail(f"a bad line stops the file: {error}")
