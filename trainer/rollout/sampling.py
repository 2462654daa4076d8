"""How answers are sampled, and the log-probabilities of the distribution that they are sampled from.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import hashlib

import torch
from torch import Tensor

from finecut.proto.config import UserError

# vLLM takes any lower temperature for greedy decoding, whose samples have no useful log-probability.
MIN_TEMPERATURE = 0.01


@dataclasses.dataclass(frozen=True)
class SamplingParameters:
    """What shapes the distribution of the next token: temperature first, then top-k, then top-p on what is left.

    Penalties, min-p, bad words and grammars are left out on purpose: the trainer could not recompute what they do, so
    the ratio of new and old probabilities would be of two different distributions.
    """

    # Longest answer, in tokens.
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    # None considers all tokens.
    top_k: int | None = None
    # An answer ends with any of these; the token is part of the answer.
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"rollout.max_new_tokens: {self.max_new_tokens} must be at least 1")
        if not MIN_TEMPERATURE <= self.temperature < float("inf"):
            raise UserError(
                f"rollout.temperature: {self.temperature:g} must be at least {MIN_TEMPERATURE}; greedy answers have no "
                "log-probability to learn from, so use a higher temperature (1 samples from the policy itself)"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"rollout.top_p: {self.top_p:g} must be greater than 0 and at most 1")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"rollout.top_k: {self.top_k} must be at least 1; leave it out to consider all tokens")

    @property
    def is_truncated(self) -> bool:
        """Whether some tokens cannot be sampled at all."""
        return self.top_p < 1 or self.top_k is not None


def sample_seed(run_seed: int, policy_version: int, record_id: str, sample_index: int) -> int:
    """The seed of one sample, so that a sample that is redone is drawn alike. Below 2**63."""
    text = f"{run_seed}/{policy_version}/{record_id}/{sample_index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def restricted_log_softmax(logits_TV: Tensor, token_ids_T: Tensor, sampling: SamplingParameters) -> Tensor:
    """[T, V] FP32: log-probabilities of the distribution that `sampling` makes of the logits; -inf where none is left.

    Differentiable. The sampled token always counts as kept: where rounding puts it on the other side of the top-p
    boundary than the engine did, its log-probability stays finite.
    """
    scaled_TV = logits_TV.float() / sampling.temperature
    if sampling.is_truncated:
        kept_TV = _kept(scaled_TV.detach(), sampling).scatter(-1, token_ids_T[:, None], True)
        scaled_TV = scaled_TV.masked_fill(~kept_TV, -float("inf"))
    return scaled_TV.log_softmax(-1)


def restricted_log_probabilities(logits_TV: Tensor, token_ids_T: Tensor, sampling: SamplingParameters) -> Tensor:
    """[T] FP32: the log-probability of each token under the distribution above."""
    return restricted_log_softmax(logits_TV, token_ids_T, sampling).gather(-1, token_ids_T[:, None])[:, 0]


def _kept(scaled_TV: Tensor, sampling: SamplingParameters) -> Tensor:
    """[T, V] True where a token can be sampled. Ties at the edge of top-k are all kept, as vLLM does."""
    ordered_TV, order_TV = scaled_TV.sort(dim=-1)
    if sampling.top_k is not None and sampling.top_k < scaled_TV.shape[-1]:
        smallest_T1 = ordered_TV[:, -sampling.top_k, None]
        ordered_TV = ordered_TV.masked_fill(ordered_TV < smallest_T1, -float("inf"))
    kept_TV = ordered_TV > -float("inf")
    if sampling.top_p < 1:
        kept_TV &= ordered_TV.softmax(-1).cumsum(-1) > 1 - sampling.top_p
        kept_TV[:, -1] = True
    return torch.zeros_like(kept_TV).scatter(-1, order_TV, kept_TV)
