"""When a training group that failed is started again, and when it is not."""

from __future__ import annotations

import dataclasses
import enum

from finecut.proto.config import UserError

_LONGEST_BACKOFF_S = 300.0  # training.proto, Recovery.backoff: up to 5 minutes


class GroupError(RuntimeError):
    """A group of training ranks failed for good."""


class FailureKind(enum.IntEnum):
    """Kinds of failure, the most telling first: when a rank dies, its peers only see a broken connection."""

    USER_ERROR = 0
    PREEMPTED = 1
    HANG = 2
    DEATH = 3
    ERROR = 4


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why one rank stopped, in a sentence."""

    kind: FailureKind
    message: str


class RestartPolicy:
    """Decides, failure by failure, how long to wait before the next start."""

    def __init__(self, max_restarts: int, backoff_s: float) -> None:
        self._max_restarts = max_restarts
        self._backoff_s = backoff_s
        self._last: tuple[Failure, int] | None = None
        self.restarts = 0

    def wait_before_restart(self, failure: Failure, step: int) -> float:
        """Seconds to wait before starting again after a failure that came when `step` steps were recorded.

        Raises:
          UserError: The user has to mend something first; no restart helps.
          GroupError: The same error came twice at the same step, or all restarts are used up.
        """
        if failure.kind is FailureKind.USER_ERROR:
            raise UserError(failure.message)
        # A death or a hang leaves no text to compare: the machine may have been short of memory for a moment.
        if failure.kind is FailureKind.ERROR and self._last == (failure, step):
            raise GroupError(f"the same error came twice after step {step}, so it is not retried: {failure.message}")
        self._last = (failure, step)
        if self.restarts == self._max_restarts:
            raise GroupError(
                f"{failure.message} (after step {step}; {self._max_restarts} restarts are used up,"
                " training.recovery.max_restarts)"
            )
        self.restarts += 1
        return min(self._backoff_s * 2 ** (self.restarts - 1), _LONGEST_BACKOFF_S)
