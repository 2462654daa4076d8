"""Estimates of whole jobs: what fits, what does not and what would, and what is not known."""

from __future__ import annotations

from pathlib import Path

import pytest

from finecut.launcher import testing
from finecut.launcher.planning import estimates, hardware
from finecut.launcher.planning.estimates import Estimate
from finecut.launcher.planning.testing import job_of, on_aws
from finecut.launcher.providers.aws import instance_types
from finecut.proto import job_pb2, recipes_pb2, rollout_pb2
from finecut.proto.config import UserError, load_job
from finecut.trainer.planning import gpus


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


def test_adapters_on_the_critic_take_little(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    ppo = recipes_pb2.Ppo(data="@prepare", passes=1)
    ppo.model.path, ppo.model.lora.rank = str(tmp_path / "model"), 8
    ppo.rollout.prompts_per_step, ppo.rollout.max_new_tokens, ppo.training.max_steps = 8, 64, 1
    job.stages.add(name="ppo", ppo=ppo)
    found = estimate(job, "2xH200", "ppo")
    assert found.parameters.trained < 1e8 and found.memory.frozen < 0.75 * 2 * 8.03e9 and found.fits


def test_engines_of_their_own_leave_fewer_ranks(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    grpo = recipes_pb2.Grpo(data="@prepare", group_size=8, passes=1)
    grpo.model.path = str(tmp_path / "model")
    grpo.rollout.prompts_per_step, grpo.rollout.max_new_tokens, grpo.training.max_steps = 8, 64, 1
    grpo.rollout.tensor_parallel_size = 1
    grpo.rollout.placement = rollout_pb2.Rollout.SPLIT
    job.stages.add(name="grpo", grpo=grpo)
    found = estimate(job, "8xH200", "grpo")
    assert found.layout.world_size == 4 and not found.memory.cache
    job.stages[-1].grpo.rollout.gpu_memory_fraction = 0.05
    assert estimate(job, "8xH200", "grpo").cannot_fit
    assert "rollout.gpu_memory_fraction" in estimate(job, "8xH200", "grpo").refusal()


def test_distillation_on_own_samples_is_planned_with_engines_and_teacher(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    work = recipes_pb2.Distill(data="@prepare", teacher=str(tmp_path / "model"))
    work.model.path, work.training.max_steps = str(tmp_path / "model"), 1
    work.rollout.prompts_per_step, work.rollout.max_new_tokens = 8, 64
    job.stages.add(name="distill", distill=work)
    found = estimate(job, "8xH200", "distill")
    assert found.memory.cache and found.memory.frozen > 2 * 8.03e9 / 8


def test_a_teacher_that_is_kept_on_disk_takes_no_memory_beside_the_student(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    work = recipes_pb2.Distill(data="@prepare", teacher=str(tmp_path / "model"), top_k=64)
    work.model.path, work.training.max_steps, work.training.batch.global_blocks = str(tmp_path / "model"), 1, 8
    job.stages.add(name="beside", distill=work)
    work.teacher_cache.maker = recipes_pb2.TeacherCache.FORWARD
    job.stages.add(name="shared", distill=work)
    work.teacher_cache.maker = recipes_pb2.TeacherCache.VLLM
    job.stages.add(name="whole", distill=work)
    beside, shared, whole = (estimate(job, "8xH100", name) for name in ("beside", "shared", "whole"))
    assert beside.memory.frozen and not shared.memory.frozen and not whole.memory.frozen
    assert any("teacher reads the data once" in note for note in shared.notes)
    assert shared.shortage is None and whole.shortage is None
    # 15 GiB of weights in 16 bits, on a GPU of 15.
    assert estimate(job, "8xT4", "shared").shortage is None
    assert "maker: FORWARD" in (estimate(job, "8xT4", "whole").shortage or "")


def test_narrow_sums_of_gradients_take_half_while_they_are_whole(tmp_path: Path) -> None:
    small = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
    batch = "max_steps: 1 batch { global_blocks: 16 } parallelism { gradient_format: %s }"
    wide, narrow = (
        estimate(job_of(tmp_path, training=batch % name, config=small), "2xH100")
        for name in ("GRADIENT_FP32", "GRADIENT_BF16")
    )
    assert wide.memory.gradients == 4 * wide.parameters.total == 2 * narrow.memory.gradients


def test_a_cluster_is_planned_with_the_gpus_and_prices_of_what_it_may_buy(tmp_path: Path) -> None:
    types = 'node_count: 2 instance_types: "p5.48xlarge" instance_types: "p4d.24xlarge"'
    first, second = hardware.choices(job_of(tmp_path, cluster=on_aws(types)))
    assert (first.device.name, first.count, first.per_host, first.usd_per_hour) == ("H100", 16, 8, 2 * 55.04)
    assert str(second) == "16 x A100-40GB (2 x p4d.24xlarge)"
    own = 'prices { instance_type: "p5.48xlarge" usd_per_hour: 20 }'
    job = job_of(tmp_path, cluster=on_aws('node_count: 2 instance_types: "p5.48xlarge"', own))
    found, _ = estimates.of_job(job, hardware.choices(job)[0])
    total = estimates.total(found.values())
    assert total.hours == found["sft"].hours and total.cost_usd == pytest.approx(40 * total.hours)
    assert any("between hosts" in note for note in found["sft"].notes)


def test_every_instance_type_has_a_gpu_that_can_be_planned_for() -> None:
    assert all(gpus.by_name(kind.gpu) for kind in instance_types.BY_NAME.values() if kind.gpu_count)


def test_nodes_for_engines_or_data_train_nothing_and_cost_all_the_same(tmp_path: Path) -> None:
    job = job_of(tmp_path, cluster=on_aws('instance_types: "p5.48xlarge"'))
    job.cluster.node_groups.add(name="data", role="DATA", node_count=1, instance_types=["m7i.8xlarge"])
    job.cluster.node_groups.add(name="engines", role="ROLLOUT", node_count=2, instance_types=["g6e.12xlarge"])
    grpo = recipes_pb2.Grpo(data="@prepare", group_size=8, passes=1)
    grpo.model.path = str(tmp_path / "model")
    grpo.rollout.prompts_per_step, grpo.rollout.max_new_tokens, grpo.training.max_steps = 8, 64, 1
    grpo.rollout.tensor_parallel_size, grpo.rollout.placement = 1, rollout_pb2.Rollout.SPLIT
    job.stages.add(name="grpo", grpo=grpo)
    (found,) = hardware.choices(job)
    assert (found.device.name, found.count, found.num_for_engines) == ("H100", 8, 8)
    assert found.usd_per_hour == pytest.approx(55.04 + 1.6128 + 2 * 10.49264)
    assert estimates.of_job(job, found)[0]["grpo"].layout.world_size == 8


def test_the_total_of_stages_of_unknown_length_is_unknown(tmp_path: Path) -> None:
    more = 'stages { name: "more" sft { model { path: "@sft" } data: "@prepare" } }'
    found, _ = estimates.of_job(job_of(tmp_path, more=more), hardware.parse("8xH100@55"))
    assert estimates.total(found.values()) == estimates.Total(None, None)


def test_gpus_that_are_not_in_the_table_keep_their_own_memory() -> None:
    found = gpus.of_driver("NVIDIA GeForce RTX 4090", 24 * 2**30)
    assert found.is_gpu and found.memory == 24 * 2**30 and found.name == "NVIDIA GeForce RTX 4090"
    assert gpus.of_driver("NVIDIA H100 80GB HBM3", 80 * 2**30).name == "H100"


def test_hardware_is_read() -> None:
    found = hardware.parse("16xA100-40GB/4@80.5")
    assert (found.device.name, found.count, found.per_host, found.usd_per_hour) == ("A100-40GB", 16, 4, 80.5)
    assert str(hardware.parse("H200")) == "1 x H200"
