"""The job file is valid as it stands, and all its pairs are prepared."""

import json
from pathlib import Path

from finecut.dataprep.stage import run_stage
from finecut.examples.preferences.write_pairs import pairs
from finecut.proto import artifact_pb2
from finecut.proto.config import load_job

JOB = Path(__file__).parent / "job.textproto"


def test_the_job_resolves_and_its_pairs_are_prepared_without_a_bad_record(tmp_path: Path) -> None:
    job = load_job(JOB, storage_root=str(tmp_path))
    assert [stage.name for stage in job.stages] == ["pairs", "dpo", "reward"]
    data = run_stage(job, "pairs").data
    train, evaluation = data.splits
    assert data.kind == artifact_pb2.DataArtifact.PAIRS and not data.sources[0].bad_record_count
    assert train.document_count + evaluation.document_count == 2 * data.sources[0].record_count > 2000
    assert evaluation.document_count > 50


def test_a_pair_is_an_answer_and_one_to_another_question() -> None:
    exchanges = [(f"question {number}", f"answer {number % 600}") for number in range(1000)]
    found = pairs(exchanges)
    assert len(found) == 1000 and all(record["chosen"] != record["rejected"] for record in found)
    assert found[0] == {"prompt": "question 0", "chosen": "answer 0", "rejected": "answer 397"}
    assert pairs([("a", "same"), ("b", "same")]) == []


def test_the_built_pairs_are_the_corpus_dialogues() -> None:
    lines = (Path(__file__).parent / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) > 1000 and all(set(record) == {"prompt", "chosen", "rejected"} for record in records)
