"""Every job file of the library is valid and planned; the same stages run on a tiny model, on a CPU."""

import json
from pathlib import Path

import numpy as np
import pytest

from finecut.dataprep.stage import run_stage as prepare
from finecut.launcher.planner import plan
from finecut.proto.config import ConfigError, diff, load_job
from finecut.proto.run import RunFolder, artifacts
from finecut.trainer.stage import run_stage as train
from finecut.trainer.testing import write_tiny_llama, write_tiny_model

FOLDER = Path(__file__).parent
JOBS = sorted(path.name for path in FOLDER.glob("*.textproto"))
NUM_ITEMS = 40

_TRAINING = ("max_steps=2", "batch.global_blocks=1", "batch.micro_blocks=1", "compile=false")
_TRAINING += ("parallelism.tensor_parallel_size=1",)
# By the stage's kind.
SMALLER = {kind: tuple(f"training.{change}" for change in _TRAINING) for kind in ("sft", "dpo", "distill")}
SMALLER |= {"data_prep": ("packing.block_size=128",), "export": ("check_vllm=false",)}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where a user stands who has downloaded the models and gathered the data; all of it tiny."""
    monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(tmp_path))
    for name in ("Llama-3.1-8B-Instruct", "Llama-3.2-1B-Instruct"):
        # Positions and heads as in the models, so that what is checked of them is checked here.
        write_tiny_llama(
            tmp_path / "models" / name, max_position_embeddings=131_072, num_attention_heads=32, head_dim=2
        )
    write_tiny_model(tmp_path / "models" / "Qwen3-0.6B", "qwen3", max_position_embeddings=40_960)
    write_data(tmp_path / "data")
    return tmp_path


def write_data(folder):
    folder.mkdir()
    random = np.random.default_rng(0)

    def write(name, records):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")

    def turns(number):
        question, answer = f"What is {number} and one?", f"It is {number + 1}."
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    for name in ("chat.jsonl", "long.jsonl"):
        write(name, ({"messages": turns(n)} for n in range(120)))
    write("questions.jsonl", ({"prompt": f"What is {n} and one?", "answer": n + 1} for n in range(8)))
    pairs = ({"prompt": f"Say {n}.", "chosen": f"{n}!", "rejected": f"No {n}."} for n in range(60))
    write("preferences.jsonl", pairs)
    write("histories.jsonl", ({"ids": random.integers(NUM_ITEMS, size=12).tolist()} for _ in range(120)))


@pytest.mark.parametrize("name", JOBS)
def test_is_valid_and_planned(home, name):
    job = load_job(FOLDER / name)
    planned = plan(job)
    assert sorted(planned.order) == sorted(stage.name for stage in job.stages)
    assert job.cluster.local.rank_count == int(name.removesuffix("gpu.textproto").rpartition("_")[2])


@pytest.mark.parametrize("cluster", ["rank_count=1", "rank_count=2", "rank_count=8", "cpu_count=2"])
@pytest.mark.parametrize("name", JOBS)
def test_another_machine_changes_the_cluster_block_alone(home, name, cluster):
    """A machine with one GPU (or none), with several, and with fewer cores."""
    here = load_job(FOLDER / name)
    if cluster == "rank_count=1" and "long_context" in name:
        with pytest.raises(ConfigError, match="tensor_parallel_size"):  # the one thing that one GPU cannot do
            load_job(FOLDER / name, [f"cluster.local.{cluster}"])
        return
    there = load_job(FOLDER / name, [f"cluster.local.{cluster}"])
    assert [s.SerializeToString() for s in there.stages] == [s.SerializeToString() for s in here.stages]
    assert all(line.startswith("cluster.") for line in diff(here, there))


@pytest.mark.parametrize("name", JOBS)
def test_runs_on_a_cpu_when_scaled_down(home, name):
    job = scaled_down(name)
    run = RunFolder.of(job)
    for stage in plan(job).order:
        found = next(one for one in job.stages if one.name == stage)
        match found.WhichOneof("work"):
            case "data_prep":
                prepare(job, stage)
            case "evaluate" if not any(task.HasField("generation") for task in found.evaluate.tasks):
                del found.evaluate.gates[:]  # two steps teach nothing
                train(job, stage)
            case "evaluate" | "deploy":
                continue  # start vLLM, which the tests of these stages do
            case _:
                train(job, stage)
        artifacts.read(run.artifact(stage), verify=True)


def scaled_down(name):
    """The job with whatever it asks of its hardware cut down to one core."""
    changes = ["cluster.local.rank_count=1"]
    for stage in load_job(FOLDER / name).stages:
        work = stage.WhichOneof("work")
        changes += [f"stages.{stage.name}.{work}.{change}" for change in SMALLER.get(work, ())]
        if stage.data_prep.evaluation.fraction:
            changes.append(f"stages.{stage.name}.data_prep.evaluation.fraction=0.3")
    if "recommendations" in name:
        changes.append(f"stages.prepare.data_prep.sources.histories.event_sequence.semantic_id_count={NUM_ITEMS}")
        changes.append(f"stages.sft.sft.model.semantic_id_count={NUM_ITEMS}")
    return load_job(FOLDER / name, changes)
