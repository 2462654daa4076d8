"""Samples for people: a line of JSON each in the stage's folder, and a table of some in TensorBoard.

samples.jsonl   {"step": 3, "record_id": "maths/00c0..#17", "sample_index": 0, "prompt": "...", "answer": "...",
                 "reward": 0.5, "parts": {"numeric": 0.5}, "tokens": 12, "finish_reason": "stop",
                 "weights": {"2": "5f0c31d2a9e4b876"}}                         by policy version; see checksums.digest

What cannot be written (a full disk) is missing there, which is said once, and training goes on.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path

from finecut.proto.run import files
from finecut.trainer.metrics.recorder import Recorder
from finecut.trainer.rewards.answer import Answer
from finecut.trainer.rl.experience import Experience

FILE = "samples.jsonl"
_SHOWN = 8  # rows of a table
_LONGEST = 600  # characters of a cell


class SampleLog:
    """Writes samples; rank 0 has one. `resumed_step`: lines of later steps, of a killed try, are dropped."""

    def __init__(self, folder: Path, resumed_step: int, recorder: Recorder) -> None:
        self._path = folder / FILE
        self._recorder = recorder
        self._has_failed = False
        if self._path.exists():
            # Not splitlines: an answer may hold other line separators than this one (U+0085, U+2028).
            lines = self._path.read_text(encoding="utf-8").split("\n")
            kept = [line for line in lines if _step_of(line) <= resumed_step]
            files.write_atomically(self._path, "".join(f"{line}\n" for line in kept))

    def write(
        self, step: int, answers: Sequence[Answer], experience: Experience, parts: dict[str, list[float]]
    ) -> None:
        """The samples of one step."""
        rewards = [None if math.isnan(reward) else reward for reward in experience.rewards_N.tolist()]
        rows = []
        for n, (answer, sample) in enumerate(zip(answers, experience.samples, strict=True)):
            of_parts = {name: values[n] for name, values in parts.items() if not math.isnan(values[n])}
            rows.append(
                {
                    "step": step,
                    "record_id": sample.record_id,
                    "sample_index": sample.sample_index,
                    "prompt": answer.prompt,
                    "answer": answer.text,
                    "reward": rewards[n],
                    "parts": of_parts,
                    "tokens": sample.num_sampled_tokens,
                    "finish_reason": sample.finish_reason.value,
                    "weights": {
                        str(version): sample.weights[version] for version in sorted(set(sample.policy_versions))
                    },
                }
            )
        self._append("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self._recorder.text("samples", step, _table(rows[:_SHOWN]))

    def _append(self, text: str) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n" + text if self._has_failed else text)  # ends a line that was cut
        except OSError as error:
            if not self._has_failed:
                self._recorder.message(
                    f"{self._path} cannot be written ({error}); training goes on without these samples"
                )
            self._has_failed = True


def _step_of(line: str) -> float:
    """Infinity for a line that was torn."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _table(rows: Sequence[dict[str, object]]) -> str:
    lines = ["| reward | prompt | answer |", "|---|---|---|"]
    lines += [f"| {row['reward']} | {cell(row['prompt'])} | {cell(row['answer'])} |" for row in rows]
    return "\n".join(lines)


def cell(text: object) -> str:
    """Text that fits a cell of a table."""
    cut = str(text)[-_LONGEST:]
    return html.escape(cut).replace("|", "&#124;").replace("\n", "<br>")
