"""Samples for people: a full disk costs some of them, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from finecut.trainer.rl.sample_log import FILE, SampleLog
from finecut.trainer.rl.testing import make_sample


class Heard:
    """A recorder that remembers."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def text(self, name: str, step: int, markdown: str) -> None:
        pass


def write(log: SampleLog, step: int) -> None:
    answer: Any = SimpleNamespace(prompt="1 + 1", text="2")
    experience: Any = SimpleNamespace(rewards_N=torch.tensor([1.0]), samples=[make_sample(3, 4)])
    log.write(step, [answer], experience, {"numeric": [1.0]})


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines() if line]


def test_what_cannot_be_written_is_told_once_and_the_next_samples_are_whole(tmp_path: Path) -> None:
    heard: Any = Heard()
    log = SampleLog(tmp_path / "stage", 0, heard)
    write(log, 1)  # the folder is not there
    write(log, 2)
    assert len(heard.messages) == 1 and "training goes on without these samples" in heard.messages[0]
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / FILE).write_text('{"step": 2, "rec')  # cut in the middle
    write(log, 3)
    write(log, 4)
    resumed = SampleLog(tmp_path / "stage", 3, heard)
    assert steps(tmp_path / "stage" / FILE) == [3]
    write(resumed, 4)
    assert steps(tmp_path / "stage" / FILE) == [3, 4]


def test_lines_up_to_the_resumed_step_stay_whatever_separators_answers_hold(tmp_path: Path) -> None:
    answers = ["a\u0085b", "c\u2028d\u001ce", "f"]
    rows = [{"step": step, "answer": answer} for step, answer in enumerate(answers)]
    torn = '{"step": 1, "ans'
    path = tmp_path / FILE
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + torn, encoding="utf-8")
    nobody: Any = Heard()
    SampleLog(tmp_path, 1, nobody)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line] == rows[:2]
