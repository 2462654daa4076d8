"""Builders for tests: prepared prompts, documents and event sequences for a tiny model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from google.protobuf import text_format

from finecut.dataprep.stage import run_stage
from finecut.proto import job_pb2
from finecut.proto.config import resolve
from finecut.proto.run import RunFolder


def make_job(root: Path, *stages: str) -> job_pb2.JobConfig:
    """A resolved job whose runs go to `root`/runs; ROOT in its stages stands for `root`."""
    text = f'name: "test" storage {{ root: "{root}/runs" }} ' + " ".join(stages).replace("ROOT", str(root))
    return resolve(text_format.Parse(text, job_pb2.JobConfig()), base_dir=root)


def prepare_prompts(root: Path, model: Path, records: Sequence[Mapping[str, str]], name: str = "prompts") -> Path:
    """Prompts with references, all in the split "train"; returns the artifact."""
    return _prepare(root, model, records, 'prompt { reference_field: "reference" }', name)


def prepare_conversations(root: Path, model: Path, pairs: Sequence[tuple[str, str]]) -> Path:
    """Questions and answers, all in the split "train"; returns the artifact."""
    records = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in pairs
    ]
    return _prepare(root, model, records, "conversation {}", "conversations")


def prepare_sequences(root: Path, model: Path, sequences: Sequence[Sequence[int]], num_ids: int) -> Path:
    """Event sequences, all in the split "train"; returns the artifact."""
    records = [{"ids": list(sequence)} for sequence in sequences]
    return _prepare(root, model, records, f"event_sequence {{ semantic_id_count: {num_ids} }}", "sequences")


def _prepare(root: Path, model: Path, records: Sequence[Mapping[str, object]], record: str, name: str) -> Path:
    path = root / f"{name}.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    job = make_job(
        root,
        f"""stages {{ name: "{name}" data_prep {{
            sources {{ paths: "{path}" {record} }}
            tokenization {{ tokenizer: "{model}" }}
            packing {{ block_size: 128 }}
        }} }}""",
    )
    run_stage(job, name)
    return RunFolder.of(job).artifact(name)
