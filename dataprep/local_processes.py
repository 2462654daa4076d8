"""Processes of this machine that are copies of this one: they have its imports and its tokenizer from the start.

They end with it, however it ends, so that two generations never write the same file.
"""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

# Times that processes are started again after one was killed.
MAX_RESTARTS = 2
_PR_SET_PDEATHSIG = 1
Item = TypeVar("Item")
Result = TypeVar("Result")


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def map_in_order(function: Callable[[Item], Result], items: Sequence[Item]) -> Generator[Result, None, None]:
    """The result of each item, in as many processes as there are cores; to close it is to stop the work.

    `function` is inherited, not sent, and may be bound to anything. Where a process is killed, all that has not been
    yielded is done again. Raises ChildProcessError where that happens too often.
    """
    num_done = 0
    for _ in range(1 + MAX_RESTARTS):
        try:
            with _pool(function) as pool:
                futures = [pool.submit(_call, item) for item in items[num_done:]]
                for future in futures:
                    yield future.result()
                    num_done += 1
            return
        except BrokenProcessPool:
            continue
    raise ChildProcessError(
        f"a worker process was killed {1 + MAX_RESTARTS} times, most likely because memory ran out; run it again with "
        "less beside it: what is finished is kept"
    )


@contextmanager
def _pool(function: Callable) -> Iterator[ProcessPoolExecutor]:
    # The tokenizers library looks at this when it is forked; its threads would only fight with those of the others.
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(num_cores(), context, initializer=_begin, initargs=(function, os.getpid()))
    try:
        yield pool
    finally:
        # A shutdown waits for what is at work, which may be a file of hours; Python 3.14 has a method for this.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(cancel_futures=True)
        del os.environ["TOKENIZERS_PARALLELISM"]
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before


_function: Callable[[Any], Any]


def _begin(function: Callable, parent: int) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; the parent ends the others
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be watched
        os._exit(1)


def _call(item: Any) -> Any:
    return _function(item)
