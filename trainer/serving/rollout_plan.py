"""How a new version takes over, as plain values, and the comparison that it has to pass first."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from finecut.trainer.serving.version import Version

_PROBE_TIMEOUT = aiohttp.ClientTimeout(total=120)


@dataclasses.dataclass(frozen=True)
class Canary:
    """Step-wise traffic shift; see Deploy.Canary in the contract."""

    traffic_percent: tuple[int, ...]
    step_s: float
    max_error_fraction: float
    prompts: tuple[str, ...]
    max_new_tokens: int
    max_latency_ratio: float

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Canary:
        """From what `dataclasses.asdict` made."""
        return Canary(**(fields | {name: tuple(fields[name]) for name in ("traffic_percent", "prompts")}))


@dataclasses.dataclass(frozen=True)
class Probe:
    """One prompt's answer."""

    text: str
    tokens: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What two versions made of the same prompts. Latency is the median time of a token."""

    old: tuple[Probe | None, ...]
    new: tuple[Probe | None, ...]

    def problem(self, max_latency_ratio: float) -> str | None:
        """Why the new version must not take over, or None. It must answer what the old one answers."""
        worse = [
            n for n, (old, new) in enumerate(zip(self.old, self.new, strict=True)) if _answers(old) > _answers(new)
        ]
        if worse:
            return f"it does not answer {len(worse)} of {len(self.old)} prompts that the version before answers"
        old, new = _token_time(self.old), _token_time(self.new)
        if old and new and new > max_latency_ratio * old:
            return (
                f"a token takes {1000 * new:.1f} ms instead of {1000 * old:.1f} ms, more than max_latency_ratio"
                f" ({max_latency_ratio:g}) allows"
            )
        return None


async def compare(old: Version, new: Version, canary: Canary, session: aiohttp.ClientSession, key: str) -> Comparison:
    """Asks both, greedy, one prompt after the other, so that neither slows the other down."""
    headers = {"Authorization": f"Bearer {key}"}
    answers = [
        (await _probe(session, headers, old, prompt, canary), await _probe(session, headers, new, prompt, canary))
        for prompt in canary.prompts
    ]
    return Comparison(tuple(pair[0] for pair in answers), tuple(pair[1] for pair in answers))


async def _probe(
    session: aiohttp.ClientSession, headers: Mapping[str, str], version: Version, prompt: str, canary: Canary
) -> Probe | None:
    replica = version.choose()
    if replica is None:
        return None
    asked = {
        "model": version.settings.name,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": canary.max_new_tokens,
        "temperature": 0,
    }
    start = time.perf_counter()
    try:
        url = f"{replica.address.url}/v1/chat/completions"
        async with session.post(url, json=asked, headers=headers, timeout=_PROBE_TIMEOUT) as response:
            if response.status != 200:
                return None
            found = await response.json()
    except (TimeoutError, aiohttp.ClientError, OSError):
        return None
    text = found["choices"][0]["message"]["content"] or ""
    return Probe(text, found["usage"]["completion_tokens"], time.perf_counter() - start)


def _answers(probe: Probe | None) -> bool:
    return probe is not None and bool(probe.text.strip())


def _token_time(probes: Sequence[Probe | None]) -> float | None:
    times = [probe.seconds / max(1, probe.tokens) for probe in probes if probe]
    return statistics.median(times) if times else None
