"""Both job files are valid as they stand and have the same stages; their data are prepared without a bad record."""

from pathlib import Path

from finecut.dataprep.prompt_shards import PromptReader
from finecut.dataprep.stage import run_stage
from finecut.examples.rlhf import write_preferences
from finecut.launcher.planner import plan
from finecut.proto.config import diff, load_job, waves
from finecut.proto.run import RunFolder

FOLDER = Path(__file__).parent


def test_both_files_have_the_same_stages_which_read_from_each_other(tmp_path: Path) -> None:
    small, large = (load_job(FOLDER / name, storage_root=str(tmp_path)) for name in ("job.textproto", "gpus.textproto"))
    kinds = [(stage.name, stage.WhichOneof("work")) for stage in small.stages]
    assert kinds == [(stage.name, stage.WhichOneof("work")) for stage in large.stages]
    order = [set(wave) for wave in waves(small)]
    assert order == [{"conversations", "pairs", "prompts"}, {"sft"}, {"dpo", "reward"}, {"ppo"}, {"measure", "export"}]
    ppo = next(stage.ppo for stage in small.stages if stage.name == "ppo")
    assert (ppo.model.path, ppo.rewards[0].model, ppo.data) == ("@dpo", "@reward", "@prompts")


def test_both_are_planned_and_gpus_change_the_cluster_block_alone(tmp_path: Path) -> None:
    for name, ranks in (("job.textproto", 0), ("gpus.textproto", 8)):
        job = load_job(FOLDER / name, storage_root=str(tmp_path))
        assert sorted(plan(job).order) == sorted(stage.name for stage in job.stages)
        assert job.cluster.local.rank_count == ranks
    here, there = (
        load_job(FOLDER / "job.textproto", [f"cluster.local.{machine}"], storage_root=str(tmp_path))
        for machine in ("cpu_count=2", "rank_count=2")
    )
    assert [stage.SerializeToString() for stage in here.stages] == [stage.SerializeToString() for stage in there.stages]
    assert plan(there).order == plan(here).order and all(line.startswith("cluster.") for line in diff(here, there))


def test_its_data_are_prepared_without_a_bad_record(tmp_path: Path) -> None:
    job = load_job(FOLDER / "job.textproto", storage_root=str(tmp_path))
    for stage in ("conversations", "pairs", "prompts"):
        artifact = run_stage(job, stage)
        assert artifact.data.sources[0].record_count > 500 and not artifact.data.sources[0].bad_record_count
    splits = [PromptReader(RunFolder.of(job).artifact("prompts"), split) for split in ("train", "evaluation")]
    assert sum(map(len, splits)) == artifact.data.sources[0].record_count and len(splits[1]) > 4


def test_an_answer_that_fits_is_never_rejected() -> None:
    turns = [("a", "1"), ("b", "2")] * write_preferences._DISTANCE + [("a", "3")]
    for pair in write_preferences.pairs_of(turns):
        assert pair["rejected"] not in {"a": {"1", "3"}, "b": {"2"}}[pair["prompt"]]
