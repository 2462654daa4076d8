"""Turns the quickstart's dialogues into preference pairs and prompts. Prints what became of them.

    write_preferences DIALOGUES PAIRS PROMPTS

The corpus holds no preferences, so they are made: an answer that was given to the question is preferred to one that was
given to another. Questions are prompts, each once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

# The rejected answer is that of the question so many further on: a prime, far from what stands near by in one file.
_DISTANCE = 101


def read_turns(path: Path) -> list[tuple[str, str]]:
    """The first question of each conversation, and the answer to it."""
    messages = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
    return [(found[0]["content"], found[1]["content"]) for found in messages]


def pairs_of(turns: list[tuple[str, str]]) -> Iterator[dict[str, str]]:
    """One record a question and answer; none where the other answer is one that fits, too."""
    answers: dict[str, set[str]] = {}
    for question, answer in turns:
        answers.setdefault(question, set()).add(answer)
    for number, (question, answer) in enumerate(turns):
        other = turns[(number + _DISTANCE) % len(turns)][1]
        if other not in answers[question]:
            yield {"prompt": question, "chosen": answer, "rejected": other}


def main(dialogues: Path, pairs: Path, prompts: Path) -> None:
    turns = read_turns(dialogues)
    found = list(pairs_of(turns))
    questions = list(dict.fromkeys(question for question, _ in turns))
    _write(pairs, found)
    _write(prompts, [{"prompt": question} for question in questions])
    print(f"{len(turns):,} questions with an answer: {len(found):,} pairs, {len(questions):,} prompts")


def _write(path: Path, records: list[dict[str, str]]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
