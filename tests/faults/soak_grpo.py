"""The soak of GRPO, with a real engine: whatever dies, every sample is learnt from once and says what it is from.

Checked of what the run left (samples.jsonl, events, the artifact), when it is done:

    prompts     each place of the stream in one step, in order, and each prompt with its whole group of answers
    versions    of each sample the version before its step, and of each version one digest of weights
    drift       trainer and engine agree in every step, those after each restart included
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finecut.proto import job_pb2, service_pb2
from finecut.proto.run import RunFolder, artifacts, events
from finecut.trainer.rl import testing

STAGE = "train"
STEPS = 400
# An engine that starts anew may add up in another order.
IS_COMPARED = False
# An engine takes most of a start.
LONGEST_S = (4.0, 60.0)

PROMPTS, GROUP = 4, 4  # of a step, and answers to each
_LARGEST_DRIFT = 1e-3  # nats; FP32 on both sides gives 1e-6

_TRAINING = """
    max_steps: {steps} optimizer {{ learning_rate: 1e-3 }}
    checkpointing {{ every_steps: 2 asynchronous: true }}
    recovery {{ max_restarts: 1000 backoff {{ }} }}
"""


def write_inputs(root: Path) -> None:
    """Model and prompts; an epoch is shorter than the run."""
    testing.write_tiny_inputs(root, num_prompts=30)


def job(root: Path, storage: str, steps: int) -> job_pb2.JobConfig:
    """With KL in the loss, whose weight is steered, so that a checkpoint has more to keep."""
    fields = f'group_size: {GROUP} rewards {{ regular_expression: "z" }} kl {{ coefficient: 0.1 target: 0.5 }}'
    rollout = f"prompts_per_step: {PROMPTS} max_new_tokens: 8"
    cluster = "cluster { local { cpu_count: 1 } }"
    training = _TRAINING.format(steps=steps)
    return testing.tiny_job(root, "grpo", fields, training, rollout, storage=storage, cluster=cluster)


def problems(killed: job_pb2.JobConfig, whole: job_pb2.JobConfig, steps: int) -> list[str]:
    """What breaks the contract of samples."""
    happened = events.follow(RunFolder.of(killed).events(STAGE))[0]
    artifact = artifacts.read(RunFolder.of(killed).artifact(STAGE), verify=True)
    done = [] if artifact.model.steps == steps else [f"the artifact has {artifact.model.steps} steps of {steps}"]
    return done + of_samples(testing.samples(killed), steps) + of_drift(happened)


def of_samples(samples: Sequence[Mapping[str, Any]], steps: int) -> list[str]:
    """What is wrong with the lines of samples.jsonl."""
    by_step: dict[int, list[Mapping[str, Any]]] = collections.defaultdict(list)
    digests: dict[str, set[str]] = collections.defaultdict(set)
    for sample in samples:
        by_step[sample["step"]].append(sample)
        for version, digest in sample["weights"].items():
            digests[version].add(digest)
    wrong = []
    if list(by_step) != list(range(1, steps + 1)):
        wrong.append(f"steps are {list(by_step)}, not 1 to {steps} in order")
    for step, found in by_step.items():
        places = range((step - 1) * PROMPTS, step * PROMPTS)
        expected = [(place, index) for place in places for index in range(GROUP)]
        if [(int(one["record_id"].rpartition("#")[2]), one["sample_index"]) for one in found] != expected:
            wrong.append(f"step {step} has not each answer to prompts {places.start} to {places.stop - 1} once")
        if any(list(one["weights"]) != [str(step - 1)] for one in found):
            wrong.append(f"step {step} has samples of another version than {step - 1}")
    wrong += [f"version {version} has {len(found)} digests" for version, found in digests.items() if len(found) > 1]
    if len(set().union(*digests.values())) < len(digests):
        wrong.append("two versions have the same weights")
    return wrong


def of_drift(happened: Sequence[service_pb2.JobEvent]) -> list[str]:
    """In which steps trainer and engine disagree, those done again included."""
    steps = [event.step for event in happened if event.WhichOneof("event") == "step"]
    found = [(step.step, step.values.get("drift", math.nan)) for step in steps]
    return [
        f"step {step}: trainer and engine differ by {drift:.3g} nats a token"
        for step, drift in found
        if not drift < _LARGEST_DRIFT
    ]
