"""Whether samples come from the weights that the trainer sent out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finecut.trainer.rollout.sample import Sample


def problem(samples: Sequence[Sample], published: Mapping[int, str]) -> str | None:
    """What is wrong, in a sentence; None where every sample's weights are those published under its versions.

    Args:
      published: digest of all weights (checksums.digest) by policy version.
    """
    for sample in samples:
        for version in sorted(set(sample.policy_versions)):
            ours, theirs = published.get(version), sample.weights[version]
            if ours != theirs:
                sent = f"the trainer sent {ours}" if ours else "the trainer has sent no such version"
                return (
                    f"record {sample.record_id}: an engine sampled it from weights {theirs} as policy version"
                    f" {version}, and {sent}; the run stops rather than learn from it"
                )
    return None
