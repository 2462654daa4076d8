"""From a job's stages to the planner's terms."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from finecut.launcher.planning import inputs
from finecut.launcher.planning.hardware import Hardware
from finecut.launcher.planning.inputs import Data
from finecut.proto import job_pb2, model_pb2, recipes_pb2, rollout_pb2, training_pb2
from finecut.proto.config import UserError
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.lora_config import LoraConfig
from finecut.trainer.planning.workload import Frozen, Layout, Recompute, Workload

_RECOMPUTE = {
    training_pb2.SELECTIVE: Recompute.SELECTIVE,
    training_pb2.FULL: Recompute.FULL,
}
# Of a GPU's memory, for engines beside a trainer, and alone (Rollout.gpu_memory_fraction).
_FRACTION_COLOCATED, _FRACTION_SPLIT = 0.5, 0.9


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Sampling in one step: `num_answers` of up to `new_tokens`. `num_engines` None: as many as there are GPUs for."""

    num_answers: int
    prompt_tokens: int
    new_tokens: int
    num_engines: int | None
    gpus_per_engine: int
    memory_fraction: float
    shares_gpus: bool


@dataclasses.dataclass(frozen=True)
class Trained:
    """A stage in the planner's terms. `passes` are optimisation passes over a step's samples."""

    work: Workload
    layout: Layout
    is_automatic: bool
    steps: int | None
    notes: tuple[str, ...] = ()
    rollouts: Rollouts | None = None
    critic: Workload | None = None
    passes: int = 1


def of_stage(job: job_pb2.JobConfig, stage: job_pb2.Stage, hardware: Hardware) -> Trained | None:
    """A training stage's workload; None for others. Raises UserError where its inputs are not here."""
    match stage.WhichOneof("work"):
        case "sft":
            return _supervised(job, stage.sft, hardware)
        case "dpo":
            return _supervised(job, stage.dpo, hardware, _reference(job, stage.dpo))
        case "reward_model":
            return _supervised(job, stage.reward_model, hardware, num_outputs=1)
        case "distill":
            teacher = Frozen("teacher", inputs.decoder_of(job, stage.distill.teacher))
            return _supervised(job, stage.distill, hardware, (teacher,))
        case "ppo":
            return _ppo(job, stage.ppo, hardware)
        case "grpo":
            return _grpo(job, stage.grpo, hardware)
    return None


def _supervised(
    job: job_pb2.JobConfig,
    work: recipes_pb2.Sft | recipes_pb2.Dpo | recipes_pb2.RewardModel | recipes_pb2.Distill,
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
        is_automatic=training.parallelism.mode == training_pb2.Parallelism.AUTO,
        steps=_steps(training, data),
        notes=tuple(notes),
    )


def _reference(job: job_pb2.JobConfig, work: recipes_pb2.Dpo) -> tuple[Frozen, ...]:
    """Fresh adapters switched off are the reference; else it is a model of its own."""
    path = work.reference_model or ("" if work.model.HasField("lora") else work.model.path)
    return (Frozen("reference", inputs.decoder_of(job, path)),) if path else ()


def _grpo(job: job_pb2.JobConfig, work: recipes_pb2.Grpo, hardware: Hardware) -> Trained:
    has_reference = work.HasField("kl")
    answers = work.rollout.prompts_per_step * work.group_size
    return _reinforced(job, work, hardware, answers, has_reference)


def _ppo(job: job_pb2.JobConfig, work: recipes_pb2.Ppo, hardware: Hardware) -> Trained:
    policy = _reinforced(job, work, hardware, work.rollout.prompts_per_step, has_reference=True)
    rewards = [reward.model for reward in work.rewards if reward.model]
    config = inputs.decoder_of(job, work.critic or (rewards[0] if rewards else work.model.path))
    critic = dataclasses.replace(policy.work, config=config, lora=None, num_outputs=1, frozen=())
    return dataclasses.replace(policy, critic=critic)


def _reinforced(
    job: job_pb2.JobConfig,
    work: recipes_pb2.Ppo | recipes_pb2.Grpo,
    hardware: Hardware,
    num_answers: int,
    has_reference: bool,
) -> Trained:
    """Each answer with its prompt counts as a block, as long as answers may get."""
    data, rollout = inputs.data_of(job, work.data), work.rollout
    config = inputs.decoder_of(job, work.model.path, work.model)
    frozen = [
        Frozen("reward", inputs.decoder_of(job, reward.model), num_outputs=1) for reward in work.rewards if reward.model
    ]
    if has_reference and (work.reference_model or not work.model.HasField("lora")):
        frozen.append(Frozen("reference", inputs.decoder_of(job, work.reference_model or work.model.path)))
    turns = max(1, rollout.multi_turn.max_turns)
    new_tokens = turns * rollout.max_new_tokens
    length = data.prompt_tokens + new_tokens
    training = work.training
    return Trained(
        work=Workload(
            config=config,
            block_size=length,
            global_blocks=num_answers,
            frozen=tuple(frozen),
            trained_share=new_tokens / length,
            **_settings(config, work.model, training, hardware),
        ),
        layout=_layout(training, hardware.count),
        is_automatic=False,
        steps=training.max_steps if training.WhichOneof("length") == "max_steps" else None,
        notes=("answers count as long as they may get",),
        rollouts=_rollouts(rollout, num_answers, data, new_tokens),
        passes=work.passes,
    )


def _rollouts(rollout: rollout_pb2.Rollout, num_answers: int, data: Data, new_tokens: int) -> Rollouts:
    shares = rollout.placement != rollout_pb2.Rollout.SPLIT
    fraction = rollout.gpu_memory_fraction or (_FRACTION_COLOCATED if shares else _FRACTION_SPLIT)
    return Rollouts(
        num_answers=num_answers,
        prompt_tokens=data.prompt_tokens,
        new_tokens=new_tokens,
        num_engines=rollout.engine_count or None,
        gpus_per_engine=rollout.tensor_parallel_size or 1,
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
