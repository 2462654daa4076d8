"""A user's reward function, in processes that are ended when a call takes too long."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import queue
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from finecut.proto.config import UserError
from finecut.trainer.rewards import function_process
from finecut.trainer.rewards.answer import Answer, Unscored
from finecut.trainer.rewards.config import PythonFunction

# Imports of the user's module count here; those of torch take half a minute on a loaded machine.
_START_TIMEOUT_S = 300.0


class FunctionScorer:
    """Calls a function on each answer, in several processes at a time."""

    def __init__(self, config: PythonFunction) -> None:
        """Raises UserError where the function cannot be imported, or takes other arguments."""
        self._processes = [_FunctionProcess(config) for _ in range(config.num_processes)]
        try:
            for process in self._processes:
                process.wait_until_ready()
        except UserError:
            self.close()
            raise

    def score(self, answers: Sequence[Answer]) -> list[float | Unscored]:
        """In the answers' order. A function that raises, hangs, dies or returns no number leaves that one unscored."""
        free: queue.SimpleQueue[_FunctionProcess] = queue.SimpleQueue()
        for process in self._processes:
            free.put(process)

        def call(answer: Answer) -> float | Unscored:
            process = free.get()
            try:
                return process.call(answer)
            finally:
                free.put(process)

        with concurrent.futures.ThreadPoolExecutor(len(self._processes)) as threads:
            return list(threads.map(call, answers))

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.close()


class _FunctionProcess:
    """One process. It is started anew after a call that it did not answer."""

    def __init__(self, config: PythonFunction) -> None:
        self._config = config
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        with theirs:
            command = [sys.executable, "-m", function_process.__name__, self._config.path, str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._is_ready = False

    def wait_until_ready(self) -> None:
        """Raises UserError where the function is not to be had."""
        if self._is_ready:
            return
        try:
            reply = _receive(self._pipe, _START_TIMEOUT_S)
        except (TimeoutError, EOFError, OSError) as error:
            self.close()
            what = "the process that imports it ended" if isinstance(error, EOFError) else "its import takes too long"
            raise UserError(f"{function_process.FIELD}: {self._config.path!r}: {what}; see standard error") from error
        if "error" in reply:
            raise UserError(reply["error"])
        self._is_ready = True

    def call(self, answer: Answer) -> float | Unscored:
        """The function's value."""
        self.wait_until_ready()
        try:
            self._pipe.send_bytes(function_process.encode(answer))
            reply = _receive(self._pipe, self._config.timeout_s)
        except TimeoutError:
            return self._given_up(f"it took more than its timeout, {self._config.timeout_s:g} s")
        except (EOFError, OSError):
            return self._given_up(f"its process ended with exit code {self._process.wait()}")
        return Unscored(reply["error"]) if "error" in reply else float(reply["value"])

    def _given_up(self, reason: str) -> Unscored:
        self.close()
        self._start()
        return Unscored(reason)

    def close(self) -> None:
        """Ends the process at once."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()


def _receive(pipe: Connection, timeout_s: float) -> dict[str, Any]:
    if not pipe.poll(timeout_s):
        raise TimeoutError
    return json.loads(pipe.recv_bytes())
