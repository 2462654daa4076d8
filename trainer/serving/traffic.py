"""Which version answers a request, and when a new one has failed. Pure: no clock, no network.

stable   answers whatever the candidate does not
candidate   a share of requests in percent, exact over any 100 of them; taken back at once when it fails
"""

from __future__ import annotations

import dataclasses

_MIN_REQUESTS = 10  # one failure of three would not yet be a rate


@dataclasses.dataclass
class Counts:
    """Requests that a version was asked and could not answer (its clients' own errors count as answered)."""

    requests: int = 0
    failures: int = 0


class Traffic:
    """Shares requests between two versions, by name."""

    def __init__(self) -> None:
        self.stable: str | None = None
        self.candidate: str | None = None
        self.share_percent = 0
        self.counts = Counts()
        self._max_error_fraction = 1.0
        self._number = 0

    def begin(self, candidate: str, max_error_fraction: float) -> None:
        """A candidate, at first without traffic."""
        self.candidate, self.share_percent, self._number = candidate, 0, 0
        self.counts, self._max_error_fraction = Counts(), max_error_fraction

    def order(self) -> list[str]:
        """Versions to try for the next request, in order: what one cannot answer, the other may."""
        known = [version for version in (self.stable, self.candidate) if version is not None]
        if self.candidate is None or self.stable is None:
            return known
        before, self._number = self._number, self._number + 1
        takes = self._number * self.share_percent // 100 > before * self.share_percent // 100
        # A candidate without a share is being looked at; it does not stand in.
        return known[::-1] if takes else known if self.share_percent else known[:1]

    def record(self, version: str, is_failure: bool) -> None:
        """What became of a request."""
        if version == self.candidate:
            self.counts.requests += 1
            self.counts.failures += is_failure

    @property
    def failure(self) -> str | None:
        """Why the candidate must go, or None."""
        counts = self.counts
        if self.candidate is None or counts.requests < _MIN_REQUESTS:
            return None
        fraction = counts.failures / counts.requests
        if fraction <= self._max_error_fraction:
            return None
        return (
            f"{counts.failures} of its {counts.requests} requests failed, {fraction:.1%}, and max_error_fraction allows"
            f" {self._max_error_fraction:.1%}"
        )

    def promote(self) -> str | None:
        """The candidate takes all; returns the version that it replaces."""
        replaced, self.stable = self.stable, self.candidate
        self.candidate, self.share_percent = None, 0
        return replaced

    def roll_back(self) -> None:
        """The stable version takes all."""
        self.candidate, self.share_percent = None, 0
