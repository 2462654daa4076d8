"""Holds the engine's log-probabilities against the trainer's, every step.

The two compute the same thing with different kernels, so they differ a little. When they differ a lot the engine has
other weights, or samples from another distribution than the trainer believes; training on would be silently wrong.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from finecut.proto.config import UserError
from finecut.trainer.rollout import checksums
from finecut.trainer.rollout.sample import Sample

_SHOWN = 5  # names in one message


class DriftError(UserError):
    """Trainer and engine disagree; the message says by how much and in which layers."""


@dataclasses.dataclass(frozen=True)
class Drift:
    """How far trainer and engine are apart over the sampled tokens."""

    num_tokens: int
    # Of the absolute difference of log-probabilities, in nats.
    mean_difference: float
    max_difference: float
    # Sampled tokens left out because older weights sampled them (asynchronous rollouts).
    num_stale_tokens: int = 0


def measure(samples: Sequence[Sample], trainer_log_probabilities: Sequence[Sequence[float]], version: int) -> Drift:
    """Compares the tokens that `version`, the trainer's, sampled: whatever stands before them, both read it alike.

    Args:
      trainer_log_probabilities: for each sample, one a token of its answer, under the sample's SamplingParameters and
        the trainer's present weights. Inserted tokens are ignored.
    """
    differences: list[float] = []
    num_stale = 0
    for sample, ours in zip(samples, trainer_log_probabilities, strict=True):
        tokens = zip(sample.log_probabilities, ours, sample.loss_mask, sample.policy_versions, strict=True)
        for theirs, our, is_sampled, sampled_by in tokens:
            if is_sampled and sampled_by == version:
                differences.append(abs(theirs - our))
            elif is_sampled:
                num_stale += 1
    if not differences:
        return Drift(0, 0.0, 0.0, num_stale)
    # max() skips over a NaN or not, depending on where it stands; a NaN must never pass for a small difference.
    worst = math.inf if any(math.isnan(d) for d in differences) else max(differences)
    mean = worst if math.isinf(worst) else math.fsum(differences) / len(differences)
    return Drift(len(differences), mean, worst, num_stale)


def check(
    samples: Sequence[Sample],
    trainer_log_probabilities: Sequence[Sequence[float]],
    version: int,
    limit: float,
    trainer_checksums: Mapping[str, int],
    engine_checksums: Mapping[str, int],
) -> Drift:
    """As `measure`; raises DriftError when the mean difference is above `limit` (rollout.max_logprob_drift, nats).

    The checksums, by Hugging Face tensor name, are those of the weights of both sides; they say where to look.
    """
    drift = measure(samples, trainer_log_probabilities, version)
    if drift.mean_difference <= limit:
        return drift
    names = checksums.differing(trainer_checksums, engine_checksums)
    raise DriftError(
        f"rollout.max_logprob_drift: trainer and engine differ by {drift.mean_difference:.3g} nats a token on average "
        f"(at most {drift.max_difference:.3g}) over {drift.num_tokens:,} sampled tokens of policy version {version}; "
        f"the limit is {limit:g}. {_explanation(names)}"
    )


def _explanation(names: Sequence[str]) -> str:
    if not names:
        return (
            "All weights are equal, so the engine computes differently: compare its number type with the trainer's "
            "precision, or raise the limit if this difference is expected"
        )
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f"Weights differ in {_layers(names)}: {shown}. Synchronise the engines again before sampling"


def _layers(names: Sequence[str]) -> str:
    layers = sorted({int(found.group(1)) for name in names if (found := re.search(r"\blayers\.(\d+)\.", name))})
    outside = any(not re.search(r"\blayers\.\d+\.", name) for name in names)
    parts = []
    if layers:
        shown = ", ".join(str(layer) for layer in layers[:_SHOWN])
        more = f" and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else ""
        parts.append(f"layer{'s' if len(layers) > 1 else ''} {shown}{more}")
    if outside:
        parts.append("the embedding, final norm or head")
    return " and ".join(parts)
