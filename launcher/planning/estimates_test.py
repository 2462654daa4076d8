"""Estimates of whole jobs: what fits, what does not and what would, and what is not known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finecut.launcher import testing
from finecut.launcher.planning import estimates, hardware
from finecut.launcher.planning.estimates import Estimate
from finecut.proto import job_pb2, recipes_pb2
from finecut.proto.config import UserError, load_job

LLAMA3_8B = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 4_096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8_192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
PREPARE = """
stages {
  name: "prepare"
  data_prep {
    sources { paths: "FOLDER/chat.jsonl" }
    tokenization { tokenizer: "FOLDER/model" }
    packing { block_size: 8192 }
  }
}
"""
SFT = 'stages {{ name: "sft" sft {{ model {{ path: "FOLDER/model" {} }} data: "@prepare" training {{ {} }} }} }}'


def job_of(folder: Path, model: str = "", training: str = "max_steps: 100", more: str = "") -> job_pb2.JobConfig:
    path = testing.write_job(folder, stages=PREPARE + SFT.format(model, training) + more)
    (folder / "model" / "config.json").write_text(json.dumps(LLAMA3_8B))
    return load_job(path)


def estimate(job: job_pb2.JobConfig, devices: str, stage: str = "sft") -> Estimate:
    found, missing = estimates.of_job(job, hardware.parse(devices))
    assert not missing
    return found[stage]


def test_a_stage_that_fits_has_memory_time_and_cost(tmp_path: Path) -> None:
    found = estimate(job_of(tmp_path, training="max_steps: 100 compile: true"), "8xH100@55.04")
    assert found.fits and found.parameters.total == 8_030_261_248
    assert found.steps == 100 and found.hours == pytest.approx(100 * found.step_seconds / 3600)
    assert found.cost_usd == pytest.approx(found.hours * 55.04)
    assert 0.2 < found.mfu < 0.6


def test_what_does_not_fit_is_refused_with_what_does(tmp_path: Path) -> None:
    found = estimate(job_of(tmp_path), "2xL40S")
    assert not found.fits
    assert "needs" in found.refusal() and "optimizer" in found.refusal()
    assert found.proposal and found.proposal.startswith("this fits: ") and "offload_optimizer: true" in found.proposal
    one = estimate(job_of(tmp_path), "T4")
    assert not one.fits and one.proposal and " x T4 fit: " in one.proposal


def test_automatic_takes_the_proposal(tmp_path: Path) -> None:
    found = estimate(job_of(tmp_path, training="max_steps: 1 parallelism { mode: AUTO }"), "2xL40S")
    assert found.fits and found.layout.offload_optimizer
    assert found.proposal and found.proposal.startswith("AUTO takes ")


def test_a_stage_takes_the_shape_of_the_model_that_it_continues(tmp_path: Path) -> None:
    more = 'stages { name: "more" sft { model { path: "@sft" lora { rank: 8 } } data: "@prepare" } }'
    found, missing = estimates.of_job(job_of(tmp_path, more=more), hardware.parse("8xH100"))
    assert not missing
    assert found["more"].parameters.frozen == found["sft"].parameters.total
    assert found["more"].steps is None and found["more"].hours is None


def test_a_reference_takes_memory_and_adapters_need_none(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    full, adapters = recipes_pb2.Dpo(data="@prepare"), recipes_pb2.Dpo(data="@prepare")
    adapters.model.lora.rank = 8
    for name, work in (("full", full), ("adapters", adapters)):
        work.model.path, work.training.batch.global_blocks = "@sft", 8
        job.stages.add(name=name, dpo=work)
    found, _ = estimates.of_job(job, hardware.parse("8xH100"))
    assert found["full"].memory.frozen > 2 * 8.03e9 / 8
    assert found["adapters"].memory.frozen == 0


def test_a_model_that_is_not_here_has_no_estimate_but_a_reason(tmp_path: Path) -> None:
    job = load_job(testing.write_job(tmp_path))  # config.json is {}
    found, missing = estimates.of_job(job, hardware.parse("H100"))
    assert not found and "model_type" in missing["sft"]


def test_sampling_recipes_count_critic_reference_and_engines(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    grpo = recipes_pb2.Grpo(data="@prepare", group_size=8, passes=1)
    ppo = recipes_pb2.Ppo(data="@prepare", passes=1)
    grpo.kl.coefficient = 0.05
    for work in (grpo, ppo):
        work.model.path = str(tmp_path / "model")
        work.rollout.prompts_per_step, work.rollout.max_new_tokens = 64, 512
        work.training.batch.micro_blocks, work.training.max_steps = 1, 10
    job.stages.add(name="grpo", grpo=grpo)
    job.stages.add(name="ppo", ppo=ppo)
    found, missing = estimates.of_job(job, hardware.parse("8xH200"))
    assert not missing
    sft, plain, actor_critic = found["sft"], found["grpo"], found["ppo"]
    assert plain.memory.cache and plain.memory.frozen
    assert actor_critic.memory.frozen > plain.memory.frozen + 16 * 7.5e9 / 8 * 0.7  # a second model that is trained
    assert actor_critic.step_seconds > 0 and plain.step_seconds > sft.step_seconds / 10
    grpo.rollout.gpu_memory_fraction = 0.99
    job.stages[-2].grpo.CopyFrom(grpo)
    crowded, _ = estimates.of_job(job, hardware.parse("8xH200"))
    assert not crowded["grpo"].fits


@pytest.mark.parametrize("text", ["8xH900", "0xH100", "H100x8", "", "8xH100@free"])
def test_unknown_hardware_is_refused_with_the_known_kinds(text: str) -> None:
    with pytest.raises(UserError, match="kinds: T4, A10G"):
        hardware.parse(text)


def test_hardware_is_read() -> None:
    found = hardware.parse("16xA100-40GB/4@80.5")
    assert (found.device.name, found.count, found.per_host, found.usd_per_hour) == ("A100-40GB", 16, 4, 80.5)
    assert str(hardware.parse("H200")) == "1 x H200"
