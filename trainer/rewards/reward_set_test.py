"""Mixes of rewards: weights, verifiers by name, normalisation, the budget, and ranks that share the work."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from finecut.proto import rollout_pb2
from finecut.proto.config import UserError
from finecut.trainer.parallel import process_group
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes.testing import run_ranks
from finecut.trainer.rewards.answer import Answer, Unscored
from finecut.trainer.rewards.config import (
    ExactMatch,
    ModelReward,
    Numeric,
    Overlong,
    PythonFunction,
    RegularExpression,
    RewardConfig,
)
from finecut.trainer.rewards.reward_set import RewardSet, Scores


class Length:
    """Stands for a reward model: the answer's length, and no number for an empty one."""

    def score(self, answers: Sequence[Answer]) -> list[float | Unscored]:
        return [float(len(answer.text)) if answer.text else Unscored("it is empty") for answer in answers]

    def close(self) -> None:
        """Nothing runs."""


@pytest.fixture(scope="module")
def devices() -> Iterator[Devices]:
    with process_group.connect() as found:
        yield found


def answer(text: str, reference: str | None = "42", verifier: str | None = None) -> Answer:
    return Answer(f"maths/{text}", "?", text, {"source": "maths", "reference": reference, "verifier": verifier})


def opened(devices: Devices, *rewards: RewardConfig, max_unscored: int = 0) -> RewardSet:
    return RewardSet.from_config(rewards, max_unscored, devices, lambda path: Length())


def scored(devices: Devices, answers: list[Answer], *rewards: RewardConfig, max_unscored: int = 0) -> Scores:
    with closing(opened(devices, *rewards, max_unscored=max_unscored)) as found:
        return found.score(answers)


MODEL = RewardConfig("model", ModelReward(Path("x")), weight=0.5)
NUMBER = RewardConfig("numeric", Numeric(), weight=2.0)
TEXT = RewardConfig("exact_match", ExactMatch())
PATTERN = RewardConfig("polite", RegularExpression("please"), weight=-1.0)


def test_rewards_are_summed_by_weight(devices: Devices) -> None:
    scores = scored(devices, [answer("42"), answer("please: 42"), answer("none")], MODEL, NUMBER, TEXT, PATTERN)
    assert scores.parts == {
        "model": [2.0, 10.0, 4.0],
        "numeric": [1.0, 1.0, 0.0],
        "exact_match": [1.0, 0.0, 0.0],
        "polite": [0.0, 1.0, 0.0],
    }
    assert scores.total_N == [4.0, 6.0, 2.0]
    assert (scores.num_skipped, scores.problems) == (0, ())


def test_a_record_is_judged_by_the_verifier_it_names_and_by_models(devices: Devices) -> None:
    scores = scored(devices, [answer("42", verifier="numeric"), answer("42")], MODEL, NUMBER, TEXT)
    assert scores.total_N == [3.0, 4.0]
    assert math.isnan(scores.parts["exact_match"][0]) and scores.num_skipped == 0


@pytest.mark.parametrize("verifier", ["judge", "model"])
def test_a_verifier_that_is_not_there_is_named_with_the_record(devices: Devices, verifier: str) -> None:
    with pytest.raises(UserError, match=f"maths/42: its verifier '{verifier}' is no reward .*numeric, exact_match"):
        scored(devices, [answer("42", verifier=verifier)], MODEL, NUMBER, TEXT)


def test_answers_without_a_number_are_skipped_within_the_budget_of_the_run(devices: Devices) -> None:
    with closing(opened(devices, MODEL, NUMBER, max_unscored=2)) as rewards:
        scores = rewards.score([answer("42"), answer(""), answer("7", reference=None)])
        assert scores.total_N[0] == 3.0 and np.isnan(scores.total_N[1:]).all()
        assert scores.num_skipped == 2 and scores.parts["numeric"][1] == 0.0
        assert scores.problems[0] == "record maths/: reward 'model': it is empty"
        assert "record maths/7: reward 'numeric': its record has no reference" in scores.problems[1]
        resumed = opened(devices, MODEL, NUMBER, max_unscored=2)
        resumed.load_state_dict(json.loads(json.dumps(rewards.state_dict())))
        for found in (rewards, resumed):
            with pytest.raises(UserError, match=r"3 answers .* allows 2: record maths/: reward 'model': it is empty"):
                found.score([answer("")])


