"""From samples to experience: texts, rewards, and what people get to see of both."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

from finecut.trainer.rewards import model as reward_models
from finecut.trainer.rewards.answer import Answer
from finecut.trainer.rewards.config import RewardConfig
from finecut.trainer.rewards.reward_set import RewardSet
from finecut.trainer.rl import row_size
from finecut.trainer.rl.batches import Collected
from finecut.trainer.rl.config import ReinforcementConfig
from finecut.trainer.rl.experience import Experience
from finecut.trainer.rl.setup import RlSetup
from finecut.trainer.rollout.episode import Prompt
from finecut.trainer.rollout.sample import Sample


@dataclasses.dataclass(frozen=True)
class Scored:
    """Samples with what they are worth. `parts`: each reward by itself, by name."""

    collected: Collected
    answers: list[Answer]
    total_N: list[float]
    parts: dict[str, list[float]]
    problems: tuple[str, ...]

    def experience(self, step: int, setup: RlSetup) -> Experience:
        """As arrays, for the trainer at the version before `step`."""
        return Experience.of(self.collected.samples, self.total_N, step - 1, setup.devices.device)

    def metrics(self) -> dict[str, float]:
        """The mean of each reward, where there are several."""
        if len(self.parts) < 2:
            return {}
        return {f"reward/{name}": _mean(values) for name, values in self.parts.items()}

    def groups(self, chosen: Sequence[int], group_size: int) -> Scored:
        """Only these groups."""
        at = [group * group_size + i for group in chosen for i in range(group_size)]
        return Scored(
            Collected([self.collected.prompts[group] for group in chosen], [self.collected.samples[n] for n in at]),
            [self.answers[n] for n in at],
            [self.total_N[n] for n in at],
            {name: [values[n] for n in at] for name, values in self.parts.items()},
            self.problems,
        )

    def __add__(self, other: Scored) -> Scored:
        collected = Collected(
            self.collected.prompts + other.collected.prompts, self.collected.samples + other.collected.samples
        )
        parts = {name: values + other.parts[name] for name, values in self.parts.items()}
        return Scored(
            collected, self.answers + other.answers, self.total_N + other.total_N, parts, self.problems + other.problems
        )


def open_rewards(rewards: Sequence[RewardConfig], config: ReinforcementConfig, setup: RlSetup) -> RewardSet:
    """The rewards of a stage, started. Collective. Raises UserError for one that cannot be had."""
    load = functools.partial(
        reward_models.load_scorer,
        policy_tokenizer=setup.tokenizer_folder,
        training=config.training,
        precision=setup.precision,
        devices=setup.devices,
        row_tokens=row_size.row_tokens(setup.max_sequence_tokens, num_answers=1, on_gpu=False),
    )
    return RewardSet.from_config(rewards, config.max_unscored_answers, setup.devices, load)


def score(collected: Collected, rewards: RewardSet, setup: RlSetup) -> Scored:
    """Collective. Raises UserError where rewards fail on more answers than the budget allows."""
    group_size = len(collected.samples) // len(collected.prompts)
    answers = [
        answer_of(sample, collected.prompts[n // group_size], setup) for n, sample in enumerate(collected.samples)
    ]
    found = rewards.score(answers)
    return Scored(collected, answers, found.total_N, found.parts, found.problems)


def unscored(collected: Collected) -> Scored:
    """Of a recipe that learns from something else than rewards."""
    return Scored(collected, [], [math.nan] * len(collected.samples), {}, ())


def answer_of(sample: Sample, prompt: Prompt, setup: RlSetup) -> Answer:
    """As rewards see it."""
    decode = functools.partial(setup.tokenizer.decode, skip_special_tokens=True)
    return Answer(
        record_id=sample.record_id,
        prompt=decode(list(sample.prompt_ids)),
        text=decode(list(sample.answer_ids)),
        record=prompt.record,
        prompt_ids=sample.prompt_ids,
        answer_ids=sample.answer_ids,
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
