"""What a rollout gives the trainer: answers with everything that is needed to learn from them exactly.

Sample(record_id="train/17", sample_index=2, seed=..., prompt_ids=(1, 5, 9), answer_ids=(8, 8, 4),
       loss_mask=(True, True, True), log_probabilities=(-0.4, -1.2, -0.1), policy_versions=(3, 3, 4),
       weights={3: "0f..", 4: "a1.."}, sampling=SamplingParameters(...), finish_reason=FinishReason.STOP)
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from finecut.trainer.rollout.sampling import SamplingParameters


class FinishReason(enum.Enum):
    """Why an answer ended."""

    # The policy ended its turn (and, with an environment, the environment said that it is done).
    STOP = "stop"
    # max_new_tokens, or the engine's longest sequence, was reached within a turn.
    LENGTH = "length"
    # The environment would have gone on, but max_turns was reached.
    MAX_TURNS = "max_turns"


@dataclasses.dataclass(frozen=True)
class Sample:
    """One answer to one prompt. All per-token tuples are as long as `answer_ids`.

    Token ids are those that were sampled or inserted: text is never tokenised again.
    """

    # The record that the prompt is from.
    record_id: str
    # Which of the prompt's answers this is.
    sample_index: int
    # What it was drawn with; drawn again with equal weights it is equal.
    seed: int
    prompt_ids: tuple[int, ...]
    # What follows the prompt: the policy's turns and, between them, what the environment said.
    answer_ids: tuple[int, ...]
    # True where the policy sampled the token, False where the environment inserted it.
    loss_mask: tuple[bool, ...]
    # Under the distribution sampled from (temperature, top-p and top-k applied); 0 where nothing was sampled.
    log_probabilities: tuple[float, ...]
    # The policy version that sampled the token; for an inserted token, that of the turn before it.
    policy_versions: tuple[int, ...]
    # Digest of the engine's weights at each of these versions; see checksums.digest.
    weights: Mapping[int, str]
    sampling: SamplingParameters
    finish_reason: FinishReason
    # Assistant turns.
    num_turns: int = 1

    def __post_init__(self) -> None:
        lengths = {len(self.loss_mask), len(self.log_probabilities), len(self.policy_versions), len(self.answer_ids)}
        assert len(lengths) == 1, f"per-token fields of sample {self.record_id} differ in length: {lengths}"
        assert set(self.policy_versions) <= set(self.weights), (self.policy_versions, self.weights)

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens that the policy sampled."""
        return sum(self.loss_mask)

    @property
    def oldest_version(self) -> int:
        """The oldest policy version that had a part in it. Raises ValueError for an empty answer."""
        return min(self.policy_versions)

    def staleness(self, version: int) -> int:
        """How many versions the sample's oldest token is behind `version`; 0 for an empty answer."""
        return max(0, version - self.oldest_version) if self.policy_versions else 0

    def to_plain(self) -> dict[str, Any]:
        """As values that a checkpoint can hold; without the sampling parameters, which are the job's."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["sampling"]
        return fields | {"finish_reason": self.finish_reason.value, "weights": dict(self.weights)}

    @classmethod
    def from_plain(cls, fields: Mapping[str, Any], sampling: SamplingParameters) -> Sample:
        """The sample that `to_plain` was called on."""
        return cls(**{**fields, "sampling": sampling, "finish_reason": FinishReason(fields["finish_reason"])})
