"""Kinds of record: what mixes, and what a setting says nothing for, is told from the job file alone."""

from pathlib import Path

import pytest
from google.protobuf import text_format

from finecut.proto import job_pb2
from finecut.proto.config import ConfigError, resolve

PREFERENCE, PROMPT = "preference {}", "prompt {}"
EVENTS = "event_sequence { semantic_id_count: 100 }"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def problems(home: Path, *records: str, settings: str = "", stages: str = "") -> list[str]:
    """What is wrong with a stage of sources of these kinds."""
    sources = " ".join(f'sources {{ name: "s{n}" paths: "a.jsonl" {record} }}' for n, record in enumerate(records))
    job = text_format.Parse(
        f'name: "kinds" stages {{ name: "prepare" data_prep {{ {sources} tokenization {{ tokenizer: "model" }} '
        f"{settings} }} }} {stages}",
        job_pb2.JobConfig(),
    )
    try:
        resolve(job, base_dir=home)
    except ConfigError as error:
        return [f"{problem.path}: {problem.message}" for problem in error.problems]
    return []


@pytest.mark.parametrize(
    "records", [[PREFERENCE, PREFERENCE], [PROMPT], ["", "text {}", EVENTS, EVENTS], [PREFERENCE], [EVENTS]]
)
def test_sources_of_one_kind_mix(home: Path, records: list[str]) -> None:
    assert problems(home, *records) == []


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (["", PREFERENCE], "sources[1].preference: makes preference pairs, and sources[0] makes documents"),
        ([PREFERENCE, "text {}"], "sources[1].text: makes documents, and sources[0] makes preference pairs"),
        ([PROMPT, PREFERENCE], "sources[1].preference: makes preference pairs, and sources[0] makes prompts"),
        ([EVENTS, PROMPT], "sources[1].prompt: makes prompts, and sources[0] makes documents"),
    ],
)
def test_kinds_do_not_mix(home: Path, records: list[str], reason: str) -> None:
    (found,) = problems(home, *records)
    assert found.startswith(f"stages[0].data_prep.{reason}; they cannot stand in one stage")


def test_all_event_sequences_share_one_vocabulary(home: Path) -> None:
    (found,) = problems(home, EVENTS, "event_sequence { semantic_id_count: 7 }")
    assert found.endswith(
        "sources[1].event_sequence.semantic_id_count: 7 where another source of the stage has 100; "
        "all share one vocabulary"
    )
    (found,) = problems(home, "event_sequence {}")
    assert found.endswith("semantic_id_count: is required and not set")


@pytest.mark.parametrize(
    ("record", "settings", "reason"),
    [
        (PREFERENCE, "long_documents: SPLIT", "long_documents: SPLIT would part a preference pair"),
        (PROMPT, "long_documents: SPLIT", "long_documents: SPLIT would have a prompt ask something else"),
        (PROMPT, "long_documents: TRUNCATE", "long_documents: TRUNCATE would have a prompt ask something else"),
        (PROMPT, "mode: ON_THE_FLY", "mode: ON_THE_FLY says nothing for prompts"),
        (PROMPT, "mode: NONE", "mode: NONE says nothing for prompts"),
    ],
)
def test_settings_that_make_no_sense_are_refused(home: Path, record: str, settings: str, reason: str) -> None:
    (found,) = problems(home, record, settings=f"packing {{ {settings} }}")
    assert found.startswith(f"stages[0].data_prep.packing.{reason}")


@pytest.mark.parametrize(("record", "kind"), [(PREFERENCE, "preference pairs"), (PROMPT, "prompts")])
def test_supervised_training_takes_documents(home: Path, record: str, kind: str) -> None:
    sft = 'stages { name: "sft" sft { data: "@prepare" model { path: "model" } } }'
    assert problems(home, record, stages=sft) == [
        f'stages[1].sft.data: stage "prepare" makes {kind}, and sft trains on documents'
    ]
