"""The thread that owns vLLM's engine and drives it step by step.

    any thread -- submit, call --> commands --> [ run commands | step | give finished answers back ] --> futures

It waits for a command while no request is in flight (or it is frozen), else takes all commands between two steps.
vLLM's engine is touched by this thread only.
"""

from __future__ import annotations

import dataclasses
import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from finecut.trainer.rollout import vllm_parts
from finecut.trainer.rollout.engine_config import AbortedError, EngineDiedError, Generation, Request

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

_Result = TypeVar("_Result")


@dataclasses.dataclass
class _Running:
    """A request in flight."""

    request: Request
    # vLLM's own name for it.
    internal_id: str
    future: Future[Generation]
    # Token at which each policy version began, in order.
    spans: list[tuple[int, int]]
    num_tokens: int


@dataclasses.dataclass
class PolicyLabel:
    """What new tokens are labelled with."""

    version: int
    digest: str


class EngineLoop:
    """Runs requests on an engine; everything public may be called from any thread."""

    def __init__(self, start: Callable[[], LLMEngine]) -> None:
        """`start` makes the engine, in the loop's own thread; what it raises comes out of `call`."""
        self._commands: queue.SimpleQueue[tuple[Callable[[LLMEngine], Any], Future] | None] = queue.SimpleQueue()
        self._running: dict[str, _Running] = {}
        self._digests: dict[int, str] = {}
        self._label = PolicyLabel(0, "")
        self._frozen = False
        self._thread = threading.Thread(target=self._run, args=(start,), name="engine_loop", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[LLMEngine], _Result]) -> Future[_Result]:
        """Runs `function` with the engine between two steps."""
        future: Future[_Result] = Future()
        self._commands.put((function, future))
        return future

    def submit(self, request: Request, seeded: bool, adapter: Any = None) -> Future[Generation]:
        """Starts a request. The future fails with AbortedError or EngineDiedError, or with what vLLM has against it."""
        result: Future[Generation] = Future()

        def add(engine: LLMEngine) -> None:
            params = vllm_parts.sampling_params(request, seeded)
            prompt = {"prompt_token_ids": list(request.prompt_ids)}
            internal_id = engine.add_request(request.request_id, prompt, params, lora_request=adapter)
            num_tokens = len(request.prompt_ids) + request.sampling.max_new_tokens
            spans = [(0, self._label.version)]
            self._running[request.request_id] = _Running(request, internal_id, result, spans, num_tokens)

        def refuse(added: Future[None]) -> None:
            if error := added.exception():
                result.set_exception(error)

        self.call(add).add_done_callback(refuse)
        return result

    @property
    def outstanding_tokens(self) -> int:
        """Tokens that requests in flight may still ask for, at most."""
        return sum(running.num_tokens for running in list(self._running.values()))

    @property
    def num_running(self) -> int:
        """Requests in flight."""
        return len(self._running)

    def shut_down(self) -> None:
        """Ends the thread and the engine; requests in flight fail."""
        self._commands.put(None)
        self._thread.join()

    # What follows runs in the loop's thread, from functions given to `call`.

    def freeze(self, engine: LLMEngine) -> None:
        """Stops sampling; requests stay in flight, and every token sampled so far has been counted."""
        if not self._frozen:
            vllm_parts.pause(engine)
            while vllm_parts.outputs_are_waiting(engine):
                self._step(engine)
            self._frozen = True

    def thaw(self, engine: LLMEngine) -> None:
        """Goes on sampling."""
        if self._frozen:
            vllm_parts.resume(engine)
            self._frozen = False

    def set_label(self, engine: LLMEngine, label: PolicyLabel, in_flight: bool) -> None:
        """Labels what is sampled from now on; `in_flight`: also by requests under way."""
        self._label = label
        in_use = {version for running in self._running.values() for _, version in running.spans}
        self._digests = {version: text for version, text in self._digests.items() if version in in_use}
        self._digests[label.version] = label.digest
        for running in self._running.values() if in_flight else ():
            running.spans.append((vllm_parts.num_sampled_tokens(engine, running.internal_id), label.version))

    def abort(self, engine: LLMEngine, request_ids: list[str] | None) -> None:
        """Takes requests back; None means all. Their futures fail with AbortedError."""
        for request_id in list(self._running) if request_ids is None else request_ids:
            if running := self._running.pop(request_id, None):
                engine.abort_request([running.internal_id], internal=True)
                running.future.set_exception(AbortedError(f"request {request_id} was taken back"))

    def num_sampled_tokens(self, engine: LLMEngine, request_id: str) -> int:
        """Tokens that a request in flight has so far; 0 for others."""
        running = self._running.get(request_id)
        return vllm_parts.num_sampled_tokens(engine, running.internal_id) if running else 0

    def fail_all(self, error: BaseException) -> None:
        """Gives up on all requests in flight."""
        for running in self._running.values():
            running.future.set_exception(error)
        self._running.clear()

    def _run(self, start: Callable[[], LLMEngine]) -> None:
        failure = self._drive(start)
        self.fail_all(failure or EngineDiedError("the engine was shut down"))
        while failure and (command := self._commands.get()) is not None:
            command[1].set_exception(failure)

    def _drive(self, start: Callable[[], LLMEngine]) -> BaseException | None:
        """The loop. Returns why it cannot go on, or None once it was shut down."""
        try:
            engine = start()
        except BaseException as error:
            return error
        try:
            while self._take_commands(engine):
                if self._running and not self._frozen:
                    self._step(engine)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            return EngineDiedError(f"the engine can no longer compute: {reason}")
        finally:
            engine.engine_core.shutdown()
        return None

    def _take_commands(self, engine: LLMEngine) -> bool:
        """Runs what is waiting; waits where there is nothing else to do. False when the loop is to end."""
        for number in itertools.count():
            try:
                idle = not self._running or self._frozen
                command = self._commands.get(block=number == 0 and idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            function, future = command
            try:
                future.set_result(function(engine))
            except Exception as error:
                future.set_exception(error)
        raise AssertionError("unreachable")

    def _step(self, engine: LLMEngine) -> None:
        for output in engine.step():
            if output.finished and (running := self._running.pop(output.request_id, None)):
                running.future.set_result(self._generation(running, output))

    def _generation(self, running: _Running, output: Any) -> Generation:
        token_ids, log_probabilities, reason = vllm_parts.answer(output)
        versions: list[int] = []
        ends = [start for start, _ in running.spans[1:]] + [len(token_ids)]
        for (start, version), end in zip(running.spans, ends, strict=True):
            versions += [version] * (end - start)
        weights = {version: self._digests[version] for version in set(versions)}
        return Generation(token_ids, log_probabilities, tuple(versions), weights, reason)
