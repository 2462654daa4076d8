"""Opens what a recipe with rollouts reads, and checks that it fits together, before anything is loaded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from finecut.dataprep import shard_files, tokenization
from finecut.proto import artifact_pb2
from finecut.proto.config import UserError
from finecut.proto.run import artifacts
from finecut.trainer.checkpoint import random_state
from finecut.trainer.config import Precision, StagePlace
from finecut.trainer.data.prompts import PromptStream
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.huggingface import ModelSource, locate_model
from finecut.trainer.ops import kernels
from finecut.trainer.parallel import mesh
from finecut.trainer.parallel import precision as number_formats
from finecut.trainer.parallel.process_group import Devices, use_deterministic_kernels
from finecut.trainer.parallel.sharding import check_layout
from finecut.trainer.recipes import supervised_data, vocabulary
from finecut.trainer.rl import engines, split, tasks
from finecut.trainer.rl.config import RolloutRecipeConfig
from finecut.trainer.rl.engines import EnginePlan
from finecut.trainer.rl.split import Split
from finecut.trainer.rl.tasks import AskedTask
from finecut.trainer.rollout import environment
from finecut.trainer.rollout.config import HeldOutConfig
from finecut.trainer.rollout.continuation import TurnRenderer
from finecut.trainer.rollout.episode import Prompt, Turns
from finecut.trainer.stages import stop_token

C = TypeVar("C", bound=RolloutRecipeConfig)

# Of the job, by the roles that they fill.
_FIELDS = {"teacher": "teacher", "reference": "reference_model", "critic": "critic"}


@dataclasses.dataclass(frozen=True)
class RlSetup:
    """What a run has once it is clear that everything fits together. `config` knows where answers stop."""

    config: Any
    place: StagePlace
    devices: Devices
    source: ModelSource
    decoder_config: DecoderConfig
    precision: Precision
    prompts: PromptStream
    # For evaluation while training; empty without.
    held_out: tuple[Prompt, ...]
    tasks: tuple[AskedTask, ...]
    tokenizer: Any
    tokenizer_folder: Path
    tokenizer_fingerprint: str
    data_fingerprint: str
    # Of the longest prompt with its answers.
    max_sequence_tokens: int
    last_step: int
    turns: Turns | None
    plan: EnginePlan
    # What an earlier start has moved.
    kept: Split | None = None

    @property
    def notes(self) -> list[str]:
        """Lines for people."""
        engine, fleet = self.plan.engine, self.plan.fleet
        how = "take turns with the ranks" if self.plan.takes_turns else "run ahead of the ranks"
        what = "adapters" if self.plan.sends_adapters else "all weights"
        return [
            f"policy in {self.precision.name} on {mesh.describe(self.devices)}; {fleet.num_engines} engines of"
            f" {engine.tensor_parallel_size} in {engine.number_type}, which {how} and get {what}",
            f"{self.prompts.num_prompts:,} prompts, {self.config.rollout.prompts_per_step} a step with"
            f" {self.config.group_size} answers each, of {self.max_sequence_tokens:,} tokens together at most",
        ]


def prepare(config: C, place: StagePlace, devices: Devices) -> RlSetup:
    """Collective. Raises UserError for what does not fit."""
    training = config.training
    use_deterministic_kernels(training.deterministic)
    kernels.use(training.kernels, devices.device)
    source = locate_model(place.model)
    decoder_config = DecoderConfig.from_folder(source.base)
    precision = _precision(training.precision, devices, decoder_config.family)
    # A batch of rollouts fits any number of ranks.
    size = devices.world_size // training.parallelism.tensor_size
    training = dataclasses.replace(training, global_blocks=training.micro_blocks * max(1, size))
    check_layout(training, decoder_config, devices.world_size)
    devices = mesh.arrange(devices, training.parallelism)
    random_state.seed(training.seed, devices.data_rank)

    manifest = artifacts.read(place.data)
    if manifest.WhichOneof("content") == "data":
        shard_files.check_kind(place.data, manifest, artifact_pb2.DataArtifact.PROMPTS)
    prompts = PromptStream(place.data, "train", training.seed, verify=devices.is_main)
    folder = supervised_data.find_tokenizer(manifest.fingerprints.tokenizer, place.data, source.tokenizer, ())
    tokenizer = tokenization.load(folder, needs_template=False)
    for role, path in place.roles.items():
        named = locate_model(path)
        vocabulary.check(_FIELDS[role], named, DecoderConfig.from_folder(named.base), decoder_config, folder)
    sampling = dataclasses.replace(config.rollout.sampling, stop_token_ids=_stop_tokens(source, tokenizer))
    rollout = dataclasses.replace(config.rollout, sampling=sampling)
    if held := rollout.evaluation:
        sampling = dataclasses.replace(held.sampling, stop_token_ids=sampling.stop_token_ids)
        rollout = dataclasses.replace(rollout, evaluation=dataclasses.replace(held, sampling=sampling))
    config = dataclasses.replace(config, training=training, rollout=rollout)
    held_out = _held_out(rollout.evaluation, place, devices)
    longest = max([prompts.longest, *(len(prompt.token_ids) for prompt in held_out)])
    asked = tasks.read(config.tasks, tokenizer, rollout.sampling.stop_token_ids)
    max_sequence_tokens = max([_longest(config, longest, decoder_config, place), *_lengths(asked, decoder_config)])
    kept = devices.from_main(split.read(place.events.parent))
    plan = engines.plan(rollout, source, config.lora, training, precision, max_sequence_tokens, devices, kept)
    return RlSetup(
        config=config,
        place=place,
        devices=devices,
        source=source,
        decoder_config=decoder_config,
        precision=precision,
        prompts=prompts,
        held_out=held_out,
        tasks=asked,
        tokenizer=tokenizer,
        tokenizer_folder=folder,
        tokenizer_fingerprint=manifest.fingerprints.tokenizer,
        data_fingerprint=supervised_data.fingerprint_of(manifest),
        max_sequence_tokens=max_sequence_tokens,
        last_step=_last_step(config, prompts),
        turns=_turns(config, tokenizer, max_sequence_tokens),
        plan=plan,
        kept=kept,
    )


def _precision(asked: Precision, devices: Devices, family: str) -> Precision:
    """AUTO is BF16 on a GPU, the engines' own: FP16's loss scaling hides small differences of probabilities."""
    if asked is Precision.AUTO and devices.device.type == "cuda":
        return Precision.BF16
    return number_formats.resolve(asked, devices.device, family)


def _stop_tokens(source: ModelSource, tokenizer: Any) -> tuple[int, ...]:
    """Where an answer ends: what the model's folder says, the tokenizer's end of text, the template's end of turn."""
    found = {*stop_token.stop_tokens(source.base), tokenizer.eos_token_id, stop_token.end_of_turn(tokenizer)}
    stops = tuple(sorted(token for token in found if token is not None))
    if not stops:
        raise UserError(f"{source.tokenizer}: neither an end of text nor an end of turn is known, so answers never end")
    return stops


