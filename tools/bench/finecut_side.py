"""Prepares data as Finecut does, for dataprep_bench.py: the stage as it always runs, with a clock on its parts.

Usage: finecut_side.py JOB.textproto
Prints one line of JSON.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from finecut.dataprep import segments, shards, stage
from finecut.proto.config import load_job
from finecut.proto.run import RunFolder, artifacts

_READ_BLOCKS = 16


def main(config: str) -> None:
    job = load_job(config)
    seconds: dict[str, float] = {}
    for name, module, function in (
        ("look at the input", segments, "plan"),
        ("load the tokenizer", stage, "SegmentWorker"),
        ("sample first", stage, "rehearse"),
        ("tokenize, mask, pack and write", stage, "prepare"),
        ("lint and report", stage, "review"),
        ("checksums", artifacts, "write"),
    ):
        setattr(module, function, _timed(getattr(module, function), name, seconds))
    started, processors = time.perf_counter(), _processor_seconds()
    artifact = stage.run_stage(job, "prepare")
    total, processors = time.perf_counter() - started, _processor_seconds() - processors
    (split,) = artifact.data.splits
    result = {
        "seconds": total,
        "processor_seconds": processors,
        "tokens": split.token_count,
        "trained_tokens": split.trained_token_count,
        "blocks": split.block_count,
        "parts": seconds,
        "reading_tokens_per_second": _reading_rate(RunFolder.of(job)),
    }
    print(json.dumps(result))


def _processor_seconds() -> float:
    """Of this process and of all that it has started and seen end."""
    return sum(os.times()[:4])


def _timed(function: Callable[..., Any], name: str, seconds: dict[str, float]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started

    return call


def _reading_rate(run: RunFolder) -> float:
    """Tokens a second, padding included, that one process reads in random order from the page cache."""
    reader = shards.SplitReader(run.artifact("prepare"), "train", verify=False)
    order = [(index * 7919) % len(reader) for index in range(len(reader))]
    started = time.perf_counter()
    for first in range(0, len(order), _READ_BLOCKS):
        reader.read(order[first : first + _READ_BLOCKS])
    return len(order) * reader.block_size / (time.perf_counter() - started)


if __name__ == "__main__":
    main(sys.argv[1])
