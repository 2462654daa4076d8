"""Every job file of the library is valid and planned; the same stages run on a tiny model, on a CPU."""

import json
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from finecut.dataprep.stage import run_stage as prepare
from finecut.launcher.planner import plan
from finecut.proto import job_pb2
from finecut.proto.config import ConfigError, diff, load_job, resolve
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
SMALLER["data_prep"] = ("packing.block_size=128",)
SMALLER["grpo"] = ("training.max_steps=2", "group_size=2", "rollout.prompts_per_step=2", "rollout.max_new_tokens=8")


# Exports that are reloaded in vLLM as well; a start for each of the others would show the same of the same models. That
# of 70B says itself that it is not, and adapters are left to trainer/stages:vllm_check_test.
CHECKED_IN_VLLM = {"llama_8b_chat_sft_8gpu.textproto", "qwen3_0.6b_recommendations_1gpu.textproto"}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where a user stands who has downloaded the models and gathered the data; all of it tiny."""
    monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(tmp_path))
    for name, heads in (("Llama-3.1-70B", 64), ("Llama-3.1-8B", 32), ("Llama-3.2-1B", 32)):
        # Positions and heads as in the models, so that what is checked of them is checked here. Heads of 32: vLLM's
        # attention on CPUs takes no smaller ones.
        folder = tmp_path / "models" / f"{name}-Instruct"
        write_tiny_llama(folder, max_position_embeddings=131_072, num_attention_heads=heads, head_dim=32)
    write_tiny_model(tmp_path / "models" / "Qwen3-0.6B", "qwen3", max_position_embeddings=40_960, head_dim=32)
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
    hosts = sum(8 * group.node_count for group in job.cluster.node_groups)  # all are p5.48xlarge
    num_gpus = int(name.removesuffix("gpu.textproto").rpartition("_")[2])
    assert (job.cluster.local.rank_count or hosts) == num_gpus


MACHINES = {
    "one CPU machine": "local { rank_count: 1 cpu_count: 2 }",
    "one GPU": "local { rank_count: 1 }",
    "two GPUs": "local { rank_count: 2 }",
    "eight GPUs": "local { rank_count: 8 }",
    "hosts that are there": """
        static {
          launcher_address: "10.0.0.1"
          hosts { address: "10.0.0.2" access: SSH }
          hosts { address: "10.0.0.3" access: SSH }
        }
    """,
    "AWS": """
        aws {
          region: "us-east-1"
          subnet_ids: "subnet-1"
          bundle: "s3://code/bundle.tar.gz"
          file_system { source: "files.example:/" folder: "HOME" }
        }
        node_groups { name: "train" node_count: 2 instance_types: "p5.48xlarge" market: SPOT }
    """,
}
# What fewer ranks than a tensor-parallel group cannot do.
TOO_SMALL = {
    ("llama_8b_long_context_8gpu.textproto", 1),
    ("llama_70b_sft_32gpu.textproto", 1),
    ("llama_70b_sft_32gpu.textproto", 2),
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", JOBS)
def test_another_machine_changes_the_cluster_block_alone(home, name, machine):
    here = load_job(FOLDER / name)
    written = text_format.Parse((FOLDER / name).read_text(), job_pb2.JobConfig())
    written.cluster.Clear()
    text_format.Parse(MACHINES[machine].replace("HOME", str(home)), written.cluster)
    written.storage.root = here.storage.root
    if (name, written.cluster.local.rank_count) in TOO_SMALL:
        with pytest.raises(ConfigError, match="tensor_parallel_size"):
            resolve(written, base_dir=home)
        return
    there = resolve(written, base_dir=home)
    assert [s.SerializeToString() for s in there.stages] == [s.SerializeToString() for s in here.stages]
    assert all(line.startswith("cluster.") for line in diff(here, there))


# Ray reads its token when it is first imported, as vLLM does: what starts a Ray goes before what has only vLLM.
@pytest.mark.parametrize("name", sorted(JOBS, key=lambda name: "grpo" not in name))
def test_runs_on_a_cpu_when_scaled_down(home, name):
    job = scaled_down(name)
    run = RunFolder.of(job)
    for stage in plan(job).order:
        found = next(one for one in job.stages if one.name == stage)
        match found.WhichOneof("work"):
            case "data_prep":
                prepare(job, stage)
            case "evaluate":
                del found.evaluate.gates[:]  # two steps teach nothing
                train(job, stage)
            case "deploy":
                # Its endpoint, with a Ray of its own, would outlive the test: trainer/serving:deploy_test and
                # tests/e2e:served_job_test have some, and end them.
                continue
            case _:
                train(job, stage)
        artifacts.read(run.artifact(stage), verify=True)


def scaled_down(name):
    """The job with whatever it asks of its hardware cut down to one core."""
    job = load_job(FOLDER / name)
    changes = (
        ["cluster.local.rank_count=1"] if job.cluster.HasField("local") else []
    )  # ranks are the test's own process
    for stage in job.stages:
        work = stage.WhichOneof("work")
        changes += [f"stages.{stage.name}.{work}.{change}" for change in SMALLER.get(work, ())]
        if work == "export" and name not in CHECKED_IN_VLLM:
            changes.append(f"stages.{stage.name}.export.check_vllm=false")
        changes += [
            f"stages.{stage.name}.evaluate.tasks.{t.name}.generation.max_new_tokens=8"
            for t in stage.evaluate.tasks
            if t.HasField("generation")
        ]
        if stage.data_prep.evaluation.fraction:
            changes.append(f"stages.{stage.name}.data_prep.evaluation.fraction=0.3")
    if "recommendations" in name:
        changes.append(f"stages.prepare.data_prep.sources.histories.event_sequence.semantic_id_count={NUM_ITEMS}")
        changes.append(f"stages.sft.sft.model.semantic_id_count={NUM_ITEMS}")
    return load_job(FOLDER / name, changes)
