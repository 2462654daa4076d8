"""Where the threads of this process stand: for reports, from Python frames alone."""

from __future__ import annotations

import sys
import threading
from types import FrameType

# Functions between a caller and its collective that say nothing.
_WRAPPERS = {"wrapper", "decorate_context", "inner", "_fn"}
_COLLECTIVE_FILES = ("torch/distributed/distributed_c10d.py", "torch/distributed/_functional_collectives.py")
_SHARDING_FILES = ("torch/distributed/fsdp/", "torch/distributed/tensor/")


def collective_of(thread: int) -> str:
    """The collective that a thread waits in, such as "all_reduce"; empty: none.

    On a GPU the backward pass runs in threads of its own, as the saving of checkpoints does everywhere; they are looked
    at while this one waits for them.
    """
    frames = sys._current_frames()
    if thread not in frames:
        return ""
    found = _collective(frames[thread])
    if not found and _waits_for_another(frames[thread]):
        found = next((name for other, frame in frames.items() if other != thread and (name := _collective(frame))), "")
    return found


def _waits_for_another(frame: FrameType) -> bool:
    code = frame.f_code
    return code.co_name == "_engine_run_backward" or code.co_filename == threading.__file__


def _collective(frame: FrameType | None) -> str:
    """The outermost function of torch's collectives on a stack, or the innermost of its sharding."""
    name = sharding = ""
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        if file.endswith(_COLLECTIVE_FILES) and function not in _WRAPPERS:
            name = function
        elif not sharding and any(part in file for part in _SHARDING_FILES) and function not in _WRAPPERS:
            sharding = function
        frame = frame.f_back
    return name or sharding


def place_of(thread: int) -> str:
    """The innermost line of this project's code on a thread's stack, such as "trainer/data/plan.py:57 in take"."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/finecut/" in file:
            return f"{file.rpartition('/finecut/')[2]}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return ""
