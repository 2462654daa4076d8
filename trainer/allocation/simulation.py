"""Runs the policy, and fixed splits, over a recorded trace: what each would have taken.

A trace holds, for each step, the GPU-seconds of generating and of training, and for each side how much of its work does
not become faster with more GPUs (the longest answer of a batch; the exchange of gradients), in seconds.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from finecut.proto.config import UserError
from finecut.trainer.allocation.policy import AllocationPolicy, Bounds, PolicyConfig, StepTimes


@dataclasses.dataclass(frozen=True)
class Step:
    """The work of one step."""

    generating_gpu_s: float
    training_gpu_s: float
    generating_fixed_s: float = 0.0
    training_fixed_s: float = 0.0

    def times(self, split: int, num_gpus: int) -> StepTimes:
        """What it takes with `split` GPUs that generate and the others that train."""
        generating_s = self.generating_gpu_s / split + self.generating_fixed_s
        training_s = self.training_gpu_s / (num_gpus - split) + self.training_fixed_s
        return StepTimes(split, generating_s, training_s)


@dataclasses.dataclass(frozen=True)
class Trace:
    """A run as it was recorded, or generated from the parameters in `origin`."""

    name: str
    num_gpus: int
    move_s: float
    steps: tuple[Step, ...]
    origin: dict[str, float]

    @staticmethod
    def read(path: Path) -> Trace:
        """Raises UserError where it is none."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            steps = tuple(Step(*map(float, row)) for row in fields["steps"])
            return Trace(fields["name"], int(fields["num_gpus"]), float(fields["move_s"]), steps, fields["origin"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a trace: {error!r}") from None

    def write(self, path: Path) -> None:
        """As `read` takes it."""
        fields = dataclasses.asdict(self) | {"steps": [list(dataclasses.astuple(step)) for step in self.steps]}
        path.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def fixed(trace: Trace, split: int) -> float:
    """Seconds of the whole run with one split."""
    return sum(_step_s(step.times(split, trace.num_gpus)) for step in trace.steps)


def dynamic(trace: Trace, config: PolicyConfig, bounds: Bounds) -> tuple[float, list[int]]:
    """Seconds of the whole run under the policy, moves included, from half and half; and the split of each step."""
    policy = AllocationPolicy(bounds, config, half(bounds))
    total, splits = 0.0, []
    for step in trace.steps:
        split = policy.split
        times = step.times(split, trace.num_gpus)
        total += _step_s(times)
        splits.append(split)
        if policy.after_step(times) != split:
            total += trace.move_s
    return total, splits


def half(bounds: Bounds) -> int:
    """The allowed split that is nearest to half and half."""
    return min(bounds.splits(), key=lambda split: abs(split - bounds.num_gpus / 2))


def _step_s(times: StepTimes) -> float:
    return max(times.generating_s, times.training_s)
