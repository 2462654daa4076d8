"""The process that runs a user's reward function: python -m finecut.trainer.rewards.function_process PATH DESCRIPTOR.

DESCRIPTOR is a pipe of JSON messages to the process that started this one:

    <- {}                            the function is there; or {"error": sentence}, and the process ends
    -> {"record_id": ...}            an Answer
    <- {"value": 1.0}                or {"error": sentence}

What the function prints goes to standard error. The process ends when the pipe is closed, whatever the function does.
"""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import os
import queue
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from finecut.proto.config import UserError
from finecut.proto.run import user_code
from finecut.trainer.rewards.answer import Answer, RewardFunction

FIELD = "rewards.python.path"


def main(path: str, descriptor: int) -> None:
    """Serves calls until the pipe is closed."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    pipe = Connection(descriptor)
    try:
        function: RewardFunction = user_code.load(path, FIELD, num_arguments=1)
    except UserError as error:
        _send(pipe, {"error": str(error)})
        return
    _send(pipe, {})
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, waiting), daemon=True).start()
    while True:
        _send(pipe, _call(function, Answer(**json.loads(waiting.get()))))


def encode(answer: Answer) -> bytes:
    """The message of an answer, which needs no tokens."""
    text = dataclasses.replace(answer, prompt_ids=(), answer_ids=(), record=dict(answer.record))
    return json.dumps(dataclasses.asdict(text)).encode()


def _receive(pipe: Connection, waiting: queue.SimpleQueue[bytes]) -> None:
    while True:
        try:
            waiting.put(pipe.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)  # nobody waits for what the function still works out


def _call(function: RewardFunction, answer: Answer) -> dict[str, Any]:
    try:
        value = function(answer)
    except Exception as error:  # user code may raise anything
        return {"error": user_code.told(error)}
    if not isinstance(value, numbers.Real):
        return {"error": f"it returned {type(value).__name__}, and a reward is a number"}
    if not math.isfinite(value):
        return {"error": f"it returned {float(value)}, and a reward is finite"}
    return {"value": float(value)}


def _send(pipe: Connection, message: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
