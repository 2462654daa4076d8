"""Compares splits of GPUs on a trace, or on what a run did (a stage with rollouts in placement SPLIT).

bazel run //trainer/allocation:simulate -- --trace=trace.json
bazel run //trainer/allocation:simulate -- --run=FOLDER --stage=grpo --save=trace.json
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from finecut.proto import rollout_pb2
from finecut.proto.config import UserError, load_resolved, reinforcement
from finecut.proto.run import RunFolder
from finecut.trainer.allocation.policy import Bounds, PolicyConfig
from finecut.trainer.allocation.recording import recorded
from finecut.trainer.allocation.simulation import Trace, dynamic, fixed, half

_TRACE = flags.DEFINE_string("trace", None, "Trace file.")
_RUN = flags.DEFINE_string("run", None, "Folder of a run, in place of a trace.")
_STAGE = flags.DEFINE_string("stage", None, "The run's stage.")
_SAVE = flags.DEFINE_string("save", None, "Where to write the run's trace.")


def main(argv: Sequence[str]) -> int:
    """Prints what each split takes."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    try:
        trace = _trace()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    bounds = Bounds(trace.num_gpus)
    total, splits = dynamic(trace, PolicyConfig(move_s=trace.move_s), bounds)
    equal = fixed(trace, half(bounds))
    print(f"{trace.name}: {len(trace.steps)} steps on {trace.num_gpus} GPUs")
    for split in bounds.splits():
        print(f"  {split:3} generate: {fixed(trace, split):10.0f} s")
    moves = sum(a != b for a, b in itertools.pairwise(splits))
    print(f"  dynamic:      {total:10.0f} s, {equal / total:.2f} times half and half, {moves} moves, last {splits[-1]}")
    return 0


def _trace() -> Trace:
    if _TRACE.value and not _RUN.value:
        return Trace.read(Path(_TRACE.value))
    if _TRACE.value or not _RUN.value or not _STAGE.value:
        raise app.UsageError("give --trace, or --run and --stage")
    folder = RunFolder(Path(_RUN.value))
    stage = next((one for one in load_resolved(folder.config).stages if one.name == _STAGE.value), None)
    if stage is None:
        raise UserError(f"{folder.root}: no stage {_STAGE.value!r}")
    work: Any = getattr(stage, stage.WhichOneof("work") or "")
    rollout = work.rollout if reinforcement.samples_itself(stage) else rollout_pb2.Rollout()
    move_s = rollout.allocation.rank_move_time.ToTimedelta().total_seconds() or PolicyConfig().move_s
    trace = recorded(folder.events(stage.name), rollout.tensor_parallel_size or 1, move_s)
    if _SAVE.value:
        trace.write(Path(_SAVE.value))
    return trace


if __name__ == "__main__":
    app.run(main)
