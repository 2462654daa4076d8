"""The start of a run: what it does, and when."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Start:
    """Phases of a start, some of which run side by side."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        # Seconds since then of the begin and the end of each, by name.
        self._phases: dict[str, tuple[float, float]] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a phase; from any thread."""
        began = self._now()
        yield
        self._phases[name] = (began, self._now())

    def describe(self) -> str:
        """For people."""
        phases = [f"{name} {end - begin:.1f} s (from {begin:.1f} s on)" for name, (begin, end) in self._phases.items()]
        return "started: " + ", ".join(phases)

    def metrics(self, rollout_began: float, rollout_seconds: float) -> dict[str, float]:
        """Seconds of each phase, and from the start to the end of the first rollout.

        Args:
          rollout_began: by time.perf_counter.
        """
        found = {f"start/{name.replace(' ', '_')}": end - begin for name, (begin, end) in self._phases.items()}
        return found | {"start/first_rollout": rollout_began - self._began + rollout_seconds}

    def _now(self) -> float:
        return time.perf_counter() - self._began
