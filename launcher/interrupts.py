"""Ctrl-C and SIGTERM as an exception in the main thread."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """The user, or the system, asked this process to stop. A BaseException: no `except Exception` may swallow it."""

    exit_code = 1

    @property
    def is_notice(self) -> bool:
        """Whether it comes before the machine goes away, rather than from a user who waits."""
        return str(self) == signal.SIGTERM.name


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def raised() -> Iterator[None]:
    """Raises Interrupted at the first signal; a second one ends the process at once."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    arm()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def arm() -> None:
    """Installs the handlers. Called again after ray.init, which takes SIGTERM for itself."""
    for number in _SIGNALS:
        signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    raise Interrupted(signal.Signals(number).name)
