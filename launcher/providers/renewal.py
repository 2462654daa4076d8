"""New certificates for a cluster at work.

Ray's processes read certificates when they start and never again. So machines get new files in time, which every worker
that starts later uses; and before the certificates of the processes that live end, the run writes a checkpoint and
stops, because only a new head, at `resume`, brings all of them new ones.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Protocol


class Certified(Protocol):
    """The part of Membership that is used here."""

    def due(self) -> list[str]: ...

    def renew_head(self) -> None: ...

    def is_ending(self) -> bool: ...


class Renewal:
    """One cluster's. `send` gives a node its new secret."""

    def __init__(self, membership: Certified, send: Callable[[str], None], say: Callable[[str], None]) -> None:
        self._membership = membership
        self._send = send
        self._say = say
        self._has_stopped = False

    def round(self) -> None:
        """One look; cheap."""
        self._membership.renew_head()
        for instance in self._membership.due():
            self._send(instance)
        if self._membership.is_ending() and not self._has_stopped:
            self._has_stopped = True
            self._say("the certificates of Ray's processes end soon: the run writes a checkpoint and stops; resume it")
            os.kill(os.getpid(), signal.SIGTERM)  # as when this machine goes away: see preemption.py
