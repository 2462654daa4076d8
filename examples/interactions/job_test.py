"""The job file is valid as it stands but for the model, which is a tiny one here, and its log becomes conversations."""

import json
from pathlib import Path

import pytest

from finecut.dataprep import shards, tokenization
from finecut.dataprep.stage import run_stage
from finecut.dataprep.testing import write_tiny_tokenizer
from finecut.proto import job_pb2
from finecut.proto.config import load_job
from finecut.proto.run import RunFolder

JOB = Path(__file__).parent / "job.textproto"
LOG = Path(__file__).parent / "viewing.jsonl"


@pytest.fixture
def job(tmp_path: Path) -> job_pb2.JobConfig:
    model = write_tiny_tokenizer(tmp_path / "model")
    (model / "config.json").write_text("{}")
    changes = [f"stages.prepare.data_prep.tokenization.tokenizer={model}", f"stages.sft.sft.model.path={model}"]
    return load_job(JOB, changes, storage_root=str(tmp_path / "runs"))


def test_the_job_resolves(job: job_pb2.JobConfig) -> None:
    assert [stage.name for stage in job.stages] == ["prepare", "sft"]
    assert Path(job.stages[0].data_prep.sources[0].paths[0]).samefile(LOG)
    assert job.stages[1].sft.model.lora.rank == 8


def test_each_english_log_becomes_one_document_that_trains_its_last_item(job: job_pb2.JobConfig) -> None:
    data = run_stage(job, "prepare").data
    logs = [json.loads(line) for line in LOG.read_text(encoding="utf-8").splitlines()]
    english = [log for log in logs if log["language"] == "en"]
    assert 0 < len(english) < len(logs) == data.sources[0].record_count
    assert dict(data.sources[0].filtered_record_counts) == {"languages": len(logs) - len(english)}
    reader = shards.SplitReader(RunFolder.of(job).artifact("prepare"), "train")
    tokenizer = tokenization.load(job.stages[0].data_prep.tokenization.tokenizer)
    blocks = reader.read(range(len(reader)))
    answers = []
    for n in range(len(reader)):
        for document in range(blocks.document_id_NL[n].max() + 1):
            inside_L = (blocks.document_id_NL[n] == document) & blocks.loss_mask_NL[n]
            answers.append(tokenizer.decode(blocks.input_ids_NL[n][inside_L]))
    assert sorted(answers) == sorted(f"{log['events'][-1]['item']}<|im_end|>" for log in english)
