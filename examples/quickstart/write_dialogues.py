"""Turns the English part of the package chatterbot-corpus into JSONL conversations. Prints what became of every entry.

Usage: write_dialogues OUTPUT.jsonl

A YAML entry is a list of turns. In most files it is a question and its answer, or a dialogue. In the files of
ALTERNATIVES it is a question followed by several answers to it, each of which makes a conversation of its own.
"""

import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

ALTERNATIVES = frozenset({"computers.yml", "emotion.yml"})

Conversation = tuple[str, ...]  # user and assistant in turn


def corpus_folder() -> Path:
    spec = importlib.util.find_spec("chatterbot_corpus")
    assert spec is not None and spec.origin is not None, "chatterbot-corpus is not installed"
    return Path(spec.origin).parent / "data" / "english"


def conversations_of(file_name: str, turns: list[str], counts: Counter[str]) -> Iterator[Conversation]:
    """The conversations of one entry; `counts` learns what was left out and why."""
    turns = [turn.strip() for turn in turns]
    if not all(turns):
        counts["entries refused for an empty turn"] += 1
        return
    if file_name in ALTERNATIVES:
        counts["entries with alternative answers"] += 1
        yield from ((turns[0], answer) for answer in turns[1:])
        return
    if len(turns) % 2:
        counts["last turns left out because nobody answers"] += 1
        turns = turns[:-1]
    yield tuple(turns)


def read_corpus(folder: Path, counts: Counter[str]) -> Iterator[Conversation]:
    """All conversations in the order of file names and entries."""
    for path in sorted(folder.glob("*.yml")):
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            counts["entries"] += 1
            yield from conversations_of(path.name, turns, counts)


def without_duplicates(conversations: Iterator[Conversation], counts: Counter[str]) -> Iterator[Conversation]:
    seen: set[Conversation] = set()
    for conversation in conversations:
        if conversation in seen:
            counts["exact duplicates left out"] += 1
            continue
        seen.add(conversation)
        yield conversation


def as_record(conversation: Conversation) -> str:
    """One JSON line in OpenAI's layout."""
    messages = [
        {"role": "assistant" if number % 2 else "user", "content": content}
        for number, content in enumerate(conversation)
    ]
    return json.dumps({"messages": messages}, ensure_ascii=False)


def main(output: Path) -> None:
    counts: Counter[str] = Counter()
    lines = [as_record(c) for c in without_duplicates(read_corpus(corpus_folder(), counts), counts)]
    output.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    counts["conversations written"] = len(lines)
    for what, count in counts.items():
        print(f"{count:6,} {what}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
