"""When the policy is measured on held-out prompts, and what of."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from finecut.trainer.parallel import process_group
from finecut.trainer.rewards.answer import Answer, Scorer
from finecut.trainer.rewards.config import RegularExpression, RewardConfig
from finecut.trainer.rewards.reward_set import RewardSet
from finecut.trainer.rl import testing
from finecut.trainer.rl.batches import Collected
from finecut.trainer.rl.evaluation import Evaluation
from finecut.trainer.rl.rollouts import Rollouts
from finecut.trainer.rollout.episode import Prompt
from finecut.trainer.rollout.sampling import SamplingParameters


class Echo:
    """Stands for the engines: each answer is as long as its prompt."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int | None]] = []
        self.took_turns: list[bool] = []

    def answer(
        self, prompts: Sequence[Prompt], sampling: SamplingParameters, version: int, takes_turns: bool
    ) -> Collected:
        self.asked.append((version, sampling.top_k))
        self.took_turns.append(takes_turns)
        lengths = [len(prompt.token_ids) for prompt in prompts]
        return Collected(list(prompts), [testing.make_sample(length, length) for length in lengths])


class Tokens:
    """A measurement."""

    def __init__(self, name: str, lengths: Sequence[int], every_steps: int = 4, takes_turns: bool = False) -> None:
        self._name = name
        self.every_steps = every_steps
        self.prompts = [Prompt(f"{name}/{length}", tuple(range(length))) for length in lengths]
        self.sampling = SamplingParameters(8, top_k=1)
        self.takes_turns = takes_turns

    def metrics(self, answers: Collected) -> dict[str, float]:
        return {self._name: float(sum(len(sample.answer_ids) for sample in answers.samples))}


@pytest.mark.parametrize(("last", "due"), [(10, [0, 4, 8, 10]), (8, [0, 4, 8])])
def test_it_is_due_before_the_first_step_every_so_many_and_after_the_last(last: int, due: list[int]) -> None:
    evaluation = Evaluation([Tokens("a", [1])], last, cast(Rollouts, Echo()))
    assert [step for step in range(last + 1) if evaluation.due(step)] == due
    assert not Evaluation([], last, cast(Rollouts, Echo())).due(0)


def test_every_measurement_asks_its_own_prompts_at_the_present_version() -> None:
    engines = Echo()
    measurements = [Tokens("a", [1, 2]), Tokens("b", [5]), Tokens("not due", [1], every_steps=3)]
    evaluation = Evaluation(measurements, 8, cast(Rollouts, engines))
    found = evaluation.run(4)
    assert found.pop("seconds") >= 0 and found == {"a": 3, "b": 5} and engines.asked == [(4, 1), (4, 1)]


def no_model(folder: Path) -> Scorer:
    raise AssertionError(folder)


def test_measured_rewards_change_neither_running_moments_nor_the_budget() -> None:
    def answer(text: str) -> Answer:
        return Answer("r", "?", text, {"source": "s", "reference": None, "verifier": None})

    reward = RewardConfig("seen", RegularExpression("z"), weight=2, normalize=True)
    with (
        process_group.connect() as devices,
        contextlib.closing(RewardSet.from_config([reward], 0, devices, no_model)) as rewards,
    ):
        rewards.score([answer("z"), answer("a")])
        before = rewards.state_dict()
        assert rewards.measure([answer("z"), answer("z"), answer("a")]).total_N == [2, 2, 0]
        assert rewards.state_dict() == before
        assert rewards.score([answer("z")]).total_N[0] != 2  # learning sees it normalised


def test_only_what_is_measured_in_turns_meets_the_environment() -> None:
    echo = Echo()
    Evaluation([Tokens("a", [1]), Tokens("b", [2], takes_turns=True)], 8, cast(Rollouts, echo)).run(0)
    assert echo.took_turns == [False, True]