def _held_out(config: HeldOutConfig | None, place: StagePlace, devices: Devices) -> tuple[Prompt, ...]:
    if config is None:
        return ()
    stream = PromptStream(place.data, "evaluation", seed=0, verify=devices.is_main)
    count = min(stream.num_prompts, config.max_prompts or stream.num_prompts)
    rows = stream.take(0, count)
    return tuple(Prompt(f"{row.record_id}#{n}", row.token_ids, row.record) for n, row in enumerate(rows))


def _longest(config: RolloutRecipeConfig, prompt_tokens: int, decoder: DecoderConfig, place: StagePlace) -> int:
    """Tokens of the longest prompt with its answer; of several turns, what the model has positions for at most."""
    rollout = config.rollout
    longest = prompt_tokens + rollout.sampling.max_new_tokens
    if longest > decoder.max_positions:
        raise UserError(
            f"rollout.max_new_tokens: {rollout.sampling.max_new_tokens:,} and the longest prompt of {place.data}, of"
            f" {prompt_tokens:,} tokens, are more than the model's {decoder.max_positions:,} positions; lower it, or"
            " filter out long prompts (data_prep.filter.max_tokens)"
        )
    if rollout.multi_turn is None:
        return longest
    # What an environment says is not bounded; as much as the answers is assumed.
    wanted = prompt_tokens + 2 * rollout.multi_turn.max_turns * rollout.sampling.max_new_tokens
    return min(wanted, decoder.max_positions)


def _lengths(asked: Sequence[AskedTask], decoder: DecoderConfig) -> Iterator[int]:
    for one in asked:
        if one.longest > decoder.max_positions:
            raise UserError(
                f"{one.task.name}: its longest prompt and generation.max_new_tokens are {one.longest:,} tokens, more"
                f" than the model's {decoder.max_positions:,} positions; lower it"
            )
        yield one.longest


def _turns(config: RolloutRecipeConfig, tokenizer: Any, max_sequence_tokens: int) -> Turns | None:
    turns = config.rollout.multi_turn
    if turns is None:
        return None
    factory = environment.load(turns.environment)
    return Turns(factory, TurnRenderer(tokenizer), turns.max_turns, max_sequence_tokens)


def _last_step(config: RolloutRecipeConfig, prompts: PromptStream) -> int:
    training = config.training
    if training.max_steps is not None:
        return training.max_steps
    return max(1, math.ceil((training.epochs or 1.0) * prompts.num_prompts / config.rollout.prompts_per_step))
