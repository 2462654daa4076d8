"""One sample, from its prompt to its end: a single answer, or turns between the policy and an environment."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from finecut.proto.config import UserError
from finecut.trainer.rollout import environment
from finecut.trainer.rollout.continuation import TurnRenderer
from finecut.trainer.rollout.engine_config import Generation, Request
from finecut.trainer.rollout.environment import EnvironmentFactory
from finecut.trainer.rollout.sample import FinishReason, Sample
from finecut.trainer.rollout.sampling import SamplingParameters

# Asks some engine for an answer.
Policy = Callable[[Request], Awaitable[Generation]]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What answers are wanted to."""

    # Unique within a batch.
    record_id: str
    # Up to and including what begins the assistant's turn.
    token_ids: tuple[int, ...]
    # What an environment needs of the record.
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def check_lengths(prompts: Sequence[Prompt], sampling: SamplingParameters, limit: int) -> None:
    """Raises UserError when a prompt and its longest answer do not fit into the `limit` tokens of the engines."""
    long = [prompt for prompt in prompts if len(prompt.token_ids) + sampling.max_new_tokens > limit]
    if long:
        worst = max(long, key=lambda prompt: len(prompt.token_ids))
        raise UserError(
            f"{len(long)} of {len(prompts)} prompts are too long: the engines allow {limit:,} tokens, of which "
            f"{sampling.max_new_tokens:,} are for the answer (rollout.max_new_tokens), and record {worst.record_id} "
            f"has {len(worst.token_ids):,}; filter out long prompts, or lower rollout.max_new_tokens"
        )


@dataclasses.dataclass(frozen=True)
class Turns:
    """How a conversation goes on after the first answer."""

    factory: EnvironmentFactory
    renderer: TurnRenderer
    # Most assistant turns.
    max_turns: int
    # Longest conversation that the engines allow, in tokens.
    max_sequence_tokens: int


@dataclasses.dataclass
class _Answer:
    """A sample that is being made; the fields are `Sample`'s."""

    answer_ids: list[int] = dataclasses.field(default_factory=list)
    loss_mask: list[bool] = dataclasses.field(default_factory=list)
    log_probabilities: list[float] = dataclasses.field(default_factory=list)
    policy_versions: list[int] = dataclasses.field(default_factory=list)
    weights: dict[int, str] = dataclasses.field(default_factory=dict)
    num_turns: int = 0

    def add_turn(self, generation: Generation) -> None:
        """What the policy sampled."""
        self.answer_ids += generation.token_ids
        self.loss_mask += [True] * len(generation.token_ids)
        self.log_probabilities += generation.log_probabilities
        self.policy_versions += generation.policy_versions
        self.weights |= generation.weights
        self.num_turns += 1

    def insert(self, token_ids: tuple[int, ...]) -> None:
        """What the environment said."""
        self.answer_ids += token_ids
        self.loss_mask += [False] * len(token_ids)
        self.log_probabilities += [0.0] * len(token_ids)
        self.policy_versions += [self.policy_versions[-1]] * len(token_ids)


async def play(
    prompt: Prompt, sample_index: int, seed: int, sampling: SamplingParameters, policy: Policy, turns: Turns | None
) -> Sample:
    """Makes one sample. The prompt and the answer so far are sent back token by token as they are, turn after turn.

    Raises UserError for what the environment does wrong, and what the policy raises.
    """
    answer = _Answer()
    counterpart = environment.make(turns.factory, prompt.record_id, prompt.record) if turns else None
    while True:
        name = f"{prompt.record_id}/{sample_index}/{answer.num_turns}"
        # Each turn draws with a seed of its own: equal ones would repeat the same random numbers.
        request = Request(
            name, prompt.token_ids + tuple(answer.answer_ids), sampling, (seed + answer.num_turns) % 2**63
        )
        generation = await policy(request)
        if not generation.token_ids:
            raise UserError(f"record {prompt.record_id}: the engine returned an empty answer")
        answer.add_turn(generation)
        reason: FinishReason | None = generation.finish_reason
        if turns and counterpart and reason is FinishReason.STOP:
            text = turns.renderer.text_of(generation.token_ids)
            reply = await asyncio.to_thread(environment.ask, counterpart, prompt.record_id, text)
            reason = _go_on(prompt, sampling, turns, answer, reply)
        if reason:
            return Sample(
                record_id=prompt.record_id,
                sample_index=sample_index,
                seed=seed,
                prompt_ids=prompt.token_ids,
                answer_ids=tuple(answer.answer_ids),
                loss_mask=tuple(answer.loss_mask),
                log_probabilities=tuple(answer.log_probabilities),
                policy_versions=tuple(answer.policy_versions),
                weights=answer.weights,
                sampling=sampling,
                finish_reason=reason,
                num_turns=answer.num_turns,
            )


def _go_on(
    prompt: Prompt, sampling: SamplingParameters, turns: Turns, answer: _Answer, reply: environment.Reply
) -> FinishReason | None:
    """Inserts the reply and returns None, or says why the conversation is over."""
    if reply.is_done:
        return FinishReason.STOP
    if answer.num_turns == turns.max_turns:
        return FinishReason.MAX_TURNS
    inserted = turns.renderer.between_turns(answer.answer_ids[-1], reply.messages)
    if inserted is None:  # the policy ended the text, not only its turn
        return FinishReason.STOP
    so_far = len(prompt.token_ids) + len(answer.answer_ids) + len(inserted)
    if so_far + sampling.max_new_tokens > turns.max_sequence_tokens:
        return FinishReason.LENGTH
    answer.insert(inserted)
    return None
