"""Answers from before training: of the model that training goes back to, and none where they cannot be had."""

import shutil
from pathlib import Path

import pytest
import transformers
from google.protobuf import text_format

from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.config import resolve
from finecut.proto.run import RunFolder, artifacts
from finecut.proto.run.events import follow
from finecut.trainer.stages import earlier_answers, export
from finecut.trainer.stages.samples import answer
from finecut.trainer.testing import write_tiny_llama

STAGES = """
stages {
  name: "prepare"
  data_prep {
    sources { paths: "FOLDER/chat.jsonl" }
    tokenization { tokenizer: "FOLDER/old" }
    packing { block_size: 128 }
  }
}
stages { name: "first" sft { model { path: "FOLDER/old" } data: "@prepare" } }
stages { name: "second" sft { model { path: "@first" } data: "@prepare" } }
stages {
  name: "export"
  export { model: "@second" sample_prompts: "How are you?" sample_max_new_tokens: 6 check_vllm: false FIELDS }
}
"""


def trained_job(folder: Path, fields: str = "") -> job_pb2.JobConfig:
    """A job whose stage "second" has made another model than its first one started from."""
    write_tiny_llama(folder / "old", seed=1)
    (folder / "chat.jsonl").write_text("{}\n")
    stages = STAGES.replace("FOLDER", str(folder)).replace("FIELDS", fields)
    text = f'name: "test" storage {{ root: "{folder}/runs" }} {stages}'
    job = resolve(text_format.Parse(text, job_pb2.JobConfig()), base_dir=folder)
    made = write_tiny_llama(RunFolder.of(job).artifact("second"), seed=2)
    artifacts.write(made, artifact_pb2.Artifact(job="test", stage="second", model=artifact_pb2.ModelArtifact(steps=3)))
    return job


def test_export_keeps_what_the_first_model_answered(tmp_path: Path) -> None:
    job = trained_job(tmp_path)
    (sample,) = export.run_export(job, "export").model.samples
    old = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "old")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "old")
    assert sample.answer_before == answer(old, tokenizer, "How are you?", 6, [old.config.eos_token_id])
    assert sample.answer_before != sample.answer


def test_a_stage_may_decline(tmp_path: Path) -> None:
    (sample,) = export.run_export(trained_job(tmp_path, "sample_model_before: false"), "export").model.samples
    assert sample.answer and not sample.HasField("answer_before")


def test_a_first_model_that_is_gone_is_said_and_the_export_goes_on(tmp_path: Path) -> None:
    job = trained_job(tmp_path)
    shutil.rmtree(tmp_path / "old")
    (sample,) = export.run_export(job, "export").model.samples
    assert sample.answer and not sample.HasField("answer_before")
    said = [event.message for event in follow(RunFolder.of(job).events("export"))[0]]
    assert any(message.startswith("no answers from before training") for message in said)


@pytest.mark.parametrize("reference", ["@first", "@second", "@export"])
def test_the_origin_lies_behind_all_stages(tmp_path: Path, reference: str) -> None:
    assert earlier_answers.origin(trained_job(tmp_path), reference) == tmp_path / "old"
