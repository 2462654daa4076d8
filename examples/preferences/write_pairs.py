"""Turns the ChatterBot dialogues into preference pairs: the answer that was given, and one to another question.

Usage: write_pairs DIALOGUES.jsonl OUTPUT.jsonl

Records are the first two turns of the quickstart's conversations. The other answer is that of a conversation further
on, the same in every run.
"""

import json
import sys
from pathlib import Path

# Far enough for another subject: files of the corpus have fewer conversations.
DISTANCE = 397


def pairs(exchanges: list[tuple[str, str]]) -> list[dict[str, str]]:
    """One record for each question and answer; none where both answers would be equal."""
    found = []
    for number, (question, answer) in enumerate(exchanges):
        _, other = exchanges[(number + DISTANCE) % len(exchanges)]
        if other != answer:
            found.append({"prompt": question, "chosen": answer, "rejected": other})
    return found


def main(dialogues: Path, output: Path) -> None:
    records = [json.loads(line)["messages"] for line in dialogues.read_text(encoding="utf-8").splitlines()]
    exchanges = [(messages[0]["content"], messages[1]["content"]) for messages in records]
    lines = [json.dumps(record, ensure_ascii=False) for record in pairs(exchanges)]
    output.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    print(f"{len(lines):,} pairs of {len(exchanges):,} exchanges")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
