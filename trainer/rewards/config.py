"""Rewards as frozen dataclasses. `from_proto` takes resolved messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from finecut.proto import rollout_pb2


@dataclasses.dataclass(frozen=True)
class ModelReward:
    """A reward model's folder."""

    path: Path


@dataclasses.dataclass(frozen=True)
class ExactMatch:
    """Equality of texts; `normalize`: without case and outer white space."""

    normalize: bool = True


@dataclasses.dataclass(frozen=True)
class Numeric:
    """Equality of numbers, within a part of the reference."""

    relative_tolerance: float = 1e-6


@dataclasses.dataclass(frozen=True)
class RegularExpression:
    """A pattern to be found."""

    pattern: str


@dataclasses.dataclass(frozen=True)
class PythonFunction:
    """A user's function, "package.module:name"."""

    path: str
    timeout_s: float = 10.0
    num_processes: int = 1


@dataclasses.dataclass(frozen=True)
class Overlong:
    """What an answer is charged for its last tokens: those of a buffer before the longest allowed, `max_tokens`."""

    max_tokens: int
    buffer_tokens: int


RewardSource = ModelReward | ExactMatch | Numeric | RegularExpression | PythonFunction | Overlong


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """One reward of a mix; see Reward in the contract."""

    name: str
    source: RewardSource
    weight: float = 1.0
    normalize: bool = False

    @classmethod
    def from_proto(
        cls, proto: rollout_pb2.Reward, locate: Callable[[str], Path], max_new_tokens: int = 0
    ) -> RewardConfig:
        """From a resolved Reward of answers of up to `max_new_tokens`; `locate` finds the artifact behind "@stage"."""
        kind = proto.WhichOneof("source") or ""
        return cls(proto.name or kind, _source(proto, kind, locate, max_new_tokens), proto.weight, proto.normalize)

    @property
    def is_verifier(self) -> bool:
        """Whether records may choose it by its name."""
        return not isinstance(self.source, ModelReward | Overlong)

    def judges(self, verifier: str | None) -> bool:
        """Whether it judges a record that names this verifier, or none."""
        return verifier is None or not self.is_verifier or verifier == self.name


def _source(proto: rollout_pb2.Reward, kind: str, locate: Callable[[str], Path], max_new_tokens: int) -> RewardSource:
    match kind:
        case "model":
            return ModelReward(locate(proto.model))
        case "exact_match":
            return ExactMatch(proto.exact_match.normalize)
        case "numeric":
            return Numeric(proto.numeric.relative_tolerance)
        case "regular_expression":
            return RegularExpression(proto.regular_expression)
        case "overlong":
            return Overlong(max_new_tokens, proto.overlong.buffer_tokens)
        case _:
            assert kind == "python", kind
            function = proto.python
            timeout_s = function.timeout.ToTimedelta().total_seconds()
            return PythonFunction(function.path, timeout_s, function.process_count)