def test_a_normalized_reward_is_in_deviations_of_all_answers_so_far(devices: Devices) -> None:
    model = RewardConfig("model", ModelReward(Path("x")), weight=3.0, normalize=True)
    texts = ["a", "aaa", "aaaa"]
    with closing(opened(devices, model, NUMBER)) as rewards:
        first = rewards.score([answer(text) for text in texts])
        state = json.loads(json.dumps(rewards.state_dict()))
        second = rewards.score([answer("a" * 9)])
    lengths = np.array([1, 3, 4])
    assert first.total_N == pytest.approx((3 * (lengths - lengths.mean()) / lengths.std()).tolist())
    assert first.parts["model"] == [1.0, 3.0, 4.0]
    lengths = np.append(lengths, 9)
    assert second.total_N == pytest.approx([3 * (9 - lengths.mean()) / lengths.std()])
    with closing(opened(devices, model, NUMBER)) as resumed:
        resumed.load_state_dict(state)
        assert resumed.score([answer("a" * 9)]).total_N == second.total_N


def test_a_reward_that_cannot_be_had_is_refused(devices: Devices) -> None:
    with pytest.raises(UserError, match=r"rewards.python.path: 'no_such_module:f'"):
        opened(devices, NUMBER, RewardConfig("python", PythonFunction("no_such_module:f")))


def test_rewards_of_a_job() -> None:
    python = rollout_pb2.Reward.PythonFunction(path="a.b:c", process_count=2)
    python.timeout.FromMilliseconds(1500)
    protos = [
        rollout_pb2.Reward(weight=2, model="@reward", normalize=True),
        rollout_pb2.Reward(weight=1, name="judge", python=python),
        rollout_pb2.Reward(weight=1, numeric=rollout_pb2.Reward.Numeric(relative_tolerance=0.1)),
        rollout_pb2.Reward(weight=1, overlong=rollout_pb2.Reward.Overlong(buffer_tokens=4)),
    ]
    found = [RewardConfig.from_proto(proto, lambda reference: Path("/run") / reference[1:], 16) for proto in protos]
    assert found == [
        RewardConfig("model", ModelReward(Path("/run/reward")), 2.0, normalize=True),
        RewardConfig("judge", PythonFunction("a.b:c", 1.5, 2)),
        RewardConfig("numeric", Numeric(0.1)),
        RewardConfig("overlong", Overlong(16, 4)),
    ]
    # Whatever verifier a record names, its length counts.
    assert [reward.judges("numeric") for reward in found] == [True, False, True, True]


class ByRank(Length):
    """Also writes down what this rank was asked."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / os.environ["RANK"]

    def score(self, answers: Sequence[Answer]) -> list[float | Unscored]:
        self._file.write_text(" ".join(answer.text for answer in answers))
        return super().score(answers)


def score_as_rank(folder: Path) -> None:
    answers = [answer(text) for text in ("a", "aa", "", "aaaa", "42")]
    with process_group.connect() as devices:
        rewards = RewardSet.from_config([MODEL, NUMBER], 1, devices, lambda path: ByRank(folder))
        scores = rewards.score(answers)
    assert scores.parts["model"][3:] == [4.0, 2.0] and scores.num_skipped == 1
    assert scores.total_N[:2] == [0.5, 1.0] and math.isnan(scores.total_N[2]) and scores.total_N[3:] == [2.0, 3.0]


def test_ranks_share_the_work_and_all_know_the_result(tmp_path: Path) -> None:
    run_ranks(2, score_as_rank, tmp_path)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["a  42", "aa aaaa"]
