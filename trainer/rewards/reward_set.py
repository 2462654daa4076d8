"""The rewards of a stage, summed by weight, with a budget for answers that cannot be scored.

answers, the same on every rank --> each data rank scores its share with every reward --> gathered, on every rank
    --> normalised where asked --> total = sum of weight * reward
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from finecut.proto.config import UserError
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.rewards import config as configs
from finecut.trainer.rewards.answer import Answer, Scorer, Unscored
from finecut.trainer.rewards.config import RewardConfig
from finecut.trainer.rewards.function import FunctionScorer
from finecut.trainer.rewards.moments import RunningMoments
from finecut.trainer.rewards.verifiers import (
    ExactMatchVerifier,
    NumericVerifier,
    OverlongPunishment,
    RegularExpressionVerifier,
)

_SHOWN_PROBLEMS = 5


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of N answers, the same on every rank. NaN stands where there is no number.

    `parts` are the rewards by name, before they are normalised and weighted; a reward that does not judge a record is
    NaN there. An answer that any reward failed on has the total NaN and must not be learnt from; `num_skipped` are
    those, and `problems` says of some of them why.
    """

    total_N: list[float]
    parts: dict[str, list[float]]
    num_skipped: int
    problems: tuple[str, ...]


class RewardSet:
    """All rewards of a stage. Use `close`, or `contextlib.closing`."""

    def __init__(self, rewards: Sequence[tuple[RewardConfig, Scorer]], max_unscored: int, devices: Devices) -> None:
        self._rewards = list(rewards)
        self._moments = {reward.name: RunningMoments() for reward, _ in rewards if reward.normalize}
        self._max_unscored = max_unscored
        self._num_unscored = 0
        self._devices = devices

    @classmethod
    def from_config(
        cls,
        rewards: Sequence[RewardConfig],
        max_unscored: int,
        devices: Devices,
        load_model: Callable[[Path], Scorer],
    ) -> RewardSet:
        """Starts what the rewards need. Collective. Raises UserError for one that cannot be had.

        Args:
          max_unscored: Answers of the whole run that may stay without a number.
          load_model: The scorer of a reward model's folder; see `model.load_scorer`.
        """
        found: list[tuple[RewardConfig, Scorer]] = []
        try:
            for reward in rewards:
                found.append((reward, _scorer(reward.source, load_model)))
        except UserError:
            for _, scorer in found:
                scorer.close()
            raise
        return cls(found, max_unscored, devices)

    def score(self, answers: Sequence[Answer]) -> Scores:
        """Scores answers, of which every rank passes the same. Collective.

        Raises UserError where more than the budget could not be scored in the run, or a record names a verifier that
        there is not.
        """
        parts, problems = self._parts(answers)
        self._num_unscored += len(problems)
        shown = _shown(problems)
        if self._num_unscored > self._max_unscored:
            raise UserError(
                f"{self._num_unscored} answers of this run could not be scored, and max_unscored_answers allows"
                f" {self._max_unscored}: " + "; ".join(shown)
            )
        for name, moments in self._moments.items():
            moments.update([value for value in parts[name] if not math.isnan(value)])
        return Scores(self._total(parts, problems, self._moments), parts, len(problems), shown)

    def measure(self, answers: Sequence[Answer]) -> Scores:
        """As `score`, of answers that are not learnt from: without normalisation and budget, which stay as they are."""
        parts, problems = self._parts(answers)
        return Scores(self._total(parts, problems, {}), parts, len(problems), _shown(problems))

    def close(self) -> None:
        """Ends what the rewards run."""
        for _, scorer in self._rewards:
            scorer.close()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain numbers."""
        return {
            "num_unscored": self._num_unscored,
            "moments": {name: moments.state_dict() for name, moments in self._moments.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint of the same rewards."""
        self._num_unscored = int(state["num_unscored"])
        for name, moments in self._moments.items():
            moments.load_state_dict(state["moments"][name])

    def _check_verifiers(self, answers: Sequence[Answer]) -> None:
        names = [reward.name for reward, _ in self._rewards if reward.is_verifier]
        for answer in answers:
            if answer.verifier is not None and answer.verifier not in names:
                listed = ", ".join(names) or "none"
                raise UserError(
                    f"record {answer.record_id}: its verifier {answer.verifier!r} is no reward of this stage"
                    f" ({listed}); name a reward so, or leave data_prep's prompt.verifier_field unset"
                )

    def _part(self, reward: RewardConfig, scorer: Scorer, answers: Sequence[Answer]) -> dict[int, float | Unscored]:
        """One reward's results by the number of the answer; those that it does not judge are not there."""
        judged = [n for n, answer in enumerate(answers) if reward.judges(answer.verifier)]
        own = judged[self._devices.data_rank :: self._devices.data_size]
        found = dict(zip(own, scorer.score([answers[n] for n in own]), strict=True))
        if self._devices.world_size == 1:
            return found
        of_ranks: list[dict[int, float | Unscored]] = [{} for _ in range(self._devices.world_size)]
        dist.all_gather_object(of_ranks, found)
        # Ranks that split matrices between them have the same share; the first one's results stand.
        return {n: result for part in reversed(of_ranks) for n, result in part.items()}

    def _parts(self, answers: Sequence[Answer]) -> tuple[dict[str, list[float]], dict[int, str]]:
        """Each reward of each answer, by the reward's name; and why an answer has none, by its number."""
        self._check_verifiers(answers)
        results = {reward.name: self._part(reward, scorer, answers) for reward, scorer in self._rewards}
        problems = {
            number: f"record {answers[number].record_id}: reward {name!r}: {result.reason}"
            for name, found in results.items()
            for number, result in found.items()
            if isinstance(result, Unscored)
        }
        return {name: [_number(found.get(n)) for n in range(len(answers))] for name, found in results.items()}, problems

    def _total(
        self,
        parts: Mapping[str, Sequence[float]],
        problems: Mapping[int, str],
        all_moments: Mapping[str, RunningMoments],
    ) -> list[float]:
        total_N = [0.0] * len(next(iter(parts.values()), ()))
        for reward, _ in self._rewards:
            moments = all_moments.get(reward.name)
            for n, value in enumerate(parts[reward.name]):
                if not math.isnan(value):
                    total_N[n] += reward.weight * (moments.normalized(value) if moments else value)
        for number in problems:
            total_N[number] = math.nan
        return total_N


def _shown(problems: Mapping[int, str]) -> tuple[str, ...]:
    return tuple(problems[number] for number in sorted(problems)[:_SHOWN_PROBLEMS])


def _number(result: float | Unscored | None) -> float:
    return math.nan if result is None or isinstance(result, Unscored) else result


def _scorer(source: configs.RewardSource, load_model: Callable[[Path], Scorer]) -> Scorer:
    match source:
        case configs.ModelReward(path):
            return load_model(path)
        case configs.ExactMatch(normalize):
            return ExactMatchVerifier(normalize)
        case configs.Numeric(relative_tolerance):
            return NumericVerifier(relative_tolerance)
        case configs.RegularExpression(pattern):
            return RegularExpressionVerifier(pattern)
        case configs.Overlong(max_tokens, buffer_tokens):
            return OverlongPunishment(max_tokens, buffer_tokens)
        case configs.PythonFunction():
            return FunctionScorer(source)
