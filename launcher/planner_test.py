"""Plans: waves, inputs, outputs, numbers."""

from pathlib import Path

from finecut.launcher import planner, testing
from finecut.proto.config import load_job

DIAMOND = """
stages { name: "export" export { model: "@sft" } after: "@other" }
stages { name: "sft" sft { model { path: "FOLDER/model" lora { rank: 8 } } data: "@prepare" training { epochs: 2 } } }
stages { name: "other" sft { model { path: "FOLDER/model" } data: "@prepare" training { max_steps: 3 } } }
stages {
  name: "prepare"
  data_prep {
    sources { paths: "FOLDER/chat.jsonl" }
    tokenization { tokenizer: "FOLDER/model" }
    packing { block_size: 32 }
  }
}
"""


def plan_of(folder: Path, stages: str = DIAMOND) -> planner.Plan:
    return planner.plan(load_job(testing.write_job(folder, stages=stages)))


def test_independent_stages_share_a_wave_and_each_wave_follows_what_it_needs(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert [sorted(stage.name for stage in wave) for wave in plan.waves] == [["prepare"], ["other", "sft"], ["export"]]
    assert plan.order[0] == "prepare" and plan.order[-1] == "export"


def test_stage_tells_what_it_reads_needs_and_writes(tmp_path: Path) -> None:
    stages = {stage.name: stage for wave in plan_of(tmp_path).waves for stage in wave}
    assert stages["prepare"].reads == (f"{tmp_path}/chat.jsonl", f"{tmp_path}/model")
    assert stages["sft"].reads == (f"{tmp_path}/model", "@prepare")
    assert stages["export"].reads == ("@sft",)
    assert stages["export"].needs == ("other", "sft")
    assert stages["export"].writes == f"{tmp_path}/runs/tiny/stages/export/artifact"


def test_numbers_are_resolved(tmp_path: Path) -> None:
    stages = {stage.name: stage.numbers for wave in plan_of(tmp_path).waves for stage in wave}
    assert stages["sft"]["tokens_per_step"] == 32 * 8
    assert stages["sft"]["length"] == "2 epochs"
    assert stages["sft"]["method"] == "lora, rank 8"
    assert (stages["sft"]["learning_rate"], stages["other"]["learning_rate"]) == (2e-4, 2e-5)
    assert stages["other"]["length"] == "3 steps"
    assert stages["prepare"]["block_size"] == 32
