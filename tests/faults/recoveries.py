"""From a process's death to the next training step, by phases, read from a stage's events."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from finecut.proto import service_pb2

LAUNCHER, RANK = "launcher", "rank"


@dataclass(frozen=True)
class Death:
    """What was killed, and when, in seconds since 1970."""

    victim: str
    at: float


def phases(death: Death, happened: Sequence[service_pb2.JobEvent]) -> dict[str, float] | None:
    """Seconds of each phase; None where something else died before the next step.

    A rank's death is noticed when its group says that it starts again; a launcher starts without a word.
    """
    moments = {"until the checkpoint is loaded": "resumed from", "until the next step is done": ""}
    if death.victim == RANK:
        moments = {"until its group starts again": "; restart "} | moments
    found, before = {}, death.at
    later = iter([event for event in happened if event.at.ToMicroseconds() / 1e6 > death.at])
    for phase, words in moments.items():
        event = next((e for e in later if _is_said(e, words) or _is_said(e, "; restart ")), None)
        if event is None or not _is_said(event, words):
            return None
        at = event.at.ToMicroseconds() / 1e6
        found[phase], before = at - before, at
    return found


def _is_said(event: service_pb2.JobEvent, words: str) -> bool:
    return words in event.message if words else event.WhichOneof("event") == "step"


def describe(deaths: Sequence[Death], happened: Sequence[service_pb2.JobEvent]) -> str:
    """One line a phase, for each kind of victim."""
    lines = []
    for victim in (RANK, LAUNCHER):
        # Where another died before the next step, the later death counts alone.
        ends = [death.at for death in deaths[1:]] + [float("inf")]
        found = [
            measured
            for death, end in zip(deaths, ends, strict=True)
            if death.victim == victim
            and (measured := phases(death, happened))
            and death.at + sum(measured.values()) < end
        ]
        if not found:
            continue
        lines.append(f"after the death of a {victim}, {len(found)} times, seconds:")
        totals = [sum(measured.values()) for measured in found]
        columns = {phase: [measured[phase] for measured in found] for phase in found[0]} | {"all": totals}
        for phase, seconds in columns.items():
            lines.append(f"  {phase}: median {statistics.median(seconds):.1f}, {max(seconds):.1f} at most")
    return "\n".join(lines)
