"""The rewards of answers to held-out prompts, as the recipes with rewards measure them while they train."""

from __future__ import annotations

import math
from collections.abc import Sequence

from finecut.trainer.rewards.reward_set import RewardSet
from finecut.trainer.rl import scoring
from finecut.trainer.rl.batches import Collected
from finecut.trainer.rl.setup import RlSetup
from finecut.trainer.rollout.episode import Prompt
from finecut.trainer.rollout.sample import FinishReason
from finecut.trainer.rollout.sampling import SamplingParameters


class HeldOutRewards:
    """A measurement (see evaluation.py): the mean reward, without the running normalisation, which moves."""

    def __init__(self, rewards: RewardSet, setup: RlSetup) -> None:
        """`setup` has held-out prompts."""
        self._rewards = rewards
        self._setup = setup

    @property
    def every_steps(self) -> int:
        """As the job says."""
        steps: int = self._setup.config.rollout.evaluation.every_steps
        return steps

    @property
    def prompts(self) -> Sequence[Prompt]:
        """Those of the split "evaluation"."""
        return self._setup.held_out

    @property
    def sampling(self) -> SamplingParameters:
        """As the job says."""
        sampling: SamplingParameters = self._setup.config.rollout.evaluation.sampling
        return sampling

    @property
    def takes_turns(self) -> bool:
        """As in training."""
        return True

    def metrics(self, answers: Collected) -> dict[str, float]:
        """Means over the answers that could be scored; how many could not is counted, under no budget."""
        texts = [
            scoring.answer_of(sample, prompt, self._setup)
            for sample, prompt in zip(answers.samples, answers.prompts, strict=True)
        ]
        scores = self._rewards.measure(texts)
        known = [value for value in scores.total_N if not math.isnan(value)]
        found = {
            "reward": _mean(known),
            "reward_standard_error": _standard_error(known),
            "answers": float(len(texts)),
            "unscored_answers": float(scores.num_skipped),
            "answer_tokens": _mean([float(sample.num_sampled_tokens) for sample in answers.samples]),
            "cut_share": _mean([float(sample.finish_reason is FinishReason.LENGTH) for sample in answers.samples]),
        }
        if len(scores.parts) > 1:
            found |= {
                f"reward/{name}": _mean([value for value in values if not math.isnan(value)])
                for name, values in scores.parts.items()
            }
        return found


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _standard_error(values: Sequence[float]) -> float:
    """Of the mean; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
