"""What a resumed run keeps of the samples that were written."""

import json
from pathlib import Path
from typing import cast

from finecut.trainer.metrics.recorder import Recorder
from finecut.trainer.rl import sample_log


def test_lines_up_to_the_resumed_step_stay_whatever_separators_answers_hold(tmp_path: Path) -> None:
    answers = ["a\u0085b", "c\u2028d\u001ce", "f"]
    rows = [{"step": step, "answer": answer} for step, answer in enumerate(answers)]
    torn = '{"step": 1, "ans'
    path = tmp_path / sample_log.FILE
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + torn, encoding="utf-8")
    sample_log.SampleLog(tmp_path, 1, cast(Recorder, None))
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line] == rows[:2]
