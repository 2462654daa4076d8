"""Saying what is waited for, where a busy machine may take minutes."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def told(what: str, say: Callable[[str], None], first_s: float = 3.0, every_s: float = 30.0) -> Iterator[None]:
    """Says that `what` is waited for while its body runs: after `first_s` seconds, then now and again with the time.

    Example: "waiting for Ray to start on this machine", "waiting for Ray to start on this machine: 33 s so far".
    """
    started, done = time.monotonic(), threading.Event()

    def speak() -> None:
        if done.wait(first_s):
            return
        say(f"waiting for {what}")
        while not done.wait(every_s):
            say(f"waiting for {what}: {time.monotonic() - started:.0f} s so far")

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        done.set()
        speaker.join()
