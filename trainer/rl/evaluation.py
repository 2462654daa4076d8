"""Evaluation while training: what the policy answers to held-out prompts, on the engines with the weights they have.

    publish(version) --> due? --> prompts of each measurement --> engines --> answers --> metrics "eval/..."

    consumes: engines at a version; produces: metrics of that version; waits for: the engines, the measurements
    unblocks: the next step (engines of their own go on with the batches that they are at)

Nothing is loaded again, nothing is learnt from the answers, and what training draws at random stays as it is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from finecut.trainer.rl.batches import Collected
from finecut.trainer.rl.rollouts import Rollouts
from finecut.trainer.rollout.episode import Prompt
from finecut.trainer.rollout.sampling import SamplingParameters


class Measurement(Protocol):
    """Something that is measured of answers. The same on every rank, and called in the same order there."""

    @property
    def every_steps(self) -> int:
        """Steps between two."""

    @property
    def prompts(self) -> Sequence[Prompt]:
        """What is asked, each once; record ids differ."""

    @property
    def sampling(self) -> SamplingParameters:
        """How it is answered."""

    @property
    def takes_turns(self) -> bool:
        """Whether the environment of a rollout of several turns takes part; else each prompt gets one answer."""

    def metrics(self, answers: Collected) -> dict[str, float]:
        """What the answers are worth, one for each prompt, in order. Collective. Raises UserError."""


class Evaluation:
    """All measurements of a run, at the steps where they are due. Collective."""

    def __init__(self, measurements: Sequence[Measurement], last_step: int, rollouts: Rollouts) -> None:
        """Each is due before step 1, every `every_steps` of its steps, and after the last."""
        self._measurements = measurements
        self._last_step = last_step
        self._rollouts = rollouts

    def due(self, step: int) -> bool:
        """Whether the policy is measured after `step`; 0 is before the first."""
        return bool(self._due(step))

    def run(self, step: int) -> dict[str, float]:
        """Metrics of the version that engines have, which is that after `step`. Raises what measurements do."""
        began = time.perf_counter()
        found: dict[str, float] = {}
        for measurement in self._due(step):
            answers = self._rollouts.answer(measurement.prompts, measurement.sampling, step, measurement.takes_turns)
            found |= measurement.metrics(answers)
        return found | {"seconds": time.perf_counter() - began}

    def _due(self, step: int) -> list[Measurement]:
        return [one for one in self._measurements if step % one.every_steps == 0 or step == self._last_step]
