"""The timer that ends a node of which nobody takes care any more: shutdown(8)'s own, so that it outlives the agent."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

_MESSAGE = "finecut: nothing was heard from the launcher"


class DeadMan:
    """Wound up by each new value of the launcher's lease. Clocks of two machines are never compared."""

    def __init__(self, minutes: int, run: Callable[[list[str]], None] | None = None) -> None:
        self._minutes = minutes
        self._run = run or _run
        self._lease: str | None = None

    def hear(self, lease: str | None) -> None:
        """Takes the lease as it is read now; None: it could not be read, or there is none."""
        if lease is None or lease == self._lease:
            return
        self._lease = lease
        self._run(["shutdown", "-c"])
        self._run(["shutdown", "-P", f"+{self._minutes}", _MESSAGE])

    def end_now(self, reason: str) -> None:
        """Ends this machine, and with it its bill."""
        self._run(["shutdown", "-P", "now", f"finecut: {reason}"])


def _run(command: list[str]) -> None:
    subprocess.run(command, check=False, capture_output=True, timeout=60)
