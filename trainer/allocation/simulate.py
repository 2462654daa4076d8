"""Compares splits of GPUs on a trace: `bazel run //trainer/allocation:simulate -- --trace=trace.json`."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from finecut.proto.config import UserError
from finecut.trainer.allocation.policy import Bounds, PolicyConfig
from finecut.trainer.allocation.simulation import Trace, dynamic, fixed, half

_TRACE = flags.DEFINE_string("trace", None, "Trace file.", required=True)


def main(argv: Sequence[str]) -> int:
    """Prints what each split takes."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    try:
        trace = Trace.read(Path(_TRACE.value))
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


if __name__ == "__main__":
    app.run(main)
