"""From a job's stages to the planner's terms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from finecut.launcher.planning import inputs
from finecut.launcher.planning.hardware import Hardware
from finecut.launcher.planning.inputs import Data
from finecut.proto import job_pb2, model_pb2, recipes_pb2, rollout_pb2, training_pb2
from finecut.proto.config import UserError
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.lora_config import LoraConfig
from finecut.trainer.planning.workload import Frozen, Layout, Recompute, Workload
from finecut.trainer.rl import engine_gpus, row_size

_TRAINING = ("sft", "dpo", "reward_model", "distill", "ppo", "grpo", "custom")
_RECOMPUTE = {
    training_pb2.SELECTIVE: Recompute.SELECTIVE,
    training_pb2.FULL: Recompute.FULL,
}
# Of a GPU's memory, for engines beside a trainer, and alone (Rollout.gpu_memory_fraction).
_FRACTION_COLOCATED, _FRACTION_SPLIT = 0.5, 0.9


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Sampling in one step: `num_answers` of up to `new_tokens`, by `num_engines`."""

    num_answers: int
    prompt_tokens: int
    new_tokens: int
    num_engines: int
    gpus_per_engine: int
    memory_fraction: float
    shares_gpus: bool


@dataclasses.dataclass(frozen=True)
class Before:
    """A teacher that answers before training, with the memory to itself; `is_whole`: on each device, not shared out."""

    teacher: Frozen
    is_whole: bool


@dataclasses.dataclass(frozen=True)
class Trained:
    """A stage in the planner's terms.

    Attributes:
      num_ranks: Devices that train; engines may have others.
      passes: Optimisation passes over a step's samples.
      is_measured: Plans of such work were compared with runs, see docs/planner.md.
    """

    work: Workload
    layout: Layout
    num_ranks: int
    is_automatic: bool
    steps: int | None
    notes: tuple[str, ...] = ()
    rollouts: Rollouts | None = None
    critic: Workload | None = None
    passes: int = 1
    is_measured: bool = True
    before: Before | None = None


def is_training(stage: job_pb2.Stage) -> bool:
    """Whether plans are for such a stage."""
    return stage.WhichOneof("work") in _TRAINING


def of_stage(job: job_pb2.JobConfig, stage: job_pb2.Stage, hardware: Hardware) -> Trained | None:
    """A training stage's workload; None for others. Raises UserError where its inputs are not here."""
    own = _share(job, stage, hardware)
    match stage.WhichOneof("work"):
        case "sft":
            return _supervised(job, stage.sft, own)
        case "dpo":
            return _supervised(job, stage.dpo, own, _reference(job, stage.dpo))
        case "reward_model":
            return _supervised(job, stage.reward_model, own, num_outputs=1)
        case "distill":
            return _distill(job, stage, own)
        case "ppo":
            return _ppo(job, stage, own)
        case "grpo":
            return _grpo(job, stage, own)
        case "custom":
            found = _supervised(job, stage.custom, own)
            notes = (*found.notes, "what the recipe of one's own adds is not counted")
            return dataclasses.replace(found, notes=notes, is_measured=False)
    return None


def _share(job: job_pb2.JobConfig, stage: job_pb2.Stage, hardware: Hardware) -> Hardware:
    """What a stage has of the machines, as trainer/group_size.py gives it; with engines that have GPUs of their own."""
    if not hardware.device.is_gpu or not stage.HasField("resources") or not stage.resources.gpu_count:
        return hardware
    return dataclasses.replace(hardware, count=min(hardware.count, stage.resources.gpu_count))


