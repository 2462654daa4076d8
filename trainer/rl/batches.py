"""What travels between engines and trainer: prompts of one step with their samples, on the way and arrived."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from finecut.trainer.rollout.episode import Prompt
from finecut.trainer.rollout.sample import Sample
from finecut.trainer.rollout.sampling import SamplingParameters


@dataclasses.dataclass
class Batch:
    """Prompts of one step and, once they are there, their samples. `future` is rank 0's.

    Batch(prompts=[Prompt("maths/00c0ffee#0", (1, 5, 9))], future=<pending>, samples=None)
    """

    prompts: list[Prompt]
    future: Future[list[Sample]] | None = None
    samples: list[Sample] | None = None

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint, once its samples are there."""
        return {
            "prompts": [dataclasses.asdict(prompt) for prompt in self.prompts],
            "samples": [sample.to_plain() for sample in self.samples or ()],
        }

    @classmethod
    def from_plain(cls, fields: Mapping[str, Any], sampling: SamplingParameters) -> Batch:
        """From a checkpoint."""
        samples = [Sample.from_plain(sample, sampling) for sample in fields["samples"]]
        return cls([Prompt(**prompt) for prompt in fields["prompts"]], samples=samples)


@dataclasses.dataclass(frozen=True)
class Collected:
    """Prompts, and the samples of each side by side."""

    prompts: list[Prompt]
    samples: list[Sample]
