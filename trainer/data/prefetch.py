"""Loads the batches of coming steps in a thread, so that no step waits for packing or reading."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

# Steps loaded ahead: enough to hide the packing of a window (0.1 s for 65,536 documents) behind short steps.
_DEPTH = 8


@dataclasses.dataclass(frozen=True)
class _Failure:
    error: BaseException


class Prefetch(Generic[T]):
    """`take(step)` is `load(step)`, computed before it is asked for when steps are taken one after another.

    The thread starts with the first `take`, keeps at most `depth` results and ends after step `last`. It starts anew
    where another step is taken than the next one. What `load` raises is raised by the `take` of the same step.
    """

    def __init__(self, load: Callable[[int], T], last: int, depth: int = _DEPTH) -> None:
        self._load = load
        self._last = last
        self._depth = depth
        self._next: int | None = None
        self._run: _Run[T] | None = None

    def take(self, step: int) -> T:
        """The result of `step`, at most `last`; waits for it where it is not there yet."""
        assert step <= self._last, f"step {step} of {self._last}"
        if self._run is None or step != self._next:
            self.close()
            self._run = _Run(self._load, range(step, self._last + 1), self._depth)
        result = self._run.results.get()
        self._next = step + 1
        if isinstance(result, _Failure):
            self.close()
            raise result.error
        return result

    def close(self) -> None:
        """Ends the thread, after the step that it is loading."""
        if self._run is not None:
            self._run.stop()
            self._run = None


class _Run(Generic[T]):
    """One thread and its queue."""

    def __init__(self, load: Callable[[int], T], steps: range, depth: int) -> None:
        self.results: queue.Queue[T | _Failure] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        # A daemon, so that an interpreter that ends in the middle of a step does not wait for it.
        self._thread = threading.Thread(target=self._work, args=(load, steps), name="prefetch", daemon=True)
        self._thread.start()

    def _work(self, load: Callable[[int], T], steps: range) -> None:
        try:
            for step in steps:
                if self._stopped.is_set():
                    return
                self.results.put(load(step))
        except BaseException as error:  # whatever it is, it belongs to the step that waits for the result
            self.results.put(_Failure(error))

    def stop(self) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self.results.get(timeout=0.01)  # makes room where the thread waits for it
            except queue.Empty:
                continue
        self._thread.join()
