"""A user's reward function in a process of its own: values, and everything that can go wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finecut.proto.config import UserError
from finecut.trainer.rewards.answer import Answer, Unscored
from finecut.trainer.rewards.config import PythonFunction
from finecut.trainer.rewards.function import FunctionScorer

# What each function does stands in its name.
CODE = """
import os, time

def by_text(answer):
    print("users print")
    match answer.text:
        case "raise":
            raise ValueError("no such city\\nand more")
        case "nan":
            return float("nan")
        case "text":
            return "1"
        case "hang":
            while True:
                pass
        case "die":
            os._exit(7)
    return len(answer.text) + (answer.reference == "yes")

def process(answer):
    time.sleep(0.2)
    return os.getpid()

class Judge:
    def __call__(self, answer):
        return len(answer.prompt) / 2

judge = Judge()

def two(answer, strict):
    return 0
"""


@pytest.fixture(autouse=True)
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "users_rewards.py").write_text(CODE)
    (tmp_path / "broken_rewards.py").write_text("import no_such_package")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield


def answers(*texts: str) -> list[Answer]:
    return [Answer(f"a/{text}", "why?", text, {"reference": "yes"}) for text in texts]


def score(name: str, *texts: str, timeout_s: float = 600.0, num_processes: int = 1) -> list[float | Unscored]:
    scorer = FunctionScorer(PythonFunction(f"users_rewards:{name}", timeout_s, num_processes))
    try:
        return scorer.score(answers(*texts))
    finally:
        scorer.close()


def reason(found: float | Unscored) -> str:
    assert isinstance(found, Unscored), found
    return found.reason


def test_a_function_and_an_object_are_called_with_the_answer() -> None:
    assert score("by_text", "ab", "abc") == [3.0, 4.0]
    assert score("judge", "ab") == [2.0]


def test_what_raises_or_returns_no_number_is_told_and_the_next_answer_is_scored() -> None:
    raised, nan, text, fine = score("by_text", "raise", "nan", "text", "fine")
    assert "users_rewards.py:8: ValueError: no such city" in reason(raised) and "more" not in reason(raised)
    assert reason(nan) == "it returned nan, and a reward is finite"
    assert reason(text) == "it returned str, and a reward is a number"
    assert fine == 5.0


def test_a_process_that_dies_is_replaced() -> None:
    died, fine = score("by_text", "die", "fine")
    assert reason(died) == "its process ended with exit code 7"
    assert fine == 5.0


def test_a_function_that_hangs_is_ended_after_its_time() -> None:
    hung, fine = score("by_text", "hang", "fine", timeout_s=15.0)
    assert reason(hung) == "it took more than its timeout, 15 s"
    assert fine == 5.0


def test_calls_are_shared_among_processes_and_keep_their_order() -> None:
    assert len(set(score("process", *"abcdefgh", num_processes=2))) == 2
    assert score("by_text", *["a" * n for n in range(20)], num_processes=2) == [n + 1 for n in range(20)]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("no_such_module:f", "importing no_such_module failed: .*ModuleNotFoundError"),
        ("broken_rewards:f", "importing broken_rewards failed: .*No module named 'no_such_package'"),
        ("users_rewards:absent", "users_rewards has no class or function 'absent'"),
        ("users_rewards:two", r"is called with 1 argument, and takes \(answer, strict\): missing"),
    ],
)
def test_what_cannot_be_called_is_refused_before_the_run(path: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        FunctionScorer(PythonFunction(path))
