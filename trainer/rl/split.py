"""How a stage's GPUs are shared between ranks and engines now, kept where its next start finds it. No torch, no Ray."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from finecut.proto.run import files

MOVED = "ranks and engines change places"
"""Why a group stops that is to start again with what is kept here."""

_NAME = "split.json"


@dataclasses.dataclass(frozen=True)
class Split:
    """Example: Split(6, 2, (31.0, 118.0)).

    Attributes:
      work: GPU-seconds a step of generating and of training, as measured so far; None: nothing was.
    """

    num_ranks: int
    num_engines: int
    work: tuple[float, float] | None = None


def read(stage: Path) -> Split | None:
    """What the stage of this folder had last; None where it has not moved anything."""
    try:
        found = json.loads((stage / _NAME).read_text(encoding="utf-8"))
    except OSError:
        return None
    return Split(found["num_ranks"], found["num_engines"], tuple(found["work"]) if found["work"] else None)


def write(stage: Path, split: Split) -> None:
    """For the next start."""
    files.write_atomically(stage / _NAME, json.dumps(dataclasses.asdict(split)) + "\n")