def _supervised(
    job: job_pb2.JobConfig,
    work: recipes_pb2.Sft | recipes_pb2.Dpo | recipes_pb2.RewardModel | recipes_pb2.Distill | recipes_pb2.Custom,
    hardware: Hardware,
    frozen: tuple[Frozen, ...] = (),
    num_outputs: int | None = None,
) -> Trained:
    data = inputs.data_of(job, work.data)
    if not data.block_size:
        raise UserError(f"{work.data}: its blocks are not known before it is prepared")
    config = inputs.decoder_of(job, work.model.path, work.model)
    training = work.training
    notes = [] if data.document_tokens else ["documents are not known yet; each block counts as one"]
    return Trained(
        work=Workload(
            config=config,
            block_size=data.block_size,
            global_blocks=training.batch.global_blocks,
            num_outputs=num_outputs,
            frozen=frozen,
            document_lengths=(min(data.document_tokens, data.block_size),) if data.document_tokens else (),
            trained_share=data.trained_share or 1.0,
            **_settings(config, work.model, training, hardware),
        ),
        layout=_layout(training, hardware.count),
        num_ranks=hardware.count,
        is_automatic=training.parallelism.mode == training_pb2.Parallelism.AUTO,
        steps=_steps(training, data),
        notes=tuple(notes),
        is_measured=not frozen and config.experts is None and training.compile,
    )


def _reference(job: job_pb2.JobConfig, work: recipes_pb2.Dpo) -> tuple[Frozen, ...]:
    """Fresh adapters switched off are the reference; else it is a model of its own."""
    path = work.reference_model or ("" if work.model.HasField("lora") else work.model.path)
    return (Frozen("reference", inputs.decoder_of(job, path)),) if path else ()


def _distill(job: job_pb2.JobConfig, stage: job_pb2.Stage, hardware: Hardware) -> Trained:
    """From data, or from the student's own samples."""
    work = stage.distill
    teacher = Frozen("teacher", inputs.decoder_of(job, work.teacher))
    if work.HasField("teacher_cache"):
        found = _supervised(job, work, hardware)
        notes = (*found.notes, "the teacher reads the data once before, which is not counted in hours")
        is_whole = work.teacher_cache.maker == recipes_pb2.TeacherCache.VLLM
        return dataclasses.replace(found, notes=notes, before=Before(teacher, is_whole))
    if not work.HasField("rollout"):
        return _supervised(job, work, hardware, (teacher,))
    return _sampling(job, stage, hardware, work.rollout.prompts_per_step, (teacher,))


def _grpo(job: job_pb2.JobConfig, stage: job_pb2.Stage, hardware: Hardware) -> Trained:
    work = stage.grpo
    beside = (*_judges(job, work), *(_held_near(job, work) if work.HasField("kl") else ()))
    found = _sampling(job, stage, hardware, work.rollout.prompts_per_step * work.group_size, beside)
    return dataclasses.replace(found, passes=work.passes)


def _ppo(job: job_pb2.JobConfig, stage: job_pb2.Stage, hardware: Hardware) -> Trained:
    work = stage.ppo
    num_answers = work.rollout.prompts_per_step * max(1, work.samples_per_prompt)
    policy = _sampling(job, stage, hardware, num_answers, (*_judges(job, work), *_held_near(job, work)))
    rewards = [reward.model for reward in work.rewards if reward.model]
    config = inputs.decoder_of(job, work.critic or (rewards[0] if rewards else work.model.path))
    critic = dataclasses.replace(policy.work, config=config, num_outputs=1, frozen=())
    return dataclasses.replace(policy, critic=critic, passes=work.passes)


def _judges(job: job_pb2.JobConfig, work: recipes_pb2.Ppo | recipes_pb2.Grpo) -> Iterator[Frozen]:
    for reward in work.rewards:
        if reward.model:
            yield Frozen("reward", inputs.decoder_of(job, reward.model), num_outputs=1)


def _held_near(job: job_pb2.JobConfig, work: recipes_pb2.Ppo | recipes_pb2.Grpo) -> Iterator[Frozen]:
    """The reference; fresh adapters switched off are one."""
    if work.reference_model or not work.model.HasField("lora"):
        yield Frozen("reference", inputs.decoder_of(job, work.reference_model or work.model.path))


