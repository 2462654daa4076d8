"""Makes the traces of this folder: `bazel run //trainer/allocation:make_traces -- --folder=FOLDER`.

Answers grow over a run as reasoning models' do, and vary from batch to batch (log-normal); training work follows the
tokens. Parameters are in each file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from finecut.trainer.allocation.simulation import Step, Trace

_FOLDER = flags.DEFINE_string("folder", None, "Where the files go.", required=True)

# Tokens of a batch grow from 1 to `growth` over the run; GPU-seconds are those of the first step.
PARAMETERS: dict[str, dict[str, float]] = {
    "rollout_bound": {"generating": 1800, "training": 500, "growth": 3.0, "spread": 0.15, "tail_s": 8, "seed": 1},
    "training_bound": {"generating": 300, "training": 1500, "growth": 1.3, "spread": 0.10, "tail_s": 4, "seed": 2},
}
_NUM_GPUS, _NUM_STEPS, _MOVE_S, _EXCHANGE_S = 16, 300, 45.0, 2.0


def generate(name: str) -> Trace:
    """The trace of these parameters; the same at every call."""
    parameters = PARAMETERS[name]
    random = np.random.default_rng(int(parameters["seed"]))
    steps = []
    for number in range(_NUM_STEPS):
        tokens = parameters["growth"] ** (number / (_NUM_STEPS - 1))
        noise = random.lognormal(-(parameters["spread"] ** 2) / 2, parameters["spread"], size=2)
        steps.append(
            Step(
                round(parameters["generating"] * tokens * noise[0], 2),
                round(parameters["training"] * math.sqrt(tokens) * noise[1], 2),
                round(parameters["tail_s"] * tokens, 2),
                _EXCHANGE_S,
            )
        )
    return Trace(name, _NUM_GPUS, _MOVE_S, tuple(steps), parameters)


def main(argv: Sequence[str]) -> None:
    """Writes all."""
    for name in PARAMETERS:
        generate(name).write(Path(_FOLDER.value) / f"{name}.json")


if __name__ == "__main__":
    app.run(main)