def _sampling(
    job: job_pb2.JobConfig, stage: job_pb2.Stage, hardware: Hardware, num_answers: int, frozen: tuple[Frozen, ...]
) -> Trained:
    """A recipe that samples. Answers count as long as they may get; a block is a row of them."""
    work = getattr(stage, stage.WhichOneof("work") or "")
    data, rollout, training = inputs.data_of(job, work.data), work.rollout, work.training
    config = inputs.decoder_of(job, work.model.path, work.model)
    new_tokens = max(1, rollout.multi_turn.max_turns) * rollout.max_new_tokens
    length = data.prompt_tokens + new_tokens
    own_nodes = hardware.num_for_engines if rollout.placement == rollout_pb2.Rollout.SPLIT else 0
    num_gpus = hardware.count if hardware.device.is_gpu and not own_nodes else 0
    reserved = engine_gpus.reserved_for_engines(stage, num_gpus)
    num_ranks, apart = hardware.count - reserved, own_nodes or reserved
    row = row_size.row_tokens(length, -(-num_answers // max(1, num_ranks)), hardware.device.is_gpu)
    answers_a_row = row // length
    return Trained(
        work=Workload(
            config=config,
            block_size=row,
            global_blocks=-(-num_answers // answers_a_row),
            frozen=frozen,
            trained_share=answers_a_row * new_tokens / row,
            document_lengths=(length,),
            **_settings(config, work.model, training, hardware),
        ),
        layout=_layout(training, num_ranks),
        num_ranks=num_ranks,
        is_automatic=False,
        steps=_steps_of_prompts(training, data, rollout.prompts_per_step),
        notes=("answers count as long as they may get",),
        rollouts=_rollouts(rollout, num_answers, data, new_tokens, num_ranks, apart),
        is_measured=False,
    )


def _rollouts(
    rollout: rollout_pb2.Rollout, num_answers: int, data: Data, new_tokens: int, num_ranks: int, apart: int
) -> Rollouts:
    shares = rollout.placement != rollout_pb2.Rollout.SPLIT
    fraction = rollout.gpu_memory_fraction or (_FRACTION_COLOCATED if shares else _FRACTION_SPLIT)
    size = rollout.tensor_parallel_size or 1
    return Rollouts(
        num_answers=num_answers,
        prompt_tokens=data.prompt_tokens,
        new_tokens=new_tokens,
        num_engines=rollout.engine_count or max(1, (apart or num_ranks) // size),
        gpus_per_engine=size,
        memory_fraction=fraction,
        shares_gpus=shares,
    )


def _settings(
    config: DecoderConfig, model: model_pb2.Model, training: training_pb2.TrainingConfig, hardware: Hardware
) -> dict[str, Any]:
    """The fields of a Workload that follow from the model's adapters and the training config."""
    is_wide = training.precision == training_pb2.FP32 or not hardware.device.is_gpu
    lora = None
    if model.HasField("lora"):
        lora = LoraConfig(model.lora.rank, model.lora.alpha, model.lora.dropout, tuple(model.lora.targets))
        lora = lora.for_model(has_experts=config.experts is not None)
    return {
        "lora": lora,
        "device": hardware.device,
        "number_bytes": 4 if is_wide else 2,
        "compiled": training.compile,
        "loss_chunk_tokens": training.loss.chunk_tokens or None,
        "has_dropout": bool(lora and lora.dropout),
        "gradient_bytes": 2 if training.parallelism.gradient_format == training_pb2.Parallelism.GRADIENT_BF16 else 4,
    }


def _layout(training: training_pb2.TrainingConfig, world_size: int) -> Layout:
    mesh = training.parallelism
    replicate, tensor = max(1, mesh.replicate_size), max(1, mesh.tensor_parallel_size)
    return Layout(
        shard_size=mesh.shard_size or max(1, world_size // (replicate * tensor)),
        replicate_size=replicate,
        tensor_size=tensor,
        offload_optimizer=mesh.offload_optimizer,
        recompute=_RECOMPUTE.get(training.activation_checkpointing, Recompute.OFF),
        micro_blocks=max(1, training.batch.micro_blocks),
    )


def _steps(training: training_pb2.TrainingConfig, data: Data) -> int | None:
    if training.WhichOneof("length") == "max_steps":
        return training.max_steps
    if data.num_blocks is None:
        return None
    return max(1, math.ceil(training.epochs * data.num_blocks / training.batch.global_blocks))


def _steps_of_prompts(training: training_pb2.TrainingConfig, data: Data, prompts_per_step: int) -> int | None:
    """As trainer/rl/setup.py counts them."""
    if training.WhichOneof("length") == "max_steps":
        return training.max_steps
    if data.num_documents is None:
        return None
    return max(1, math.ceil((training.epochs or 1.0) * data.num_documents / prompts_per_step))
